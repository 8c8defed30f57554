"""A paper's claims as verdicts on our rows: held, not held, or not distinguishable.

`settings.published.Claim` says what a claim is. Each is judged in every case whose `published`
holds it (rises: in every dataset), by an interval or by a test, so that `not distinguishable` stays
apart from `not held`; what holds over the cases is counted.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from autoaug_ray.maths.statistics import ENOUGH, Comparison, Mean, holm, mean_of
from autoaug_ray.report.case_figures import axis
from autoaug_ray.report.compare import (
    cheaper,
    class_accuracies,
    paired,
    paired_costs,
    tables,
    thirds,
    uneven,
)
from autoaug_ray.report.cost_sentences import cost
from autoaug_ray.report.results import StudyResults
from autoaug_ray.settings.published import Claim

Word = Literal["held", "not held", "not distinguishable", "cannot be told"]
WORDS: tuple[Word, ...] = ("held", "not held", "not distinguishable", "cannot be told")


class Judged(NamedTuple):
    """A claim in one case, or over them all."""

    where: str
    word: Word
    why: str
    """Figures, or what is missing."""


def verdicts(cases: Sequence[StudyResults]) -> list[str]:
    """A sentence for each claim, over all the cases that hold it."""
    by_claim: dict[Claim, list[StudyResults]] = {}
    for case in cases:
        for claim in case.study.published.claims if case.study.published else ():
            if claim.cases is None or claim.cases in case.name:
                by_claim.setdefault(claim, []).append(case)
    return [sentence(claim, judge(claim, those)) for claim, those in by_claim.items()]


def judge(claim: Claim, cases: Sequence[StudyResults]) -> list[Judged]:
    """What becomes of a claim in each case, or, if it is about several, in each dataset."""
    if claim.kind == "rises":
        return list(_rises(claim, cases))
    one: dict[str, Callable[[Claim, StudyResults], Judged]] = {
        "best": _best, "cheaper": _cheaper, "gain": _gain, "tail": _tail,
    }  # fmt: skip
    return [one[claim.kind](claim, case) for case in cases]


def overall(claim: Claim, judged: Sequence[Judged]) -> Word:
    """A claim about n cases is held if it is in n, and not held if it cannot be in n any more."""
    count = {word: sum(j.word == word for j in judged) for word in WORDS}
    known = len(judged) - count["cannot be told"]
    wanted = claim.at_least or len(judged)
    if count["held"] >= wanted > 0:
        return "held"
    if wanted > known:
        return "cannot be told"
    return "not held" if known - count["not held"] < wanted else "not distinguishable"


def sentence(claim: Claim, judged: Sequence[Judged]) -> str:
    said = f"The paper's claim, {claim.says.rstrip('.')}: {overall(claim, judged)}."
    if len(judged) == 1:
        return f"{said} {judged[0].where}: {judged[0].why}."
    parts = []
    for word in WORDS:
        if those := [f"{j.where} ({j.why})" for j in judged if j.word == word]:
            parts.append(f"{word} in {len(those)} of {len(judged)}: {', '.join(those)}")
    wanted = f" It is to hold in {claim.at_least}." if claim.at_least else ""
    return f"{said}{wanted} {'; '.join(parts)}."


def _best(claim: Claim, case: StudyResults) -> Judged:
    """Paired t-tests against every other, with Holm's correction for their number."""
    if missing := [x for x in (claim.label, *claim.over) if not case.by_label[x].seeds]:
        return Judged(case.name, "cannot be told", f"no finished training of {missing[0]}")
    found = [paired(case.by_label[claim.label], case.by_label[other]) for other in claim.over]
    if few := _too_few(found):
        return Judged(case.name, "cannot be told", few)
    sides = [
        c.side(p) for c, p in zip(found, holm([c.p_value for c in found]), strict=True)
    ]  # fmt: skip
    least = min(found, key=lambda c: c.difference or 0.0)
    why = f"{100 * (least.difference or 0.0):+.2f} against {least.other}"
    if "worse" in sides:
        return Judged(case.name, "not held", why)
    word: Word = "held" if set(sides) == {"better"} else "not distinguishable"
    return Judged(case.name, word, why)


def _cheaper(claim: Claim, case: StudyResults) -> Judged:
    """By the costs of common seeds, as the headline compares them."""
    own, others = case.by_label[claim.label], [case.by_label[other] for other in claim.over]
    if few := _too_few([paired_costs(own, other) for other in others]):
        return Judged(case.name, "cannot be told", few)
    costs = [f"{cost(other)} for {other.label}" for other in others]
    why = f"{cost(own)} against {', '.join(costs)}"
    if any(cheaper(other, own) for other in others):
        return Judged(case.name, "not held", why)
    word: Word = "held" if all(cheaper(own, o) for o in others) else "not distinguishable"
    return Judged(case.name, word, why)


def _gain(claim: Claim, case: StudyResults) -> Judged:
    """Held if the whole 95 % interval is in the paper's range, not held if none of it is."""
    assert claim.points is not None
    c = paired(case.by_label[claim.label], case.by_label[claim.over[0]])
    if few := _too_few([c]):
        return Judged(case.name, "cannot be told", few)
    assert c.difference is not None and c.half_width is not None
    low, high = 100 * (c.difference - c.half_width), 100 * (c.difference + c.half_width)
    least, most = claim.points
    word: Word = "not distinguishable"
    if least <= low and high <= most:
        word = "held"
    elif high < least or most < low:
        word = "not held"
    return Judged(case.name, word, f"{100 * c.difference:+.2f} [{low:+.2f}, {high:+.2f}]")


def _too_few(found: Sequence[Comparison]) -> str:
    n = min(c.n for c in found)
    return "" if n >= ENOUGH else f"{n} common seeds, and it takes {ENOUGH}"


def _tail(claim: Claim, case: StudyResults) -> Judged:
    """The gain in the rarest third of the classes minus that in the most frequent, by seed."""
    if not uneven(case):
        return Judged(case.name, "cannot be told", "its classes are even")
    own, base = (class_accuracies(case.finals, x) for x in (claim.label, claim.over[0]))
    gains = {seed: own[seed] - base[seed] for seed in own.keys() & base.keys()}
    head, tail = thirds(len(next(iter(gains.values()), ())))
    gains = {seed: g for seed, g in gains.items() if g[head].count() and g[tail].count()}
    if len(gains) < ENOUGH:
        return Judged(case.name, "cannot be told", f"{len(gains)} seeds, and it takes {ENOUGH}")
    more = mean_of([float(g[tail].mean() - g[head].mean()) for g in gains.values()])
    return Judged(case.name, _above_zero(more), f"{_interval(more, 100)} points more")


def _rises(claim: Claim, cases: Sequence[StudyResults]) -> Iterator[Judged]:
    """The slope of the mean share over the ranks of the cases, by seed; see `case_figures.axis`."""
    along = axis(cases)
    if along is None:
        yield Judged("the cases", "cannot be told", "they differ in no one number")
        return
    for title, group in along.panels.items():
        by_case = [_shares(claim, case) for _, case in group]
        seeds = sorted(set.intersection(*map(set, by_case)))
        if len(seeds) < ENOUGH:
            yield Judged(title, "cannot be told", f"{len(seeds)} seeds, and it takes {ENOUGH}")
            continue
        steps = np.arange(len(group))
        slopes = [float(np.polyfit(steps, [c[s] for c in by_case], 1)[0]) for s in seeds]
        slope = mean_of(slopes)
        yield Judged(title, _above_zero(slope), f"{_interval(slope, 1)} from case to case")


def _shares(claim: Claim, case: StudyResults) -> dict[int, float]:
    """seed -> the learned probability of a kind of images, mean over the classes."""
    return {
        seed: float(np.mean(row["alpha"], axis=0)[row["kinds"].index(claim.share)])
        for seed, row in tables(case.finals).get(claim.label, {}).items()
        if claim.share in row["kinds"]
    }


def _above_zero(found: Mean) -> Word:
    assert found.half_width is not None
    if abs(found.mean) <= found.half_width:
        return "not distinguishable"
    return "held" if found.mean > 0 else "not held"


def _interval(found: Mean, factor: float) -> str:
    assert found.half_width is not None
    low, high = found.mean - found.half_width, found.mean + found.half_width
    return f"{factor * found.mean:+.2f} [{factor * low:+.2f}, {factor * high:+.2f}]"
