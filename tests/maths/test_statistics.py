"""maths/statistics.py against scipy.stats, closed forms, and the coverage that it promises."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from scikit_posthocs import posthoc_nemenyi_friedman, posthoc_siegel_friedman
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from autoaug_ray.maths.statistics import (
    Comparison,
    Mean,
    Parts,
    Ranking,
    compare,
    gap,
    holm,
    in_per_cent,
    in_points,
    mean_of,
    parts_of,
    rank,
    resolution,
    round_up,
    spent,
)


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
    """95 % of the intervals at 3 seeds hold the true mean: the z-interval would hold 81 %."""
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


@pytest.mark.parametrize("n", [3, 5, 20])
def test_a_gap_to_an_exact_figure_equals_scipys_one_sample_test(n: int) -> None:
    x = np.random.default_rng(n).normal(0.8, 0.02, n)
    out = gap(mean_of(list(x)), 0.79)
    result = stats.ttest_1samp(x, 0.79)
    interval = result.confidence_interval(0.95)
    assert not out.welch and out.half_width is not None
    assert out.difference - out.half_width == pytest.approx(interval.low - 0.79)
    assert out.difference + out.half_width == pytest.approx(interval.high - 0.79)
    assert out.outside() == (result.pvalue < 0.05)


@pytest.mark.parametrize(("n", "m"), [(3, 8), (8, 3), (5, 2), (3, 100)])
def test_a_gap_to_a_published_mean_equals_scipys_welch_test(n: int, m: int) -> None:
    rng = np.random.default_rng(n)
    x, y = rng.normal(0.8, 0.02, n), rng.normal(0.79, 0.005, m)
    out = gap(mean_of(list(x)), y.mean(), y.std(ddof=1), m)
    result = stats.ttest_ind(x, y, equal_var=False)
    interval = result.confidence_interval(0.95)
    assert out.welch and out.half_width is not None
    assert out.difference - out.half_width == pytest.approx(interval.low)
    assert out.difference + out.half_width == pytest.approx(interval.high)
    again = stats.ttest_ind_from_stats(
        x.mean(), x.std(ddof=1), n, y.mean(), y.std(ddof=1), m, equal_var=False
    )
    assert out.outside() == (again.pvalue < 0.05)


def test_a_gap_needs_three_seeds_of_ours_and_a_published_spread_its_number_of_seeds() -> None:
    for values in ([0.8], [0.8, 0.9]):
        out = gap(mean_of(values), 0.1, 0.01, 8)
        assert (out.half_width, out.alike, out.outside()) == (None, None, False)
        assert out.difference == pytest.approx(sum(values) / len(values) - 0.1)
    ours = mean_of([0.80, 0.81, 0.82])
    for unknown in (gap(ours, 0.79, 0.01), gap(ours, 0.79, None, 8), gap(ours, 0.79, 0.01, 1)):
        assert not unknown.welch and unknown.half_width == ours.half_width


def test_a_gap_without_any_spread() -> None:
    same = mean_of([0.5, 0.5, 0.5])
    assert gap(same, 0.5, 0.0, 8).half_width == 0.0 and not gap(same, 0.5, 0.0, 8).outside()
    assert gap(same, 0.6, 0.0, 8).outside()


@pytest.mark.parametrize("m", [1, 4])
def test_a_published_figure_that_varies_like_ours_is_covered_by_the_wider_interval(m: int) -> None:
    """The mean of m further seeds lies outside in 5 % of all trials; outside the narrow one far
    more often."""
    rng = np.random.default_rng(m)
    trials, narrow, wide = 4000, 0, 0
    for x in rng.normal(0.8, 0.01, (trials, 5 + m)):
        out = gap(mean_of(x[:5].tolist()), float(x[5:].mean()), None, m)
        assert out.alike is not None
        narrow += out.outside()
        wide += abs(out.difference) > out.alike
    assert wide / trials == pytest.approx(0.05, abs=4 * math.sqrt(0.95 * 0.05 / trials))
    assert narrow / trials > 0.1


def test_accuracies_and_differences_in_words() -> None:
    assert in_per_cent(0.81) == "81.00"
    assert in_per_cent(0.81, 0.0123, 3).replace("\u00a0", " ") == "81.00 ± 1.23 (3)"
    assert in_points(0.012, None) == "+1.20"
    assert in_points(-0.012, 0.004) == "-1.20 [-1.60, -0.80]"


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


DEMSAR = np.array(
    [
        [0.763, 0.768, 0.771, 0.798], [0.599, 0.591, 0.590, 0.569], [0.954, 0.971, 0.968, 0.967],
        [0.628, 0.661, 0.654, 0.657], [0.882, 0.888, 0.886, 0.898], [0.936, 0.931, 0.916, 0.931],
        [0.661, 0.668, 0.609, 0.685], [0.583, 0.583, 0.563, 0.625], [0.775, 0.838, 0.866, 0.875],
        [1.000, 1.000, 1.000, 1.000], [0.940, 0.962, 0.965, 0.962], [0.619, 0.666, 0.614, 0.669],
        [0.972, 0.981, 0.97501, 0.975], [0.957, 0.978, 0.946, 0.970],
    ]
)  # fmt: skip
"""Table 6 of Demsar (2006): AUC on 14 datasets of C4.5, with -m, with -cf, and with both.

His ranks say which of the two 0.975 was the larger before he rounded."""


def as_blocks(values: np.ndarray) -> list[dict[str, float]]:
    return [{f"e{j}": float(v) for j, v in enumerate(row)} for row in values]


def test_ranks_of_demsars_example() -> None:
    """His mean ranks, z-tests against C4.5 (z = 2.416, 2.342, 0.512) and critical difference."""
    out = rank(as_blocks(DEMSAR), "e0")
    assert list(out.mean_ranks.values()) == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=5e-4)
    raw = dict(zip(("e3", "e1", "e2"), 2 * stats.norm.sf([2.416, 2.342, 0.512]), strict=True))
    by_hand = {"e3": 3 * raw["e3"], "e1": 3 * raw["e3"], "e2": raw["e2"]}  # 2 x e1 is lifted
    assert out.against_control == pytest.approx(by_hand, rel=0.02)
    assert out.critical_difference == pytest.approx(1.25, abs=0.005)
    assert out.rejected() and out.blocks == 14


@pytest.mark.parametrize(("n", "k"), [(5, 3), (12, 7), (40, 4)])
def test_ranks_equal_the_oracles(n: int, k: int) -> None:
    """Friedman from scipy; Holm from statsmodels; both tests of pairs from scikit-posthocs."""
    rng = np.random.default_rng(n)
    values = rng.normal(0.8, 0.02, (n, k)) + 0.01 * np.arange(k)
    values[:2, 0] = values[:2, 1]  # ties
    out = rank(as_blocks(values), "e2")
    expected = stats.friedmanchisquare(*values.T)
    assert (out.statistic, out.p_value) == pytest.approx(tuple(expected))
    ranks = (k + 1 - stats.rankdata(values, axis=1)).mean(0)
    assert list(out.mean_ranks.values()) == pytest.approx(list(ranks))
    others = [j for j in range(k) if j != 2]
    alone = posthoc_siegel_friedman(values).to_numpy()[2]
    corrected = multipletests(alone[others], method="holm")[1]
    assert [out.against_control[f"e{j}"] for j in others] == pytest.approx(list(corrected))
    nemenyi = posthoc_nemenyi_friedman(values).to_numpy()
    apart = np.abs(ranks[:, None] - ranks) > out.critical_difference
    assert ((nemenyi < 0.05) == apart).all()


def test_what_is_alike_are_the_largest_groups_within_the_critical_difference() -> None:
    ranks = {"a": 1.0, "b": 1.8, "c": 2.6, "d": 5.0}
    ranking = Ranking(ranks, 20, 30.0, 0.001, "a", {}, critical_difference=1.0)
    assert ranking.alike() == [(1.0, 1.8), (1.8, 2.6)]
    wider = dataclasses.replace(ranking, critical_difference=2.0)
    assert wider.alike() == [(1.0, 2.6)]
    assert dataclasses.replace(ranking, p_value=0.5).alike() == [(1.0, 5.0)]


def test_holm_equals_statsmodels() -> None:
    p = np.random.default_rng(4).uniform(0, 0.2, 9)
    assert holm(list(p)) == pytest.approx(list(multipletests(p, method="holm")[1]))


def test_entries_that_are_all_the_same_do_not_differ_in_rank() -> None:
    out = rank(as_blocks(np.full((6, 3), 0.5)), "e0")
    assert out.p_value == 1.0 and not out.rejected() and set(out.mean_ranks.values()) == {2.0}
    # The same means, summed in another order.
    blocks = [{"a": (0.1 + 0.2) + 0.3, "b": 0.1 + (0.2 + 0.3), "c": 0.6} for _ in range(6)]
    assert rank(blocks, "a").p_value == 1.0


@pytest.mark.parametrize(
    ("blocks", "control"),
    [
        ([], "a"),
        ([{"a": 0.1, "b": 0.2, "c": 0.3}] * 4, "a"),
        ([{"a": 0.1, "b": 0.2}] * 9, "a"),
        ([{"a": 0.1, "b": 0.2, "c": 0.3}] * 9, "d"),
    ],
)
def test_too_little_to_rank(blocks: list[dict[str, float]], control: str) -> None:
    with pytest.raises(ValueError, match="ranks need 3 entries"):
        rank(blocks, control)


def test_friedman_holds_its_level() -> None:
    """Entries that differ by chance only are called different in 5 % of studies of 12 blocks."""
    rng = np.random.default_rng(5)
    trials = 300
    hits = sum(rank(as_blocks(rng.normal(size=(12, 4))), "e0").rejected() for _ in range(trials))
    assert hits / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


# The test images' own sampling error


def crossed(
    rng: np.random.Generator, n: int, images: int, a: float, b: float, e: float
) -> tuple[np.ndarray, np.ndarray]:
    """Two trainings per seed, (n, images) each: their difference has these standard deviations."""
    d = rng.normal(0, a, (n, 1)) + rng.normal(0, b, images) + rng.normal(0, e, (n, images))
    return d, np.zeros_like(d)


def test_parts_equal_the_anova_of_seeds_and_images() -> None:
    """Mean squares of the two-way table, by another library."""
    rng = np.random.default_rng(0)
    x, y = rng.random((5, 40)) < 0.7, rng.random((5, 40)) < 0.6
    d = x.astype(float) - y
    seed, image = np.indices(d.shape)
    frame = pd.DataFrame({"d": d.ravel(), "seed": seed.ravel(), "image": image.ravel()})
    table = anova_lm(ols("d ~ C(seed) + C(image)", frame).fit())
    squares = table["sum_sq"] / table["df"]
    seeds, both, rest = squares["C(seed)"], squares["C(image)"], squares["Residual"]
    found = parts_of(x, y)
    assert found.of_both == pytest.approx(rest)
    assert found.of_seeds == pytest.approx(max(seeds, rest) / 40)
    assert found.of_images == pytest.approx(max(both - rest, 0) / 5)
    # Dorfman-Berbaum-Metz: (MS seeds + max(MS images - MS both, 0)) / (n N); Hillis's freedom.
    variance = (max(seeds, rest) + max(both - rest, 0)) / 200
    assert found.error() ** 2 == pytest.approx(variance)
    assert found.freedom() == pytest.approx(variance**2 / ((max(seeds, rest) / 200) ** 2 / 4))


def test_an_interval_covers_other_seeds_and_other_images() -> None:
    """95 % of the intervals hold the truth; those over seeds alone hold it in far fewer."""
    rng, trials, hits, alone = np.random.default_rng(3), 600, 0, 0
    for _ in range(trials):
        x, y = crossed(rng, 5, 100, 0.02, 0.3, 0.3)
        parts = parts_of(x, y)
        half = stats.t.ppf(0.975, parts.freedom()) * parts.error()
        hits += abs(x.mean()) <= half
        alone += abs(x.mean()) <= stats.t.ppf(0.975, 4) * stats.sem(x.mean(1))
    assert hits / trials > 0.93 and alone / trials < 0.85


def test_equal_differences_on_few_images_prove_nothing() -> None:
    """One image of fifty more is right at each of three seeds, another one each time."""
    y = np.zeros((3, 50), bool)
    x = y.copy()
    x[[0, 1, 2], [3, 14, 15]] = True
    accuracies = [dict(enumerate(z.mean(1))) for z in (x, y)]
    right = [{s: z[s].tobytes() for s in range(3)} for z in (x, y)]
    out = compare("a", accuracies[0], "b", accuracies[1], right=(right[0], right[1]))
    assert out.difference == pytest.approx(0.02) and out.p_value > 0.2
    assert compare("a", accuracies[0], "b", accuracies[1]).p_value == 0.0
    assert compare("a", accuracies[0], "b", accuracies[1], right=(right[0], {0: b""})).n == 3


def test_on_endless_images_the_interval_is_that_of_the_seeds() -> None:
    rng = np.random.default_rng(5)
    x, y = crossed(rng, 6, 200_000, 0.05, 0.2, 0.2)
    found = stats.ttest_1samp(x.mean(1), 0.0)
    parts = parts_of(x, y)
    half = found.confidence_interval(0.95).high - x.mean()
    assert stats.t.ppf(0.975, parts.freedom()) * parts.error() == pytest.approx(half, rel=0.01)


@pytest.mark.parametrize("effect", [0.4, 1.0, 2.0])
def test_seeds_that_a_difference_takes_equal_the_power_of_the_t_test(effect: float) -> None:
    parts = compare("a", by_seed(0.0, 0.1, 0.2), "b", by_seed(0.0, 0.0, 0.0)).parts
    assert parts is not None and parts.of_seeds == pytest.approx(0.01)
    exact = TTestPower().solve_power(effect, alpha=0.05, power=0.8)
    assert parts.seeds_for(0.1 * effect, 0.05) == pytest.approx(exact, abs=1.2)
    assert parts.images_for(0.1 * effect, 0.05) is None


def test_more_images_or_seeds_help_against_what_they_average() -> None:
    rng = np.random.default_rng(6)
    of_images = parts_of(*crossed(rng, 5, 400, 0.0, 0.5, 0.01))
    assert of_images.seeds_for(0.02, 0.05) is None
    # z-tests: N = ((1.96 + 0.84) 0.5 / 0.02)^2 = 4,900
    assert of_images.images_for(0.02, 0.05) == pytest.approx(4900, rel=0.15)
    of_seeds = parts_of(*crossed(rng, 5, 400, 0.03, 0.0, 0.01))
    assert of_seeds.images_for(0.02, 0.05) is None
    sd = math.sqrt(of_seeds.of_seeds)
    exact = TTestPower().solve_power(0.015 / sd, alpha=0.05, power=0.8)
    assert of_seeds.seeds_for(0.015, 0.05) == pytest.approx(exact, abs=1.2)


def test_what_images_can_resolve() -> None:
    """McNemar: the difference of two shares has the variance p / N, if they are equal."""
    assert 100 * resolution(61) == pytest.approx(8.87, abs=0.01)
    assert [round_up(v) for v in (61.0, 4871.0, 120000.0, 9.2)] == [61, 4900, 120000, 10]


def test_the_chance_of_being_told_above_is_that_of_futures_that_are_drawn() -> None:
    """Variance and mean from the posterior of a flat prior, then the seeds that are to come."""
    rng, n, more, draws = np.random.default_rng(0), 3, 5, 200_000
    parts = Parts(n, 500, of_seeds=4e-4, of_images=2e-4, of_both=0.1)
    variance = (n - 1) * parts.of_seeds / rng.chisquare(n - 1, draws)
    true = rng.normal(0.01, np.sqrt(variance / n))
    later = rng.normal(true, np.sqrt(variance / more))
    mean = (n * 0.01 + more * later) / (n + more)
    needed = stats.t.ppf(0.99, parts.freedom(n=8)) * parts.error(n=8)
    assert parts.chance(0.01, 8, 0.02) == pytest.approx((mean > needed).mean(), abs=0.004)
    assert parts.chance(0.01, 8, 0.02) < parts.chance(0.02, 8, 0.02)
    assert parts.chance(needed + 1e-9, 3, 0.02) in (0.0, 1.0)  # nothing is to come


def test_what_is_spent_of_an_error() -> None:
    """By the chi-square with one degree of freedom: P(Z^2 > z^2 / share)."""
    bound = stats.chi2.isf(0.05, 1)
    for share in (0.2, 0.5, 1.0):
        assert spent(share, 0.05) == pytest.approx(stats.chi2.sf(bound / share, 1))
