"""Which entries get more seeds, in a study that gives them to those that still matter.

A study with `eliminate: gamma` is looked at after 3, 5, 8, ... seeds (`Study.looks`). After each
look but the last, an entry gets no more seeds if

- another one is distinguishably more accurate; or
- its *chance* is below gamma: the predictive power (`Parts.chance`) of its being told, once all
  seeds have run, to be above the cheapest entry and above the one that would be used now, where
  that is as simple; or
- a training of it failed, as it is not recommended then.

The cheapest entry and the one that would be used now stay as long as any other does, and so do the
controls of an entry that stays and what it follows. Once nothing else stays, the answer is given.

*Use* is said of an entry that is not better in at most 2.5 % of studies, as without elimination:
look k is made at an error of its own (`errors`), and these add up to 5 % two-sided, whatever the
dependence between looks. Giving up for a low chance cannot add to it: it only ever leaves the
cheapest in place (a non-binding futility rule). Of what is given up so, a share of gamma at most
would be told apart at the end, if the flat prior behind the chance were right. The rates over
simulated studies are in `tests/report/test_elimination_rates.py` and the README. AdaStop (Mathieu
et al., TMLR 2024) compares agents by group sequential tests over seeds, too, and stops when all
comparisons are decided; it has no rule of futility, by which most is saved here.

What is looked at is the test accuracy of final trainings, for they keep no validation images. No
setting depends on it, only the number of seeds does. That has its price: the mean of what was given
up is one that stopped low, and the gain of what is to be used is a little too high, more than it is
in any design that recommends what looks best. Intervals are those of repeated looks (Jennison and
Turnbull, JRSS B 1989), which hold whenever one stops.

All of it is a function of the rows on disk with the first so many seeds, in no order of arrival:
whoever asks again, be it to resume or to report, gets the same answer.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from autoaug_ray.config import EARLY, Study
from autoaug_ray.maths.statistics import LEVEL, Comparison, mean_of, spent
from autoaug_ray.methods.sources import parse
from autoaug_ray.report.compare import paired
from autoaug_ray.report.results import EntryResult, StudyResults, collect
from autoaug_ray.report.standing import (
    Standing,
    candidates,
    failed_seeds,
    simplest,
    standing,
    told,
)
from autoaug_ray.store.folder import Folder

Why = Literal["worse", "chance", "failed"]
LOOKS = EARLY[:3]
"""Seeds after which a pilot, of which the test set is closed, is looked at: its answers are given
at a third of the error, so that all looks together have no more (Bonferroni)."""


@dataclass(frozen=True)
class Elimination:
    """An entry that got no more seeds, and what it was compared with at that look."""

    label: str
    seeds: int
    """After so many."""
    why: Why
    comparison: Comparison | None = None
    """That entry minus its rival, with an interval of 95 % by itself; None if it failed."""
    chance: float | None = None
    """None unless that is why."""


@dataclass(frozen=True)
class Course:
    """How far a study has come through its looks."""

    seeds: Mapping[str, tuple[int, ...]]
    """label -> the seeds with which it is to be trained, by what is known now."""
    eliminated: tuple[Elimination, ...]
    look: int
    """The number of seeds of the look that was reached."""
    standing: Standing | None
    """By the entries that had not been eliminated before that look; None if nobody can be used."""
    last_error: float
    """The two-sided error of the last look, be it reached or not."""
    planned: int | None
    """The number of seeds of the last look; None if it was reached."""


def course(results: StudyResults) -> Course:
    """How far the study has come, by what its folder holds of it."""
    study, looks = results.study, results.study.looks
    error = errors(looks, (1 - LEVEL) / (len(LOOKS) if study.dataset.closed_test else 1))
    live = [r.label for r in results.entries]
    seeds: dict[str, tuple[int, ...]] = {}
    out: list[Elimination] = []
    for n in looks:
        at = _first(results, live, n)
        seeds |= dict.fromkeys(live, study.seeds[:n])
        given_up = sum(study.entry(e.label).control_of is None for e in out)
        found = _standing(at, error[n], given_up)
        if n == looks[-1] or waits(at):
            break
        gone = list(_given_up(at, found, n, error))
        stay = _staying(study, live, {e.label for e in gone})
        out += [e for e in gone if e.label not in stay]
        if found is not None and not _open(found, stay):
            break
        live = stay
    last = looks[-1]
    return Course(seeds, tuple(out), n, found, error[last], None if n == last else last)


def only_asked(results: StudyResults) -> StudyResults:
    """The results, of which no seeds are missing that the study no longer asks for."""
    if results.study.eliminate is None:
        return results
    seeds = course(results).seeds
    entries = tuple(
        replace(r, missing_seeds=tuple(s for s in seeds[r.label] if s not in r.seeds))
        for r in results.entries
    )
    return replace(results, entries=entries)


def seeds_wanted(study: Study, folder: Folder) -> Mapping[str, tuple[int, ...]]:
    """label -> the seeds with which the study is to train it, by what the folder holds."""
    if study.eliminate is None:
        return {entry.label: study.seeds for entry in study.entries}
    return course(collect(study, folder)).seeds


def errors(looks: Sequence[int], error: float = 1 - LEVEL) -> dict[int, float]:
    """Number of seeds -> the error of the look at it; they add up to `error`."""
    upto = [spent(n / looks[-1], error) for n in looks]
    return {n: b - a for n, a, b in zip(looks, [0.0, *upto], upto, strict=False)}


def _first(results: StudyResults, labels: Sequence[str], n: int) -> StudyResults:
    """These entries as they stood after the first n seeds."""
    seeds = results.study.seeds[:n]
    entries = tuple(with_seeds(results.by_label[label], seeds) for label in labels)
    return replace(results, entries=entries)


def with_seeds(entry: EntryResult, seeds: Sequence[int]) -> EntryResult:
    """The entry as if it had been asked for these seeds only."""
    accuracies = {s: a for s, a in entry.by_seed.items() if s in seeds}
    costs = {s: c for s, c in entry.cost_by_seed.items() if s in seeds}
    mean = mean_of(list(accuracies.values())) if accuracies else None
    cost = mean_of(list(costs.values())) if costs else None
    return replace(
        entry,
        seeds=tuple(accuracies),
        missing_seeds=tuple(s for s in seeds if s not in accuracies),
        test_accuracies=tuple(accuracies.values()),
        test_accuracy_mean=mean.mean if mean else None,
        test_accuracy_sd=mean.sd if mean else None,
        test_accuracy_half_width=mean.half_width if mean else None,
        cost_seeds=tuple(costs),
        relative_costs=tuple(costs.values()),
        relative_cost=cost.mean if cost else None,
        relative_cost_half_width=cost.half_width if cost else None,
    )


def waits(at: StudyResults) -> bool:
    """Whether a training is still to come; one that failed is not."""
    failed = failed_seeds(at, at.entries)
    return any(r.missing_seeds and r.label not in failed for r in at.entries)


def _standing(at: StudyResults, error: float, out: int) -> Standing | None:
    failed = failed_seeds(at, at.entries)
    known = [r for r in candidates(at) if r.label not in failed and r.relative_cost is not None]
    return standing(known, at, error, out) if known else None


def _given_up(
    at: StudyResults, found: Standing | None, n: int, error: Mapping[int, float]
) -> Iterator[Elimination]:
    """The entries that need no more seeds after the look at n, at which they stand as `found`."""
    yield from (Elimination(label, n, "failed") for label in failed_seeds(at, at.entries))
    gamma, last = at.study.eliminate, at.study.looks[-1]
    if found is None or gamma is None:
        return
    known, family = (found.base, *found.others), found.family
    for r in found.others:
        if r is found.use:
            continue
        worse = [
            c for q in known if q is not r and _told_below(c := paired(r, q), error[n] / family)
        ]
        if worse:
            yield Elimination(r.label, n, "worse", min(worse, key=lambda c: c.difference or 0.0))
            continue
        rivals = {} if r in found.above else {found.base.label: (found.base, error[last] / family)}
        if found.use is not found.base and simplest([found.use, r], at) is found.use:
            rivals[found.use.label] = (found.use, error[last])
        chances = [(_chance(c := paired(r, q), last, alpha), c) for q, alpha in rivals.values()]
        if chances and (least := min(chances, key=lambda pair: pair[0]))[0] < gamma:
            yield Elimination(r.label, n, "chance", least[1], least[0])


def _told_below(c: Comparison, error: float) -> bool:
    return told(c, error) and c.difference is not None and c.difference < 0


def _chance(c: Comparison, n: int, error: float) -> float:
    """That this comparison will tell the first entry to be above the second one at n seeds."""
    if c.parts is None or c.difference is None:
        return 1.0
    return c.parts.chance(c.difference, n, error)


def _open(found: Standing, stay: Sequence[str]) -> bool:
    """Whether an entry stays that may take the place of the one to be used."""
    return any(r.label in stay for r in found.others if r is not found.use)


def _staying(study: Study, live: Sequence[str], gone: Collection[str]) -> list[str]:
    """The entries that get more seeds: those that are left, their controls, what they follow."""
    entries = {label: study.entry(label) for label in live}
    stay = {label for label in live if label not in gone}
    stay -= {label for label in stay if entries[label].control_of in gone}
    for label in live:  # what is followed does not follow
        follows = entries[label].first_method.follows
        if label in stay and follows is not None and parse(follows).study is None:
            stay.add(parse(follows).label)
    return [label for label in live if label in stay]
