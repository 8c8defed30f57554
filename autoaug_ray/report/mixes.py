"""The report's pictures of mixed images, of uneven classes, and over several cases.

`compare` defines what a mix is and how the classes are ordered.
"""

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullLocator

from autoaug_ray.maths.statistics import Ranking
from autoaug_ray.report import compare, label_placement
from autoaug_ray.report.compare import Entries, Order
from autoaug_ray.report.figures import GREY, RC, Style, panels, round_ticks, styles
from autoaug_ray.report.runs import Finals, Row, Searches
from autoaug_ray.report.sentences import PHASES

KINDS = {
    "identity": "#c9c9c9", "fixed": "#c7a6d8", "local": "#7db8e0", "transfer": "#f2b368",
    "own": "#9ccf9c",
}  # fmt: skip
PHASE_COLORS = {
    "caption": "#44AA99", "invert": "#117733", "generate": "#E69F00", "search": "#CC79A7",
    "final": "#0072B2", "eval": "#99b8cc", "warm_up": "#D55E00", "other": "#d0d0d0",
}  # fmt: skip
FEW = 30
"""Classes that have room for a name each; more are shown by rank, and in groups."""
GROUPS = 10


def frequency(
    entries: Entries, finals: Finals, chosen: Sequence[str], names: Sequence[str] = ()
) -> Figure | None:
    """Training images per class, and below them the test accuracy per class of some entries."""
    ranked = compare.order(
        (rows[-1] for by_seed in finals.values() for rows in by_seed.values()), names
    )
    found = {
        label: np.stack(list(by_seed.values()))  # (seeds, classes)
        for label in chosen
        if (by_seed := compare.class_accuracies(finals, label))
    }
    if ranked is None or ranked.even() or not found:
        return None
    style, count = styles(entries), len(ranked.counts)
    ranks = np.arange(1, count + 1)
    with mpl.rc_context(RC):
        figure = Figure((9.2, 6.2), dpi=110, layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
        above.bar(ranks, ranked.counts, width=0.8, color="#b8c4cc")
        above.set_title("Training images per class")
        above.set_ylabel("images")
        if ranked.counts.max() > 10 * ranked.counts.min():
            above.set_yscale("log")
        _count_ticks(above.yaxis, ranked.counts)
        for j, (label, values) in enumerate(found.items()):
            values = 100 * values
            aside = j - (len(found) - 1) / 2
            if count <= FEW:  # side by side within the class
                x = ranks + aside * 0.8 / len(found)
            else:
                below.plot(ranks, values.mean(0), ".", color=style[label].color, alpha=0.3, ms=4)
                parts = np.array_split(ranks - 1, GROUPS)
                values = np.stack([values[:, part].mean(1) for part in parts], axis=1)
                x = np.array([part.mean() + 1 for part in parts]) + aside * count / GROUPS * 0.1
            mean, low, high = values.mean(0), values.min(0), values.max(0)
            alone: dict[str, Any] = {"ls": ""} if count <= FEW else {}
            _ranges(below, x, mean, low, high, style[label], lw=1.3, label=label, **alone)
        below.set_title("Test accuracy per class")
        below.set_ylabel("accuracy (%)")
        _rank_axis(below, ranked)
        if count <= FEW:
            for edge in ranks[:-1] + 0.5:
                below.axvline(edge, color="#eeeeee", lw=1, zorder=0)
            below.grid(axis="x", visible=False)
            above.grid(axis="x", visible=False)
        figure.legend(*below.get_legend_handles_labels(), loc="outside lower center", ncols=4)
        return figure


def _ranges(
    axes: Axes, x: Any, y: Any, low: Any, high: Any, style: Style, *, lw: float, **look: Any
) -> None:
    """An entry's marks, each with a line from low to high; hollow and dashed for a control."""
    color, marker, hollow = style
    axes.vlines(x, low, high, color=color, lw=lw, alpha=0.6)
    face = "white" if hollow else color
    look = {"ls": "--" if hollow else "-", "ms": 6, "mew": 1.5} | look
    axes.plot(x, y, marker=marker, color=color, mfc=face, **look)


def mixture(
    entries: Entries,
    finals: Finals,
    chosen: Iterable[str],
    names: Sequence[str] = (),
) -> Figure | None:
    """alpha by class as stacked bars, one panel per entry: mean over seeds, and every seed."""
    mixed = compare.tables(finals)
    wanted = set(chosen)
    shown = [r.label for r in entries if r.label in wanted & set(mixed)]
    if not shown:
        return None
    with mpl.rc_context({**RC, "axes.grid": False}):
        figure, all_axes = panels(9.2, 3.6, wide=len(shown))
        kinds: list[str] = []
        for axes, label in zip(all_axes, shown, strict=True):
            rows = list(mixed[label].values())
            ranked = compare.order(rows, names)
            kinds += [k for k in rows[0]["kinds"] if k not in kinds]
            _bars(axes, rows, ranked, names)
            n = len(rows)
            axes.set_title(f"{label} ({n} seed{'' if n == 1 else 's'})")
        handles: list[Any] = [Patch(color=_kind(k), label=k) for k in kinds]
        if len(next(iter(mixed[shown[0]].values()))["alpha"]) <= FEW:
            handles.append(Line2D([], [], ls="", marker=".", color="black", label="one seed"))
        else:
            handles.append(Line2D([], [], color="black", lw=0.9, label="lowest to highest seed"))
        handles.append(Line2D([], [], color="black", ls=":", lw=1, label="equal shares"))
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        return figure


def _bars(axes: Axes, rows: Sequence[Row], ranked: Order | None, names: Sequence[str]) -> None:
    """One entry's bars; `rows` are the last ones of its seeds."""
    kinds = rows[0]["kinds"]
    alpha = compare.learned_table(rows, ranked)  # (seeds, classes, kinds)
    mean = alpha.mean(0)
    count = len(mean)
    ranks = np.arange(1, count + 1)
    bottom = np.zeros(count)
    for k, kind in enumerate(kinds):
        axes.bar(ranks, mean[:, k], bottom=bottom, width=0.86, color=_kind(kind), label=kind)
        bottom = bottom + mean[:, k]
    edges = alpha.cumsum(2)[:, :, :-1]  # where one kind ends and the next begins, by seed
    for k in range(len(kinds) - 1):
        # Side by side: the edges of two kinds may overlap.
        x = ranks + 0.86 * ((k + 1) / len(kinds) - 0.5)
        axes.vlines(x, edges[..., k].min(0), edges[..., k].max(0), color="black", lw=0.9)
        if count <= FEW:
            for seed in edges[..., k]:
                axes.plot(x, seed, ".", color="black", ms=4, mew=0)
    for k in range(1, len(kinds)):
        axes.axhline(k / len(kinds), color="black", ls=":", lw=1)
    axes.set_ylim(0, 1)
    axes.set_ylabel("probability")
    if ranked is None:
        names = names if len(names) == count else [f"class {i}" for i in range(count)]
        ranked = Order(np.ones(count), list(names), True)
    _rank_axis(axes, ranked)


def trajectories(searches: Searches, chosen: Sequence[str]) -> Figure | None:
    """alpha over training: a row of panels per entry, one panel per kind, one line per class.

    Means over the seeds of the class of the same rank; colour is the number of training images.
    """
    found = {label: rows for label, rows in compare.learned(searches).items() if label in chosen}
    if not found:
        return None
    columns = max(len(by_seed[0][-1]["kinds"]) for by_seed in found.values())
    with mpl.rc_context(RC):
        figure = Figure((9.2, 0.6 + 2.9 * len(found)), dpi=110, layout="constrained")
        grid = figure.subplots(len(found), columns, squeeze=False, sharey=True)
        everywhere: list[np.ndarray] = []
        drawn: list[tuple[Line2D, float]] = []
        for line, (label, by_seed) in zip(grid, found.items(), strict=True):
            ranked = compare.order(rows[-1] for rows in by_seed)
            epochs = sorted(
                set.intersection(
                    *({row["epoch"] for row in rows if row.get("alpha")} for rows in by_seed)
                )
            )
            alpha = np.stack(
                [
                    compare.learned_table([row for row in rows if row["epoch"] in epochs], ranked)
                    for rows in by_seed
                ]
            )  # (seeds, epochs, classes, kinds)
            counts = ranked.counts if ranked else np.ones(alpha.shape[2])
            everywhere.append(counts)
            for k, axes in enumerate(line):
                if k >= alpha.shape[3]:
                    axes.set_axis_off()
                    continue
                # Rare classes on top: they are what it is about.
                for c, curve in enumerate(alpha.mean(0)[:, :, k].T):
                    marker = "." if len(epochs) == 1 else ""
                    (drawn_line,) = axes.plot(epochs, curve, lw=1, alpha=0.85, marker=marker)
                    drawn.append((drawn_line, float(counts[c])))
                whole = alpha[..., k].mean(2)  # (seeds, epochs): mean over the classes
                axes.plot(epochs, whole.mean(0), color="black", lw=2, label="mean over classes")
                axes.fill_between(
                    epochs, whole.min(0), whole.max(0), color="black", alpha=0.15, lw=0
                )
                axes.set_title(f"{label}: {by_seed[0][-1]['kinds'][k]}", fontsize=10.5)
                axes.set_xlabel("epoch of the search")
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            line[0].set_ylabel("probability")
        counts = np.concatenate(everywhere)
        norm = LogNorm(max(counts.min(), 0.5), max(counts.max(), counts.min() * 1.01, 0.51))
        colors = ScalarMappable(norm, "viridis_r")
        for drawn_line, images in drawn:
            drawn_line.set_color(colors.to_rgba(max(images, 0.5)))  # type: ignore[arg-type]
        if counts.max() > counts.min():
            bar = figure.colorbar(colors, ax=grid.ravel().tolist(), pad=0.01, fraction=0.04)
            bar.set_label("training images of the class")
            bar.outline.set_visible(False)
            _count_ticks(bar.ax.yaxis, counts)
        return figure


def device_hours(entries: Entries) -> Figure | None:
    """Where the device time of each entry went: one stacked bar per entry, the first on top."""
    by_phase = compare.hours(entries)
    if not by_phase:
        return None
    factor, unit = compare.device_unit(entries)
    y = np.arange(len(entries))
    with mpl.rc_context(RC):
        figure, (axes,) = panels(9.2, 1.5 + 0.32 * len(entries))
        left = np.zeros(len(entries))
        for phase, values in by_phase.items():
            width = factor * np.array(values)
            color, name = PHASE_COLORS[phase], PHASES[phase]
            axes.barh(y, width, left=left, height=0.68, color=color, label=name)
            left = left + width
        for i, total in enumerate(left):
            axes.text(float(total), i, f" {total:.3g}", va="center", fontsize=9)
        axes.set_yticks(y, [r.label for r in entries])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(0, 1.08 * float(left.max()))
        axes.set_xlabel(f"{unit}, all seeds and attempts")
        figure.legend(
            *axes.get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(PHASES))
        )
        return figure


def _kind(name: str) -> str:
    return KINDS.get(name, "#9fd3a8")


def _rank_axis(axes: Axes, ranked: Order) -> None:
    count = len(ranked.counts)
    axes.set_xlim(0.4, count + 0.6)
    if not ranked.shared:
        axes.set_xlabel("class, by its rank: from most to fewest training images in each seed")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if count <= FEW:
            axes.set_xticks(range(1, count + 1))
        return
    how = "in their order" if ranked.even() else "from most to fewest training images"
    axes.set_xlabel(f"class, {how}")
    if count <= FEW:
        axes.set_xticks(
            range(1, count + 1), ranked.names, rotation=40, ha="right", rotation_mode="anchor"
        )


def _count_ticks(axis: Any, counts: np.ndarray) -> None:
    """Plain numbers on a linear or logarithmic axis."""
    if axis.get_scale() == "log" or axis.axes.get_label() == "<colorbar>":
        low, high = max(0.5, float(counts.min())), float(counts.max())
        steps = (1, 2, 5) if high < 200 * low else (1,)
        round_ticks(axis, steps, max(1, 0.9 * low), 1.1 * high)


# Over several cases


def critical_difference(ranking: Ranking, style: Mapping[str, Style]) -> Figure:
    """Mean ranks, the best above; below them, each bar joins entries that cannot be told apart."""
    ranks = sorted(ranking.mean_ranks.items(), key=lambda item: item[1])
    groups = ranking.alike()
    with mpl.rc_context(RC):
        figure, (axes,) = panels(9.2, 1.2 + 0.24 * (len(ranks) + len(groups)))
        for row, (label, mean) in enumerate(reversed(ranks)):
            color = style[label].color
            axes.plot([mean], [row], "o", color=color, ms=6)
            axes.annotate(
                f"{label} ({mean:.2f})", (mean, row), (8, 0), textcoords="offset points",
                va="center", fontsize=9.5, color=color,
            )  # fmt: skip
        for row, (low, high) in enumerate(groups):
            axes.plot([low, high], [-1 - row] * 2, color="black", lw=2.5, solid_capstyle="round")
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlim(ranks[0][1] - 0.2, ranks[-1][1] + 0.25 * (ranks[-1][1] - ranks[0][1]) + 0.5)
        axes.set_xlabel("mean rank (1: the most accurate)")
        axes.set_title(f"CD = {ranking.critical_difference:.1f}", fontsize=9.5)
        return figure


class Point(NamedTuple):
    """A figure of one entry in one case."""

    x: float
    y: float
    low: float
    """Equal to y, as is `high`, where there are too few seeds for an interval."""
    high: float


def over_cases(
    curves: Mapping[str, Mapping[str, Sequence[Point]]],
    style: Mapping[str, Style],
    *,
    x_name: str,
    y_name: str,
    ticks: Mapping[float, str],
    log: bool,
    share: bool = False,
) -> Figure | None:
    """One panel per group of curves, one curve per entry.

    `ticks`: what to call the values of x; `share`: y is a probability, drawn from zero on and to
    one scale, so that small changes look small; else zero is where nothing is gained.
    """
    curves = {title: {k: v for k, v in c.items() if v} for title, c in curves.items()}
    curves = {title: c for title, c in curves.items() if c}
    if not curves:
        return None
    height = max(3.4, 1.2 + 0.22 * max(len(c) for c in curves.values()))
    with mpl.rc_context(RC):
        if share:
            figure = Figure((9.2, 3.6), dpi=110, layout="constrained")
            all_axes = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
        else:
            wide = int(len(curves) == 1)
            figure, all_axes = panels(9.2, height, wide=wide, narrow=len(curves) - wide)
        xs = sorted(ticks)
        step = _step(xs, log)
        top = min(1.0, 1.1 * max(p.high for c in curves.values() for v in c.values() for p in v))
        for axes, (title, by_label) in zip(all_axes, curves.items(), strict=True):
            if log:
                axes.set_xscale("log")
            if not share:
                axes.axhline(0, color=GREY, lw=1.2)
            for j, (label, points) in enumerate(by_label.items()):
                move = step((j - (len(by_label) - 1) / 2) * 0.3 / len(by_label))
                x, y, low, high = zip(*points, strict=True)
                _ranges(axes, [move(t) for t in x], y, low, high, style[label], lw=1.2, label=label)
            axes.set_title(title, fontsize=10.5)
            axes.set_xlabel(textwrap.fill(x_name, 30) if share else x_name)
            if axes is all_axes[0] or not share:
                axes.set_ylabel(y_name)
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xticks(xs, [ticks[x] for x in xs])
            if max(map(len, ticks.values())) * len(xs) > 40:
                axes.tick_params(axis="x", rotation=20)
            axes.set_xlim(step(-0.4)(xs[0]), step(0.4)(xs[-1]))
            if share:
                axes.set_ylim(0, top)
            else:
                label_placement.at_ends(
                    axes, {k: v[-1].y for k, v in by_label.items()},
                    {k: v.color for k, v in style.items()}, gap=0.2 / height,
                )  # fmt: skip
        if share:
            named = {
                name: handle
                for axes in all_axes
                for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)
            }
            figure.legend(named.values(), named, loc="outside lower center", ncols=3)
        return figure


def _step(xs: Sequence[float], log: bool) -> Callable[[float], Callable[[float], float]]:
    """step(t) moves a value by t times the smallest gap between two neighbours."""
    if log:
        gap = min((b / a for a, b in zip(xs, xs[1:], strict=False)), default=2.0)
        return lambda t: lambda x: x * gap**t
    gap = min((b - a for a, b in zip(xs, xs[1:], strict=False)), default=1.0)
    return lambda t: lambda x: x + t * gap
