"""What a study will cost, from a few steps of every method timed on this machine."""

import math
import statistics
from typing import NamedTuple

import torch

from autoaug_ray import data, train
from autoaug_ray.config import Run, Study
from autoaug_ray.meter import Meter
from autoaug_ray.plan import search_runs
from autoaug_ray.study import draw

STEPS, REPEATS = 8, 4


class Forecast(NamedTuple):
    label: str
    search_runs: int
    final_runs: int
    step_seconds: float
    run_seconds: float
    """Of the training steps of one run; evaluation and overhead come on top."""
    device_hours: float


def forecast(study: Study, device: torch.device) -> list[Forecast]:
    """Searches count in full: a scheduler that stops trials early makes them cheaper."""
    pool = len(data.load(study.dataset, val_fraction=None, device="cpu").train)
    steps = max(1, pool // study.train.batch_size) * study.train.epochs
    out = []
    for entry in study.entries:
        count = len(list(search_runs(study, entry, draw)))
        if entry.hyperparameters["name"] == "replay":
            choices, entry_timed = {}, study.entry(study.reference)
        else:
            choices, entry_timed = next(entry.extremes()), entry
        run = study.run(entry_timed, "final", seed=study.seeds[0], choices=choices)
        short = shortened(run, pool)
        times = []
        for _ in range(REPEATS):
            meter = Meter(device=device)
            list(train.run(short, meter))
            times.append(meter.seconds()["final"])
        size = short.dataset.train_size or pool
        # The first one pays for warming up.
        step = statistics.median(times[1:]) / max(1, size // study.train.batch_size)
        resources = study.resources_of(entry.label)
        share = resources.gpus or resources.cpus
        runs = count + len(study.seeds)
        out.append(
            Forecast(
                entry.label, count, len(study.seeds), step, step * steps,
                runs * step * steps * share / 3600,
            )
        )  # fmt: skip
    return out


def shortened(run: Run, pool: int) -> Run:
    """A few steps of a run: one epoch over a part of its pool.

    Whole rounds of a method that does something at every so manyth step only.
    """
    every = getattr(run.method, "every", 1)
    size = min(pool, every * math.ceil(STEPS / every) * run.train.batch_size)
    return run.model_copy(
        update={
            "train": run.train.model_copy(update={"epochs": 1}),
            "dataset": run.dataset.model_copy(update={"train_size": size}),
        }
    )
