"""`autoaug-ray calibrate`: what a step of every entry takes, by the clock and by arithmetic.

The same measurement stands before every run of a study and behind its forecast.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.table import Table

from autoaug_ray.config import Study
from autoaug_ray.report.cost_sentences import WARN
from autoaug_ray.report.terminal import Columns
from autoaug_ray.schedule.calibrate import share_of
from autoaug_ray.schedule.calibration_task import Fault, calibrate_on_workers
from autoaug_ray.schedule.forecast import Forecast, forecast, sentence
from autoaug_ray.schedule.memory import remedy
from autoaug_ray.schedule.queue import queues_of
from autoaug_ray.schedule.tune import draw
from autoaug_ray.store import calibration
from autoaug_ray.store.calibration import Calibration, KindOfStep, Training
from autoaug_ray.store.folder import Folder

MUCH = 1.5
"""A step with so many times the arithmetic of the reference's does other things than that."""
WORTH = 0.1
"""A study is not calibrated before its runs if that takes more than this share of their steps."""
Say = Callable[[str], None]


def print_calibrations(studies: Sequence[Study], console: Console) -> int:
    """Calibrate all cases of a study and print what was found; the exit status."""
    failed = False
    outcomes = calibrate_on_workers(studies, budget=float("inf"))
    for study, outcome in zip(studies, outcomes, strict=True):
        if isinstance(outcome, Fault):
            console.print(f"{_name(study)} is not calibrated: {outcome.message}.")
            failed = True
            continue
        console.print(step_table(study, outcome))
        lines = *differences(study, outcome), *memory_lines(study, outcome)
        for line in (*lines, *outcome.left_out.values()):
            console.print(line)
    return int(failed)


def calibrate_before_runs(studies: Sequence[Study], folders: Sequence[Folder], say: Say) -> None:
    """Calibrate the cases that have runs left, keep it in their folders, and say what they cost.

    Cases so short that it would hold them up are left out. A calibration that fails is told, and
    stops nothing. Raises UserError for what is wrong in the study, and StorageError if a folder
    cannot be used.
    """
    left: list[tuple[Study, Folder]] = []
    short: list[Study] = []
    for queue in queues_of(list(zip(studies, folders, strict=True)), draw):
        if queue.complete:
            continue
        if share_of(queue.study, queue.expected) <= WORTH:
            left.append((queue.study, queue.folder))
        else:
            short.append(queue.study)
    if short:
        names = ", ".join(map(_name, short))
        say(f"no forecast of {names}: the runs are too short for a calibration before them.")
    if not left:
        return
    kept = [calibration.read(folder.calibration) for _, folder in left]
    outcomes = calibrate_on_workers([study for study, _ in left], kept, wait=False)
    for (_, folder), before, outcome in zip(left, kept, outcomes, strict=True):
        if isinstance(outcome, Calibration) and outcome != before:
            calibration.write(folder.calibration, outcome)
    for line in forecast_lines([study for study, _ in left], outcomes):
        say(line)


def forecast_lines(
    studies: Sequence[Study], outcomes: Sequence[Calibration | Fault]
) -> Iterator[str]:
    """What the cases of a study will take together, and what could not be calibrated."""
    forecasts: list[Forecast] = []
    devices: set[str] = set()
    for study, outcome in zip(studies, outcomes, strict=True):
        if isinstance(outcome, Fault):
            yield f"{_name(study)} is not calibrated: {outcome.message}."
            continue
        forecasts += forecast(study, outcome)
        devices |= {entry.device for entry in outcome.entries}
        yield from memory_lines(study, outcome)
        yield from outcome.left_out.values()
    if forecasts:
        yield sentence(forecasts, " and ".join(sorted(devices))) + "."


def forecast_table(study: Study, calibrated: Calibration) -> Columns:
    """The runs of each entry and what they will take."""
    forecasts = forecast(study, calibrated)
    devices = ", ".join(sorted({e.device for e in calibrated.entries}))
    head = [
        "entry", "search runs", "final runs", "min per search run", "min per final run", "hours",
        "MB",
    ]  # fmt: skip
    rows = [
        [
            f.label, str(f.search_runs), str(f.final_runs),
            f"{f.search_run_seconds / 60:.2f}" if f.search_runs else "",
            f"{f.final_run_seconds / 60:.2f}", f"{f.device_seconds / 3600:.4f}",
            _megabytes(_memory(calibrated, f.label)),
        ]
        for f in forecasts
    ]  # fmt: skip
    total = sum(f.device_seconds for f in forecasts)
    runs = (sum(f.search_runs for f in forecasts), sum(f.final_runs for f in forecasts))
    rows.append(["all", *map(str, runs), "", "", f"{total / 3600:.4f}", ""])
    title = f"forecast: device-hours of training on {devices}, from a few steps of every entry"
    return Columns(head, rows, title=title)


def step_table(study: Study, calibrated: Calibration) -> Table:
    """A line for each kind of step of each entry."""
    unit = calibrated.training(study.reference, "final")
    clocks = ", ".join(sorted({f"{e.clock} on {e.device}" for e in calibrated.entries}))
    table = Table(title=f"{_name(study)}: {clocks}; whole runs relative to {study.reference}")
    table.add_column("entry")
    table.add_column("step that logs")
    for name in (
        "steps", "ms/step", "quartiles", "GFLOP/step", "GFLOP/s", "cost by ms", "by FLOP", "MB",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    for label, training in _trainings(calibrated):
        ratios = ["" if r is None else f"{r:.2f}" for r in _ratios(training, unit)]
        for i, kind in enumerate(training.kinds):
            gflop = "" if kind.gflop is None else f"{kind.gflop:.4g}"
            table.add_row(
                "" if i else label, kind.logged, str(kind.in_run), f"{1e3 * kind.median:.2f}",
                f"{1e3 * kind.q1:.2f}-{1e3 * kind.q3:.2f}", gflop, _speed(kind),
                *(["", "", ""] if i else [*ratios, _megabytes(training.memory)]),
            )  # fmt: skip
    return table


def memory_lines(study: Study, calibrated: Calibration) -> Iterator[str]:
    """A sentence for each entry whose steps take more memory than its share of the device has."""
    for entry in calibrated.entries:
        needed = _memory(calibrated, entry.label)
        if needed is not None and entry.memory is not None and needed > entry.memory:
            yield (
                f"{entry.label} needs {_megabytes(needed)} MB at a time, and its share of "
                f"{entry.device} has {_megabytes(entry.memory)}: "
                f"{remedy(study.train.accumulate)}, or give it more of a device (resources)."
            )


def _memory(calibrated: Calibration, label: str) -> int | None:
    """The most bytes that a step of an entry takes; None if that was not measured."""
    entry = calibrated.entry(label)
    trainings = [] if entry is None else [entry.final, *([entry.search] if entry.search else [])]
    return max((t.memory for t in trainings if t.memory is not None), default=None)


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.0f}"


def differences(study: Study, calibrated: Calibration) -> Iterator[str]:
    """A sentence for each cause why measured and arithmetic costs of trainings differ."""
    unit = calibrated.training(study.reference, "final")
    by_cause: defaultdict[str, list[str]] = defaultdict(list)
    for label, training in _trainings(calibrated):
        by_clock, by_flop = _ratios(training, unit)
        if unit is None or by_clock is None or by_flop is None:
            continue
        if abs(by_clock / by_flop - 1) > WARN:
            cause = _cause(training, unit, study.reference)
            by_cause[cause].append(f"{label} {by_clock:.2f} and {by_flop:.2f}")
    for cause, those in by_cause.items():
        yield f"Cost by the clock and by arithmetic: {', '.join(those)}: {cause}."


def _cause(training: Training, unit: Training, reference: str) -> str:
    """Why a training's clock and its arithmetic may differ, which they do."""
    if training.after > WARN * training.seconds:
        return "what is found after the last step is not counted"
    most = max(kind.gflop or 0.0 for kind in unit.kinds)
    if any((kind.gflop or 0.0) > MUCH * most for kind in training.kinds):
        own = " and ".join(f"{_speed(kind)} ({kind.logged})" for kind in training.kinds)
        return (
            "passes through the classifier that a plain training does not have, such as a double "
            f"backward, run at another speed: {own} GFLOP/s, {reference} at "
            f"{' and '.join(map(_speed, unit.kinds))}"
        )
    if training.seconds > unit.seconds:
        return (
            "the counter knows convolutions and matrix products only, not what an augmentation "
            "does to single pixels"
        )
    return f"the same arithmetic runs faster than in {reference}, or some of it is left out"


def _trainings(calibrated: Calibration) -> Iterator[tuple[str, Training]]:
    for entry in calibrated.entries:
        if entry.search is not None:
            yield f"{entry.label}, search", entry.search
        yield entry.label, entry.final


def _ratios(training: Training, unit: Training | None) -> tuple[float | None, float | None]:
    """Measured and arithmetic cost of a run in runs of the unit."""
    if unit is None:
        return None, None
    by_flop = training.gflop / unit.gflop if training.gflop and unit.gflop else None
    return training.seconds / unit.seconds, by_flop


def _speed(kind: KindOfStep) -> str:
    return "" if not kind.gflop or not kind.median else f"{kind.gflop / kind.median:.1f}"


def _name(study: Study) -> str:
    return f"{study.name}, {study.case}" if study.case else study.name
