"""budgets.py: what a number of trainings buys, from rows written by hand."""

import io
from pathlib import Path
from typing import Any

import pytest
from hand import Hand
from rich.console import Console

from autoaug_ray.report import budgets
from autoaug_ray.report.budgets import Cut
from autoaug_ray.report.write import write


def searched(root: Path, accuracies: list[float], **search: Any) -> Hand:
    """`none` takes 10 s; the search has trials of 8 s each and a final training of 10 s."""
    grid = {"magnitude": {"grid": list(range(1, len(accuracies) + 1))}, **search}
    hand = Hand(root, methods={"none": None, "randaugment": grid})
    hand.finals("none", 0.60, 0.61, 0.62)
    for i, accuracy in enumerate(accuracies):
        hand.run(
            "randaugment", "search", accuracy=accuracy, seconds=(8.0,), index=i,
            choices={"magnitude": i + 1},
        )  # fmt: skip
    best = max(range(len(accuracies)), key=lambda i: accuracies[i])
    hand.finals("randaugment", 0.70, 0.71, 0.72, choices={"magnitude": best + 1})
    return hand


def test_the_first_trials_that_fit_are_counted_by_hand(tmp_path: Path) -> None:
    """10 trials: 9.0 in all. (2 x 1.05 - 1) / 0.8 = 1.4 and (5 x 1.05 - 1) / 0.8 = 5.3 trials."""
    results = searched(tmp_path, [0.1, 0.2, 0.3, 0.9, 0.5, 0.6, 0.7, 0.4, 0.3, 0.2]).results()
    none, search = budgets.lines(results)
    assert search.entry.relative_cost == pytest.approx(9.0)
    assert none.cells == ["61.00\u00a0±\u00a01.00"] * 4 and none.cuts == {}
    assert search.cuts == {2: Cut(1, 10, False), 5: Cut(5, 10, True)}
    accuracy = "71.00\u00a0±\u00a01.00"
    assert search.cells == ["-", "?", accuracy + budgets.CUT, accuracy]
    sentence, advice = budgets.verdicts(budgets.lines(results))
    assert "1 of 10 trials fit into 2, and choose another setting" in sentence
    assert "5 of 10 trials fit into 5, and choose what all of them choose" in sentence
    assert "the test set has chosen" in advice


def test_trials_that_depend_on_each_other_are_not_cut(tmp_path: Path) -> None:
    hand = searched(tmp_path, [0.1, 0.9] * 5, search={"scheduler": "asha"})
    _, search = budgets.lines(hand.results())
    assert search.cuts == {} and search.cells[:3] == ["-", "-", "-"]


def test_where_all_is_cheap_nothing_is_shown(tmp_path: Path) -> None:
    assert budgets.lines(searched(tmp_path, [0.5]).results()) == []
    assert budgets.verdicts([]) == []
    assert "What a budget buys" not in write(searched(tmp_path / "b", [0.5]).results()).read_text()


def test_the_reports_hold_the_table(tmp_path: Path) -> None:
    results = searched(tmp_path, [0.1, 0.2, 0.3, 0.9, 0.5, 0.6, 0.7, 0.4, 0.3, 0.2]).results()
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(budgets.table(results, budgets.lines(results)))
    assert "10 trainings" in console.export_text()
    page = write(results).read_text()
    assert "What a budget buys" in page and f"71.00\u00a0±\u00a01.00{budgets.CUT}" in page
