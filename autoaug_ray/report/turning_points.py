"""What would have to be true for another answer, computed from the comparisons behind this one.

Two things turn it: the size of a gain, below which it is not told from chance at the spread that
was seen, and what a point of accuracy is worth, below which its compute is better saved. No price
is assumed: the worth of a point is given in compute, which the reader multiplies with a price.
"""

from collections.abc import Mapping

from autoaug_ray.maths.statistics import Comparison, holm
from autoaug_ray.report.compare import cheaper, mean_accuracy, time_unit
from autoaug_ray.report.results import EntryResult
from autoaug_ray.report.standing import Standing


def needed(
    label: str, against_base: Mapping[str, Comparison], error: float, out: int = 0
) -> float | None:
    """The smallest gain over the cheapest entry, in [0, 1], at which an entry is told from it.

    `against_base`: every entry against the cheapest, by label. Holm's correction for all of them,
    and for `out` that were given up, is made at `error`, and all else stays as it was seen: the
    spread of this entry, and the other entries. None if the entry has fewer than two seeds in
    common with the cheapest.
    """
    own = against_base[label]
    if own.parts is None:
        return None
    others = [c.p_value for name, c in against_base.items() if name != label]
    corrected = holm([*others, *[1.0] * (out + 1)])
    family = sum(p is not None for p in corrected)
    rejected = sum(p is not None and p < error for p in corrected)
    return float(own.parts.told_from(error / (family - rejected)))


def of_use(found: Standing) -> str:
    """What would turn the answer from the entry that is above the cheapest back to that one."""
    use, base = found.use, found.base
    comparison = found.against_base[use.label]
    assert comparison.difference is not None and comparison.half_width is not None
    gain, low = comparison.difference, comparison.difference - comparison.half_width
    text = _told(use, found, "less than")
    if not cheaper(base, use):
        return (
            f"{text}{use.label} does not cost distinguishably more than {base.label}, so no price "
            "of compute speaks against it."
        )
    whole, each, at_most = _more(use, base, 1, 100 * gain, 100 * low)
    return (
        f"{text}{use.label} costs {whole} more than {base.label}: {each} for each point, or "
        f"{at_most} at the lower end of its interval. If a point is worth less than that to you, "
        f"use {base.label}."
    )


def of_cheapest(nearest: EntryResult, found: Standing) -> str | None:
    """What would turn the answer from the cheapest entry to `nearest`, the next in accuracy.

    None if nothing varies, so that there is nothing to say.
    """
    base, comparison = found.base, found.against_base[nearest.label]
    if comparison.difference is None or comparison.half_width is None:
        return None
    high = comparison.difference + comparison.half_width
    text = _told(nearest, found, "at least")
    if high <= 0:
        return f"{text}Even the upper end of its interval is no gain." if text else None
    if not cheaper(base, nearest):
        return text or None
    whole, at_least = _more(nearest, base, 1, 100 * high)
    return (
        f"{text}{nearest.label} costs {whole} more than {base.label}: {at_least} for each point "
        "even at the upper end of its interval. If a point is worth less than that to you, "
        f"{base.label} stays the answer."
    )


def _told(entry: EntryResult, found: Standing, bound: str) -> str:
    base, out = found.base, found.family - len(found.others)
    least = needed(entry.label, found.against_base, found.error, out)
    if least is None or 100 * least < 0.005:  # accuracies that do not vary
        return ""
    seen = 100 * (found.against_base[entry.label].difference or 0.0)
    room = 1 - mean_accuracy(base)
    more = f", more than the {100 * room:.2f} to 100 %" if seen < 100 * room < 100 * least else ""
    return (
        f"{entry.label} would have to be {bound} {100 * least:.2f} points above {base.label} (it "
        f"is {seen:+.2f}), given this spread and the correction for all entries{more}. "
    )


def _more(entry: EntryResult, base: EntryResult, *points: float) -> list[str]:
    """The additional cost of `entry`, divided by each of `points`, in one unit of time."""
    assert entry.relative_cost is not None and base.relative_cost is not None
    costs = [(entry.relative_cost - base.relative_cost) / p for p in points]
    out = [_brief(cost) for cost in costs]
    out[0] += f" trainings of {entry.reference}"
    if base.training_device_hours is None:
        return out
    hours = [cost * base.training_device_hours / base.relative_cost for cost in costs]
    factor, unit = time_unit(min(hours))
    name = f"{'CPU' if base.device == 'CPU' else 'GPU'}-{unit}"
    return [f"{text} ({_brief(factor * h)} {name})" for text, h in zip(out, hours, strict=True)]


def _brief(value: float) -> str:
    return f"{value:.2g}" if value < 100 else f"{value:.0f}"
