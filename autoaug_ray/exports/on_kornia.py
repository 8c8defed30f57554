"""The operations of `draws` by kornia: the rest of exported code."""

import math
import random
from typing import Any

import torch
from kornia import enhance
from kornia.geometry import hflip, vflip, warp_affine
from torch import Tensor, nn

from autoaug_ray.exports.draws import draw

PLAN: list[dict[str, Any]] = []


class Augment(nn.Module):
    """Takes images (B, C, H, W), float in [0, 1]; every image of a batch has a draw of its own."""

    def __init__(self, plan: list[dict[str, Any]] = PLAN) -> None:
        super().__init__()
        self.plan = plan

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        rng = random.Random(int(torch.randint(2**62, ())))  # torch.manual_seed decides
        height, width = images.shape[-2:]
        out = []
        for image in images.split(1):
            for name, *numbers in draw(self.plan, height, width, rng):
                image = apply(image, name, *numbers)
            out.append(image)
        return torch.cat(out)


def apply(image: Tensor, name: str, *numbers: Any) -> Tensor:
    """One operation on an image (1, C, H, W)."""
    if name == "flip":
        return hflip(image) if numbers[0] == "horizontal" else vflip(image)
    if name == "warp":
        return warp(image, *numbers)
    if name == "brightness":
        return enhance.adjust_brightness_accumulative(image, numbers[0])
    if name == "contrast":
        return enhance.adjust_contrast_with_mean_subtraction(image, numbers[0])
    if name == "saturation":
        return enhance.adjust_saturation_with_gray_subtraction(image, numbers[0])
    if name == "hue":  # kornia's takes radians, and no grey images
        return image if image.shape[1] == 1 else enhance.adjust_hue(image, 2 * math.pi * numbers[0])
    if name == "sharpness":
        return enhance.sharpness(image, numbers[0]) if min(image.shape[2:]) > 2 else image
    if name == "equalize":
        return enhance.equalize((image * 255).round() / 255)
    if name == "invert":
        return enhance.invert(image)
    return repaint(image, name, *numbers)


def warp(image: Tensor, matrix: list[float], mode: str) -> Tensor:
    """kornia wants the forward matrix, between the coordinates of pixels' centres."""
    a, b, c, d, e, f = matrix
    x, y = (image.shape[3] - 1) / 2, (image.shape[2] - 1) / 2
    backward = torch.tensor(
        [[a, b, c + x - a * x - b * y], [d, e, f + y - d * x - e * y], [0, 0, 1]],
        dtype=torch.double,
    )
    forward = torch.linalg.inv(backward)[None, :2].to(image)
    return warp_affine(
        image, forward, (image.shape[2], image.shape[3]), mode, "zeros", align_corners=True
    )


def repaint(image: Tensor, name: str, *numbers: Any) -> Tensor:
    """What kornia does not do, or does on other levels than those of uint8."""
    levels = (image * 255).round()
    if name == "posterize":
        step = 2 ** (8 - numbers[0])
        return (levels / step).floor() * step / 255 if step > 1 else image
    if name == "solarize":
        return torch.where(levels >= numbers[0] - 1e-3, 1 - image, image)
    if name == "autocontrast":
        low, high = levels.amin((2, 3), keepdim=True), levels.amax((2, 3), keepdim=True)
        stretched = ((levels - low) * 255 / (high - low).clamp(min=1)).floor() / 255
        return torch.where(high > low, stretched, image)
    if name == "shift":
        return (image + torch.tensor(numbers[0]).to(image).view(-1, 1, 1) / 255).clamp(0, 1)
    row, column, side, fill = numbers
    half = side // 2
    top, left = max(row - half, 0), max(column - half, 0)
    image = image.clone()
    hole = image[:, :, top : row + half, left : column + half]
    hole[:] = torch.tensor(fill).to(image).view(-1, 1, 1) / 255
    return image
