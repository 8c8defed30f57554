"""What a method is: the frozen object of its hyperparameters, and four verbs.

Every class in this package is abstract (never built) or final (never subclassed). The state that a
method carries through training is another value, made by `init` and put into checkpoints.
"""

import abc
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from autoaug_ray.data import Split
from autoaug_ray.generate.settings import ImageKind
from autoaug_ray.learner import Learner
from autoaug_ray.maths.strength import Strength
from autoaug_ray.settings import Settings

Flip = Literal["none", "horizontal", "vertical"]
NextMeta = Callable[[int], Split]
"""A number of images -> so many of the epoch's meta images, cycling through them."""


class Task(NamedTuple):
    """What a method may know of the data before training."""

    channels: int
    height: int
    width: int
    class_counts: tuple[int, ...] = ()
    """Images of each class in the pool."""


class Stateless(nn.Module):
    """The state of a method that learns nothing."""


class Method(Settings, abc.ABC):
    """How training images are augmented, and what is learned about it."""

    name: str
    sampler: Literal["shuffle", "balanced"] = "shuffle"
    """How batches are drawn: every image once per round, or every class with the same probability
    and its images with replacement."""

    @property
    def uses_meta(self) -> bool:
        """Only then is a part of the pool held out of the train role; the others train on all."""
        return self.searches_in_own_run

    @property
    def reshuffles_each_epoch(self) -> bool:
        """Whether the roles and the order of the images are drawn anew every epoch."""
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

    @property
    def searches_in_own_run(self) -> bool:
        """Whether each seed's final training is preceded by one that finds its hyperparameters."""
        return False

    def finish(self, learner: Learner, next_meta: NextMeta, state: Any) -> None:
        """What such a training finds after the classifier's last step, and leaves in the state.

        It is charged as search, like the steps.
        """

    def found_hyperparameters(self, state: Any) -> dict[str, Any]:
        """The hyperparameters that such a training ended with, as JSON can hold them."""
        return {}

    def init(self, task: Task, seed: int, device: torch.device) -> nn.Module:
        """What lives through training and goes into checkpoints: networks, and optimisers as extra
        state."""
        return Stateless()

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
        loss = learner.loss(images, batch.labels)
        learner.descend(loss)
        return {"train_loss": loss.detach()}

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


def flipped(images: Tensor, flip: Flip, noise: torch.Generator) -> Tensor:
    """Each image mirrored with probability one half, or none."""
    if flip == "none":
        return images
    coin = torch.rand(len(images), generator=noise, device=images.device) < 0.5
    mirror = images.flip(-1 if flip == "horizontal" else -2)
    return torch.where(coin[:, None, None, None], mirror, images)
