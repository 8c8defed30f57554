"""Shipping a dataset from the driver to all machines: one copy in each one's shared memory.

Ray shares numpy arrays between the processes of a machine without copying them; torch's tensors it
would pickle.
"""

import platform
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from autoaug_ray import data
from autoaug_ray.data import Source, Split
from autoaug_ray.errors import RunError, UserError
from autoaug_ray.settings.dataset import Dataset


class Handed(NamedTuple):
    """A dataset as numpy arrays."""

    dataset: Dataset
    parts: dict[str, tuple[np.ndarray, np.ndarray]]
    """Images and labels of pool, held_out and test, as far as the dataset has them."""
    classes: tuple[str, ...]
    groups: np.ndarray | None
    notes: tuple[str, ...]


def pack(dataset: Dataset) -> Handed | None:
    """What a trial on another machine needs in place of the files; None if they stay on disk."""
    source = data.source_of(dataset)
    parts = {}
    for name in ("pool", "held_out", "test"):
        split = getattr(source, name)
        if isinstance(split, Split):
            parts[name] = split.images.numpy(), split.labels.numpy()
        elif split is not None:
            return None
    groups = None if source.groups is None else source.groups.numpy()
    return Handed(data.whole(dataset), parts, source.classes, groups, source.notes)


def take(dataset: Dataset, handed: Sequence[Handed]) -> None:
    """Makes this process use the datasets that it was handed, and not read them from its disk.

    Raises RunError for a dataset that stays on disk and cannot be read on this machine.
    """
    whole = data.whole(dataset)
    for one in handed:
        if one.dataset == whole:
            splits = {n: Split(_tensor(x), _tensor(y)) for n, (x, y) in one.parts.items()}
            groups = None if one.groups is None else _tensor(one.groups)
            source = Source(
                splits["pool"], splits.get("held_out"), splits["test"], one.classes, groups,
                one.notes,
            )  # fmt: skip
            data.give(whole, source)
            return
    try:
        data.source_of(whole)
    except UserError as error:
        raise RunError(
            f"dataset.root: {dataset.root} cannot be read on the machine {platform.node()}, and "
            f"{dataset.name} takes more memory than dataset.memory_gb, {dataset.memory_gb:g}, so "
            "that every machine reads its images from there: put them on storage that all of them "
            f"share, under one absolute path ({str(error).rstrip('.')})."
        ) from None


def _tensor(array: np.ndarray) -> Tensor:
    with warnings.catch_warnings():
        # Shared memory is read-only, which torch cannot express.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(array)
