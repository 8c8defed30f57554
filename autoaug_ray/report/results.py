"""What a study's folder says: one frozen `StudyResults`, collected once.

Everything that the terminal, the page and W&B say of a study is a function of its StudyResults.
Accuracy comes from the last rows of whole final trainings only. What is billed comes from the
ledger only: every attempt counts, also those that failed or were stopped. `costs` says what a cost
is, by which entries are compared.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from autoaug_ray.config import Entry, Study
from autoaug_ray.errors import UserError
from autoaug_ray.maths.statistics import Gap, Right, compare, gap, mean_of
from autoaug_ray.report import costs
from autoaug_ray.report.elsewhere import Elsewhere, find
from autoaug_ray.report.runs import Finals, Row, Runs, Searches, read_runs, read_study
from autoaug_ray.settings.published import PublishedRow
from autoaug_ray.store import calibration, meter
from autoaug_ray.store.folder import Folder
from autoaug_ray.store.places import Place, folders, listed, place

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from autoaug_ray.policy import Policy


@dataclass(frozen=True, kw_only=True)
class EntryResult:
    """What one entry of a study reached and what it cost.

    The fields are the columns of summary.parquet, in its order; there `choices` is JSON, and
    `device_hours` is a column for each phase. `policies` and `test_right` are no columns.
    """

    method: str
    label: str
    control_of: str | None
    """The label of the learned entry that this one is a control of."""
    reference: str
    """The label of the entry whose training is the unit of cost."""
    dataset: str
    epochs: int
    seeds: tuple[int, ...]
    """The seeds whose final training is whole."""
    missing_seeds: tuple[int, ...]
    """The seeds that the study asks of it and whose final training is not whole."""
    test_accuracies: tuple[float, ...]
    """In [0, 1], in the order of `seeds`."""
    test_accuracy_mean: float | None
    test_accuracy_sd: float | None
    """With n - 1 in the denominator; None if n < 2."""
    test_accuracy_half_width: float | None
    """Half the width of the 95 % t-interval of the mean; None if n < 2."""
    macro_accuracies: tuple[float, ...]
    """Means over the classes, in [0, 1], in the order of `seeds`."""
    macro_accuracy_mean: float | None
    top5_accuracy_mean: float | None
    """In [0, 1]: the class is among the five likeliest; None with five classes or fewer."""
    difference: float | None
    """The mean difference to the reference, paired over the seeds that both have."""
    difference_half_width: float | None
    """Half the width of its 95 % interval, not corrected for several comparisons."""
    published_accuracy: float | None
    """In [0, 1]; None if the study knows of no published figure."""
    published_measure: str | None
    """What the published accuracy is: micro | macro."""
    published_cost: float | None
    """In trainings of the paper's own reference."""
    published_difference: float | None
    """Our mean by the published measure minus the published figure."""
    published_half_width: float | None
    """Half the width of its 95 % interval; None if n < 3."""
    clock: str
    """What measured the work that the costs are made of."""
    cost_seeds: tuple[int, ...]
    """The seeds whose cost is known: those that the reference has finished, too."""
    relative_costs: tuple[float, ...]
    """Work of images, search and final training, in trainings of the reference with the same seed;
    in the order of `cost_seeds`."""
    relative_cost: float | None
    """The mean of `relative_costs`."""
    relative_cost_half_width: float | None
    """Half the width of the 95 % t-interval of the mean; None if n < 2."""
    relative_search_cost: float | None
    """The part of `relative_cost` that is the search; of what another entry found, all of it."""
    amortised_search_cost: float | None
    """The same, with what was found divided by `search_users`."""
    search_users: int
    """The entries of this study that train with what this one, or the one that it follows, found:
    those that follow it, and that entry itself if it stands in this study."""
    relative_bank_cost: float | None
    """The part of `relative_cost` that is generated images."""
    plain_training_cost: float | None
    """The other part, search and final training, by plain sums instead of typical steps."""
    calibrated_training_cost: float | None
    """The same, if each step had taken as long as in the calibration."""
    flop_training_cost: float | None
    """The same, by floating-point operations of convolutions and matrix products."""
    training_device_hours: float | None
    """Work of images, search and final training of one seed, without evaluation and warm-up."""
    search_device_hours: float
    """Billed for the search trials, evaluation included."""
    total_device_hours: float
    """Billed for all attempts of all runs, evaluation and generated images included."""
    device_hours: Mapping[str, float]
    """The parts of `total_device_hours`, by phase of the meter."""
    trials: int
    """Different runs in the ledger, search and final."""
    attempts: int
    stopped: int
    """Search trials that the scheduler stopped."""
    failed: int
    """Runs that failed and are not whole."""
    lost_attempts: int
    """Attempts that were lost with their process, machine or driver."""
    lost_device_hours: float
    """What the lost attempts did after their last checkpoints."""
    displacement: float | None
    """In pixels, in the last epoch of the final trainings; mean over the seeds."""
    color_change: float | None
    """In [0, 1] units, in the last epoch of the final trainings; mean over the seeds."""
    choices: Mapping[str, Any]
    """What the search chose, by hyperparameter."""
    device: str
    policies: Mapping[int, Place]
    """The policy.pt of each seed that exported one."""
    test_right: Right
    """Which test images each seed's training classified correctly; empty for rows of versions that
    did not keep it."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % t-interval of the mean test accuracy, in [0, 1]; None if n < 2."""
        if self.test_accuracy_mean is None or self.test_accuracy_half_width is None:
            return None
        mean, half = self.test_accuracy_mean, self.test_accuracy_half_width
        return mean - half, mean + half

    @property
    def by_seed(self) -> dict[int, float]:
        """seed -> test accuracy in [0, 1]."""
        return dict(zip(self.seeds, self.test_accuracies, strict=True))

    @property
    def cost_by_seed(self) -> dict[int, float]:
        """seed -> relative cost."""
        return dict(zip(self.cost_seeds, self.relative_costs, strict=True))

    @property
    def relative_training_cost(self) -> float | None:
        """The part of `relative_cost` that is no generated images."""
        if self.relative_cost is None or self.relative_bank_cost is None:
            return None
        return self.relative_cost - self.relative_bank_cost

    def load_policy(self, seed: int | None = None) -> "Policy":
        """The transform that a seed ended with; without `seed`, that of the first seed.

        Raises UserError if the entry has no policy of that seed.
        """
        from autoaug_ray.policy import load_policy

        seed = next(iter(self.policies), None) if seed is None else seed
        if seed is None or seed not in self.policies:
            known = ", ".join(map(str, self.policies)) or "none"
            raise UserError(f"{self.label} has no policy of seed {seed}; seeds with one: {known}.")
        return load_policy(str(self.policies[seed]))

    def row(self) -> dict[str, Any]:
        """The entry's row of summary.parquet, as plain values."""
        values = vars(self) | {"choices": json.dumps(self.choices)}
        values |= {f"device_hours_{phase}": self.device_hours[phase] for phase in meter.PHASES}
        known = {name: values[name] for name in SUMMARY.names}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in known.items()}


_TYPES: dict[Any, pa.DataType] = {
    str: pa.string(),
    str | None: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    float | None: pa.float64(),
    tuple[int, ...]: pa.list_(pa.int64()),
    tuple[float, ...]: pa.list_(pa.float64()),
}


def _columns() -> Iterable[tuple[str, pa.DataType]]:
    for field in fields(EntryResult):
        if field.name == "device_hours":
            yield from ((f"device_hours_{phase}", pa.float64()) for phase in meter.PHASES)
        elif field.name not in ("policies", "test_right"):
            yield field.name, pa.string() if field.name == "choices" else _TYPES[field.type]


SUMMARY = pa.schema(list(_columns()))
"""The columns of summary.parquet."""


@dataclass(frozen=True, kw_only=True)
class StudyResults:
    """What the folder of a study, or of one case of it, holds. See `load_results`."""

    study: Study
    root: Place
    """The study's folder."""
    entries: tuple[EntryResult, ...]
    """In the study's order."""
    classes: tuple[str, ...]
    """Names of the dataset's classes in the order of their labels; empty if they are not known."""
    finals: Finals
    """Whole final trainings of the chosen setting."""
    searches: Searches
    run_costs: Mapping[str, float]
    """Key of a final training -> device-hours of work of it and of all that it needed: search and
    images."""
    elsewhere: Mapping[str, Elsewhere]
    """label -> what the entry trains with, if an entry of another study found it."""
    failures: tuple[Row, ...]
    """The last outcome of each run that failed and is not whole."""
    misused: tuple[str, ...]
    """Keys of final trainings that did not use the settings that they were asked to."""
    bank_faults: tuple[str, ...]
    """Sentences about what went wrong with the generated images."""
    bill: tuple[str, ...]
    """Sentences about what the machines cost; empty for one of several cases."""
    foreign: int
    """Runs in the folder with other settings than the study's."""
    sheet: bytes | None
    """The PNG of some generated images, if the study made any."""

    @property
    def name(self) -> str:
        """The case's name, or the name of the folder."""
        return self.study.case or self.root.name

    @property
    def reference(self) -> EntryResult:
        """The entry whose training is the unit of cost."""
        return self.by_label[self.study.reference]

    @cached_property
    def by_label(self) -> dict[str, EntryResult]:
        return {entry.label: entry for entry in self.entries}

    @cached_property
    def last_rows(self) -> list[Row]:
        """The last row of every whole final training."""
        return [rows[-1] for by_seed in self.finals.values() for rows in by_seed.values()]

    def best(self) -> EntryResult:
        """The entry that the report's verdict says to use, be it X or the cheapest.

        Raises UserError where it is too early to say.
        """
        from autoaug_ray.report.verdict import verdict

        found = verdict(self)
        if found.use is None:
            raise UserError(found.headline)
        return found.use

    def to_arrow(self) -> pa.Table:
        """The table of summary.parquet."""
        return pa.Table.from_pylist([entry.row() for entry in self.entries], schema=SUMMARY)

    def to_pandas(self) -> "pd.DataFrame":
        """One row per entry, with the columns of summary.parquet."""
        return self.to_arrow().to_pandas()

    def table(self) -> "pd.DataFrame":
        """What the report's table says of each entry, as numbers; see `report.notebook.table`."""
        from autoaug_ray.report import notebook

        return notebook.table(self)

    def plot(self) -> "Figure":
        """Test accuracy over relative cost, with seeds, intervals and the Pareto front.

        Raises UserError where no cost is known yet.
        """
        from autoaug_ray.report import notebook

        return notebook.plot(self)

    def _repr_html_(self) -> str:
        from autoaug_ray.report import notebook

        return notebook.page(self)


def load_results(path: str | Place) -> StudyResults | dict[str, StudyResults]:
    """The results of a study's folder, as in runs/quickstart or s3://bucket/runs/quickstart.

    A study with cases has a folder below its own for each of them: then this returns a dict from
    the name of each case to its StudyResults. Raises UserError if the folder holds no study.
    """
    root = place(path)
    found = [collect(study, folder) for study, folder in studies_in(root)]
    return {one.name: one for one in found} if found[0].root != root else found[0]


def studies_in(root: Place) -> list[tuple[Study, Folder]]:
    """The study of a folder as it was run, or its cases by name. Raises UserError if none is."""
    files = listed(root, "study.json")
    files = files or [f for case in folders(root) for f in listed(case, "study.json")]
    if not files:
        raise UserError(
            f"{root} holds no study.json; give the folder of one study, as in runs/quickstart."
        )
    return [(read_study(f.parent), Folder(f.parent)) for f in files]


def collect_cases(cases: Iterable[tuple[Study, Folder]]) -> list[StudyResults]:
    """The results of each study, read once, without its images."""
    return [collect(study, folder) for study, folder in cases]


# From the folder to the results


def collect(study: Study, folder: Folder) -> StudyResults:
    """Read rows, ledger and outcomes of a study's folder, each file once."""
    from autoaug_ray.report.elimination import only_asked

    runs = read_runs(study, folder)
    found = find(study, folder, runs)
    work = costs.work_of(study, runs, calibration.read(folder.calibration), found)
    sheet = folder.root / "sheet.png"
    last = [rows[-1] for by_seed in runs.finals.values() for rows in by_seed.values()]
    results = StudyResults(
        study=study,
        root=folder.root,
        entries=tuple(_entry(study, entry, runs, work, folder) for entry in study.entries),
        classes=folder.classes(),
        finals=runs.finals,
        searches=runs.searches,
        run_costs=costs.run_costs(work, runs),
        elsewhere=found,
        failures=tuple(line for line in runs.outcomes if line["outcome"] == "failed"),
        misused=tuple(row["run_key"] for row in last if row["used_key"] != row["run_key"]),
        bank_faults=_lines(folder.bank_faults),
        bill=_lines(folder.bill),
        foreign=len(runs.foreign),
        sheet=sheet.read_bytes() if sheet.is_file() else None,
    )
    return only_asked(results)


def _lines(file: Place) -> tuple[str, ...]:
    return tuple(file.read_text().splitlines()) if file.exists() else ()


# The sums of one entry


def _entry(
    study: Study,
    entry: Entry,
    runs: Runs,
    work: costs.StudyWork,
    folder: Folder,
) -> EntryResult:
    label, lines = entry.label, runs.ledger[entry.label]
    last = [rows[-1] for rows in runs.finals[label].values()]
    accuracies = _accuracies(runs, label)
    mean = mean_of(list(accuracies.values())) if accuracies else None
    difference = compare(
        label, accuracies, study.reference, _accuracies(runs, study.reference),
        right=(_right(runs, label), _right(runs, study.reference)),
    )  # fmt: skip
    macro = tuple(
        fmean(share for share in row["class_accuracy"] if share is not None)
        for row in last
        if row["class_accuracy"]
    )
    hours = {p: _seconds(lines, (p,)) / 3600 for p in meter.PHASES} | _bank_hours(last)
    devices = {line["device"] for line in lines} or {row["device"] for row in last}
    clocks = {line["clock"] for line in lines if "clock" in line}
    policies = {s: folder.policy(label, s) / "policy.pt" for s in accuracies}
    return EntryResult(
        method=entry.hyperparameters["name"],
        label=label,
        control_of=entry.control_of,
        reference=study.reference,
        dataset=study.dataset.name,
        epochs=study.train.epochs,
        seeds=tuple(accuracies),
        missing_seeds=tuple(s for s in study.seeds if s not in accuracies),
        test_accuracies=tuple(accuracies.values()),
        test_accuracy_mean=mean.mean if mean else None,
        test_accuracy_sd=mean.sd if mean else None,
        test_accuracy_half_width=mean.half_width if mean else None,
        macro_accuracies=macro,
        macro_accuracy_mean=_mean(macro),
        top5_accuracy_mean=_mean(row.get("test_top5") for row in last),
        difference=difference.difference,
        difference_half_width=difference.half_width,
        **_published(study, label, tuple(accuracies.values()), macro),
        clock=", ".join(sorted(clocks)),
        **costs.of_entry(work, label),
        search_device_hours=_seconds(
            [line for line in lines if line["phase"] == "search"], meter.PHASES
        )
        / 3600,
        total_device_hours=sum(hours.values()),
        device_hours=hours,
        trials=len({line["run"] for line in lines}),
        attempts=len(lines),
        stopped=_count(runs.outcomes, label, "stopped"),
        failed=_count(runs.outcomes, label, "failed"),
        lost_attempts=len(runs.lost[label]),
        lost_device_hours=math.fsum(map(meter.in_vain, runs.lost[label])) / 3600,
        displacement=_mean(row["displacement"] for row in last),
        color_change=_mean(row["color_change"] for row in last),
        choices=runs.choices[label],
        device=", ".join(sorted(devices)),
        policies={seed: path for seed, path in policies.items() if path.is_file()},
        test_right=_right(runs, label),
    )


def _accuracies(runs: Runs, label: str) -> dict[int, float]:
    """seed -> test accuracy in [0, 1]."""
    return {seed: rows[-1]["test_accuracy"] for seed, rows in runs.finals[label].items()}


def _right(runs: Runs, label: str) -> Right:
    last = {seed: rows[-1].get("test_right") for seed, rows in runs.finals[label].items()}
    return {seed: right for seed, right in last.items() if right is not None}


def _count(outcomes: Iterable[Row], label: str, outcome: str) -> int:
    return sum((line["label"], line["outcome"]) == (label, outcome) for line in outcomes)


def _published(
    study: Study, label: str, accuracies: Sequence[float], macro: Sequence[float]
) -> dict[str, Any]:
    paper = study.published.entries.get(label) if study.published else None
    measure = study.published.measure if study.published and paper else None
    gap = gap_to(paper, macro if measure == "macro" else accuracies)
    return {
        "published_accuracy": paper.accuracy / 100 if paper else None,
        "published_measure": measure,
        "published_cost": paper.cost if paper else None,
        "published_difference": gap.difference if gap else None,
        "published_half_width": gap.half_width if gap else None,
    }


def gap_to(published: PublishedRow | None, accuracies: Sequence[float]) -> Gap | None:
    """Our accuracies [0, 1] over seeds minus the published figure; None if either is missing."""
    if published is None or not accuracies:
        return None
    sd = None if published.sd is None else published.sd / 100
    return gap(mean_of(accuracies), published.accuracy / 100, sd, published.seeds)


def _bank_hours(last: Sequence[Row]) -> dict[str, float]:
    """Device-hours of generated images, by phase; seeds that share a plan share its cost."""
    by_plan = {row["bank_plan"]: row["bank_hours"] for row in last}
    return {p: math.fsum(hours.get(p, 0.0) for hours in by_plan.values()) for p in meter.BANK}


def _seconds(lines: Iterable[Row], phases: Sequence[str]) -> float:
    """Device-seconds: seconds held x share of the device."""
    return math.fsum(line["share"] * line["seconds"].get(p, 0.0) for line in lines for p in phases)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return fmean(known) if known else None
