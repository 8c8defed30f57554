"""The calibration of a study's cases where its trials will run: in a process of Ray."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from autoaug_ray.schedule import cluster  # before ray: it sets what ray reads when it is imported

# isort: split
import ray
import torch

from autoaug_ray import own_code
from autoaug_ray.config import Study
from autoaug_ray.errors import RunError, UserError
from autoaug_ray.schedule.calibrate import calibrate, fits
from autoaug_ray.schedule.ship_data import Handed, take
from autoaug_ray.schedule.tune import check_resources, handed_to_workers
from autoaug_ray.settings.resources import Resources
from autoaug_ray.store.calibration import Calibration
from autoaug_ray.store.meter import device_name, out_of_memory

BUDGET = 60.0
"""Seconds after which no further case of a study is calibrated before it runs."""


class Fault(NamedTuple):
    """Why a case was not calibrated."""

    message: str
    wrong_input: bool = False


def calibrate_on_workers(
    studies: Sequence[Study],
    kept: Sequence[Calibration | None] = (),
    budget: float = BUDGET,
    *,
    wait: bool = True,
) -> list[Calibration | Fault]:
    """Calibrate each case of a study in a process that holds what its trials will hold, beside as
    many others as will train beside a trial.

    A case whose `kept` calibration fits is not measured again; one whose turn comes after `budget`
    seconds is not measured at all. `wait`: whether to wait for a machine that is yet to start; if
    not, nothing is measured without one. Raises UserError for what is wrong in the study.
    """
    cluster.join()
    for study in studies:
        check_resources(study)
    needs = [study.resources_of(entry.label) for study in studies for entry in study.entries]
    most = Resources(cpus=max(n.cpus for n in needs), gpus=max(n.gpus for n in needs))
    if not wait and not any(_has(machine, most) for machine in cluster.machines()):
        # Trials have to be in line for machines first, or but one of them would start.
        return [Fault("no machine is here yet that has what its trials need")] * len(studies)
    named = [n for s in studies for n in (s.dataset.name, *methods_of(s))]
    task = ray.remote(_calibrate).options(
        num_cpus=most.cpus, num_gpus=most.gpus, max_retries=0
    )  # fmt: skip
    arguments = (
        [study.model_dump_json() for study in studies],
        list(kept or [None] * len(studies)),
        own_code.sent(named),
        handed_to_workers(studies),
        most,
        budget,
    )
    try:
        # The others only keep the machine as busy as the trials will, which slows some steps more
        # than others. Trials then start in these processes, which have imported torch.
        outcomes: list[Calibration | Fault]
        outcomes, *_ = ray.get([task.remote(*arguments) for _ in range(side_by_side(most))])
    except ray.exceptions.RayError as error:
        line = str(error).strip().splitlines()[0]
        return [Fault(f"its process died ({line})")] * len(studies)
    for outcome in outcomes:
        if isinstance(outcome, Fault) and outcome.wrong_input:
            raise UserError(outcome.message)
    return outcomes


def _has(machine: Mapping[str, float], need: Resources) -> bool:
    return machine.get("CPU", 0.0) >= need.cpus and machine.get("GPU", 0.0) >= need.gpus


def side_by_side(need: Resources) -> int:
    """How many trials that need so much share a GPU or, without one, a machine."""
    if need.gpus:
        return max(1, int(1 / need.gpus))
    largest = max(machine.get("CPU", 0.0) for machine in cluster.machines())
    return max(1, int(largest // need.cpus))


def methods_of(study: Study) -> list[str]:
    return [entry.hyperparameters["name"] for entry in study.entries]


def _calibrate(
    studies: Sequence[str],
    kept: Sequence[Calibration | None],
    codes: Mapping[str, Any],
    handed: list[Handed] | None,
    most: Resources,
    budget: float,
) -> list[Calibration | Fault]:
    """What a process of Ray does; `most` is what it holds."""
    own_code.receive(codes)
    if 0 < most.gpus < 1:
        torch.cuda.set_per_process_memory_fraction(most.gpus)
    begin, out = time.monotonic(), []
    for text, before in zip(studies, kept, strict=True):
        study = Study.model_validate_json(text)
        out.append(_one(study, before, handed, left=budget - (time.monotonic() - begin)))
    return out


def _one(
    study: Study, before: Calibration | None, handed: list[Handed] | None, left: float
) -> Calibration | Fault:
    try:
        if before is not None and fits(before, study):
            return before
        if left <= 0:
            return Fault("the cases before it took the time that a start may take")
        if handed is not None:
            take(study.dataset, handed)
        return calibrate(study)
    except UserError as error:
        return Fault(str(error), wrong_input=True)
    except RunError as error:
        return Fault(str(error).rstrip("."))
    except Exception as error:
        # A method of the user's own, say: its trials will tell all, with a traceback.
        if out_of_memory(error):
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            return Fault(f"all entries together do not fit in memory on {device_name(device)}")
        return Fault(f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip("."))
