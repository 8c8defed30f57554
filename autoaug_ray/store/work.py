"""The work of an epoch's steps, as a row says it.

A few slow steps (memory that was paged out, a processor that was throttled, neighbours that empty
its caches) lengthen a sum, but move a median little. A training is therefore charged its number of
steps times a typical step, separately for steps of different work; the plain sum stands beside it.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class EpochWork(NamedTuple):
    """The work of an epoch, in device-seconds."""

    steps: list[dict[str, Any]]
    """The column `step_work` of `store.folder.ROW`. What a step logs tells steps of different work
    apart: for each such kind its number of steps, and the quartiles of their work."""
    total: float
    """The sum over all steps."""
    after: float = 0.0
    """The work of what the method found after the last step of the training."""
    each: Sequence[tuple[str, float]] = ()
    """What each step logged, and its device-seconds, in the order of the steps."""


def epoch_work(logged: Sequence[str], seconds: Sequence[float]) -> EpochWork:
    """The work of steps that logged these names and took so many device-seconds each."""
    by_kind: defaultdict[str, list[float]] = defaultdict(list)
    each = list(zip(logged, seconds, strict=True))
    for names, one in each:
        by_kind[names].append(one)
    steps = []
    for names, values in sorted(by_kind.items()):
        q1, median, q3 = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
        steps.append({"logged": names, "steps": len(values), "q1": q1, "median": median, "q3": q3})
    return EpochWork(steps, math.fsum(seconds), each=each)


def typical(row: Mapping[str, Any]) -> float:
    """Device-seconds of a row's epoch: its steps times a typical step, and what came after them."""
    steps = math.fsum(kind["steps"] * kind["median"] for kind in row["step_work"])
    return float(steps + row["work_after"])
