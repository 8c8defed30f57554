"""The report's pictures: plain data in, PNG bytes out.

One colour and one marker per entry in all of them; a control has the colour of its learned entry
and is drawn hollow or dashed.
"""

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from autoaug_ray.maths.statistics import ENOUGH
from autoaug_ray.report import label_placement
from autoaug_ray.report.compare import Entries, mean_accuracy, pareto, time_unit
from autoaug_ray.report.results import EntryResult
from autoaug_ray.report.runs import Finals, Row

GREY = "#555555"
PALETTE = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#999933",
    "#332288", "#44AA99",
)  # fmt: skip
"""Okabe and Ito's, without yellow and black, and four of Tol's: told apart by any eye."""
MARKERS = "osD^vPXph<>d"
RC: dict[Any, Any] = {
    "font.size": 10.5, "axes.titlesize": 11.5, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": "#e6e6e6", "axes.axisbelow": True, "legend.frameon": False,
}  # fmt: skip
DPI = 110


class Style(NamedTuple):
    color: str
    marker: str
    hollow: bool


def styles(entries: Entries) -> dict[str, Style]:
    """label -> style. The reference is grey; learned entries come first in the palette."""
    leaders = {r.control_of for r in entries if r.control_of}
    own = [r.label for r in entries if not r.control_of]
    own.sort(key=lambda label: label not in leaders)
    others = [label for label in own if label != entries[0].reference]
    out = {label: Style(GREY, "o", False) for label in own}
    for i, label in enumerate(others):
        out[label] = Style(PALETTE[i % len(PALETTE)], MARKERS[(1 + i) % len(MARKERS)], False)
    for r in entries:
        if r.control_of:
            out[r.label] = out[r.control_of]._replace(hollow=True)
    return out


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
        bars = [((x, y - half), (x, y + half)) for _, (x, y), half, _, _ in shown.points]
        bars += [((x - half, y), (x + half, y)) for _, (x, y), _, half, _ in shown.points]
        stairs = zip(shown.front, shown.front[1:], strict=False)
        taken = [*bars, *stairs, *((p, p) for p in papers)]
        points = {p.entry.label: p.at for p in shown.points}
        label_placement.beside_points(figure, axes, points, taken)
        return figure


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


def round_ticks(
    axis: Axis, steps: Sequence[float], low: float, high: float, suffix: str = ""
) -> None:
    """Ticks at steps times powers of ten in [low, high], in plain numbers."""
    ticks = [m * 10.0**e for e in range(-6, 8) for m in steps]
    axis.set_major_locator(FixedLocator([t for t in ticks if low <= t <= high]))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}{suffix}"))
    axis.set_minor_locator(NullLocator())


def true_displacement(translate: float) -> float:
    """Mean distance that uniform +-t pixels in x and in y move an image.

    The mean of sqrt(x^2 + y^2) over the square [-1, 1]^2 is (sqrt 2 + asinh 1) / 3 = 0.765.
    """
    return translate * (math.sqrt(2) + math.asinh(1)) / 3


class Series(NamedTuple):
    """A figure by epoch: mean, lowest and highest over the seeds; NaN where it was not logged."""

    epochs: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def varies(self) -> bool:
        return bool(np.ptp(self.mean) > 1e-6 * max(1e-3, float(np.abs(self.mean).max())))


def series(
    by_seed: Mapping[int, Sequence[Row]], read: Callable[[Row], float | None]
) -> Series | None:
    """None if no epoch of any seed has the figure."""
    if not by_seed:
        return None
    columns = [{row["epoch"]: read(row) for row in rows} for rows in by_seed.values()]
    epochs = sorted(e for e in columns[0] if all(c.get(e) is not None for c in columns))
    if not epochs:
        return None
    values = np.array([[c[e] for e in epochs] for c in columns], dtype=float)
    return Series(np.array(epochs), values.mean(0), values.min(0), values.max(0))


DELIVERED = {
    "displacement": ("Delivered displacement", "mean displacement (pixels)"),
    "color_change": ("Delivered colour change", "mean colour change (0 to 1)"),
}


def strength(entries: Entries, finals: Finals, true_mean: float | None) -> bytes | None:
    """Delivered displacement and colour change, and the learned spread of every parameter."""
    style = styles(entries)
    delivered: dict[str, dict[str, Series]] = {}
    for name in DELIVERED:
        curves = _by_label(style, finals, itemgetter(name))
        # An entry that delivers nothing is left out.
        curves = {label: s for label, s in curves.items() if s.high.max() > 1e-6}
        if curves and (name == "displacement" or any(s.varies() for s in curves.values())):
            delivered[name] = curves
    spreads = {label: _spreads(finals[label]) for label in style if finals.get(label)}
    spreads = {
        label: s for label, s in spreads.items() if s and any(c.varies() for c in s.values())
    }
    if not delivered:
        return None
    with mpl.rc_context(RC):
        figure, all_axes = panels(9.2, 3.7, wide=len(delivered), narrow=len(spreads))
        colors = {label: one.color for label, one in style.items()}
        for axes, (name, curves) in zip(all_axes, delivered.items(), strict=False):
            title, y_name = DELIVERED[name]
            axes.set_title(title)
            ends = {label: _curve(axes, s, style[label]) for label, s in curves.items()}
            if name == "displacement" and true_mean is not None:
                axes.axhline(true_mean, color="black", ls=(0, (8, 4)), lw=1.4)
                ends["the test images"] = true_mean
            _from_zero(axes, y_name, ends, colors)
        for axes, (label, parameters) in zip(
            all_axes[len(delivered) :], spreads.items(), strict=True
        ):
            axes.set_title(f"Learned spread: {label}", fontsize=10.5)
            colors = dict(zip(parameters, PALETTE, strict=False))
            plain = len(parameters) > 3  # too many for bands
            ends = {
                k: _curve(axes, s, Style(colors[k], "", False), band=not plain)
                for k, s in parameters.items()
            }
            _from_zero(axes, "std of the parameter", ends, colors)
        return png(figure)


def _by_label(
    labels: Iterable[str], finals: Finals, read: Callable[[Row], float | None]
) -> dict[str, Series]:
    """The series of a figure of each entry that has it."""
    found = {label: series(finals.get(label, {}), read) for label in labels}
    return {label: s for label, s in found.items() if s is not None}


def _logged(name: str) -> Callable[[Row], float | None]:
    return lambda row: row["log"].get(name)


def _from_zero(
    axes: Axes, y_name: str, ends: Mapping[str, float], colors: Mapping[str, str]
) -> None:
    """Let y begin at zero, and name the curves at their ends."""
    axes.set_ylabel(y_name)
    axes.set_ylim(bottom=0)
    label_placement.at_ends(axes, ends, colors)


def _spreads(by_seed: Mapping[int, Sequence[Row]]) -> dict[str, Series]:
    names = [k for k in next(iter(by_seed.values()))[-1]["log"] if k.startswith("std/")]
    found = {n: series(by_seed, _logged(n)) for n in names}
    return {n.removeprefix("std/"): s for n, s in found.items() if s is not None}


SNR_LIMIT = 1e3
"""With one outer step in an epoch there is no noise to divide by."""


def hypergradient(entries: Entries, finals: Finals) -> bytes | None:
    """Norm and signal-to-noise of the hypergradient by epoch, where a method logged them."""
    style = styles(entries)
    wanted = {
        "hypergradient_norm": ("Hypergradient norm", "mean norm over the epoch", math.inf),
        "hypergradient_snr": (
            "Signal-to-noise of one outer step", "|mean| / standard deviation", SNR_LIMIT,
        ),
    }  # fmt: skip
    found: dict[str, dict[str, Series]] = {}
    for name, (_, _, limit) in wanted.items():
        curves = _by_label(style, finals, _logged(name))
        found[name] = {label: s for label, s in curves.items() if s.high.max() < limit}
    found = {name: curves for name, curves in found.items() if curves}
    if not found:
        return None
    with mpl.rc_context(RC):
        figure, all_axes = panels(9.2, 3.2, wide=0, narrow=len(found))
        for axes, (name, curves) in zip(all_axes, found.items(), strict=True):
            title, y_name, _ = wanted[name]
            axes.set_title(title)
            ends = {label: _curve(axes, s, style[label]) for label, s in curves.items()}
            _from_zero(axes, y_name, ends, {k: v.color for k, v in style.items()})
        return png(figure)


def _curve(axes: Axes, s: Series, style: Style, *, band: bool = True) -> float:
    """Draw a curve, dashed for a control, dotted if it never changes, else with its band.

    Returns its last value.
    """
    dashes, width = (":", 1.5) if not s.varies() else ("--" if style.hollow else "-", 2)
    if dashes == "-" and band:
        axes.fill_between(s.epochs, s.low, s.high, color=style.color, alpha=0.13, lw=0)
    marker = "." if len(s.epochs) == 1 else ""
    axes.plot(s.epochs, s.mean, ls=dashes, color=style.color, lw=width, marker=marker)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return float(s.mean[-1])


def samples(entries: Entries, finals: Finals) -> bytes | None:
    """The same training images as each entry augments them: one strip per pictured epoch."""
    strips: dict[str, list[tuple[str, np.ndarray]]] = {}
    for r in entries:
        by_seed = finals.get(r.label, {})
        rows = [row for row in next(iter(by_seed.values()), []) if row["samples"]]
        if rows and len({row["samples"] for row in rows}) == 1 < len(rows):
            strips[r.label] = [("all", _decode(rows[0]["samples"]))]
        elif rows:
            strips[r.label] = [(str(row["epoch"]), _decode(row["samples"])) for row in rows]
    if not strips:
        return None
    height, width = next(iter(strips.values()))[0][1].shape[:2]
    row_inches = 4.1 * height / width
    columns: list[list[str]] = [[], []]
    lengths = [0.0, 0.0]
    for label, found in strips.items():  # into the shorter of two columns
        c = int(lengths[1] < lengths[0])
        columns[c].append(label)
        lengths[c] += len(found) * row_inches + 0.42
    with mpl.rc_context(RC):
        figure = Figure(figsize=(9.4, max(lengths) + 0.1), dpi=DPI)
        total = figure.get_figheight()
        for c, labels in enumerate(columns):
            top = total - 0.32
            for label in labels:
                left = (0.45 + c * 4.75) / 9.4
                figure.text(left, (top + 0.07) / total, label, weight="bold", va="bottom")
                for epoch, strip in strips[label]:
                    box = (left, (top - row_inches) / total, 4.1 / 9.4, row_inches * 0.97 / total)
                    axes = figure.add_axes(box)
                    axes.imshow(strip, interpolation="nearest", aspect="auto")
                    axes.set_axis_off()
                    word = epoch if epoch == "all" else f"ep. {epoch}"
                    y = (top - row_inches / 2) / total
                    figure.text(left - 0.006, y, word, ha="right", va="center", fontsize=8.5)
                    top -= row_inches
                top -= 0.42
        return png(figure)


def _decode(picture: bytes) -> np.ndarray:
    return mpl.image.imread(io.BytesIO(picture), format="png")


CLASSES = 30
"""Rows of the class figure: of more classes, those on which the entries differ most are shown."""


def classes(entries: Entries, finals: Finals, names: Sequence[str]) -> bytes | None:
    """Accuracy per class and entry; colour is the difference to the reference, where there is one.

    Means over seeds.
    """
    known = {
        r.label: np.mean([rows[-1]["class_accuracy"] for rows in by_seed.values()], axis=0)
        for r in entries
        if (by_seed := finals.get(r.label))
    }
    if not known:
        return None
    values = 100 * np.stack(list(known.values()), axis=1)  # (classes, entries)
    count = len(values)
    names = list(names) if len(names) == count else [f"class {i}" for i in range(count)]
    if count > CLASSES:
        shown = np.sort(np.argsort(-np.ptp(values, axis=1), kind="stable")[:CLASSES])
        values, names = values[shown], [names[i] for i in shown]
    reference = entries[0].reference
    relative = reference in known and len(known) > 1
    base = values[:, [list(known).index(reference)]] if relative else 0.0
    colored = values - base
    limit = max(5.0, float(np.abs(colored).max())) if relative else 100.0
    with mpl.rc_context({**RC, "axes.grid": False}):
        figure, (axes,) = panels(max(5.5, 2.6 + 0.72 * len(known)), 1.9 + 0.33 * len(names))
        image = axes.imshow(
            colored, aspect="auto", cmap="PuOr" if relative else "Blues",
            vmin=-limit if relative else 0, vmax=limit,
        )  # fmt: skip
        for (i, j), value in np.ndenumerate(values):
            light = np.dot(image.to_rgba(colored[i, j])[:3], (0.2126, 0.7152, 0.0722)) > 0.45
            axes.text(
                j, i, f"{value:.0f}", ha="center", va="center", fontsize=9.5,
                color="black" if light else "white",
            )  # fmt: skip
        axes.set_xticks(
            range(len(known)), list(known), rotation=40, ha="right", rotation_mode="anchor"
        )
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title("Test accuracy of each class (%)")
        bar = figure.colorbar(image, ax=axes, pad=0.02, fraction=0.05)
        bar.outline.set_visible(False)
        bar.set_label(f"difference to {reference} (points)" if relative else "accuracy (%)")
        return png(figure)


def panels(
    width: float, height: float, *, wide: int = 1, narrow: int = 0
) -> tuple[Figure, list[Axes]]:
    """Panels of that height: first the wide ones, then the narrow ones in rows of two."""
    rows = wide + math.ceil(narrow / 2)
    figure = Figure((width, rows * height), dpi=DPI, layout="constrained")
    grid = figure.add_gridspec(rows, 2)
    places = [grid[i, :] for i in range(wide)]
    places += [grid[wide + i // 2, i % 2] for i in range(narrow)]
    return figure, [figure.add_subplot(place) for place in places]


def png(figure: Figure) -> bytes:
    """Without the date and the version that matplotlib would put in: same data, same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
