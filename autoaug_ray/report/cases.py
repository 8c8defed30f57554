"""What holds across the cases of a study: who is better throughout, not in one case only.

A case is a study of its own with its own folder and page. Across them entries are compared by
their ranks, as Demsar (JMLR 2006) suggests for classifiers over several data sets.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from rich.text import Text

from autoaug_ray.maths.statistics import BLOCKS, ENOUGH, LEVEL, Ranking, in_per_cent, rank
from autoaug_ray.report import compare, cost_sentences
from autoaug_ray.report.cost_sentences import number
from autoaug_ray.report.results import EntryResult, StudyResults
from autoaug_ray.report.terminal import Columns

INDEPENDENT = 5
"""Cases from which on a case is a block; with fewer, a block is a seed of a case."""


@dataclass(frozen=True)
class Across:
    """What the cases hold, and what may be said of them together."""

    cases: Sequence[StudyResults]
    entries: tuple[EntryResult, ...]
    """Every entry in order of appearance, as the first case that has it holds it."""
    control: str
    """The entry that all others are held against in rank."""
    ranking: Ranking | None
    """None with too few blocks or entries."""
    by_case: bool
    """Whether a block is a case, by its mean over the seeds, or else a seed of a case."""
    blocks: int
    """The number of blocks, in each of which every ranked entry has finished."""
    left_out: list[str]
    """Entries that some case has no finished training of, which are not ranked."""
    unasked: list[str]
    """Entries that the study's `ranked` does not name."""

    @property
    def labels(self) -> list[str]:
        return [r.label for r in self.entries]

    @property
    def reference(self) -> str:
        return self.entries[0].reference

    def words_for_blocks(self) -> str:
        """How many blocks there are, and what they are."""
        if self.by_case:
            return f"{self.blocks} blocks, which are cases (means over their seeds)"
        return f"{self.blocks} blocks, which are (case, seed) pairs"


def gather(cases: Sequence[StudyResults], control: str | None = None) -> Across:
    """What holds across the cases.

    `control` is a label; without one it is the first entry that learned something, or else the
    reference. Where the study says which entries are `ranked`, it is one of these.
    """
    entries: dict[str, EntryResult] = {}
    for case in cases:
        entries |= {label: r for label, r in case.by_label.items() if label not in entries}
    asked = next((case.study.ranked for case in cases if case.study.ranked), tuple(entries))
    if control is None:
        learned = [label for case in cases for label in compare.learned_mixes(case)]
        learned += [r.control_of for r in entries.values() if r.control_of]
        candidates = [label for label in (*learned, cases[0].study.reference) if label in asked]
        control = next(iter(candidates), asked[0])
    if control not in entries:
        raise ValueError(f"control is {control!r}, which is no entry of {list(entries)}")

    wanted = [label for label in entries if label in asked]
    ranked = [label for label in wanted if all(_seeds(case, label) for case in cases)]
    by_case = len(cases) >= INDEPENDENT
    blocks = _blocks(cases, ranked, by_case)
    enough = len(blocks) >= BLOCKS and len(ranked) >= 3 and control in ranked
    return Across(
        cases=cases,
        entries=tuple(entries.values()),
        control=control,
        ranking=rank(blocks, control) if enough else None,
        by_case=by_case,
        blocks=len(blocks),
        left_out=[label for label in wanted if label not in ranked],
        unasked=[label for label in entries if label not in asked],
    )


def _seeds(case: StudyResults, label: str) -> dict[int, float]:
    """seed -> test accuracy [0, 1] of an entry's whole final trainings."""
    entry = case.by_label.get(label)
    return {} if entry is None else entry.by_seed


def _blocks(
    cases: Sequence[StudyResults], labels: Sequence[str], by_case: bool
) -> list[dict[str, float]]:
    """Accuracies [0, 1] by entry; only seeds that all of the entries have finished."""
    out = []
    for case in cases:
        by_label = {label: _seeds(case, label) for label in labels}
        seeds = sorted(set.intersection(*map(set, by_label.values()))) if by_label else []
        blocks = [{label: by_label[label][seed] for label in labels} for seed in seeds]
        if by_case and blocks:
            blocks = [{label: fmean(b[label] for b in blocks) for label in labels}]
        out += blocks
    return out


def table(found: Across) -> Columns:
    """For the terminal: entries x cases, or cases x entries where there are more of them."""
    spread = len(found.cases) < 5
    caption = (
        f"Test accuracy in %, mean{' ± standard deviation' * spread} over seeds; bold: the highest "
        f"mean of the case; * distinguishable from {found.reference} in that case after Holm's "
        "correction."
    )
    if found.ranking is not None:
        caption += f" Rank: mean over {found.words_for_blocks()}; 1 is best."
    grid: list[list[str | Text]] = []
    for line in lines(found):
        texts = [(cell.text if spread else cell.short, cell.best) for cell in line.cells]
        cells = [Text(text, "bold") if best else text for text, best in texts]
        grid.append(["  " * bool(line.entry.control_of) + line.label, *cells, line.rank])
    head = ["method", *(case.name for case in found.cases), "rank"]
    if len(found.cases) > len(found.entries):  # terminals are higher than wide
        names, *grid = [list(column) for column in zip(*grid, strict=True)]
        grid = [[case, *cells] for case, cells in zip(head[1:], grid, strict=True)]
        head = ["case", *(str(name).strip() for name in names)]
    return Columns(head, grid, caption)


def verdicts(found: Across) -> list[str]:
    """Short sentences: what holds across the cases, and what does not."""
    out = [_wins(found, label) for label in _interesting(found)]
    out += _without_search(found)
    out += _friedman(found)
    if found.left_out:
        out.append(
            f"Not ranked, because some case has no finished training of it: "
            f"{', '.join(found.left_out)}."
        )
    if found.unasked:
        out.append(f"Not ranked, because the study says which are: {', '.join(found.unasked)}.")
    for case in found.cases:
        missing = sum(len(r.missing_seeds) for r in case.entries)
        if missing:
            out.append(f"{case.name}: {missing} final trainings are missing.")
    return out


def _interesting(found: Across) -> list[str]:
    learned = [label for case in found.cases for label in compare.learned_mixes(case)]
    wanted = {found.control, *learned} - {found.reference}
    return [label for label in found.labels if label in wanted]


def _wins(found: Across, label: str) -> str:
    """In which cases an entry beats the reference, and where it is the best of all."""
    names: dict[str, list[str]] = {
        "better": [], "worse": [], "not distinguishable": [], "too few seeds to tell": [],
    }  # fmt: skip
    best = []
    for case in found.cases:
        if not _seeds(case, label):
            continue
        if compare.most_accurate(case.entries) is case.by_label[label]:
            best.append(case.name)
        c, p = compare.against_reference(case.entries)[label]
        names[c.side(p) if c.n >= ENOUGH else "too few seeds to tell"].append(case.name)
    count = sum(map(len, names.values()))
    parts = [
        f"{word} in {len(which)} ({', '.join(which)})" for word, which in names.items() if which
    ]
    highest = f"{len(best)} ({', '.join(best)})" if best else "none"
    if not parts:
        return f"{label} has no finished training in any case."
    return (
        f"{label} against {found.reference}, each case with Holm's correction, of {count} "
        f"case{'' if count == 1 else 's'}: {'; '.join(parts)}. It has the highest mean in "
        f"{highest}."
    )


def _without_search(found: Across) -> list[str]:
    """A learned mix against the same mix without a search: the sign of the difference by case."""
    signs: dict[tuple[str, str], list[float]] = {}
    for case in found.cases:
        for label in compare.learned_mixes(case):
            for plain in compare.equal_mixes_of(case, label):
                x, y = _seeds(case, label), _seeds(case, plain)
                if common := x.keys() & y.keys():
                    d = fmean(x[s] - y[s] for s in common)
                    signs.setdefault((label, plain), []).append(100 * d)
    return [
        f"{label} minus its search-free mix {plain}: "
        f"{', '.join(f'{d:+.2f}' for d in differences)} points by case; above zero in "
        f"{sum(d > 0 for d in differences)} of {len(differences)}."
        for (label, plain), differences in signs.items()
    ]


def _friedman(found: Across) -> list[str]:
    """What Friedman's test and the comparisons with the control say, or why none was made."""
    r = found.ranking
    if r is None:
        ranked = len(found.labels) - len(found.left_out) - len(found.unasked)
        why = f"there are {found.words_for_blocks()}, in which every entry has finished"
        if ranked < 3:
            why = f"only {ranked} entries have finished in every case, and it compares 3 or more"
        elif found.control in found.left_out:
            why = f"{found.control} has not finished in every case"
        return [f"No test of the ranks was made: {why}. It takes {BLOCKS} blocks."]
    out = []
    k = len(r.mean_ranks)
    test = f"Friedman's test of {k} entries in {found.words_for_blocks()}: "
    test += "all ties" if math.isnan(r.statistic) else f"chi-square {r.statistic:.2f}"
    test += f", {k - 1} degrees of freedom, p = {_p(r.p_value)}"
    if r.rejected():
        out.append(f"{test}. The entries are not all the same.")
        parts: dict[str, list[str]] = {
            "better than": [], "worse than": [], "not distinguishable from": [],
        }  # fmt: skip
        control = r.mean_ranks[r.control]
        for name, p in r.against_control.items():
            side = "worse than" if control > r.mean_ranks[name] else "better than"
            parts["not distinguishable from" if p >= 1 - LEVEL else side].append(
                f"{name} (rank {r.mean_ranks[name]:.2f}, p = {_p(p)})"
            )
        words = [f"{side} {', '.join(names)}" for side, names in parts.items() if names]
        out.append(
            f"{r.control} (mean rank {control:.2f}) by rank, with Holm's correction for "
            f"{len(r.against_control)} comparisons: {'; '.join(words)}."
        )
    else:
        out.append(
            f"{test}. No difference between the entries was found, so no entry is held against "
            f"{r.control}."
        )
    if not found.by_case:
        out.append(
            f"Seeds of one case are not independent datasets: they share their test images. With "
            f"fewer than {INDEPENDENT} cases there is nothing else to rank in, and the p-values of "
            "the ranks are smaller than they ought to be."
        )
    if found.blocks <= 10:
        out.append(
            f"With {found.blocks} blocks the chi-square of Friedman's test is a rough "
            "approximation."
        )
    return out


def _p(p: float) -> str:
    return f"{p:.1e}" if p < 1e-3 else f"{p:.3f}"


@dataclass(frozen=True)
class Cell:
    """An entry in one case."""

    value: float | None = None
    """Mean test accuracy in per cent."""
    text: str = "-"
    short: str = "-"
    """`text` without the standard deviation."""
    cost_value: float | None = None
    cost: str = "-"
    best: bool = False
    """Whether no other entry of the case has a higher mean."""


@dataclass(frozen=True)
class Line:
    """An entry in all cases."""

    entry: EntryResult
    cells: list[Cell]
    rank_value: float | None

    @property
    def label(self) -> str:
        return self.entry.label

    @property
    def rank(self) -> str:
        return number(self.rank_value)


def lines(found: Across) -> list[Line]:
    """The lines of the table, one per entry."""
    columns = [_column(case) for case in found.cases]
    return [
        Line(
            entry,
            [column.get(entry.label, Cell()) for column in columns],
            found.ranking.mean_ranks.get(entry.label) if found.ranking else None,
        )
        for entry in found.entries
    ]


def _column(case: StudyResults) -> dict[str, Cell]:
    """label -> cell, of the entries of a case that have finished."""
    family, best = compare.against_reference(case.entries), compare.most_accurate(case.entries)
    stars = {label: "*" for label, (c, p) in family.items() if c.distinguishable(p)}
    return {
        r.label: Cell(
            value=100 * r.test_accuracy_mean,
            text=in_per_cent(r.test_accuracy_mean, r.test_accuracy_sd) + stars.get(r.label, ""),
            short=in_per_cent(r.test_accuracy_mean) + stars.get(r.label, ""),
            cost_value=r.relative_cost,
            cost=cost_sentences.cost(r),
            best=r is best,
        )
        for r in case.entries
        if r.test_accuracy_mean is not None
    }
