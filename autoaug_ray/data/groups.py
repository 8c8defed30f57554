"""Images that belong together, such as frames of one video, and splits that keep them together."""

import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from autoaug_ray.data.splits import AnySplit, Source, Stored
from autoaug_ray.errors import UserError
from autoaug_ray.settings.dataset import Dataset

LEAST_GAIN = 1e-9
"""What a change of sides must bring: above the rounding of its sum, so that changes end."""


def numbered(paths: Sequence[str | Path], root: str | Path, pattern: str) -> tuple[Tensor, str]:
    """A number for each file, the same where `dataset.group_by` says so, and a note on them.

    (n,) int64. Raises UserError for a pattern that no file matches, or that makes one group of all.
    """
    places = [Path(os.path.relpath(path, root)).as_posix() for path in paths]
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise UserError(
            f"dataset.group_by: {pattern!r} is no regular expression ({error})."
        ) from None
    searched = [regex.search(place) for place in places]
    keys = [found and found[min(1, found.re.groups)] for found in searched]
    if (alone := keys.count(None)) == len(keys):
        raise UserError(
            f"dataset.group_by: {pattern!r} is found in none of {len(keys)} files "
            f"({places[0]} for one)."
        )
    numbers: dict[object, int] = {}
    # A file without a match has its position as its key, which no match has: those are strings.
    groups = [
        numbers.setdefault(i if key is None else key, len(numbers)) for i, key in enumerate(keys)
    ]
    if len(numbers) == 1:
        raise UserError(
            f"dataset.group_by: {pattern!r} puts all {len(keys)} files into one group, {keys[0]!r}."
        )
    key, most = Counter(key for key in keys if key is not None).most_common(1)[0]
    note = (
        f"dataset.group_by makes {len(numbers)} groups of {len(keys)} files; the largest, {key!r}, "
        f"has {most}"
    )
    return torch.tensor(groups), note + (f", and {alone} match nothing." if alone else ".")


def of_parts(
    parts: Sequence[Sequence[str | Path]], root: str | Path, pattern: str
) -> tuple[Tensor, str]:
    """`numbered` for the files of all parts, one after the other.

    Raises UserError, too, if a group is in two parts.
    """
    paths = [path for part in parts for path in part]
    numbers, note = numbered(paths, root, pattern)
    part_of = [i for i, part in enumerate(parts) for _ in part]
    first: dict[int, tuple[int, str | Path]] = {}
    for number, part, path in zip(numbers.tolist(), part_of, paths, strict=True):
        before, other = first.setdefault(number, (part, path))
        if before != part:
            raise UserError(
                f"dataset.group_by: {other} and {path} are of one group, but in different parts of "
                "the dataset, each of whose groups must be in one part."
            )
    return numbers, note


def by_files(source: Source, dataset: Dataset) -> Source:
    """The source with groups as `dataset.group_by` makes them of its files' names.

    Raises UserError if a group is on both sides of a split that comes with the dataset.
    """
    assert dataset.group_by is not None
    parts = [_paths(p) for p in (source.pool, source.held_out, source.test) if p is not None]
    numbers, note = of_parts(parts, Path(dataset.root).expanduser(), dataset.group_by)
    return replace(source, groups=numbers[: -len(source.test)], notes=(*source.notes, note))


def _paths(split: AnySplit) -> list[str | Path]:
    """The files of the images. Raises UserError if they have none."""
    from autoaug_ray.data.files import ImageFiles  # whoever loads a policy needs no Pillow

    if not isinstance(split, Stored) or not isinstance(split.read, ImageFiles):
        raise UserError("dataset.group_by needs a dataset of image files.")
    return [split.read.paths[i] for i in split.index.tolist()]


def joined(one: Tensor, other: Tensor) -> Tensor:
    """(n,) numbers, the same for images that have the same number in either of two (n,), also over
    several steps."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    a, b = (grouping.unique(return_inverse=True)[1].numpy() for grouping in (one, other))
    b = b + a.max() + 1
    edges = coo_array((np.ones(len(a)), (a, b)), shape=(b.max() + 1, b.max() + 1))
    _, number = connected_components(edges, directed=False)
    return torch.from_numpy(number[a].astype(np.int64))


def apart(
    labels: Tensor, groups: Tensor, fraction: float, *, seed: int, every_class: bool = False
) -> tuple[Tensor, Tensor]:
    """Indices of (the rest, about `fraction` of the images of every class); groups stay whole.

    In a random order, a group is taken, or given back, if that brings the classes' shares nearer to
    `fraction`, in the sum of their squares, until none does. A class of several groups is on both
    sides, and one of a single group in the rest, unless `every_class` puts its images on both.
    `labels` and `groups` are (n,). Raises UserError if there is nothing to take.
    """
    counts: dict[int, Counter[int]] = defaultdict(Counter)
    for group, label in zip(groups.tolist(), labels.tolist(), strict=True):
        counts[group][label] += 1
    sizes: list[int] = torch.bincount(labels).tolist()
    taken = [0] * len(sizes)
    chosen: set[int] = set()

    def nearer(group: int) -> float:
        """By how much the shares come nearer if the group changes sides; minus infinity if the rest
        would have no image of a class."""
        gain, sign = 0.0, -1 if group in chosen else 1
        for label, n in counts[group].items():
            before, after = taken[label], taken[label] + sign * n
            if after == sizes[label]:
                return -math.inf
            gain += (before / sizes[label] - fraction) ** 2 - (after / sizes[label] - fraction) ** 2
        return gain

    def change(group: int) -> None:
        sign = -1 if group in chosen else 1
        chosen.symmetric_difference_update([group])
        for label, n in counts[group].items():
            taken[label] += sign * n

    generator = torch.Generator().manual_seed(seed)
    keys = sorted(counts)
    order = [keys[i] for i in torch.randperm(len(keys), generator=generator).tolist()]
    changed = True
    while changed:
        changed = False
        for group in order:
            if nearer(group) > LEAST_GAIN:
                change(group)
                changed = True
    for label in range(len(sizes)):
        if sizes[label] and not taken[label]:
            best = max((g for g in order if label in counts[g]), key=nearer)
            if nearer(best) > -math.inf:
                change(best)
    if not chosen:
        raise UserError(
            f"dataset.group_by: the {len(counts)} groups of {len(labels)} images cannot be parted "
            "without taking all images of a class away."
        )
    part = torch.isin(groups, torch.tensor(sorted(chosen)))
    both = torch.tensor([every_class and not n for n in taken])[labels]
    return (~part).nonzero().flatten(), (part | both).nonzero().flatten()
