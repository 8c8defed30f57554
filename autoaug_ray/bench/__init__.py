"""Speed and cost, measured side by side: `python -m autoaug_ray.bench NAME [--json FILE]`.

    actors          images per second of one generation actor and of several
    alpha           whether a search turns away from noise among the generated images
    augment         what an augmentation costs an image, beside torchvision's
    costs           how far the costs of one study are apart, run several times
    decode          images per second from files that do not fit in memory
    faults          what a lost machine and a lost driver cost a study
    hypergradient   what each way to the augmenter's gradient costs, and how right it is
    memory          what a hypergradient takes in parts, with blocks recomputed, and in bf16
    meter           what it adds to a training to measure its cost
    neighbours      keeps the machine busy beside a command
    tune            what share of a study's machine time is not training
    scale           how busy one driver keeps 1 to 64 GPUs
    signal          whether a hypergradient points where it should, and how much of it is noise
    generate        what an edited image costs, in batches and one by one
    forecast        what Stable Diffusion's edits will cost on GPUs

A benchmark is a function and a line in __main__.BENCHES. Its keyword arguments are the options of
the command; it returns its figures (for --json) and the tables that show them.

The ways that are compared take turns in one process, A B C A B C ..., and each round is divided by
the plain way's, so that a machine that is busy now and then slows both sides of a ratio.
"""

import time
from typing import Any, NamedTuple

import torch
from rich.table import Table

from autoaug_ray.errors import UserError
from autoaug_ray.settings.dataset import Dataset

DATASET = Dataset(name="fashion-mnist-mini")


class Outcome(NamedTuple):
    figures: dict[str, Any]
    tables: list[Table]
    status: int = 0
    """The exit status of the command."""


def device_of(name: str) -> torch.device:
    """The device that a --device option names. Raises UserError if this machine lacks it."""
    if name not in ("cpu", "cuda"):
        raise UserError(f"--device must be cpu or cuda, got {name!r}.")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device on this machine; use cpu.")
    return torch.device(name)


def now(device: torch.device) -> float:
    """Seconds of a clock, once the device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
