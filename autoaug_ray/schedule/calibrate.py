"""What a step of every entry takes, measured in one process by turns, and its arithmetic.

Every entry takes a few steps, then every entry again, and so on: a neighbour that empties the
caches, or a processor that is throttled, meets all of them alike. The steps are those of real runs
with their learning rates and their number of steps, on a part of the images.
"""

import contextlib
import copy
import itertools
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from autoaug_ray import data, train
from autoaug_ray.config import Entry, Run, Study
from autoaug_ray.data import Edits
from autoaug_ray.errors import RunError
from autoaug_ray.generate.settings import Drawn
from autoaug_ray.methods.base import Method
from autoaug_ray.schedule.memory import Peak, capacity, does_not_fit
from autoaug_ray.settings.resources import Resources
from autoaug_ray.store.calibration import Calibration, EntryCalibration, KindOfStep, Training
from autoaug_ray.store.meter import Meter, WorkClock, device_name, out_of_memory
from autoaug_ray.store.work import epoch_work

STEPS = 6
"""Consecutive steps that are taken at a time: few, so that a neighbour's burst meets all entries,
but enough that the first one, which finds the caches full of another entry's images and takes a
tenth longer, does not move the median."""
TURNS = 8
"""Turns of each entry, at most."""
FINISH_EVERY = 2
"""Turns after which what follows a training's last step, which takes longer, is measured again."""


def calibrate(study: Study, work_clock: WorkClock | None = None, turns: int = TURNS) -> Calibration:
    """Measure some steps of every entry, on the device that its trials ask for.

    `work_clock` tells the work; None: that of the device. `turns`: those of each entry, at most.
    Random streams and the number of threads are left as they are. Raises UserError for data that
    cannot be used; an entry whose training must not go on is left out.
    """
    left_out: dict[str, str] = {}
    under_way: dict[str, _Turns] = {}

    def begin(entry: Entry) -> None:
        under_way[entry.label] = _Turns(study, entry, work_clock)

    def attempt(label: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            if isinstance(error, RunError):
                left_out[label] = str(error)
            elif out_of_memory(error):
                resources = study.resources_of(label)
                run = first_run(study, study.entry(label))
                left_out[label] = does_not_fit(run, device_of(resources))
            else:
                raise
            under_way.pop(label, None)

    with _undisturbed(study):
        for entry in study.entries:
            if entry.first_method.timed_as_reference:
                left_out[entry.label] = (
                    f"{entry.label} cannot train before another entry has; its steps are those of "
                    f"{study.reference}."
                )
                continue
            attempt(entry.label, partial(begin, entry))
        for turn in range(min(turns, turns_of(study))):
            for label, one in list(under_way.items()):
                attempt(label, partial(one.take, turn))
        entries = tuple(one.result() for one in under_way.values())
    return Calibration(time=time.time(), entries=entries, left_out=left_out)


def fits(calibration: Calibration, study: Study) -> bool:
    """Whether the study's entries would be calibrated with these settings, on this device."""
    for entry in study.entries:
        if entry.first_method.timed_as_reference:
            continue
        known, resources = calibration.entry(entry.label), study.resources_of(entry.label)
        expected = (
            first_run(study, entry).key, device_name(device_of(resources)), threads_of(resources)
        )  # fmt: skip
        if known is None or (known.run, known.device, known.threads) != expected:
            return False
    return True


def first_run(study: Study, entry: Entry) -> Run:
    """The run whose steps stand for those of an entry: one of its first choices and first seed.

    For a method that learns its hyperparameters in a run of its own, this is that run.
    """
    choices = next(entry.extremes())
    searches = entry.method(choices).searches_in_own_run
    return study.run(
        entry, "search" if searches else "final", seed=study.seeds[0], choices=choices,
        whole_pool=searches,
    )  # fmt: skip


def device_of(resources: Resources) -> torch.device:
    """The device of a trial with these resources."""
    return torch.device("cuda" if resources.gpus > 0 else "cpu")


def threads_of(resources: Resources) -> int:
    """The threads of torch in a trial with these resources."""
    return max(1, int(resources.cpus))


def turns_of(study: Study) -> int:
    """Turns of each entry: a short study is not held up by more steps than a training of it has."""
    return _turns(study.train.steps(pool_size(study)))


def _turns(steps: int) -> int:
    return min(TURNS, max(2, steps // STEPS))


def share_of(study: Study, runs: int) -> float:
    """Steps of a calibration as a share of those of so many runs of the study."""
    steps = study.train.steps(pool_size(study))
    return _turns(steps) * STEPS * len(study.entries) / (runs * steps)


def pool_size(study: Study) -> int:
    """Number of images that a final training trains on."""
    splits = data.load(study.dataset, val_fraction=None, device="cpu", seed=study.seeds[0])
    return len(splits.train)


@contextlib.contextmanager
def _undisturbed(study: Study) -> Iterator[None]:
    """Puts the global random streams and the number of threads back at the end."""
    on_gpu = any(study.resources_of(e.label).gpus > 0 for e in study.entries)
    devices = [torch.cuda.current_device()] if on_gpu else []
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            torch.set_num_threads(threads)


class _Turns:
    """The turns of one entry: of the training that finds its hyperparameters, and of its final."""

    def __init__(self, study: Study, entry: Entry, work_clock: WorkClock | None) -> None:
        self.resources = resources = study.resources_of(entry.label)
        self.first = first_run(study, entry)
        self.search: _Probe | None = None
        torch.set_num_threads(threads_of(resources))
        run = self.first
        if run.method.searches_in_own_run:
            self.search = _Probe(run, pool_size(study), resources, work_clock)
            self.search.steps()
            found = run.method.found_hyperparameters(self.search.finish())
            self.search.forget()
            choices = next(entry.extremes()) | found
            run = study.run(entry, "final", seed=run.seed, choices=choices)
        self.final = _Probe(run, pool_size(study), resources, work_clock)

    def take(self, turn: int) -> None:
        torch.set_num_threads(threads_of(self.resources))
        if self.search is not None:
            self.search.steps()
            if turn % FINISH_EVERY == 0:
                self.search.finish()
        self.final.steps()

    def result(self) -> EntryCalibration:
        torch.set_num_threads(threads_of(self.resources))
        return EntryCalibration(
            label=self.first.label,
            run=self.first.key,
            device=device_name(self.final.meter.device),
            clock=self.final.meter.work_clock.name,
            threads=threads_of(self.resources),
            memory=capacity(self.resources, self.final.meter.device),
            search=self.search and self.search.result(),
            final=self.final.result(),
        )


class _Probe:
    """A run of which some stretches of steps are taken again and again."""

    def __init__(
        self, run: Run, pool: int, resources: Resources, work_clock: WorkClock | None
    ) -> None:
        device = device_of(resources)
        share = resources.gpus or resources.cpus
        self.meter = Meter(device=device, share=share, work_clock=work_clock)
        # The parts of all workers of a trial, in one process: their device-seconds together.
        self.run = probe_run(run, pool)
        _, self.times_longer = run.method.probe()
        self.data_used = train.load_data(self.run, device, _Sources(self.run))
        train.warm_up(self.run, device, self.data_used)
        self.setup = train.prepare(self.run, device, self.data_used)
        self.total = self.setup.learner.total_steps
        self.kinds = Counter(self._kind(done) for done in range(self.total))
        self.stretches = stretches(self.run.method, self.total)
        self.batches, self.next_meta = train.epoch_batches(self.setup, 1)
        self.forget()

    def forget(self) -> None:
        """Forget what was measured so far."""
        self.taken: list[tuple[str, str, float]] = []
        """The kind of each step, what it logged, and its device-seconds."""
        self.after: list[float] = []

    def _kind(self, done: int) -> str:
        return self.run.method.kind_of_step(done, self.total)

    def _learn(self, setup: train.Setup, stretch: range) -> Sequence[tuple[str, float]]:
        """What each of these steps of the run logged, and its device-seconds."""
        setup.learner.steps_done = stretch.start
        setup = replace(setup, steps=len(stretch))
        epoch = 1 + stretch.start // self.setup.steps
        _, work = train.learn(setup, epoch, self.batches, self.next_meta, self.meter)
        return work.each

    def steps(self) -> None:
        for stretch in self.stretches:
            each = self._learn(self.setup, stretch)
            self.taken += [(self._kind(i), *one) for i, one in zip(stretch, each, strict=True)]

    def finish(self) -> Any:
        """Find what follows the last step, in a copy of the state, which it returns.

        The steps of the next turn do not train with what was found, as those of the run do not.
        """
        state, clock = copy.deepcopy(self.setup.state), self.meter.work_clock
        begin = clock.mark()
        self.run.method.finish(self.setup.learner, self.next_meta, state)
        self.after += self.meter.between([begin, clock.mark()])
        return state

    def result(self) -> Training:
        (gflop, memory), in_run = self._counted(), self._in_run()
        _, logged, seconds = zip(*self.taken, strict=True)
        return Training(
            kinds=tuple(
                KindOfStep(**one, in_run=in_run[one["logged"]], gflop=gflop.get(one["logged"]))
                for one in epoch_work(logged, seconds).steps
            ),
            after=self.times_longer * statistics.median(self.after or [0.0]),
            memory=memory,
        )

    def _in_run(self) -> Mapping[str, int]:
        """How often the whole run takes each kind of step, by what the step logs.

        The method knows which step is of which kind. Where steps of one of its kinds log different
        things all the same, their shares are those of the steps that were taken.
        """
        taken = Counter(kind for kind, _, _ in self.taken)
        out: defaultdict[str, float] = defaultdict(float)
        for kind, logged, _ in self.taken:
            out[logged] += self.kinds[kind] / taken[kind]
        return {logged: round(number) for logged, number in out.items()}

    def _counted(self) -> tuple[dict[str, float], int]:
        """GFLOP of a step of each kind, by what the step logs, and the most bytes that one of them
        takes. Counting slows a step: the work of these is not measured."""
        wanted = {logged for _, logged, _ in self.taken}
        setup = self.setup
        if self.run.train.compile:  # the counter does not look into compiled code
            eager = self.run.train.model_copy(update={"compile": False})
            run = self.run.model_copy(update={"train": eager})
            setup = train.prepare(run, self.meter.device, self.data_used)
        out: dict[str, float] = {}
        most = 0
        for done in itertools.chain(*self.stretches):
            if out.keys() >= wanted:
                break
            peak = Peak(self.meter.device, tensors_of(setup))
            with peak.measured(), FlopCounterMode(display=False) as counter:
                ((logged, _),) = self._learn(setup, range(done, done + 1))
            out[logged] = counter.get_total_flops() / 1e9
            most = max(most, peak.bytes)
        return out, most


def tensors_of(setup: train.Setup) -> Iterator[Tensor]:
    """What is in memory between the steps of a run, without its dataset."""
    learner, state = setup.learner, setup.state
    modules, optimisers = [learner.model, state], [learner.optimiser]
    if learner.ema is not None:
        modules.append(learner.ema)
    if getattr(state, "optimiser", None) is not None:
        optimisers.append(state.optimiser)
    for module in modules:
        yield from module.buffers()
        for parameter in module.parameters():
            yield parameter
            if parameter.grad is not None:
                yield parameter.grad
    for optimiser in optimisers:
        for one in optimiser.state.values():
            yield from (t for t in one.values() if torch.is_tensor(t))


def stretches(method: Method, total: int) -> list[range]:
    """Stretches of STEPS of a run's `total` steps that between them hold steps of every kind."""
    numbers: defaultdict[str, list[int]] = defaultdict(list)
    for done in range(total):
        numbers[method.kind_of_step(done, total)].append(done)
    out: list[range] = []
    for kind, steps in sorted(numbers.items(), key=lambda item: len(item[1])):
        if not any(method.kind_of_step(i, total) == kind for i in itertools.chain(*out)):
            # The rarest first: those around it are often of the other kinds.
            begin = max(0, min(steps[len(steps) // 2] - STEPS // 2, total - STEPS))
            out.append(range(begin, min(total, begin + STEPS)))
    return sorted(out, key=lambda stretch: stretch.start)


class _Sources:
    """A bank in which every image is its own edit: as slow to train on as a real one."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def variants(
        self, plan_key: str, drawn: Drawn, shape: Any, hashes: Sequence[str], labels: torch.Tensor
    ) -> Edits:
        run = self.run
        splits = data.load(run.dataset, val_fraction=None, device="cpu", seed=run.seed)
        images = splits.train.load().images
        start = torch.arange(len(images))[:, None].expand(-1, len(drawn))
        return Edits(images, start, torch.ones_like(start))

    def cost(self, plan_key: str, drawn: Drawn) -> dict[str, float]:
        return {}

    work = cost


def probe_run(run: Run, pool: int) -> Run:
    """The run as it is calibrated: as many steps, on a part of its pool of so many images.

    What is found after the last step is cut to what can be timed (`Method.probe`).
    """
    per_epoch = run.train.steps_per_epoch(pool)
    subset = run.dataset.imbalance or run.dataset.shots
    dataset = {} if subset else {"train_size": min(pool, STEPS * run.train.batch_size)}
    method, _ = run.method.probe()
    return run.model_copy(
        update={
            "method": method,
            "train": run.train.model_copy(update={"iters_per_epoch": per_epoch}),
            "dataset": run.dataset.model_copy(update=dataset),
            "bank_plan": "calibration" if run.method.kinds else None,
        }
    )
