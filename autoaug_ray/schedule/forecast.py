"""What a study will cost, from its calibration."""

from collections.abc import Sequence
from typing import NamedTuple

from autoaug_ray.config import Entry, Study
from autoaug_ray.schedule.queue import search_runs
from autoaug_ray.schedule.tune import draw
from autoaug_ray.store.calibration import Calibration


class Forecast(NamedTuple):
    """Device-seconds are those of training steps and of what is found after the last one; what
    evaluation and overhead take comes on top."""

    label: str
    search_runs: int
    final_runs: int
    search_run_seconds: float
    """Device-seconds of one search run; 0.0 without any."""
    final_run_seconds: float
    """Device-seconds of one final run."""

    @property
    def runs(self) -> int:
        return self.search_runs + self.final_runs

    @property
    def device_seconds(self) -> float:
        """Device-seconds of all runs."""
        return self.search_runs * self.search_run_seconds + self.final_runs * self.final_run_seconds

    @property
    def longest_run_seconds(self) -> float:
        return max(self.search_run_seconds, self.final_run_seconds)


def forecast(study: Study, calibration: Calibration) -> list[Forecast]:
    """Forecast each entry of which it is known what a step takes.

    Searches count in full, at the steps of their first choices; a scheduler that stops trials early
    makes them cheaper.
    """
    out = []
    for entry in study.entries:
        label = study.reference if entry.first_method.timed_as_reference else entry.label
        search, final = (calibration.training(label, phase) for phase in ("search", "final"))
        if search is None or final is None:
            continue
        searches, finals = run_counts(study, entry)
        each = search.seconds if searches else 0.0
        out.append(Forecast(entry.label, searches, finals, each, final.seconds))
    return out


def run_counts(study: Study, entry: Entry) -> tuple[int, int]:
    """How many search runs an entry has, those that learn for one seed included, and final ones."""
    searches, seeds = len(list(search_runs(study, entry, draw))), len(study.seeds)
    return searches + seeds * entry.first_method.searches_in_own_run, seeds


def sentence(forecasts: Sequence[Forecast], device: str) -> str:
    """What all runs of a study, or of its cases, will take on a device of this name."""
    longest = max(forecasts, key=lambda f: f.longest_run_seconds)
    runs = sum(f.runs for f in forecasts)
    unit = "CPU" if device == "CPU" else "device"
    total = _duration(sum(f.device_seconds for f in forecasts), unit)
    return (
        f"forecast: {runs} {'run' if runs == 1 else 'runs'}, about {total} of training; the "
        f"longest, {longest.label}, about {_duration(longest.longest_run_seconds, unit)} a run"
    )


def _duration(seconds: float, unit: str) -> str:
    for size, name in ((3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}-{name}"
    return f"{seconds:.3g} {unit}-seconds"
