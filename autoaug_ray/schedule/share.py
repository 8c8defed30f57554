"""A training that several processes share, each on a GPU or some CPUs of its own.

They are of one trial of Tune and hold the bundles of its placement group. The first is the trial's
own process, which alone reports, writes and is metered, for all of them; the others only do their
share of every batch. See `maths.workers`.
"""

import contextlib
import datetime
import socket
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from autoaug_ray.schedule import cluster  # noqa: F401  before ray: it sets what ray reads

# isort: split
import ray
import torch
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch import distributed as dist

from autoaug_ray import own_code, train
from autoaug_ray.config import Run
from autoaug_ray.errors import RunError, UserError
from autoaug_ray.generate.bank import shared_bank
from autoaug_ray.maths.workers import ALONE, Workers
from autoaug_ray.schedule.ship_data import Handed, take
from autoaug_ray.store.meter import Meter

PATIENCE = 300.0
"""Seconds that a process waits for the others, at the start and at every sum."""


class WorkerLost(Exception):
    """A process of the training died, with its machine perhaps: it is worth another attempt."""


class Part(NamedTuple):
    """What the other processes are told, to do the same as the trial's own."""

    config: Mapping[str, Any]
    """The trial's, as Tune hands it over."""
    run: str
    """As JSON."""
    resume: Mapping[str, Any] | None
    bank: str | None
    handed: list[Handed] | None


@contextlib.contextmanager
def shared(part: Part, device: torch.device) -> Iterator[Workers]:
    """Within this context the trial's other workers do their share. With one worker, nothing is
    started.

    Raises WorkerLost if one of them died, and its UserError or RunError if it has one.
    """
    number = part.config["workers"]
    if number == 1:
        yield ALONE
        return
    here = ray.util.get_node_ip_address()
    with socket.socket() as free:
        free.bind((here, 0))
        address = f"tcp://{here}:{free.getsockname()[1]}"
    group = ray.util.get_current_placement_group()
    others = [
        ray.remote(_work)
        .options(
            num_cpus=part.config["cpus"], num_gpus=part.config["gpus"], max_retries=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                group, placement_group_bundle_index=rank
            ),
        )
        .remote(part, address, rank)
        for rank in range(1, number)
    ]  # fmt: skip
    try:
        with _joined(address, Workers(0, number), device) as workers:
            yield workers
        ray.wait(others, num_returns=len(others), timeout=10)  # so that their processes live on
    except (UserError, RunError):
        raise  # all of them have it
    except Exception as error:
        for other in ray.wait(others, num_returns=len(others), timeout=10)[0]:
            try:
                ray.get(other)
            except ray.exceptions.RayTaskError as theirs:
                if isinstance(theirs.cause, UserError | RunError):
                    raise theirs.cause from error
            except ray.exceptions.RayError as death:
                raise WorkerLost(str(death)) from error
        raise
    finally:
        for other in others:
            ray.cancel(other, force=True)


@contextlib.contextmanager
def _joined(address: str, workers: Workers, device: torch.device) -> Iterator[Workers]:
    """Within this context the process is in the group of all workers."""
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=address,
        rank=workers.rank,
        world_size=workers.size,
        timeout=datetime.timedelta(seconds=PATIENCE),
    )
    try:
        yield workers
    finally:
        dist.destroy_process_group()  # tells the others, if something went wrong here


def _work(part: Part, address: str, rank: int) -> None:
    """What a worker besides the trial's own process does."""
    config = part.config
    own_code.receive(config.get("code", {}))
    run = Run.model_validate_json(part.run)
    torch.set_num_threads(max(1, int(config["cpus"])))
    device = torch.device("cuda" if config["gpus"] > 0 else "cpu")
    if 0 < config["gpus"] < 1:
        torch.cuda.set_per_process_memory_fraction(config["gpus"])
    with _joined(address, Workers(rank, config["workers"]), device) as workers:
        if part.handed is not None:
            take(run.dataset, part.handed)
        images = shared_bank(part.bank) if part.bank and run.bank_plan else None
        for _ in train.run(run, Meter(device=device), part.resume, images, workers):
            pass  # the trial's own process keeps what comes of it
