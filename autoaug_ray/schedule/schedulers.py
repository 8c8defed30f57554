"""Which trial of Ray Tune goes on, is stopped or is started next, for each entry on its own."""

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from autoaug_ray.schedule import cluster  # noqa: F401  before ray: it sets what ray reads

# isort: split
from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    PopulationBasedTraining,
    TrialScheduler,
)

from autoaug_ray.config import Entry, Study
from autoaug_ray.methods.base import PopulationSearch
from autoaug_ray.schedule.queue import population_of


class _TrialView:
    """The Tune controller as the scheduler of one entry sees it: with that entry's trials only.

    PBT expects to own all trials and the searcher; it must see neither ours nor other entries'
    trials.
    """

    search_alg = None

    def __init__(self, controller: Any, trials: Iterable[Trial]) -> None:
        self._controller, self._trials = controller, trials

    def get_trials(self) -> list[Trial]:
        return list(self._trials)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._controller, name)


class PerEntry(TrialScheduler):
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
    """The scheduler of an entry's search; None if its trials run one after another, to the end."""
    if (population := population_of(entry)) is not None:
        return PopulationBasedTraining(
            time_attr="epoch",
            perturbation_interval=getattr(entry.first_method, population.perturb_every),
            quantile_fraction=0.25,
            custom_explore_fn=_Explore(population, study.seeds[0]),
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
    """Perturbs the gene in a trial's config, with random numbers of its own stream."""

    def __init__(self, population: PopulationSearch, seed: int) -> None:
        self.population, self.rng = population, random.Random(seed)

    def __call__(self, config: dict[str, Any]) -> dict[str, Any]:
        return {**config, "gene": list(self.population.perturb(tuple(config["gene"]), self.rng))}
