"""Where the entries of a study stand: which is the cheapest, which are above it, which to use.

These are the comparisons behind `verdict`, which puts them into words. Where a study eliminates
entries, they are made at every look (see `elimination`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autoaug_ray.maths.statistics import Comparison, holm
from autoaug_ray.report.compare import Entries, cheaper, mean_accuracy, paired
from autoaug_ray.report.results import EntryResult, StudyResults


@dataclass(frozen=True)
class Standing:
    """Who is to be used, by what is known; every test is made at the error that was allowed."""

    base: EntryResult
    """The cheapest entry."""
    others: tuple[EntryResult, ...]
    against_base: Mapping[str, Comparison]
    """Label of each of the others -> that entry minus the cheapest."""
    above: tuple[EntryResult, ...]
    """The others that are distinguishably more accurate than the cheapest."""
    best: EntryResult | None
    """The most accurate of those above."""
    ties: Mapping[str, Comparison]
    """Label of each of the others above -> the best minus that entry."""
    use: EntryResult
    family: int
    """How many comparisons with the cheapest are corrected for."""
    error: float
    """The two-sided error of all of them together."""


def standing(
    known: Sequence[EntryResult], results: StudyResults, error: float, out: int = 0
) -> Standing:
    """Who of the entries `known` is to be used; at least one, all with a known cost.

    `error` is that of all comparisons with the cheapest together, of which `out` more have been
    given up: Holm's correction counts them as not told apart, as those that are left are left
    because of their accuracies.
    """
    base = simplest(known, results)
    others = tuple(r for r in known if r is not base)
    found = {r.label: paired(r, base, 1 - error) for r in others}
    family = len(others) + out
    corrected = holm([*(c.p_value for c in found.values()), *[1.0] * out])
    above = tuple(
        r
        for r, p in zip(others, corrected, strict=False)
        if p is not None and p < error and (found[r.label].difference or 0.0) > 0
    )
    if not above:
        return Standing(base, others, found, (), None, {}, base, family, error)
    best = max(above, key=mean_accuracy)
    ties = {r.label: paired(best, r, 1 - error) for r in above if r is not best}
    as_good = [r for r in above if r is best or not told(ties[r.label], error)]
    use = simplest(as_good, results)
    return Standing(base, others, found, above, best, ties, use, family, error)


def told(comparison: Comparison, error: float) -> bool:
    """Whether the two are told apart with an error below this, without a correction."""
    return comparison.p_value is not None and comparison.p_value < error


def candidates(results: StudyResults) -> list[EntryResult]:
    """The entries that may be recommended: all but controls."""
    return [r for r in results.entries if r.control_of is None]


def simplest(entries: Entries, results: StudyResults) -> EntryResult:
    """Among the entries than which no other one is clearly cheaper: the reference, else one that
    neither searches nor learns, else that of the lowest mean cost."""
    cheap = [r for r in entries if not any(cheaper(other, r) for other in entries)]

    def order(r: EntryResult) -> tuple[bool, bool, float]:
        learns = results.study.entry(r.label).first_method.learns
        return r.label != r.reference, learns or bool(r.relative_search_cost), r.relative_cost or 0

    return min(cheap, key=order)


def failed_seeds(results: StudyResults, among: Entries) -> dict[str, tuple[int, ...]]:
    """label -> seeds that will not finish: runs of the entry, or of the one it follows, failed."""
    fallen = {row["label"] for row in results.failures}
    return {
        r.label: r.missing_seeds
        for r in among
        if r.missing_seeds and {r.label, results.study.entry(r.label).first_method.follows} & fallen
    }
