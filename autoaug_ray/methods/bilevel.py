"""Online bilevel augmentation: an augmenter trained through the classifier's own update.

Mounsaveng et al., WACV 2021. Per training step: augment a training batch with A_theta, look ahead
to the weights that its gradient would give, take the loss of a meta batch there, and move theta
down the gradient of that loss; then update the classifier.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from autoaug_ray.data import Split
from autoaug_ray.errors import RunError, UserError
from autoaug_ray.generate.settings import ImageKind
from autoaug_ray.learner import Learner
from autoaug_ray.maths import alignment, hypergradient, plans
from autoaug_ray.maths.augmenter import (
    AbstractAugmenter,
    Augmenter,
    Group,
    PublishedAugmenter,
    Size,
    parameter_names,
)
from autoaug_ray.maths.gumbel import discrete, gumbel
from autoaug_ray.maths.recompute import SameDraws
from autoaug_ray.maths.released import ReleasedAugmenter
from autoaug_ray.maths.strength import Strength
from autoaug_ray.methods.base import NextMeta, Task, annealed, as_float
from autoaug_ray.methods.bilevel_state import BilevelState, FlipState, Past
from autoaug_ray.methods.generative import EditKind, edited
from autoaug_ray.methods.mixture_state import MixtureState
from autoaug_ray.methods.predefined import Predefined
from autoaug_ray.methods.protocols import DEFAULTS, FREE, GROUPS, PLAIN, Protocol, check_training
from autoaug_ray.methods.stage import Flip, Staged
from autoaug_ray.settings.training import Training

NETWORK_LR = 0.1
"""Learning rate of an MLP's weights as a share of that of its gains: many weights move one output,
and all at the full rate they drive the parameters into their bounds within an epoch."""

FLIP_LR = 3.0
"""Learning rate of the logit of a flip's chance as a share of that of the gains: at theirs, a flip
that changes the class is still there when learning ends."""


def _by_protocol(name: str, **limits: Any) -> Any:
    """A field whose default depends on the protocol, which is a field before it."""
    return Field(default_factory=lambda data: DEFAULTS[data["protocol"]][name], **limits)


class Bilevel(Staged):
    """Learned affine, translation and colour augmentation; also on top of generated images.

    The flip is predefined, as in the paper, since it is not differentiable, or `flip: learned`.
    """

    name: Literal["bilevel"] = "bilevel"
    flip: Flip | Literal["learned"] = "horizontal"  # type: ignore[assignment]
    """learned: horizontal, with a chance that begins at one half and is moved by the same
    hypergradient, through the probability of what was drawn."""

    protocol: Protocol = "ours"
    """Whose method this is. ours: the settings below, as their sentences say.

    paper: the text of the paper and, where that is silent, the optimiser of its public release. A
    plain MLP with independent noise (`maths.augmenter.PublishedAugmenter`); SGD with momentum 0.9
    and weight decay 0.01 at a rate of 0.2 for all of its weights, never lowered; a plain
    look-ahead by the classifier's own rule. `size`, `lr`, `weight_decay`, `unroll`, `every` and
    `resplit` may be changed, and what is no part of a protocol: `group`, `flip`, `jitter`, `learn`.

    release: the choices of the public release, flaws included: its augmenter (`maths.released`)
    under the same optimiser, a look-ahead without the classifier's weight decay whose momentum is
    forgotten every epoch, and one split and one order of the images for all epochs. Of the above,
    only `lr` and `weight_decay` may be changed."""
    group: Group = "affine"
    """Which parameters of an image are learned."""
    size: Size = _by_protocol("size")
    """scale: a spread per parameter and nothing else, the default of ours; small, medium, large:
    the paper's MLPs, of which small is the default of the published protocols."""
    symmetric: bool = _by_protocol("symmetric")
    """p(-z) = -p(z): the mean transformation is the identity, whatever is learned. Ours."""
    spread: float = Field(0.1, gt=0, le=1)
    """Initial standard deviation of every parameter, as a share of its bound. Ours; the published
    protocols start from PyTorch's initial weights."""
    jitter: float = Field(0.0, ge=0, le=1)
    """Predefined, before what is learned: brightness, contrast and saturation by factors of
    1 +- this, as in the rows "+ Color Jitter" of the paper's tables 4 and 5 (0.4)."""
    edits: tuple[EditKind, ...] = ()
    """Kinds of generated images that stand beside the real ones. Their proportions, one set for
    each class, are then learned together with the augmenter, through the same hypergradient."""

    learn: Literal["hypergradient", "off", "decay_only", "train_loss"] = "hypergradient"
    """The others are controls: a frozen random augmenter, one that only decays, and one trained
    by the training loss. What the hypergradient is worth is the difference to them."""
    optimiser: Literal["adam", "sgd"] = _by_protocol("optimiser")
    """adam for ours, sgd in the published protocols."""
    lr: float = _by_protocol("lr", gt=0, le=10)
    """0.2 in the published protocols, for each outer step and all weights, constant. In ours 0.03
    per classifier step: an outer step moves `every` times as far; cosine to zero at `until`; the
    weights of an MLP move at a tenth of it."""
    weight_decay: float = _by_protocol("weight_decay", ge=0, le=1)
    """0 in ours, 0.01 in the published protocols. A hidden schedule: it shrinks the augmentation
    whenever hypergradients are small."""

    unroll: int = Field(1, ge=1, le=100)
    """K: steps of the classifier that the hypergradient goes through; more than one needs
    estimator: exact."""
    every: int = _by_protocol("every", ge=1, le=10_000)
    """J: classifier steps per outer step; 3 in ours, 1 in the published protocols."""
    until: float = _by_protocol("until", gt=0, le=1)
    """Share of the training after which theta stays as it is: once the classifier fits its
    training images, the hypergradient is noise. 0.5 in ours, 1 in the published protocols."""
    fraction: float = Field(1.0, gt=0, le=1)
    """Share of the training and of the meta batch that an outer step looks at; less than all needs
    estimator: exact."""
    estimator: Literal["exact", "alignment"] = _by_protocol("estimator")
    """exact: through the classifier's own update, by double backward, as published. alignment, the
    default of ours: to first order in its learning rate, without a second derivative
    (`maths.alignment`)."""
    normalise: Literal["average", "batch", "none"] = _by_protocol("normalise")
    """What of a training gradient does not depend on theta: its component along an average of
    training gradients, the default of ours, or its length; none: the paper's plain look-ahead."""
    memory: float = Field(20.0, ge=1, le=1e6)
    """Classifier steps over which training and meta gradients are averaged."""
    meta_every: int = Field(1, ge=1, le=10_000)
    """Outer steps per meta batch, for estimator: alignment, which averages their gradients."""
    resplit: Literal["epoch", "fixed"] = _by_protocol("resplit")
    """epoch: train and meta images are dealt anew every epoch, as in the paper's text (section
    4.2); fixed: once for the whole training, as in its release."""

    def model_post_init(self, context: Any) -> None:
        if self.learn == "decay_only" and self.weight_decay == 0:
            raise ValueError("learn: decay_only needs a weight_decay above 0")
        if self.estimator == "alignment":
            for name in ("unroll", "fraction"):
                if (value := getattr(self, name)) != 1:
                    raise ValueError(
                        f"{name}: {value} needs estimator: exact; estimator: alignment knows "
                        f"{name}: 1 only"
                    )
        if self.protocol == "ours":
            return
        if self.size == "scale":
            raise ValueError(
                f"protocol: {self.protocol} needs size: small, medium or large, got size: scale"
            )
        if self.group not in GROUPS:
            raise ValueError(
                f"protocol: {self.protocol} has no augmenter for group: {self.group}; "
                f"known: {', '.join(GROUPS)}"
            )
        fields, own = type(self).model_fields, DEFAULTS[self.protocol]
        if self.flip == "learned":
            raise ValueError(
                f"protocol: {self.protocol} flips with a fixed chance, got flip: learned"
            )
        for name in (*own, *PLAIN):
            value, fixed = getattr(self, name), own.get(name, fields[name].default)
            if value != fixed and name not in FREE[self.protocol]:
                raise ValueError(
                    f"protocol: {self.protocol} knows {name}: {json.dumps(fixed)} only, got "
                    f"{name}: {json.dumps(value)}"
                )

    def check(self, training: Training) -> None:
        check_training(self.protocol, training)

    @property
    def uses_meta(self) -> bool:
        return True

    @property
    def steps_per_round(self) -> int:
        return self.every * self.meta_every

    def kind_of_step(self, done: int, total: int) -> str:
        return "outer" if self._is_due(done, total) else ""

    def _is_due(self, done: int, total: int) -> bool:
        """Whether theta moves down the hypergradient at the step after `done` of `total`."""
        learns = self.learn == "hypergradient"
        return learns and (done + 1) % self.every == 0 and done / total < self.until

    def found_figures(self, row: Mapping[str, Any]) -> dict[str, float]:
        """The spreads that were learned: standard deviations of the augmenter's parameters."""
        spreads = {k.removeprefix("std/"): v for k, v in row["log"].items() if k.startswith("std/")}
        figures = {f"spread of {name}": v for name, v in spreads.items() if v is not None}
        if (chance := row["log"].get("p/flip")) is not None:
            figures["chance of a flip"] = chance
        return figures

    @property
    def reshuffles_each_epoch(self) -> bool:
        return self.protocol != "release"

    @property
    def resplits_each_epoch(self) -> bool:
        return self.resplit == "epoch"

    def init(self, task: Task, seed: int, device: torch.device) -> BilevelState:
        names = parameter_names(self.group, task.channels)
        if self.protocol != "ours":
            published: AbstractAugmenter
            if self.protocol == "release":
                published = ReleasedAugmenter(names, seed).to(device)
            else:
                assert self.size != "scale"
                published = PublishedAugmenter(names, self.size, seed=seed).to(device)
            sgd = torch.optim.SGD(
                published.parameters(),
                lr=self.lr, momentum=0.9, weight_decay=self.weight_decay,
            )  # fmt: skip
            return BilevelState(published, sgd)
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
        flip = None
        if self.flip == "learned":
            flip = FlipState().to(device)
            parameters.append({"params": [flip.logit], "share": FLIP_LR, "weight_decay": 0.0})
        if self.optimiser == "adam":
            # A short memory of the squares: hypergradients shrink by orders as training goes on.
            optimiser = torch.optim.AdamW(
                parameters, lr=self.lr, betas=(0.9, 0.99), weight_decay=self.weight_decay
            )
            return BilevelState(augmenter, optimiser, mixture, flip, self.memory)
        return BilevelState(
            augmenter,
            torch.optim.SGD(parameters, lr=self.lr, momentum=0.9, weight_decay=self.weight_decay),
            mixture,
            flip,
            self.memory,
        )

    def flip_chance(self, state: BilevelState) -> Tensor | float:
        return 0.5 if state.flip is None else state.flip.logit.detach().sigmoid()

    def transform(
        self,
        state: BilevelState,
        images: Tensor,
        noise: torch.Generator,
        strength: Strength | None = None,
    ) -> Tensor:
        x = self._jittered(images, noise, strength)
        z = state.augmenter.draw(len(x), noise)
        return state.augmenter.apply_to(x, state.augmenter(z), strength)

    def transform_plan(self, state: BilevelState, task: Task) -> list[plans.Stage]:
        if self.edits or (self.protocol == "release" and "color" in self.group):
            what = "edits, drawn by class" if self.edits else "the colours of protocol: release"
            raise UserError(f"bilevel has {what}, which no plain transform can do.")
        fixed = self._fixed.transform_plan(state, task)
        return [*fixed, plans.learned(state.augmenter, task.size)]

    def _jittered(
        self, images: Tensor, noise: torch.Generator, strength: Strength | None = None
    ) -> Tensor:
        return self._fixed.augment(None, images, noise, strength)

    @property
    def _fixed(self) -> Predefined:
        c = self.jitter
        return Predefined(flip="none", translate=0, brightness=c, contrast=c, saturation=c)

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
        flips = self.draw_flips(state, x, learner.noise)
        x = self._jittered(self.before(x, flips, learner.noise), learner.noise)
        z = state.augmenter.draw(len(x), learner.noise)
        holes = self.draw_holes(x, learner.noise)
        part = max(2, round(self.fraction * len(x)))
        rule, buffers = learner.rule, learner.buffers()
        if self.protocol == "release":
            assert isinstance(rule, hypergradient.SGD)
            rule = replace(rule, weight_decay=0.0)
            buffers = state.momenta or {k: torch.zeros_like(m) for k, m in buffers.items()}
        now = Past(
            learner.weights(), buffers, x[:part], batch.labels[:part],
            None if kind is None else kind[:part], None if flips is None else flips[:part],
            z[:part], holes.of(slice(part)), rule,
        )  # fmt: skip
        due = self._is_due(learner.steps_done, learner.total_steps)
        if due and self.estimator == "alignment":
            return self._align(learner, state, now, next_meta)
        # With one unrolled step on the whole batch, the look-ahead's gradient is the trainer's.
        shared = self.unroll == 1 and part == len(x)
        logs = {}
        if due:
            h = self._hypergradient(learner, state, [*state.past, now], next_meta(part), shared)
            logs["meta_loss"] = h.meta_loss
            state.record(h.theta)
            self._move(learner, state, h.theta)
            if isinstance(rule, hypergradient.SGD) and self.protocol == "release":
                state.momenta = {k: rule.momentum * buffers[k] + g for k, g in h.weights.items()}
        if self.unroll > 1:
            kept = {k: v.detach().clone() for k, v in now.weights.items()}
            buffers = {k: v.clone() for k, v in now.buffers.items()}
            state.past.append(now._replace(weights=kept, buffers=buffers))
            if len(state.past) == self.unroll:
                state.past.popleft()
        if due and shared:
            learner.apply(h.weights)
            logs["train_loss"] = h.train_loss
        else:
            with torch.no_grad():
                augmented = state.augmenter.apply_to(x, state.augmenter(z))
                augmented = self.after(state, augmented, holes)
            logs["train_loss"] = learner.train_on(augmented, batch.labels)
        if self.normalise == "average" and learner.progress < self.until:
            state.training_gradient.add(learner.gradients())
        return logs

    def _align(
        self, learner: Learner, state: BilevelState, now: Past, next_meta: NextMeta
    ) -> dict[str, Tensor]:
        """An outer step by alignment, and the classifier's, which share a backward pass."""
        images, ratios = self._augmented(state, now), state.likelihood_ratios(now)
        made = [images] if ratios is None else [images, ratios]
        leaves = [tensor.detach().requires_grad_() for tensor in made]
        pixels, *weights = leaves
        same_draws = SameDraws()
        with same_draws():
            # A view: torch's counter of FLOP hooks what modules are given, and cannot hook a leaf.
            loss = learner.backward(pixels.view_as(pixels), now.labels)
        g = learner.gradients()
        if self.normalise == "average":
            state.training_gradient.add(g)
        logs = {"train_loss": loss}
        if state.outer_steps % self.meta_every == 0:
            meta = next_meta(len(pixels))
            of_meta = learner.loss_at(as_float(meta.images), meta.labels)
            logs["meta_loss"], v = hypergradient.value_and_gradient(of_meta, now.weights)
            state.meta_gradient.add(v, self.meta_every * self.every)
        d = alignment.pulled_back(now.rule, now.weights, now.buffers, g, state.meta_gradient.values)
        if self.normalise != "none":
            average = self.normalise == "average"
            d = alignment.across(d, state.training_gradient.values if average else g)
        logs["alignment"] = alignment.inner(d, g)
        there, eps = alignment.shifted(now.weights, d)
        of_batch = learner.loss_at(
            pixels, now.labels, weights=weights[0] if weights else None, smoothed=True
        )
        with same_draws():
            _, after = hypergradient.towards(of_batch, there, leaves)
        before, wanted = [], leaves
        if learner.same_precision:
            assert pixels.grad is not None
            before, wanted = [pixels.grad], weights
        if wanted:
            here = {k: v.detach() for k, v in now.weights.items()}
            with same_draws():
                before += hypergradient.towards(of_batch, here, wanted)[1]
        rise = [(a - b) / eps for a, b in zip(after, before, strict=True)]
        h = list(torch.autograd.grad(made, list(state.parameters()), rise, materialize_grads=True))
        state.record(h)
        self._move(learner, state, h)
        learner.apply(g)
        return logs

    def _hypergradient(
        self, learner: Learner, state: BilevelState, steps: list[Past], meta: Split, shared: bool
    ) -> hypergradient.Hypergradient:
        """Through `steps`, the last of which is the present one; fewer than K early in an epoch."""

        def loss_of(past: Past) -> hypergradient.Loss:
            return learner.loss_at(
                partial(self._augmented, state, past), past.labels,
                weights=state.likelihood_ratios(past), real_pass=shared, smoothed=True,
            )  # fmt: skip

        return hypergradient.unrolled(
            [loss_of(past) for past in steps],
            learner.loss_at(as_float(meta.images), meta.labels),
            {k: v.detach().requires_grad_() for k, v in steps[0].weights.items()},
            steps[0].buffers,
            list(state.parameters()),
            [past.rule for past in steps],
            hold=self.hold(state),
        )

    def _augmented(self, state: BilevelState, past: Past, part: slice = slice(None)) -> Tensor:
        """The images (B, C, H, W) of a part of a step's batch, with a graph to theta."""
        p = state.augmenter(past.noise[part])
        return self.after(
            state, state.augmenter.apply_to(past.images[part], p), past.holes.of(part)
        )

    def hold(self, state: BilevelState) -> hypergradient.Hold | None:
        """What `normalise` says; before there is an average, the batch's own length is held."""
        if self.normalise == "none":
            return None
        if self.normalise == "average" and state.training_gradient.count:
            return partial(alignment.held, r=state.training_gradient.values)
        return hypergradient.same_length

    def _move(
        self, learner: Learner, state: BilevelState, gradients: Sequence[Tensor | None]
    ) -> None:
        if self.protocol != "ours":
            state.move(gradients)
            return
        self._anneal(learner, state)
        state.move(gradients)
        if isinstance(state.augmenter, Augmenter):
            state.augmenter.decay(state.optimiser.param_groups[1]["lr"] * self.weight_decay)

    def _anneal(self, learner: Learner, state: BilevelState) -> None:
        # The controls move at every step, the hypergradient in fewer and longer ones.
        step = self.lr * (self.every if self.learn == "hypergradient" else 1)
        for group in state.optimiser.param_groups:
            group["lr"] = group["share"] * step * annealed(learner.progress, self.until)

    def end_epoch(self, state: BilevelState) -> dict[str, float]:
        """Learned mean and spread per parameter; norm and signal-to-noise of the hypergradient.

        The ratio is |mean h| / sqrt(mean |h - mean h|^2) over the outer steps of the epoch. Raises
        RunError if some parameter of our augmenter got no gradient in a whole epoch.
        """
        figures: dict[str, float] = state.augmenter.spreads(seed=0)
        if state.flip is not None:
            figures["p/flip"] = float(self.flip_chance(state))
        if n := state.outer_steps:
            # A published augmenter may die, as the release's often does; then that is its result.
            ours = self.protocol == "ours"
            checked = list(state.augmenter.named_parameters()) if ours else []
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
