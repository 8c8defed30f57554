"""The figure of accuracy against cost: what it shows, and how it is drawn on paper.

`html.py` hands the same to the browser.
"""

from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from autoaug_ray.maths.statistics import ENOUGH
from autoaug_ray.report import label_placement
from autoaug_ray.report.compare import Entries, mean_accuracy, pareto, time_unit
from autoaug_ray.report.figures import GREY, RC, panels, round_ticks, styles
from autoaug_ray.report.results import EntryResult


class CostPoint(NamedTuple):
    """An entry in the figure of accuracy against cost."""

    entry: EntryResult
    at: tuple[float, float]
    """(relative cost, mean test accuracy in per cent)"""
    half: float
    """Half the width of the interval of the mean, in points; 0 with fewer than ENOUGH seeds."""
    cost_half: float
    """The same of the relative cost."""
    published: tuple[float, float] | None
    """The paper's (relative cost, accuracy in per cent), where it gives both."""


class CostFigure(NamedTuple):
    """What the figure of accuracy against cost shows, on paper and in the browser."""

    points: list[CostPoint]
    front: list[tuple[float, float]]
    """The corners of the Pareto front's stairs, by rising cost."""
    costs: tuple[float, float]
    """The range of the axis of costs."""
    accuracies: tuple[float, float]
    """The range of the axis of accuracies, in per cent; a wider interval runs out of the frame."""

    def lines(self) -> list[tuple[tuple[float, float], tuple[float, float]]]:
        """What labels keep clear of: intervals, the front, and the published figures."""
        bars = [((x, y - half), (x, y + half)) for _, (x, y), half, _, _ in self.points]
        bars += [((x - half, y), (x + half, y)) for _, (x, y), _, half, _ in self.points]
        papers = [(p.published, p.published) for p in self.points if p.published]
        return [*bars, *zip(self.front, self.front[1:], strict=False), *papers]


def cost_figure(entries: Entries) -> CostFigure | None:
    """None if no entry has a cost."""
    points = [
        CostPoint(
            entry=r,
            at=(r.relative_cost, 100 * mean_accuracy(r)),
            half=100 * (r.test_accuracy_half_width or 0.0) if len(r.seeds) >= ENOUGH else 0.0,
            cost_half=(r.relative_cost_half_width or 0.0) if len(r.cost_seeds) >= ENOUGH else 0.0,
            published=(r.published_cost, 100 * r.published_accuracy)
            if r.published_measure == "micro" and r.published_cost and r.published_accuracy
            else None,
        )
        for r in entries
        if r.relative_cost is not None
    ]
    if not points:
        return None
    papers = [p.published for p in points if p.published]
    costs = [x for x, _ in (*(p.at for p in points), *papers)]
    seeds = [100 * a for p in points for a in p.entry.test_accuracies]
    ys = [*seeds, *(y for _, y in papers)]
    room = max(1.0, 0.4 * (max(seeds) - min(seeds)))
    right = 1.6 * max(costs)
    at = {p.entry.label: p.at for p in points}
    front = [at[r.label] for r in pareto(entries)]
    corners = [front[0]]
    for x, y in [*front[1:], (right, 0.0)]:
        corners += [(x, corners[-1][1]), (x, max(y, corners[-1][1]))]
    return CostFigure(
        points,
        corners,
        (min(costs) / 1.2, right),
        (max(min(ys) - room, -2.0), min(max(ys) + room, 102.0)),
    )


def accuracy_vs_cost(entries: Entries) -> Figure | None:
    """Test accuracy over relative cost, with seeds, intervals and the Pareto front.

    Where a paper gives both of an entry, its figures stand hollow and grey behind ours.
    """
    shown = cost_figure(entries)
    if shown is None:
        return None
    style = styles(entries)
    papers = [p.published for p in shown.points if p.published]
    with mpl.rc_context(RC):
        figure, (axes,) = panels(9, 5.8)
        for entry, (x, y), half, cost_half, published in shown.points:
            color, marker, hollow = style[entry.label]
            if half or cost_half:
                axes.errorbar(x, y, half, cost_half, color=color, capsize=4, lw=1.3)
            if published:
                axes.plot(
                    *zip((x, y), published, strict=True), ":", color="#b5b5b5", lw=1, zorder=1
                )
                axes.plot(*published, marker, color="#8f8f8f", mfc="white", ms=8, mew=1.4, zorder=2)
            own = [100 * a for a in entry.test_accuracies]
            axes.plot([x] * len(own), own, ".", color=color, alpha=0.55, ms=9, mew=0)
            face = "white" if hollow else color
            axes.plot(x, y, marker, color=color, mfc=face, ms=8, mew=1.8, zorder=4)
        axes.plot(*zip(*shown.front, strict=True), "-", color="#aaaaaa", zorder=1)
        axes.set_xscale("log")
        axes.set_xlim(*shown.costs)
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, shown.accuracies[0]), min(high, shown.accuracies[1]))
        _cost_ticks(axes.xaxis, *shown.costs, "x")
        axes.set_xlabel(
            f"relative cost: (search + one final training) / one training of "
            f"{entries[0].reference} (log scale)"
        )
        axes.set_ylabel("test accuracy (%)")
        _time_axis(axes, shown.points[0].entry, *shown.costs)
        signs: dict[str, dict[str, Any]] = {
            "mean over seeds": {"marker": "o"},
            "a control": {"marker": "o", "mfc": "white"},
            "one seed": {"marker": ".", "alpha": 0.55, "ms": 9},
            "95 % interval": {"marker": "|", "ms": 11},
            "Pareto front": {"ls": "-", "color": "#aaaaaa"},
            "published": {"ls": ":", "marker": "o", "color": "#8f8f8f", "mfc": "white"},
        }
        drawn = {
            "95 % interval": any(p.half or p.cost_half for p in shown.points),
            "published": bool(papers),
        }
        handles = [
            Line2D([], [], label=name, **{"ls": "", "color": GREY} | look)
            for name, look in signs.items()
            if drawn.get(name, True)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=6, columnspacing=1.4)
        points = {p.entry.label: p.at for p in shown.points}
        label_placement.beside_points(figure, axes, points, shown.lines())
        return figure


class Note(NamedTuple):
    """Where the label of a point stands in the browser: pixels from the point, right and down."""

    right: float
    down: float
    anchor: str
    """The side of the label at that place: left | center | right."""


WIDTHS = {290: 10, 640: 12}
"""Width of the frame in pixels -> size of its labels; the widest that has room is taken."""
HEIGHT = 500
"""The frame's height in pixels."""


def notes(shown: CostFigure) -> dict[int, dict[str, Note]]:
    """Width of the frame -> label -> where it stands, so that none hides another."""
    points = {p.entry.label: p.at for p in shown.points}
    out = {}
    for width, size in WIDTHS.items():
        figure = Figure((width / 100, HEIGHT / 100), dpi=100)
        with mpl.rc_context(RC | {"font.size": 0.72 * size}):  # a pixel is 0.72 pt at this dpi
            axes = figure.add_axes((0, 0, 1, 1), xscale="log")
            axes.set_xlim(*shown.costs)
            axes.set_ylim(*shown.accuracies)
            axes.set_axis_off()
            boxes = label_placement.beside_points(figure, axes, points, shown.lines())
        out[width] = {
            label: _note(box, axes.transData.transform(points[label]))
            for label, box in boxes.items()
        }
    return out


def _note(box: Bbox, at: np.ndarray) -> Note:
    x, y = map(float, at)
    down = y - (box.y0 + box.y1) / 2
    if box.x0 >= x:
        return Note(box.x0 - x, down, "left")
    if box.x1 <= x:
        return Note(box.x1 - x, down, "right")
    return Note((box.x0 + box.x1) / 2 - x, down, "center")


def _time_axis(axes: Axes, entry: EntryResult, left: float, right: float) -> None:
    """The same cost along the upper edge, in device time."""
    assert entry.training_device_hours is not None and entry.relative_cost is not None
    hours = entry.training_device_hours / entry.relative_cost
    factor, unit = time_unit(hours * right)
    scale = hours * factor
    there_and_back = (lambda x: np.asarray(x) * scale, lambda t: np.asarray(t) / scale)
    above = axes.secondary_xaxis("top", functions=there_and_back)
    _cost_ticks(above.xaxis, left * scale, right * scale)
    device = "CPU" if entry.device == "CPU" else "GPU"
    above.set_xlabel(f"{device}-{unit} of training: search + one final")


def _cost_ticks(axis: Axis, left: float, right: float, suffix: str = "") -> None:
    steps = (1, 1.5, 2, 3, 5, 7) if right < 20 * left else (1, 3) if right < 1e3 * left else (1,)
    round_ticks(axis, steps, left, right, suffix)
