"""Costs of the same study, run again and again: what a cost is worth that was measured once."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from autoaug_ray.bench import Outcome
from autoaug_ray.errors import UserError
from autoaug_ray.report.results import EntryResult, StudyResults, load_results
from autoaug_ray.store.meter import TRAINING

MEASURES = {"cost": "cost, by work", "billed": "billed, by the clock on the wall"}


def costs(
    *,
    folders: Annotated[str, "of the same study, run one after the other; commas between them"] = "",
) -> Outcome:
    """How far the costs of one study are apart if it is run several times: by work, and as billed.

    Both are relative to the study's reference. What is billed is all search and final training.
    """
    names = [name.strip() for name in folders.split(",") if name.strip()]
    if len(names) < 2:
        raise UserError(f"--folders must name two folders at least, got {folders!r}.")
    runs = [_cases(name) for name in names]
    for name, run in zip(names[1:], runs[1:], strict=True):
        _must_be_the_same(names[0], runs[0], name, run)
    entries: list[dict[str, Any]] = []
    for case in runs[0]:
        for label in runs[0][case].by_label:
            measured = {
                "cost": [run[case].by_label[label].relative_cost for run in runs],
                "billed": [_billed(run[case], label) for run in runs],
            }
            entries.append(
                {"case": case, "label": label, **{m: _spread(v) for m, v in measured.items()}}
            )
    figures = {
        "folders": names, "entries": entries,
        "largest": {m: _largest([one[m]["deviation"] for one in entries]) for m in MEASURES},
    }  # fmt: skip
    return Outcome(figures, [_table(figures, measure) for measure in MEASURES])


def _cases(folder: str) -> dict[str, StudyResults]:
    """The results of a study's folder by case; by the study's name if it has none."""
    found = load_results(folder)
    return {found.study.name: found} if isinstance(found, StudyResults) else found


def _must_be_the_same(
    first: str, a: Mapping[str, StudyResults], second: str, b: Mapping[str, StudyResults]
) -> None:
    """Raises UserError if two folders hold different studies."""
    if a.keys() != b.keys():
        kinds = f"{', '.join(a)} and {', '.join(b)}"
        raise UserError(f"--folders: {first} and {second} hold different studies: {kinds}.")
    for case in a:
        one, other = a[case].study, b[case].study
        # `code` is where files lie; what they hold is part of the methods' names.
        fields = [
            f for f in type(one).model_fields
            if f != "code" and getattr(one, f) != getattr(other, f)
        ]  # fmt: skip
        if fields:
            raise UserError(
                f"--folders: {first} and {second} hold different studies: they differ in "
                f"{', '.join(fields)}."
            )


def _billed(results: StudyResults, label: str) -> float | None:
    """Device-hours of an entry's search and training over the reference's; None if it has none."""

    def hours(entry: EntryResult) -> float:
        return sum(entry.device_hours[phase] for phase in TRAINING)

    entry, unit = results.by_label[label], hours(results.reference)
    return hours(entry) / unit if entry.seeds and unit else None


def _spread(values: Sequence[float | None]) -> dict[str, Any]:
    """The values, their median, and how far the farthest is from it, relative to it.

    There is no such distance with fewer than two values.
    """
    known = [value for value in values if value is not None]
    median = statistics.median(known) if known else None
    deviation = max(abs(v / median - 1) for v in known) if median and len(known) > 1 else None
    return {"values": values, "median": median, "deviation": deviation}


def _largest(deviations: Sequence[float | None]) -> float | None:
    return max((d for d in deviations if d is not None), default=None)


def _table(f: Mapping[str, Any], measure: str) -> Table:
    largest = f["largest"][measure]
    table = Table(
        box=SIMPLE_HEAD,
        title=f"{MEASURES[measure]}, in trainings of the reference",
        caption=f"Farthest from its median, of all entries: {_percent(largest)}. "
        + ", ".join(f"{i}: {name}" for i, name in enumerate(f["folders"], start=1)),
    )
    table.add_column("entry")
    for name in (*map(str, range(1, 1 + len(f["folders"]))), "median", "farthest"):
        table.add_column(name, justify="right")
    several = len({one["case"] for one in f["entries"]}) > 1
    for one in f["entries"]:
        found = one[measure]
        table.add_row(
            f"{one['case']}: {one['label']}" if several else one["label"],
            *("-" if v is None else f"{v:.3f}" for v in (*found["values"], found["median"])),
            _percent(found["deviation"]),
        )
    return table


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
