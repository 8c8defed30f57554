"""How often the verdict is wrong and right, over simulated studies; nothing is trained.

A training of entry k with seed s is right on image i if q_k + u_i + c_ki + w_ks + e_kis > 0, all of
them normal: images differ in how hard they are (u), entries suit some images more than others (c),
seeds do well or badly (w). Over all images and seeds that could be drawn, an entry is right with
the probability Phi(q_k / sd): the truth, by which a verdict is wrong or right.
"""

from collections import Counter
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from hand import Hand, entry
from scipy import stats

from autoaug_ray.report.elimination import LOOKS
from autoaug_ray.report.results import StudyResults
from autoaug_ray.report.verdict import verdict

LABELS = {"none": 1.0, "predefined": 1.1, "trivialaugment": 1.2, "stn": 1.5, "bilevel": 1.7}
HARD, SUITS, SEED, CHANCE = 1.0, 0.3, 0.05, 0.5
SD = float(np.sqrt(HARD**2 + SUITS**2 + SEED**2 + CHANCE**2))


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> StudyResults:
    """A study of these entries, of which none has run."""
    methods: dict[str, object] = dict.fromkeys(LABELS)
    methods["bilevel"] = {"controls": []}
    methods["stn"] = {"controls": []}
    return Hand(tmp_path_factory.mktemp("study"), methods=methods).results()


def simulated(
    empty: StudyResults,
    rng: np.random.Generator,
    better: dict[str, float],
    *,
    seeds: int = 5,
    images: int = 500,
    kept: bool = True,
) -> StudyResults:
    """A finished study; `better`: points above the 70 % of all other entries."""
    truth = [0.7 + better.get(label, 0.0) / 100 for label in LABELS]
    q = SD * stats.norm.ppf(truth)
    k, shape = len(LABELS), (len(LABELS), seeds, images)
    z = q[:, None, None] + rng.normal(0, HARD, images) + rng.normal(0, SUITS, (k, 1, images))
    z = z + rng.normal(0, SEED, (k, seeds, 1)) + rng.normal(0, CHANCE, shape)
    right = z > 0
    entries = [
        entry(
            label,
            relative_cost=cost,
            test_accuracies=right[i].mean(1).tolist(),
            test_right={s: right[i, s].tobytes() for s in range(seeds)} if kept else {},
        )
        for i, (label, cost) in enumerate(LABELS.items())
    ]
    study = empty.study.model_copy(update={"seeds": tuple(range(seeds))})
    return replace(empty, study=study, entries=tuple(entries))


class Rates(NamedTuple):
    wrong: float
    """The share of studies of which the verdict says to use an entry that is not better."""
    right: float


def answers(empty: StudyResults, studies: int, better: dict[str, float], **more) -> Counter[str]:
    """How often each answer was given; `use` with what to use."""
    rng = np.random.default_rng(0)
    out: Counter[str] = Counter()
    for _ in range(studies):
        said = verdict(simulated(empty, rng, better, **more))
        out[f"use {said.use.label}" if said.answer == "use" else said.answer] += 1
    return out


def rates(empty: StudyResults, studies: int, better: dict[str, float], **more) -> Rates:
    found = answers(empty, studies, better, **more)
    right = sum(found[f"use {label}"] for label in better)
    wrong = sum(n for answer, n in found.items() if answer.startswith("use ")) - right
    assert found.total() == studies and not found["too early"]
    return Rates(wrong / studies, right / studies)


def test_equal_entries_are_seldom_told_to_be_better(empty):
    """8 seeds are enough to find what 60 test images happen to favour, if their own sampling error
    is left out."""
    small = {"seeds": 8, "images": 60}
    assert rates(empty, 120, {}, **small).wrong <= 0.025
    assert rates(empty, 120, {}, **small, kept=False).wrong > 0.05


def test_a_better_entry_is_found(empty):
    wrong, right = rates(empty, 60, {"bilevel": 5.0}, seeds=8)
    assert right > 0.8 and wrong <= 0.025


@pytest.mark.nightly
@pytest.mark.parametrize("seeds, images", [(3, 60), (3, 2000), (5, 500), (8, 60), (8, 2000)])
def test_error_rates_of_a_thousand_studies(empty, seeds, images):
    """Two-sided at 5 % over all entries: at most 2.5 % may say `use` where all are equal."""
    bound = 0.025 + 3 * np.sqrt(0.025 * 0.975 / 1000)
    none, one, five = (
        rates(empty, 1000, better, seeds=seeds, images=images)
        for better in ({}, {"bilevel": 1.0}, {"bilevel": 5.0})
    )
    print(f"{seeds} seeds, {images} images: {none}, 1 point {one}, 5 points {five}")
    assert max(none.wrong, one.wrong, five.wrong) < bound
    assert five.right > one.right


@pytest.mark.nightly
def test_three_looks_of_a_pilot_together_keep_the_rate(empty):
    """Looked at after 3, 5 and 8 seeds, and stopped at the first `use`."""
    closed = empty.study.dataset.model_copy(update={"closed_test": True})
    pilot = replace(empty, study=empty.study.model_copy(update={"dataset": closed}))
    rng, wrong = np.random.default_rng(1), 0
    for _ in range(1000):
        whole = simulated(pilot, rng, {}, seeds=LOOKS[-1], images=2000)
        wrong += any(verdict(first(whole, n)).answer == "use" for n in LOOKS)
    assert wrong / 1000 < 0.025 + 3 * np.sqrt(0.025 * 0.975 / 1000)


def first(results: StudyResults, seeds: int) -> StudyResults:
    """The results after so many seeds."""
    entries = tuple(
        entry(
            r.label,
            relative_cost=r.relative_cost,
            test_accuracies=r.test_accuracies[:seeds],
            test_right=r.test_right,
        )
        for r in results.entries
    )
    study = results.study.model_copy(update={"seeds": tuple(range(seeds))})
    return replace(results, study=study, entries=entries)
