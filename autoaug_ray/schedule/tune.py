"""All runs of a study, in all its cases, in one Ray Tune run."""

import contextlib
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from autoaug_ray.schedule import cluster  # before ray: it sets what ray reads when it is imported

# isort: split
import numpy as np
from ray import tune
from ray.tune.search import Searcher

from autoaug_ray import data, own_code
from autoaug_ray.config import Run, Study
from autoaug_ray.errors import StorageError, UserError, storing
from autoaug_ray.schedule.queue import RunQueue, Wanted, population_of, queues_of
from autoaug_ray.schedule.schedulers import PerEntry
from autoaug_ray.schedule.ship_data import Handed, pack
from autoaug_ray.schedule.trial import REUSE_ACTORS, trial
from autoaug_ray.settings.ranges import Range
from autoaug_ray.store.files import write_whole
from autoaug_ray.store.folder import Folder
from autoaug_ray.store.places import Place, Remote

RETRIES = 2
"""Restarts allowed without a newly finished epoch, for a run whose process died; any progress
resets the count. A run that ended by itself, with a RunError, is never retried."""


def execute(
    cases: Sequence[tuple[Study, Folder]],
    watch: "Watch",
    bank: Place | None = None,
    wanted: Wanted | None = None,
    attempt: Callable[..., None] | None = None,
) -> list[RunQueue]:
    """Run what the folders do not hold yet; returns the queues with the outcome of every run.

    `bank` is the folder of generated images, for methods that mix them. `wanted` gives entries
    their seeds by what has been found so far; None: all of the study's. `attempt` takes the place
    of `trial`, to measure what surrounds it. Raises UserError if some entry asks for more than the
    machines have, and StorageError if a folder cannot be used any more: what runs then has not
    failed, and goes on with the next call.
    """
    queues = queues_of(cases, draw, wanted)
    watch.begin(queues)
    if all(queue.complete for queue in queues):
        return queues
    for study, folder in cases:
        check_resources(study)
        if not isinstance(folder.root, Remote):
            with storing(folder.root):
                folder.root.mkdir(parents=True, exist_ok=True)
    trials = cases[0][1].trials.resolve()
    searcher = _QueueSearcher(queues)
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(
                attempt or trial,
                bank=str(bank.resolve()) if bank else None,
                handed=handed_to_workers([study for study, _ in cases]),
            ),
            lambda config: _placement(config["cpus"], config["gpus"], config["workers"]),
        ),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=PerEntry([study for study, _ in cases]),
            num_samples=-1,
            reuse_actors=REUSE_ACTORS,
            metric="score",
            mode="max",
            trial_name_creator=lambda trial: trial.trial_id,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=f"tune-{int(time.time())}",
            storage_path=str(trials),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            callbacks=[_Callback(watch, searcher)],
        ),
    )
    try:
        with interruptible(), storing(trials):
            tuner.fit()
    except tune.TuneError:
        write_whole(trials / "probe", bytes(2**16))  # a full disk, say, would be why
        raise
    finally:
        watch.end()
    return queues


_interrupted = threading.Event()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within this context Ctrl-C and SIGTERM end the study, even while Ray swallows exceptions."""

    def note(number: int, frame: Any) -> None:
        _interrupted.set()
        signal.default_int_handler(number, frame)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _interrupted.clear()
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def draw(values: Range, rng: np.random.RandomState) -> Any:
    """One value of a random range, by Tune's own distributions."""
    domain = {
        "choice": lambda v: tune.choice(list(v)),
        "uniform": lambda v: tune.uniform(*v),
        "loguniform": lambda v: tune.loguniform(*v),
        "randint": lambda v: tune.randint(*v),
    }[values.kind](values.values)
    value = domain.sample(random_state=rng)
    return value.item() if isinstance(value, np.generic) else value


class Watch:
    """Is told of the progress, to show it; the base shows nothing."""

    def begin(self, queues: Sequence[RunQueue]) -> None: ...

    def started(self, queue: RunQueue, run: Run, trial_id: str) -> None: ...

    def update(self, result: Mapping[str, Any] | None = None) -> None: ...

    def lost(self, label: str, trial_id: str, epoch: int) -> None: ...

    def ended(self, trial_id: str) -> None: ...

    def end(self) -> None: ...


def handed_to_workers(studies: Sequence[Study]) -> list[Handed] | None:
    """The datasets that fit in memory, for a cluster; on one machine trials read their files."""
    if len(cluster.machines()) == 1 and not cluster.may_grow():
        return None
    datasets = {data.whole(study.dataset) for study in studies}
    return [handed for dataset in datasets if (handed := pack(dataset)) is not None]


@lru_cache
def _placement(cpus: float, gpus: float, workers: int) -> tune.PlacementGroupFactory:
    """A bundle for each worker of a trial; the first one is the trial's own process.

    The same object for the same resources: Tune looks for it in dicts, and `==` is slow.
    """
    bundle = {"CPU": float(cpus)}
    if gpus:
        bundle["GPU"] = float(gpus)
    return tune.PlacementGroupFactory([bundle] * workers)


def check_resources(study: Study) -> None:
    """Raise UserError for an entry that asks for more than any machine has or may get, or whose
    workers cannot share a batch.

    A machine that is yet to come is no error: waiting trials make a cluster grow.
    """
    for entry in study.entries:
        need = study.resources_of(entry.label)
        if study.train.accumulate % need.workers:
            raise UserError(
                f"methods.{entry.label}: resources.workers: {need.workers} share the parts of a "
                f"batch; train.accumulate must be a multiple of it, got {study.train.accumulate}."
            )
        for kind, amount in (("CPU", need.cpus), ("GPU", need.gpus)):
            if amount > (most := cluster.most(kind)):
                raise UserError(
                    f"methods.{entry.label}: resources ask for {amount:g} {kind}, but no machine "
                    f"{'of this cluster' if cluster.may_grow() else 'here'} has more than {most:g}."
                )
            there = sum(machine.get(kind, 0.0) for machine in cluster.machines())
            if need.workers * amount > there and not cluster.may_grow():
                raise UserError(
                    f"methods.{entry.label}: {need.workers} workers ask for "
                    f"{need.workers * amount:g} {kind} together, but this machine has {there:g}."
                )


class _Unsaved:
    """Tune pickles what it was given, to restore it later; ours is rebuilt from the folder."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _QueueSearcher(_Unsaved, Searcher):
    """Hands out the queues' runs and tells them how each of them ended."""

    def __init__(self, queues: Sequence[RunQueue]) -> None:
        super().__init__(metric="score", mode="max")
        self.queues = queues
        self.runs: dict[str, tuple[RunQueue, Run]] = {}
        self.fault: StorageError | None = None
        """Set if a folder cannot be used any more; the study then stops."""

    def suggest(self, trial_id: str) -> Any:
        ready = ((queue, run) for queue in self.queues if (run := queue.next()) is not None)
        if (found := next(ready, None)) is None:
            return Searcher.FINISHED if all(queue.complete for queue in self.queues) else None
        queue, run = self.runs[trial_id] = found
        resources = queue.study.resources_of(run.label)
        config: dict[str, Any] = {
            "run": run.model_dump_json(), "label": run.label, "phase": run.phase,
            "cpus": resources.cpus, "gpus": resources.gpus, "workers": resources.workers,
            "root": str(queue.folder.root.resolve()), "case": queue.study.case,
        }  # fmt: skip
        if code := own_code.sent([run.method.name, run.dataset.name]):
            config["code"] = code
        population = population_of(queue.study.entry(run.label))
        if run.phase == "search" and population is not None:
            config["gene"] = list(getattr(run.method, population.gene))
        return config

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None: ...

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if trial_id not in self.runs:
            return
        queue, run = self.runs.pop(trial_id)
        result = result or {}
        if result.get("storage"):
            self.fault = StorageError(result["error"])
            return
        try:
            queue.folder.check()
            self._settle(queue, run, result.get("error"), error)
        except StorageError as fault:
            self.fault = fault

    def _settle(self, queue: RunQueue, run: Run, message: str | None, died: bool) -> None:
        last = queue.last_row(run)
        if message is not None:
            queue.settle(run, "failed", message)
        elif last is not None and last["finished"]:
            queue.settle(run, "finished")
        elif died:
            queue.settle(
                run,
                "failed",
                f"its process died {RETRIES + 1} times in a row before it could "
                "finish another epoch",
            )
        elif run.phase == "search":
            # Its scheduler stopped it; or, in a population, it went on from a member at the end.
            queue.settle(run, "stopped")

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_bytes(b"")

    def restore(self, checkpoint_path: str) -> None: ...


class _Callback(_Unsaved, tune.Callback):
    def __init__(self, watch: Watch, searcher: _QueueSearcher) -> None:
        self.watch, self.searcher = watch, searcher
        self.furthest: defaultdict[str, int] = defaultdict(int)
        """Epoch that some attempt at the trial has finished."""

    def on_step_end(self, iteration: int, trials: Any, **_: Any) -> None:
        if _interrupted.is_set():
            raise KeyboardInterrupt
        if self.searcher.fault is not None:
            raise self.searcher.fault

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: Any, **_: Any
    ) -> None:
        if result["epoch"] > self.furthest[trial.trial_id]:
            self.furthest[trial.trial_id] = result["epoch"]
            trial.max_failures = trial.num_failures + RETRIES
        self.watch.update(result)

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        self.watch.started(*self.searcher.runs[trial.trial_id], trial.trial_id)

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        self.watch.lost(trial.config["label"], trial.trial_id, self.furthest[trial.trial_id])

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        self.watch.ended(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        self.watch.ended(trial.trial_id)
