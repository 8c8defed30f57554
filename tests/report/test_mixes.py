"""mixes.py and compare.py: what stands in the axes is what the rows say."""

import dataclasses
import io
from typing import Any

import hand
import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from autoaug_ray.maths.statistics import rank
from autoaug_ray.report import compare, figures, mixes
from autoaug_ray.report.compare import Order
from autoaug_ray.report.mixes import KINDS, PHASE_COLORS, Point
from autoaug_ray.report.results import EntryResult
from autoaug_ray.report.runs import Row
from autoaug_ray.report.sentences import PHASES

IDENTITY_LOCAL = ["identity", "local"]


def final(counts: list[int] | None, accuracy: list[float], alpha: Any = None, **more: Any) -> Row:
    kinds = IDENTITY_LOCAL if alpha is not None else []
    return {
        "class_counts": counts, "class_accuracy": accuracy, "alpha": alpha, "kinds": kinds, **more,
    }  # fmt: skip


def entry(label: str, accuracy: float | None = 0.5, **more: Any) -> EntryResult:
    return hand.entry(label, test_accuracy_mean=accuracy, **more)


def bytes_of(figure: Figure | None) -> np.ndarray:
    assert figure is not None
    return np.asarray(matplotlib.image.imread(io.BytesIO(figures.png(figure))))


# Order


def test_one_order_of_the_classes_keeps_their_names() -> None:
    """Ties keep the classes' own order."""
    out = compare.order([final([5, 20, 5], [0, 0, 0])] * 2, ["a", "b", "c"])
    assert out is not None and out.shared and not out.even()
    assert out.names == ["b", "a", "c"] and out.counts.tolist() == [20, 5, 5]


def test_orders_that_differ_leave_ranks_only() -> None:
    rows = [final([5, 20], [0, 0]), final([30, 7], [0, 0])]
    out = compare.order(rows, ["a", "b"])
    assert out is not None and not out.shared
    assert out.names == ["1", "2"] and out.counts.tolist() == [25, 6]


def test_no_counts_no_order() -> None:
    assert compare.order([final(None, [0.5])]) is None
    assert compare.order([]) is None


def test_accuracy_follows_the_rank_of_the_class_in_its_seed() -> None:
    finals = {
        "none": {
            0: [final([5, 20, 10], [0.1, 0.2, 0.3])],
            1: [final([20, 10, 5], [0.6, 0.5, 0.4])],
            2: [final(None, [0.9, 0.9, 0.9])],
        }
    }
    out = compare.class_accuracies(finals, "none")
    assert {s: v.tolist() for s, v in out.items()} == {0: [0.2, 0.3, 0.1], 1: [0.6, 0.5, 0.4]}
    assert compare.class_accuracies(finals, "other") == {}


def test_thirds() -> None:
    head, tail = compare.thirds(10)
    assert list(range(10))[head] == [0, 1, 2] and list(range(10))[tail] == [7, 8, 9]
    head, tail = compare.thirds(2)
    assert [0, 1][head] == [0] and [0, 1][tail] == [1]


# Figure 3


def test_frequency_shows_counts_and_means_by_rank() -> None:
    finals = {
        "none": {0: [final([5, 20], [0.1, 0.9])], 1: [final([20, 5], [0.7, 0.3])]},
        "mix": {0: [final([5, 20], [0.5, 0.8])]},
        "not shown": {0: [final([5, 20], [0.5, 0.8])]},
    }
    summary = [entry(k) for k in finals]
    figure = mixes.frequency(summary, finals, ["none", "mix"], ["a", "b"])
    assert figure is not None
    above, below = figure.axes
    assert [bar.get_height() for bar in above.patches] == [20, 5]
    curves = {line.get_label(): line for line in below.lines if line.get_label()[0] != "_"}
    assert set(curves) == {"none", "mix"}
    assert curves["none"].get_ydata() == pytest.approx([80, 20])
    assert curves["mix"].get_ydata() == pytest.approx([80, 50])
    # From the lowest to the highest seed.
    low, high = below.collections[0].get_segments()[0][:, 1]
    assert (low, high) == pytest.approx((70, 90))
    assert "in each seed" in below.get_xlabel()
    bytes_of(figure)


def test_frequency_of_many_classes_is_in_groups() -> None:
    counts = list(range(200, 100, -1))
    accuracy = [i / 100 for i in range(100)]
    finals = {"none": {0: [final(counts, accuracy)]}}
    figure = mixes.frequency([entry("none")], finals, ["none"], [str(i) for i in range(100)])
    assert figure is not None
    line = next(line for line in figure.axes[1].lines if line.get_label() == "none")
    assert line.get_ydata() == pytest.approx([4.5 + 10 * i for i in range(10)])
    assert line.get_xdata() == pytest.approx([5.5 + 10 * i for i in range(10)])
    assert len(figure.axes[1].get_xticks()) < 20
    bytes_of(figure)


def test_no_frequency_figure_of_even_classes() -> None:
    finals = {"none": {0: [final([5, 5], [0.1, 0.9])]}}
    assert mixes.frequency([entry("none")], finals, ["none"]) is None
    assert mixes.frequency([entry("none")], {}, ["none"]) is None


def test_interesting() -> None:
    summary = [entry("none", 0.5), entry("a", 0.7), entry("mix", 0.6), entry("b", 0.6)]
    assert compare.interesting(summary, ["mix"]) == ["none", "a", "mix"]
    summary[1] = entry("a", None)
    assert compare.interesting(summary, ["b", "a"]) == ["none", "mix", "b"]
    assert compare.interesting([entry("none", None)], []) == []


# Figure 4


def test_mixture_stacks_means_and_shows_every_seed() -> None:
    finals = {
        "mix": {
            0: [final([5, 20], [0, 0], [[0.2, 0.8], [0.9, 0.1]])],
            1: [final([20, 5], [0, 0], [[0.7, 0.3], [0.4, 0.6]])],
        },
        "none": {0: [final([5, 20], [0, 0])]},
    }
    figure = mixes.mixture([entry("none"), entry("mix")], finals, ["mix", "none"])
    assert figure is not None
    (axes,) = figure.axes
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == pytest.approx([0.8, 0.3, 0.2, 0.7])  # identity of rank 1 and 2, then local
    assert [bar.get_y() for bar in axes.patches] == pytest.approx([0, 0, 0.8, 0.3])
    assert to_hex(axes.patches[0].get_facecolor()) == KINDS["identity"]
    assert to_hex(axes.patches[2].get_facecolor()) == KINDS["local"]
    dots = [line.get_ydata() for line in axes.lines if line.get_marker() == "."]
    assert [list(d) for d in dots] == [pytest.approx([0.9, 0.2]), pytest.approx([0.7, 0.4])]
    segments = axes.collections[0].get_segments()
    assert segments[0][:, 1] == pytest.approx([0.7, 0.9])
    assert segments[1][:, 1] == pytest.approx([0.2, 0.4])
    assert axes.get_title(loc="left") == "mix (2 seeds)"
    bytes_of(figure)


def test_mixture_without_counts_or_without_mixes() -> None:
    table = [[0.2, 0.8], [0.9, 0.1]]
    finals = {"mix": {0: [final(None, [0, 0], table)]}}
    figure = mixes.mixture([entry("mix")], finals, ["mix"], ["a", "b"])
    assert figure is not None
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["a", "b"]
    assert [bar.get_height() for bar in figure.axes[0].patches] == pytest.approx(
        [0.2, 0.9, 0.8, 0.1]
    )
    assert mixes.mixture([entry("mix")], finals, []) is None
    alone = final([5, 20], [0, 0], [[1.0], [1.0]]) | {"kinds": ["identity"]}
    assert compare.tables({"none": {0: [alone]}}) == {}


# Figure 6


def learning(seed: int, counts: list[int], identity: list[list[float]], **more: Any) -> list[Row]:
    """Rows of a search; `identity`: its probability by epoch and class."""
    return [
        final(counts, [], [[p, 1 - p] for p in by_class])
        | {"epoch": epoch, "seed": seed, "val_accuracy": None, **more}
        for epoch, by_class in enumerate(identity, start=1)
    ]


def test_trajectories_are_means_of_the_same_rank() -> None:
    searches = {
        "mix": [
            learning(1, [20, 5], [[0.5, 0.5], [0.8, 0.3], [0.9, 0.1]]),
            learning(0, [5, 20], [[0.5, 0.5], [0.1, 0.6]]),
        ],
        "grid": [learning(0, [5, 20], [[0.5, 0.5]], val_accuracy=0.7)],
    }
    figure = mixes.trajectories(searches, ["mix", "grid"])
    assert figure is not None
    first, second = figure.axes[:2]
    frequent, rare, whole = first.lines
    assert list(frequent.get_xdata()) == [1, 2]  # the epochs that both seeds have
    assert frequent.get_ydata() == pytest.approx([0.5, 0.7])
    assert rare.get_ydata() == pytest.approx([0.5, 0.2])
    assert whole.get_ydata() == pytest.approx([0.5, 0.45])
    assert second.lines[0].get_ydata() == pytest.approx([0.5, 0.3])
    assert frequent.get_color() != rare.get_color()
    assert first.get_title(loc="left") == "mix: identity"
    bytes_of(figure)
    assert mixes.trajectories(searches, []) is None


def test_learned_leaves_out_trials_that_are_chosen_from() -> None:
    searches = {"grid": [learning(0, [5, 20], [[0.5, 0.5]], val_accuracy=0.7)]}
    assert compare.learned(searches) == {}
    searches["grid"] += [learning(3, [5, 20], [[0.5, 0.5]]), learning(1, [5, 20], [[0.5, 0.5]])]
    (found,) = compare.learned(searches).values()
    assert [rows[0]["seed"] for rows in found] == [1, 3]


def test_trajectories_of_even_classes_and_one_epoch() -> None:
    searches = {"mix": [learning(0, [5, 5], [[0.5, 0.4]])]}
    figure = mixes.trajectories(searches, ["mix"])
    assert figure is not None and len(figure.axes) == 2  # no bar of colours
    bytes_of(figure)


# Device-hours


def test_device_hours_are_stacked_by_phase() -> None:
    summary = [
        entry("none", device_hours={"final": 1.0, "eval": 0.5}),
        entry("mix", device_hours={"final": 2.0, "generate": 4.0}),
    ]
    assert list(compare.hours(summary)) == ["generate", "final", "eval"]
    figure = mixes.device_hours(summary)
    assert figure is not None
    bars = figure.axes[0].patches  # by phase, then entry
    assert [(b.get_x(), b.get_width()) for b in bars] == [
        (0, 0), (0, 4), (0, 1), (4, 2), (1, 0.5), (6, 0),
    ]  # fmt: skip
    assert to_hex(bars[1].get_facecolor()) == PHASE_COLORS["generate"].lower()
    assert [t.get_text().strip() for t in figure.axes[0].texts] == ["1.5", "6"]
    assert "CPU-hours" in figure.axes[0].get_xlabel()
    bytes_of(figure)
    assert mixes.device_hours([entry("none")]) is None


def test_every_phase_has_a_name_and_a_colour_of_its_own() -> None:
    from autoaug_ray.store.meter import PHASES as known

    assert list(PHASES) == list(PHASE_COLORS) == list(known)
    assert len(set(PHASE_COLORS.values())) == len(PHASES)


# Over several cases


def blocks(*rows: tuple[float, ...]) -> list[dict[str, float]]:
    return [dict(zip("abc", row, strict=True)) for row in rows]


def looks_of(*names: str) -> dict[str, figures.Style]:
    return figures.styles([entry("none"), *map(entry, names)])


def test_critical_difference_joins_what_cannot_be_told_apart() -> None:
    rows = [(0.9, 0.5 + 0.01 * (i % 2), 0.505) for i in range(30)]
    ranking = rank(blocks(*rows), "a")
    figure = mixes.critical_difference(ranking, looks_of("a", "b", "c"))
    (axes,) = figure.axes
    texts = [t.get_text() for t in axes.texts]
    assert "a (1.00)" in texts
    assert axes.get_title(loc="left") == f"CD = {ranking.critical_difference:.1f}"
    bars = [
        sorted(line.get_xdata())
        for line in axes.lines
        if line.get_color() == "black" and line.get_ydata()[0] < 0
    ]
    assert bars == [pytest.approx([2.5, 2.5])]  # b and c, which share their rank
    bytes_of(figure)


def test_one_bar_joins_all_where_friedman_finds_nothing() -> None:
    """Also where Nemenyi's test would tell two of them apart."""
    ranking = rank(blocks(*[(0.9, 0.5, 0.3)] * 30), "a")
    assert 3 - 1 > ranking.critical_difference
    ranking = dataclasses.replace(ranking, p_value=0.5)
    (axes,) = mixes.critical_difference(ranking, looks_of("a", "b", "c")).axes
    bars = [line for line in axes.lines if line.get_color() == "black" and line.get_ydata()[0] < 0]
    assert [list(bar.get_xdata()) for bar in bars] == [[1, 3]]


@pytest.mark.parametrize("log", [True, False])
def test_over_cases(log: bool) -> None:
    points = [Point(2, 5.0, 4.0, 6.0), Point(16, -1.0, -1.0, -1.0)]
    curves = {"data": {"a": points, "none of it": []}}
    figure = mixes.over_cases(
        curves, looks_of("a"), x_name="shots", y_name="points", ticks={2: "2", 16: "16"}, log=log
    )
    assert figure is not None
    (axes,) = figure.axes
    (curve,) = [line for line in axes.lines if line.get_label() == "a"]
    assert curve.get_ydata() == pytest.approx([5, -1])
    assert curve.get_xdata() == pytest.approx([2, 16])
    assert axes.collections[0].get_segments()[0][:, 1] == pytest.approx([4, 6])
    assert [t.get_text() for t in axes.get_xticklabels()] == ["2", "16"]
    assert axes.get_xscale() == ("log" if log else "linear")
    bytes_of(figure)
    more = {"x_name": "", "y_name": "", "ticks": {}, "log": log}
    assert mixes.over_cases({"data": {"a": []}}, {}, **more) is None


def test_shares_are_drawn_from_zero() -> None:
    """A change from 0.33 to 0.34 must not look like a trend."""
    points = [Point(2, 0.33, 0.33, 0.33), Point(16, 0.34, 0.34, 0.34)]
    figure = mixes.over_cases(
        {"identity": {"a": points}, "local": {"a": points}}, looks_of("a"), x_name="shots",
        y_name="p", ticks={2: "2", 16: "16"}, log=True, share=True,
    )  # fmt: skip
    assert figure is not None
    assert all(axes.get_ylim()[0] == 0 and axes.get_ylim()[1] > 0.34 for axes in figure.axes)
    bytes_of(figure)


def test_a_kind_without_a_colour_still_has_one() -> None:
    assert mixes._kind("new") and Order(np.array([1, 1]), ["a", "b"], True).even()
    assert Order(np.array([820, 819]), ["a", "b"], True).even(), "an even set that was split"
    assert not Order(np.array([820, 700]), ["a", "b"], True).even()
