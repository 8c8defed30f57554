"""What a study will cost, from a few steps of every method timed on this machine."""

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from autoaug_ray import data, train
from autoaug_ray.config import Run, Study
from autoaug_ray.data import Edits
from autoaug_ray.generate.settings import ImageKind
from autoaug_ray.schedule.queue import learned, search_runs
from autoaug_ray.schedule.tune import draw
from autoaug_ray.store.meter import Meter

STEPS = 8
"""Steps of a timed run, if the rounds of its method's work are not longer."""
REPEATS = 4
"""Timed runs of each entry; the first one is warm-up."""


class Forecast(NamedTuple):
    label: str
    search_runs: int
    final_runs: int
    step_seconds: float
    run_seconds: float
    """Seconds of one run's training steps and of what is found after the last one; evaluation and
    overhead come on top."""
    device_hours: float


def forecast(study: Study, device: torch.device) -> list[Forecast]:
    """Forecast each entry. Searches count in full; a scheduler that stops trials early makes them
    cheaper."""
    seed = study.seeds[0]
    pool = _pool(study)
    steps = steps_of(study)
    out = []
    threads = torch.get_num_threads()
    for entry in study.entries:
        resources = study.resources_of(entry.label)
        torch.set_num_threads(max(1, int(resources.cpus)))  # as a trial does
        searches = len(list(search_runs(study, entry, draw)))
        if entry.first_method.timed_as_reference:
            choices, entry_timed = {}, study.entry(study.reference)
        else:
            choices, entry_timed = next(entry.extremes()), entry
        run = study.run(entry_timed, "final", seed=seed, choices=choices)
        step, once, row = _time(run, pool, device)
        seconds = (step * steps + once) * (searches + len(study.seeds))
        if run.method.searches_in_own_run:
            searches += len(study.seeds)
            choices = choices | learned(row)
            final, _, _ = _time(study.run(entry, "final", seed=seed, choices=choices), pool, device)
            seconds += final * steps * len(study.seeds)
        share = resources.gpus or resources.cpus
        out.append(
            Forecast(
                entry.label, searches, len(study.seeds), step, step * steps + once,
                seconds * share / 3600,
            )
        )  # fmt: skip
    torch.set_num_threads(threads)
    return out


def steps_of(study: Study) -> int:
    """Number of steps of one training."""
    training = study.train
    per_epoch = training.iters_per_epoch or max(1, _pool(study) // training.batch_size)
    return per_epoch * training.epochs


def _pool(study: Study) -> int:
    splits = data.load(study.dataset, val_fraction=None, device="cpu", seed=study.seeds[0])
    return len(splits.train)


def _time(run: Run, pool: int, device: torch.device) -> tuple[float, float, dict[str, Any]]:
    """Seconds per step, seconds of what is found after the last step, and the last row."""
    short = probe_run(run, pool)
    _, times_longer = run.method.probe()
    times, searches, row = [], [], {}
    for _ in range(REPEATS):
        meter = Meter(device=device)
        row = [epoch.row for epoch in train.run(short, meter, bank=_Sources(short))][-1]
        times.append(meter.seconds()["final"])
        searches.append(meter.seconds()["search"])
    size = sum(row["class_counts"])
    steps = short.train.iters_per_epoch or max(1, size // run.train.batch_size)
    # The first one pays for warming up.
    step, search = statistics.median(times[1:]) / steps, statistics.median(searches[1:])
    return step, search * times_longer, row


class _Sources:
    """A bank in which every image is its own edit: as slow to train on as a real one."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def variants(
        self, plan_key: str, kinds: Sequence[ImageKind], shape: Any, hashes: Sequence[str]
    ) -> Edits:
        run = self.run
        splits = data.load(run.dataset, val_fraction=None, device="cpu", seed=run.seed)
        images = splits.train.load().images
        start = torch.arange(len(images))[:, None].expand(-1, len(kinds))
        return Edits(images, start, torch.ones_like(start))

    def cost(self, plan_key: str, kinds: Sequence[ImageKind]) -> dict[str, float]:
        return {}

    work = cost


def probe_run(run: Run, pool: int) -> Run:
    """A few steps of a run: one epoch over a part of its pool.

    Its steps are whole rounds of the method's work, and what is found after the last one is cut to
    what can be timed (`Method.probe`).
    """
    per_round = run.method.steps_per_round
    steps = per_round * math.ceil(STEPS / per_round)
    training, dataset = {"epochs": 1}, {}
    if run.train.iters_per_epoch is not None or run.dataset.imbalance or run.dataset.shots:
        training["iters_per_epoch"] = steps
    else:
        dataset["train_size"] = min(pool, steps * run.train.batch_size)
    method, _ = run.method.probe()
    return run.model_copy(
        update={
            "method": method,
            "train": run.train.model_copy(update=training),
            "dataset": run.dataset.model_copy(update=dataset),
            "bank_plan": "forecast" if run.method.kinds else None,
        }
    )
