"""The share of time that one driver keeps many GPUs busy: its cost measured, the GPUs simulated."""

import heapq
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table

from autoaug_ray import config
from autoaug_ray.bench import DATASET, Outcome
from autoaug_ray.bench.tune import run_all
from autoaug_ray.config import Study
from autoaug_ray.errors import UserError
from autoaug_ray.store import meter as metering
from autoaug_ray.store.folder import ROW, Folder

RECORDED = (
    129.1, 129.4, 132.6, 103.5, 140.6, 155.6, 140.3, 124.2, 97.6, 189.1, 193.8, 104.6,
    135.9, 129.0, 120.6, 130.1, 132.7, 131.7, 126.8, 129.7, 199.5, 133.7, 121.9, 151.0,
)  # fmt: skip
"""Seconds of the attempts in a ledger of a ResNet-8 on 60,000 images, 4 epochs, on a CPU."""
NODES = (1, 4, 16, 64)
SHARES = (1.0, 0.25)  # of a GPU that a trial holds
BUSY_AIM = 0.9
REPORTED = (1, 9)  # results of a trial in the two measured studies
RANGE = (2.0**-4, 2.0**17)  # seconds that a trial may last: a sixteenth to a day and a half


class Driver(NamedTuple):
    """The seconds that the driver and the actors take."""

    trial: float  # of the driver, for a trial that ends and the one that takes its place
    result: float  # of the driver, for a result; its trial waits
    start: float = 0.0  # until an actor that is asked for can work, libraries imported
    together: bool = True
    """If False, actors start one at a time, as with Tune's one pending trial. An actor that falls
    idle takes over the trial that the next one was started for, and that start is given up."""


class Simulated(NamedTuple):
    seconds: float  # until the last trial has ended
    busy: float  # share of all slots' time that is training
    driver: float  # share of the time that the driver works


def simulate(trials: Sequence[float], slots: int, driver: Driver, results: int = 1) -> Simulated:
    """Simulates trials of these seconds, which report `results` times each, on so many slots.

    A slot is what one trial holds: a GPU or a part of it. Slots with nothing to do, and those whose
    trials report, wait for their turn with the driver.
    """
    queue = iter(trials)
    # (when the slot needs the driver, slot, seconds from one result to the next, results to come)
    asking = [(driver.start, slot, 0.0, 0) for slot in range(slots if driver.together else 1)]
    working = slots if driver.together else 0
    """Slots below this number have an actor; if they start one at a time, this one is starting."""
    free = worked = end = 0.0
    while asking:
        at, slot, step, left = heapq.heappop(asking)
        begin = max(at, free)
        if slot == working:
            working += 1
        if left:
            free, worked = begin + driver.result, worked + driver.result
            left -= 1
        if left:
            heapq.heappush(asking, (free + step, slot, step, left))
            continue
        end = max(end, free)
        if (seconds := next(queue, None)) is None:
            continue
        free, worked = max(begin, free) + driver.trial, worked + driver.trial
        step = seconds / results
        heapq.heappush(asking, (free + step, slot, step, results))
        if working < slots:
            asking = [event for event in asking if event[1] != working]
            asking.append((free + driver.start, working, 0.0, 0))
            heapq.heapify(asking)
    return Simulated(end, sum(trials) / (slots * end), worked / end)


def shortest(
    spread: Sequence[float], trials: int, slots: int, driver: Driver, results: int
) -> float | None:
    """Mean seconds of a trial from which on the slots are BUSY_AIM busy; None if always less."""
    low, high = RANGE
    if simulate(lasting(spread, trials, high), slots, driver, results).busy < BUSY_AIM:
        return None
    while high > 1.01 * low:
        middle = (low * high) ** 0.5
        busy = simulate(lasting(spread, trials, middle), slots, driver, results).busy
        low, high = (low, middle) if busy >= BUSY_AIM else (middle, high)
    return high


def lasting(spread: Sequence[float], trials: int, mean: float) -> list[float]:
    """The seconds of so many trials, as long relative to each other as the recorded ones."""
    times = mean / (sum(spread) / len(spread))
    return [seconds * times for seconds in islice(cycle(spread), trials)]


class Measured(NamedTuple):
    trials: int
    held_seconds: float  # of the driver: neither asleep nor waiting for an event
    cpu_seconds: float
    late: float  # held seconds per trial, the second half's relative to the first half's
    processes: int  # that the trials ran in
    start_seconds: float  # until the first trial began


def measure(trials: int, slots: int, results: int, seconds: float) -> Measured:
    """The driver's cost of a search, through `tune.execute`; its trials only sleep and report.

    Half of the trials ask for half a CPU, and must not be the reason for new processes.
    """
    import ray

    from autoaug_ray.schedule.tune import Watch

    study = _study(results, trials)
    with tempfile.TemporaryDirectory(prefix="autoaug-bench-") as root:
        folder = Folder(Path(root))
        waited = [0.0]
        marks: list[float] = []

        class Marks(Watch):
            def ended(self, trial_id: str) -> None:
                marks.append(time.monotonic() - waited[0])

        attempt = _sleeper(_template(study, folder), results, seconds)
        with _timed(ray, "wait", waited):
            began, cpu = time.time(), time.process_time()
            run_all(study, folder, watch=Marks(), attempt=attempt)
            cpu = time.process_time() - cpu
        starts = [line.split() for line in (folder.root / "starts").read_text().splitlines()]
    # The first tenth is left out: the first trials wait for actors, the last for each other.
    a, b, c = (round(len(marks) * part) for part in (0.1, 0.5, 0.9))
    first, second = (marks[b] - marks[a]) / (b - a), (marks[c] - marks[b]) / (c - b)
    held = (marks[c] - marks[a]) / (c - a) * len(marks)
    return Measured(
        len(marks), held, cpu, second / first, len({pid for pid, _ in starts}),
        min(float(at) for _, at in starts) - began,
    )  # fmt: skip


def _study(results: int, trials: int) -> Study:
    def searched(cpus: float) -> dict[str, Any]:
        return {
            "method": "validated_magnitude", "magnitude": {"uniform": [0, 0.5]},
            "search": {"samples": trials // 2, "scheduler": "asha"}, "resources": {"cpus": cpus},
        }  # fmt: skip

    tree = {
        "dataset": DATASET.model_dump(exclude_defaults=True), "train": {"epochs": results},
        "seeds": 1, "methods": {"none": {}, "whole": searched(1), "half": searched(0.5)},
    }  # fmt: skip
    return config.study(tree, name="bench-scale")


def _template(study: Study, folder: Folder) -> Path:
    """The file of rows that every trial leaves; the driver reads only its last row."""
    run = study.run(study.entry("whole"), "final", seed=0, choices={"magnitude": 0.1})
    row = dict.fromkeys(ROW.names) | {
        "settings": run.model_dump_json(), "epoch": run.train.epochs, "index": 0,
        "val_accuracy": 0.5, "finished": True,
    }  # fmt: skip
    folder.write_rows("template", [row] * run.train.epochs)
    return Path(str(folder.rows / "template.parquet")).rename(str(folder.root / "template"))


def _sleeper(template: Path, results: int, seconds: float) -> Callable[..., None]:
    """A trial that trains nothing. Its process must not import this package: torch would come."""

    def attempt(config: dict[str, Any], **_: Any) -> None:
        import hashlib
        import os
        import shutil
        import time

        from ray import tune

        with open(f"{config['root']}/starts", "a") as file:
            file.write(f"{os.getpid()} {time.time()}\n")
        key = hashlib.sha256(config["run"].encode()).hexdigest()[:16]
        for epoch in range(1, results + 1):
            time.sleep(seconds / results)
            if epoch == results:
                shutil.copy(template, f"{config['root']}/rows/{key}.parquet")
            tune.report({
                "label": config["label"], "epoch": epoch, "score": 0.5, "device_hours": 0.0,
            })  # fmt: skip

    return attempt


@contextmanager
def _timed(module: Any, name: str, spent: list[float]) -> Iterator[None]:
    """Adds up the seconds in a function of a module: a driver that waits for events is idle."""
    function = getattr(module, name)

    def timed(*arguments: Any, **keywords: Any) -> Any:
        began = time.monotonic()
        try:
            return function(*arguments, **keywords)
        finally:
            spent[0] += time.monotonic() - began

    setattr(module, name, timed)
    try:
        yield
    finally:
        setattr(module, name, function)


def scale(
    *,
    trials: Annotated[int, "of the simulated study"] = 1000,
    seconds: Annotated[float, "that one of them lasts on average"] = 300.0,
    results: Annotated[int, "that one of them reports: its epochs"] = 30,
    start: Annotated[float, "seconds until an actor on a fresh node has imported all"] = 20.0,
    measured: Annotated[int, "trials of the two studies that measure the driver"] = 200,
    slots: Annotated[int, "trials of these at a time, asleep, on logical CPUs"] = 4,
    study: Annotated[str, "OUT/STUDY whose ledger says how trials differ; '': a recorded one"] = "",
) -> Outcome:
    """How busy one driver keeps 1 to 64 GPUs: its cost is measured, the cluster simulated."""
    spread: Sequence[float] = RECORDED
    if study:
        lines = metering.read(Folder(Path(study)).ledger)
        spread = [sum(line["seconds"].values()) for line in lines]
        if not spread:
            raise UserError(f"--study must be a folder with a ledger, got {study}.")
    if measured < 20 or measured % 2:
        raise UserError(f"--measured must be an even number from 20 on, got {measured}.")
    from autoaug_ray.schedule import cluster

    cluster.join(slots)
    few, many = (measure(measured, slots, reported, 0.2) for reported in REPORTED)
    more = few.trials * (REPORTED[1] - REPORTED[0])
    result = max(0.0, (many.held_seconds - few.held_seconds) / more)
    cpu = max(0.0, (many.cpu_seconds - few.cpu_seconds) / more)
    driver = Driver(few.held_seconds / few.trials - REPORTED[0] * result, result, start)
    alone = driver._replace(together=False)
    rows = []
    for nodes in NODES:
        for share in SHARES:
            lanes = round(nodes / share)
            some = lasting(spread, trials, seconds)
            rows.append({
                "nodes": nodes, "share": share, "slots": lanes,
                "ideal": simulate(some, lanes, Driver(0, 0), results)._asdict(),
                "together": simulate(some, lanes, driver, results)._asdict(),
                "alone": simulate(some, lanes, alone, results)._asdict(),
                "shortest": shortest(spread, trials, lanes, driver, results),
                "shortest_alone": shortest(spread, trials, lanes, alone, results),
            })  # fmt: skip
    figures = {
        "trials": trials, "seconds": seconds, "results": results, "start": start,
        "driver": {
            "trial": driver.trial, "result": result,
            "trial_cpu": few.cpu_seconds / few.trials - REPORTED[0] * cpu, "result_cpu": cpu,
        },
        "measured": [few._asdict(), many._asdict()], "slots": slots, "rows": rows,
        "aim": BUSY_AIM,
    }  # fmt: skip
    return Outcome(figures, [_driver_table(figures), _scale_table(figures)])


def _driver_table(f: dict[str, Any]) -> Table:
    few, many = f["measured"]
    table = Table(
        box=SIMPLE_HEAD, caption_justify="left", min_width=79,
        title=f"the driver: two studies of {few['trials']} trials that only sleep and report",
        caption=f"Held: until it waits for the next event. The second half of the trials cost "
        f"{few['late']:.2f} and {many['late']:.2f} times the first half. On {f['slots']} logical "
        f"CPUs, half of the trials with half of one, they ran in {few['processes']} and "
        f"{many['processes']} processes; the first began after {few['start_seconds']:.1f} s.",
    )  # fmt: skip
    for name in ("milliseconds", "held", "CPU"):
        table.add_column(name, justify="left" if name == "milliseconds" else "right")
    for name in ("trial", "result"):
        held, cpu = f["driver"][name], f["driver"][f"{name}_cpu"]
        table.add_row(f"per {name}", f"{held * 1e3:.1f}", f"{cpu * 1e3:.1f}")
    return table


def _scale_table(f: dict[str, Any]) -> Table:
    table = Table(
        box=SIMPLE_HEAD, caption_justify="left",
        title=f"{f['trials']} trials of {f['seconds']:g} s and {f['results']} results, "
        f"actors start in {f['start']:g} s (simulated)",
        caption="busy: share of all GPUs' time until the last trial ends that is training; no "
        "driver: what the tail alone leaves. One by one: Tune's way with one pending trial. "
        f"From: the shortest trials, on average, that keep the GPUs {f['aim']:.0%} busy.",
    )  # fmt: skip
    for name in ("GPUs", "of one", "no driver", "busy", "driver", "from", "one by one", "from"):
        table.add_column(name, justify="right")

    def least(seconds: float | None) -> str:
        return "never" if seconds is None else f"{seconds:.3g} s"

    for row in f["rows"]:
        together, alone = row["together"], row["alone"]
        table.add_row(
            str(row["nodes"]), f"{row['share']:g}", f"{row['ideal']['busy']:.1%}",
            f"{together['busy']:.1%}", f"{together['driver']:.1%}", least(row["shortest"]),
            f"{alone['busy']:.1%}", least(row["shortest_alone"]),
        )  # fmt: skip
    return table
