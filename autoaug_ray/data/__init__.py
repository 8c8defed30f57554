"""Datasets by name -> `Splits`: uint8 images on the device, in the roles of the protocol.

The pool holds every image that may train something. Each epoch its images are dealt two roles:
*train* (the classifier's weights learn from it) and *meta* (augmentation parameters learn from
it). *val* chooses between trials and *test* is read once; neither is ever in the pool.

A `shift` says that the classifier will be used on images that look different from the collected
ones: val, test and every image in the meta role are seen through it, images in the train role are
not. Then the right augmentation is known, and a method can be held against it.

`imbalance` and `shots` cut the pool to a long tail, or to a few images per class. Both take
prefixes of one order of each class's images: a smaller subset is a part of a larger one, and
images generated for the larger one serve both.

A new dataset is a function from `Dataset` to `Source` in a file beside this one, a line in SOURCES
and one in `OPTIONS` of autoaug_ray/settings/dataset.py. A study may also name such a function in a
file of the user's own.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pkgutil import resolve_name

import numpy as np
import torch
from torch import Tensor

from autoaug_ray import own_code
from autoaug_ray.data.groups import apart, by_files
from autoaug_ray.data.splits import (
    AnySplit,
    Edits,
    Reader,
    Source,
    Split,
    Splits,
    Stored,
    batches,
    by_class,
    concatenate,
    draws,
    stratified,
)
from autoaug_ray.errors import UserError, some
from autoaug_ray.maths import image_ops
from autoaug_ray.settings.dataset import Dataset, Imbalance, Shift

__all__ = [
    "AnySplit", "Dataset", "Edits", "Imbalance", "Shift", "Source", "Split", "Splits", "Stored",
    "apart", "batches", "by_class", "concatenate", "draws", "fingerprint", "give", "load",
    "source_of", "whole",
]  # fmt: skip

SOURCES: dict[str, str] = {
    "fashion-mnist-mini": "autoaug_ray.data.arrays:fashion_mnist_mini",
    "fashion-mnist": "autoaug_ray.data.arrays:fashion_mnist",
    "cifar10": "autoaug_ray.data.arrays:cifar",
    "cifar100": "autoaug_ray.data.arrays:cifar",
    "tiny-imagenet": "autoaug_ray.data.imagenet:tiny_imagenet",
    "imagenet": "autoaug_ray.data.imagenet:imagenet",
    "bach": "autoaug_ray.data.bach:bach",
    "npz": "autoaug_ray.data.arrays:npz",
    "hub": "autoaug_ray.data.hub:hub",
    "caltech101": "autoaug_ray.data.objects:caltech101",
    "voc2012": "autoaug_ray.data.objects:voc2012",
    "coco2017": "autoaug_ray.data.objects:coco2017",
    "lvis": "autoaug_ray.data.objects:lvis",
    "folder": "autoaug_ray.data.folders:folder",
}
"""The name of a dataset in a study -> the module and the function from `Dataset` to `Source`, which
is imported when it is asked for: whoever loads a policy needs no dataset, and no Pillow."""
STANDS_IN = 0.2
"""Share of the pool that stands in for a closed test set."""
STATISTICS_IMAGES = 8192
"""A stored dataset is normalised by the mean and deviation of at most so many of its images."""


def load(
    dataset: Dataset, *, val_fraction: float | None, device: torch.device | str, seed: int = 0
) -> Splits:
    """The dataset in its roles, with labels and decoded images on `device`.

    `val_fraction` of the pool is set apart as val; None (a final run) leaves it in the pool. A
    publisher's own validation set takes the place of that part, and joins the pool in a final run.
    `seed` draws an imbalanced or low-shot pool. Raises UserError for data that cannot be used.
    """
    source = source_of(dataset)
    if dataset.imbalance or dataset.shots:
        pool = source.pool
        if source.held_out is not None:
            pool = concatenate(pool, source.held_out)
        kept = _kept(dataset, pool.labels, len(source.classes), seed if dataset.redraw else 0)
        source = replace(source, pool=pool, held_out=None).keep(kept)
    pool, val = source.pool, source.held_out
    in_train = torch.arange(len(pool))
    if val_fraction is None:
        if val is not None:
            pool, val = concatenate(pool, val), None
            in_train = torch.arange(len(pool))
    elif val is None:
        in_train, chosen = _set_apart(source, dataset, val_fraction, seed=1)
        pool, val = pool.take(in_train), pool.take(chosen)

    def shown(split: AnySplit, shifted: int | None) -> AnySplit:
        split = _loaded_if_small(split, dataset)
        if shifted is not None and dataset.shift != Shift():
            if isinstance(split, Stored):
                raise UserError(
                    f"dataset.shift needs images in memory, and {len(split)} of them take more "
                    f"than dataset.memory_gb, {dataset.memory_gb:g}."
                )
            split = Split(apply_shift(split.images, dataset.shift, seed=shifted), split.labels)
        return split.to(device)

    train = shown(pool, None)
    # Patches of one photograph share the roles of an epoch, as in BACH's paper.
    kept_together = source.groups if dataset.group_by is not None else None
    return Splits(
        train=train,
        meta=train if dataset.shift == Shift() else shown(pool, 0),
        val=None if val is None else shown(val, 1),
        test=shown(source.test, 2),
        classes=source.classes,
        groups=None if kept_together is None else kept_together[in_train],
    )


def _set_apart(
    source: Source, dataset: Dataset, fraction: float, *, seed: int
) -> tuple[Tensor, Tensor]:
    """Indices of (the rest of the pool, `fraction` of every class); groups stay whole."""
    labels = source.pool.labels
    if dataset.group_by is not None and source.groups is not None:
        return apart(labels, source.groups[: len(labels)], fraction, seed=seed)
    if source.groups is None:
        chosen = stratified(labels, round(len(labels) * fraction), seed=seed)
    else:
        numbers, group = source.groups.unique(return_inverse=True)
        group_labels = torch.empty_like(numbers).scatter(0, group, labels)
        whole_groups = stratified(group_labels, round(len(numbers) * fraction), seed=seed)
        chosen = torch.isin(group, whole_groups).nonzero().flatten()
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[chosen] = False
    return rest.nonzero().flatten(), chosen


def _loaded_if_small(split: AnySplit, dataset: Dataset) -> AnySplit:
    """The split, decoded into memory if it takes no more than `dataset.memory_gb`."""
    return split.load() if _bytes(split) <= dataset.memory_gb * 1e9 else split


def apply_shift(images: Tensor, shift: Shift, *, seed: int) -> Tensor:
    """Images (n, c, h, w) uint8 as the target domain shows them; each draws its own values."""
    if shift == Shift():
        return images
    generator = torch.Generator().manual_seed(seed)
    size = (images.shape[-2], images.shape[-1])

    def uniform(spread: float) -> Tensor:
        return (2 * torch.rand(len(images), generator=generator) - 1) * spread

    translate = torch.stack([uniform(shift.translate), uniform(shift.translate)], dim=1)
    matrix = image_ops.affine_matrix(
        angle=uniform(shift.rotate),
        translate=translate,
        scale=uniform(float(np.log(shift.zoom))).exp(),
        shear=torch.zeros(len(images), 2),
        size=size,
    )
    bright, hue = 1 + uniform(shift.brightness), uniform(shift.hue)
    out = torch.empty_like(images)
    for part in torch.arange(len(images)).split(1024):
        x = images[part].float() / 255
        if shift.translate or shift.rotate or shift.zoom != 1:
            x = image_ops.warp(x, matrix[part])
        if shift.brightness:
            x = image_ops.adjust_brightness(x, bright[part])
        if shift.hue:
            x = image_ops.adjust_hue(x, hue[part])
        out[part] = (x * 255).round().to(torch.uint8)
    return out


def channel_statistics(split: AnySplit) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel, (channels,) each, in [0, 1] units."""
    if isinstance(split, Stored):
        spaced = torch.linspace(0, len(split) - 1, min(STATISTICS_IMAGES, len(split))).long()
        return _stored_statistics(split.read, tuple(split.index[spaced].tolist()), split.shape)
    return _mean_and_deviation(split)


@lru_cache(maxsize=4)
def _stored_statistics(
    read: Reader, index: tuple[int, ...], shape: tuple[int, int, int]
) -> tuple[Tensor, Tensor]:
    """`channel_statistics` of the images at `index`; cached, as decoding them takes long."""
    positions = torch.tensor(index)
    return _mean_and_deviation(Stored(read, positions, torch.zeros_like(positions), shape))


def _mean_and_deviation(split: AnySplit) -> tuple[Tensor, Tensor]:
    """`channel_statistics` of all images, from sums over batches: as floats, they may not fit."""
    n = len(split) * split.shape[1] * split.shape[2]
    total = squares = torch.zeros(split.shape[0], dtype=torch.float64)
    for batch in batches(split):
        x = batch.images.double() / 255
        total, squares = total + x.sum((0, 2, 3)).cpu(), squares + x.square().sum((0, 2, 3)).cpu()
    variance = (squares - total**2 / n) / (n - 1)
    return (total / n).float(), variance.sqrt().clamp_min(1e-3).float()


def source_of(dataset: Dataset) -> Source:
    """The whole dataset, in memory if it fits; its `notes` say how it was read.

    Raises UserError for data that is missing or damaged.
    """
    source = _given.get(whole(dataset))
    return _read(whole(dataset)).in_memory if source is None else source


def give(dataset: Dataset, source: Source) -> None:
    """Makes `source_of` return this source in this process, without reading the disk.

    The source's tensors may be memory that other processes use: nobody writes into them.
    """
    _given[whole(dataset)] = source


_given: dict[Dataset, Source] = {}


def whole(dataset: Dataset) -> Dataset:
    """The settings that decide what is read from disk: cases of a study that differ only in what
    they draw from it share them."""
    drawn = {"shift": Shift(), "imbalance": None, "shots": None, "redraw": True}
    return dataset.model_copy(update=drawn)


def fingerprint(dataset: Dataset) -> str:
    """16 hex digits that change with the images, their order, labels or classes.

    Names and sizes of image files count, and pixels of images in memory. What a case draws from the
    dataset does not. Raises UserError like `source_of`.
    """
    return _read(whole(dataset)).fingerprint


@dataclass(frozen=True, eq=False)
class _Dataset:
    """What is read of a dataset, once in a process."""

    as_files: Source
    """Images on disk are decoded when they are drawn."""
    in_memory: Source
    """The same decoded, if that fits."""

    @cached_property
    def fingerprint(self) -> str:
        source, found = self.as_files, hashlib.blake2b(digest_size=8)
        found.update(json.dumps(source.classes).encode())
        for split in (source.pool, source.held_out, source.test):
            if split is None:
                continue
            found.update(repr((len(split), split.shape)).encode())
            found.update(split.labels.cpu().numpy().tobytes())
            if isinstance(split, Split):
                found.update(split.images.numpy().tobytes())
            else:
                for position in split.index.tolist():
                    found.update(split.read.mark(position))
        return found.hexdigest()


@lru_cache(maxsize=2)
def _read(dataset: Dataset) -> _Dataset:
    """The dataset from disk. Cached: a process reads it once for all of a study's trials."""
    source = _opened(dataset)
    parts = [p for p in (source.pool, source.held_out, source.test) if p is not None]
    if sum(_bytes(p) for p in parts) > dataset.memory_gb * 1e9:
        return _Dataset(source, source)
    held_out = source.held_out and source.held_out.load()
    pool, test = source.pool.load(), source.test.load()
    return _Dataset(source, replace(source, pool=pool, held_out=held_out, test=test))


def _opened(dataset: Dataset) -> Source:
    """The dataset as its files hold it, which are decoded when they are drawn."""
    own = own_code.is_own(dataset.name)
    read = own_code.load(dataset.name) if own else resolve_name(SOURCES[dataset.name])
    source = read(dataset)
    if not isinstance(source, Source):
        raise UserError(
            f"dataset {dataset.name} must return a data.Source, got {type(source).__name__}."
        )
    if dataset.group_by is not None and source.groups is None:
        source = by_files(source, dataset)
    if dataset.train_size is not None:
        source = source.keep(_subset(source.pool, dataset.train_size, "train_size"))
    test = source.test
    if dataset.test_size is not None:
        test = test.take(_subset(test, dataset.test_size, "test_size"))
    if dataset.closed_test:
        rest, chosen = _set_apart(source, dataset, STANDS_IN, seed=2)
        source, test = source.keep(rest), source.pool.take(chosen)
    pool = source.pool
    counts = torch.bincount(pool.labels, minlength=len(source.classes))
    if len(missing := (counts == 0).nonzero().flatten().tolist()):
        raise UserError(
            f"dataset {dataset.name}: no training image of class {source.classes[missing[0]]!r}."
        )
    tested = torch.bincount(test.labels, minlength=len(source.classes))
    untested = [source.classes[i] for i in (tested == 0).nonzero().flatten().tolist()]
    notes = source.notes
    if untested:
        notes += (
            f"No test image of {len(untested)} classes, which are in no mean over the classes: "
            f"{some(untested)}.",
        )
    return replace(source, test=test, notes=notes)


def _bytes(split: AnySplit) -> int:
    """Memory that the decoded images take."""
    return len(split) * int(np.prod(split.shape))


def counts_of(imbalance: Imbalance, classes: int, largest: int) -> list[int]:
    """Images that the class of each rank keeps, the largest class first; see `Imbalance`."""
    f = imbalance.factor
    return [max(2, int(largest * f ** (rank / max(1, classes - 1)))) for rank in range(classes)]


def _kept(dataset: Dataset, labels: Tensor, classes: int, seed: int) -> Tensor:
    """Indices of an imbalanced or low-shot pool, in the pool's order."""
    have = torch.bincount(labels, minlength=classes)
    if dataset.shots is not None:
        field, most, wanted = "shots", dataset.shots, torch.full((classes,), dataset.shots)
    else:
        assert dataset.imbalance is not None
        field, most = "imbalance.largest", dataset.imbalance.largest or int(have.min())
        ranked = torch.tensor(counts_of(dataset.imbalance, classes, most))
        if dataset.imbalance.order == "seeded":
            order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))
        else:
            order = torch.arange(classes)
        wanted = torch.empty(classes, dtype=torch.int64)
        wanted[order] = ranked
    if bool((have < wanted).any()):
        raise UserError(
            f"dataset.{field}: {most} images per class are asked for, but class "
            f"{int(have.argmin())} has only {int(have.min())}."
        )
    permutation = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    classes_members = by_class(labels, permutation)
    parts = [members[:n] for members, n in zip(classes_members, wanted.tolist(), strict=True)]
    return torch.cat(parts).sort().values


def _subset(split: AnySplit, size: int, field: str) -> Tensor:
    """Indices of `size` images, each class in its share, as `dataset.{field}` asks for."""
    if size > len(split):
        raise UserError(f"dataset.{field} is {size}, but there are only {len(split)} images.")
    return stratified(split.labels, size, seed=0)
