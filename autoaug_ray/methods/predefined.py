"""Augmentations whose strength is set before training: by folklore, by a grid, or at random."""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from autoaug_ray.maths import image_ops, plans
from autoaug_ray.maths.augmenter import AFFINE, BOUNDS, COLOR, Group, parameter_names, transform
from autoaug_ray.maths.strength import Strength
from autoaug_ray.methods.base import Method, Task
from autoaug_ray.methods.stage import Staged


class NoAugmentation(Method):
    """The images as they are; its cost is the unit of relative cost (Table 1)."""

    name: Literal["none"] = "none"

    def augment(
        self, state: Any, images: Tensor, noise: torch.Generator, strength: Strength | None = None
    ) -> Tensor:
        return images

    def plan(self, state: Any, task: Task) -> list[plans.Stage]:
        return []


def _uniform(n: int, spread: Tensor, noise: torch.Generator) -> Tensor:
    """(n, k) uniform within +-spread (k,)."""
    draw = torch.rand(n, len(spread), generator=noise, device=noise.device)
    return (2 * draw - 1) * spread.to(noise.device)


class Predefined(Staged):
    """Translation, affine, colour jitter and lighting in people's units, in this order.

    The defaults are the paper's usual geometric augmentation (section 5.1): flip and +-4 pixels.
    Its BACH row adds rotate 10 and scale (0.5, 2). The jitter that its release has on CIFAR is 0.4
    each, without hue. Its ImageNet row has the colours of He et al. 2016 instead, which are
    lighting 0.1 (section 5.3).
    """

    name: Literal["predefined"] = "predefined"
    translate: float | None = Field(None, ge=0, le=1000)
    """Pixels, +-, in x and in y, also by parts of a pixel. None: 4, or 0 beside a `crop` or
    `resized_crop`, which shifts already."""
    rotate: float = Field(0.0, ge=0, le=180)
    """Degrees, +-."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Zoom factor, log-uniform between the two."""
    shear: float = Field(0.0, ge=0, le=60)
    """Degrees, +-, in x."""
    brightness: float = Field(0.0, ge=0, le=1)
    """Factors 1 +- this."""
    contrast: float = Field(0.0, ge=0, le=1)
    """Factors 1 +- this."""
    saturation: float = Field(0.0, ge=0, le=1)
    """Factors 1 +- this."""
    hue: float = Field(0.0, ge=0, le=0.5)
    """Turns of the colour circle, +-."""
    lighting: float = Field(0.0, ge=0, le=10)
    """Standard deviation of the PCA colour augmentation of Krizhevsky et al. 2012, whose is 0.1."""

    def model_post_init(self, context: Any) -> None:
        low, high = self.scale
        if not 0 < low <= high:
            raise ValueError(f"scale must be [low, high] with 0 < low <= high, got [{low}, {high}]")

    def check_images(self, channels: int, height: int, width: int) -> None:
        super().check_images(channels, height, width)
        if self.lighting and channels != 3:
            raise ValueError(
                f"lighting must be 0 for images of {channels} channel(s), which have "
                f"no principal colours, got {self.lighting:g}"
            )

    def transform(
        self, state: Any, images: Tensor, noise: torch.Generator, strength: Strength | None = None
    ) -> Tensor:
        x = images
        low, high = torch.tensor(self.scale).log().tolist()
        shift = self._shift
        spread = torch.tensor([shift, shift, self.rotate, (high - low) / 2, self.shear])
        if spread.any() or low:
            dx, dy, angle, zoom, shear = _uniform(len(x), spread, noise).unbind(1)
            matrix = image_ops.affine_matrix(
                angle=angle,
                translate=torch.stack([dx, dy], dim=1),
                scale=((low + high) / 2 + zoom).exp(),
                shear=torch.stack([shear, torch.zeros_like(shear)], dim=1),
                size=(images.shape[-2], images.shape[-1]),
            )
            x = image_ops.warp(x, matrix, strength=strength)
        if jitter := self._jitter:
            drawn = _uniform(len(x), torch.tensor(list(jitter.values())), noise)
            x = transform(x, drawn, list(jitter), strength)
        if self.lighting:
            normal = torch.randn(len(x), 3, generator=noise, device=noise.device)
            before, x = x, image_ops.adjust_lighting(x, self.lighting * normal)
            if strength is not None:
                strength.color(before, x)
        return x

    @property
    def _shift(self) -> float:
        if self.translate is None:
            return 0.0 if self.crop or self.resized_crop else 4.0
        return self.translate

    @property
    def _jitter(self) -> dict[str, float]:
        return {k: v for k in COLOR if (v := getattr(self, k)) > 0}

    def transform_plan(self, state: Any, task: Task) -> list[plans.Stage]:
        out = []
        if self._shift or self.rotate or self.shear or self.scale != (1.0, 1.0):
            out.append(plans.affine(self._shift, self.rotate, self.scale, self.shear))
        if self._jitter:
            out.append(plans.color(self._jitter))
        return out + ([plans.lighting(self.lighting)] if self.lighting else [])


class RandomAffine(Staged):
    """Draws each entry of the 2x3 matrix uniformly around the identity, within its own half-range.

    With ranges in the study this is the paper's grid (two values for each of six parameters: 64
    trials) or a random search over the same space.
    """

    name: Literal["random_affine"] = "random_affine"
    scale_x: float = Field(0.0, ge=0, le=BOUNDS["scale_x"])
    """Half-range of the entry that scales x, around 1."""
    shear_x: float = Field(0.0, ge=0, le=BOUNDS["shear_x"])
    """Half-range of the entry that shears x by y, around 0."""
    translate_x: float = Field(0.0, ge=0, le=BOUNDS["translate_x"])
    """Half-range of the shift in x; 1 is half an image."""
    shear_y: float = Field(0.0, ge=0, le=BOUNDS["shear_y"])
    """Half-range of the entry that shears y by x, around 0."""
    scale_y: float = Field(0.0, ge=0, le=BOUNDS["scale_y"])
    """Half-range of the entry that scales y, around 1."""
    translate_y: float = Field(0.0, ge=0, le=BOUNDS["translate_y"])
    """Half-range of the shift in y; 1 is half an image."""

    def transform(
        self, state: Any, images: Tensor, noise: torch.Generator, strength: Strength | None = None
    ) -> Tensor:
        spread = torch.tensor([getattr(self, k) for k in AFFINE])
        return transform(images, _uniform(len(images), spread, noise), AFFINE, strength)

    def transform_plan(self, state: Any, task: Task) -> list[plans.Stage]:
        return plans.uniform(AFFINE, [getattr(self, k) for k in AFFINE], task.size)


class ValidatedMagnitude(Staged):
    """One scalar for all parameters of a group (section 5.1): uniform within +-magnitude of bound.

    A magnitude of 1 is the whole range that a learned augmenter can reach.
    """

    name: Literal["validated_magnitude"] = "validated_magnitude"
    group: Group = "affine"
    """Which parameters are drawn."""
    magnitude: float = Field(0.1, ge=0, le=1)
    """Share of their bounds."""

    def transform(
        self, state: Any, images: Tensor, noise: torch.Generator, strength: Strength | None = None
    ) -> Tensor:
        names = parameter_names(self.group, images.shape[1])
        spread = self.magnitude * torch.tensor([BOUNDS[k] for k in names])
        return transform(images, _uniform(len(images), spread, noise), names, strength)

    def transform_plan(self, state: Any, task: Task) -> list[plans.Stage]:
        names = parameter_names(self.group, task.channels)
        return plans.uniform(names, [self.magnitude * BOUNDS[k] for k in names], task.size)
