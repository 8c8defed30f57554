"""What the results of a study allow to compare: entries, their costs, and classes of images.

A *mix* is an entry whose training images are drawn, class by class, from several kinds: the real
image (identity) and edited ones. alpha is its table of probabilities, (classes, kinds), each row of
which adds up to 1.

Classes are ordered from most to fewest training images. Where every seed draws its own subset, and
with it another order of the classes, what is averaged over the seeds is the class of the same rank.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from autoaug_ray.maths.statistics import ENOUGH, LEVEL, Comparison, compare, holm
from autoaug_ray.report.results import EntryResult, StudyResults
from autoaug_ray.report.runs import Finals, Row, Searches

MANY_CLASSES = 20
"""With no more classes than that, top-5 accuracy is near 100 % and tells little."""
TOLERANCE = 1.05
"""An entry is called cheaper only if it is so by this factor: two runs of one study may differ by
as much (`bench costs`)."""
EVEN = 1.1
"""Images of the largest class over those of the smallest up to which classes count as even."""

Entries = Sequence[EntryResult]


# Entries


def paired(a: EntryResult, b: EntryResult, level: float = LEVEL) -> Comparison:
    """Test accuracies of `a` minus those of `b`, over the seeds that both have."""
    right = a.test_right, b.test_right
    return compare(a.label, a.by_seed, b.label, b.by_seed, level, right)


def against_reference(entries: Entries) -> dict[str, tuple[Comparison, float | None]]:
    """Every other entry against the reference, with its p-value after Holm's correction."""
    reference = next(r for r in entries if r.label == r.reference)
    comparisons = [paired(r, reference) for r in entries if r is not reference]
    p_values = holm([c.p_value if c.n >= ENOUGH else None for c in comparisons])
    return {c.name: (c, p) for c, p in zip(comparisons, p_values, strict=True)}


def finished(entries: Entries) -> list[EntryResult]:
    """The entries with a whole final training."""
    return [r for r in entries if r.test_accuracy_mean is not None]


def mean_accuracy(entry: EntryResult) -> float:
    """The mean test accuracy [0, 1] of an entry that has finished."""
    assert entry.test_accuracy_mean is not None
    return entry.test_accuracy_mean


def most_accurate(entries: Entries) -> EntryResult | None:
    """The entry with the highest mean test accuracy; None if none has finished."""
    return max(finished(entries), key=mean_accuracy, default=None)


def paired_costs(a: EntryResult, b: EntryResult) -> Comparison:
    """Relative costs of `a` minus those of `b`, over the seeds that both have."""
    return compare(a.label, a.cost_by_seed, b.label, b.cost_by_seed)


def cheaper(a: EntryResult, b: EntryResult) -> bool:
    """Whether `a` costs distinguishably less than `b`, and by more than TOLERANCE."""
    if a.relative_cost is None or b.relative_cost is None:
        return False
    clearly = TOLERANCE * a.relative_cost < b.relative_cost
    return clearly and paired_costs(a, b).distinguishable()


def priced(entries: Entries) -> list[EntryResult]:
    """The finished entries whose cost is known, by rising cost, then by falling accuracy."""
    known = [(r.relative_cost, r) for r in finished(entries) if r.relative_cost is not None]
    return [r for _, r in sorted(known, key=lambda pair: (pair[0], -mean_accuracy(pair[1])))]


def pareto(entries: Entries) -> list[EntryResult]:
    """The entries that none of the others beats, by rising cost."""
    known = priced(entries)
    return [r for r in known if not any(_beats(other, r) for other in known)]


def _beats(a: EntryResult, b: EntryResult) -> bool:
    """Whether `a` is as accurate and as cheap as `b` by the means, and distinguishably better in
    one of the two. With fewer than ENOUGH seeds, in which nothing can be told apart, the means
    decide alone."""
    assert a.relative_cost is not None and b.relative_cost is not None
    more, less = mean_accuracy(a) - mean_accuracy(b), b.relative_cost - a.relative_cost
    if more < 0 or less < 0:
        return False
    accuracy = paired(a, b)
    if min(accuracy.n, paired_costs(a, b).n) < ENOUGH:
        return more > 0 or less > 0
    return accuracy.side() == "better" or cheaper(a, b)


def same_cost(entries: Entries) -> list[tuple[EntryResult, EntryResult]]:
    """Entries next to each other by rising cost that cannot be told apart by it."""
    known = priced(entries)
    pairs = zip(known, known[1:], strict=False)
    return [(a, b) for a, b in pairs if paired_costs(a, b).n >= ENOUGH and not cheaper(a, b)]


def macro_differs(entries: Entries) -> bool:
    """Whether micro and macro accuracy differ, that is, whether the test classes are uneven."""
    pairs = [(r.test_accuracy_mean, r.macro_accuracy_mean) for r in entries]
    return any(abs(a - b) > 5e-5 for a, b in pairs if a is not None and b is not None)


def shows_top5(results: StudyResults) -> bool:
    """Whether top-5 accuracy says something: among many classes, or where a paper reports it."""
    known = [row for row in results.last_rows if row.get("test_top5") is not None]
    paper = results.study.published
    asked = paper is not None and any(row.top5 for row in paper.entries.values())
    return any(asked or len(row["class_accuracy"]) > MANY_CLASSES for row in known)


def needs_bank(entries: Entries) -> bool:
    """Whether some entry mixes generated images, and pays for them."""
    return any(r.relative_bank_cost for r in entries)


def hours(entries: Entries) -> dict[str, list[float]]:
    """phase -> device-hours by entry; phases in which nobody spent any are left out."""
    phases = entries[0].device_hours if entries else ()
    by_phase = {phase: [r.device_hours[phase] for r in entries] for phase in phases}
    return {phase: values for phase, values in by_phase.items() if any(values)}


def time_unit(hours: float) -> tuple[float, str]:
    """(factor, name) of the unit in which so many hours are a readable number."""
    if hours < 2 / 60:
        return 3600, "seconds"
    return (60, "minutes") if hours < 2 else (1, "hours")


def device_unit(entries: Entries) -> tuple[float, str]:
    """(factor to hours, name) for the device time of all entries."""
    factor, unit = time_unit(max(r.total_device_hours for r in entries))
    on_cpu = all(r.device in ("CPU", "") for r in entries)
    return factor, f"{'CPU' if on_cpu else 'GPU'}-{unit}"


# Classes of images


class Order(NamedTuple):
    """The classes from most to fewest training images."""

    counts: np.ndarray
    """(classes,): training images of the class of each rank, mean over the seeds; falling."""
    names: list[str]
    """Names of the classes, or their ranks from 1."""
    shared: bool
    """Whether all seeds have the same counts, so that a rank is one class."""

    def even(self) -> bool:
        """Apart from what a share of an even set leaves over, an image or two per class."""
        return bool(self.counts.max() <= EVEN * self.counts.min())


def order(rows: Iterable[Row], names: Sequence[str] = ()) -> Order | None:
    """The order of the classes in rows of different seeds; None if no row says its counts."""
    known = [np.array(row["class_counts"]) for row in rows if row.get("class_counts")]
    if not known:
        return None
    shared = all(np.array_equal(counts, known[0]) for counts in known)
    falling = np.mean([-np.sort(-counts) for counts in known], axis=0)
    if not shared:
        return Order(falling, [str(i + 1) for i in range(len(falling))], shared)
    if len(names) != len(falling):
        names = [f"class {i}" for i in range(len(falling))]
    return Order(falling, [names[i] for i in _permutation(known[0])], shared)


def _permutation(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """Classes by falling frequency; those of the same frequency keep their order."""
    return np.argsort(-np.asarray(counts), kind="stable")


def by_frequency(row: Row, values: Sequence[Any]) -> np.ndarray:
    """Values by class -> by rank of the class in the row's own pool."""
    by_class = np.array(values, dtype=float)
    out: np.ndarray = by_class[_permutation(row["class_counts"])]
    return out


def class_accuracies(finals: Finals, label: str) -> dict[int, np.ma.MaskedArray]:
    """seed -> test accuracy [0, 1] by rank, masked where untested; seeds without counts are left
    out."""
    last = {seed: rows[-1] for seed, rows in finals.get(label, {}).items()}
    return {
        seed: np.ma.masked_invalid(by_frequency(row, row["class_accuracy"]))
        for seed, row in last.items()
        if row.get("class_counts") and row.get("class_accuracy")
    }


def thirds(classes: int) -> tuple[slice, slice]:
    """The ranks of the most frequent and of the rarest third."""
    n = max(1, classes // 3)
    return slice(0, n), slice(classes - n, classes)


def uneven(results: StudyResults) -> bool:
    """Whether the classes have different numbers of training images."""
    ranked = order(results.last_rows)
    return ranked is not None and not ranked.even()


# Mixes


def tables(finals: Finals) -> dict[str, dict[int, Row]]:
    """label -> seed -> last row, of the entries that mix kinds of images."""
    return {
        label: mixed
        for label, by_seed in finals.items()
        if (
            mixed := {
                seed: rows[-1]
                for seed, rows in by_seed.items()
                if rows[-1].get("alpha") and len(rows[-1].get("kinds") or ()) > 1
            }
        )
    }


def learns(row: Row) -> bool:
    """Whether it is of a training that learns a table, rather than of a trial to be chosen from."""
    return bool(row.get("alpha")) and row["val_accuracy"] is None


def learned(searches: Searches) -> dict[str, list[Sequence[Row]]]:
    """label -> rows by epoch of the trainings that learned its table, one per seed."""
    out: dict[str, list[Sequence[Row]]] = {}
    for label, trials in searches.items():
        by_seed = {rows[-1]["seed"]: rows for rows in trials if learns(rows[-1])}
        if by_seed:
            out[label] = [rows for _, rows in sorted(by_seed.items())]
    return out


def learned_mixes(results: StudyResults) -> list[str]:
    """Labels of the entries that learned how to mix kinds of images."""
    found = learned(results.searches).keys()
    return [label for label in tables(results.finals) if label in found]


def equal_mixes_of(results: StudyResults, label: str) -> list[str]:
    """Entries that mix the same kinds as the learned one, all with the same constant probability.

    That is AutoGenDA's search-free baseline (its appendix D).
    """
    mixed = tables(results.finals)
    kinds = set(next(iter(mixed[label].values()))["kinds"])
    then = _then(results, label)
    return [
        other
        for other, by_seed in mixed.items()
        if other not in learned(results.searches)
        and _then(results, other) == then
        and all(
            set(row["kinds"]) == kinds and np.allclose(row["alpha"], 1 / len(kinds), atol=1e-4)
            for row in by_seed.values()
        )
    ]


def _then(results: StudyResults, label: str) -> Any:
    """What is done to an image after it was chosen, as the entry's runs say."""
    row = next(iter(results.finals[label].values()))[-1]
    return json.loads(row["settings"])["method"].get("then")


def told_apart_by_class(results: StudyResults) -> list[str]:
    """Entries that are looked at class by class: few enough to be told apart in a figure."""
    mixes = learned_mixes(results)
    plain = [other for label in mixes for other in equal_mixes_of(results, label)]
    return interesting(results.entries, [*mixes, *plain])


def interesting(entries: Entries, wanted: Iterable[str]) -> list[str]:
    """The reference, the most accurate entry, and the wanted ones; at most 6, in their order."""
    best = most_accurate(entries)
    if best is None:
        return []
    known = {r.label for r in finished(entries)}
    first = [best.reference, best.label, *wanted]
    chosen = list(dict.fromkeys(label for label in first if label in known))
    return [r.label for r in entries if r.label in chosen[:6]]


def learned_table(
    rows: Sequence[Row], ranked: Order | None
) -> np.ndarray:  # (seeds, classes, kinds)
    """The tables alpha of the last rows of some seeds, by rank of the class where it is known."""
    return np.stack([by_frequency(r, r["alpha"]) if ranked else np.array(r["alpha"]) for r in rows])
