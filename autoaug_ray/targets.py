"""What a torchvision v2 transform may be given besides tensors: PIL images, boxes, masks, points.

torchvision and PIL are not imported here until something of theirs comes in.
"""

import sys
from typing import Any, Literal

import torch
from torch import Tensor

from autoaug_ray.maths.image_ops import warp
from autoaug_ray.maths.strength import Motion

Kind = Literal["image", "pil", "tensor", "mask", "boxes", "points", "other"]


def kind_of(part: Any) -> Kind:
    """What something in a sample is. Raises ValueError for a video."""
    pil, tv = sys.modules.get("PIL.Image"), sys.modules.get("torchvision.tv_tensors")
    if pil is not None and isinstance(part, pil.Image):
        return "pil"
    if tv is not None and isinstance(part, tv.TVTensor):
        if isinstance(part, tv.Video):
            raise ValueError("a policy takes images, and no tv_tensors.Video")
        names: dict[str, Kind] = {"Image": "image", "Mask": "mask", "BoundingBoxes": "boxes"}
        names["KeyPoints"] = "points"
        return next((k for n, k in names.items() if isinstance(part, getattr(tv, n))), "other")
    return "tensor" if isinstance(part, Tensor) else "other"


def from_pil(image: Any) -> Tensor:
    """(C, H, W) uint8 of a PIL image in mode L or RGB. Raises ValueError for another mode."""
    import numpy as np

    if image.mode not in ("L", "RGB"):
        raise ValueError(f"expected a PIL image in mode L or RGB, got {image.mode}")
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def to_pil(pixels: Tensor) -> Any:
    """The PIL image, L or RGB, of (C, H, W) uint8."""
    from PIL import Image

    return Image.fromarray((pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)).numpy())


def like(values: Tensor, part: Any) -> Any:
    """Values as the tv_tensor that `part` is."""
    from torchvision import tv_tensors

    return tv_tensors.wrap(values, like=part)


def moved(part: Any, kind: Kind, motion: Motion) -> Any:
    """A mask, boxes or key points where the image's pixels have gone.

    What comes into sight in a mask is 0. Boxes are those around their moved corners, cut at the
    border as torchvision's are. Raises ValueError for boxes with an angle.
    """
    if kind == "mask":
        return like(_moved_mask(part.as_subclass(Tensor), motion), part)
    height, width = part.canvas_size
    if kind == "points":
        points = part.as_subclass(Tensor)
        there = _moved_points(points.reshape(-1, 2), motion, height, width).view_as(points)
        return like(_as_type(there, points.dtype), part)
    from torchvision.transforms.v2 import functional as F

    if part.format.name not in ("XYXY", "XYWH", "CXCYWH"):
        raise ValueError(f"expected boxes as XYXY, XYWH or CXCYWH, got {part.format.name}")
    boxes = F.convert_bounding_box_format(
        part.as_subclass(Tensor).double(), old_format=part.format, new_format="XYXY"
    )
    corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 2)
    there = _moved_points(corners, motion, height, width).view(-1, 4, 2)
    edges = torch.cat([there.amin(1), there.amax(1)], dim=1)
    edges = edges.clamp(torch.zeros(4).to(edges), edges.new_tensor([width, height] * 2))
    out = F.convert_bounding_box_format(edges, old_format="XYXY", new_format=part.format)
    return like(_as_type(out, part.dtype), part)


def _moved_mask(mask: Tensor, motion: Motion) -> Tensor:
    """(..., H, W) of any type, by nearest neighbours, warp by warp as the image's pixels went."""
    x = mask.reshape(1, -1, *mask.shape[-2:]).double()
    for matrix in motion.warps:
        x = warp(x, matrix.to(x), mode="nearest")
    return x.to(mask.dtype).view_as(mask)


def _moved_points(points: Tensor, motion: Motion, height: int, width: int) -> Tensor:
    """(n, 2) x and y in pixels from the image's corner, in double precision."""
    half = torch.tensor([width / 2, height / 2], dtype=torch.double, device=points.device)
    forward = torch.linalg.inv(motion.matrix.to(half))
    normalised = points / half - 1
    there: Tensor = (normalised @ forward[:2, :2].T + forward[:2, 2] + 1) * half
    return there


def _as_type(values: Tensor, dtype: torch.dtype) -> Tensor:
    return (values if dtype.is_floating_point else values.round()).to(dtype)
