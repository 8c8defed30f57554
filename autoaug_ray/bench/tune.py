"""The share of a study's machine time that is not training."""

import itertools
import math
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from autoaug_ray import config, train
from autoaug_ray.bench import DATASET, Outcome
from autoaug_ray.config import Study
from autoaug_ray.errors import RunError, UserError
from autoaug_ray.store import meter as metering
from autoaug_ray.store.folder import Folder
from autoaug_ray.store.meter import TRAINING, Meter
from autoaug_ray.store.places import Place

OVERHEAD_AIM = 0.1  # share of a study's slot-time that may be neither training nor evaluation


class Attempt(NamedTuple):
    began: float  # seconds since the epoch
    ended: float
    seconds: Mapping[str, float]  # by phase; they add up to ended - began


def attempts(ledger: Place) -> list[Attempt]:
    """All attempts of a study, in the order in which they began."""
    lines = [(line["at"], line["seconds"]) for line in metering.read(ledger)]
    return sorted(Attempt(at - sum(seconds.values()), at, seconds) for at, seconds in lines)


def in_lanes(attempts: Sequence[Attempt], slots: int) -> list[list[Attempt]]:
    """The attempts of each slot, one after the other."""
    lanes: list[list[Attempt]] = [[] for _ in range(slots)]
    for attempt in attempts:
        # The slot that has been free for longest; which of them it really was makes no difference.
        min(lanes, key=lambda lane: lane[-1].ended if lane else -math.inf).append(attempt)
    return lanes


def slot_time(lanes: Sequence[Sequence[Attempt]], begin: float, end: float) -> dict[str, float]:
    """The parts of the (end - begin) seconds of all slots, which add up to them.

    start: until a slot's first attempt. between: from one attempt on a slot to the next. tail: a
    slot has nothing to do while others still work. finish: after the last attempt of all.
    """
    last = max(attempt.ended for lane in lanes for attempt in lane)
    parts = dict.fromkeys(("start", "between", "tail", "finish", *metering.PHASES), 0.0)
    for lane in lanes:
        if not lane:
            parts["tail"] += last - begin
            continue
        parts["start"] += lane[0].began - begin
        parts["between"] += sum(b.began - a.ended for a, b in itertools.pairwise(lane))
        parts["tail"] += last - lane[-1].ended
        for attempt in lane:
            for phase, seconds in attempt.seconds.items():
                parts[phase] += seconds
    parts["finish"] = (end - last) * len(lanes)
    return parts


def run_all(study: Study, folder: Folder, **how: Any) -> None:
    """Run all of a study by `tune.execute`, told `how`. Raises RunError unless all runs finish."""
    from autoaug_ray.schedule.tune import Watch, execute

    (queue,) = execute([(study, folder)], **{"watch": Watch()} | how)
    for done in queue.done:
        if done.outcome != "finished":
            raise RunError(f"{done.run.label} {done.outcome}: {done.error}")


def _study(epochs: int, trials: int) -> Study:
    """A study of so many equal trainings, none of which waits for another."""
    tree = {
        "dataset": DATASET.model_dump(exclude_defaults=True), "train": {"epochs": epochs},
        "seeds": trials, "methods": {"none": {}},
    }  # fmt: skip
    return config.study(tree, name="bench-tune")


def epoch_seconds() -> float:
    """The seconds of an epoch of `tune`'s trials, once warm."""
    study = _study(epochs=3, trials=1)
    meter = Meter()
    spent = [
        sum(meter.seconds().values())
        for _ in train.run(study.run(study.entries[0], "final", seed=0, choices={}), meter)
    ]
    return spent[1] - spent[0]  # the last epoch also reads the test set


def tune(
    *,
    seconds: Annotated[float, "that a trial should last, by a timed probe"] = 30.0,
    trials: Annotated[int, "of the study"] = 8,
    slots: Annotated[int, "trials that run at the same time, with a CPU each"] = 2,
) -> Outcome:
    """The share of a study's machine time that is not training: starting, waiting, reporting."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if slots > (cores or 1):
        raise UserError(f"--slots must be at most {cores}, the cores of this machine, got {slots}.")
    from autoaug_ray.schedule import cluster

    if (where := cluster.address()) != cluster.LOCAL:
        raise UserError(
            f"tune measures this machine, not the Ray cluster at {where}; set RAY_ADDRESS=local."
        )

    epochs = max(1, round(seconds / epoch_seconds()))
    study = _study(epochs, trials)
    before_ray = time.time()
    cluster.join(slots)
    ray_seconds = time.time() - before_ray
    with tempfile.TemporaryDirectory(prefix="autoaug-bench-") as root:
        folder = Folder(Path(root))
        begin = time.time()
        run_all(study, folder)
        end = time.time()
        spans = attempts(folder.ledger)
    lanes = in_lanes(spans, slots)
    parts = slot_time(lanes, begin, end)
    total = (end - begin) * slots
    training = sum(parts[p] for p in TRAINING)
    lasted = sorted(a.ended - a.began for a in spans)
    figures = {
        "device": metering.device_name(torch.device("cpu")), "slots": slots, "trials": trials,
        "attempts": len(spans), "epochs": epochs, "asked_seconds": seconds,
        "trial_seconds": lasted, "ray_start_seconds": ray_seconds,
        "wall_seconds": end - begin, "slot_seconds": total,
        "lanes": [[(a.began - begin, a.ended - begin) for a in lane] for lane in lanes],
        "training_seconds": training, "eval_seconds": parts["eval"],
        "parts": {
            "training": training,
            **{part: parts[part] for part in PARTS if part != "training"},
        },
        "not_training_share": 1 - training / total,
        "overhead_share": 1 - (training + parts["eval"]) / total,
        "aim": OVERHEAD_AIM,
    }  # fmt: skip
    return Outcome(figures, [_tune_table(figures)])


PARTS = {
    "training": "training steps",
    "eval": "evaluation",
    "start": "start: until a slot's first trial begins",
    "between": "between two trials of a slot",
    "tail": "tail: no trial left for a slot",
    "finish": "finish: after the last trial",
    "warm_up": "in trials: a process's first steps, on throw-away copies",
    "other": "in trials: data, models, checkpoints, reporting",
}


def _tune_table(f: Mapping[str, Any]) -> Table:
    lasted, total = f["trial_seconds"], f["slot_seconds"]
    verdict = "within" if f["overhead_share"] <= f["aim"] else "above"
    table = Table(
        box=SIMPLE_HEAD,
        title=f"{f['trials']} trials of {f['epochs']} epochs, {lasted[0]:.1f} to {lasted[-1]:.1f} "
        f"s each, {f['slots']} at a time",
        caption=f"execute() took {f['wall_seconds']:.1f} s of wall-clock, x {f['slots']} slots = "
        f"{total:.1f} s; starting Ray before it {f['ray_start_seconds']:.1f} s. Neither training "
        f"nor evaluation: {f['overhead_share']:.1%}, {verdict} the aim of {f['aim']:.0%}.",
    )
    table.add_column("slot-time")
    for name in ("seconds", "share"):
        table.add_column(name, justify="right")
    for part, label in PARTS.items():
        table.add_row(label, f"{f['parts'][part]:.2f}", f"{f['parts'][part] / total:.1%}")
        if part == "eval":
            table.add_section()
    table.add_section()
    table.add_row("all", f"{total:.2f}", "100.0%")
    return table
