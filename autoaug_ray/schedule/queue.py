"""Which run comes next: pure bookkeeping, without Ray.

An entry with ranges is searched first; as soon as *its* search is complete its final trainings are
handed out, while others still search. A method that learns its hyperparameters in a training of
its own does so for every seed, and each seed's final training follows its own. An entry that
follows another one, of this case or of another one that runs beside it, starts when that one's
final trainings have ended, with those of its seeds that have finished. Runs that are already on
disk are not handed out at all, so that resuming a study, or giving it more seeds, is the
same thing as starting it.

Among the runs that are ready, searches come first, then final trainings seed by seed, so that all
entries train with one seed at about the same time: their costs are compared within the seed, and
the machine may be another one an hour later.
"""

import heapq
import itertools
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from autoaug_ray.config import Entry, Run, Study
from autoaug_ray.methods import method_class
from autoaug_ray.methods.base import PopulationSearch
from autoaug_ray.methods.sources import Source, parse
from autoaug_ray.settings.ranges import Range
from autoaug_ray.store.folder import Folder, append_line
from autoaug_ray.store.places import listed

Outcome = Literal["finished", "stopped", "failed"]
Draw = Callable[[Range, np.random.RandomState], Any]
Case = tuple[str, str | None]
"""Names of a study and of its case."""
Wanted = Callable[[Study, Folder], Mapping[str, Sequence[int]]]
"""A study and its folder -> the seeds that each label is to be trained with by now; what was wanted
once stays so. It must depend on what is on disk only."""


class Done(NamedTuple):
    run: Run
    outcome: Outcome
    error: str | None


class RunQueue:
    def __init__(
        self,
        study: Study,
        folder: Folder,
        draw: Draw,
        beside: Mapping[Case, "RunQueue | None"] | None = None,
        wanted: Wanted | None = None,
    ) -> None:
        """`draw` samples a random range. What the folder already holds counts as done.

        `wanted` says which seeds each entry gets by what the folder holds, and is asked again each
        time that those have ended (see `complete`); None: all of the study's.

        `beside` are the queues of the cases that run together; None is one that is yet to come. Any
        other study that an entry follows has to be finished (see `commands.transfer`).
        """
        self._beside = beside or {}
        self._missing: Counter[str] = Counter()
        """Label -> final trainings that will never be, as what they need has failed."""
        self.study, self.folder = study, folder
        self.queue: list[tuple[int, int, Run]] = []
        """A heap of (turn, order of arrival, run)."""
        self._arrivals = itertools.count()
        self.running: dict[str, Run] = {}
        self.done: list[Done] = []
        self._last: dict[str, Mapping[str, Any] | None] = {}
        self._settled = _read_outcomes(folder)
        self._waiting: dict[str, set[str]] = {}
        """Labels whose final runs are not yet planned -> keys of the runs they wait for."""
        self._learning: dict[str, tuple[Entry, dict[str, Any]]] = {}
        """Keys of runs that learn the hyperparameters of a final run -> what it is made of."""
        self.expected = 0
        self.seeds: dict[str, tuple[int, ...]] = {e.label: () for e in study.entries}
        """Label -> seeds of the final trainings that have been asked for."""
        self._planned: Counter[str] = Counter()
        """Label -> how many of them have been handed out, or given up."""
        self._wanted = wanted
        searches = {e.label: list(search_runs(study, e, draw)) for e in study.entries}
        for label, runs in searches.items():
            self._waiting[label] = {run.key for run in runs}
            self.expected += len(runs)
        self._ask()
        for runs in searches.values():
            self._hand_out(runs)
        self._plan_all()

    def next(self) -> Run | None:
        """The next run to start; None if there is none now (see `complete`)."""
        if self._beside:
            self._plan_finals()  # another queue may have got on
        if not self.queue:
            return None
        _, _, run = heapq.heappop(self.queue)
        self.running[run.key] = run
        return run

    def _ask(self) -> bool:
        """Ask for the seeds that are wanted by now; whether there are any new ones."""
        wanted: Mapping[str, Sequence[int]] = dict.fromkeys(self.seeds, self.study.seeds)
        if self._wanted is not None:
            wanted = self._wanted(self.study, self.folder)
        asked = False
        for entry in self.study.entries:
            label = entry.label
            if new := tuple(s for s in wanted[label] if s not in self.seeds[label]):
                asked = True
                self.seeds[label] += new
                self.expected += len(new) * (2 if entry.first_method.searches_in_own_run else 1)
                self._waiting.setdefault(label, set())
        return asked

    @property
    def complete(self) -> bool:
        return not (self.queue or self.running or self._waiting)

    def given_up(self, label: str) -> int:
        """How many final trainings of an entry will never be, as what they need has failed."""
        return self._missing[label]

    def last_row(self, run: Run) -> Mapping[str, Any] | None:
        """The last row of a run that has ended; None if it finished no epoch.

        Cached when a run ends: choosing among 1,000 trials would otherwise re-read 1,000 files.
        """
        if run.key not in self._last:
            rows = self.folder.read_rows(run.key)
            kept = (
                "settings", "epoch", "val_accuracy", "test_accuracy", "index", "finished", "found",
            )  # fmt: skip
            self._last[run.key] = {name: rows[-1][name] for name in kept} if rows else None
        return self._last[run.key]

    def settle(self, run: Run, outcome: Outcome, error: str | None = None) -> None:
        """Note how a run has ended, and plan the runs that waited for it."""
        self.running.pop(run.key, None)
        self._append_outcome(run, outcome, error)
        self._end(run, outcome, error)
        self._plan_all()

    def _append_outcome(self, run: Run, outcome: Outcome, error: str | None) -> None:
        line = {
            "run": run.key, "label": run.label, "phase": run.phase, "seed": run.seed,
            "index": run.index, "outcome": outcome, "error": error,
        }  # fmt: skip
        append_line(self.folder.outcomes, line)

    def _end(self, run: Run, outcome: Outcome, error: str | None) -> None:
        self.done.append(Done(run, outcome, error))
        for keys in self._waiting.values():
            keys.discard(run.key)
        if (learning := self._learning.pop(run.key, None)) is None:
            return
        entry, choices = learning
        if outcome != "finished":
            self._give_up(entry.label, 1)
            return
        row = self.last_row(run)
        assert row is not None
        choices = choices | learned(row)
        self._hand_out([self.study.run(entry, "final", seed=run.seed, choices=choices)])

    def _hand_out(self, runs: Iterable[Run]) -> None:
        for run in runs:
            if (outcome := self._settled.get(run.key)) is not None:
                self._end(run, outcome, None)
            else:
                turn = self.study.seeds.index(run.seed) + 1 if run.phase == "final" else 0
                heapq.heappush(self.queue, (turn, next(self._arrivals), run))

    def _plan_all(self) -> None:
        """Plan what is ready, and more seeds if they are wanted once nothing else is left."""
        self._plan_finals()
        while self.complete and self._ask():
            self._plan_finals()

    def _plan_finals(self) -> None:
        planned = True
        while planned:  # an entry without final trainings may be what another one waits for
            ready = [label for label, keys in self._waiting.items() if not keys]
            planned = any([self._plan(self.study.entry(label)) for label in ready])

    def _plan(self, entry: Entry) -> bool:
        """Hand out the final runs of an entry, or those that come before; False: it still waits."""
        method, label = entry.first_method, entry.label
        new = seeds = self.seeds[label][self._planned[label] :]
        source = None if method.follows is None else parse(method.follows)
        if source is not None:
            found = self._found(source)
            if found is None:
                return False
            seeds = tuple(seed for seed in seeds if seed in found)
        del self._waiting[label]
        self._planned[label] = len(self.seeds[label])
        choices = self._best(entry)
        if choices is None:
            seeds = ()
        self._give_up(label, len(new) - len(seeds))
        if choices is None:
            return True
        if entry.method(choices).searches_in_own_run:
            runs = list(learning_runs(self.study, entry, choices, seeds))
            self._learning |= {run.key: (entry, choices) for run in runs}
            self._hand_out(runs)
            return True
        for seed in seeds:
            inherited = {} if source is None else self._inherited(entry, source, seed)
            run = self.study.run(entry, "final", seed=seed, choices=choices | inherited)
            self._hand_out([run])
        return True

    def _give_up(self, label: str, count: int) -> None:
        self.expected -= count
        self._missing[label] += count

    def _found(self, source: Source) -> Collection[int] | None:
        """The seeds of which an entry has left a policy; None while some of them still train."""
        if source.study is None:
            return self._finished(source.label)
        if (case := (source.study, source.case)) not in self._beside:
            return self.study.seeds
        queue = self._beside[case]
        return None if queue is None else queue._finished(source.label)

    def _finished(self, label: str) -> Collection[int] | None:
        finals = [d for d in self.done if d.run.label == label and d.run.phase == "final"]
        if len(finals) + self._missing[label] < len(self.seeds[label]):
            return None
        return {done.run.seed for done in finals if done.outcome == "finished"}

    def _inherited(self, entry: Entry, source: Source, seed: int) -> dict[str, Any]:
        """The hyperparameters that an entry takes from the one that it follows, of one seed."""
        folder = Folder(source.root(self.folder.root, self.study.case))
        policy = folder.policy(source.label, seed) / "policy.pt"
        return entry.first_method.inherit(policy.resolve())

    def _best(self, entry: Entry) -> dict[str, Any] | None:
        """What the search chose, by validation accuracy; None if all its trials failed.

        Trials that were stopped early do not compete with those that went further.
        """
        if not is_searched(entry):
            return {}
        ended = [
            self.last_row(done.run)
            for done in self.done
            if done.run.label == entry.label and done.run.phase == "search"
        ]
        rows = [row for row in ended if row is not None]
        if not rows:
            return None
        best = max(rows, key=lambda r: (r["epoch"], r["val_accuracy"], -r["index"]))
        method = json.loads(best["settings"])["method"]
        if (population := population_of(entry)) is not None:
            return {population.lineage: method[population.lineage]}
        return {name: method[name] for name in entry.ranges}


def queues_of(
    cases: Sequence[tuple[Study, Folder]], draw: Draw, wanted: Wanted | None = None
) -> list[RunQueue]:
    """The queues of cases that run together, whose entries may follow those of another case."""
    names = [(study.name, study.case) for study, _ in cases]
    beside: dict[Case, RunQueue | None] = dict.fromkeys(names)
    queues = []
    for name, (study, folder) in zip(names, cases, strict=True):
        queues.append(RunQueue(study, folder, draw, beside, wanted))
        beside[name] = queues[-1]
    for queue in queues:
        queue._plan_finals()
    return queues


def is_searched(entry: Entry) -> bool:
    return bool(entry.ranges) or population_of(entry) is not None


def population_of(entry: Entry) -> PopulationSearch | None:
    """How a population searches for the entry, unless the study gives what it would find."""
    search = method_class(entry.hyperparameters["name"]).population_search
    return None if search is None or search.lineage in entry.hyperparameters else search


def search_runs(study: Study, entry: Entry, draw: Draw) -> Iterable[Run]:
    """All search trials of an entry; the same ones every time."""
    candidates: list[dict[str, Any]] = []
    population = population_of(entry)
    if population is not None:
        candidates = [{}] * getattr(entry.first_method, population.size)
    elif entry.ranges:
        rng = np.random.RandomState(study.seeds[0])
        free = {k: r for k, r in entry.ranges.items() if r.kind != "grid"}
        for fixed in entry.grid():
            for _ in range(entry.search.samples if free else 1):
                candidates.append(fixed | {k: draw(r, rng) for k, r in free.items()})
    for index, choices in enumerate(candidates):
        # Members of a population start with one policy: with one seed too they would stay equal,
        # and the scheduler never find a worse one to replace.
        seed = study.seeds[0] + (0 if population is None else index)
        yield study.run(entry, "search", seed=seed, choices=choices, index=index)


def learning_runs(
    study: Study, entry: Entry, choices: Mapping[str, Any], seeds: Sequence[int]
) -> Iterable[Run]:
    """The runs in which a method finds its hyperparameters, one for each seed, on all images."""
    for seed in seeds:
        yield study.run(entry, "search", seed=seed, choices=choices, whole_pool=True)


def learned(row: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters that the training of this last row found for the final one."""
    found: dict[str, Any] = json.loads(row["found"])
    return found


def _read_outcomes(folder: Folder) -> dict[str, Outcome]:
    """Key -> outcome of the runs that need not run again: finished, or stopped by a scheduler."""
    lines = folder.read_outcomes()
    out: dict[str, Outcome] = {x["run"]: "stopped" for x in lines if x["outcome"] == "stopped"}
    finished = {line["run"] for line in lines if line["outcome"] == "finished"}
    for path in listed(folder.rows, "*.parquet"):
        # No outcome was written if the driver died as the run ended.
        if path.stem in finished or folder.read_rows(path.stem)[-1]["finished"]:
            out[path.stem] = "finished"
    return out
