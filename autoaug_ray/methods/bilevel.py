"""Online bilevel augmentation: an augmenter trained through the classifier's own update.

Mounsaveng et al., WACV 2021. Per training step: augment a training batch with A_theta, look ahead
to the weights that its gradient would give, take the loss of a meta batch there, and move theta
down the gradient of that loss; then update the classifier.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field, field_validator
from torch import Tensor

from autoaug_ray.data import Split
from autoaug_ray.errors import RunError
from autoaug_ray.generate.settings import ImageKind
from autoaug_ray.learner import Learner
from autoaug_ray.maths import hypergradient
from autoaug_ray.maths.augmenter import (
    AbstractAugmenter,
    Augmenter,
    Group,
    Size,
    parameter_names,
)
from autoaug_ray.maths.gumbel import discrete, gumbel, likelihood_ratio
from autoaug_ray.maths.released import ReleasedAugmenter
from autoaug_ray.maths.strength import Strength
from autoaug_ray.methods.base import (
    Flip,
    Learning,
    Method,
    NextMeta,
    Task,
    as_float,
)
from autoaug_ray.methods.generative import EditKind, MixtureState, edited
from autoaug_ray.methods.predefined import Predefined
from autoaug_ray.settings.training import Training

NETWORK_LR = 0.1
"""Learning rate of an MLP's weights as a share of that of its gains: many weights move one output,
and all at the full rate they drive the parameters into their bounds within an epoch."""


class _Past(NamedTuple):
    """A step that was taken, as the unrolling needs it again."""

    weights: dict[str, Tensor]
    buffers: dict[str, Tensor]
    images: Tensor
    labels: Tensor
    kind: Tensor | None
    noise: Tensor
    rule: hypergradient.SGD | hypergradient.Adam


class BilevelState(Learning):
    """The augmenter and its optimiser; figures and past steps live for one epoch only."""

    optimiser: torch.optim.Optimizer

    def __init__(
        self,
        augmenter: AbstractAugmenter,
        optimiser: torch.optim.Optimizer,
        mixture: MixtureState | None = None,
    ) -> None:
        super().__init__()
        self.augmenter, self.optimiser, self.mixture = augmenter, optimiser, mixture
        self.new_epoch()

    def new_epoch(self) -> None:
        self.past: deque[_Past] = deque()
        self.momenta: dict[str, Tensor] = {}
        self.outer_steps = 0
        self.sum = [torch.zeros_like(p) for p in self.parameters()]
        self.sum_of_squares = [torch.zeros_like(p) for p in self.parameters()]
        self.sum_of_norms = torch.zeros((), device=self.sum[0].device)

    def record(self, gradients: list[Tensor]) -> None:
        self.outer_steps += 1
        for total, squares, g in zip(self.sum, self.sum_of_squares, gradients, strict=True):
            total += g
            squares += g.square()
        self.sum_of_norms += torch.stack([g.square().sum() for g in gradients]).sum().sqrt()


class Bilevel(Method):
    """Learned affine, translation and colour augmentation; also on top of generated images."""

    name: Literal["bilevel"] = "bilevel"

    group: Group = "affine"
    size: Size = "scale"
    """scale: a spread per parameter and nothing else; small, medium, large: the paper's MLPs."""
    symmetric: bool = True
    """p(-z) = -p(z): the mean transformation is the identity, whatever is learned."""
    spread: float = Field(0.1, gt=0, le=1)
    """Initial standard deviation of every parameter, as a share of its bound."""
    flip: Flip = "horizontal"
    """Predefined, as in the paper: a flip is not differentiable."""
    jitter: float = Field(0.0, ge=0, le=1)
    """Predefined too, before what is learned: brightness, contrast and saturation by factors of
    1 +- this, as in the rows "+ Color Jitter" of the paper's tables 4 and 5 (0.4)."""
    edits: tuple[EditKind, ...] = ()
    """Kinds of generated images that stand beside the real ones. Their proportions, one set for
    each class, are then learned together with the augmenter, through the same hypergradient."""

    learn: Literal["hypergradient", "off", "decay_only", "train_loss"] = "hypergradient"
    """The others are controls: a frozen random augmenter, one that only decays, and one trained
    by the training loss. What the hypergradient is worth is the difference to them."""
    optimiser: Literal["adam", "sgd"] = "adam"
    lr: float = Field(0.03, gt=0, le=10)
    """Per classifier step: an outer step moves `every` times as far. Cosine to zero at `until`.
    The weights of an MLP move at a tenth of it."""
    weight_decay: float = Field(0.0, ge=0, le=1)
    """A hidden schedule: it shrinks the augmentation whenever hypergradients are small."""

    unroll: int = Field(1, ge=1, le=100)
    """K: steps of the classifier that the hypergradient goes through."""
    every: int = Field(1, ge=1, le=10_000)
    """J: classifier steps per outer step."""
    until: float = Field(1.0, gt=0, le=1)
    """Share of the training after which theta stays as it is: once the classifier fits its
    training images, the hypergradient is noise."""
    fraction: float = Field(1.0, gt=0, le=1)
    """Share of the training and of the meta batch that an outer step looks at."""
    normalise: bool = True
    """Look ahead with gradients of a length that does not depend on theta; False: the paper's."""

    as_released: bool = False
    """An ablation: the choices of the paper's public release instead of the settings above from
    `size` to `weight_decay`, from `unroll` to `normalise`; see `maths.released`. Besides that
    augmenter: SGD 0.2 with momentum 0.9 and weight decay 0.01, never lowered; a look-ahead without
    the classifier's weight decay whose momentum is forgotten every epoch; and one split and one
    order of the images for all epochs."""

    @field_validator("learn", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        return "off" if value is False else value

    def model_post_init(self, context: Any) -> None:
        if self.learn == "decay_only" and self.weight_decay == 0:
            raise ValueError("learn: decay_only needs a weight_decay above 0")
        if self.as_released and (self.unroll, self.every, self.fraction) != (1, 1, 1.0):
            raise ValueError("as_released knows unroll: 1, every: 1 and fraction: 1 only")
        if self.as_released and self.edits:
            raise ValueError("as_released knows no generated images; leave edits away")
        if self.as_released and self.group not in (
            "translation",
            "affine",
            "color",
            "affine+color",
        ):
            raise ValueError(f"as_released has no augmenter for group: {self.group}")

    def check(self, training: Training) -> None:
        if self.as_released and training.optimiser != "sgd":
            raise ValueError(f"as_released needs train.optimiser: sgd, got {training.optimiser!r}")

    @property
    def uses_meta(self) -> bool:
        return True

    @property
    def steps_per_round(self) -> int:
        return self.every

    def kind_of_step(self, done: int, total: int) -> str:
        return "outer" if self._is_due(done, total) else ""

    def _is_due(self, done: int, total: int) -> bool:
        """Whether theta moves down the hypergradient at the step after `done` of `total`."""
        learns = self.learn == "hypergradient"
        return learns and (done + 1) % self.every == 0 and done / total < self.until

    def found_figures(self, row: Mapping[str, Any]) -> dict[str, float]:
        """The spreads that were learned: standard deviations of the augmenter's parameters."""
        spreads = {k.removeprefix("std/"): v for k, v in row["log"].items() if k.startswith("std/")}
        return {f"spread of {name}": v for name, v in spreads.items() if v is not None}

    @property
    def reshuffles_each_epoch(self) -> bool:
        return not self.as_released

    def init(self, task: Task, seed: int, device: torch.device) -> BilevelState:
        names = parameter_names(self.group, task.channels)
        if self.as_released:
            released = ReleasedAugmenter(names, seed).to(device)
            return BilevelState(
                released,
                torch.optim.SGD(released.parameters(), lr=0.2, momentum=0.9, weight_decay=0.01),
            )
        augmenter = Augmenter(
            names, self.size, symmetric=self.symmetric, spread=self.spread, seed=seed
        ).to(device)
        mixture = None
        if self.edits:
            kinds = len(self.kinds)
            mixture = MixtureState(torch.full((len(task.class_counts), kinds), 1 / kinds))
            mixture.to(device)
        # The gain decays by itself: a decay of its logarithm would pull it back to the start.
        parameters: list[dict[str, Any]] = [
            {"params": augmenter.network.parameters(), "share": NETWORK_LR},
            {"params": [augmenter.log_gain], "share": 1.0, "weight_decay": 0.0},
        ]
        if mixture is not None:
            parameters.append({"params": mixture.parameters(), "share": 1.0, "weight_decay": 0.0})
        if self.optimiser == "adam":
            # A short memory of the squares: hypergradients shrink by orders as training goes on.
            optimiser = torch.optim.AdamW(
                parameters, lr=self.lr, betas=(0.9, 0.99), weight_decay=self.weight_decay
            )
            return BilevelState(augmenter, optimiser, mixture)
        return BilevelState(
            augmenter,
            torch.optim.SGD(parameters, lr=self.lr, momentum=0.9, weight_decay=self.weight_decay),
            mixture,
        )

    def augment(
        self,
        state: BilevelState,
        images: Tensor,
        noise: torch.Generator,
        strength: Strength | None = None,
    ) -> Tensor:
        x = self._predefined(images, noise, strength)
        z = state.augmenter.draw(len(x), noise)
        return state.augmenter.apply_to(x, state.augmenter(z), strength)

    def _predefined(
        self, images: Tensor, noise: torch.Generator, strength: Strength | None = None
    ) -> Tensor:
        c = self.jitter
        fixed = Predefined(flip=self.flip, translate=0, brightness=c, contrast=c, saturation=c)
        return fixed.augment(None, images, noise, strength)

    @property
    def kinds(self) -> tuple[ImageKind, ...]:
        return ("identity", *self.edits) if self.edits else ()

    def select(self, state: BilevelState, batch: Split, noise: torch.Generator) -> Tensor:
        return self._drawn(state, batch, noise)[0]

    def alpha(self, state: BilevelState) -> Tensor | None:
        return None if state.mixture is None else state.mixture.log_alpha.detach().exp()

    @torch.no_grad()
    def _drawn(
        self, state: BilevelState, batch: Split, noise: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """Images in [0, 1], and which kind each of them is."""
        if state.mixture is None:
            return as_float(batch.images), None
        log_alpha = state.mixture.log_alpha[batch.labels]
        kind = discrete(log_alpha, gumbel(log_alpha, noise))
        return edited(batch, kind, noise), kind

    def step(
        self, learner: Learner, batch: Split, next_meta: NextMeta, state: BilevelState
    ) -> dict[str, Tensor]:
        if self.learn == "train_loss":
            images = self.select(state, batch, learner.noise)
            state.optimiser.zero_grad()
            loss = learner.train_on(self.augment(state, images, learner.noise), batch.labels)
            self._move(learner, state, [p.grad for p in state.parameters()])
            return {"train_loss": loss}
        if self.learn != "hypergradient":
            logs = super().step(learner, batch, next_meta, state)
            if self.learn == "decay_only":
                zeros = [torch.zeros_like(p) for p in state.parameters()]
                self._move(learner, state, zeros)
            return logs

        x, kind = self._drawn(state, batch, learner.noise)
        x = self._predefined(x, learner.noise)
        z = state.augmenter.draw(len(x), learner.noise)
        part = max(2, round(self.fraction * len(x)))
        rule, buffers = learner.rule, learner.buffers()
        if self.as_released:
            assert isinstance(rule, hypergradient.SGD)
            rule = replace(rule, weight_decay=0.0)
            buffers = state.momenta or {k: torch.zeros_like(m) for k, m in buffers.items()}
        now = _Past(
            learner.weights(), buffers, x[:part], batch.labels[:part],
            None if kind is None else kind[:part], z[:part], rule,
        )  # fmt: skip
        due = self._is_due(learner.steps_done, learner.total_steps)
        # With one unrolled step on the whole batch, the look-ahead's gradient is the trainer's.
        shared = self.unroll == 1 and part == len(x)
        logs = {}
        if due:
            h = self._hypergradient(learner, state, [*state.past, now], next_meta(part), shared)
            logs["meta_loss"] = h.meta_loss
            state.record(h.theta)
            self._move(learner, state, h.theta)
            if isinstance(rule, hypergradient.SGD) and self.as_released:
                state.momenta = {k: rule.momentum * buffers[k] + g for k, g in h.weights.items()}
        if self.unroll > 1:
            kept = {k: v.detach().clone() for k, v in now.weights.items()}
            buffers = {k: v.clone() for k, v in now.buffers.items()}
            state.past.append(now._replace(weights=kept, buffers=buffers))
            if len(state.past) == self.unroll:
                state.past.popleft()
        if due and shared:
            learner.apply(h.weights)
            return logs | {"train_loss": h.train_loss}
        with torch.no_grad():
            augmented = state.augmenter.apply_to(x, state.augmenter(z))
        return logs | {"train_loss": learner.train_on(augmented, batch.labels)}

    def _hypergradient(
        self, learner: Learner, state: BilevelState, steps: list[_Past], meta: Split, shared: bool
    ) -> hypergradient.Hypergradient:
        """Through `steps`, the last of which is the present one; fewer than K early in an epoch."""

        def loss_of(past: _Past) -> hypergradient.Loss:
            def augmented(part: slice) -> Tensor:
                p = state.augmenter(past.noise[part])
                return state.augmenter.apply_to(past.images[part], p)

            weights = None
            if state.mixture is not None and past.kind is not None:
                weights = likelihood_ratio(state.mixture.log_alpha[past.labels], past.kind)
            return learner.loss_at(augmented, past.labels, weights=weights, real_pass=shared)

        return hypergradient.unrolled(
            [loss_of(past) for past in steps],
            learner.loss_at(as_float(meta.images), meta.labels),
            {k: v.detach().requires_grad_() for k, v in steps[0].weights.items()},
            steps[0].buffers,
            list(state.parameters()),
            [past.rule for past in steps],
            normalise=self.normalise and not self.as_released,
        )

    def _move(
        self, learner: Learner, state: BilevelState, gradients: Sequence[Tensor | None]
    ) -> None:
        if not self.as_released:
            self._anneal(learner, state)
        state.move(gradients)
        if isinstance(state.augmenter, Augmenter):
            state.augmenter.decay(state.optimiser.param_groups[1]["lr"] * self.weight_decay)

    def _anneal(self, learner: Learner, state: BilevelState) -> None:
        left = max(0.0, 1 - learner.progress / self.until)
        # The controls move at every step, the hypergradient in fewer and longer ones.
        step = self.lr * (self.every if self.learn == "hypergradient" else 1)
        for group in state.optimiser.param_groups:
            group["lr"] = group["share"] * step * 0.5 * (1 - math.cos(math.pi * left))

    def end_epoch(self, state: BilevelState) -> dict[str, float]:
        """Learned mean and spread per parameter; norm and signal-to-noise of the hypergradient.

        The ratio is |mean h| / sqrt(mean |h - mean h|^2) over the outer steps of the epoch. Raises
        RunError if some parameter of the augmenter got no gradient in a whole epoch.
        """
        figures: dict[str, float] = state.augmenter.spreads(seed=0)
        if n := state.outer_steps:
            # The release's augmenter often dies; as an ablation, that is its result.
            checked = [] if self.as_released else list(state.augmenter.named_parameters())
            for (name, _), squares in zip(checked, state.sum_of_squares, strict=False):
                if not bool(squares.any()):
                    raise RunError(
                        f"bilevel: no gradient of the meta loss reached the augmenter's {name} in "
                        f"{n} outer steps, so nothing can be learned; either its parameters ran "
                        f"into their bounds (lower lr, {self.lr}), or group: {self.group} has no "
                        "effect on these images."
                    )
            mean_square = sum(float((s / n).square().sum()) for s in state.sum)
            square_mean = sum(float(s.sum()) / n for s in state.sum_of_squares)
            figures["hypergradient_norm"] = float(state.sum_of_norms) / n
            if n > 1:
                noise = max(square_mean - mean_square, 1e-30)
                figures["hypergradient_snr"] = (mean_square / noise) ** 0.5
        state.new_epoch()
        return figures
