"""What the costs of a study allow to say, in words."""

from collections.abc import Callable
from typing import Any, NamedTuple

from autoaug_ray.report import compare
from autoaug_ray.report.compare import Entries
from autoaug_ray.report.results import EntryResult, StudyResults

APART = 0.05
"""It is told if plain sums and typical steps differ by more than this share."""
WARN = 0.15
"""It is a warning if the measured cost differs from the calibration, or from arithmetic, by more
than this share."""


def number(value: float | None, half_width: float | None = None) -> str:
    """`1.20 ± 0.02`, with half the width of the 95 % interval; `-` for no value."""
    if value is None:
        return "-"
    return f"{value:.2f}" + ("" if half_width is None else f"\u00a0±\u00a0{half_width:.2f}")


def cost(entry: EntryResult) -> str:
    """The relative cost with its interval; that of the reference is 1 by definition."""
    if entry.label == entry.reference:
        return number(entry.relative_cost)
    return number(entry.relative_cost, entry.relative_cost_half_width)


def in_words(entry: EntryResult) -> str:
    """What the entry costs and what was billed for it, as a sentence."""
    kind = "CPU" if entry.device == "CPU" else "GPU"
    factor, unit = compare.time_unit(entry.total_device_hours)
    billed = f"{factor * entry.total_device_hours:.3g} {kind}-{unit} billed"
    return (
        f"{entry.label} costs {cost(entry)} trainings of {entry.reference} ({entry.clock}); "
        f"{billed}."
    )


def verdicts(results: StudyResults) -> list[str]:
    """Which costs can be told apart, by what they were measured, and what speaks against them."""
    entries = results.entries
    return [
        *_about_front(entries),
        *_alike(entries),
        *_conditions(results),
        *_made_elsewhere(results),
        *_followed(results),
        *_plain_sums(entries),
        *_warnings(entries),
    ]


def _about_front(entries: Entries) -> list[str]:
    front = compare.pareto(entries)
    if not front:
        return []
    steps = ", ".join(
        f"{r.label} ({100 * compare.mean_accuracy(r):.2f} % at {cost(r)})" for r in front
    )
    return [
        f"Pareto front, the entries that no other one matches in both means while it is "
        f"distinguishably more accurate or cheaper: {steps}."
    ]


def _alike(entries: Entries) -> list[str]:
    pairs = compare.same_cost(entries)
    if not pairs:
        return []
    told = "; ".join(f"{a.label} ({cost(a)}) and {b.label} ({cost(b)})" for a, b in pairs)
    return [
        f"Costs that cannot be told apart, or differ by less than "
        f"{100 * (compare.TOLERANCE - 1):.0f} %: {told}."
    ]


def _conditions(results: StudyResults) -> list[str]:
    """Which clock, device and settings the costs were measured with."""
    entries = results.entries
    devices = sorted({r.device for r in entries if r.device})
    if not devices:
        return []
    if len(devices) > 1 or "," in devices[0]:
        return [f"Not all ran on the same device ({', '.join(devices)}): costs cannot be compared."]
    clocks = sorted({r.clock for r in entries if r.clock})
    if not clocks:
        return ["An earlier version ran these trainings, which did not measure work: no costs."]
    out = [f"All costs are work on this device, {devices[0]}, by {' and '.join(clocks)}"]
    names = ("threads", "channels_last", "reuse_actors")
    settings = {tuple(row.get(name) for name in names) for row in results.last_rows}
    if len(settings) == 1:
        threads, channels_last, reused = settings.pop()
        out[0] += (
            f"; every training had {threads} {'thread' if threads == 1 else 'threads'} and "
            f"weights with channels {'last' if channels_last else 'first'}, in processes that are "
            f"{'used again' if reused else 'new'}."
        )
    else:
        out[0] += "."
        columns: dict[str, set[Any]] = {
            name: {row.get(name) for row in results.last_rows} - {None} for name in names
        }
        out += [
            f"Not all trainings had the same {name} ({', '.join(map(str, sorted(values)))}): "
            "their costs are not those of equal conditions."
            for name, values in columns.items()
            if len(values) > 1
        ]
    if any("CUDA" in clock for clock in clocks) and any(r["share"] < 1 for r in results.last_rows):
        out.append(
            "Trainings shared a GPU: the time between two CUDA events holds what the GPU did for "
            "others meanwhile. For exact costs give each training a GPU of its own."
        )
    return out


def _made_elsewhere(results: StudyResults) -> list[str]:
    """What making one's own generated images took, of which only the study can tell."""
    generate = results.study.generate
    if generate.folder is None:
        return []
    if generate.seconds_per_image is None:
        return [
            f"Making the images in {generate.folder} is in no cost here, since the study does not "
            "say what it took (generate.device_hours)."
        ]
    return [
        f"The images in {generate.folder} were made elsewhere: an entry is charged "
        f"{generate.seconds_per_image:.3g} device-seconds, as the study says, for each one that it "
        "may draw."
    ]


def _followed(results: StudyResults) -> list[str]:
    """What it cost to find what entries train with that others found: in full, and by user."""
    out = []
    for r in results.entries:
        of = results.study.entry(r.label).first_method.follows
        if of is None:
            continue
        there = results.elsewhere.get(r.label)
        if there is not None and there.fault is not None:
            out.append(
                f"The cost of {r.label} is not known, since that of finding what it trains with, "
                f"{of}, is not: {there.fault}."
            )
        elif r.relative_cost is not None:
            out.append(_in_full_and_by_user(r, of))
        if there is not None and there.device and r.device and there.device != r.device:
            out.append(
                f"What {r.label} trains with was found on another device ({there.device}, here "
                f"{r.device}): the part of its cost that is search holds seconds of that one."
            )
    return out


def _in_full_and_by_user(r: EntryResult, of: str) -> str:
    assert r.relative_cost is not None
    if r.relative_search_cost is None or r.amortised_search_cost is None:
        return f"What {r.label} trains with was found by {of}, at a cost that is not known."
    full, shared = r.relative_search_cost, r.amortised_search_cost
    out = (
        f"{r.label} trains with what {of} found: a search of {number(full)} trainings of "
        f"{r.reference}, all of which is in its cost of {number(r.relative_cost)}"
    )
    if r.search_users == 1:
        return f"{out}; it is its only user here."
    return (
        f"{out}; divided among its {r.search_users} users here {number(shared)}, with which it "
        f"costs {number(r.relative_cost - full + shared)}."
    )


def _plain_sums(entries: Entries) -> list[str]:
    return [
        f"{r.label}: search and training cost {number(r.relative_training_cost)} by typical "
        f"steps, but {number(r.plain_training_cost)} by plain sums "
        f"({_apart(r.plain_training_cost, r):.0%} apart): some steps were slow for reasons outside "
        "of the training, such as paging, throttling or neighbours, or they differ in work."
        for r in entries
        if _apart(r.plain_training_cost, r) > APART
    ]


def _apart(other: float | None, entry: EntryResult) -> float:
    """The share by which the measured cost without images differs from another figure of it."""
    measured = entry.relative_training_cost
    return abs(measured / other - 1) if measured is not None and other else 0.0


def _warnings(entries: Entries) -> list[str]:
    def listed(of: Callable[[EntryResult], float | None]) -> str:
        return ", ".join(
            f"{r.label} ({number(r.relative_training_cost)} measured, {number(of(r))})"
            for r in entries
            if _apart(of(r), r) > WARN
        )

    out = []
    if told := listed(lambda r: r.calibrated_training_cost):
        out.append(
            f"Warning: costs that are more than {WARN:.0%} off the calibration: {told} calibrated. "
            "Either steps change in the course of a training, or the machine was in another state "
            "then; calibrate again."
        )
    if told := listed(lambda r: r.flop_training_cost):
        out.append(
            f"Warning: costs that are more than {WARN:.0%} off the arithmetic: {told} by FLOPs. "
            "Only convolutions and matrix products are counted: operations on pixels, by which "
            "images are augmented, come on top, and second derivatives need more time per FLOP."
        )
    return out


class CostLine(NamedTuple):
    """The cost of an entry without generated images, by four ways to it."""

    entry: EntryResult
    measured: str
    plain: str
    calibrated: str
    flops: str


def lines(entries: Entries) -> list[CostLine]:
    """A line for each entry whose cost is known."""
    return [
        CostLine(
            r,
            number(r.relative_training_cost),
            number(r.plain_training_cost),
            number(r.calibrated_training_cost),
            number(r.flop_training_cost),
        )
        for r in entries
        if r.relative_training_cost is not None
    ]
