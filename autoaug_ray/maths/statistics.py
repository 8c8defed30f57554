"""Means over seeds, paired differences, and what may honestly be said of them.

Notation. n seeds; x_s the test accuracy of one entry trained with seed s, y_s of another with the
same seed: same order of the images, same initial weights. d_s = x_s - y_s is the paired difference.
Intervals are Student's t on n - 1 degrees of freedom: mean +- t(n - 1) sd / sqrt(n).

The test images are the same for all seeds, and are themselves a draw. Where it is known which of
them each training classifies correctly, d_si = x_si - y_si in {-1, 0, 1} is known for seed s and
image i of N, and the interval covers both draws, as in studies of several readers of several cases
(Dorfman, Berbaum and Metz, Invest. Radiol. 1992; Hillis, Stat. Med. 2007):
d_si = mean + a_s + b_i + e_si, whose mean has the variance
var(a) / n + var(b) / N + var(e) / (n N) (see `Parts`). Where only the accuracies are known, an
interval covers the choice of the seed, and says nothing about other test images. No interval covers
other training images.

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
from typing import Any

import numpy as np

LEVEL = 0.95
ENOUGH = 3
"""Seeds from which on a verdict is given; at n = 2 the factor t is 12.7 and nothing can be seen."""
BLOCKS = 5
"""Blocks from which on Friedman's test is made; Demsar trusts its chi-square above 10."""
POWER = 0.8
"""How surely a difference is to be found where it is asked how many seeds or images that takes."""
APART = 1 / 8
"""Where it is not known yet: the share of the test images on which one of two trainings alone is
right."""
MOST_SEEDS, MOST_IMAGES = 1000, 1e6
"""More are not asked for."""


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
class Parts:
    """What a paired difference of accuracies varies by, for n seeds and N test images."""

    n: int
    images: int | None
    """N; None where it is not known which images were classified correctly: `of_images` and
    `of_both` are 0 then."""
    of_seeds: float
    """The variance that one more seed adds, a + e / N: that of the difference over seeds, but not
    below e / N, which chance alone makes of N images."""
    of_images: float
    """b, the variance between images of what all seeds agree on."""
    of_both: float
    """e, the variance that belongs to one seed and one image."""
    apart: float | None = None
    """The share of the images on which one of the two alone is right, mean over the seeds."""

    def error(self, n: Any = None, images: Any = None) -> Any:
        """The standard error of the mean difference, with other numbers if they are given."""
        seeds, own = self._variances(n, images)
        return np.sqrt(seeds + own)

    def freedom(self, n: Any = None, images: Any = None) -> Any:
        """Degrees of freedom of `error` (Hillis 2007): n - 1 if seeds are all that varies."""
        seeds, own = self._variances(n, images)
        share = (seeds + own) / np.where(seeds > 0, seeds, 1.0)
        return np.where(seeds > 0, ((self.n if n is None else n) - 1) * share**2, np.inf)

    def _variances(self, n: Any, images: Any) -> tuple[Any, Any]:
        n = self.n if n is None else n
        if self.images is None:
            return self.of_seeds / n, np.zeros_like(self.of_seeds / n)
        images = self.images if images is None else images
        alone = max(self.of_seeds - self.of_both / self.images, 0.0)
        return (alone + self.of_both / images) / n, self.of_images / images + 0.0 * n

    def told_from(self, alpha: float) -> Any:
        """The smallest difference that a test at level `alpha` rejects as chance."""
        from scipy import stats

        return stats.t.ppf(1 - alpha / 2, self.freedom()) * self.error()

    def detectable(self, alpha: float, n: Any = None, images: Any = None) -> Any:
        """The smallest difference that a test at level `alpha` finds with a chance of POWER."""
        from scipy import stats

        freedom = self.freedom(n, images)
        t = stats.t.ppf(1 - alpha / 2, freedom) + stats.t.ppf(POWER, freedom)
        return t * self.error(n, images)

    def chance(self, difference: float, n: int, alpha: float) -> float:
        """How likely this mean difference will be told to be above zero at `n` seeds, at level
        `alpha`: its predictive power (Spiegelhalter, Freedman and Blackburn, Controlled Clinical
        Trials 1986).

        With a flat prior, the mean over n seeds is Student's t with self.n - 1 degrees of freedom
        around the one over the first self.n, and of_seeds (1 / self.n - 1 / n) is the square of its
        scale. The test images stay the same, so that their part of the mean does not change.
        """
        from scipy import stats

        needed = float(stats.t.ppf(1 - alpha / 2, self.freedom(n)) * self.error(n))
        scale = math.sqrt(self.of_seeds * max(0.0, 1 / self.n - 1 / n))
        if scale == 0:
            return float(difference > needed)
        return float(stats.t.sf((needed - difference) / scale, self.n - 1))

    def seeds_for(self, difference: float, alpha: float) -> int | None:
        """Seeds that find it in these test images; None if MOST_SEEDS do not."""
        n = np.arange(max(self.n, ENOUGH), MOST_SEEDS + 1)
        enough = self.detectable(alpha, n=n) <= abs(difference)
        return int(n[enough.argmax()]) if enough.any() else None

    def images_for(self, difference: float, alpha: float) -> int | None:
        """Test images that find it with these seeds, to two digits; None if MOST_IMAGES do not."""
        if self.images is None:
            return None
        images = np.geomspace(self.images, MOST_IMAGES, 400)
        enough = self.detectable(alpha, images=images) <= abs(difference)
        return round_up(float(images[enough.argmax()])) if enough.any() else None


def round_up(value: float) -> int:
    """To two significant digits."""
    unit = int(10 ** max(0, math.floor(math.log10(value)) - 1))
    return unit * math.ceil(value / unit - 1e-9)


def parts_of(x: np.ndarray, y: np.ndarray) -> Parts:
    """`x`, `y`: (seeds, images), whether an image was classified correctly; two seeds or more."""
    d = x.astype(float) - y.astype(float)
    n, images = d.shape
    by_seed, by_image = d.mean(1), d.mean(0)
    rest = d - by_seed[:, None] - by_image + d.mean()
    both = float((rest**2).sum()) / ((n - 1) * max(images - 1, 1))
    between = float(by_image.var(ddof=1)) if images > 1 else 0.0
    of_seeds = max(float(by_seed.var(ddof=1)), both / images)
    of_images = max(between - both / n, 0.0)
    return Parts(n, images, of_seeds, of_images, both, apart=float(np.abs(d).mean()))


def resolution(images: int, apart: float = APART) -> float:
    """By how much, in [0, 1], two trainings must differ for so many test images to tell them apart:
    half the width of the 95 % interval of their difference, if one of the two alone is right on a
    share `apart` of the images (McNemar's test).
    """
    return 1.96 * math.sqrt(apart / images)


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
    parts: Parts | None = None
    """None if n < 2."""

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


Right = Mapping[int, bytes]
"""seed -> a byte for each test image: 1 where it was classified correctly, else 0."""


def compare(
    name: str,
    x: Mapping[int, float],
    other: str,
    y: Mapping[int, float],
    level: float = LEVEL,
    right: tuple[Right, Right] = ({}, {}),
) -> Comparison:
    """Two entries' accuracies by seed; seeds that only one of them has do not count.

    `right`: which test images either classified correctly. The interval covers the choice of the
    test images only if this is known of all common seeds.
    """
    from scipy import stats

    seeds = sorted(set(x) & set(y))
    if not seeds:
        return Comparison(name, other, 0, None, None, None)
    d = mean_of([x[s] - y[s] for s in seeds])
    if d.sd is None:
        return Comparison(name, other, 1, d.mean, None, None)
    parts = Parts(d.n, None, d.sd**2, 0.0, 0.0)
    if all(s in of for of in right for s in seeds):
        parts = parts_of(*(np.array([np.frombuffer(of[s], bool) for s in seeds]) for of in right))
    error, freedom = float(parts.error()), float(parts.freedom())
    half_width = float(stats.t.ppf((1 + level) / 2, freedom)) * error
    if error < 1e-12:  # the same difference at every seed, up to rounding
        p = 1.0 if abs(d.mean) < 1e-12 else 0.0
    else:
        p = 2 * float(stats.t.sf(abs(d.mean) / error, freedom))
    return Comparison(name, other, d.n, d.mean, half_width, p, parts)


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


def spent(share: float, error: float) -> float:
    """The part of a two-sided error that may be spent once a share of the planned seeds has run:
    2 - 2 Phi(z / sqrt(share)), where Phi(z) = 1 - error / 2, close to O'Brien and Fleming's bounds
    (Lan and DeMets, Biometrika 1983). Little early, and all of it at the end.
    """
    from scipy import stats

    return 2 * float(stats.norm.sf(stats.norm.isf(error / 2) / math.sqrt(share)))


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
    # Normal in many blocks (Demsar 2006, section 3.2.2).
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
