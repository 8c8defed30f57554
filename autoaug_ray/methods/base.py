"""What a method is: the frozen object of its hyperparameters, and verbs.

Every class in this package is abstract (never built) or final (never subclassed). The state that a
method carries through training is another value, made by `init` and put into checkpoints.
"""

import abc
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Self, final

import torch
from pydantic import field_validator
from torch import Tensor, nn

from autoaug_ray.data import Split
from autoaug_ray.errors import UserError
from autoaug_ray.generate.settings import Drawn, ImageKind, of_all_classes
from autoaug_ray.learner import Learner
from autoaug_ray.maths import plans
from autoaug_ray.maths.alignment import Average
from autoaug_ray.maths.strength import Strength
from autoaug_ray.settings import Settings
from autoaug_ray.settings.training import Training
from autoaug_ray.store.places import Place

NextMeta = Callable[[int], Split]
"""A number of images -> so many of the epoch's meta images, cycling through them."""


class Task(NamedTuple):
    """What a method may know of the data before training."""

    channels: int
    height: int
    width: int
    class_counts: tuple[int, ...] = ()
    """Number of images of each class in the pool."""
    mean: tuple[float, ...] = ()
    """Mean of each channel over the pool, in [0, 1]: the colour that the classifier's normalisation
    takes to zero, unless it starts from ImageNet's weights."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)"""
        return self.height, self.width

    def plain(self) -> list[Any]:
        """As checkpoints and policies hold it; `policy.task_of` reads it."""
        return [*self[:3], list(self.class_counts), list(self.mean)]


def annealed(progress: float, until: float) -> float:
    """The share of its rate with which a method learns at a training's `progress` in [0, 1]: a
    cosine from 1 to 0 at `until`."""
    left = max(0.0, 1 - progress / until)
    return 0.5 * (1 - math.cos(math.pi * left))


class Stateless(nn.Module):
    """The state of a method that learns nothing."""


class Learning(nn.Module):
    """The state of a method that learns; its optimiser goes into checkpoints with it."""

    optimiser: torch.optim.Optimizer | None = None
    """None: what was learned earlier is used as it is."""

    def move(self, gradients: Sequence[Tensor | None]) -> None:
        """One step of the optimiser down the gradients of all parameters, in their order."""
        assert self.optimiser is not None
        for parameter, g in zip(self.parameters(), gradients, strict=True):
            parameter.grad = g
        self.optimiser.step()

    def get_extra_state(self) -> dict[str, Any]:
        return {} if self.optimiser is None else self.optimiser.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        if self.optimiser is not None:
            self.optimiser.load_state_dict(state)


class Aligned(Learning):
    """The state of a method that learns by alignment: averages of gradients stand beside it."""

    def __init__(self, memory: float) -> None:
        """`memory`: the steps of the classifier over which gradients are averaged."""
        super().__init__()
        self.training_gradient, self.meta_gradient = Average(memory), Average(memory)

    def get_extra_state(self) -> dict[str, Any]:
        return {
            "optimiser": super().get_extra_state(),
            "training_gradient": self.training_gradient.state_dict(),
            "meta_gradient": self.meta_gradient.state_dict(),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state["optimiser"])
        device = next(self.parameters()).device
        self.training_gradient.load_state_dict(state["training_gradient"], device)
        self.meta_gradient.load_state_dict(state["meta_gradient"], device)


class PopulationSearch(NamedTuple):
    """A search by trials that train side by side (Jaderberg et al. 2017).

    From time to time a bad trial goes on from the weights of a good one, with that one's gene
    perturbed. The final training repeats the genes that the best trial lived through. The strings
    are the names of the method's hyperparameters.
    """

    size: str
    """Hyperparameter: the number of trials."""
    perturb_every: str
    """Hyperparameter: epochs between two rounds of replacing and perturbing."""
    gene: str
    """Hyperparameter: what a trial trains with now, as a tuple of integers."""
    lineage: str
    """Hyperparameter: what is found, as pairs (progress in [0, 1) from which it holds, gene). An
    entry whose study gives it has nothing to search."""
    perturb: Callable[[tuple[int, ...], random.Random], tuple[int, ...]]


class Method(Settings, abc.ABC):
    """How training images are augmented, and what is learned about it.

    The first half says what the rest of the package asks about a method: how it is trained,
    searched, timed and shown. Every answer has a default, which fits a method that neither learns
    nor searches. The verbs stand below.

    A method with a hyperparameter `learn`, one of whose values is "off", learns while it trains;
    a study then adds a control to it, the same entry with `learn: off`.
    """

    name: str
    sampler: Literal["shuffle", "balanced"] = "shuffle"
    """How batches are drawn: every image once per round, or every class with the same probability
    and its images with replacement."""

    @field_validator("learn", mode="before", check_fields=False)
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        """YAML may take the word for a truth value."""
        return "off" if value is False else value

    # How it is trained.

    @property
    def uses_meta(self) -> bool:
        """Whether a part of the pool is held out of the train role, to learn from its loss."""
        return self.searches_in_own_run

    @property
    def reshuffles_each_epoch(self) -> bool:
        """Whether the order of the images is drawn anew every epoch."""
        return not self.searches_in_own_run

    @property
    def resplits_each_epoch(self) -> bool:
        """Whether the roles, train and meta, are dealt anew every epoch."""
        return not self.searches_in_own_run

    @property
    def meta_fraction(self) -> float | None:
        """Share of the pool in the meta role, if the protocol of the method fixes it; such a split
        is by class. None: the study's."""
        return None

    @property
    def kinds(self) -> tuple[ImageKind, ...]:
        """The kinds of images that are mixed, identity first; empty: no generated image is needed.

        Then the splits hold edits of these kinds, without the identity.
        """
        return ()

    def drawn(self, class_counts: Sequence[int]) -> Drawn:
        """The edits that a training may draw, of a pool with so many images of each class.

        Only these are made and charged; without them an image is drawn as it is.
        """
        return of_all_classes(self.kinds[1:], len(class_counts))

    def training(self, phase: Literal["search", "final"], training: Training) -> Training:
        """How a run of this phase trains: as the study says, but for what the method's own search
        takes otherwise."""
        return training

    def check(self, training: Training) -> None:
        """Raise ValueError, in one sentence, for settings of the training that do not suit it."""

    def check_images(self, channels: int, height: int, width: int) -> None:
        """Raise ValueError, in one sentence that begins with a field, if it does not suit images of
        this shape."""

    # How it is searched. A range in the study is searched for any method.

    found_names: ClassVar[tuple[str, ...]] = ()
    """Hyperparameters that a run may hold although the study names neither value nor range for
    them: a search of the method's own, or another entry, finds them."""
    found_per_seed: ClassVar[tuple[str, ...]] = ()
    """Those of `found_names` in which the seeds of one entry may differ."""
    population_search: ClassVar[PopulationSearch | None] = None
    """How a population finds some of them, for a method that is searched so."""

    @property
    def searches_in_own_run(self) -> bool:
        """Whether each seed's final training is preceded by one that finds its hyperparameters."""
        return False

    @property
    def learns(self) -> bool:
        """Whether augmentation is learned in the training that it is for."""
        return getattr(self, "learn", "off") != "off"

    @property
    def follows(self) -> str | None:
        """The entry whose exported policies this one trains with, seed by seed, if any.

        It is LABEL, of the same study, or STUDY/LABEL or STUDY/CASE/LABEL, of one that has run in
        the same folder. What `inherit` makes of a policy.pt becomes hyperparameters, and what the
        other entry's search cost counts as this one's.
        """
        return None

    def check_source(self, source: "Method") -> None:
        """Raise ValueError, in one sentence, if what `source` finds is of no use to this one."""

    def inherit(self, policy: Place) -> dict[str, Any]:
        """The hyperparameters that a seed takes from the policy.pt of the entry that it follows.

        Without such a file the run is made all the same, and `init` says what it lacks.
        """
        return {"policy": str(policy)}

    places: ClassVar[tuple[str, ...]] = ()
    """Hyperparameters that say where a file lies. A run's key leaves them out, since the file's
    content is in it (see `pinned`)."""

    def pinned(self) -> Self:
        """The method with the contents of the files that it reads told by their hashes."""
        return self

    nothing_to_tune: ClassVar[bool] = False
    """Whether it is the yardstick of a pilot: as good as it gets without any choice to make."""

    # How it is timed, and made small for a run that only checks that everything runs.

    small: ClassVar[Mapping[str, Any]] = {}
    """Hyperparameters that make its own search as short as it can be."""

    @property
    def timed_as_reference(self) -> bool:
        """Whether a forecast takes the time of the study's reference for its own: it costs about
        the same, and cannot be calibrated before another entry has been trained."""
        return False

    @property
    def steps_per_round(self) -> int:
        """Steps after which the work of a step repeats; a timing takes whole rounds."""
        return 1

    def kind_of_step(self, done: int, total: int) -> str:
        """A name for the work of the step after `done` of a training's `total` steps.

        Steps of one name do the same work. A calibration times some of each, and counts how many of
        each a whole training takes.
        """
        return ""

    def probe(self) -> tuple[Self, float]:
        """A version with a `finish` short enough to be timed, and how many times longer its own
        `finish` takes."""
        return self, 1.0

    @property
    def left_out(self) -> str:
        """What of it no transform of single images can do, and an exported policy therefore lacks;
        empty: nothing."""
        return ""

    # How what was found is shown.

    def found_figures(self, row: Mapping[str, Any]) -> dict[str, float]:
        """What a training learned, name -> figure, from its last row; shown as a mean over seeds.

        `row` has the columns of `store.folder.ROW`.
        """
        return {}

    def found_lines(self) -> list[str]:
        """What a search found that no figure tells, a line for each part, the weightiest first."""
        return []

    # The verbs.

    def finish(self, learner: Learner, next_meta: NextMeta, state: Any) -> None:
        """What a run that searches finds after the classifier's last step, and leaves in the state.

        It is charged as search, like the steps.
        """

    def found_hyperparameters(self, state: Any) -> dict[str, Any]:
        """The hyperparameters that a run that searches ended with, as JSON can hold them."""
        return {}

    def init(self, task: Task, seed: int, device: torch.device) -> nn.Module:
        """What lives through training and goes into checkpoints: networks, and optimisers as extra
        state."""
        return Stateless()

    @final
    def start(self, task: Task, seed: int, device: torch.device) -> nn.Module:
        """The state that `init` makes, with the `mean_colour` (channels,) of the task beside it.

        It is a buffer that no checkpoint holds, as the task tells it again.
        """
        state = self.init(task, seed, device)
        mean = torch.tensor(task.mean, device=device)
        state.register_buffer("mean_colour", mean, persistent=False)
        return state

    @abc.abstractmethod
    def augment(
        self,
        state: Any,
        images: Tensor,
        noise: torch.Generator,
        strength: Strength | None = None,
    ) -> Tensor:
        """Training images (B, C, H, W) in [0, 1] -> what the classifier is trained on.

        Draws from `noise` only, on the images' device; tells `strength`, if given, what it did.
        """

    def plan(self, state: Any, task: Task) -> list[plans.Stage]:
        """What `augment` does to images of the task's size, as plain data; see `maths.plans`.

        Raises UserError, in one sentence, if it cannot be said so.
        """
        raise UserError(f"{self.name} does not say in plain data what it does (Method.plan).")

    def select(self, state: Any, batch: Split, noise: torch.Generator) -> Tensor:
        """The images (B, C, H, W) in [0, 1] of a batch that `augment` is given."""
        return as_float(batch.images)

    def step(
        self, learner: Learner, batch: Split, next_meta: NextMeta, state: Any
    ) -> dict[str, Tensor]:
        """One update of the classifier (and of the method); returns what to log, per name."""
        with torch.no_grad():
            images = self.select(state, batch, learner.noise)
            images = self.augment(state, images, learner.noise)
        return {"train_loss": learner.train_on(images, batch.labels)}

    def alpha(self, state: Any) -> Tensor | None:
        """Probabilities (classes, kinds) with which images are mixed at present."""
        return None

    def end_epoch(self, state: Any) -> dict[str, float]:
        """Figures of the epoch that are no means over its steps."""
        return {}

    def predict(self, learner: Learner, images: Tensor, state: Any) -> Tensor:
        """Logits (B, classes) at test time, for images in [0, 1]."""
        return learner.logits(images)


def as_float(images: Tensor) -> Tensor:
    """uint8 -> float in [0, 1]."""
    return images.float() / 255
