"""maths/statistics.py against scipy.stats, closed forms, and the coverage that it promises."""

import math

import numpy as np
import pytest
from scipy import stats

from autoaug_ray.maths.statistics import Comparison, Mean, compare, holm, mean_of


def by_seed(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_mean_equals_scipy(n: int) -> None:
    x = np.random.default_rng(n).normal(0.8, 0.02, n)
    out = mean_of(list(x))
    low, high = stats.t.interval(0.95, n - 1, loc=x.mean(), scale=stats.sem(x))
    assert out.mean == pytest.approx(x.mean())
    assert out.sd == pytest.approx(x.std(ddof=1))
    assert (out.mean - out.half_width, out.mean + out.half_width) == pytest.approx((low, high))


def test_two_values_in_closed_form() -> None:
    """At one degree of freedom t is Cauchy: its 97.5 % quantile is tan(0.475 pi) = 12.7."""
    out = mean_of([0.70, 0.74])
    assert out.half_width == pytest.approx(0.02 * math.tan(0.475 * math.pi))


def test_one_value_has_no_interval_and_none_is_an_error() -> None:
    assert mean_of([0.5]) == Mean(0.5, None, None, 1)
    with pytest.raises(ValueError, match="at least one"):
        mean_of([])


def test_coverage() -> None:
    """Of 95 % intervals at 3 seeds, 95 % hold the true mean: the z-interval would hold 81 %."""
    rng = np.random.default_rng(0)
    trials = 4000
    hits = 0
    for x in rng.normal(0.8, 0.01, (trials, 3)):
        out = mean_of(x.tolist())
        hits += abs(out.mean - 0.8) <= out.half_width
    assert hits / trials == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / trials))


def test_comparison_equals_scipys_paired_test() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(0.8, 0.02, 6), rng.normal(0.79, 0.02, 6)
    out = compare("a", by_seed(*x), "b", by_seed(*y))
    result = stats.ttest_rel(x, y)
    interval = result.confidence_interval(0.95)
    assert out.p_value == pytest.approx(result.pvalue)
    assert out.difference - out.half_width == pytest.approx(interval.low)
    assert out.difference + out.half_width == pytest.approx(interval.high)


def test_only_common_seeds_are_compared() -> None:
    """Seed 9 of a and seed 0 of b are far away; neither has a partner."""
    out = compare("a", {1: 0.8, 2: 0.9, 9: 0.0}, "b", {0: 1.0, 2: 0.8, 1: 0.7})
    assert out.n == 2
    assert out.difference == pytest.approx(0.1)


def test_pairing_removes_what_the_seeds_share() -> None:
    """Entries that vary by 10 points between seeds, and differ by 1 at each, are told apart."""
    x, y = by_seed(0.60, 0.70, 0.80, 0.90), by_seed(0.589, 0.691, 0.789, 0.891)
    assert compare("a", x, "b", y).distinguishable()
    assert stats.ttest_ind(list(x.values()), list(y.values())).pvalue > 0.5


def test_verdict_agrees_with_the_interval() -> None:
    """Not distinguishable if, and only if, zero is inside."""
    rng = np.random.default_rng(2)
    seen = set()
    for _ in range(200):
        out = compare("a", by_seed(*rng.normal(0.82, 0.01, 3)), "b", by_seed(0.79, 0.8, 0.81))
        inside = abs(out.difference) <= out.half_width
        assert ("not distinguishable" in out.verdict()) is inside
        seen.add(inside)
    assert seen == {True, False}


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (by_seed(0.81, 0.82, 0.83, 0.85), "a is better than b (difference +2.75 points"),
        (by_seed(0.71, 0.72, 0.73, 0.72), "a is worse than b (difference -8.00 points"),
        (by_seed(0.70, 0.90, 0.80, 0.81), "a is not distinguishable from b at 4 seeds"),
        (by_seed(0.81, 0.90), "a against b: too few seeds to tell them apart"),
        (by_seed(0.81), "(difference +1.00 points, n = 1)"),
        ({7: 0.8}, "a and b have no finished seed in common"),
    ],
)
def test_verdicts(x: dict[int, float], text: str) -> None:
    assert text in compare("a", x, "b", by_seed(0.80, 0.80, 0.80, 0.80)).verdict()


def test_two_seeds_never_suffice() -> None:
    """Two differences that agree by chance would have an interval of width zero."""
    out = compare("a", by_seed(0.9, 0.9), "b", by_seed(0.8, 0.8))
    assert out.half_width == pytest.approx(0) and not out.distinguishable()


def test_entries_that_are_the_same_are_not_distinguishable() -> None:
    out = compare("a", by_seed(0.8, 0.7, 0.9), "b", by_seed(0.8, 0.7, 0.9))
    assert out.p_value == 1.0 and not out.distinguishable()


def test_holm_by_hand() -> None:
    """Sorted: .01 x 4, .02 x 3, .03 x 2 (lifted to .06), .5 x 1."""
    assert holm([0.03, 0.01, None, 0.5, 0.02]) == pytest.approx([0.06, 0.04, None, 0.5, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_the_familys_error() -> None:
    """Ten entries no better than the reference that they share: some call in at most 5 %."""
    rng = np.random.default_rng(3)
    trials, naive, corrected = 400, 0, 0
    for _ in range(trials):
        reference = by_seed(*rng.normal(0, 1, 5))
        out = [compare("x", by_seed(*rng.normal(0, 1, 5)), "r", reference) for _ in range(10)]
        p = [c.p_value for c in out]
        naive += any(c.distinguishable() for c in out)
        corrected += any(c.distinguishable(q) for c, q in zip(out, holm(p), strict=True))
    assert corrected / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)
    assert naive / trials > 0.15


def test_a_corrected_p_value_decides_the_verdict() -> None:
    c = Comparison("a", "b", 5, 0.01, 0.009, 0.03)
    assert "better" in c.verdict()
    assert "not distinguishable from b at 5 seeds after Holm's" in c.verdict(p_value=0.2)
