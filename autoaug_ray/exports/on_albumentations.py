"""A plan -> an Albumentations pipeline as its own YAML, without importing Albumentations.

What is uniform there, too, is a range. Anything else (learned parameters, a log-uniform zoom, bins
of a magnitude) is a OneOf of fixed transforms: all bins, or DRAWS draws of what is continuous.
Translations are rounded to whole pixels, as it truncates them (`Affine._get_translate_params`).
Written for the versions 1.4.22 to 2.0.8, the last under the MIT licence, and checked against 2.0.8.
"""

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

from autoaug_ray.errors import UserError
from autoaug_ray.exports.draws import draw, one_op

Transform = dict[str, Any]
DRAWS = 256
"""Draws that stand for a continuous distribution which Albumentations does not have."""
NEAREST, LINEAR = 0, 1


def pipeline(plan: Sequence[dict[str, Any]], size: tuple[int, int]) -> Transform:
    """The tree that `albumentations.load(path, data_format="yaml")` reads, for images of size
    (H, W). Raises UserError for an operation that has no equal there."""
    found = [_stage(stage, size) for stage in plan]
    return {
        "__version__": "2.0.8",
        "transform": {
            "__class_fullname__": "Compose", "p": 1.0, "bbox_params": None,
            "keypoint_params": None, "additional_targets": {}, "is_check_shapes": True,
            "transforms": [one for transforms in found for one in transforms],
        },
    }  # fmt: skip


def _stage(stage: dict[str, Any], size: tuple[int, int]) -> list[Transform]:
    kind = stage["stage"]
    if kind == "flip":
        name = "HorizontalFlip" if stage["direction"] == "horizontal" else "VerticalFlip"
        return [_one(name, p=stage["probability"])]
    if kind == "crop":
        shift = [-stage["pixels"], stage["pixels"]]
        return [_affine(NEAREST, {"x": shift, "y": shift})]
    if kind == "affine" and _has_ranges(stage):
        shift = [-int(stage["translate_px"]), int(stage["translate_px"])]
        turn = _pair(stage["rotate_degrees"])
        return [_affine(LINEAR, {"x": shift, "y": shift}, rotate=turn)]
    if kind == "color":
        out = []
        for key, value in stage.items():
            if key == "hue_degrees":
                out.append(_jitter(hue=_pair(value / 360)))
            elif key != "stage":
                factor = [1 - value / 100, 1 + value / 100]
                out.append(_jitter(**{key.removesuffix("_percent"): factor}))
        return out
    if kind == "cutout":
        return _hole(stage["side_px"], stage["fill_levels"])
    if kind == "ops":
        total = sum(choice["weight"] for choice in stage["choices"])
        likely = [choice for choice in stage["choices"] if choice["weight"] > 0]
        choices = [_choice(choice, choice["weight"] / total, size) for choice in likely]
        return [_one("OneOf", transforms=choices)] * stage["rounds"]
    rng = random.Random(0)
    drawn = (_fixed(draw([stage], *size, rng)) for _ in range(DRAWS))
    return [_one("OneOf", transforms=[_sequence(one) for one in drawn])]


def _has_ranges(stage: dict[str, Any]) -> bool:
    """Whether an affine stage is uniform in what Albumentations is uniform in, and in its order."""
    whole = float(stage["translate_px"]).is_integer()
    return whole and stage["zoom"] == [1.0, 1.0] and not stage["shear_degrees"]


def _choice(choice: dict[str, Any], share: float, size: tuple[int, int]) -> Transform:
    """A sub-policy: its steps in a row, each at one of its magnitudes with one of its signs."""
    steps = [one for step in choice["steps"] for one in _step(step, size)]
    return _sequence(steps, p=share)


def _step(step: dict[str, Any], size: tuple[int, int]) -> list[Transform]:
    op, chance = step["op"], step["probability"]
    if op == "Identity" or not chance:
        return []
    if op == "Cutout":
        hole = _hole(int(step["magnitudes"][0]), [127.5])
        return [_sequence(hole, p=chance)]
    values = step.get("magnitudes", [0.0])
    weights = step.get("weights") or [1.0] * len(values)
    signs = (1, -1) if step.get("signed") else (1,)
    each: dict[float, float] = {}  # a magnitude may be listed twice, as Posterize's are
    for value, weight in zip(values, weights, strict=True):
        for sign in signs:
            key = sign * value
            each[key] = each.get(key, 0.0) + weight / len(signs) / sum(weights)
    made = [
        _sequence(_fixed(one_op(op, value, *size, random.Random(0))), p=weight)
        for value, weight in each.items()
        if weight > 0
    ]
    if len(made) == 1:
        return [made[0] | {"p": chance}]
    return [_one("OneOf", p=chance, transforms=made)]


def _fixed(operations: Sequence[Any]) -> list[Transform]:
    """Transforms without chance, one for each operation of `draws`."""
    makers: dict[str, Callable[..., Transform]] = {
        "warp": _warp,
        "brightness": lambda v: _jitter(brightness=[v, v]),
        "contrast": lambda v: _jitter(contrast=[v, v]),
        "saturation": lambda v: _jitter(saturation=[v, v]),
        "hue": lambda v: _jitter(hue=[v, v]),
        "posterize": lambda bits: _one("Posterize", num_bits=[bits, bits]),
        "solarize": lambda level: _one("Solarize", threshold_range=[level / 255, level / 255]),
        "autocontrast": lambda: _one("AutoContrast", method="pil", cutoff=0.0, ignore=None),
        "equalize": lambda: _one("Equalize", mode="pil", by_channels=True, mask=None),
        "invert": lambda: _one("InvertImg"),
    }
    for name, *_ in operations:
        if name not in makers:
            raise UserError(f"{WHY[name]}; {WITHOUT[name]}")
    return [makers[name](*numbers) for name, *numbers in operations]


WHY = {
    "sharpness": "Albumentations has no equal of Sharpness: its Sharpen does not blur, and takes "
    "the frame of an image in",
    "shift": "Albumentations has no equal of lighting: its FancyPCA takes the colours of the image "
    "itself, not ImageNet's",
}
WITHOUT = {
    "sharpness": "--without Sharpness puts nothing in its place.",
    "shift": "--without lighting leaves it out.",
}


def _warp(matrix: Sequence[float], mode: str) -> Transform:
    """Affine, which does Translate Shear Rotate Scale forward, of the inverse of an output-to-input
    matrix: rotation and scale for similarities, otherwise shear and scale after 0 to 3 quarters."""
    a, b, c, d, e, f = matrix
    area = a * e - b * d
    if abs(area) < 1e-9:
        raise UserError("Albumentations has no equal of a warp that folds an image flat.")
    f11, f12, f21, f22 = e / area, -b / area, -d / area, a / area
    x, y = -(f11 * c + f12 * f), -(f21 * c + f22 * f)
    interpolation = NEAREST if mode == "nearest" else LINEAR
    shift = {"x": [round(x)] * 2, "y": [round(y)] * 2}
    if math.isclose(f11, f22, abs_tol=1e-9) and math.isclose(f12, -f21, abs_tol=1e-9):
        angle, zoom = math.degrees(math.atan2(f12, f11)), math.hypot(f11, f12)
        return _affine(interpolation, shift, rotate=[angle, angle], scale=[zoom, zoom])
    quarters = 0 if abs(f11 * f22) >= abs(f12 * f21) else 1
    if quarters:  # F = Shear R(90) Scale: R(90) swaps the columns
        down, right = -f21, f12
        scale, slant = (down, right), (-f11 / down, f22 / right)
    else:
        scale, slant = (f11, f22), (f12 / f22, f21 / f11)
    return _affine(
        interpolation, shift, rotate=[90.0 * quarters] * 2,
        scale={"x": [scale[0]] * 2, "y": [scale[1]] * 2},
        shear={k: [-math.degrees(math.atan(v))] * 2 for k, v in zip("xy", slant, strict=True)},
    )  # fmt: skip


def _hole(side: int, fill: Sequence[float]) -> list[Transform]:
    """A square around a uniform centre: its corner is uniform in a frame that is taken off again,
    since Albumentations keeps holes within the image."""
    if side < 2:
        return []
    half, levels = side // 2, [float(round(v)) for v in fill]
    frame = [half, half - 1, half - 1, half]  # top, right, bottom, left
    kept: dict[str, Any] = {"keep_size": False, "sample_independently": False, "percent": None}
    hole = [2 * half, 2 * half]
    return [
        _one("CropAndPad", px=frame, **kept),
        _one(
            "CoarseDropout", num_holes_range=[1, 1], hole_height_range=hole, hole_width_range=hole,
            fill=levels if len(levels) > 1 else levels[0], fill_mask=None,
        ),
        _one("CropAndPad", px=[-v for v in frame], **kept),
    ]  # fmt: skip


def _affine(interpolation: int, shift: dict[str, list[int]], **how: Any) -> Transform:
    return _one("Affine", interpolation=interpolation, translate_px=shift, fill=0.0, **how)


def _jitter(**of: list[float]) -> Transform:
    """One kind of colour, since several would come in a random order."""
    still: dict[str, Any] = dict.fromkeys(("brightness", "contrast", "saturation"), [1.0, 1.0])
    return _one("ColorJitter", **(still | {"hue": [0.0, 0.0]} | of))


def _sequence(transforms: list[Transform], p: float = 1.0) -> Transform:
    # What a OneOf chooses is applied for sure, so that a chance of its own needs a level more.
    if len(transforms) == 1 and transforms[0]["p"] == 1.0:
        return transforms[0] | {"p": p}
    return _one("Sequential", p=p, transforms=transforms)


def _one(name: str, p: float = 1.0, **how: Any) -> Transform:
    return {"__class_fullname__": name, "p": p, **how}


def _pair(value: float) -> list[float]:
    return [-value, value]
