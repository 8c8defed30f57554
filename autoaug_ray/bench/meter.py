"""What it costs to measure the cost: the marks between steps, and the warm-up."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from autoaug_ray import config, train
from autoaug_ray.bench import DATASET, Outcome, device_of, now
from autoaug_ray.bench.tune import epoch_seconds
from autoaug_ray.config import Run
from autoaug_ray.store import meter as metering
from autoaug_ray.store.meter import Meter

AIM = 0.02
"""Share of a training that its meter may cost."""
MARKS = 1000
"""Marks by which the length of one is told."""
WARM_UPS = 9
"""Warm-ups by which the length of one is told."""


class Unmeasured:
    """A work clock that does nothing."""

    name = "none"

    def mark(self) -> None:
        return None

    def between(self, marks: Sequence[None]) -> list[float]:
        return [0.0] * (len(marks) - 1)


def meter(
    *,
    seconds: Annotated[float, "that a training should last, by a timed probe"] = 30.0,
    rounds: Annotated[int, "of one training each way"] = 5,
    device: Annotated[str, "cpu or cuda"] = "cpu",
) -> Outcome:
    """What marks between steps, and steps to warm up, add to a training; on a CPU in CPU time."""
    where = device_of(device)
    epochs = max(1, round(seconds / epoch_seconds()))
    tree = {
        "dataset": DATASET.model_dump(exclude_defaults=True), "train": {"epochs": epochs},
        "seeds": 1, "methods": {"none": {}},
    }  # fmt: skip
    study = config.study(tree, name="bench-meter")
    run = study.run(study.entries[0], "final", seed=0, choices={})
    ways: dict[str, Callable[[], float]] = {
        "neither": partial(_train, run, where, marks=False, warm_up=False),
        "marks": partial(_train, run, where, marks=True, warm_up=False),
        "marks and warm-up": partial(_train, run, where, marks=True, warm_up=True),
    }
    ways["neither"]()  # so that the process is warm
    spent: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for turn in range(rounds):
        first = turn % len(names)  # in another order each time: what came before leaves its caches
        for name in names[first:] + names[:first]:
            spent[name].append(ways[name]())
    plain = spent["neither"]
    overhead = {
        name: [one / unit - 1 for one, unit in zip(spent[name], plain, strict=True)]
        for name in ways if name != "neither"
    }  # fmt: skip
    used = train.load_data(run, where, None)
    marks = epochs * max(1, len(used.splits.train) // run.train.batch_size)
    mark_seconds, warm_up_seconds = _mark_seconds(where), _warm_up_seconds(run, where, used)
    unit = statistics.median(plain)
    parts = {
        "marks": marks * mark_seconds / unit,
        "marks and warm-up": (marks * mark_seconds + warm_up_seconds) / unit,
    }
    figures = {
        "device": metering.device_name(where), "epochs": epochs, "rounds": rounds,
        "seconds": spent, "overhead": overhead, "parts": parts, "mark_seconds": mark_seconds,
        "warm_up_seconds": warm_up_seconds, "aim": AIM,
    }  # fmt: skip
    return Outcome(figures, [_table(figures)])


def _clock(device: torch.device) -> Callable[[], float]:
    """Seconds of CPU time; for a GPU, of a clock on the wall once it has done what it should."""
    return time.process_time if device.type == "cpu" else partial(now, device)


def _train(run: Run, device: torch.device, *, marks: bool, warm_up: bool) -> float:
    """Seconds of a whole training."""
    clock = _clock(device)
    known = set(train.WARM)
    if warm_up:
        train.WARM.clear()
    else:
        train.warm_up(run, device, train.load_data(run, device, None))
    begin = clock()
    for _ in train.run(run, Meter(device=device, work_clock=None if marks else Unmeasured())):
        pass
    spent = clock() - begin
    train.WARM.update(known)
    return spent


def _mark_seconds(device: torch.device) -> float:
    """Seconds that a mark takes a process."""
    clock = Meter(device=device).work_clock
    begin = time.perf_counter()
    for _ in range(MARKS):
        clock.mark()
    return (time.perf_counter() - begin) / MARKS


def _warm_up_seconds(run: Run, device: torch.device, used: train.DataUsed) -> float:
    """Seconds of a warm-up in a process that is warm; the median of WARM_UPS."""
    clock, spent = _clock(device), []
    for _ in range(WARM_UPS):
        train.WARM.clear()
        begin = clock()
        train.warm_up(run, device, used)
        spent.append(clock() - begin)
    return statistics.median(spent)


def _table(f: Mapping[str, Any]) -> Table:
    most = statistics.median(f["overhead"]["marks and warm-up"])
    verdict = "within" if most <= f["aim"] else "above"
    table = Table(
        box=SIMPLE_HEAD,
        title=f"Trainings of {f['epochs']} epochs, {f['rounds']} each way, in turns",
        caption=f"Marks and warm-up add {most:.2%} (median), {verdict} the aim of {f['aim']:.0%}. "
        f"By parts: a mark takes {f['mark_seconds'] * 1e6:.1f} microseconds, and a warm-up "
        f"{f['warm_up_seconds'] * 1e3:.0f} ms.",
    )
    table.add_column("with")
    for name in ("seconds", "adds, median", "lowest", "highest", "by parts"):
        table.add_column(name, justify="right")
    for name, spent in f["seconds"].items():
        adds = f["overhead"].get(name)
        parts = f["parts"].get(name)
        shares = (statistics.median(adds), min(adds), max(adds), parts) if adds else ()
        table.add_row(name, f"{statistics.median(spent):.2f}", *(f"{one:+.2%}" for one in shares))
    return table
