"""What of a proposed study fits in a budget: seeds, entries and epochs, by its calibration."""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from autoaug_ray.config import Study
from autoaug_ray.errors import UserError
from autoaug_ray.schedule.forecast import Forecast, forecast
from autoaug_ray.store.calibration import Calibration, Training

UNITS = {"s": 1, "m": 60, "h": 3600}
START = 30.0
"""Seconds of a study besides its trainings: its start, its calibration and its report."""
SLOWER = 1.5
"""A training beside others, with its evaluation and what is kept of it, takes so many times the
steps that were timed. The quick start took 1.15 times its forecast on 2 cores; beside another study
1.8 times, which nobody can foresee."""
LADDER: tuple[tuple[int, float, int], ...] = (
    (10, 1.0, 0), (5, 1.0, 0), (3, 0.6, 0), (3, 0.5, 1), (3, 0.5, 2), (3, 0.4, 3),
)  # fmt: skip
"""From the best to the smallest: seeds, the least share of the epochs, and how many of the entries
that `dispensable` names are left out. Three seeds tell more than few epochs, and a search costs
more than what it is compared with."""


class Plan(NamedTuple):
    seeds: int
    epochs: int
    left_out: tuple[str, ...]


def parse(text: str) -> float:
    """Seconds. Raises UserError for anything but a positive number of s, m or h."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if found is None or not float(found[1]):
        raise UserError(f"--budget must be a time above 0, as in 90s, 30m or 2h, got {text!r}.")
    return float(found[1]) * UNITS[found[2]]


def as_planned(study: Study, plan: Plan) -> Study:
    """The study with a plan's seeds, epochs and entries; a control goes with its entry."""
    kept = [e for e in study.entries if not {e.label, e.control_of} & set(plan.left_out)]
    return study.model_copy(
        update={
            "seeds": tuple(range(plan.seeds)),
            "train": study.train.model_copy(update={"epochs": plan.epochs}),
            "entries": tuple(kept),
        }
    )


def seconds_of(forecasts: Iterable[Forecast], devices: float) -> float:
    """Seconds of a study on so many devices: no less than those of one search run and then a final
    run."""
    forecasts = list(forecasts)
    longest = max(f.search_run_seconds + f.final_run_seconds for f in forecasts)
    return START + SLOWER * max(sum(f.device_seconds for f in forecasts) / devices, longest)


def dispensable(study: Study) -> tuple[str, ...]:
    """Labels of the entries that are left out first: those that are searched, the last of them
    before the others, and then those that learn."""
    own = [entry for entry in study.entries if entry.control_of is None]
    searched = [entry.label for entry in reversed(own) if entry.ranges]
    learned = [entry.label for entry in own if entry.first_method.learns]
    return (*searched, *(label for label in learned if label not in searched))


def fit(study: Study, calibration: Calibration, budget: float, devices: float) -> Plan:
    """The first rung of LADDER that fits in `budget` seconds, with as many epochs as fit, up to
    those of the study, which is what `calibration` was made for.

    Raises UserError if none fits.
    """
    whole = study.train.epochs
    for seeds, least, cut in LADDER:
        plan = Plan(seeds, whole, dispensable(study)[:cut])
        each = seconds_of(forecast(as_planned(study, plan), calibration), devices) - START
        fewest = max(1, round(least * whole))
        epochs = min(whole, int(whole * (budget - START) / each))
        if epochs >= fewest:
            return plan._replace(epochs=epochs)
    needed = START + each * fewest / whole
    labels = ", ".join(e.label for e in as_planned(study, plan).entries)
    raise UserError(
        f"--budget: {in_words(budget)} are too few: {labels}, with {seeds} seeds of {fewest} "
        f"epochs, take about {in_words(needed)} here."
    )


def differences(study: Study, plan: Plan, seconds: float) -> Iterator[str]:
    """What a plan, which takes so many seconds, changes in the study that was proposed."""
    yield (
        f"{plan.seeds} seeds ({len(study.seeds)} without --budget) of {plan.epochs} of "
        f"{study.train.epochs} epochs take about {in_words(seconds)} here, if nothing else runs"
    )
    if plan.left_out:
        yield f"left out: {', '.join(plan.left_out)}"


def in_words(seconds: float) -> str:
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.0f} seconds"


def at_epochs(calibration: Calibration, share: float) -> Calibration:
    """The calibration of trainings with this share of the epochs."""

    def shorter(training: Training) -> Training:
        kinds = tuple(
            k.model_copy(update={"in_run": round(share * k.in_run)}) for k in training.kinds
        )
        return training.model_copy(update={"kinds": kinds})

    entries = tuple(
        e.model_copy(update={"search": e.search and shorter(e.search), "final": shorter(e.final)})
        for e in calibration.entries
    )
    return calibration.model_copy(update={"entries": entries})
