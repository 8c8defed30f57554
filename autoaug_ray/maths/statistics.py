"""Means over seeds, paired differences, and what may honestly be said of them.

Notation. n seeds; x_s the test accuracy of one entry trained with seed s, y_s of another with the
same seed: same order of the images, same initial weights. d_s = x_s - y_s is the paired difference.
Intervals are Student's t on n - 1 degrees of freedom: mean +- t(n - 1) sd / sqrt(n).

What they cover is the choice of the seed. The training and the test images are the same for all
seeds, so an interval says nothing about other images.

A figure p that somebody else published is compared with the mean x of our n seeds without pairing.
With its standard deviation s_p over m seeds the interval of x - p is Welch's, whose variance is
sd^2 / n + s_p^2 / m. Without it p is taken as exact, and the interval is that of x, moved by p.

Over several cases (datasets, degrees of imbalance), after Demsar (JMLR 2006): N blocks, k entries;
r_j the mean over the blocks of entry j's rank, 1 for the most accurate, ties shared. Friedman's
test says whether the entries differ at all; only then each is held against one control by
z = (r_j - r_control) / sqrt(k (k + 1) / (6 N)), with Holm's correction for the k - 1 comparisons.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
ENOUGH = 3
"""Seeds from which on a verdict is given; at n = 2 the factor t is 12.7 and nothing can be seen."""
BLOCKS = 5
"""Blocks from which on Friedman's test is made; Demsar trusts its chi-square above 10."""


@dataclass(frozen=True)
class Mean:
    mean: float
    sd: float | None
    """With n - 1 in the denominator; None if n < 2, as is `half_width`."""
    half_width: float | None
    n: int


def mean_of(values: Sequence[float], level: float = LEVEL) -> Mean:
    """Mean, standard deviation and half the width of the t-interval of the mean."""
    n = len(values)
    if n == 0:
        raise ValueError("a mean needs at least one value, got none")
    mean = math.fsum(values) / n
    if n == 1:
        return Mean(mean, None, None, 1)
    sd = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    t = _t_quantile((1 + level) / 2, n - 1)
    return Mean(mean, sd, t * sd / math.sqrt(n), n)


def _t_quantile(p: float, freedom: float) -> float:
    """The p-quantile of Student's t with so many degrees of freedom."""
    from scipy import stats

    return float(stats.t.ppf(p, freedom))


@dataclass(frozen=True)
class Comparison:
    """`name` minus `other`, paired over the seeds that both have; accuracies in [0, 1]."""

    name: str
    other: str
    n: int
    difference: float | None
    """None without a common seed."""
    half_width: float | None
    """Half the width of the 95 % interval of `difference`, or of the level that was asked for.

    None if n < 2, as is `p_value`."""
    p_value: float | None
    """Two-sided paired t-test, before any correction for multiple comparisons."""

    def distinguishable(self, p_value: float | None = None) -> bool:
        """At 5 %; by a corrected `p_value` if one is given. Never with fewer than ENOUGH seeds."""
        p = self.p_value if p_value is None else p_value
        return self.n >= ENOUGH and p is not None and p < 1 - LEVEL

    def side(self, p_value: float | None = None) -> str:
        """better | worse | not distinguishable"""
        if not self.distinguishable(p_value) or self.difference is None:
            return "not distinguishable"
        return "better" if self.difference > 0 else "worse"

    def figures(self) -> str:
        """The difference in points (hundredths) with its interval and the number of seeds."""
        if self.difference is None:
            return "n = 0"
        text = f"difference {100 * self.difference:+.2f} points"
        if self.half_width is not None:
            low, high = self.difference - self.half_width, self.difference + self.half_width
            text += f", 95 % interval {100 * low:+.2f} to {100 * high:+.2f}"
        return f"{text}, n = {self.n}"

    def verdict(self, other: str | None = None, p_value: float | None = None) -> str:
        """One sentence. `other` is what to call the other entry, `p_value` a corrected one."""
        other = other or self.other
        if self.n == 0:
            return f"{self.name} and {other} have no finished seed in common."
        if self.n < ENOUGH:
            return (
                f"{self.name} against {other}: too few seeds to tell them apart ({self.figures()})."
            )
        if not self.distinguishable(p_value):
            why = " after Holm's correction" if self.distinguishable() else ""
            return (
                f"{self.name} is not distinguishable from {other} at {self.n} seeds{why} "
                f"({self.figures()})."
            )
        return f"{self.name} is {self.side(p_value)} than {other} ({self.figures()})."


def compare(
    name: str, x: Mapping[int, float], other: str, y: Mapping[int, float], level: float = LEVEL
) -> Comparison:
    """Two entries' accuracies by seed; seeds that only one of them has do not count."""
    from scipy import stats

    seeds = sorted(set(x) & set(y))
    if not seeds:
        return Comparison(name, other, 0, None, None, None)
    d = mean_of([x[s] - y[s] for s in seeds], level)
    if d.sd is None:
        return Comparison(name, other, 1, d.mean, None, None)
    if d.sd < 1e-12:  # the same difference at every seed, up to rounding
        p = 1.0 if abs(d.mean) < 1e-12 else 0.0
    else:
        p = float(stats.ttest_rel([x[s] for s in seeds], [y[s] for s in seeds]).pvalue)
    return Comparison(name, other, d.n, d.mean, d.half_width, p)


@dataclass(frozen=True)
class Gap:
    """Our mean minus a published figure; accuracies in [0, 1]."""

    difference: float
    half_width: float | None
    """Half the width of the 95 % interval of `difference`.

    None with fewer than ENOUGH seeds of ours, as is `alike`."""
    welch: bool
    """Whether the interval covers the seeds of the published figure too."""
    alike: float | None
    """What `half_width` would be if the published seeds varied exactly as ours do."""

    def outside(self) -> bool:
        """Whether the interval leaves zero out; never where there is none."""
        return self.half_width is not None and abs(self.difference) > self.half_width


def gap(ours: Mean, published: float, sd: float | None = None, seeds: int | None = None) -> Gap:
    """`sd` is the published figure's over its `seeds`; Welch's interval takes two of them.

    `alike` is t(n - 1) sd sqrt(1 / n + 1 / m) with our n and sd and the published number of seeds
    m, 1 if it is not known: the interval in which the mean of m more seeds of ours would fall.
    """
    difference = ours.mean - published
    if ours.sd is None or ours.half_width is None or ours.n < ENOUGH:
        return Gap(difference, None, False, None)
    alike = ours.half_width * math.sqrt(1 + ours.n / (seeds or 1))
    if sd is None or seeds is None or seeds < 2:
        return Gap(difference, ours.half_width, False, alike)
    a, b = ours.sd**2 / ours.n, sd**2 / seeds
    if a + b == 0:
        return Gap(difference, 0.0, True, alike)
    freedom = (a + b) ** 2 / (a**2 / (ours.n - 1) + b**2 / (seeds - 1))
    t = _t_quantile((1 + LEVEL) / 2, freedom)
    return Gap(difference, t * math.sqrt(a + b), True, alike)


def in_per_cent(mean: float, sd: float | None = None, n: int | None = None) -> str:
    """`81.00 ± 1.00 (3)`: an accuracy with what is known of its spread and number of seeds."""
    spread = "" if sd is None else f"\u00a0±\u00a0{100 * sd:.2f}"
    return f"{100 * mean:.2f}{spread}" + ("" if n is None else f" ({n})")


def in_points(difference: float, half_width: float | None) -> str:
    """`+1.20 [+0.80, +1.60]`: a difference of accuracies with its interval, in hundredths."""
    text = f"{100 * difference:+.2f}"
    if half_width is None:
        return text
    low, high = difference - half_width, difference + half_width
    return f"{text} [{100 * low:+.2f}, {100 * high:+.2f}]"


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction for a family of comparisons; None stays out of the family.

    Rejecting where the result is below 5 % keeps the chance of any false rejection in the family
    below 5 %, whatever the dependence between its members, which here share the reference.
    """
    # Not statsmodels' multipletests, an equal: each call of it collects all garbage, 50 ms or more.
    family = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    out: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(family):
        largest = max(largest, min(1.0, p * (len(family) - rank)))
        out[i] = largest
    return out


@dataclass(frozen=True)
class Ranking:
    """k entries ranked in N blocks."""

    mean_ranks: dict[str, float]
    """entry -> mean rank, in the order given; 1 is the most accurate."""
    blocks: int
    statistic: float
    """Friedman's chi-square with k - 1 degrees of freedom, corrected for ties; NaN if all tie."""
    p_value: float
    control: str
    against_control: dict[str, float]
    """other entry -> p-value of its rank against the control's, after Holm's correction."""
    critical_difference: float
    """By how much two mean ranks differ from where on Nemenyi's test, which is for all pairs
    together, tells them apart at 5 %."""

    def rejected(self) -> bool:
        """Whether Friedman's test says that the entries are not all the same."""
        return self.p_value < 1 - LEVEL

    def alike(self) -> list[tuple[float, float]]:
        """The lowest and highest mean rank of each largest group that Nemenyi's test cannot tell
        apart; a single group of all entries where Friedman's test finds no difference."""
        ranks = sorted(self.mean_ranks.values())
        if not self.rejected():
            return [(ranks[0], ranks[-1])]
        ends = [bisect_right(ranks, low + self.critical_difference) for low in ranks]
        return [
            (ranks[i], ranks[end - 1])
            for i, end in enumerate(ends)
            if end > i + 1 and (i == 0 or end > ends[i - 1])
        ]


def rank(blocks: Sequence[Mapping[str, float]], control: str) -> Ranking:
    """Accuracies [0, 1] by entry of every block; all blocks hold the same entries, at least 3."""
    from scipy import stats

    names = list(blocks[0]) if blocks else []
    if len(names) < 3 or len(blocks) < BLOCKS or control not in names:
        raise ValueError(
            f"ranks need 3 entries with {control!r} among them and {BLOCKS} blocks, "
            f"got {names} and {len(blocks)} blocks"
        )
    # Rounded: equal accuracies that were averaged in another order are still ties.
    values = np.array([[-round(block[name], 12) for name in names] for block in blocks])
    n, k = values.shape
    means = stats.rankdata(values, axis=1).mean(axis=0)
    if (values == values[:, :1]).all():
        statistic, p_value = math.nan, 1.0  # scipy would divide zero by zero
    else:
        statistic, p_value = map(float, stats.friedmanchisquare(*values.T))
    i = names.index(control)
    others = [j for j in range(k) if j != i]
    spread = math.sqrt(k * (k + 1) / (6 * n))
    # Of a difference of two mean ranks, in many blocks (Demsar 2006, section 3.2.2).
    alone = 2 * stats.norm.sf(np.abs(means[others] - means[i]) / spread)
    corrected = holm(list(map(float, alone)))
    q = float(stats.studentized_range.ppf(LEVEL, k, math.inf)) / math.sqrt(2)
    return Ranking(
        mean_ranks=dict(zip(names, map(float, means), strict=True)),
        blocks=n,
        statistic=statistic,
        p_value=p_value,
        control=control,
        against_control={
            names[j]: p for j, p in zip(others, corrected, strict=True) if p is not None
        },
        critical_difference=q * spread,
    )
