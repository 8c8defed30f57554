"""Image operations on batches; every sample has its own parameters.

The contract of every op here: images are float tensors (B, C, H, W) in [0, 1], C = 1 (grey) or 3
(RGB), and so is the result; parameters are (B,) tensors; strength zero (a factor of 1, an identity
matrix) returns the image; there is no Python loop over samples.

Two families:
- `warp` and `adjust_*` are differentiable in the images and in their parameters, with finite
  gradients everywhere: learned augmenters use them.
- `apply_ops` is the discrete family of AutoAugment, RandAugment and TrivialAugment, one op of `OPS`
  per sample, as torchvision's `_apply_op` defines it for uint8 images and nearest neighbours.

Formulas come from torchvision and code from kornia, where kornia means the same thing. It does not
always: each docstring names the kornia function that was *not* used, and why. It is imported where
it is used, since it takes longer to import than a policy takes to load.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import conv2d, grid_sample, pad

from autoaug_ray.maths.strength import Strength, sampling_grid

OPS: tuple[str, ...] = (
    "Identity",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
    "Rotate",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
    "Invert",
)
_GEOMETRIC = slice(OPS.index("ShearX"), OPS.index("Rotate") + 1)


def _need(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    """Raises ValueError if the value has another shape."""
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, but has {tuple(value.shape)}")


# --- geometry -------------------------------------------------------------------------------------


def warp(
    images: Tensor,  # (B, C, H, W)
    matrix: Tensor,  # (B, 2, 3), normalised output -> input, align_corners=False
    mode: str = "bilinear",
    padding: str = "zeros",
    strength: Strength | None = None,
) -> Tensor:
    """Show at each output pixel what the input has at matrix @ (x, y, 1).

    `mode` and `padding` are those of `torch.nn.functional.grid_sample`. The result is a convex
    combination of pixels up to rounding (1e-6) and is not clamped, so that mean-centred images can
    be warped too: there, zero padding is the mean colour.
    Raises ValueError if `matrix` is not (B, 2, 3): one matrix for all would be a silent mistake.
    """
    _need("matrix", matrix, (len(images), 2, 3))
    if strength is not None:
        strength.warp(matrix)
    grid = sampling_grid(matrix, images.shape[2], images.shape[3])
    return grid_sample(images, grid, mode=mode, padding_mode=padding, align_corners=False)


def identity_matrix(n: int, like: Tensor) -> Tensor:
    """(n, 2, 3): n matrices that leave the image alone, with the dtype and device of `like`."""
    return torch.eye(2, 3, dtype=like.dtype, device=like.device).repeat(n, 1, 1)


def affine_matrix(
    *,
    angle: Tensor,  # (B,) degrees, clockwise on the screen, as F.affine
    translate: Tensor,  # (B, 2) pixels, right and down
    scale: Tensor,  # (B,) > 0, 2 = twice as large
    shear: Tensor,  # (B, 2) degrees in (-90, 90), along x and along y
    size: tuple[int, int],  # (H, W)
) -> Tensor:
    """(B, 2, 3) normalised output -> input matrix of `torchvision.transforms.v2.functional.affine`.

    The forward map is T(translate) R(angle) S(scale) Shear_y Shear_x about the image's centre; this
    is its inverse. Differentiable in all four. Raises ValueError for a wrong shape.
    """
    n = len(angle)
    _need("translate", translate, (n, 2))
    _need("scale", scale, (n,))
    _need("shear", shear, (n, 2))
    rotation = torch.deg2rad(angle)
    shear_x, shear_y = torch.deg2rad(shear).unbind(1)
    # Forward, without scale: [[a, b], [c, d]], of determinant 1.
    a = torch.cos(rotation - shear_y) / torch.cos(shear_y)
    c = torch.sin(rotation - shear_y) / torch.cos(shear_y)
    b = -a * torch.tan(shear_x) - torch.sin(rotation)
    d = -c * torch.tan(shear_x) + torch.cos(rotation)
    inverse = torch.stack([d, -b, -c, a], dim=1).reshape(n, 2, 2) / scale[:, None, None]
    return _normalised(inverse, -(inverse @ translate[:, :, None])[:, :, 0], size)


def _normalised(linear: Tensor, offset: Tensor, size: tuple[int, int]) -> Tensor:
    """Centred pixel coordinates (n, 2, 2), (n, 2) -> (n, 2, 3) in normalised coordinates."""
    half = linear.new_tensor([size[1] / 2, size[0] / 2])  # pixels per unit along x and y
    return torch.cat([linear * half / half[:, None], (offset / half)[:, :, None]], dim=2)


def pad_crop(
    images: Tensor,  # (B, C, H, W)
    padding: int,
    top: Tensor,  # (B,) long in 0..2 * padding
    left: Tensor,  # (B,) long in 0..2 * padding
    strength: Strength | None = None,
) -> Tensor:
    """Frame each image with `padding` zeros, and keep the H x W pixels from (top, left) on.

    torchvision's RandomCrop(H, padding=padding) at these offsets, which are the sample's own;
    `top` = `left` = `padding` returns the image. Exact, as no pixel is interpolated, and
    differentiable in the images. Raises ValueError for a wrong shape.
    """
    _need("top", top, (len(images),))
    _need("left", left, (len(images),))
    channels, height, width = images.shape[1:]
    rows = torch.arange(height, device=images.device) + top[:, None]  # (B, H)
    columns = torch.arange(width, device=images.device) + left[:, None]  # (B, W)
    framed = pad(images, (padding,) * 4)
    # No pixel is gathered twice: the sums of a backward pass have one order, also on a GPU.
    kept = framed.gather(2, rows[:, None, :, None].expand(-1, channels, -1, framed.shape[3]))
    out = kept.gather(3, columns[:, None, None, :].expand(-1, channels, height, -1))
    if strength is not None:
        matrix = identity_matrix(len(images), images.detach().float())
        matrix[:, 0, 2] = (left - padding) * (2 / width)
        matrix[:, 1, 2] = (top - padding) * (2 / height)
        strength.warp(matrix)
    return out


Box = Tensor
"""(B, 4) long: top, left, height and width of a rectangle for each image, in pixels."""
TRIES = 10
"""Rectangles that are drawn for an image until one fits, at most; torchvision's and timm's, too."""


def inside(box: Box, size: tuple[int, int]) -> Tensor:
    """(B, H, W) bool: which pixels of images of `size` lie in the box, which may reach beyond."""
    top, left, height, width = box[:, :, None].unbind(1)
    rows = torch.arange(size[0], device=box.device) - top  # (B, H)
    columns = torch.arange(size[1], device=box.device) - left  # (B, W)
    in_row, in_column = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    return in_row[:, :, None] & in_column[:, None, :]


def draw_boxes(
    n: int,
    size: tuple[int, int],  # (H, W)
    area: tuple[float, float],
    aspect: float,
    noise: torch.Generator,
    whole: bool = False,
) -> Box:
    """Rectangles within images of `size`, a share of it uniform over `area`, (n, 4).

    Height over width is log-uniform from 1 / aspect to aspect, and the place uniform. Each is the
    first of `TRIES` that is smaller than the image in both directions (`whole`: not larger); if
    none is, height and width are 0. These are the rectangles of torchvision's RandomErasing and,
    with `whole`, of its RandomResizedCrop.
    """
    shares, ratios = torch.rand(2, TRIES, n, generator=noise, device=noise.device)
    pixels = (area[0] + (area[1] - area[0]) * shares) * (size[0] * size[1])
    ratios = (math.log(aspect) * (2 * ratios - 1)).exp()
    sides = torch.stack([(pixels * ratios).sqrt(), (pixels / ratios).sqrt()]).round()
    image = sides.new_tensor(size)[:, None]  # (2, 1)
    most = image if whole else image - 1
    fits = ((sides > 0) & (sides <= most[:, None])).all(0)  # (TRIES, n)
    first = fits.long().argmax(0).expand(2, 1, n)
    sides = sides.gather(1, first)[:, 0] * fits.any(0)  # (2, n)
    places = torch.rand(2, n, generator=noise, device=noise.device)
    # The product may be rounded up to a place too many.
    places = (places * (image - sides + 1)).floor().minimum(image - sides)
    return torch.cat([places, sides]).long().T


def draw_crops(
    n: int, size: tuple[int, int], area: tuple[float, float], noise: torch.Generator
) -> Box:
    """The rectangles (n, 4) of torchvision's RandomResizedCrop, from 3:4 to 4:3.

    Where none is found, as often in images that are long or high, it is the largest central one of
    such a shape.
    """
    height, width = size
    box = draw_boxes(n, size, area, 4 / 3, noise, whole=True)
    high, wide = min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))
    central = box.new_tensor([(height - high) // 2, (width - wide) // 2, high, wide])
    return torch.where(box[:, 2:3] > 0, box, central)


def resized_crop(images: Tensor, box: Box, strength: Strength | None = None) -> Tensor:
    """What lies in the boxes within images (B, C, H, W), enlarged to H x W.

    torchvision's resized_crop, bilinear, of the sample's own box; beyond the middle of a box's
    outermost pixels their colour goes on. A box of the whole image returns it, up to rounding.
    Differentiable in the images. Raises ValueError for a wrong shape.
    """
    _need("box", box, (len(images), 4))
    size = images.new_tensor(images.shape[2:])
    scale = box[:, 2:] / size  # (B, 2), along y and along x
    middle = (2 * box[:, :2] + box[:, 2:]) / size - 1
    matrix = torch.zeros(len(images), 2, 3, device=images.device, dtype=images.dtype)
    matrix[:, 0, 0], matrix[:, 1, 1] = scale[:, 1], scale[:, 0]
    matrix[:, 0, 2], matrix[:, 1, 2] = middle[:, 1], middle[:, 0]
    reach = (scale - 1 / size).flip(1)[:, None, None]  # from the middle to that of the last pixel
    middle = middle.flip(1)[:, None, None]
    grid = sampling_grid(matrix, images.shape[2], images.shape[3])
    grid = grid.maximum(middle - reach).minimum(middle + reach)
    if strength is not None:
        strength.warp(matrix)
    return grid_sample(images, grid, mode="bilinear", align_corners=False)


# --- colour, differentiable -----------------------------------------------------------------------


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply by `factor` (B,) >= 0 and clamp; 1 is the identity, 0 is black.

    torchvision's adjust_brightness. kornia's function of that name *adds* the factor; its
    `adjust_brightness_accumulative` multiplies.
    """
    _need("factor", factor, (len(images),))
    from kornia import enhance

    return enhance.adjust_brightness_accumulative(images, factor)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Scale the distance to the sample's mean grey by `factor` (B,) >= 0 and clamp.

    torchvision's adjust_contrast, with kornia's grey weights: they sum to 1, torchvision's to
    0.9999, hence a difference of at most 1e-4 |1 - factor|. kornia's `adjust_contrast` multiplies
    the whole image, that is brightness again; `adjust_contrast_with_mean_subtraction` is contrast.
    """
    _need("factor", factor, (len(images),))
    from kornia import enhance

    return enhance.adjust_contrast_with_mean_subtraction(images, factor)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Scale the distance to each pixel's grey by `factor` (B,) >= 0 and clamp; grey images stay.

    torchvision's adjust_saturation, within the 1e-4 |1 - factor| of `adjust_contrast`. kornia's
    `adjust_saturation` scales S of HSV instead: factor 0 turns a pixel to max(R, G, B), not to its
    grey (differences up to 0.8); `adjust_saturation_with_gray_subtraction` is torchvision's.
    """
    _need("factor", factor, (len(images),))
    from kornia import enhance

    return enhance.adjust_saturation_with_gray_subtraction(images, factor)


def adjust_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue by `turns` (B,) in [-0.5, 0.5] of the colour circle; grey images stay.

    Cyclic: -0.5 and 0.5 are the same, and red can move both ways. torchvision's adjust_hue, without
    its way through HSV and back: with h in sixths of the circle, red is low + chroma times
    |h - 3| - 1, green low + chroma times 2 - |h - 2|, blue low + chroma times 2 - |h - 4|, each
    factor within [0, 1] (Smith 1978, "Color gamut transform pairs", solved for RGB). kornia's goes
    that way in four times as long, and wants radians.
    """
    _need("turns", turns, (len(images),))
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(1)
    top, low = images.amax(1), images.amin(1)
    chroma = top - low
    divisor = torch.where(chroma > 0, chroma, 1.0)  # grey pixels have no hue, nor a gradient of it
    hue = torch.where(
        top == red,
        (green - blue) / divisor,
        torch.where(top == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    hue = torch.remainder(hue + 6 * turns[:, None, None], 6)
    shares = torch.stack([(hue - 3).abs() - 1, 2 - (hue - 2).abs(), 2 - (hue - 4).abs()], dim=1)
    return torch.addcmul(low[:, None], shares.clamp(0, 1), chroma[:, None])


IMAGENET_EIGENVALUES = (0.2175, 0.0188, 0.0045)
IMAGENET_EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)
"""Both are those of the covariance of ImageNet's RGB values in [0, 1]: a row for each channel, a
column for each component; from facebook/fb.resnet.torch, datasets/imagenet.lua."""


def adjust_lighting(images: Tensor, alpha: Tensor) -> Tensor:
    """Move all pixels of a sample by sum_k alpha_k lambda_k v_k, and clamp; alpha (B, 3), C = 3.

    lambda_k, v_k are the eigenvalues and eigenvectors of ImageNet's colours: the PCA colour
    augmentation of Krizhevsky et al. 2012 (section 4.1), whose alpha has a standard deviation of
    0.1. Raises ValueError for a wrong shape.
    """
    _need("alpha", alpha, (len(images), 3))
    _need("images", images, (len(images), 3, *images.shape[2:]))
    weighted = alpha * alpha.new_tensor(IMAGENET_EIGENVALUES)
    change = weighted @ alpha.new_tensor(IMAGENET_EIGENVECTORS).T
    return (images + change[:, :, None, None]).clamp(0, 1)


# --- the AutoAugment family -----------------------------------------------------------------------


def apply_ops(
    images: Tensor,  # (B, C, H, W)
    op: Tensor,  # (B,) long, indices into OPS
    magnitude: Tensor,  # (B,), in the unit of the sample's op
    strength: Strength | None = None,
    padding: str = "zeros",
    mode: str = "nearest",
) -> Tensor:
    """Apply to each sample its own op with its own magnitude.

    Magnitudes mean what they mean in torchvision's `_apply_op`: pixels for TranslateX/Y (truncated
    to whole ones), the tangent for ShearX/Y (about the top-left corner), degrees counter-clockwise
    for Rotate, factor - 1 for Brightness, Color, Contrast and Sharpness, bits kept for Posterize
    (8 keeps all), threshold in [0, 1] for Solarize; the other ops ignore it.
    With mode "bilinear", unlike there, TranslateX/Y are not truncated, and the geometric ops are as
    differentiable in their magnitudes as the factor ops always are; the others never are.
    At zero, Identity, the geometric and the factor ops return the image. Solarize's weakest
    threshold, 1, still inverts pure white, and AutoContrast, Equalize and Invert have no strength.

    Raises ValueError for a wrong shape or an op that is not in OPS.
    """
    _need("op", op, (len(images),))
    _need("magnitude", magnitude, (len(images),))
    # One transfer to the host serves the check and all ops: on a GPU each would wait for the queue.
    below, *counts, above = (op.clamp(-1, len(OPS)) + 1).bincount(minlength=len(OPS) + 2).tolist()
    if below or above:
        raise ValueError(f"op must be in 0..{len(OPS) - 1}, but {below + above} samples' is not")
    groups = op.argsort(stable=True).split_with_sizes(counts)
    magnitude = magnitude.to(images)
    out = images.clone()

    moved = torch.cat(groups[_GEOMETRIC])
    if len(moved):
        size = (images.shape[2], images.shape[3])
        matrix = _op_matrix(op[moved], magnitude[moved], size, whole_pixels=mode == "nearest")
        out[moved] = warp(images[moved], matrix, mode, padding)
        if strength is not None:
            strength.warp(matrix, moved)

    for name, which in zip(OPS, groups, strict=True):
        if name in _COLOR_OPS and len(which):
            before = images[which]
            after = _COLOR_OPS[name](before, magnitude[which])
            out[which] = after
            if strength is not None:
                strength.color(before, after, which)
    return out


def cutout(
    images: Tensor, row: Tensor, column: Tensor, side: Tensor, fill: Tensor | float = 0.5
) -> Tensor:
    """Paint a square: pixels at most side // 2 before, and fewer after, (row, column).

    `row`, `column` and `side` are (B,) long, in pixels; a side below 2 paints nothing, and the
    square is cut at the border, as in the code of DeVries and Taylor 2017 (uoguelph-mlrg/Cutout).
    `fill` is a colour (C, 1, 1) or a grey. The default is nearly the colour of PBA's Cutout
    (arcelien/pba, augmentation_transforms.py), (125, 122, 113) / 255. Differentiable in the images.
    """
    half = side // 2
    box = torch.stack([row - half, column - half, 2 * half, 2 * half], dim=1)
    hole = inside(box, (images.shape[2], images.shape[3]))
    return torch.where(hole[:, None], fill, images)


def _op_matrix(
    op: Tensor, magnitude: Tensor, size: tuple[int, int], whole_pixels: bool = True
) -> Tensor:
    """(n, 2, 3), normalised output -> input, for geometric ops (n,) of magnitudes (n,).

    One formula serves all ops: the parameters of those that a sample does not have are zero.
    """

    def only(name: str) -> Tensor:
        return torch.where(op == OPS.index(name), magnitude, 0.0)

    shear_x, shear_y, angle = only("ShearX"), only("ShearY"), torch.deg2rad(only("Rotate"))
    cos, sin = torch.cos(angle), torch.sin(angle)
    linear = torch.stack([cos, shear_x - sin, shear_y + sin, cos], dim=1).reshape(-1, 2, 2)
    # Shears keep the top-left corner, not the centre, in place: half an image of shift.
    x, y = only("TranslateX"), only("TranslateY")
    if whole_pixels:
        x, y = x.trunc(), y.trunc()
    offset = torch.stack([shear_x * (size[0] / 2) - x, shear_y * (size[1] / 2) - y], dim=1)
    return _normalised(linear, offset, size)


def _levels(images: Tensor) -> Tensor:
    """Images as whole floats in 0..255, uint8's levels, for which the ops below are defined.

    A new tensor, in which the ops below go on: at 224 pixels a side every further one costs more
    time than the arithmetic.
    """
    return (images * 255).round_().clamp_(0, 255)


def _sharpness(images: Tensor, factor: Tensor) -> Tensor:
    # kornia's, without the mask that it makes, pads and compares to leave the frame alone.
    if min(images.shape[2:]) <= 2:
        return images  # it has no interior
    channels = images.shape[1]
    weights = images.new_tensor([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    smooth = images.clone()
    inner = conv2d(images, weights.expand(channels, 1, 3, 3), groups=channels)
    smooth[:, :, 1:-1, 1:-1] = inner.clamp_(0, 1)
    return ((images - smooth) * factor[:, None, None, None]).add_(smooth).clamp_(0, 1)


def _posterize(images: Tensor, bits: Tensor) -> Tensor:
    # Not kornia's: it truncates to levels, so that a value a rounding error below one loses it.
    bits = bits.trunc()[:, None, None, None]
    step = torch.exp2(8 - bits)
    kept = _levels(images).div_(step).floor_().mul_(step).div_(255)
    return torch.where(bits < 8, kept, images)


def _solarize(images: Tensor, threshold: Tensor) -> Tensor:
    # A thousandth of a level below: 238 / 255 * 255 may exceed 238 by rounding.
    bright = _levels(images) >= threshold[:, None, None, None] * 255 - 1e-3
    return torch.where(bright, 1 - images, images)


def _autocontrast(images: Tensor, _: Tensor) -> Tensor:
    levels = _levels(images)
    low, high = levels.amin(dim=(2, 3), keepdim=True), levels.amax(dim=(2, 3), keepdim=True)
    # Multiplied before divided, whole levels stay exact; torchvision may lose one by truncation.
    stretched = (levels - low).mul_(255).div_((high - low).clamp(min=1)).floor_().div_(255)
    return torch.where(high > low, stretched, images)


def _equalize(images: Tensor, _: Tensor) -> Tensor:
    # kornia's, which counts in floats: whole numbers are counted twice as fast.
    levels = _levels(images).flatten(2).flatten(0, 1).long()  # (n, pixels), n = B C
    n, pixels = levels.shape
    first = 256 * torch.arange(n, device=levels.device)[:, None]
    counts = (levels + first).flatten().bincount(minlength=256 * n).view(n, 256)
    level = torch.arange(256, device=levels.device)
    highest = torch.where(counts > 0, level, 0).amax(1, keepdim=True)
    step = (pixels - counts.gather(1, highest)) // 255
    below = counts.cumsum(1) - counts
    table = ((below + step // 2) // step.clamp(min=1)).clamp_(0, 255)
    table = torch.where(step == 0, level, table) / images.new_tensor(255)
    return table.gather(1, levels).view_as(images)


_COLOR_OPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Brightness": lambda images, m: adjust_brightness(images, 1 + m),
    "Color": lambda images, m: adjust_saturation(images, 1 + m),
    "Contrast": lambda images, m: adjust_contrast(images, 1 + m),
    "Sharpness": lambda images, m: _sharpness(images, 1 + m),
    "Posterize": _posterize,
    "Solarize": _solarize,
    "AutoContrast": _autocontrast,
    "Equalize": _equalize,
    "Invert": lambda images, _: 1 - images,
}
