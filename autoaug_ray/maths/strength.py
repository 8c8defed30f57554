"""How strongly a batch was augmented: a yardstick that every method is measured with.

Methods name their strength differently (a RandAugment bin, an MLP's output, a prompt), so they
are compared by what happened to the pixels: how far a pixel moved, and how much its colour changed.

Notation. A matrix (2, 3) maps the normalised coordinates (x, y, 1) of an *output* pixel to those of
the *input* point it shows, as in `torch.nn.functional.affine_grid` with align_corners=False: the
image spans [-1, 1] in both directions, and one pixel is 2/W wide and 2/H high.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sampling_grid(matrix: Tensor, height: int, width: int) -> Tensor:
    """Where each output pixel comes from: (B, 2, 3) -> (B, H, W, 2), normalised (x, y).

    The values of `affine_grid`, by broadcasting instead of a matrix product: twice as fast on CPU,
    and a sample's rounding cannot depend on its batch, which nearest-neighbour ties would show.
    """
    x = (torch.arange(width, dtype=matrix.dtype, device=matrix.device) * 2 + 1) / width - 1
    y = (torch.arange(height, dtype=matrix.dtype, device=matrix.device) * 2 + 1) / height - 1
    along_x, along_y, offset = matrix[:, :, None, None].unbind(-1)  # (B, 2, 1, 1) each
    source = along_x * x + (along_y * y[:, None] + offset)  # (B, 2, H, W)
    return source.movedim(1, -1)


class Strength:
    """What one augmentation call really did to each sample; comparable across methods.

    The ops report to it while they run. Nothing in it carries a gradient. Mirror flips count for
    nothing: a mirrored image moves every pixel far, and is yet the weakest of changes.
    """

    def __init__(self, images: Tensor) -> None:
        """Start from no change at all for `images` (B, C, H, W)."""
        batch, _, self._height, self._width = images.shape
        # Half precision cannot hold a matrix: its steps near 1 are larger than a pixel's width.
        dtype = torch.promote_types(images.dtype, torch.float32)
        self._matrix = torch.eye(3, dtype=dtype, device=images.device).repeat(batch, 1, 1)
        self._color = torch.zeros(batch, dtype=dtype, device=images.device)

    def warp(self, matrix: Tensor, which: Tensor | None = None) -> None:
        """Add a warp, (B, 2, 3), or (n, 2, 3) for the samples `which` (indices (n,) or mask (B,)).

        Warps compose in the order of the calls. After M1 then M2 an output point p shows the point
        M2 p of the once-warped image, which showed M1 M2 p of the original: M2 goes to the right.
        """
        at = slice(None) if which is None else which
        before = self._matrix[at]
        step = matrix.detach().to(before)
        bottom = before.new_tensor([0.0, 0.0, 1.0]).expand(len(step), 1, 3)
        self._matrix[at] = before @ torch.cat([step, bottom], dim=1)

    def flip(self, flips: Tensor, dim: int) -> None:
        """The samples `flips` (B,) have been mirrored along dimension -1 or -2."""

    def color(self, before: Tensor, after: Tensor, which: Tensor | None = None) -> None:
        """Add mean |after - before| per sample; both (B or n, C, H, W), no warp in between."""
        at = slice(None) if which is None else which
        change = (after.detach() - before.detach()).abs().mean(dim=(1, 2, 3))
        self._color[at] += change.to(self._color)

    def displacement(self) -> Tensor:
        """(B,) in pixels: mean over output pixels of the distance to where they come from.

        A point that comes from outside the image counts with its full distance.
        """
        still = torch.eye(3, dtype=self._matrix.dtype, device=self._matrix.device)
        moved = sampling_grid((self._matrix - still)[:, :2], self._height, self._width)
        half = moved.new_tensor([self._width / 2, self._height / 2])
        distance: Tensor = torch.linalg.vector_norm(moved * half, dim=-1)
        return distance.mean(dim=(1, 2))

    def color_change(self) -> Tensor:
        """(B,) in [0, 1] units per pixel and channel: the sum over the colour ops of the call."""
        return self._color.clone()


class Motion(Strength):
    """Where the pixels of one image have gone, for the boxes and masks that go with it."""

    def __init__(self, image: Tensor) -> None:
        """Start from no motion of `image` (1, C, H, W)."""
        super().__init__(image)
        self.warps: list[Tensor] = []
        """The matrices (1, 2, 3), flips included, in the order in which they were applied."""

    @property
    def matrix(self) -> Tensor:
        """(3, 3) all of them in one, normalised output -> input."""
        return self._matrix[0]

    def warp(self, matrix: Tensor, which: Tensor | None = None) -> None:
        super().warp(matrix, which)
        self.warps.append(matrix.detach())

    def flip(self, flips: Tensor, dim: int) -> None:
        if bool(flips[0]):
            mirror = torch.eye(2, 3, device=flips.device)
            mirror[0 if dim == -1 else 1] *= -1
            self.warp(mirror[None])
