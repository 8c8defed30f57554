"""Which run comes next: pure bookkeeping, without Ray.

An entry with ranges is searched first; as soon as *its* search is complete its final trainings are
handed out, while others still search. A method that learns its hyperparameters in a training of
its own does so for every seed, and each seed's final training follows its own. Runs that are
already on disk are not handed out at all, so that resuming a study, or giving it more seeds, is the
same thing as starting it.

Among the runs that are ready, searches come first, then final trainings seed by seed, so that all
entries train with one seed at about the same time: their costs are compared within the seed, and
the machine may be another one an hour later.
"""

import heapq
import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from autoaug_ray.config import Entry, Range, Run, Study
from autoaug_ray.methods import method_class
from autoaug_ray.methods.base import PopulationSearch
from autoaug_ray.store.folder import Folder, append_line
from autoaug_ray.store.places import listed

Outcome = Literal["finished", "stopped", "failed"]
Draw = Callable[[Range, np.random.RandomState], Any]


class Done(NamedTuple):
    run: Run
    outcome: Outcome
    error: str | None


class RunQueue:
    def __init__(self, study: Study, folder: Folder, draw: Draw) -> None:
        """`draw` samples a random range. What the folder already holds counts as done."""
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
        searches = {e.label: list(search_runs(study, e, draw)) for e in study.entries}
        for entry in study.entries:
            self._waiting[entry.label] = {run.key for run in searches[entry.label]}
            twice = entry.first_method.searches_in_own_run
            finals = len(study.seeds) * (2 if twice else 1)
            self.expected += len(searches[entry.label]) + finals
        for runs in searches.values():
            self._hand_out(runs)
        self._plan_finals()

    def next(self) -> Run | None:
        """The next run to start; None if there is none now (see `complete`)."""
        if not self.queue:
            return None
        _, _, run = heapq.heappop(self.queue)
        self.running[run.key] = run
        return run

    @property
    def complete(self) -> bool:
        return not (self.queue or self.running or self._waiting)

    def last_row(self, run: Run) -> Mapping[str, Any] | None:
        """The last row of a run that has ended; None if it finished no epoch.

        Cached when a run ends: choosing among 1,000 trials would otherwise re-read 1,000 files.
        """
        if run.key not in self._last:
            rows = self.folder.read_rows(run.key)
            kept = ("settings", "epoch", "val_accuracy", "index", "finished", "found")
            self._last[run.key] = {name: rows[-1][name] for name in kept} if rows else None
        return self._last[run.key]

    def settle(self, run: Run, outcome: Outcome, error: str | None = None) -> None:
        """Note how a run has ended, and plan the runs that waited for it."""
        self.running.pop(run.key, None)
        self._append_outcome(run, outcome, error)
        self._end(run, outcome, error)
        self._plan_finals()

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
            self.expected -= 1
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

    def _plan_finals(self) -> None:
        for label in [label for label, keys in self._waiting.items() if not keys]:
            entry = self.study.entry(label)
            source = entry.first_method.follows
            if source is not None and not self._finals_done(source):
                continue
            del self._waiting[label]
            choices = self._best(entry)
            if choices is None:
                self.expected -= len(self.study.seeds)
                continue
            if entry.method(choices).searches_in_own_run:
                runs = list(learning_runs(self.study, entry, choices))
                self._learning |= {run.key: (entry, choices) for run in runs}
                self._hand_out(runs)
                continue
            self._hand_out(
                self.study.run(
                    entry, "final", seed=seed, choices=choices | self._policy(entry, seed)
                )
                for seed in self.study.seeds
            )

    def _finals_done(self, label: str) -> bool:
        finals = [d for d in self.done if d.run.label == label and d.run.phase == "final"]
        return len(finals) == len(self.study.seeds)

    def _policy(self, entry: Entry, seed: int) -> dict[str, Any]:
        """The hyperparameter that an entry gets from the one that it follows, of the same seed."""
        source = entry.first_method.follows
        if source is None:
            return {}
        return {"policy": str(self.folder.policy(source, seed) / "policy.pt")}

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


def learning_runs(study: Study, entry: Entry, choices: Mapping[str, Any]) -> Iterable[Run]:
    """The runs in which a method finds its hyperparameters, one for each seed, on all images."""
    for seed in study.seeds:
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
