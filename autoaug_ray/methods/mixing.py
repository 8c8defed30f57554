"""Methods that mix two images and their labels: mixup, CutMix, both by turns, and timm's recipe."""

import abc
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from autoaug_ray.data import Split
from autoaug_ray.learner import Learner
from autoaug_ray.maths import mixing, policies
from autoaug_ray.maths.strength import Strength
from autoaug_ray.methods.base import Method, NextMeta
from autoaug_ray.methods.erasing import Erase, Shares
from autoaug_ray.methods.generative import OnTop, Then
from autoaug_ray.methods.predefined import Predefined
from autoaug_ray.methods.stage import Flip, Staged
from autoaug_ray.settings.training import Training


class _Mixing(Method, abc.ABC):
    """A policy's images, mixed with each other within a batch; the labels follow.

    Partners are a permutation of the batch, as in the papers' codes; torchvision shifts it by one,
    timm reverses it, which is the same where batches are shuffled. `augment`, and with it the
    pictures of a report, the delivered strength and an exported policy, is the policy alone.
    """

    per: Literal["sample", "batch"] = "sample"
    """Whether each image has its own share, place and choice, or all of a batch have the same.
    batch is what the papers' codes, torchvision and timm do by default."""
    chance: float = Field(1.0, gt=0, le=1)
    """How often an image (a batch) is mixed at all; CutMix's code: 0.5 on CIFAR, 1 on ImageNet."""
    label_smoothing: float | None = Field(None, ge=0, lt=1)
    """In the place of the study's train.label_smoothing; None: the study's."""

    @property
    @abc.abstractmethod
    def chances(self) -> mixing.Chances: ...

    def training(self, phase: Literal["search", "final"], training: Training) -> Training:
        if self.label_smoothing is None:
            return training
        return training.model_copy(update={"label_smoothing": self.label_smoothing})

    @property
    def left_out(self) -> str:
        return "the mixing of images with each other and of their labels"

    def step(
        self, learner: Learner, batch: Split, next_meta: NextMeta, state: Any
    ) -> dict[str, Tensor]:
        labels, noise = batch.labels, learner.noise
        with torch.no_grad():
            x = self.augment(state, self.select(state, batch, noise), noise)
            size = (x.shape[2], x.shape[3])
            drawn = mixing.draw(len(x), size, self.chances, noise, each=self.per == "sample")
            x, own = mixing.mix(x, drawn)

        def criterion(logits: Tensor, part: slice) -> Tensor:
            first, second = (
                learner.cross_entropy(logits, of[part], each=True)
                for of in (labels, labels[drawn.partner])
            )
            # Cross-entropy is linear in the label.
            return (own[part] * first + (1 - own[part]) * second).mean()

        loss = learner.train_on(x, labels, criterion)
        return {"train_loss": loss, "mixed_in": 1 - own.mean()}


class _OnPolicy(_Mixing, OnTop, abc.ABC):
    """Mixing on top of any policy."""

    then: Then = Predefined(crop=4)
    """The policy whose images are mixed. The papers' on CIFAR is the default: flip and crop."""


class Mixup(_OnPolicy):
    """Zhang et al., ICLR 2018 (arXiv 1710.09412): images and labels are averaged two by two.

    Eq. 1, with a share for each pair; the authors' code draws one for a batch (`per: batch`).
    """

    name: Literal["mixup"] = "mixup"
    mixup_alpha: float = Field(1.0, ge=0.05, le=100)
    """An image keeps a share Beta(alpha, alpha). 1 is the paper's on CIFAR; on ImageNet, 0.2."""

    @property
    def chances(self) -> mixing.Chances:
        return mixing.Chances(self.chance, 0.0, self.mixup_alpha, 1.0)


class CutMix(_OnPolicy):
    """Yun et al., ICCV 2019 (arXiv 1905.04899): a box of another image is pasted, label by area.

    Boxes are those of the authors' code and of torchvision's, with sides of an even number of
    pixels, for each image; the code draws one for a batch (`per: batch`). timm's may be odd.
    """

    name: Literal["cutmix"] = "cutmix"
    cutmix_alpha: float = Field(1.0, ge=0.05, le=100)
    """An image keeps a share Beta(alpha, alpha) of its area, and where a box is cut, more."""

    @property
    def chances(self) -> mixing.Chances:
        return mixing.Chances(self.chance, 1.0, 1.0, self.cutmix_alpha)


class MixupCutMix(_OnPolicy):
    """Mixup or CutMix, whichever is drawn for an image, as timm's `Mixup` with `mode='elem'`."""

    name: Literal["mixup_cutmix"] = "mixup_cutmix"
    mixup_alpha: float = Field(1.0, ge=0.05, le=100)
    """By mixup, an image keeps a share Beta(alpha, alpha)."""
    cutmix_alpha: float = Field(1.0, ge=0.05, le=100)
    """By CutMix, an image keeps a share Beta(alpha, alpha) of its area."""
    cutmix_share: float = Field(0.5, gt=0, lt=1)
    """Chance that it is CutMix."""

    @property
    def chances(self) -> mixing.Chances:
        return mixing.Chances(self.chance, self.cutmix_share, self.mixup_alpha, self.cutmix_alpha)


class TimmRecipe(_Mixing, Staged):
    """The augmentation with which timm, DeiT, Swin and ConvNeXt train on ImageNet, as one row.

    `--aa rand-m9-mstd0.5-inc1 --reprob 0.25 --remode pixel --mixup 0.8 --cutmix 1.0 --smoothing
    0.1`, with timm's defaults beside it: RandomResizedCrop, horizontal flips, switching by even
    chance, one draw for a batch. Optimiser, schedule, EMA and stochastic depth are the study's.

    It differs from timm's in this: frames of warps are black, not ImageNet's mean colour, and warps
    bilinear, not bilinear or bicubic by chance; erased pixels are uniform in [0, 1], not normal
    after normalisation, of which much would lie outside of [0, 1]; images are erased before they
    are mixed, as in DeiT's code, where timm's own loader mixes first; CutMix's boxes have even
    sides; partners are a permutation.
    """

    name: Literal["timm_recipe"] = "timm_recipe"
    flip: Flip = "horizontal"
    resized_crop: Shares | None = (0.08, 1.0)
    erase: Erase | None = Erase(chance=0.25, area=(0.02, 1 / 3))
    magnitude: float = Field(9.0, ge=0, le=10)
    """The magnitude of timm's RandAugment."""
    mixup_alpha: float = Field(0.8, ge=0.05, le=100)
    """By mixup, an image keeps a share Beta(alpha, alpha)."""
    cutmix_alpha: float = Field(1.0, ge=0.05, le=100)
    """By CutMix, an image keeps a share Beta(alpha, alpha) of its area."""
    cutmix_share: float = Field(0.5, gt=0, lt=1)
    """Chance that a batch is mixed by CutMix, not by mixup."""
    per: Literal["sample", "batch"] = "batch"
    label_smoothing: float | None = Field(0.1, ge=0, lt=1)

    @property
    def chances(self) -> mixing.Chances:
        return mixing.Chances(self.chance, self.cutmix_share, self.mixup_alpha, self.cutmix_alpha)

    def transform(
        self, state: Any, images: Tensor, noise: torch.Generator, strength: Strength | None = None
    ) -> Tensor:
        return policies.TimmRandAugment(self.magnitude)(images, noise, strength)
