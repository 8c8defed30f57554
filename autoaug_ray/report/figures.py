"""The report's pictures: plain data in, PNG bytes out.

One colour and one marker per entry in all of them; a control has the colour of its learned entry
and is drawn hollow or dashed.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from autoaug_ray.report import label_placement

Row = dict[str, Any]
Finals = Mapping[str, Mapping[int, Sequence[Row]]]
"""label -> seed -> rows by epoch, of whole final trainings."""

GREY = "#555555"
PALETTE = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#999933",
    "#332288", "#44AA99",
)  # fmt: skip
"""Okabe and Ito's, without yellow and black, and four of Tol's: told apart by any eye."""
MARKERS = "osD^vPXph<>d"
STYLE: dict[Any, Any] = {
    "font.size": 10.5, "axes.titlesize": 11.5, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": "#e6e6e6", "axes.axisbelow": True, "legend.frameon": False,
}  # fmt: skip
DPI = 110


class Style(NamedTuple):
    color: str
    marker: str
    hollow: bool


def looks(summary: Sequence[Row]) -> dict[str, Style]:
    """By label. The reference is grey; learned entries come first in the palette."""
    leaders = {row["control_of"] for row in summary if row["control_of"]}
    own = [row["label"] for row in summary if not row["control_of"]]
    own.sort(key=lambda label: label not in leaders)
    others = [label for label in own if label != summary[0]["reference"]]
    out = {label: Style(GREY, "o", False) for label in own}
    for i, label in enumerate(others):
        out[label] = Style(PALETTE[i % len(PALETTE)], MARKERS[(1 + i) % len(MARKERS)], False)
    for row in summary:
        if row["control_of"]:
            out[row["label"]] = out[row["control_of"]]._replace(hollow=True)
    return out


def pareto(summary: Sequence[Row]) -> list[Row]:
    """Entries that no other equals or beats in mean accuracy for less, by rising cost."""
    front: list[Row] = []
    known = [r for r in summary if r["relative_cost"] is not None]
    for row in sorted(known, key=lambda r: (r["relative_cost"], -r["test_accuracy_mean"])):
        if not front or row["test_accuracy_mean"] > front[-1]["test_accuracy_mean"]:
            front.append(row)
    return front


def time_unit(hours: float) -> tuple[float, str]:
    """(factor, name) of the unit in which so many hours are a readable number."""
    if hours < 2 / 60:
        return 3600, "seconds"
    return (60, "minutes") if hours < 2 else (1, "hours")


def accuracy_vs_cost(summary: Sequence[Row]) -> bytes | None:
    """Test accuracy over relative cost, with seeds, intervals and the Pareto front.

    Where a paper gives both of an entry, its figures stand hollow and grey behind ours.
    """
    rows = [r for r in summary if r["relative_cost"] is not None]
    if not rows:
        return None
    look = looks(summary)
    points = {r["label"]: (r["relative_cost"], 100 * r["test_accuracy_mean"]) for r in rows}
    paper = {
        r["label"]: (r["published_cost"], 100 * r["published_accuracy"])
        for r in rows
        if r["published_measure"] == "micro" and r["published_cost"] is not None
    }
    # At two seeds the interval is wider than the figure.
    half = {
        r["label"]: 100 * r["test_accuracy_half_width"] if len(r["seeds"]) > 2 else 0 for r in rows
    }
    bars = [((x, y - half[k]), (x, y + half[k])) for k, (x, y) in points.items()]
    drawn = [*points.values(), *paper.values()]
    seeds = [100 * a for r in rows for a in r["test_accuracies"]]
    ys = [*seeds, *(y for _, y in paper.values())]
    room = max(1.0, 0.4 * (max(seeds) - min(seeds)))
    left, right = min(x for x, _ in drawn) / 1.2, max(x for x, _ in drawn) * 1.6
    front = [points[r["label"]] for r in pareto(summary)]
    corners = [front[0]]
    for x, y in [*front[1:], (right, front[-1][1])]:
        corners += [(x, corners[-1][1]), (x, y)]
    with mpl.rc_context(STYLE):
        figure, (axes,) = panels(9, 5.8)
        for r in rows:
            color, marker, hollow = look[r["label"]]
            x, y = points[r["label"]]
            if half[r["label"]]:
                axes.errorbar(x, y, half[r["label"]], color=color, capsize=4, lw=1.3)
            if there := paper.get(r["label"]):
                axes.plot(*zip((x, y), there, strict=True), ":", color="#b5b5b5", lw=1, zorder=1)
                axes.plot(*there, marker, color="#8f8f8f", mfc="white", ms=8, mew=1.4, zorder=2)
            own = [100 * a for a in r["test_accuracies"]]
            axes.plot([x] * len(own), own, ".", color=color, alpha=0.55, ms=9, mew=0)
            face = "white" if hollow else color
            axes.plot(x, y, marker, color=color, mfc=face, ms=8, mew=1.8, zorder=4)
        axes.plot(*zip(*corners, strict=True), "-", color="#aaaaaa", zorder=1)
        axes.set_xscale("log")
        axes.set_xlim(left, right)
        low, high = axes.get_ylim()
        axes.set_ylim(
            max(low, min(ys) - room, -2), min(high, max(ys) + room, 102)
        )  # a wider bar runs out of the frame
        _nice_ticks(axes.xaxis, left, right, "x")
        axes.set_xlabel(
            f"relative cost: (search + one final training) / one training of "
            f"{summary[0]['reference']} (log scale)"
        )
        axes.set_ylabel("test accuracy (%)")
        _time_axis(axes, rows[0], left, right)
        handles = [
            Line2D([], [], ls="", marker="o", color=GREY, label="mean over seeds"),
            Line2D([], [], ls="", marker="o", color=GREY, mfc="white", label="a control"),
            Line2D([], [], ls="", marker=".", color=GREY, alpha=0.55, ms=9, label="one seed"),
            Line2D([], [], color="#aaaaaa", label="Pareto front"),
        ]
        if any(half.values()):
            bar = Line2D([], [], ls="", marker="|", ms=11, color=GREY, label="95 % interval")
            handles.insert(3, bar)
        if paper:
            handles.append(
                Line2D([], [], ls=":", marker="o", color="#8f8f8f", mfc="white", label="published")
            )
        figure.legend(handles=handles, loc="outside lower center", ncols=6, columnspacing=1.4)
        taken = [*bars, *zip(corners, corners[1:], strict=False), *((p, p) for p in paper.values())]
        label_placement.beside_points(figure, axes, points, taken)
        return png(figure)


def _time_axis(axes: Axes, row: Row, left: float, right: float) -> None:
    """The same cost along the upper edge, in device time."""
    hours = row["training_device_hours"] / row["relative_cost"]
    factor, unit = time_unit(hours * right)
    scale = hours * factor
    above = axes.secondary_xaxis("top", functions=(lambda x: x * scale, lambda t: t / scale))
    _nice_ticks(above.xaxis, left * scale, right * scale, "")
    device = "CPU" if row["device"] == "CPU" else "GPU"
    above.set_xlabel(f"{device}-{unit} of training: search + one final")


def _nice_ticks(axis: Axis, left: float, right: float, suffix: str) -> None:
    steps = (1, 1.5, 2, 3, 5, 7) if right < 20 * left else (1, 3) if right < 1e3 * left else (1,)
    nice = [m * 10.0**e for e in range(-6, 8) for m in steps]
    axis.set_major_locator(FixedLocator([t for t in nice if left <= t <= right]))
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


def strength(summary: Sequence[Row], finals: Finals, true_mean: float | None) -> bytes | None:
    """Delivered displacement and colour change, and the learned spread of every parameter."""
    look = looks(summary)
    delivered = {
        name: {
            label: s
            for label in look
            if (s := series(finals.get(label, {}), lambda row, n=name: row[n])) is not None  # type: ignore[misc]
        }
        for name in ("displacement", "color_change")
    }
    # An entry that delivers nothing is left out.
    delivered = {
        k: {label: s for label, s in curves.items() if s.high.max() > 1e-6}
        for k, curves in delivered.items()
    }
    delivered = {
        k: curves
        for k, curves in delivered.items()
        if curves and (k == "displacement" or any(s.varies() for s in curves.values()))
    }
    spreads = {label: _spreads(finals[label]) for label in look if finals.get(label)}
    spreads = {
        label: s for label, s in spreads.items() if s and any(c.varies() for c in s.values())
    }
    if not delivered:
        return None
    with mpl.rc_context(STYLE):
        figure, all_axes = panels(9.2, 3.7, wide=len(delivered), narrow=len(spreads))
        titles = {
            "displacement": ("Delivered displacement", "mean displacement (pixels)"),
            "color_change": ("Delivered colour change", "mean colour change (0 to 1)"),
        }
        for axes, (name, curves) in zip(all_axes, delivered.items(), strict=False):
            axes.set_title(titles[name][0])
            axes.set_ylabel(titles[name][1])
            ends = {label: _curve(axes, s, look[label]) for label, s in curves.items()}
            if name == "displacement" and true_mean is not None:
                axes.axhline(true_mean, color="black", ls=(0, (8, 4)), lw=1.4)
                ends["the test images"] = true_mean
            axes.set_ylim(bottom=0)
            label_placement.at_ends(axes, ends, {k: v.color for k, v in look.items()})
        for axes, (label, parameters) in zip(
            all_axes[len(delivered) :], spreads.items(), strict=True
        ):
            axes.set_title(f"Learned spread: {label}", fontsize=10.5)
            axes.set_ylabel("std of the parameter")
            colors = dict(zip(parameters, PALETTE, strict=False))
            plain = len(parameters) > 3  # too many for bands
            ends = {
                k: _curve(axes, s, Style(colors[k], "", False), band=not plain)
                for k, s in parameters.items()
            }
            axes.set_ylim(bottom=0)
            label_placement.at_ends(axes, ends, colors)
        return png(figure)


def _spreads(by_seed: Mapping[int, Sequence[Row]]) -> dict[str, Series]:
    names = [k for k in next(iter(by_seed.values()))[-1]["log"] if k.startswith("std/")]
    found = {n: series(by_seed, lambda row, n=n: row["log"].get(n)) for n in names}  # type: ignore[misc]
    return {n.removeprefix("std/"): s for n, s in found.items() if s is not None}


SNR_LIMIT = 1e3
"""With one outer step in an epoch there is no noise to divide by."""


def hypergradient(summary: Sequence[Row], finals: Finals) -> bytes | None:
    """Norm and signal-to-noise of the hypergradient by epoch, where a method logged them."""
    look = looks(summary)
    wanted = {
        "hypergradient_norm": ("Hypergradient norm", "mean norm over the epoch", math.inf),
        "hypergradient_snr": (
            "Signal-to-noise of one outer step", "|mean| / standard deviation", SNR_LIMIT,
        ),
    }  # fmt: skip
    found: dict[str, dict[str, Series]] = {}
    for name, (_, _, limit) in wanted.items():
        for label in look:
            s = series(finals.get(label, {}), lambda row, n=name: row["log"].get(n))  # type: ignore[misc]
            if s is not None and s.high.max() < limit:
                found.setdefault(name, {})[label] = s
    if not found:
        return None
    with mpl.rc_context(STYLE):
        figure, all_axes = panels(9.2, 3.2, wide=0, narrow=len(found))
        for axes, (name, curves) in zip(all_axes, found.items(), strict=True):
            axes.set_title(wanted[name][0])
            axes.set_ylabel(wanted[name][1])
            ends = {label: _curve(axes, s, look[label]) for label, s in curves.items()}
            axes.set_ylim(bottom=0)
            label_placement.at_ends(axes, ends, {k: v.color for k, v in look.items()})
        return png(figure)


def _curve(axes: Axes, s: Series, look: Style, *, band: bool = True) -> float:
    """A curve; dashed for a control, dotted if it never changes, else with its band. Its end."""
    style, width = (":", 1.5) if not s.varies() else ("--" if look.hollow else "-", 2)
    if style == "-" and band:
        axes.fill_between(s.epochs, s.low, s.high, color=look.color, alpha=0.13, lw=0)
    marker = "." if len(s.epochs) == 1 else ""
    axes.plot(s.epochs, s.mean, ls=style, color=look.color, lw=width, marker=marker)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return float(s.mean[-1])


def samples(summary: Sequence[Row], finals: Finals) -> bytes | None:
    """The same training images as each entry augments them: one strip per pictured epoch."""
    strips: dict[str, list[tuple[str, np.ndarray]]] = {}
    for r in summary:
        by_seed = finals.get(r["label"], {})
        rows = [row for row in next(iter(by_seed.values()), []) if row["samples"]]
        if rows and len({row["samples"] for row in rows}) == 1 < len(rows):
            strips[r["label"]] = [("all", _decode(rows[0]["samples"]))]
        elif rows:
            strips[r["label"]] = [(str(row["epoch"]), _decode(row["samples"])) for row in rows]
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
    with mpl.rc_context(STYLE):
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


def classes(summary: Sequence[Row], finals: Finals, names: Sequence[str]) -> bytes | None:
    """Accuracy per class and entry; colour is the difference to the reference, where there is one.

    Means over seeds.
    """
    known = {
        r["label"]: np.mean([rows[-1]["class_accuracy"] for rows in by_seed.values()], axis=0)
        for r in summary
        if (by_seed := finals.get(r["label"]))
    }
    if not known:
        return None
    values = 100 * np.stack(list(known.values()), axis=1)  # (classes, entries)
    count = len(values)
    names = list(names) if len(names) == count else [f"class {i}" for i in range(count)]
    if count > CLASSES:
        shown = np.sort(np.argsort(-np.ptp(values, axis=1), kind="stable")[:CLASSES])
        values, names = values[shown], [names[i] for i in shown]
    reference = summary[0]["reference"]
    relative = reference in known and len(known) > 1
    base = values[:, [list(known).index(reference)]] if relative else 0.0
    colored = values - base
    limit = max(5.0, float(np.abs(colored).max())) if relative else 100.0
    with mpl.rc_context({**STYLE, "axes.grid": False}):
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
