"""A calibration as a study's folder keeps it: what a step of every entry takes, and its arithmetic.

A few steps of every entry are measured in one process, in turns, so that whatever happens on the
machine meanwhile meets all entries alike (see `schedule.calibrate`). What the runs of the study
then measure can be compared with that.
"""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from autoaug_ray.store.files import reading, write_whole
from autoaug_ray.store.places import Place


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class KindOfStep(_Frozen):
    """The steps of a training that do the same work."""

    logged: str
    """What such a step logs, as `step_work` of `store.folder.ROW` names it."""
    steps: int
    """The number that was measured."""
    in_run: int
    """The number that a whole run takes."""
    q1: float
    """Quartiles of a step's work in device-seconds."""
    median: float
    q3: float
    gflop: float | None
    """Arithmetic of one step in GFLOP, a multiply-add being two; None if it could not be counted.

    Convolutions and matrix products are counted, as torch does; work on single pixels is not."""


class Training(_Frozen):
    """What a training's steps take, and what is found after the last one."""

    kinds: tuple[KindOfStep, ...]
    after: float = 0.0
    """Device-seconds of the work after the last step."""
    memory: int | None = None
    """Bytes of the tensors that a step had at most at a time, the weights and what learns them
    included, the dataset not; `schedule.memory.Peak` says how. None if it was not measured."""

    @property
    def seconds(self) -> float:
        """Device-seconds of a whole run."""
        return math.fsum(kind.in_run * kind.median for kind in self.kinds) + self.after

    @property
    def gflop(self) -> float | None:
        """Arithmetic of a whole run's steps; None if some could not be counted."""
        return _total((kind.in_run, kind.gflop) for kind in self.kinds)


class EntryCalibration(_Frozen):
    label: str
    run: str
    """Key of the run whose steps these are: any other settings would make it another one."""
    device: str
    clock: str
    """What measured the work."""
    threads: int
    """The threads of torch."""
    memory: int | None = None
    """Bytes of memory of its share of the device."""
    search: Training | None
    """The training that finds hyperparameters for the final one; None if the entry has none such.
    The trials of any other search take the steps of the final training."""
    final: Training


class Calibration(_Frozen):
    time: float
    """Seconds since 1970 when it was made."""
    entries: tuple[EntryCalibration, ...]
    left_out: dict[str, str] = {}
    """Label -> why the entry has no calibration."""

    def entry(self, label: str) -> EntryCalibration | None:
        return next((e for e in self.entries if e.label == label), None)

    def training(self, label: str, phase: str) -> Training | None:
        """What a run of this entry and phase (search or final) takes; None if not calibrated."""
        if (entry := self.entry(label)) is None:
            return None
        return entry.search if phase == "search" and entry.search else entry.final

    def seconds(self, label: str, row: Mapping[str, Any]) -> float | None:
        """Device-seconds that the steps of a row, and what came after them, take by calibration.

        `row` has the columns of `store.folder.ROW`. None if one of its kinds of step was not
        calibrated.
        """
        steps = self._weighted(label, row, "median")
        training = self.training(label, row["phase"])
        if steps is None or training is None:
            return None
        return steps + (training.after if row["finished"] else 0.0)

    def gflop(self, label: str, row: Mapping[str, Any]) -> float | None:
        """Arithmetic of the steps of a row in GFLOP; None if one of its kinds was not counted."""
        return self._weighted(label, row, "gflop")

    def _weighted(self, label: str, row: Mapping[str, Any], name: str) -> float | None:
        """The sum over a row's steps of what one step of the kind takes."""
        if (training := self.training(label, row["phase"])) is None or not row["step_work"]:
            return None
        one = {kind.logged: getattr(kind, name) for kind in training.kinds}
        return _total((kind["steps"], one.get(kind["logged"])) for kind in row["step_work"])


def _total(parts: Iterable[tuple[int, float | None]]) -> float | None:
    """The sum of (number, each); None if one of them is not known."""
    total = 0.0
    for number, each in parts:
        if each is None:
            return None
        total += number * each
    return total


def read(path: Place) -> Calibration | None:
    """The calibration in a file; None without one, and of a file that is none of this version.

    Raises DamagedFile for one that is no JSON.
    """
    if not path.exists():
        return None
    with reading(path, "delete it, and costs stand by what every run measured itself"):
        about = json.loads(path.read_bytes())
    try:
        return Calibration.model_validate(about)
    except ValidationError:
        return None


def write(path: Place, calibration: Calibration) -> None:
    """Raises StorageError."""
    write_whole(path, calibration.model_dump_json(indent=1).encode())
