"""Figures and their labels, from rows written by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hand import Hand
from matplotlib.figure import Figure

from autoaug_ray.report import figures, label_placement


@pytest.fixture
def hand(tmp_path: Path) -> Hand:
    return Hand(tmp_path)


@pytest.mark.parametrize("seed", range(4))
def test_labels_do_not_overlap(seed: int) -> None:
    rng = np.random.default_rng(seed)
    figure = Figure((9, 5.6), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    points = {f"entry number {i}": (float(rng.normal()), float(rng.normal())) for i in range(12)}
    for point in points.values():
        axes.plot(*point, "o")
    axes.margins(0.15)
    boxes = list(label_placement.beside_points(figure, axes, points, []).values())
    frame = axes.get_window_extent()
    for i, box in enumerate(boxes):
        assert label_placement.overlap(box, frame) > 0.9 * box.width * box.height
        assert all(label_placement.overlap(box, other) == 0 for other in boxes[:i])


def test_apart() -> None:
    assert label_placement.apart([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])
    assert label_placement.apart([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])
    assert label_placement.apart([0.0, 0.0, 0.0], 0.1) == pytest.approx([0.02, 0.12, 0.22])
    rng = np.random.default_rng(0)
    for _ in range(50):
        wanted = sorted(rng.uniform(0, 1, 9))
        out = np.array(label_placement.apart(wanted, 0.08))
        assert (np.diff(out) > 0.08 - 1e-9).all() and out.min() > 0.01 and out.max() < 0.99


def test_true_displacement_equals_a_simulation() -> None:
    xy = np.random.default_rng(0).uniform(-6, 6, (400_000, 2))
    assert figures.true_displacement(6) == pytest.approx(np.hypot(*xy.T).mean(), rel=3e-3)


def test_series_is_mean_and_range_over_the_seeds() -> None:
    rows = {s: [{"epoch": e, "x": 10.0 * s + e} for e in (1, 2)] for s in (0, 1, 2)}
    out = figures.series(rows, lambda row: row["x"])
    assert out is not None and out.varies()
    assert (out.mean.tolist(), out.low.tolist(), out.high.tolist()) == ([11, 12], [1, 2], [21, 22])
    assert figures.series(rows, lambda row: None) is None
    assert figures.series({}, lambda row: 1.0) is None


def test_controls_share_the_colour_of_their_entry(hand: Hand) -> None:
    look = figures.styles(hand.results().entries)
    assert look["bilevel learn:off"].color == look["bilevel"].color
    assert look["bilevel learn:off"].hollow and not look["bilevel"].hollow
    assert len({look[k].color for k in ("none", "bilevel", "randaugment")}) == 3


def test_an_untested_class_is_a_dash_and_in_no_mean(
    hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    original = figures.Axes.text

    def spy(self: Any, x: float, y: float, text: str, **more: Any) -> Any:
        written.append(text)
        return original(self, x, y, text, **more)

    monkeypatch.setattr(figures.Axes, "text", spy)
    for label, share in (("none", 0.5), ("bilevel", 0.75)):
        hand.finals(label, share, more={"class_accuracy": [share, None, 1.0]})
    results = hand.results()
    macro = {r.label: r.macro_accuracy_mean for r in results.entries}
    assert (macro["none"], macro["bilevel"]) == (0.75, 0.875)
    assert figures.classes(results.entries, results.finals, "abc") is not None
    assert sorted(written) == ["-", "-", "100", "100", "50", "75"]


def test_many_classes(hand: Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 classes: those on which the entries differ most are shown, in order and with names."""
    shown: list[str] = []
    original = figures.Axes.set_yticks

    def spy(self: Any, ticks: Any, labels: Any = None, **more: Any) -> Any:
        shown.extend(labels or [])
        return original(self, ticks, labels, **more)

    monkeypatch.setattr(figures.Axes, "set_yticks", spy)
    hand.finals("none", 0.5)
    hand.finals("bilevel", 0.5)
    results = hand.results()
    finals = results.finals
    same = [0.5] * 100
    finals["none"][0][-1]["class_accuracy"] = same
    finals["bilevel"][0][-1]["class_accuracy"] = [0.5 + (i % 3 == 0) * 0.3 for i in range(100)]
    png = figures.classes(results.entries, finals, [f"c{i}" for i in range(100)])
    assert png is not None
    assert shown == [f"c{i}" for i in range(0, 90, 3)]
