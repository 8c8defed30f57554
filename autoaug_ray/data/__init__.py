"""Datasets by name -> `Splits`: uint8 tensors on the device, in the roles of the protocol.

The pool holds every image that may train something. Each epoch its images are dealt two roles:
*train* (the classifier's weights learn from it) and *meta* (augmentation parameters learn from
it). *val* chooses between trials and *test* is read once; neither is ever in the pool.

A `shift` says that the classifier will be used on images that look different from the collected
ones: val, test and every image in the meta role are seen through it, images in the train role are
not. Then the right augmentation is known, and a method can be held against it.

`imbalance` and `shots` cut the pool to a long tail, or to a few images per class. Both take
prefixes of one order of each class's images: a smaller subset is a part of a larger one, and
images generated for the larger one serve both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from autoaug_ray.data.files import (
    FASHION_MNIST_CLASSES,
    ImageFiles,
    digest,
    find_images,
    read_fashion_mnist,
    read_images,
)
from autoaug_ray.errors import UserError
from autoaug_ray.maths import image_ops
from autoaug_ray.settings import Settings

STANDS_IN = 0.2
"""Share of the pool that stands in for a closed test set."""


class Shift(Settings):
    """How the target domain differs; every image draws its own values, uniformly and once."""

    translate: float = Field(0.0, ge=0, le=1000)
    """Pixels, +-, in x and in y."""
    rotate: float = Field(0.0, ge=0, le=180)
    """Degrees, +-."""
    zoom: float = Field(1.0, ge=1, le=10)
    """Factor: log-uniform between 1/zoom and zoom."""
    brightness: float = Field(0.0, ge=0, le=1)
    """Factor 1 +- this."""
    hue: float = Field(0.0, ge=0, le=0.5)
    """Turns of the colour circle, +-; nothing happens to grey images."""


class Imbalance(Settings):
    """A long tail: the class of rank r (0..C-1) keeps max(2, int(largest * factor ** (r / (C-1)))).

    Cao et al. 2019 (LDAM) with AutoGenDA's least count of 2 (section 4.1), which for small classes
    decides the ratio: every row says the nominal and the effective one.
    """

    factor: float = Field(gt=0, le=1)
    """f: nominal ratio of the smallest to the largest class."""
    largest: int | None = Field(None, ge=2)
    """Images of the largest class; None: as many as the smallest class of the whole pool has."""
    order: Literal["seeded", "index"] = "seeded"
    """Which class gets most: a permutation, or class 0 first as in CIFAR-10-LT."""


class Dataset(Settings):
    """What a study's `dataset:` may say."""

    name: Literal["fashion-mnist-mini", "fashion-mnist", "cifar10", "cifar100", "folder"]
    root: str = "data"
    download: bool = False
    train_size: int | None = Field(None, ge=4)
    """Keep this many images of the pool, class-balanced as the pool is."""
    test_size: int | None = Field(None, ge=2)
    image_size: int | None = Field(None, ge=8, le=1024)
    """Side in pixels to which a `folder` is read (default 32); other sets have their own."""
    channels: Literal[1, 3] | None = None
    """Of a `folder`: 3 (default), or 1 to read it as grey."""
    test_fraction: float | None = Field(None, gt=0, lt=1)
    """Of a `folder` without train/ and test/: this share of every class is the test set, the same
    on every machine; files of the same bytes are on one side."""
    unreadable: Literal["error", "skip"] | None = None
    """Of a `folder`: what to do about images that cannot be read (default error)."""
    closed_test: bool = False
    """No run sees the test set: a fifth of the pool stands in for it, so that what is decided
    before the whole study is not decided by its test set."""
    shift: Shift = Shift()
    imbalance: Imbalance | None = None
    shots: int | None = Field(None, ge=1)
    """So many images of every class."""
    redraw: bool = True
    """Every seed has its own class order and images in an imbalanced or low-shot pool; False: all
    seeds share those of seed 0, and one bank of generated images."""

    @model_validator(mode="after")
    def _one_subset(self) -> "Dataset":
        given = [k for k in ("train_size", "imbalance", "shots") if getattr(self, k) is not None]
        if len(given) > 1:
            raise ValueError(f"only one of {' and '.join(given)} can be set")
        return self

    @model_validator(mode="after")
    def _folder_only(self) -> "Dataset":
        for field in ("image_size", "channels", "test_fraction", "unreadable"):
            if self.name != "folder" and getattr(self, field) is not None:
                raise ValueError(f"{field} can be set for name: folder only")
        return self


@dataclass(frozen=True)
class Edits:
    """Generated versions of the images of a split, of one or several kinds."""

    images: Tensor  # (N, channels, height, width) uint8, of all sources and kinds
    start: Tensor  # (n, kinds) int64: images[start : start + count] are those of source and kind
    count: Tensor  # (n, kinds) int64; 0 where none could be made

    def take(self, index: Tensor) -> "Edits":
        return Edits(self.images, self.start[index], self.count[index])


@dataclass(frozen=True)
class Split:
    images: Tensor  # (n, channels, height, width) uint8
    labels: Tensor  # (n,) int64
    edits: Edits | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> "Split":
        edits = None if self.edits is None else self.edits.take(index)
        return Split(self.images[index], self.labels[index], edits)

    def batches(self, size: int) -> list["Split"]:
        pairs = zip(self.images.split(size), self.labels.split(size), strict=True)
        return [Split(*pair) for pair in pairs]


@dataclass(frozen=True)
class Splits:
    train: Split
    meta: Split
    """The same images as `train`, in the same order, as the target domain shows them."""
    val: Split | None
    """None in a final run: what chose the setting now trains it."""
    test: Split
    classes: tuple[str, ...]


@dataclass(frozen=True)
class _Source:
    """A dataset as it is on disk; `held_out` is the publisher's own validation set, if any."""

    pool: Split
    held_out: Split | None
    test: Split
    classes: tuple[str, ...]


def load(
    dataset: Dataset, *, val_fraction: float | None, device: torch.device | str, seed: int = 0
) -> Splits:
    """`val_fraction` of the pool is set apart as val; None (a final run) leaves it in the pool.

    A publisher's own validation set takes the place of that part, and joins the pool in a final
    run. `seed` draws an imbalanced or low-shot pool. Raises UserError for data that cannot be used.
    """
    source = _load(dataset)
    if dataset.imbalance or dataset.shots:
        pool = source.pool
        if source.held_out is not None:
            pool = _concatenate(pool, source.held_out)
        kept = _kept(dataset, pool.labels, len(source.classes), seed if dataset.redraw else 0)
        source = _Source(pool.take(kept), None, source.test, source.classes)
    pool, val = source.pool, source.held_out
    if val_fraction is None:
        if val is not None:
            pool, val = _concatenate(pool, val), None
    elif val is None:
        pool, val = _set_apart(pool, val_fraction, seed=1)

    def to(split: Split, *, shifted: int | None) -> Split:
        images = (
            split.images
            if shifted is None
            else apply_shift(split.images, dataset.shift, seed=shifted)
        )
        return Split(images.to(device), split.labels.to(device))

    return Splits(
        train=to(pool, shifted=None),
        meta=to(pool, shifted=0),
        val=None if val is None else to(val, shifted=1),
        test=to(source.test, shifted=2),
        classes=source.classes,
    )


def apply_shift(images: Tensor, shift: Shift, *, seed: int) -> Tensor:
    """Images (n, c, h, w) uint8 as the target domain shows them: each with its own draw."""
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


def channel_statistics(split: Split) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel, (channels,) each, in [0, 1] units."""
    x = split.images.float() / 255
    return x.mean((0, 2, 3)), x.std((0, 2, 3)).clamp_min(1e-3)


@lru_cache(maxsize=2)
def _load(dataset: Dataset) -> _Source:
    """Cached: a process that runs many trials of one study reads its data once."""
    source = DATASETS[dataset.name](dataset)
    pool = _subset(source.pool, dataset.train_size, "train_size")
    test = _subset(source.test, dataset.test_size, "test_size")
    if dataset.closed_test:
        pool, test = _set_apart(pool, STANDS_IN, seed=2)
    counts = torch.bincount(pool.labels, minlength=len(source.classes))
    if len(missing := (counts == 0).nonzero().flatten().tolist()):
        raise UserError(
            f"dataset {dataset.name}: no training image of class {source.classes[missing[0]]!r}."
        )
    return _Source(pool, source.held_out, test, source.classes)


def counts_of(imbalance: Imbalance, classes: int, largest: int) -> list[int]:
    """Images per rank, the largest class first."""
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
    parts = [permutation[labels[permutation] == c][:n] for c, n in enumerate(wanted.tolist())]
    return torch.cat(parts).sort().values


def _subset(split: Split, size: int | None, field: str) -> Split:
    if size is None:
        return split
    if size > len(split):
        raise UserError(f"dataset.{field} is {size}, but there are only {len(split)} images.")
    return split.take(_stratified(split.labels, size, seed=0))


def _stratified(labels: Tensor, size: int, *, seed: int) -> Tensor:
    """Indices of `size` images, each class in its share; a smaller subset is part of a larger."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    rank = torch.empty(len(labels))
    for c in labels.unique():
        members = order[labels[order] == c]
        rank[members] = (torch.arange(len(members)) + 0.5) / len(members)
    return rank.argsort(stable=True)[:size]


def _set_apart(split: Split, fraction: float, *, seed: int) -> tuple[Split, Split]:
    """(the rest, `fraction` of every class)."""
    chosen = _stratified(split.labels, round(len(split) * fraction), seed=seed)
    rest = torch.ones(len(split), dtype=torch.bool)
    rest[chosen] = False
    return split.take(rest.nonzero().flatten()), split.take(chosen)


def _concatenate(a: Split, b: Split) -> Split:
    return Split(torch.cat([a.images, b.images]), torch.cat([a.labels, b.labels]))


def _split(images: np.ndarray, labels: np.ndarray) -> Split:
    """(n, h, w), (n, h, w, c) or (n, c, h, w) uint8 arrays -> a Split."""
    x = torch.from_numpy(np.array(images))
    if x.ndim == 3:
        x = x[:, None]
    elif x.shape[1] not in (1, 3):
        x = x.permute(0, 3, 1, 2).contiguous()
    return Split(x, torch.from_numpy(labels.astype(np.int64)))


def _mini(dataset: Dataset) -> _Source:
    with np.load(Path(__file__).with_name("fashion-mnist-mini.npz"), allow_pickle=False) as a:
        pool = _split(a["pool_images"], a["pool_labels"])
        test = _split(a["test_images"], a["test_labels"])
    return _Source(pool, None, test, FASHION_MNIST_CLASSES)


def _fashion_mnist(dataset: Dataset) -> _Source:
    root = Path(dataset.root).expanduser()
    if dataset.download:
        from torchvision.datasets import FashionMNIST

        FashionMNIST(str(root), download=True)
    pool, test = (_split(*read_fashion_mnist(root, train=train)) for train in (True, False))
    return _Source(pool, None, test, FASHION_MNIST_CLASSES)


def _cifar(dataset: Dataset) -> _Source:
    from torchvision import datasets

    make = datasets.CIFAR10 if dataset.name == "cifar10" else datasets.CIFAR100
    root = Path(dataset.root).expanduser()
    try:
        parts = [make(str(root), train=t, download=dataset.download) for t in (True, False)]
    except RuntimeError:
        raise UserError(
            f"dataset.root: no whole {make.base_folder} in {root}; unpack the {dataset.name} "
            "python archive there, or set dataset.download to true."
        ) from None
    pool, test = (_split(p.data, np.array(p.targets)) for p in parts)
    return _Source(pool, None, test, tuple(parts[0].classes))


def _folder(dataset: Dataset) -> _Source:
    root = Path(dataset.root).expanduser()

    def read(files: ImageFiles) -> Split:
        return _split(
            *read_images(
                files,
                size=dataset.image_size or 32,
                channels=dataset.channels or 3,
                skip_unreadable=dataset.unreadable == "skip",
            )
        )

    if dataset.test_fraction is not None:
        if has_parts(root):
            raise UserError(
                f"dataset.test_fraction is {dataset.test_fraction}, but {root} has its own train/ "
                "and test/: leave it out."
            )
        pool, test = part_files(find_images(root), dataset.test_fraction)
        return _Source(read(pool), None, read(test), pool.classes)
    pool = find_images(root / "train")
    held_out = None
    if (root / "val").is_dir():
        held_out = read(find_images(root / "val", pool.classes))
    return _Source(
        read(pool), held_out, read(find_images(root / "test", pool.classes)), pool.classes
    )


def has_parts(root: Path) -> bool:
    """Whether a folder is laid out as train/CLASS and test/CLASS; `train` alone may be a class."""
    return (root / "train").is_dir() and (root / "test").is_dir()


def part_files(files: ImageFiles, test_fraction: float) -> tuple[ImageFiles, ImageFiles]:
    """(pool, test): a share of every class, drawn from the sorted paths."""
    first: dict[bytes, int] = {}
    original = torch.tensor([first.setdefault(digest(p), i) for i, p in enumerate(files.paths)])
    alone = torch.tensor(list(first.values()))
    labels = torch.tensor(files.labels)[alone]
    chosen = alone[_stratified(labels, round(len(alone) * test_fraction), seed=3)]
    if not len(chosen):
        raise UserError(
            f"dataset.test_fraction: {test_fraction} of {len(alone)} images leaves none to test on."
        )
    in_test = torch.isin(original, chosen)
    pool, test = ((side.nonzero().flatten().tolist()) for side in (~in_test, in_test))
    return files.take(pool), files.take(test)


DATASETS: dict[str, Callable[[Dataset], _Source]] = {
    "fashion-mnist-mini": _mini,
    "fashion-mnist": _fashion_mnist,
    "cifar10": _cifar,
    "cifar100": _cifar,
    "folder": _folder,
}
