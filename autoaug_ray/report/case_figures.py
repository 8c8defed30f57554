"""The figures over the cases of a study, against what the cases differ in."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from autoaug_ray.maths.statistics import ENOUGH
from autoaug_ray.report import figures, mixes
from autoaug_ray.report.cases import Across
from autoaug_ray.report.compare import learned_mixes, paired, tables
from autoaug_ray.report.mixes import Point
from autoaug_ray.report.results import StudyResults

AXES = {
    "dataset.imbalance.factor": "imbalance factor asked for (rarest / most frequent class)",
    "dataset.shots": "training images per class",
}
"""Numbers in which cases may differ, by their path in a study."""


@dataclass(frozen=True)
class Axis:
    name: str
    log: bool
    ticks: dict[float, str]
    panels: dict[str, list[tuple[float, StudyResults]]]
    """Cases that differ in nothing else, in rising order."""


def axis(cases: Sequence[StudyResults]) -> Axis | None:
    """The one number that cases differ in, or differ in within each dataset; None if there is none.

    A panel holds at least two cases; cases without a partner are in none.
    """
    fields = {"dataset", "model", "train", "val_fraction"}
    flat = [_flat(case.study.model_dump(mode="json", include=fields)) for case in cases]
    varied = [key for key in AXES if len({f.get(key) for f in flat} - {None}) > 1]
    if len(varied) != 1:
        return None
    key = varied[0]
    groups: dict[str, list[tuple[float, StudyResults]]] = {}
    for f, case in zip(flat, cases, strict=True):
        if f.get(key) is not None:
            rest = json.dumps({k: v for k, v in sorted(f.items()) if k != key})
            groups.setdefault(rest, []).append((float(f[key]), case))
    whole = [sorted(g, key=lambda pair: pair[0]) for g in groups.values()]
    whole = [g for g in whole if len({x for x, _ in g}) == len(g) > 1]
    if not whole:
        return None
    names: list[str] = [g[0][1].study.dataset.name for g in whole]
    if len(set(names)) < len(names):
        names = [f"{g[0][1].name} to {g[-1][1].name}" for g in whole]
    xs = sorted({x for g in whole for x, _ in g})
    return Axis(
        name=AXES[key],
        log=xs[0] > 0 and xs[-1] >= 4 * xs[0],
        ticks={x: f"{x:g}" for x in xs},
        panels=dict(zip(names, whole, strict=True)),
    )


def _flat(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= _flat(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return out


def gains(found: Across) -> tuple[Axis, dict[str, dict[str, list[Point]]]] | None:
    """panel -> label -> points above the reference, with the paired 95 % interval."""
    along = axis(found.cases)
    if along is None:
        return None
    out: dict[str, dict[str, list[Point]]] = {}
    for title, group in along.panels.items():
        for label in found.labels:
            points = []
            for x, case in group:
                r = case.by_label.get(label)
                if label == found.reference or r is None or r.difference is None:
                    continue
                y = 100 * r.difference
                known = paired(r, case.by_label[found.reference]).n >= ENOUGH
                half = 100 * (r.difference_half_width or 0.0) if known else 0.0
                points.append(Point(x, y, y - half, y + half))
            out.setdefault(title, {})[label] = points
    return along, out


def gain(found: Across) -> Figure | None:
    if (known := gains(found)) is None:
        return None
    along, curves = known
    return mixes.over_cases(
        curves, figures.styles(found.entries), x_name=along.name, ticks=along.ticks, log=along.log,
        y_name=f"points above {found.reference}",
    )  # fmt: skip


def mean_alphas(found: Across) -> tuple[Axis, dict[str, dict[str, list[Point]]]] | None:
    """kind -> learned mix -> its mean probability over classes, lowest to highest seed.

    Where the cases differ in no one number, they stand side by side; where there are several
    datasets, a mix has a curve in each.
    """
    along = axis(found.cases)
    if along is None:
        beside = [(float(i), case) for i, case in enumerate(found.cases)]
        ticks = {x: case.name for x, case in beside}
        along = Axis("case", False, ticks, {"": beside})
    out: dict[str, dict[str, list[Point]]] = {}
    for title, group in along.panels.items():
        for x, case in group:
            mixed = tables(case.finals)
            for label in learned_mixes(case):
                rows = list(mixed[label].values())
                for k, kind in enumerate(rows[0]["kinds"]):
                    shares = [float(np.mean(row["alpha"], axis=0)[k]) for row in rows]
                    name = label if len(along.panels) == 1 else f"{label}, {title}"
                    out.setdefault(kind, {}).setdefault(name, []).append(
                        Point(x, fmean(shares), min(shares), max(shares))
                    )
    return (along, out) if out else None


def alpha(found: Across) -> Figure | None:
    if len(found.cases) < 2 or (known := mean_alphas(found)) is None:
        return None
    along, curves = known
    names = list(dict.fromkeys(name for c in curves.values() for name in c))
    style = figures.styles(found.entries)
    if len(along.panels) > 1:  # several lines of one entry: a colour for each
        style = {
            name: figures.Style(figures.PALETTE[i % 10], figures.MARKERS[i % 12], False)
            for i, name in enumerate(names)
        }
    return mixes.over_cases(
        curves, style, x_name=along.name, ticks=along.ticks, log=along.log,
        y_name="mean probability", share=True,
    )  # fmt: skip
