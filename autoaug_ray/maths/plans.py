"""What a policy does, as plain data in pixels, degrees and per cent: what all exports are made of.

A plan is a list of stages, done one after the other, that JSON can hold. Every stage is a dict
whose `stage` says what it is; the functions below make them, and say what they hold. Every number
is for images of one size (H, W), since a share of an image is another number of pixels in another.
`exports.draws` draws from a plan.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from autoaug_ray.maths import augmenter, image_ops, policies

Stage = dict[str, Any]
Size = tuple[int, int]
DRAWS = 1000
"""Draws that stand for what a network with hidden layers has learned."""

_UNITS = {
    **dict.fromkeys(("ShearX", "ShearY", "Brightness", "Color", "Contrast", "Sharpness"), "%"),
    **dict.fromkeys(("TranslateX", "TranslateY", "Cutout"), "px"),
    "Rotate": "degrees", "Posterize": "bits", "Solarize": "levels",
}  # fmt: skip
"""The unit of every op's magnitude, if it has one: % of a pixel per pixel, or of change of a
factor; levels of 255, from which on a pixel is inverted."""


def flip(direction: str, probability: float) -> Stage:
    """A mirror image, horizontal or vertical."""
    return {"stage": "flip", "direction": direction, "probability": probability}


def crop(pixels: int) -> Stage:
    """A shift by whole pixels, uniform within +- so many in x and y; black comes into sight."""
    return {"stage": "crop", "pixels": pixels}


def affine(translate: float, rotate: float, zoom: tuple[float, float], shear: float) -> Stage:
    """Uniform within +- pixels, degrees and degrees in x, and zoom log-uniform; bilinear, as
    `torchvision.transforms.v2.functional.affine`."""
    return {
        "stage": "affine", "translate_px": translate, "rotate_degrees": rotate, "zoom": list(zoom),
        "shear_degrees": shear,
    }  # fmt: skip


def color(jitter: Mapping[str, float]) -> Stage:
    """brightness, contrast, saturation (factors - 1) and hue (turns), in this order, each uniform
    within +- its value."""
    return {
        "stage": "color",
        **{
            "hue_degrees" if name == "hue" else f"{name}_percent": value
            * (360 if name == "hue" else 100)
            for name, value in jitter.items()
        },
    }


def lighting(std: float) -> Stage:
    """Krizhevsky's PCA colour, of this standard deviation, along ImageNet's colours."""
    axes = [
        [255 * value * v for value, v in zip(image_ops.IMAGENET_EIGENVALUES, row, strict=True)]
        for row in image_ops.IMAGENET_EIGENVECTORS
    ]
    return {"stage": "lighting", "std": std, "channels_levels": axes}


def cutout(side: int, fill: Sequence[float]) -> Stage:
    """A square of so many pixels around a uniform centre, cut at the border; colour in levels."""
    return {"stage": "cutout", "side_px": side, "fill_levels": [255 * v for v in fill]}


def uniform(names: Sequence[str], spread: Sequence[float], size: Size) -> list[Stage]:
    """Parameters of `maths.augmenter`, each uniform within +- its spread."""
    geometric = [n for n in names if n not in augmenter.COLOR]
    of = dict(zip(names, spread, strict=True))
    stages = []
    if geometric:
        stages.append(_parameters(geometric, [of[n] for n in geometric], size, draw="uniform"))
    jitter = {n: of[n] for n in augmenter.COLOR if of.get(n)}
    return stages + ([color(jitter)] if jitter else [])


def learned(network: augmenter.AbstractAugmenter, size: Size) -> Stage:
    """Parameters of an augmenter: of one without hidden layers the formula, bound * tanh(mix @ u)
    with u uniform in +-1, of any other DRAWS draws, of which each image takes one."""
    if isinstance(network, augmenter.Augmenter) and isinstance(network.network, torch.nn.Identity):
        mix = (network.whiten * network.log_gain.exp()).T
        return _parameters(
            network.names, network.bounds.tolist(), size, draw="tanh", mix=mix.tolist()
        )
    z = network.draw(DRAWS, torch.Generator(network_device(network)).manual_seed(0))
    table = network(z).cpu() * torch.tensor([unit_of(n, size)[0] for n in network.names])
    return _parameters(network.names, [1.0] * len(network.names), size, draw="table",
                       rows=table.tolist())  # fmt: skip


def network_device(network: torch.nn.Module) -> torch.device:
    return next(network.parameters()).device


def unit_of(name: str, size: Size) -> tuple[float, str]:
    """What a parameter is multiplied by for people, and the unit that it then has."""
    height, width = size
    return {
        "translate_x": (width / 2, "px"),
        "translate_y": (height / 2, "px"),
        "shear_x": (100 * width / height, "%"),
        "shear_y": (100 * height / width, "%"),
        "rotate": (1.0, "degrees"),
        "zoom": (1.0, "ln"),
        "hue": (360.0, "degrees"),
    }.get(name, (100.0, "%"))


def _parameters(
    names: Sequence[str], bounds: Sequence[float], size: Size, draw: str, **how: Any
) -> Stage:
    """Each parameter, with its bound in its unit, and how values are drawn."""
    listed: list[dict[str, Any]] = []
    for name, bound in zip(names, bounds, strict=True):
        factor, unit = unit_of(name, size)
        listed.append({"name": name, "unit": unit})
        if draw != "table":
            listed[-1]["bound"] = bound * factor
    return {"stage": "parameters", "parameters": listed, "draw": draw, **how}


def step(
    op: str,
    probability: float,
    magnitudes: Tensor | None = None,
    weights: Sequence[float] | None = None,
    signed: bool = False,
) -> dict[str, Any]:
    """One op with a probability, at a magnitude drawn from (n,), in the unit of `apply_ops`, with
    a fair sign if `signed`."""
    out: dict[str, Any] = {"op": op, "probability": probability}
    if op not in _UNITS or magnitudes is None:
        return out
    values = magnitudes.double()
    if op in ("TranslateX", "TranslateY", "Posterize"):
        values = values.trunc()
    factor = {"%": 100.0, "levels": 255.0}.get(_UNITS[op], 1.0)
    values = (values * factor).float()  # no digits that a float32 does not have
    listed = [round(v, 4) for v in values.tolist()]
    out |= {"unit": _UNITS[op], "magnitudes": listed, "signed": signed}
    if weights is not None:
        out["weights"] = list(weights)
    return out


def ops(choices: Sequence[tuple[float, Sequence[dict[str, Any]]]], rounds: int = 1) -> Stage:
    """So many times one of the choices (weight, steps); each step may happen or not."""
    return {
        "stage": "ops",
        "rounds": rounds,
        "choices": [{"weight": weight, "steps": list(steps)} for weight, steps in choices],
    }


TWO_WAY = policies.WARPS + policies.FACTORS
"""Ops whose magnitude a fair coin gives a sign."""


def of_policy(policy: Any, size: Size) -> Stage:
    """The stage of a policy of `maths.policies`."""
    names = image_ops.OPS[:-1]  # without Invert
    if isinstance(policy, policies.RandAugment):
        bins = policies.magnitude_bins(policy.num_bins, size)[:, policy.magnitude, None]
        return ops([(1.0, [_bins_step(n, bins)]) for n in names], policy.num_ops)
    if isinstance(policy, policies.TrivialAugmentWide):
        bins = policies.magnitude_bins(policy.num_bins, size, wide=True)
        return ops([(1.0, [_bins_step(n, bins)]) for n in names])
    if isinstance(policy, policies.OneOp):
        standard = policy.space == "standard"
        bins = (policies.standard_bins if standard else policies.magnitude_bins)(
            policy.num_bins, size
        )
        weights = None
        if policy.level is not None:
            weights = policy.level.long().cpu().bincount(minlength=policy.num_bins).tolist()
        signed = policies.WARPS if standard else TWO_WAY
        return ops([(1.0, [_bins_step(n, bins, weights, signed)]) for n in names])
    if isinstance(policy, policies.SubPolicies):
        bins = policies.magnitude_bins(policy.num_bins, size)
        chances = policy.weights or (1.0,) * len(policy.table)
        return ops([
            (weight, [_level_step(*one, bins) for one in steps])
            for weight, steps in zip(chances, policy.table, strict=True)
        ])  # fmt: skip
    assert isinstance(policy, policies.PopulationPolicy)
    return ops(list(_population(policy, size)))


def _bins_step(
    name: str,
    bins: Tensor,
    weights: Sequence[float] | None = None,
    signed: Sequence[str] = TWO_WAY,
) -> dict[str, Any]:
    return step(name, 1.0, bins[image_ops.OPS.index(name)], weights, name in signed)


def _level_step(name: str, probability: float, level: float | None, bins: Tensor) -> dict[str, Any]:
    op = torch.tensor([image_ops.OPS.index(name)])
    magnitude = policies.magnitude_between(bins, op, torch.tensor([float(level or 0)]))
    return step(name, probability, magnitude, signed=name in TWO_WAY)


def _population(
    policy: policies.PopulationPolicy, size: Size
) -> Iterator[tuple[float, list[dict[str, Any]]]]:
    """All that PBA's lottery may come to, nothing, one op or two in a row, with its chance.

    Each entry fires on its own; of those that do, the first `count` of a random order are applied.
    Given that k fire, every ordered pair of them is first with a chance of 1 / (k (k - 1)).
    """
    _, probability, magnitude = policy.entries(size)
    names = [*policies.PBA_OPS, *policies.PBA_OPS]
    fires = {i: p for i, p in enumerate(probability.tolist()[:-1]) if p}
    steps = {
        i: step(names[i], 1.0, magnitude[i : i + 1], signed=names[i] in policies.WARPS)
        for i in fires
    }
    rest = 1.0
    for i in fires:
        others = _number_fired([p for j, p in fires.items() if j != i])
        first = fires[i] * sum(p / (k + 1) for k, p in enumerate(others))
        weight = 0.3 * first + 0.5 * fires[i] * others[0]
        rest -= weight
        yield weight, [steps[i]]
    for i, j in product(fires, fires):
        if i == j:
            continue
        others = _number_fired([p for k, p in fires.items() if k not in (i, j)])
        both = fires[i] * fires[j]
        pair = sum(p / ((k + 2) * (k + 1)) for k, p in enumerate(others))
        if weight := 0.5 * both * pair:
            rest -= weight
            yield weight, [steps[i], steps[j]]
    yield max(rest, 0.0), []


def _number_fired(probabilities: Sequence[float]) -> list[float]:
    """The chances that 0, 1, ... of independent events happen."""
    out = [1.0]
    for p in probabilities:
        out = [
            (out[k] * (1 - p) if k < len(out) else 0.0) + (out[k - 1] * p if k else 0.0)
            for k in range(len(out) + 1)
        ]
    return out


def in_words(stage: Stage) -> str:
    """One line for people: how far, how often."""
    kind = stage["stage"]
    if kind == "flip":
        return f"{stage['direction']} flip, {100 * stage['probability']:.0f} %"
    if kind == "crop":
        return f"shift by whole pixels, +-{stage['pixels']} px"
    if kind == "affine":
        low, high = stage["zoom"]
        parts = [
            f"{word} +-{stage[key]:g} {unit}"
            for key, word, unit in (
                ("translate_px", "translate", "px"),
                ("rotate_degrees", "rotate", "degrees"),
                ("shear_degrees", "shear", "degrees"),
            )
            if stage[key]
        ]
        zoom = [] if low == high == 1 else [f"zoom {100 * low:g} to {100 * high:g} %"]
        return ", ".join(parts + zoom)
    if kind == "color":
        units = {"percent": "%", "degrees": "degrees"}
        named = (
            (*key.rpartition("_")[::2], value) for key, value in stage.items() if key != "stage"
        )
        return ", ".join(f"{name} +-{value:.3g} {units[unit]}" for name, unit, value in named)
    if kind == "lighting":
        return f"PCA lighting, standard deviation {stage['std']:g}"
    if kind == "cutout":
        return f"cutout of {stage['side_px']} px"
    if kind == "parameters":
        return ", ".join(_spread_in_words(stage))
    times = f"{stage['rounds']} times " if stage["rounds"] != 1 else ""
    return f"{times}one of {len(stage['choices'])}: " + "; ".join(_likeliest(stage["choices"]))


def _spread_in_words(stage: Stage) -> Iterator[str]:
    """Mean +- standard deviation of every parameter."""
    mean, std = moments(stage)
    for one, m, s in zip(stage["parameters"], mean, std, strict=True):
        yield f"{one['name']} {m:.2g} +- {s:.2g} {one['unit']}"


def moments(stage: Stage) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of every parameter of a stage of parameters, in its unit."""
    if stage["draw"] == "table":
        rows = torch.tensor(stage["rows"])
        return rows.mean(0).tolist(), rows.std(0).tolist()
    bound = torch.tensor([one["bound"] for one in stage["parameters"]])
    if stage["draw"] == "uniform":
        return [0.0] * len(bound), (bound / math.sqrt(3)).tolist()
    generator = torch.Generator().manual_seed(0)
    mix = torch.tensor(stage["mix"])
    u = 2 * torch.rand(100_000, mix.shape[1], generator=generator) - 1
    return [0.0] * len(bound), (bound * torch.tanh(u @ mix.T).std(0)).tolist()


def _likeliest(choices: Sequence[Mapping[str, Any]], shown: int = 5) -> Iterator[str]:
    total = sum(one["weight"] for one in choices)
    ranked = sorted(choices, key=lambda one: -one["weight"])
    for one in ranked[:shown]:
        steps = " then ".join(_step_in_words(s) for s in one["steps"]) or "nothing"
        yield f"{100 * one['weight'] / total:.1f} % {steps}"
    if len(ranked) > shown:
        yield f"{len(ranked) - shown} more"


def _step_in_words(one: Mapping[str, Any]) -> str:
    words = one["op"]
    if values := one.get("magnitudes"):
        low, high = f"{min(values):.3g}", f"{max(values):.3g}"
        span = low if low == high else f"{low} to {high}"
        words += f" {'+-' if one['signed'] else ''}{span} {one['unit']}"
    chance = one["probability"]
    return words if chance == 1 else f"{words} ({100 * chance:.0f} %)"
