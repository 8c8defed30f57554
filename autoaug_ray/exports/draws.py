"""A plan -> what one image is given: a list of plain operations with their numbers.

This file is part of exported code, and so needs Python alone. The operations:

    flip, direction
    warp, [a, b, c, d, e, f], mode     the output pixel at (x, y) shows what is at (ax + by + c,
                                       dx + ey + f); pixels, from the image's centre
    brightness, contrast, saturation, sharpness, factor
    hue, turns
    shift, [levels of each channel]    added
    posterize, bits     solarize, level     autocontrast     equalize     invert
    erase, row, column, side, [levels of each channel]
"""

import math
import random
from typing import Any


def draw(plan: list[dict[str, Any]], height: int, width: int, rng: random.Random) -> list[Any]:
    """The operations of one image of this size, as (name, numbers...)."""
    out: list[Any] = []
    for stage in plan:
        kind = stage["stage"]
        if kind == "flip" and rng.random() < stage["probability"]:
            out.append(("flip", stage["direction"]))
        elif kind == "crop":
            n = stage["pixels"]
            out.append(("warp", [1, 0, rng.randint(-n, n), 0, 1, rng.randint(-n, n)], "nearest"))
        elif kind == "affine":
            out.append(("warp", draw_affine(stage, rng), "bilinear"))
        elif kind == "color":
            drawn = {k: rng.uniform(-v, v) for k, v in stage.items() if k != "stage"}
            out += colors({k.rpartition("_")[0]: v for k, v in drawn.items()})
        elif kind == "lighting":
            alpha = [rng.gauss(0, stage["std"]) for _ in range(3)]
            rows = stage["channels_levels"]
            levels = [sum(a * v for a, v in zip(alpha, row, strict=True)) for row in rows]
            out.append(("shift", levels))
        elif kind == "cutout":
            row, column = rng.randrange(height), rng.randrange(width)
            out.append(("erase", row, column, stage["side_px"], stage["fill_levels"]))
        elif kind == "parameters":
            out += parameters(draw_parameters(stage, rng))
        elif kind == "ops":
            for _ in range(stage["rounds"]):
                weights = [choice["weight"] for choice in stage["choices"]]
                (choice,) = rng.choices(stage["choices"], weights)
                for step in choice["steps"]:
                    if rng.random() < step["probability"]:
                        out += one_op(step["op"], draw_magnitude(step, rng), height, width, rng)
    return out


def draw_affine(stage: dict[str, Any], rng: random.Random) -> list[float]:
    """The warp of uniform shifts, angles and shears, and a log-uniform zoom."""
    shift, turn, slant = stage["translate_px"], stage["rotate_degrees"], stage["shear_degrees"]
    x, y = rng.uniform(-shift, shift), rng.uniform(-shift, shift)
    angle = math.radians(rng.uniform(-turn, turn))
    low, high = stage["zoom"]
    zoom = math.exp(rng.uniform(math.log(low), math.log(high)))
    tangent = math.tan(math.radians(rng.uniform(-slant, slant)))
    cos, sin = math.cos(angle), math.sin(angle)
    a, b = (cos - sin * tangent) / zoom, (sin + cos * tangent) / zoom
    c, d = -sin / zoom, cos / zoom
    return [a, b, -a * x - b * y, c, d, -c * x - d * y]


def draw_parameters(stage: dict[str, Any], rng: random.Random) -> dict[str, float]:
    """The value of every parameter, in its unit."""
    names = [one["name"] for one in stage["parameters"]]
    if stage["draw"] == "table":
        return dict(zip(names, rng.choice(stage["rows"]), strict=True))
    u = [rng.uniform(-1, 1) for _ in names]
    if stage["draw"] == "tanh":
        u = [math.tanh(sum(m * v for m, v in zip(row, u, strict=True))) for row in stage["mix"]]
    bounds = [one["bound"] for one in stage["parameters"]]
    return {name: bound * v for name, bound, v in zip(names, bounds, u, strict=True)}


def parameters(p: dict[str, float]) -> list[Any]:
    """A warp by (identity + residuals) times rotation and zoom, then colours."""
    out: list[Any] = []
    if not p.keys() <= {"brightness", "contrast", "saturation", "hue"}:
        angle, zoom = math.radians(p.get("rotate", 0)), math.exp(p.get("zoom", 0))
        cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
        a, b = 1 + p.get("scale_x", 0) / 100, p.get("shear_x", 0) / 100
        c, d = p.get("shear_y", 0) / 100, 1 + p.get("scale_y", 0) / 100
        linear = [[a * cos - b * sin, a * sin + b * cos], [c * cos - d * sin, c * sin + d * cos]]
        x, y = p.get("translate_x", 0), p.get("translate_y", 0)
        out.append(("warp", [*linear[0], x, *linear[1], y], "bilinear"))
    return out + colors(p)


def colors(p: dict[str, float]) -> list[Any]:
    """Brightness, contrast and saturation in % of change, and hue in degrees."""
    out = [
        (name, 1 + p[name] / 100) for name in ("brightness", "contrast", "saturation") if name in p
    ]
    return out + ([("hue", p["hue"] / 360)] if "hue" in p else [])


def draw_magnitude(step: dict[str, Any], rng: random.Random) -> float:
    """A magnitude in the step's unit, with its sign; 0 for an op without one."""
    if "magnitudes" not in step:
        return 0.0
    (value,) = rng.choices(step["magnitudes"], step.get("weights"))
    return float(-value if step["signed"] and rng.random() < 0.5 else value)


def one_op(op: str, value: float, height: int, width: int, rng: random.Random) -> list[Any]:
    """An op of the AutoAugment family; shears keep the top left corner where it is."""
    if op == "Identity":
        return []
    if op in ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"):
        by = {op: value}
        x, y = by.get("ShearX", 0) / 100, by.get("ShearY", 0) / 100
        angle = math.radians(by.get("Rotate", 0))
        cos, sin = math.cos(angle), math.sin(angle)
        right = x * height / 2 - by.get("TranslateX", 0)
        down = y * width / 2 - by.get("TranslateY", 0)
        return [("warp", [cos, x - sin, right, y + sin, cos, down], "nearest")]
    if op in ("Brightness", "Contrast", "Color", "Sharpness"):
        return [({"Color": "saturation"}.get(op, op.lower()), 1 + value / 100)]
    if op == "Posterize":
        kept = [("posterize", int(value))] if value < 8 else []
        return kept if value > 0 else [("brightness", 0.0)]
    if op == "Solarize":
        return [("solarize", value)] if value <= 255 else []
    if op == "Cutout":
        row, column = rng.randrange(height), rng.randrange(width)
        return [("erase", row, column, int(value), [127.5])]
    return [(op.lower(),)]
