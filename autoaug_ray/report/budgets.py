"""What 1, 2, 5 and 10 trainings of the reference buy: the entries that fit, and what of a search.

An entry fits if its mean cost is no more than the budget, up to `compare.TOLERANCE`. Of a search
whose trials do not depend on each other, the first ones may fit where all of them do not. Which of
these validation would have chosen is known; its test accuracy is known only where the whole search
chose the same one, which was then trained. Nothing here is chosen by the test set: the accuracies
of all entries that fit stand side by side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from autoaug_ray.maths.statistics import in_per_cent
from autoaug_ray.report import compare, cost_sentences
from autoaug_ray.report.results import EntryResult, StudyResults
from autoaug_ray.report.runs import Row
from autoaug_ray.report.terminal import Columns

BUDGETS = (1, 2, 5, 10)
"""In trainings of the reference, search and images included."""
CUT = "†"


class Cut(NamedTuple):
    """The part of a search that fits into a budget."""

    trials: int
    of: int
    same: bool
    """Whether validation chooses the same among these trials as among all of them."""


@dataclass(frozen=True)
class Line:
    entry: EntryResult
    cost: str
    cells: list[str]
    """For each budget; `-` where the entry does not fit."""
    cuts: dict[int, Cut]
    """Budget -> what of its search fits, where the whole does not and at least one trial does."""


def lines(results: StudyResults) -> list[Line]:
    """The entries of known cost, the cheapest first; empty if the second budget buys them all."""
    known = compare.priced(results.entries)
    if not any((r.relative_cost or 0) > BUDGETS[1] * compare.TOLERANCE for r in known):
        return []
    return [_line(results, r) for r in known]


def _line(results: StudyResults, entry: EntryResult) -> Line:
    assert entry.relative_cost is not None and entry.test_accuracy_mean is not None
    accuracy = in_per_cent(entry.test_accuracy_mean, entry.test_accuracy_sd)
    cells, cuts = [], {}
    for budget in BUDGETS:
        cell = "-"
        if entry.relative_cost <= budget * compare.TOLERANCE:
            cell = accuracy
        elif (cut := cut_to(results, entry, budget)) is not None and cut.trials:
            cuts[budget] = cut
            cell = accuracy + CUT if cut.same else "?"
        cells.append(cell)
    return Line(entry, cost_sentences.cost(entry), cells, cuts)


def cut_to(results: StudyResults, entry: EntryResult, budget: float) -> Cut | None:
    """What of an entry's search fits, beside the final training and its images, into a budget.

    The trials are taken in their order, each at its share of the search's work. None if the entry
    has no trials that are independent of each other.
    """
    asked = results.study.entry(entry.label)
    trials = [t for t in results.searches.get(entry.label, ()) if not compare.learns(t[-1])]
    work = [sum(row["work"] or 0.0 for row in rows) for rows in trials]
    cost, search = entry.relative_cost, entry.relative_search_cost
    if not asked.ranges or asked.search.scheduler != "fifo" or not sum(work):
        return None
    if cost is None or search is None:
        return None
    left, n = budget * compare.TOLERANCE - (cost - search), 0
    for one in work:
        left -= search * one / sum(work)
        if left < 0:
            break
        n += 1
    last = [rows[-1] for rows in trials]
    return Cut(n, len(last), bool(n) and _chosen(last[:n]) is _chosen(last))


def _chosen(trials: Sequence[Row]) -> Row:
    """By the rule of `schedule.queue`: the furthest, then the highest validation accuracy."""
    return max(trials, key=lambda row: (row["epoch"], row["val_accuracy"], -row["index"]))


def table(results: StudyResults, shown: Sequence[Line]) -> Columns:
    """The table for the terminal."""
    reference = results.study.reference
    caption = (
        f"Test accuracy in % of what fits into so many trainings of {reference}, search and images "
        f"included; {CUT} with the first trials of its search only; ? these choose a setting that "
        "was never finally trained."
    )
    head = ["method", "cost", *(f"{b} training{'s' * (b > 1)}" for b in BUDGETS)]
    return Columns(head, [[x.entry.label, x.cost, *x.cells] for x in shown], caption)


def verdicts(shown: Sequence[Line]) -> list[str]:
    """A sentence on each search of which a part fits, and one on how to read the table."""
    out = []
    for line in shown:
        parts = [
            f"{cut.trials} of {cut.of} trials fit into {budget}, and choose "
            + ("what all of them choose" if cut.same else "another setting")
            for budget, cut in line.cuts.items()
        ]
        if parts:
            out.append(f"{line.entry.label} takes {line.cost} trainings; {'; '.join(parts)}.")
    if shown:
        out.append(
            "Which of the entries that fit to use is no question for the column's highest number, "
            "which the test set has chosen: the headline goes by intervals."
        )
    return out
