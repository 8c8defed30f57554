"""Resizing a data set's images to the generative model's square, and back.

Sizes that nearly fit are padded with black, not stretched: 28x28 images become 32x32 and come back
pixel for pixel. All others are stretched, as DAFusion does; the aspect comes back with `reduce`.
"""

from torch import Tensor
from torch.nn import functional as F

PADDED = 4
"""An image is padded if height and width each lack at most so many pixels of the model's side."""


def enlarge(images: Tensor, side: int) -> Tensor:
    """(n, C, H, W) in [0, 1], C 1 or 3 -> (n, 3, side, side) in [0, 1]; grey is copied."""
    height, width = images.shape[-2:]
    if images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    if not _is_padded(height, width, side):
        return _resized(images, side, side)
    top, left = (side - height) // 2, (side - width) // 2
    return F.pad(images, (left, side - width - left, top, side - height - top))


def reduce(images: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """(n, 3, S, S) in [0, 1] -> (n, *shape) in [0, 1], shape (C, H, W); grey is the mean.

    The exact inverse of `enlarge` where that has padded.
    """
    channels, height, width = shape
    side = images.shape[-1]
    if _is_padded(height, width, side):
        top, left = (side - height) // 2, (side - width) // 2
        images = images[:, :, top : top + height, left : left + width]
    else:
        images = _resized(images, height, width)
    return images.mean(1, keepdim=True) if channels == 1 else images


def _is_padded(height: int, width: int, side: int) -> bool:
    return 0 <= side - height <= PADDED and 0 <= side - width <= PADDED


def _resized(images: Tensor, height: int, width: int) -> Tensor:
    size = (height, width)
    return F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)
