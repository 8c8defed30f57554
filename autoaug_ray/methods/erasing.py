"""Random erasing, a part of the stage that methods share, and what that stage paints over."""

from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from autoaug_ray.maths import image_ops
from autoaug_ray.settings import Settings


def _in_order(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 < value[0] <= value[1] <= 1:
        raise ValueError("must be [low, high] with 0 < low <= high <= 1")
    return value


Shares = Annotated[tuple[float, float], AfterValidator(_in_order)]
"""Shares of an image's area, from and to."""


class Erase(Settings):
    """Random erasing (Zhong et al., AAAI 2020): a rectangle of an image is painted over.

    The defaults are the paper's for CIFAR: with a chance of one half, 2 to 40 % of the area, from
    0.3 to 1 / 0.3 times as high as wide, and every value of every pixel at random. Its aspect is
    uniform there; here it is log-uniform, as torchvision's and timm's, so that a rectangle lies as
    often as it stands. torchvision has `area: [0.02, 0.33]` and zeros, timm `[0.02, 0.3333]`; both
    erase normalised images, whose zero is `fill: mean`. timm's fill `pixel` is normal there.
    """

    chance: float = Field(0.5, gt=0, le=1)
    """How often an image is erased."""
    area: Shares = (0.02, 0.4)
    """Share of the image's area, uniform between the two."""
    fill: Literal["noise", "mean"] = "noise"
    """noise: every value is uniform in [0, 1]; mean: the mean colour of the pool."""

    def draw(self, images: Tensor, noise: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """For images (B, C, H, W) boxes (B, 4), of no size where nothing is erased, and the noise
        that fills them, if any, of the images' shape."""
        size = (images.shape[2], images.shape[3])
        box = image_ops.draw_boxes(len(images), size, self.area, 1 / 0.3, noise)
        erased = torch.rand(len(images), 1, generator=noise, device=noise.device) < self.chance
        fill = None
        if self.fill == "noise":
            fill = torch.rand(images.shape, generator=noise, device=noise.device).to(images)
        return box * erased, fill


class Holes(NamedTuple):
    """What is painted over in images (B, C, H, W); None where that part of the stage is off."""

    centre: Tensor | None = None
    """(B, 2) row and column of a cutout's centre."""
    box: Tensor | None = None
    """(B, 4) top, left, height and width of what is erased."""
    noise: Tensor | None = None
    """(B, C, H, W) what is erased is filled with this; None: with the mean colour."""

    def of(self, part: slice) -> "Holes":
        """Those of a part of the batch."""
        return Holes(*(None if tensor is None else tensor[part] for tensor in self))
