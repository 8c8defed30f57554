"""All runs of a study, in all its cases, in one Ray Tune run."""

import contextlib
import random
import signal
import tempfile
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from autoaug_ray.schedule import cluster  # before ray: it sets what ray reads when it is imported

# isort: split
import numpy as np
import ray
import torch
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search import Searcher

from autoaug_ray import data, policy, train
from autoaug_ray.config import Entry, Range, Run, Study
from autoaug_ray.errors import RunError, StorageError, UserError, storing
from autoaug_ray.generate.bank import shared_bank
from autoaug_ray.methods.discrete import PopulationBased, explore
from autoaug_ray.schedule.queue import RunQueue, is_population
from autoaug_ray.schedule.ship_data import Handed, pack, take
from autoaug_ray.store.folder import Folder, load_state, save_state, write_whole
from autoaug_ray.store.meter import Meter, device_name, out_of_memory
from autoaug_ray.store.places import Place, Remote, place

CHECKPOINT_SHARE = 0.02
"""Of a run's time that saving its state may take, besides where a scheduler needs it."""
RETRIES = 2
"""Of a run whose process died, in a row without an epoch more than before: a machine may be lost as
often as it likes. A run that ended by itself, with a RunError, is not repeated."""


def execute(
    cases: Sequence[tuple[Study, Folder]],
    watch: "Watch",
    bank: Place | None = None,
    attempt: Callable[..., None] | None = None,
) -> list[RunQueue]:
    """Run what the folders do not hold yet; returns the queues with the outcome of every run.

    `bank` is the folder of generated images, for methods that mix them. `attempt` takes the place
    of `trial`, to measure what surrounds it. Raises UserError if some entry asks for more than the
    machines have, and StorageError if a folder cannot be used any more: what runs then has not
    failed, and goes on with the next call.
    """
    queues = [RunQueue(study, folder, draw) for study, folder in cases]
    watch.begin(queues)
    if all(queue.complete for queue in queues):
        return queues
    for study, folder in cases:
        _check_resources(study)
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
                handed=_handed([study for study, _ in cases]),
            ),
            lambda config: _placement(config["cpus"], config["gpus"]),
        ),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=_PerEntry([study for study, _ in cases]),
            num_samples=-1,
            reuse_actors=True,
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
    """Ctrl-C ends what is in here also if it comes at a moment at which Ray swallows exceptions."""

    def note(number: int, frame: Any) -> None:
        _interrupted.set()
        signal.default_int_handler(number, frame)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _interrupted.clear()
    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


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
    """Whoever shows the progress; the base shows nothing."""

    def begin(self, queues: Sequence[RunQueue]) -> None: ...

    def started(self, label: str, trial_id: str) -> None: ...

    def update(self, result: Mapping[str, Any] | None = None) -> None: ...

    def lost(self, label: str, trial_id: str, epoch: int) -> None: ...

    def ended(self, trial_id: str) -> None: ...

    def end(self) -> None: ...


def _handed(studies: Sequence[Study]) -> list[Handed] | None:
    """The datasets that fit in memory, for a cluster; on one machine trials read their files."""
    if len(cluster.machines()) == 1 and not cluster.may_grow():
        return None
    datasets = {data.whole(study.dataset) for study in studies}
    return [handed for dataset in datasets if (handed := pack(dataset)) is not None]


def trial(config: dict[str, Any], *, bank: str | None, handed: list[Handed] | None) -> None:
    """One attempt at one run, in a process that may have run others before.

    `handed` is what the driver has sent of the data; None where the driver's files are ours.
    """
    asked = Run.model_validate_json(config["run"])
    torch.set_num_threads(max(1, int(config["cpus"])))
    device = torch.device("cuda" if config["gpus"] > 0 else "cpu")
    if device.type == "cuda" and config["gpus"] < 1:
        torch.cuda.set_per_process_memory_fraction(config["gpus"])
    share = config["gpus"] if device.type == "cuda" else config["cpus"]
    try:
        _train(config, asked, device, share, bank, handed)
    except Exception as error:
        # The same would happen again: only a process that dies is worth another attempt.
        report = {
            "label": asked.label,
            "epoch": 0,
            "score": 0.0,
            "error": _error_text(error, asked, device),
        }
        tune.report(report | {"storage": isinstance(error, StorageError)})
    if device.type == "cuda":
        torch.cuda.empty_cache()  # others may share the device, while this process waits


def _train(
    config: Mapping[str, Any],
    asked: Run,
    device: torch.device,
    share: float,
    bank: str | None,
    handed: list[Handed] | None,
) -> None:
    folder = Folder(place(config["root"]))
    folder.check()
    attempt = _Attempt(asked, folder, config.get("policy"))
    about = {"label": asked.label, "phase": asked.phase, "seed": asked.seed}
    about["node"] = ray.get_runtime_context().get_node_id()
    with Meter(folder.ledger, key=asked.key, about=about, device=device, share=share) as meter:
        if handed is not None:
            take(asked.dataset, handed)
        images = shared_bank(bank) if bank and asked.bank_plan else None
        for epoch in train.run(attempt.run, meter, attempt.resume, images):
            if attempt.keep(epoch):
                meter.keep()


def _error_text(error: Exception, run: Run, device: torch.device) -> str:
    """One sentence if it is known what to do about it; else the traceback."""
    if isinstance(error, RunError | UserError):
        return str(error)
    if out_of_memory(error):
        # With a smaller batch it would not be the run that the others are compared with.
        return (
            f"{run.label}: a batch of {run.train.batch_size} images does not fit in the memory of "
            f"its share of {device_name(device)}; lower train.batch_size, for all methods alike, "
            f"or set train.precision to bf16, or give it more of a device (resources)."
        )
    return "".join(traceback.format_exception(error))


class _Attempt:
    """What an attempt starts from, and what it leaves behind after every epoch."""

    def __init__(self, asked: Run, folder: Folder, genes: list[int] | None) -> None:
        """`genes`: the policy that a member of a population is to go on with."""
        self.key, self.folder = asked.key, folder
        donated = tune.get_checkpoint()
        if donated is None:
            self.resume = folder.load_checkpoint(asked.key)
        else:  # another member's: its weights and its past, but not its policy
            with donated.as_directory() as directory:
                self.resume = load_state(Path(directory) / "state.pt")
        past = self.resume or {"epoch": 0, "rows": [], "schedule": [], "lineage": []}
        self.rows, self.schedule, self.lineage = past["rows"], past["schedule"], past["lineage"]
        self.run, self.every = asked, 0
        self.saved, self.saving = time.monotonic(), 0.0
        if genes is not None and isinstance(asked.method, PopulationBased):
            self.every = asked.method.perturb_every
            policy_now = tuple(genes)
            if donated is None and self.lineage:  # resumed: Tune starts from the first again
                policy_now = tuple(self.lineage[-1][1])
            method = asked.method.model_copy(update={"policy": policy_now})
            self.run = asked.model_copy(update={"method": method})
            if not self.lineage or tuple(self.lineage[-1][1]) != policy_now:
                begin = past["epoch"] / asked.train.epochs
                self.lineage = [*self.lineage, (begin, policy_now)]

    def keep(self, epoch: train.Epoch) -> bool:
        """Rows, checkpoint and policy on disk, and a word to Tune.

        Whether what has been done need not be done again, were the process to die now.
        """
        self.folder.check()
        row, run, state = {**epoch.row, "run_key": self.key}, self.run, epoch.snapshot()
        if row["used_key"] != run.key:
            raise RunError(
                f"{run.label}: the trainer's settings hash to {row['used_key']}, the scheduler "
                f"asked for {run.key}; what ran is not what was asked for."
            )
        if run.phase == "final":
            self._keep_policy(row, state)
        if row["finished"] and self.lineage:
            lived = run.method.model_copy(update={"schedule": tuple(self.lineage)})
            row["settings"] = run.model_copy(update={"method": lived}).model_dump_json()
        self.rows.append(row)
        self.folder.write_rows(self.key, self.rows)
        state |= {"rows": self.rows, "schedule": self.schedule, "lineage": self.lineage}
        self._report(row, state)
        if row["finished"]:
            self.folder.drop_checkpoint(self.key)
            return True
        begin = time.monotonic()
        if not self.every and CHECKPOINT_SHARE * (begin - self.saved) < self.saving:
            return False
        self.folder.save_checkpoint(self.key, state)
        self.saved = time.monotonic()
        self.saving = self.saved - begin
        return True

    def _keep_policy(self, row: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        if policy.in_schedule(row["epoch"], row["epochs"]):
            if kept := policy.tensors(state["state"]):
                begin = self.schedule[-1][2] if self.schedule else 0.0
                self.schedule.append((begin, kept, row["epoch"] / row["epochs"]))
        if row["finished"]:
            policy.export(
                self.folder.policy(self.run.label, self.run.seed),
                self.run,
                policy.task_of(state["shape"]),
                state["state"],
                [(begin, kept) for begin, kept, _ in self.schedule],
                {"test_accuracy": row["test_accuracy"]},
            )

    def _report(self, row: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        result = {
            "label": row["label"],
            "epoch": row["epoch"],
            "score": row["val_accuracy"] or 0.0,
            "device_hours": row["device_hours"],
            "finished": row["finished"],
        }
        if self.every and (row["epoch"] % self.every == 0 or row["finished"]):
            with tempfile.TemporaryDirectory() as place:  # Tune copies it before it returns
                save_state(Path(place) / "state.pt", state)
                tune.report(result, checkpoint=tune.Checkpoint.from_directory(place))
        else:
            tune.report(result)


@lru_cache
def _placement(cpus: float, gpus: float) -> tune.PlacementGroupFactory:
    """The same object for the same resources: Tune looks for it in dicts, and `==` is slow."""
    bundle = {"CPU": float(cpus)}
    if gpus:
        bundle["GPU"] = float(gpus)
    return tune.PlacementGroupFactory([bundle])


def _check_resources(study: Study) -> None:
    """What is not there yet but may come is waited for: waiting trials make a cluster grow."""
    for entry in study.entries:
        need = study.resources_of(entry.label)
        for kind, amount in (("CPU", need.cpus), ("GPU", need.gpus)):
            if amount > (most := cluster.most(kind)):
                raise UserError(
                    f"methods.{entry.label}: resources ask for {amount:g} {kind}, but no machine "
                    f"{'of this cluster' if cluster.may_grow() else 'here'} has more than {most:g}."
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
        """Why not to go on."""

    def suggest(self, trial_id: str) -> Any:
        ready = ((queue, run) for queue in self.queues if (run := queue.next()) is not None)
        if (found := next(ready, None)) is None:
            return Searcher.FINISHED if all(queue.complete for queue in self.queues) else None
        queue, run = self.runs[trial_id] = found
        resources = queue.study.resources_of(run.label)
        config: dict[str, Any] = {
            "run": run.model_dump_json(), "label": run.label, "phase": run.phase,
            "cpus": resources.cpus, "gpus": resources.gpus,
            "root": str(queue.folder.root.resolve()), "case": queue.study.case,
        }  # fmt: skip
        if run.phase == "search" and isinstance(run.method, PopulationBased):
            config["policy"] = list(run.method.policy)
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
            # By its scheduler; or a member of a population went on from one that was at the end.
            queue.settle(run, "stopped")

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_bytes(b"")

    def restore(self, checkpoint_path: str) -> None: ...


class _TrialView:
    """The Tune controller as a scheduler sees it that knows only some of its trials.

    PBT looks at all trials of an experiment and refuses any search algorithm; ours is neither of
    its business.
    """

    search_alg = None

    def __init__(self, controller: Any, trials: Iterable[Trial]) -> None:
        self._controller, self._trials = controller, trials

    def get_trials(self) -> list[Trial]:
        return list(self._trials)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._controller, name)


class _PerEntry(TrialScheduler):
    """Search trials go to the scheduler of their entry and case, final ones to FIFO."""

    def __init__(self, studies: Sequence[Study]) -> None:
        self.trials: dict[tuple[str | None, str], list[Trial]] = defaultdict(list)
        self.order: dict[Trial, int] = {}
        self.fifo = FIFOScheduler()
        self.by_entry: dict[tuple[str | None, str], TrialScheduler] = {}
        for study in studies:
            for entry in study.entries:
                if (scheduler := _scheduler(study, entry)) is not None:
                    self.by_entry[study.case, entry.label] = scheduler

    def _of(self, trial: Trial) -> TrialScheduler:
        if trial.config["phase"] == "final":
            return self.fifo
        return self.by_entry.get(_entry_of(trial), self.fifo)

    def _view(self, controller: Any, trial: Trial) -> Any:
        return _TrialView(controller, self.trials[_entry_of(trial)])

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        for scheduler in (self.fifo, *self.by_entry.values()):
            scheduler.set_search_properties(metric, mode, **spec)
        return True

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        self.order[trial] = len(self.order)
        if self._of(trial) is not self.fifo:
            self.trials[_entry_of(trial)].append(trial)
        self._of(trial).on_trial_add(self._view(tune_controller, trial), trial)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        self._of(trial).on_trial_error(self._view(tune_controller, trial), trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        return self._of(trial).on_trial_result(self._view(tune_controller, trial), trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        self._of(trial).on_trial_complete(self._view(tune_controller, trial), trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        self._of(trial).on_trial_remove(self._view(tune_controller, trial), trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        waiting = self._waiting(tune_controller)
        for scheduler in (*self.by_entry.values(), self.fifo):
            view: Any = _TrialView(
                tune_controller, [t for t in waiting if self._of(t) is scheduler]
            )
            if (chosen := scheduler.choose_trial_to_run(view)) is not None:
                return chosen
        return None

    def _waiting(self, controller: Any) -> list[Trial]:
        """Trials without an actor in their order; those that an idle actor can take, if there are.

        Tune gives an idle actor to whatever trial is chosen, and kills the one that was starting
        for it: where trials are shorter than the start of an actor, none would ever start.
        """
        actors, started = controller._trial_to_actor, controller._actor_manager.is_actor_started
        waiting = [
            trial
            for trial in controller.get_live_trials()  # all trials would be more at every step
            if trial.status in (Trial.PENDING, Trial.PAUSED)
            and not (trial in actors and started(actors[trial]))
        ]
        waiting.sort(key=self.order.__getitem__)
        idle = controller._actor_cache
        if not idle.num_cached_objects:
            return waiting
        return [t for t in waiting if idle.has_cached_object(t.placement_group_factory)] or waiting

    def debug_string(self) -> str:
        return " | ".join(s.debug_string() for s in (self.fifo, *self.by_entry.values()))


def _entry_of(trial: Trial) -> tuple[str | None, str]:
    return trial.config["case"], trial.config["label"]


def _scheduler(study: Study, entry: Entry) -> TrialScheduler | None:
    """Of an entry's search; None for FIFO."""
    if is_population(entry):
        method = entry.method({})
        assert isinstance(method, PopulationBased)
        return PopulationBasedTraining(
            time_attr="epoch",
            perturbation_interval=method.perturb_every,
            quantile_fraction=0.25,
            custom_explore_fn=_Explore(study.seeds[0]),
        )
    if entry.search.scheduler == "asha":
        return ASHAScheduler(
            time_attr="epoch",
            max_t=study.train.epochs,
            grace_period=min(entry.search.grace_epochs, study.train.epochs),
            reduction_factor=entry.search.reduction,
        )
    return None


class _Explore:
    """PBA's perturbation of a trial's policy, from a stream of its own."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def __call__(self, config: dict[str, Any]) -> dict[str, Any]:
        return {**config, "policy": list(explore(tuple(config["policy"]), self.rng))}


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
        self.watch.started(trial.config["label"], trial.trial_id)

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        self.watch.lost(trial.config["label"], trial.trial_id, self.furthest[trial.trial_id])

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        self.watch.ended(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        self.watch.ended(trial.trial_id)
