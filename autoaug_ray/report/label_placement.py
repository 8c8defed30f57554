"""Where a figure's labels go, so that none hides another."""

import math
from collections.abc import Container, Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from autoaug_ray.report.svg import mark

Point = tuple[float, float]


def beside_points(
    figure: Figure, axes: Axes, points: Mapping[str, Point], lines: Iterable[tuple[Point, Point]]
) -> dict[str, Bbox]:
    """A label beside every point, off the other labels, the markers and the upright or level lines.

    Greedy: each takes the candidate place that overlaps least with all that is already there.
    Returns their boxes in pixels.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # what is placed in pixels must not move any more
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    frame = axes.get_window_extent(renderer)
    pixel = {k: axes.transData.transform(p) for k, p in points.items()}
    taken = [Bbox.from_bounds(x - 8, y - 8, 16, 16) for x, y in pixel.values()]
    for line in lines:
        box = Bbox(axes.transData.transform(line))
        taken.append(Bbox.from_extents(box.xmin - 3, box.ymin - 3, box.xmax + 3, box.ymax + 3))
    places: dict[str, Bbox] = {}
    for label in sorted(points, key=lambda k: float(pixel[k][0])):
        x, y = pixel[label]
        note = axes.annotate(
            label, points[label], (0, 0), textcoords="offset points", ha="left", va="bottom",
            zorder=5, path_effects=[withStroke(linewidth=3, foreground="white")],
        )  # fmt: skip
        size = note.get_window_extent(renderer)
        best, least = Bbox.null(), math.inf
        for far in (14, 24, 36, 50, 66, 84):
            for angle in np.radians((0, 35, -35, 180, 145, -145, 60, -60, 90, -90)):
                # The box is on that side of the point, `far` from it.
                dx = far * math.cos(angle) - size.width * (1 - math.cos(angle)) / 2
                dy = far * math.sin(angle) - size.height * (1 - math.sin(angle)) / 2
                box = Bbox.from_bounds(x + dx, y + dy, size.width, size.height)
                outside = size.width * size.height - overlap(box, frame)
                cost = 3 * outside + sum(overlap(box, t) for t in taken) + 0.5 * far
                if cost < least:
                    best, least = box, cost
        note.xyann = ((best.x0 - x) * 72 / figure.dpi, (best.y0 - y) * 72 / figure.dpi)
        taken.append(best)
        places[label] = best
        near = np.clip(pixel[label], best.min, best.max)
        if math.dist(near, pixel[label]) > 20:  # then a thin line says whose label it is
            ends = axes.transData.inverted().transform([near, pixel[label]])
            axes.plot(*ends.T, "-", color="#999999", lw=0.7, zorder=3)
    return places


def overlap(a: Bbox, b: Bbox) -> float:
    """Area that two boxes share."""
    both = Bbox.intersection(a, b)
    return 0.0 if both is None else float(both.width * both.height)


def at_ends(
    axes: Axes,
    ends: Mapping[str, float],
    colors: Mapping[str, str],
    gap: float = 0.066,
    entries: Container[str] = (),
) -> None:
    """Names to the right of the axes at the curves' last values, moved apart where they clash.

    Those that are `entries` can be hidden with the entry.
    """
    low, high = axes.get_ylim()
    names = sorted(ends, key=lambda k: ends[k])
    wanted = [(ends[k] - low) / (high - low) for k in names]
    for name, want, y in zip(names, wanted, apart(wanted, gap), strict=True):
        color = colors.get(name, "black")
        note = axes.annotate(
            name, (1.005, want), (1.03, y), xycoords="axes fraction", textcoords="axes fraction",
            va="center", fontsize=9, color=color, annotation_clip=False,
            arrowprops={
                "arrowstyle": "-", "color": color, "lw": 0.7, "shrinkA": 0, "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )  # fmt: skip
        if name in entries and note.arrow_patch is not None:
            mark(name, note, note.arrow_patch)


def apart(
    wanted: Sequence[float], gap: float, low: float = 0.02, high: float = 0.98
) -> list[float]:
    """Positions at least `gap` apart in [low, high], as close to the rising `wanted` as can be.

    Least squares: isotonic regression of what is wanted less the gaps.
    """
    from scipy.optimize import isotonic_regression

    gaps = gap * np.arange(len(wanted))
    top = max(low, high - (len(wanted) - 1) * gap)
    return list(isotonic_regression(wanted - gaps).x.clip(low, top) + gaps)
