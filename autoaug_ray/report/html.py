"""What the pages share: templates, the figure that answers to the pointer, what was learned."""

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from autoaug_ray.methods import method_class
from autoaug_ray.methods.base import Method
from autoaug_ray.report import figures
from autoaug_ray.report.results import Results, Row
from autoaug_ray.store.folder import Folder
from autoaug_ray.store.places import relative

SYMBOLS = dict(
    zip(
        figures.MARKERS,
        (
            "circle", "square", "diamond", "triangle-down", "triangle-up", "cross", "x",
            "pentagon", "hexagon", "triangle-left", "triangle-right", "diamond-tall",
        ),
        strict=True,
    )
)  # fmt: skip
"""Matplotlib's markers by plotly's names."""


def render(template: str, **values: Any) -> str:
    """The page of a template of this package, with everything from the study escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True,
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template(template).render(**values)


@cache
def library() -> str:
    """plotly.js, gzipped and in base64: 1.9 MB of a page instead of 4.8."""
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def accuracy_vs_cost(lines: Sequence[Row], time_name: str, enough: int) -> Row | None:
    """`figures.accuracy_vs_cost` as plotly's data and layout, from the lines of the table.

    `meta` is the entry of a trace, by which the page hides it; the front has none. Intervals are
    drawn from `enough` seeds on.
    """
    rows = [r for r in lines if r["relative_cost"] is not None]
    if not rows:
        return None
    reference = rows[0]["reference"]
    front = figures.pareto(rows)
    right = 1.6 * max(r["relative_cost"] for r in rows)
    steps = [(r["relative_cost"], 100 * r["test_accuracy_mean"]) for r in front]
    steps.append((right, steps[-1][1]))
    traces: list[Row] = [
        {
            "x": [x for x, _ in steps], "y": [y for _, y in steps], "name": "Pareto front",
            "mode": "lines", "line": {"shape": "hv", "color": "#aaaaaa", "width": 1.5},
            "hoverinfo": "skip",
        }
    ]  # fmt: skip
    for r in rows:
        color, marker, hollow = r["look"]
        x, y = r["relative_cost"], 100 * r["test_accuracy_mean"]
        half = 100 * r["test_accuracy_half_width"] if len(r["seeds"]) >= enough else None
        name = escape(r["label"])  # plotly reads some HTML in texts
        said = [
            f"<b>{name}</b>", f"accuracy {r['accuracy']} %",
            f"points above {escape(reference)}: {r['difference']}",
            f"relative cost {r['cost']}", f"{time_name} {r['time']}",
            f"seeds {', '.join(map(str, r['seeds']))}",
        ]  # fmt: skip
        seeds = [100 * a for a in r["test_accuracies"]]
        traces += [
            {
                "x": [x] * len(seeds), "y": seeds, "mode": "markers", "meta": r["label"],
                "marker": {"color": color, "size": 5, "opacity": 0.55}, "showlegend": False,
                "hoverinfo": "skip",
            },
            {
                "x": [x], "y": [y], "name": name, "mode": "markers", "meta": r["label"],
                "marker": {
                    "color": color, "size": 11, "symbol": SYMBOLS[marker] + "-open" * hollow,
                    "line": {"width": 2, "color": color},
                },
                "error_y": {"array": [half or 0], "visible": half is not None, "thickness": 1.3},
                "text": ["<br>".join(said)], "hoverinfo": "text",
            },
        ]  # fmt: skip
        if r["published_measure"] == "micro" and r["published_cost"] is not None:
            there = 100 * r["published_accuracy"]
            at = f"<b>{name}</b>, published<br>{there:.2f} % at {r['published_cost']:.2f}"
            traces.append(
                {
                    "x": [x, r["published_cost"]], "y": [y, there], "mode": "lines+markers",
                    "line": {"dash": "dot", "color": "#8f8f8f", "width": 1},
                    "marker": {"symbol": "circle-open", "size": [0, 9], "color": "#8f8f8f"},
                    "meta": r["label"], "showlegend": False, "text": ["", at], "hoverinfo": "text",
                }
            )  # fmt: skip
    ys = [y for t in traces if "meta" in t for y in t["y"]]
    room = max(1.0, 0.4 * (max(ys) - min(ys)))  # a wider interval runs out of the frame
    layout = {
        "xaxis": {
            "type": "log", "dtick": "D1" if right > 20 else "D2", "ticksuffix": "x",
            "title": {"text": f"relative cost (log scale; {escape(reference)} = 1)"},
        },
        "yaxis": {
            "title": {"text": "test accuracy (%)"},
            "range": [max(min(ys) - room, -2), min(max(ys) + room, 102)],
        },
        "legend": {"orientation": "h", "y": -0.2}, "margin": {"l": 55, "r": 10, "t": 10, "b": 40},
        "height": 560, "plot_bgcolor": "white", "hoverlabel": {"align": "left"},
        "font": {"family": "system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif", "size": 13},
    }  # fmt: skip
    for axis in ("xaxis", "yaxis"):
        layout[axis] |= {"gridcolor": "#e6e6e6", "zeroline": False}  # type: ignore[operator]
    return {"data": traces, "layout": layout}


def policies(results: Results, folder: Folder) -> list[Row]:
    """What each entry with an exported policy ended with, by seed, and the first one's path.

    Figures are the last epoch's: learned spreads (std of a parameter), probabilities of kinds of
    images (means over the classes), and sub-policies with their weights.
    """
    out = []
    for label, by_seed in results.finals.items():
        paths = {
            seed: relative(path, folder.root)
            for seed in by_seed
            if (path := folder.policy(label, seed) / "policy.pt").is_file()
        }
        if paths:
            last = {seed: by_seed[seed][-1] for seed in paths}
            of = method_class(results.study.entry(label).hyperparameters["name"])
            methods = {seed: _method(of, row) for seed, row in last.items()}
            found = {
                "label": label, "load": json.dumps(next(iter(paths.values()))),
                "figures": _over_seeds([methods[s].found_figures(row) for s, row in last.items()]),
                "sub_policies": {s: _cut(p) for s, m in methods.items() if (p := m.found_lines())},
            }  # fmt: skip
            if found["figures"] or found["sub_policies"]:
                out.append(found)
    return out


def _method(of: type[Method], row: Row) -> Method:
    """The method that a row's run trained with."""
    return of.model_validate_json(json.dumps(json.loads(row["settings"])["method"]))


def _over_seeds(found: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """name -> mean ± sd over the seeds, of the figures that every one of them has."""
    names = [n for n in found[0] if all(n in f for f in found)]
    out = {}
    for name in names:
        values = [f[name] for f in found]
        out[name] = f"{fmean(values):.3f}"
        if len(values) > 1:
            out[name] += f" ± {stdev(values):.3f}"
    return out


SHOWN = 25
"""Sub-policies of a seed that stand on the page; policy.yaml has them all."""


def _cut(lines: Sequence[str]) -> list[str]:
    return [*lines[:SHOWN], *[f"and {len(lines) - SHOWN} more"] * (len(lines) > SHOWN)]
