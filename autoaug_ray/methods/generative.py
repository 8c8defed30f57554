"""Generated images beside the real ones: in fixed proportions, or in those that AutoGenDA finds."""

import abc
import json
import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from autoaug_ray.data import Split
from autoaug_ray.errors import UserError
from autoaug_ray.generate.settings import Drawn, ImageKind
from autoaug_ray.learner import Learner
from autoaug_ray.maths import alignment, hypergradient, plans
from autoaug_ray.maths.gumbel import discrete, gumbel, likelihood_ratio, relaxed
from autoaug_ray.maths.recompute import SameDraws
from autoaug_ray.maths.strength import Strength
from autoaug_ray.methods.base import Method, NextMeta, Task, as_float
from autoaug_ray.methods.discrete import RandAugment, TrivialAugment
from autoaug_ray.methods.mixture_state import AlignmentState, MixtureState, reinforce
from autoaug_ray.methods.predefined import NoAugmentation, Predefined
from autoaug_ray.settings.training import Training
from autoaug_ray.store.files import load_state
from autoaug_ray.store.places import Place

EditKind = Literal["fixed", "local", "transfer", "own"]
Then = Annotated[
    NoAugmentation | Predefined | RandAugment | TrivialAugment, Field(discriminator="name")
]
Alpha = tuple[tuple[float, ...], ...]

DISTANCE = 0.001
"""How far apart the losses of an alignment are taken, as a share of the length of the weights.
Shorter than for pixels: losses bend on the way, more for some kinds of images than for others."""


def edited(batch: Split, kind: Tensor, noise: torch.Generator) -> Tensor:
    """One random image of each sample's kind (B,), as (B, C, H, W) in [0, 1].

    Kind 0 is the real image, which also stands in where no edit of a kind could be made.
    """
    assert batch.edits is not None
    start, count = batch.edits.start, batch.edits.count
    column = (kind - 1).clamp_min(0)[:, None]
    start, count = start.gather(1, column).squeeze(1), count.gather(1, column).squeeze(1)
    u = torch.rand(len(kind), generator=noise, device=kind.device)
    chosen = start + (u * count).long().clamp_max((count - 1).clamp_min(0))
    if not len(batch.edits.images):  # of this pool the method draws none
        return as_float(batch.images)
    is_real = (kind == 0) | (count == 0)
    generated = batch.edits.images[chosen.clamp_max(len(batch.edits.images) - 1)]
    return as_float(torch.where(is_real[:, None, None, None], batch.images, generated))


@torch.no_grad()
def _losses_at(
    learner: Learner, images: Tensor, labels: Tensor, weights: Mapping[str, Tensor]
) -> Tensor:
    """(B,) losses of those samples that this process works off; 0 for the others."""
    out = torch.zeros_like(images[:, 0, 0, 0])
    for part, _ in learner.parts(len(labels)):
        logits = learner.logits_at(images[part], weights)
        out[part] = learner.cross_entropy(logits, labels[part], each=True)
    return out


class OnTop(Method, abc.ABC):
    """What is done to the pixels is another method's, with its stage of flip, crop and cutout."""

    then: Then

    def check_images(self, channels: int, height: int, width: int) -> None:
        try:
            self.then.check_images(channels, height, width)
        except ValueError as error:
            raise ValueError(f"then.{error}") from None

    def augment(
        self, state: Any, images: Tensor, noise: torch.Generator, strength: Strength | None = None
    ) -> Tensor:
        return self.then.augment(state, images, noise, strength)

    def plan(self, state: Any, task: Task) -> list[plans.Stage]:
        return self.then.plan(state, task)


class _Mixture(OnTop, abc.ABC):
    """Every image of a batch is the real one or an edit of it; then comes what is done to both."""

    then: Then = Predefined()
    """The paper's simple augmentation (flip and crop) in its place: RandAugment, or none. Its stage
    of flip, crop and cutout is that of the real and the generated images."""

    def select(self, state: Any, batch: Split, noise: torch.Generator) -> Tensor:
        return self.chosen(state, batch, noise)[0]

    @torch.no_grad()
    def chosen(self, state: Any, batch: Split, noise: torch.Generator) -> tuple[Tensor, Tensor]:
        """What `select` returns, and the kind (B,) that was drawn for each image."""
        log_alpha = state.log_alpha[batch.labels]
        kind = discrete(log_alpha, gumbel(log_alpha, noise))
        return edited(batch, kind, noise), kind

    def plan(self, state: Any, task: Task) -> list[plans.Stage]:
        raise UserError(
            f"{self.name} draws generated images by their class, which no transform can: "
            "autoaug-ray bank export writes them as files."
        )

    def alpha(self, state: Any) -> Tensor:
        return state.log_alpha.detach().exp()  # type: ignore[no-any-return]


class Mix(_Mixture):
    """The same proportions for all classes, or for all small ones.

    DAFusion is {identity: 0.5, fixed: 0.5}; GIT, as AutoGenDA compares with it, the same for
    classes below a quarter of the largest; AutoGenDA without its search (appendix D) is a third
    each. {identity: 0.5, own: 0.5} does with one's own generated images what DAFusion does with its
    edits; but such an image takes the place of any of its class, and is no edit of it.
    """

    name: Literal["mix"] = "mix"
    probabilities: dict[ImageKind, Annotated[float, Field(ge=0, le=1)]]
    """Kind of image -> its probability; they add up to 1."""
    below: float = Field(1.0, gt=0, le=1)
    """Classes with at least this share of the largest class's images keep the real ones only;
    GIT: 0.25. 1: no class does."""
    ramp: bool = False
    """Below, mix the less the nearer a class is to that share: GIT's original probability
    (K - n) / (K - n_min) of an edit, times those given."""

    def model_post_init(self, context: Any) -> None:
        if abs(sum(self.probabilities.values()) - 1) > 1e-6:
            raise ValueError(
                f"probabilities must add up to 1, these to {sum(self.probabilities.values()):g}"
            )
        if len(self.kinds) < 2:
            raise ValueError("probabilities: without edits there is nothing to mix; use none")

    @property
    def kinds(self) -> tuple[ImageKind, ...]:
        used = [k for k, p in self.probabilities.items() if p > 0 and k != "identity"]
        return ("identity", *sorted(used))

    def drawn(self, class_counts: Sequence[int]) -> Drawn:
        edits = self._alpha(class_counts)[:, 1:] > 0
        return {
            kind: column.nonzero().flatten().tolist()
            for kind, column in zip(self.kinds[1:], edits.T, strict=True)
        }

    def init(self, task: Task, seed: int, device: torch.device) -> MixtureState:
        return MixtureState(self._alpha(task.class_counts)).to(device).requires_grad_(False)

    def _alpha(self, class_counts: Sequence[int]) -> Tensor:
        """(classes, kinds)"""
        p = torch.tensor([self.probabilities.get(k, 0.0) for k in self.kinds])
        counts = torch.tensor(class_counts, dtype=torch.float32)
        threshold = self.below * counts.max()
        share = (counts < threshold).float() if self.below < 1 else torch.ones_like(counts)
        if self.ramp:
            share *= (threshold - counts) / (threshold - counts.min()).clamp_min(1)
        alpha = share[:, None] * p
        alpha[:, 0] += 1 - share
        return alpha


class AutoGenDA(_Mixture):
    """Proportions of real, local-caption and transfer-caption images, learned for every class.

    Without `alpha_table` a training learns it: a fixed half of each class trains the classifier,
    which exploits the present proportions, and the other half explores better ones (section 3.3).
    The final training is given what was found and trains on everything. With `learn: online`,
    which is ours, there is one training only.
    """

    name: Literal["autogenda"] = "autogenda"
    edits: tuple[EditKind, ...] = ("local", "transfer")
    """Kinds of generated images that are mixed with the real ones; [own], of somebody's own making,
    is ours."""
    alpha_table: Alpha | None = None
    """(classes, 1 + edits) probabilities, identity first; None: learned first, for each seed."""
    of: str | None = None
    """Another autogenda entry with the same edits, whose alpha each seed trains with instead of
    learning one: LABEL, of the same study, or STUDY/LABEL or STUDY/CASE/LABEL, of one that has run
    in the same folder and has the same classes."""
    learn: Literal["own_run", "online", "off"] = "own_run"
    """own_run: a training before the final one learns alpha, as in the paper. online: alpha moves
    in the final training, on the study's split into train and meta images. off: its control, equal
    parts on that split."""
    gradient: Literal["first_order", "hypergradient", "alignment"] = "first_order"
    """first_order is the paper's: down the loss of the *augmented* validation half at fixed
    weights. hypergradient: down the loss of the *clean* validation half, after the classifier's
    own step on the training images that alpha chose. alignment: the same to first order in the
    classifier's learning rate, through the probabilities of the images that were drawn, for one
    more pass without a backward one; all classes count alike in that loss."""
    estimator: Literal["gumbel", "likelihood_ratio"] = "gumbel"
    """How the hypergradient reaches alpha: through images blended with relaxed weights (eq. 4), or
    through the probabilities of the images that were drawn. The latter saves a pass, as the
    look-ahead is then the classifier's own step, and is noisier: `python -m autoaug_ray.bench
    alpha`."""
    normalise: bool = True
    """Whether the hypergradient looks ahead with gradients of a fixed length, as bilevel does;
    alignment, whether across an average of training gradients (`maths.alignment`)."""
    tau: float = Field(1.0, gt=0, le=100)
    """Temperature of the Gumbel-softmax relaxation (eq. 4)."""
    optimiser: Literal["sgd", "adam"] = "sgd"
    """What moves the logits of alpha; sgd is the paper's."""
    lr: float = Field(1e-3, gt=0, le=100)
    """Learning rate of the logits of alpha."""
    every: int = Field(1, ge=1, le=10_000)
    """Steps of the classifier per step of alpha; more than 1 for gradient: alignment only."""
    memory: float = Field(20.0, ge=1, le=1e6)
    """Steps over which alignment averages training gradients, to look across them."""
    search_steps: int | None = Field(None, ge=1, le=10_000_000)
    """Steps of the training that learns alpha, in as many epochs as the study's trainings have and
    rounded up to whole ones; None: as many as those. The paper's take 10,000 (section 4.1: both
    stages train alike, for 50 epochs)."""

    def model_post_init(self, context: Any) -> None:
        if not self.edits or len(set(self.edits)) < len(self.edits):
            raise ValueError(f"edits must be different kinds, at least one, got {self.edits}")
        rows = self.alpha_table or ()
        if any(len(r) != len(self.kinds) or min(r) < 0 or abs(sum(r) - 1) > 1e-3 for r in rows):
            raise ValueError(
                f"alpha_table: every class needs {len(self.kinds)} probabilities that add up to 1"
            )

        if self.every > 1 and self.gradient != "alignment":
            raise ValueError(f"gradient: {self.gradient} knows every: 1 only, got {self.every}")
        if self.learn != "own_run":
            for name in ("alpha_table", "of", "search_steps"):
                if (value := getattr(self, name)) is not None:
                    raise ValueError(
                        f"learn: {self.learn} has no search of its own, so that {name} must be "
                        f"left out, got {value!r}"
                    )

    @property
    def kinds(self) -> tuple[ImageKind, ...]:
        return ("identity", *self.edits)

    @property
    def searches_in_own_run(self) -> bool:
        return self.learn == "own_run" and self.alpha_table is None and self.of is None

    @property
    def learns(self) -> bool:
        return self.learn == "online"

    @property
    def uses_meta(self) -> bool:
        return self.searches_in_own_run or self.learn != "own_run"

    @property
    def follows(self) -> str | None:
        return self.of

    def check_source(self, source: Method) -> None:
        if not isinstance(source, AutoGenDA):
            raise ValueError(f"of: {self.of!r} is {source.name}; alpha is found by autogenda")
        if source.learn != "own_run":
            raise ValueError(
                f"of: {self.of!r} has learn: {source.learn}, of which no proportions are kept"
            )
        if source.edits != self.edits:
            raise ValueError(
                f"of: {self.of!r} found the proportions of edits: {list(source.edits)}, this entry "
                f"has {list(self.edits)}"
            )

    def inherit(self, policy: Place) -> dict[str, Any]:
        if not policy.is_file():
            return {}
        found = json.loads(load_state(policy)["method"])
        return {"alpha_table": found["alpha_table"]}

    @property
    def timed_as_reference(self) -> bool:
        return self.of is not None

    @property
    def meta_fraction(self) -> float | None:
        return 0.5 if self.learn == "own_run" else None

    small: ClassVar[Mapping[str, Any]] = {"search_steps": None}

    @property
    def steps_per_round(self) -> int:
        return self.every

    def kind_of_step(self, done: int, total: int) -> str:
        return "outer" if self.every > 1 and (done + 1) % self.every == 0 else ""

    def training(self, phase: Literal["search", "final"], training: Training) -> Training:
        if phase == "final" or self.alpha_table is not None or self.search_steps is None:
            return training
        per_epoch = math.ceil(self.search_steps / training.epochs)
        return training.model_copy(update={"iters_per_epoch": per_epoch})

    found_names: ClassVar[tuple[str, ...]] = ("alpha_table",)
    found_per_seed: ClassVar[tuple[str, ...]] = found_names

    def found_figures(self, row: Mapping[str, Any]) -> dict[str, float]:
        """The probability of each kind of image, as a mean over the classes."""
        if self.alpha_table is None and self.learn == "own_run":
            return {}
        shares = [fmean(column) for column in zip(*row["alpha"], strict=True)]
        return {f"probability of {k}": v for k, v in zip(row["kinds"], shares, strict=True)}

    def found_hyperparameters(self, state: MixtureState) -> dict[str, Any]:
        return {"alpha_table": self.alpha(state).tolist()}

    def init(self, task: Task, seed: int, device: torch.device) -> MixtureState:
        classes, kinds = len(task.class_counts), len(self.kinds)
        if self.alpha_table is None and self.of is not None:
            raise UserError(f"autogenda.of: {self.of} has no policy.pt of this seed.")
        if self.alpha_table is not None and len(self.alpha_table) != classes:
            raise UserError(
                f"autogenda.alpha_table has probabilities for {len(self.alpha_table)} classes, the "
                f"dataset has {classes}."
            )
        if self.alpha_table is None:
            scores = None
            if self.gradient == "alignment":
                scores = AlignmentState(self._class_weights(task), self.memory)
            state = MixtureState(torch.full((classes, kinds), 1 / kinds), scores).to(device)
            if self.learn == "off":
                return state.requires_grad_(False)
            make = torch.optim.SGD if self.optimiser == "sgd" else torch.optim.Adam
            state.optimiser = make(state.parameters(), lr=self.lr)
            return state
        return MixtureState(torch.tensor(self.alpha_table)).to(device).requires_grad_(False)

    def step(
        self, learner: Learner, batch: Split, next_meta: NextMeta, state: Any
    ) -> dict[str, Tensor]:
        if state.optimiser is None:
            return super().step(learner, batch, next_meta, state)
        if self.gradient == "alignment":
            return self._align(learner, batch, next_meta, state)
        meta = next_meta(len(batch))
        if self.gradient == "first_order":
            logs = super().step(learner, batch, next_meta, state)
            loss = learner.loss_at(self._blended(state, meta, learner.noise), meta.labels)
            meta_loss, gradients = hypergradient.towards(loss, learner.weights(), [state.logits])
            state.move(gradients)
            return logs | {"meta_loss": meta_loss}
        return self._look_ahead(learner, batch, meta, state)

    def _blended(self, state: Any, batch: Split, noise: torch.Generator) -> Tensor:
        """Images blended with relaxed weights (eqs. 3, 4), with a gradient towards the logits.

        Flip and crop are linear in the pixels: done to the blend, they are shared by its parts.
        """
        log_alpha = state.log_alpha[batch.labels]
        z = relaxed(log_alpha, gumbel(log_alpha, noise), self.tau)
        parts = [
            edited(batch, torch.full_like(batch.labels, k), noise) for k in range(len(self.kinds))
        ]
        blend = torch.einsum("bk,bkchw->bchw", z, torch.stack(parts, dim=1))
        return self.augment(state, blend, noise)

    def _class_weights(self, task: Task) -> Tensor:
        """(classes,) of meta images, by which all classes count alike in the mean loss."""
        counts = torch.tensor(task.class_counts).clamp_min(1)
        if self.sampler == "balanced":  # the meta images are drawn so already
            return torch.ones(len(counts))
        return counts.sum() / (len(counts) * counts)

    def _align(
        self, learner: Learner, batch: Split, next_meta: NextMeta, state: Any
    ) -> dict[str, Tensor]:
        """The classifier's step, whose images say by their losses which kinds are of use.

        a_i = <d, dl_i/dw>, as in `maths.alignment`, for an image i of whatever kind was drawn: by
        how much its loss rises along d, from one more pass through the classifier. Alpha moves down
        sum_i (a_i - mean of its class) dlog alpha(kind_i) / B, the derivative of d<d, g>/dalpha in
        expectation over the draws. Batch norm couples the images of a batch, which this leaves out.
        """
        scores, noise, labels = state.scores, learner.noise, batch.labels
        with torch.no_grad():
            images, kind = self.chosen(state, batch, noise)
            images = self.augment(state, images, noise)
        before, same_draws = torch.zeros_like(images[:, 0, 0, 0]), SameDraws()

        def criterion(logits: Tensor, part: slice) -> Tensor:
            each = learner.cross_entropy(logits, labels[part], each=True)
            before[part] = each.detach()
            return each.mean()

        with same_draws():
            logs = {"train_loss": learner.backward(images, labels, criterion)}
        w, g = learner.weights(), learner.gradients()
        if self.normalise:
            scores.training_gradient.add(g)
        if (learner.steps_done + 1) % self.every == 0:
            meta = next_meta(len(batch))
            of_meta = learner.loss_at(
                as_float(meta.images), meta.labels, weights=scores.class_weights[meta.labels]
            )
            logs["meta_loss"], v = hypergradient.value_and_gradient(of_meta, w)
            d = alignment.pulled_back(learner.rule, w, learner.buffers(), g, v)
            if self.normalise:
                d = alignment.across(d, scores.training_gradient.values)
            there, eps = alignment.shifted(w, d, DISTANCE)
            with same_draws():
                after = _losses_at(learner, images, labels, there)
            if not learner.same_precision:
                with same_draws():
                    before = _losses_at(learner, images, labels, w)
            before, after = learner.workers.total([before, after])
            score = scores.centred((after - before) / (eps * len(labels)), labels)
            state.move([reinforce(state.log_alpha[labels], kind, score, state.logits)])
        learner.apply(g)
        return logs

    def _look_ahead(
        self, learner: Learner, batch: Split, meta: Split, state: Any
    ) -> dict[str, Tensor]:
        noise = learner.noise
        shared = self.estimator == "likelihood_ratio"
        if shared:
            log_alpha = state.log_alpha[batch.labels]
            kind = discrete(log_alpha.detach(), gumbel(log_alpha, noise))
            with torch.no_grad():
                images = self.augment(state, edited(batch, kind, noise), noise)
            train_loss = learner.loss_at(
                images, batch.labels,
                weights=likelihood_ratio(log_alpha, kind), real_pass=True, smoothed=True,
            )  # fmt: skip
        else:
            blended = self._blended(state, batch, noise)
            train_loss = learner.loss_at(blended, batch.labels, smoothed=True)
        h = hypergradient.unrolled(
            [train_loss],
            learner.loss_at(as_float(meta.images), meta.labels),
            {k: v.detach().requires_grad_() for k, v in learner.weights().items()},
            learner.buffers(),
            [state.logits],
            [learner.rule],
            hold=hypergradient.same_length if self.normalise else None,
        )
        logs = {"meta_loss": h.meta_loss, "train_loss": h.train_loss}
        if shared:
            learner.apply(h.weights)
        else:
            logs |= super().step(learner, batch, lambda n: meta, state)
        state.move(h.theta)
        return logs
