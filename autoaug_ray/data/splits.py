"""Labelled images, in memory or on disk, and the roles in which a protocol deals them.

A `Split` holds its images as one tensor; a `Stored` one names them, and decodes what is drawn from
it. Whoever trains draws batches from either alike: `draws` decodes ahead on threads, and what comes
out is the same, image for image.
"""

import abc
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

BATCH_IMAGES = 500
"""Most images in a batch of `batches`."""
BATCH_VALUES = 2**24
"""Most values (images x channels x height x width) in a batch of `batches`, for large images."""


@dataclass(frozen=True)
class Edits:
    """Generated versions of the n images of a split, for each of one or several kinds."""

    images: Tensor  # (N, channels, height, width) uint8, for all n images and all kinds
    start: Tensor  # (n, kinds) int64: images[start : start + count] belong to one image and kind
    count: Tensor  # (n, kinds) int64; 0 where none could be made

    def take(self, index: Tensor) -> "Edits":
        return Edits(self.images, self.start[index], self.count[index])


@dataclass(frozen=True)
class Split:
    """Labelled images in memory."""

    images: Tensor  # (n, channels, height, width) uint8
    labels: Tensor  # (n,) int64
    edits: Edits | None = None
    rows: Tensor | None = None
    """(n,) int64, of a batch that `draws` drew: where its images lie in what it was drawn from."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def take(self, index: Tensor) -> "Split":
        edits = None if self.edits is None else self.edits.take(index)
        rows = None if self.rows is None else self.rows[index]
        return Split(self.images[index], self.labels[index], edits, rows)

    def load(self) -> "Split":
        return self

    def to(self, device: torch.device | str) -> "Split":
        rows = None if self.rows is None else self.rows.to(device)
        return Split(self.images.to(device), self.labels.to(device), self.edits, rows)


class Reader(abc.ABC):
    """Where stored images come from; several threads call one reader at once."""

    @abc.abstractmethod
    def __call__(self, position: int) -> np.ndarray:
        """One image (channels, height, width) uint8. Raises UserError if it cannot be read."""

    def mark(self, position: int) -> bytes:
        """What tells this image from another one in its place: its pixels, or what is cheaper."""
        return self(position).tobytes()


@dataclass(frozen=True)
class Stored:
    """Images that stay on disk until they are drawn."""

    read: Reader
    index: Tensor  # (n,) int64, positions for `read`
    labels: Tensor  # (n,) int64, on the device that batches are wanted on
    shape: tuple[int, int, int]
    """Channels, height and width of an image."""
    edits: Edits | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> "Stored":
        edits = None if self.edits is None else self.edits.take(index)
        labels = self.labels[index.to(self.labels.device)]
        return replace(self, index=self.index[index.cpu()], labels=labels, edits=edits)

    def load(self) -> Split:
        """The same images, decoded; cached, so that loading them again costs nothing."""
        images = _decoded(self.read, tuple(self.index.tolist()), self.shape)
        return Split(images.to(self.labels.device), self.labels, self.edits)

    def to(self, device: torch.device | str) -> "Stored":
        return replace(self, labels=self.labels.to(device))


AnySplit = Split | Stored


@dataclass(frozen=True)
class Splits:
    """A dataset in the roles of the protocol."""

    train: AnySplit
    meta: AnySplit
    """The same images as `train`, in the same order, as the target domain shows them."""
    val: AnySplit | None
    """None in a final run: what chose the setting now trains it."""
    test: AnySplit
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """A dataset as it is on disk; `held_out` is the publisher's own validation set, if any."""

    pool: AnySplit
    held_out: AnySplit | None
    test: AnySplit
    classes: tuple[str, ...]
    groups: Tensor | None = None
    """(n,) int64, a number for each image of a pool without `held_out`: images with the same number
    stay together when val is cut from it, as patches of one photograph must."""
    notes: tuple[str, ...] = ()
    """What a person should know of how it was read, such as the classes that were dropped."""

    def keep(self, index: Tensor) -> "Source":
        """The source with only these images in its pool."""
        groups = None if self.groups is None else self.groups[index]
        return replace(self, pool=self.pool.take(index), groups=groups)


def concatenate(a: AnySplit, b: AnySplit) -> AnySplit:
    """The images of both, which come from one source: if stored, they share their reader."""
    labels = torch.cat([a.labels, b.labels])
    if isinstance(a, Stored) and isinstance(b, Stored):
        assert a.read is b.read and a.shape == b.shape
        return replace(a, index=torch.cat([a.index, b.index]), labels=labels)
    return Split(torch.cat([a.load().images, b.load().images]), labels)


def by_class(labels: Tensor, order: Tensor) -> tuple[Tensor, ...]:
    """The indices in `order`, in one tensor for each class of `labels` (n,)."""
    ordered = labels[order]
    sizes: list[int] = torch.bincount(ordered).tolist()
    members: tuple[Tensor, ...] = order[ordered.argsort(stable=True)].split(sizes)
    return members


def stratified(labels: Tensor, size: int, *, seed: int) -> Tensor:
    """Indices of `size` images, each class in its share of `labels` (n,).

    A smaller subset of the same seed is a part of a larger one.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    rank = torch.empty(len(labels))
    for members in by_class(labels, order):
        rank[members] = (torch.arange(len(members)) + 0.5) / len(members)
    return rank.argsort(stable=True)[:size]


def draws(split: AnySplit, draw: Callable[[int], Tensor]) -> Callable[[int], Split]:
    """A callable n -> n images of the split, at the positions that `draw(n)` gives, its `rows`.

    While a batch of stored images is in use, the next one is decoded: `draw` is called one batch
    ahead, and gives no position when there are no more.
    """
    if isinstance(split, Split):

        def at_hand(n: int) -> Split:
            positions = draw(n).to(split.labels.device)
            return replace(split.take(positions), rows=positions)

        return at_hand
    drawn: deque[Tensor] = deque()
    decoding: deque[Future[np.ndarray]] = deque()

    def take(n: int) -> Split:
        while len(decoding) < 2 * n and len(positions := draw(n)):
            drawn.extend(positions)
            decoding.extend(_submit(split, positions))
        positions = torch.stack([drawn.popleft() for _ in range(n)])
        images = torch.from_numpy(np.stack([decoding.popleft().result() for _ in range(n)]))
        part, device = split.take(positions), split.labels.device
        return Split(images.to(device), part.labels, part.edits, positions.to(device))

    return take


def batches(split: AnySplit) -> Iterator[Split]:
    """All images in their order, in batches of a size that evaluation can hold."""
    size = max(1, min(BATCH_IMAGES, BATCH_VALUES // int(np.prod(split.shape))))
    parts = iter(torch.arange(len(split)).split(size))
    take = draws(split, lambda n: next(parts, torch.empty(0, dtype=torch.int64)))
    left = len(split)
    while left:
        n = min(size, left)
        yield take(n)
        left -= n


def _submit(split: Stored, positions: Tensor) -> list[Future[np.ndarray]]:
    """The images at these positions, as they will be once a thread has decoded them."""
    workers = _workers(torch.get_num_threads())
    return [workers.submit(split.read, i) for i in split.index[positions.cpu()].tolist()]


@lru_cache(maxsize=1)
def _workers(threads: int) -> ThreadPoolExecutor:
    """Threads for decoding, one per core of the run: it releases the interpreter's lock."""
    return ThreadPoolExecutor(threads, thread_name_prefix="decode")


@lru_cache(maxsize=3)
def _decoded(read: Reader, index: tuple[int, ...], shape: tuple[int, int, int]) -> Tensor:
    """(n, channels, height, width) uint8: the images at the n positions in `index`."""
    images = torch.empty(len(index), *shape, dtype=torch.uint8)
    for rows in torch.arange(len(index)).split(1024):  # decoded images do not pile up
        decoded = _workers(torch.get_num_threads()).map(read, [index[i] for i in rows])
        for row, image in zip(rows.tolist(), decoded, strict=True):
            images[row] = torch.from_numpy(image)
    return images
