"""TrivialAugment's space with chances that are learned while the classifier trains.

Notation:

    p (K, 31)    probability of each op of K and each of its 31 bins of strength
    a (B,)       how a training sample's gradient g_i agrees with where the meta loss falls, the
                 less the better: <d, g_i>, with d of `maths.alignment`

The policy moves down E[a] by the likelihood ratio: sum of a_i d log p_i/dtheta over the samples, of
which each has drawn its own op and bin. So no op needs a derivative.

A longer gradient is not a better one, but <d, g_i> says so: ops that raise contrast lengthen the
features, and with them every gradient, and may win by that alone. `score: cosine` takes the cosine
of two directions among the logits in its place: where the classifier's own step towards a lower
meta loss takes this sample's logits, and where its loss falls.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from autoaug_ray.data import Split
from autoaug_ray.learner import Learner
from autoaug_ray.maths import alignment, hypergradient, plans
from autoaug_ray.maths.image_ops import OPS, apply_ops
from autoaug_ray.maths.policies import magnitude_bins, with_random_sign
from autoaug_ray.maths.recompute import SameDraws
from autoaug_ray.maths.strength import Strength
from autoaug_ray.methods.base import Aligned, NextMeta, Task, annealed, as_float
from autoaug_ray.methods.stage import Staged

BINS = 31
"""Bins of strength that each op has, as in TrivialAugment."""
LEVELS = 6
"""Groups of neighbouring bins, of which each has a chance of its own."""
BASELINE_MEMORY = 100.0
"""Samples of a class over which its mean score is taken."""

Op = Literal[
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color",
    "Contrast", "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize", "Invert",
]  # fmt: skip


class Drawn(NamedTuple):
    """What a batch of B images draws, for each of N ops in a row."""

    cell: Tensor
    """(B, N) which op and which of its bins: an index into the flattened p."""
    magnitude: Tensor
    """(B, N) in the unit of the op, with its sign."""


class OpsState(Aligned):
    """The chances of ops and levels, and what their learning averages over steps."""

    index: Tensor
    """(K,) which of OPS each op is."""
    bins: Tensor
    """(K, BINS) magnitudes in the unit of the op."""
    has_level: Tensor
    """(K, 1) whether the op has a strength at all."""
    baseline: Tensor
    """(classes,) running mean of the scores."""

    def __init__(self, ops: tuple[Op, ...], classes: int, memory: float, lr: float) -> None:
        super().__init__(memory)
        self.op_logits = nn.Parameter(torch.zeros(len(ops)))
        self.level_logits = nn.Parameter(torch.zeros(len(ops), LEVELS))
        bins = magnitude_bins(BINS, (32, 32), wide=True)[[OPS.index(op) for op in ops]]
        self.register_buffer("bins", bins, persistent=False)
        self.register_buffer("has_level", bins[:, :1] != bins[:, -1:], persistent=False)
        self.register_buffer("index", torch.tensor([OPS.index(op) for op in ops]), persistent=False)
        self.register_buffer("baseline", torch.zeros(classes))
        # A short memory of the squares, as in bilevel.
        self.optimiser = torch.optim.Adam(self.parameters(), lr=lr, betas=(0.9, 0.99))
        self.meta_loss = torch.zeros(())

    def log_p(self) -> Tensor:
        """(K, BINS) log p; uniform at first. Ops without a strength have all bins alike."""
        level = torch.arange(BINS, device=self.op_logits.device) * LEVELS // BINS
        of_bins = torch.log_softmax((self.level_logits * self.has_level)[:, level], dim=1)
        return torch.log_softmax(self.op_logits, dim=0)[:, None] + of_bins

    def draw(self, n: int, num_ops: int, noise: torch.Generator) -> Drawn:
        """What n images draw from the present chances."""
        p = self.log_p().detach().exp().flatten()
        cell = torch.multinomial(p, n * num_ops, replacement=True, generator=noise)
        magnitude = with_random_sign(self.index[cell // BINS], self.bins.flatten()[cell], noise)
        return Drawn(cell.view(n, num_ops), magnitude.view(n, num_ops))

    def gradients(self, drawn: Drawn, score: Tensor, prior: float) -> list[Tensor]:
        """Those of E[score] + prior KL(p || uniform) towards the logits, the first from the scores
        (B,) of what was drawn."""
        log_p = self.log_p()
        of_scores = (score * log_p.flatten()[drawn.cell].sum(1)).mean()
        divergence = (log_p.exp() * log_p).sum()  # but for a constant
        return list(torch.autograd.grad(of_scores + prior * divergence, list(self.parameters())))

    def centred(self, score: Tensor, labels: Tensor) -> Tensor:
        """Scores (B,) less the running mean of each class and the batch's mean, with mean square 1.

        Neither mean depends on what a sample has drawn (but for the 1/B of its own), so that they
        take away noise and no signal.
        """
        out = score - self.baseline[labels]
        count = torch.zeros_like(self.baseline).index_add_(0, labels, torch.ones_like(score))
        rest = torch.zeros_like(self.baseline).index_add_(0, labels, out)
        self.baseline += rest / (count + BASELINE_MEMORY)
        out = out - out.mean()
        return out / out.square().mean().sqrt().clamp_min(torch.finfo(out.dtype).tiny)

    def get_extra_state(self) -> dict[str, Any]:
        return {**super().get_extra_state(), "meta_loss": self.meta_loss}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state)
        self.meta_loss = state["meta_loss"].to(self.bins.device)


def agreement(
    behind: Tensor, ahead: Tensor, labels: Tensor, score: str, smoothing: float = 0.0
) -> Tensor:
    """(B,) a of samples with labels (B,), from their logits (B, C) at w - eps d and at w + eps d.

    score: "inner" gives eps dl_i/deps = eps <d, g_i>, "cosine" the cosine of dl_i/dlogits and
    dlogits/deps, in [-1, 1]. The step both ways has no error of first order in eps, which would
    again be larger for longer features. `smoothing` is that of the labels in the loss l_i.
    """
    motion = (ahead - behind) / 2
    classes = ahead.shape[1]
    target = (1 - smoothing) * F.one_hot(labels, classes) + smoothing / classes
    slope = torch.softmax((ahead + behind) / 2, dim=1) - target
    if score == "inner":
        return (slope * motion).sum(1)
    # A constant added to all logits changes no loss.
    return F.cosine_similarity(slope, motion - motion.mean(1, keepdim=True), dim=1, eps=1e-20)


class LearnedOps(Staged):
    """TrivialAugment with learned chances of its ops and of their levels. Ours.

    It is TrivialAugment's wide space, of which every draw is uniform at first. `learn: off` leaves
    it so, and is TrivialAugment on the images that are not held out.
    """

    name: Literal["learned_ops"] = "learned_ops"
    ops: tuple[Op, ...] = tuple(op for op in get_args(Op) if op != "Invert")
    """What may be drawn; TrivialAugment's 14 ops, if nothing is said."""
    num_ops: int = Field(1, ge=1, le=10)
    """Ops in a row for each image, drawn from the same chances."""

    learn: Literal["alignment", "off"] = "alignment"
    """off: the control, whose chances and levels stay what they were."""
    score: Literal["cosine", "inner"] = "cosine"
    """What a sample's draw is judged by: cosine, among its logits; inner, the inner product of all
    gradients, in which a long gradient passes for a good one."""
    prior: float = Field(0.1, ge=0, le=100)
    """Weight of the pull towards uniform chances, beside scores of standard deviation 1: chances
    that are learned to the end are in proportion to exp(-mean score / prior)."""
    lr: float = Field(0.01, gt=0, le=10)
    """Adam's, of all logits, per classifier step: an outer step moves `every` times as far; cosine
    to zero at `until`."""
    every: int = Field(4, ge=1, le=10_000)
    """Classifier steps per outer step."""
    meta_every: int = Field(2, ge=1, le=10_000)
    """Outer steps per meta batch; their gradients are averaged."""
    memory: float = Field(20.0, ge=1, le=1e6)
    """Classifier steps over which training and meta gradients are averaged."""
    until: float = Field(1.0, gt=0, le=1)
    """Share of the training after which the chances stay as they are."""

    @field_validator("ops")
    @classmethod
    def _some_ops(cls, value: tuple[Op, ...]) -> tuple[Op, ...]:
        if not value or len(set(value)) < len(value):
            raise ValueError(f"ops must be different ops, at least one, got {list(value)}")
        return value

    @property
    def uses_meta(self) -> bool:
        return True

    @property
    def steps_per_round(self) -> int:
        return self.every * self.meta_every

    def kind_of_step(self, done: int, total: int) -> str:
        if not self._is_due(done, total):
            return ""
        return "outer, with a meta batch" if self._takes_meta(done) else "outer"

    def _is_due(self, done: int, total: int) -> bool:
        """Whether the chances move at the step after `done` of `total`."""
        return self.learns and (done + 1) % self.every == 0 and done / total < self.until

    def _takes_meta(self, done: int) -> bool:
        """Whether that step, if it is due, also takes a meta batch; the first one does."""
        return ((done + 1) // self.every - 1) % self.meta_every == 0

    def found_figures(self, row: Mapping[str, Any]) -> dict[str, float]:
        """The chance of every op, and the mean level of those that have one, in [0, 1]."""
        log = row["log"]
        chances = {f"chance of {op}": log[f"p/{op}"] for op in self.ops if f"p/{op}" in log}
        levels = {f"level of {op}": log[f"level/{op}"] for op in self.ops if f"level/{op}" in log}
        return chances | levels

    def init(self, task: Task, seed: int, device: torch.device) -> OpsState:
        return OpsState(self.ops, len(task.class_counts), self.memory, self.lr).to(device)

    def transform(
        self,
        state: OpsState,
        images: Tensor,
        noise: torch.Generator,
        strength: Strength | None = None,
    ) -> Tensor:
        drawn = state.draw(len(images), self.num_ops, noise)
        return self._applied(state, images, drawn, strength)

    def _applied(
        self, state: OpsState, images: Tensor, drawn: Drawn, strength: Strength | None = None
    ) -> Tensor:
        for cell, magnitude in zip(drawn.cell.unbind(1), drawn.magnitude.unbind(1), strict=True):
            images = apply_ops(images, state.index[cell // BINS], magnitude, strength)
        return images

    def transform_plan(self, state: OpsState, task: Task) -> list[plans.Stage]:
        p = state.log_p().detach().exp().cpu()
        chance = p.sum(1)
        return [plans.ops([
            (float(chance[k]),
             [plans.step(op, 1.0, state.bins[k].cpu(), (p[k] / chance[k]).tolist(),
                        op in plans.TWO_WAY)])
            for k, op in enumerate(self.ops)
        ], self.num_ops)]  # fmt: skip

    def step(
        self, learner: Learner, batch: Split, next_meta: NextMeta, state: OpsState
    ) -> dict[str, Tensor]:
        noise, x = learner.noise, as_float(batch.images)
        x = self.before(x, self.draw_flips(state, x, noise), noise)
        drawn = state.draw(len(x), self.num_ops, noise)
        x = self.after(state, self._applied(state, x, drawn), self.draw_holes(x, noise))
        logs = {"train_loss": learner.backward(x, batch.labels)}
        g = learner.gradients()
        if self.learns and learner.progress < self.until:
            state.training_gradient.add(g)
        if self._is_due(learner.steps_done, learner.total_steps):
            if self._takes_meta(learner.steps_done):
                meta = next_meta(len(x))
                of_meta = learner.loss_at(as_float(meta.images), meta.labels)
                weights = learner.weights()
                state.meta_loss, v = hypergradient.value_and_gradient(of_meta, weights)
                state.meta_gradient.add(v, self.meta_every * self.every)
            score = self._scores(learner, state, x, batch.labels, g)
            score = state.centred(score, batch.labels)
            self._anneal(learner, state)
            state.move(state.gradients(drawn, score, self.prior))
            logs["meta_loss"] = state.meta_loss
        learner.apply(g)
        return logs

    def _scores(
        self, learner: Learner, state: OpsState, x: Tensor, labels: Tensor, g: dict[str, Tensor]
    ) -> Tensor:
        """(B,) a of the samples of a batch of augmented images x, whose mean gradient is g."""
        w = {k: v.detach() for k, v in learner.weights().items()}
        v = state.meta_gradient.values
        d = alignment.pulled_back(learner.rule, w, learner.buffers(), g, v)
        d = alignment.across(d, state.training_gradient.values)
        ahead, _ = alignment.shifted(w, d)
        behind, _ = alignment.shifted(w, {k: -t for k, t in d.items()})
        score = torch.zeros(len(x), device=x.device)
        for part, _ in learner.parts(len(x)):
            same_draws = SameDraws()
            with torch.no_grad():
                with same_draws():
                    before = learner.logits_at(x[part], behind)
                with same_draws():
                    after = learner.logits_at(x[part], ahead)
            smoothing = learner.training.label_smoothing
            score[part] = agreement(before, after, labels[part], self.score, smoothing)
        return learner.workers.total([score])[0]

    def _anneal(self, learner: Learner, state: OpsState) -> None:
        lr = self.lr * self.every * annealed(learner.progress, self.until)
        assert state.optimiser is not None
        state.optimiser.param_groups[0]["lr"] = lr

    def end_epoch(self, state: OpsState) -> dict[str, float]:
        """The chance of every op, and its mean level in [0, 1], if it has one."""
        p = state.log_p().detach().exp()
        chance = p.sum(1)
        level = p @ torch.linspace(0, 1, BINS, device=p.device) / chance
        figures = {f"p/{op}": float(v) for op, v in zip(self.ops, chance, strict=True)}
        return figures | {
            f"level/{op}": float(v)
            for op, v, has_level in zip(self.ops, level, state.has_level, strict=True)
            if has_level
        }
