"""What elimination saves and loses, over simulated studies that also ran all their seeds.

The model of the trainings is that of `test_verdict_rates`. All trainings of a study are drawn, and
the course through its looks takes those that it asks for: so that both designs see the same ones.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
from test_verdict_rates import LABELS, empty, simulated

from autoaug_ray.report.elimination import course
from autoaug_ray.report.results import StudyResults

__all__ = ["empty"]
GAMMA = 0.1
BETTER: dict[str, dict[str, float]] = {
    "all equal": {},
    "one is 1 point better": {"bilevel": 1.0},
    "one is 5 points better": {"bilevel": 5.0},
    "-3 to 5 points": {"predefined": 1.0, "trivialaugment": 2.0, "stn": -3.0, "bilevel": 5.0},
}


class Outcome(NamedTuple):
    """What came out of one study; the means over many are rates."""

    trainings: float
    """Share of the final trainings that were run."""
    work: float
    """Share of their work, by the cost of each entry."""
    wrong: bool
    """Says to use an entry that is not better than the cheapest."""
    right: bool
    """Says to use one that is."""
    whole_wrong: bool
    whole_right: bool
    """The same of the design that runs all seeds."""
    lost: bool
    """An entry that the whole design says to use was eliminated."""
    best_out: bool
    """The most accurate entry was eliminated, be it in vain or not."""
    told_below: bool
    """It was so for being told below another one."""
    covered: float
    """Share of the intervals at the end, of entries against the cheapest, that hold the truth."""
    bias: float
    """What the difference of the entry to use, against the cheapest, has above the truth, in
    points; NaN if none is to be used. Likewise in the whole design."""
    whole_bias: float


def outcomes(
    empty: StudyResults, studies: int, better: dict[str, float], gamma: float = GAMMA, **more: Any
) -> Iterator[Outcome]:
    rng = np.random.default_rng(0)
    truth = {label: better.get(label, 0.0) for label in LABELS}
    best = max(truth, key=lambda label: truth[label])
    for _ in range(studies):
        full = simulated(empty, rng, better, **more)
        sparing = replace(full, study=full.study.model_copy(update={"eliminate": gamma}))
        run = course(sparing)
        found, end = run.standing, course(full).standing
        assert found and end
        planned = len(full.study.seeds)
        asked = {label: len(seeds) / planned for label, seeds in run.seeds.items()}
        out = {gone.label: gone for gone in run.eliminated}
        gains = [
            float("nan") if not s.above
            else 100 * (s.against_base[s.use.label].difference or 0.0) - truth[s.use.label]
            for s in (found, end)
        ]  # fmt: skip
        held = [
            abs(100 * (c.difference or 0.0) - truth[label]) <= 100 * (c.half_width or 0.0)
            for label, c in found.against_base.items()
        ]
        yield Outcome(
            trainings=float(np.mean(list(asked.values()))),
            work=sum(asked[k] * c for k, c in LABELS.items()) / sum(LABELS.values()),
            wrong=bool(found.above) and truth[found.use.label] <= 0,
            right=bool(found.above) and truth[found.use.label] > 0,
            whole_wrong=bool(end.above) and truth[end.use.label] <= 0,
            whole_right=bool(end.above) and truth[end.use.label] > 0,
            lost=bool(end.above) and end.use.label in out,
            best_out=truth[best] > 0 and best in out,
            told_below=truth[best] > 0 and best in out and out[best].why == "worse",
            covered=float(np.mean(held)),
            bias=gains[0],
            whole_bias=gains[1],
        )


def means(found: Iterator[Outcome]) -> Outcome:
    """The mean of each figure; of a bias, over the studies that have one."""
    columns = [np.array(column, float) for column in zip(*found, strict=True)]
    return Outcome(*(float(np.nanmean(c)) if not np.isnan(c).all() else 0.0 for c in columns))


def test_half_of_the_cost_where_nothing_is_better_and_few_answers_are_lost(empty):
    equal = means(outcomes(empty, 20, {}, seeds=8, images=500))
    assert equal.trainings < 0.6 and equal.work < 0.6 and equal.wrong <= 0.05
    better = means(outcomes(empty, 20, {"bilevel": 5.0}, seeds=8, images=2000))
    assert better.trainings < 0.75 and better.lost <= GAMMA
    assert better.right >= better.whole_right - GAMMA and better.whole_right > 0.8


@pytest.mark.nightly
@pytest.mark.parametrize("images", [500, 2000])
@pytest.mark.parametrize("truth", BETTER)
def test_error_rates_and_cost_of_a_thousand_studies(empty, truth, images):
    found = means(outcomes(empty, 1000, BETTER[truth], seeds=8, images=images))
    print(f"{images} images, {truth}: {found}")
    bound = 0.025 + 3 * np.sqrt(0.025 * 0.975 / 1000)
    assert found.wrong < bound and found.whole_wrong < bound
    assert found.lost < GAMMA and found.told_below < bound
    assert found.right > found.whole_right - GAMMA
    assert found.work < (0.55 if truth in ("all equal", "one is 1 point better") else 0.75)
    assert found.covered > 0.93
