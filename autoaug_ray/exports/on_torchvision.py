"""The operations of `draws` by torchvision's v2 transforms: the rest of exported code."""

import math
import random
from typing import Any

import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from autoaug_ray.exports.draws import draw

PLAN: list[dict[str, Any]] = []
FOLLOW = (tv_tensors.BoundingBoxes, tv_tensors.Mask, tv_tensors.KeyPoints)


class Augment(v2.Transform):  # type: ignore[misc]
    """Takes PIL images, tv_tensors.Image and tensors (..., C, H, W), uint8 or float in [0, 1].

    Boxes, masks and key points follow. As with all of torchvision's transforms, one call is one
    draw: give it image by image.
    """

    def __init__(self, plan: list[dict[str, Any]] = PLAN) -> None:
        super().__init__()
        self.plan = plan

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        typed = [x for x in flat_inputs if isinstance(x, (Image.Image, tv_tensors.TVTensor))]
        plain = [x for x in flat_inputs if isinstance(x, torch.Tensor)]
        height, width = F.get_size((typed + plain)[0])
        rng = random.Random(int(torch.randint(2**62, ())))  # torch.manual_seed decides
        return {"size": (height, width), "drawn": draw(self.plan, height, width, rng)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        follows = isinstance(inpt, FOLLOW)
        x = inpt if follows else to_float(inpt)
        for name, *numbers in params["drawn"]:
            if name == "flip":
                x = getattr(F, f"{numbers[0]}_flip")(x)
            elif name == "warp":
                x = warp(x, params["size"], *numbers)
            elif not follows:
                x = recolor(x, name, *numbers)
        return x if follows else back(x, inpt)


def to_float(image: Any) -> torch.Tensor:
    """(..., C, H, W) in [0, 1]; no level is lost between one operation and the next."""
    pixels = image if isinstance(image, torch.Tensor) else F.pil_to_tensor(image)
    pixels = pixels.as_subclass(torch.Tensor)
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels


def back(x: torch.Tensor, image: Any) -> Any:
    """In the type of `image`."""
    if not isinstance(image, torch.Tensor):
        return F.to_pil_image((x * 255).round().to(torch.uint8))
    out = (x * 255).round().to(torch.uint8) if image.dtype == torch.uint8 else x
    return tv_tensors.wrap(out, like=image) if isinstance(image, tv_tensors.Image) else out


def warp(x: Any, size: tuple[int, int], matrix: list[float], mode: str) -> Any:
    """From coordinates around the centre to those from the corner, which `perspective` takes."""
    a, b, c, d, e, f = matrix
    mid_x, mid_y = size[1] / 2, size[0] / 2
    right, down = c + mid_x - a * mid_x - b * mid_y, f + mid_y - d * mid_x - e * mid_y
    interpolation, corner = v2.InterpolationMode(mode), [a, b, right, d, e, down, 0, 0]
    # Without a fill, black comes into sight, too, but a bilinear border is not darkened twice.
    return F.perspective(x, None, None, interpolation, fill=None, coefficients=corner)


def recolor(x: torch.Tensor, name: str, *numbers: Any) -> Any:
    if name in ("brightness", "contrast", "saturation", "hue", "sharpness"):
        return getattr(F, f"adjust_{name}")(x, numbers[0])
    if name == "invert":
        return F.invert(x)
    if name == "shift":
        return (x + torch.tensor(numbers[0]).to(x).view(-1, 1, 1) / 255).clamp(0, 1)
    if name == "erase":
        row, column, side, fill = numbers
        half, (height, width) = side // 2, x.shape[-2:]
        top, left = max(row - half, 0), max(column - half, 0)
        high, wide = min(row + half, height) - top, min(column + half, width) - left
        return F.erase(x, top, left, high, wide, torch.tensor(fill).to(x).view(-1, 1, 1) / 255)
    if name == "solarize":
        numbers = (math.ceil(numbers[0] - 1e-3),)
    levels = (x * 255).round().to(torch.uint8)  # the others are defined on these
    return getattr(F, name)(levels, *numbers).to(x) / 255
