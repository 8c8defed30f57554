"""published.py: a paper's figures beside ours, from rows written by hand."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hand import Hand, MixHand, Page
from rich.console import Console
from scipy import stats

from autoaug_ray.report import cost_figure, figures, published
from autoaug_ray.report.cases import gather
from autoaug_ray.report.results import StudyResults
from autoaug_ray.report.write import write, write_cases
from autoaug_ray.settings.published import Published

BLOCK: dict[str, Any] = {
    "source": "A paper, Table 1",
    "notes": ["none is 61.50 in Table 1 and 55.00 in Table 7."],
    "entries": {
        "none": {"accuracy": 61.5, "cost": 1},
        "bilevel": {"accuracy": 75, "sd": 0.5, "seeds": 8, "cost": 5.3},
        "randaugment": {"accuracy": 80, "cost": 60, "cost_is": "more than", "note": "14 ops"},
    },
    "quoted": {"AutoAugment [resnet32]": {"accuracy": 95.5, "source": "Cubuk et al."}},
}

THEIRS = 0.75 + 0.005 * np.array([1, -1, 1, -1, 1, -1, 1, -1]) * np.sqrt(7 / 8)
"""Eight seeds with the mean and standard deviation that are published of `bilevel`."""
WELCH = stats.ttest_ind([0.80, 0.82, 0.81], THEIRS, equal_var=False).confidence_interval()
BILEVEL = f"+6.00 [{100 * WELCH.low:+.2f}, {100 * WELCH.high:+.2f}]*"


@pytest.fixture
def hand(tmp_path: Path) -> Hand:
    hand = Hand(tmp_path, published=BLOCK)
    hand.finals("none", 0.60, 0.61, 0.62)
    hand.finals("bilevel", 0.80, 0.82, 0.81, seconds=(40.0,))
    hand.finals("bilevel learn:off", 0.5, 0.5, 0.5)
    hand.finals("randaugment", 0.70, 0.71, 0.72, choices={"magnitude": 5})
    return hand


def block(hand: Hand) -> Published:
    assert hand.study.published is not None
    return hand.study.published


def words(hand: Hand) -> str:
    return "\n".join(published.verdicts(hand.results().entries, block(hand)))


def plain(table: Any, width: int = 130) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return " ".join(console.export_text().replace("\u00a0", " ").split())


def changed(hand: Hand, **entries: Any) -> Hand:
    """The same runs beside other published figures."""
    tree = BLOCK | {"entries": entries, "quoted": {}, "notes": ()}
    hand.study = hand.study.model_copy(update={"published": Published.model_validate(tree)})
    return hand


def test_summary_holds_the_difference_and_its_interval(hand: Hand) -> None:
    write(hand.results())
    rows = {r["label"]: r for r in pq.read_table(hand.folder.root / "summary.parquet").to_pylist()}
    none, bilevel, control = (rows[k] for k in ("none", "bilevel", "bilevel learn:off"))
    assert none["published_accuracy"] == pytest.approx(0.615)
    assert (none["published_measure"], none["published_cost"]) == ("micro", 1)
    interval = stats.ttest_1samp([0.60, 0.61, 0.62], 0.615).confidence_interval()
    assert none["published_difference"] == pytest.approx(-0.005)
    assert none["published_half_width"] == pytest.approx((interval.high - interval.low) / 2)
    assert bilevel["published_difference"] == pytest.approx(0.06)
    assert bilevel["published_half_width"] == pytest.approx((WELCH.high - WELCH.low) / 2)
    assert {v for k, v in control.items() if k.startswith("published_")} == {None}


def test_no_run_becomes_foreign_and_nothing_is_said_without_figures(hand: Hand) -> None:
    with_figures = hand.rows()
    assert "other settings" not in hand.words()
    hand.study = hand.study.model_copy(update={"published": None})
    without = hand.rows()
    for label, row in without.items():
        assert row["seeds"] == [0, 1, 2]
        same = {k: v for k, v in row.items() if not k.startswith("published_")}
        assert same == {k: v for k, v in with_figures[label].items() if k in same}
    page = write(hand.results()).read_text()
    assert "ublished" not in page


def test_verdicts(hand: Hand) -> None:
    said = words(hand)
    assert "within it: none; ours below: randaugment. The paper gives no spread" in said
    assert "outside would still be: randaugment." in said
    assert "Welch's 95 % interval, which covers the paper's seeds too: ours above: bilevel." in said
    assert "the widest of these intervals reaches 2.5 points to each side" in said
    assert "randaugment, as published: 14 ops." in said
    assert "The published figure of AutoAugment [resnet32] is from Cubuk et al." in said
    assert "not run here: AutoAugment [resnet32]." in said
    assert said.endswith("Note on the paper: none is 61.50 in Table 1 and 55.00 in Table 7.")
    assert "learn:off" not in said


def test_a_figure_outside_our_interval_may_be_one_training_like_ours(hand: Hand) -> None:
    """Ours 61 ± 1 at 3 seeds: the mean is known to ± 2.5, one more seed would fall within ± 5."""
    said = words(changed(hand, none={"accuracy": 65}))
    assert "ours below: none" in said and "would still be: none of them." in said
    said = words(changed(hand, none={"accuracy": 65, "seeds": 100}))
    assert "ours below: none" in said and "would still be: none." in said
    assert "Had the paper's trainings" not in words(changed(hand, none={"accuracy": 62}))


def test_seeds_that_all_agree_have_an_interval_of_no_width(hand: Hand) -> None:
    said = words(changed(hand, **{"bilevel learn:off": {"accuracy": 51}}))
    assert "ours below: bilevel learn:off" in said
    assert "would still be: bilevel learn:off." in said


def test_two_seeds_have_no_interval(tmp_path: Path) -> None:
    hand = Hand(tmp_path, published=BLOCK)
    hand.finals("none", 0.60, 0.62)
    hand.finals("bilevel", 0.80, 0.82)
    said = words(hand)
    assert (
        "Too few seeds for an interval around the difference (3 are needed): none, bilevel." in said
    )
    assert "Published, but without a finished training here: randaugment." in said
    assert "ours above" not in said and "within it" not in said
    rows = hand.rows()
    assert rows["none"]["published_difference"] == pytest.approx(-0.005)
    assert rows["none"]["published_half_width"] is None
    text = plain(published.table(hand.results(), block(hand)))
    assert "none 61.00 ± 1.41 (2) 61.50 -0.50 1.00 1" in text
    assert "randaugment - 80.00 - - > 60" in text
    assert "Too few seeds" in write(hand.results()).read_text()


def test_terminal_table(hand: Hand) -> None:
    table = published.table(hand.results(), block(hand))
    text = plain(table)
    assert "method test accuracy % published % ours - published cost published cost" in text
    assert "none 61.00 ± 1.00 (3) 61.50 -0.50 [-2.98, +1.98] 1.00 1" in text
    assert f"bilevel 81.00 ± 1.00 (3) 75.00 ± 0.50 (8) {BILEVEL} 4.00 ± 0.00 5.3" in text
    assert "randaugment 71.00 ± 1.00 (3) 80.00 -9.00 [-11.48, -6.52]* 1.00 ± 0.00 > 60" in text
    assert "AutoAugment [resnet32] quoted, not run 95.50 - - -" in text
    assert "Published: A paper, Table 1." in text and "trainings of none" in text
    assert "learn:off" not in text
    costless = changed(hand, none={"accuracy": 61})
    text = plain(published.table(hand.results(), block(costless)))
    assert "cost" not in text.lower()


def test_page(hand: Hand) -> None:
    text = write(hand.results()).read_text()
    section = text.split("Beside the published figures")[1].split("<h2>")[0]
    ran, quoted = section.split("<tbody>")[1:]
    assert ran.count("<tr") == 3 and 'class="quoted"' not in ran
    assert quoted.count(' class="quoted">') == 1 and "quoted, not run" in quoted
    assert '<td data-v="61.5">61.50</td>' in ran  # by which the column is sorted
    assert '<td data-v="60.0">&gt; 60</td>' in ran
    assert BILEVEL in ran
    assert "A paper, Table 1" in section
    for sentence in words(hand).splitlines():
        assert sentence in Page(section).text
    assert "Ours minus published" in text and "Grey and hollow" in text


def test_macro_accuracy_is_compared_with_macro_accuracy(hand: Hand) -> None:
    """Two classes, of which one is always right: (0.61 + 1) / 2 in the mean."""
    changed(hand, none={"accuracy": 80})
    tree = block(hand).model_copy(update={"measure": "macro"})
    hand.study = hand.study.model_copy(update={"published": tree})
    row = hand.rows()["none"]
    assert row["macro_accuracies"] == pytest.approx([0.80, 0.805, 0.81])
    assert row["published_measure"] == "macro"
    assert row["published_difference"] == pytest.approx(0.005)
    text = plain(published.table(hand.results(), block(hand)))
    assert "macro accuracy %" in text and "80.50 ± 0.50 (3) 80.00 +0.50 [-0.74, +1.74]" in text
    assert "Macro accuracy %<small>ours" in write(hand.results()).read_text()


def test_published_points_widen_the_figure(hand: Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[float, float]] = []
    original = figures.Axes.plot

    def spy(self: Any, *arguments: Any, **more: Any) -> Any:
        if more.get("mfc") == "white" and more.get("color") == "#8f8f8f":
            drawn.append(arguments[:2])
        return original(self, *arguments, **more)

    monkeypatch.setattr(figures.Axes, "plot", spy)
    assert cost_figure.accuracy_vs_cost(hand.results().entries) is not None
    assert drawn == [(1, 61.5), (60, 80), (5.3, 75)]
    drawn.clear()
    costless = changed(hand, none={"accuracy": 61})
    assert cost_figure.accuracy_vs_cost(costless.results().entries) is not None
    assert drawn == []


# Several cases

PAPER = {"none": {"accuracy": 52}, "autogenda": {"accuracy": 57, "seeds": 8}}


def make(root: Path, names: list[str], **more: Any) -> list[StudyResults]:
    out = []
    for i, name in enumerate(names):
        figures = {"source": f"Paper {i % 2}", "notes": ["It is odd."], "entries": PAPER, **more}
        hand = MixHand(root / name, case=name, published=figures if i != 1 else None)
        hand.fill({"autogenda": 0.05, "search-free": 0.03}, classes=5, seed=i, noise=0.001)
        out.append(hand.results())
    return out


def test_cases_beside_what_was_published_of_them(tmp_path: Path) -> None:
    quoted = {"GIT [gan]": {"accuracy": 53}}
    cases = make(tmp_path, ["a", "b", "c"], quoted=quoted)
    rows = {case.name: case.by_label for case in cases}
    grid = published.grid(cases)
    assert list(grid) == ["none", "autogenda", "GIT [gan] (quoted, not run)"]
    cells = grid["autogenda"]
    mean = 100 * (rows["c"]["autogenda"].test_accuracy_mean or 0)
    assert cells["c"].figures == f"{mean:.2f} / 57.00"
    assert cells["c"].apart.startswith(f"{mean - 57:+.2f}")
    assert cells["b"].figures.endswith("/ -") and cells["b"].apart == "-"
    text = plain(published.table_over_cases(cases))
    assert f"{mean:.2f} / 57.00" in text and "GIT [gan] (quoted, not run) 53.00 - 53.00" in text
    said = "\n".join(published.verdicts_over_cases(cases))
    differences = [rows[k]["autogenda"].published_difference for k in ("a", "c")]
    assert f"over 2 cases: {100 * np.mean(differences):+.2f} points" in said
    assert said.count("It is odd.") == 1 and said.count("Published figures: Paper 0.") == 1
    assert "leave zero out by chance" not in said
    page = Page(write_cases(gather(cases), tmp_path).read_text()).text
    assert "Beside the published figures" in page and f"{mean:.2f} / 57.00" in page
    assert "Note on the paper: It is odd." in page


def test_many_cases_stand_below_each_other(tmp_path: Path) -> None:
    cases = make(tmp_path, ["a", "b", "c"])
    grid = published.grid(cases)
    assert list(grid) == ["a", "b", "c"] and list(grid["a"]) == ["none", "autogenda"]


def test_sides_are_counted_over_the_cases(tmp_path: Path) -> None:
    entries = {"none": {"accuracy": 52}, "search-free": {"accuracy": 1}}
    cases = make(tmp_path, ["a", "b", "c"], entries=entries)
    said = "\n".join(published.verdicts_over_cases(cases))
    assert "search-free against its published figures, each case by its own 95 % interval: ours " \
        "above in 2 (a, c)." in said  # fmt: skip
    assert "interval covers our seeds only" in said


def test_cases_without_figures_have_no_table(tmp_path: Path) -> None:
    cases = make(tmp_path, ["a", "b"])[1:]
    assert published.grid(cases) == {} and published.verdicts_over_cases(cases) == []
    assert "ublished" not in write_cases(gather(cases), tmp_path).read_text()


def test_notes_alone_are_told_without_a_table(tmp_path: Path) -> None:
    """A published table may be known only by what a text says of it."""
    hand = Hand(tmp_path, published={"source": "A paper", "notes": ["ours is the best of 16"]})
    hand.finals("none", 0.60, 0.61, 0.62)
    assert words(hand) == "Note on the paper: ours is the best of 16."
    page = write(hand.results()).read_text()
    assert "Note on the paper: ours is the best of 16." in page
    assert "Ours - published" not in page
    hand.study = hand.study.model_copy(update={"case": "one"})
    cases = [hand.results()]
    assert published.grid(cases) == {}
    assert "Note on the paper: ours" in write_cases(gather(cases), tmp_path / "all").read_text()


def test_top5_stands_beside_the_papers(tmp_path: Path) -> None:
    entries = {"none": {"accuracy": 61.5, "top5": 89.4}, "bilevel": {"accuracy": 75}}
    hand = Hand(tmp_path, published={"source": "A paper", "entries": entries})
    hand.finals("none", 0.60, 0.61, 0.62, more={"test_top5": 0.9})
    hand.finals("bilevel", 0.70, 0.71, 0.72, more={"test_top5": 0.93})
    results = hand.results()
    assert results.by_label["bilevel"].top5_accuracy_mean == pytest.approx(0.93)
    shown = {line.label: line.top5 for line in published.lines(results, block(hand))}
    assert shown == {"none": "90.00 / 89.40", "bilevel": "93.00 / -"}
    assert "90.00 / 89.40" in plain(published.table(results, block(hand)))
    text = Page(write(results).read_text()).text
    assert "Top-5 accuracy %" in text and "90.00 / 89.40" in text
    other = Hand(tmp_path / "b")  # two classes, and nobody asks
    other.finals("none", 0.60, 0.61, more={"test_top5": 0.9})
    assert "Top-5 accuracy %" not in Page(write(other.results()).read_text()).text
