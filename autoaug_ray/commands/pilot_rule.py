"""Is a search worth it here? The same study, cheaper, and a rule that says when enough is known.

A pilot is the study with its test set closed, shorter trainings and short searches. It is looked at
after 3 seeds, and if need be after 5 and 8. Whatever searches or learns is compared, paired over
the seeds, with TrivialAugment, which has nothing to tune (Mueller and Hutter 2021). Which entry to
use is another question, which `report.verdict` answers for a pilot as for any other study.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from autoaug_ray.config import Entry, Study
from autoaug_ray.errors import UserError
from autoaug_ray.maths.statistics import ENOUGH
from autoaug_ray.maths.statistics import LEVEL as OVERALL
from autoaug_ray.methods import METHODS, method_class
from autoaug_ray.report.compare import Entries, finished, mean_accuracy, paired
from autoaug_ray.report.elimination import LOOKS
from autoaug_ray.report.results import EntryResult
from autoaug_ray.report.runs import Row
from autoaug_ray.schedule.calibrate import pool_size
from autoaug_ray.schedule.queue import is_searched, population_of, search_runs
from autoaug_ray.schedule.tune import draw
from autoaug_ray.settings.ranges import Range

LEVEL = 1 - (1 - OVERALL) / len(LOOKS)
"""The level of an interval at one look: at all looks it covers the truth in 95 % of pilots
(Bonferroni). Not corrected for the number of searches: the whole study's report is."""
SURE = f"{100 * OVERALL:.0f} %"
TRIALS = 8
"""A longer search is cut to so many random draws from its space."""


def shortened(study: Study, epochs: int | None) -> Study:
    """The pilot of a study; its seeds are those of the first look. Raises UserError if the study
    has nothing to decide."""
    if not searching(study):
        raise UserError(
            f"{study.name}: no method of the study searches or learns, so that a pilot has nothing "
            "to decide; add one, such as bilevel."
        )
    if not search_free(study):
        raise UserError(
            f"{study.name}: every method of the study searches, so that a pilot has nothing to "
            "compare with; add trivialaugment."
        )
    whole = study.train.epochs
    train = {"epochs": epochs or min(whole, max(3, round(whole / 3)))}
    return study.model_copy(
        update={
            "name": f"{study.name}-pilot",
            "dataset": study.dataset.model_copy(update={"closed_test": True}),
            "train": study.train.model_copy(update=train),
            "seeds": tuple(range(LOOKS[0])),
            "eliminate": None,
            "entries": tuple(_cut(study, entry) for entry in study.entries),
        }
    )


def _cut(study: Study, entry: Entry) -> Entry:
    """The entry with a search of TRIALS trials at most: random ones over the same space."""
    trials = len(list(search_runs(study, entry, draw)))
    if trials <= TRIALS:
        return entry
    if (population := population_of(entry)) is not None:
        fewer = {**entry.hyperparameters, population.size: TRIALS}
        return entry.model_copy(update={"hyperparameters": fewer})
    ranges = {
        k: Range(kind="choice", values=r.values) if r.kind == "grid" else r
        for k, r in entry.ranges.items()
    }
    search = entry.search.model_copy(update={"samples": TRIALS})
    return entry.model_copy(update={"ranges": ranges, "search": search})


def searching(study: Study) -> list[str]:
    """Labels of the entries that search or learn, controls apart."""
    return [e.label for e in study.entries if e.control_of is None and _costs_search(e)]


def search_free(study: Study) -> list[str]:
    """Labels of the entries without a search to pay for, such as a control that never learns."""
    return [e.label for e in study.entries if not _costs_search(e)]


def _costs_search(entry: Entry) -> bool:
    method = entry.first_method
    return (
        is_searched(entry)
        or method.searches_in_own_run
        or method.learns
        or method.follows is not None
    )


def device_hours(lines: Iterable[Row]) -> float:
    """Device-hours that a ledger's lines hold, all phases."""
    return math.fsum(line["share"] * sum(line["seconds"].values()) / 3600 for line in lines)


def whole_hours(whole: Study, pilot: Study, lines: Sequence[Row]) -> float:
    """Device-hours of the whole study, if its steps take as long as in the ledger of its pilot."""
    hours, pool = 0.0, pool_size(whole)
    for entry in whole.entries:
        method = entry.first_method
        trials = len(list(search_runs(whole, entry, draw)))
        trials += len(whole.seeds) * method.searches_in_own_run
        counts: Mapping[Literal["search", "final"], int] = {
            "search": trials,
            "final": len(whole.seeds),
        }
        for phase, count in counts.items():
            steps, in_pilot = (method.training(phase, s.train).steps(pool) for s in (whole, pilot))
            attempts = [x for x in lines if (x["label"], x["phase"]) == (entry.label, phase)]
            runs = max(1, len({line["run"] for line in attempts}))
            hours += count * device_hours(attempts) / runs * steps / in_pilot
    return hours


class Finding(NamedTuple):
    decided: bool
    sentence: str


class _Gap(NamedTuple):
    """The interval of a minus b in points (hundredths)."""

    a: EntryResult
    b: EntryResult
    low: float
    high: float


def decide(
    entries: Entries, searches: Sequence[str], free: Sequence[str], *, worth: float
) -> Finding:
    """What the results say about the labels that search, and those that do not, at level LEVEL.

    The yardstick is TrivialAugment (without it: the search-free entry with the highest mean), or a
    search-free entry that is distinguishably better than that, also after a correction for their
    number. In this order:

    - Search is not worth it if every interval of a search minus the yardstick ends below `worth`
      points.
    - Search pays if some search's intervals all begin above 0, against each search-free entry.
    - Else it is open.
    """
    done = {r.label: r for r in finished(entries)}
    if missing := [label for label in (*searches, *free) if label not in done]:
        return Finding(False, f"Undecided: no final training of {missing[0]} has finished.")
    plain = [done[label] for label in free]
    yardstick = _yardstick(plain)
    gaps = [_gap(done[label], yardstick) for label in searches]
    most = max(gaps, key=lambda gap: gap.high)
    if most.high < worth:
        if most.high < 0:
            bound = "every one is worse than"
            who = f"{_at(most.a)} by at least {-most.high:.1f} points"
        else:
            bound = f"none is more than {most.high:.1f} points better than"
            who = f"{_at(most.a)} comes nearest to that"
        return Finding(
            True,
            f"Search is not worth it here: {bound} {_at(yardstick)} ({SURE}); {who}.",
        )
    paying = [done[label] for label in searches if all(_gap(done[label], r).low > 0 for r in plain)]
    if paying:
        best = _gap(max(paying, key=mean_accuracy), max(plain, key=mean_accuracy))
        return Finding(
            True,
            f"Search pays here: {_at(best.a)} is {best.low:.1f} to {best.high:.1f} points better "
            f"than {_at(best.b)} ({SURE}).",
        )
    if math.isinf(most.high):
        return Finding(
            False,
            f"Undecided: {most.a.label} and {yardstick.label} have fewer than {ENOUGH} "
            "finished seeds in common.",
        )
    return Finding(
        False,
        f"Undecided at {len(yardstick.seeds)} seeds: {_at(most.a)} against {_at(yardstick)} "
        f"is {most.low:+.1f} to {most.high:+.1f} points ({SURE}).",
    )


def _yardstick(plain: Entries) -> EntryResult:
    known = [r for r in plain if r.method in METHODS]  # else it is a method of a user's own
    trivial = [r for r in known if method_class(r.method).nothing_to_tune]
    first = max(trivial or plain, key=mean_accuracy)
    others = [r for r in plain if r is not first]
    better = [r for r in others if _gap(r, first, among=len(others)).low > 0]
    return max(better, key=mean_accuracy, default=first)


def _gap(a: EntryResult, b: EntryResult, among: int = 1) -> _Gap:
    """Without bounds where too few seeds are in common; wider if it is one of several."""
    c = paired(a, b, 1 - (1 - LEVEL) / among)
    if c.n < ENOUGH or c.difference is None or c.half_width is None:
        return _Gap(a, b, -math.inf, math.inf)
    low, high = (100 * (c.difference + sign * c.half_width) for sign in (-1, 1))
    return _Gap(a, b, low, high)


def _at(entry: EntryResult) -> str:
    cost = "" if entry.relative_cost is None else f" at {entry.relative_cost:.2f}x"
    return f"{entry.label} ({100 * mean_accuracy(entry):.2f} %{cost})"
