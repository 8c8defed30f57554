"""One's own generated images: a folder of them that somebody made elsewhere, by whatever means.

They belong to a class, not to an image. Each real image of a class is given a part of the class's
own images to be drawn in its place: where there are at least as many of these, no two real images
share one. What is found on one part of the real images is then not tried on generated images that
trained beside another part, which would count in their favour.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from autoaug_ray import data
from autoaug_ray.data import AnySplit, Dataset, Edits
from autoaug_ray.data.files import IMAGE_ENDINGS, ImageFiles, images_in, listed
from autoaug_ray.errors import UserError, did_you_mean, some
from autoaug_ray.generate import bank_files
from autoaug_ray.generate.plan import content_hash
from autoaug_ray.generate.settings import Drawn
from autoaug_ray.store.places import Place

SHOWN = 20
"""Classes that a sentence names."""


@dataclass(frozen=True)
class OwnImages:
    """The images of a folder that may train."""

    folder: str
    images: Tensor  # (n, channels, height, width) uint8, as the dataset's own are; by label, hash
    labels: Tensor  # (n,) int64, of `classes`
    hashes: tuple[str, ...]
    classes: tuple[str, ...]
    found: int
    """Images in the folder."""

    @property
    def key(self) -> str:
        """The name under which a bank keeps them; it depends on what they show alone."""
        return bank_files.own_key(self.classes, self.labels.tolist(), self.hashes)

    @property
    def counts(self) -> list[int]:
        """Images of each class."""
        counts: list[int] = torch.bincount(self.labels, minlength=len(self.classes)).tolist()
        return counts

    def faults(self) -> list[str]:
        """What a person should know of them, a sentence each."""
        if copies := self.found - len(self.labels):
            return [
                f"{copies} of the {self.found} images in {self.folder} are left out: their pixels "
                "are those of a training image, or of another image of their class there."
            ]
        return []


def read(folder: str, dataset: Dataset) -> OwnImages:
    """The images of a folder CLASS/IMAGE, read and resized like those of the dataset.

    Raises UserError for a folder of another kind, an image that cannot be read, and images that are
    copies of test images.
    """
    source = data.source_of(dataset)
    return _read(folder, _listed(folder, source.classes), data.whole(dataset))


class File(NamedTuple):
    path: str
    label: int
    size: int  # in bytes
    changed: int  # ns since 1970


def _listed(folder: str, classes: tuple[str, ...]) -> tuple[File, ...]:
    """The image files, by class. Raises UserError for a folder of another layout."""
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(f"generate.folder: {root} is not a folder; expected is {root}/CLASS/*.png.")
    inside = [root / entry.name for entry in listed(root)]
    folders = [p for p in inside if p.is_dir()]
    if not folders:
        raise UserError(
            f"generate.folder: {root} holds no folder of a class; expected is {root}/CLASS/*.png, "
            f"with classes out of {some(classes, SHOWN)}."
        )
    paths = [(path, _label(p, classes)) for p in folders for path in images_in(p)]
    if loose := [p for p in inside if p.suffix.lower() in IMAGE_ENDINGS and p.is_file()]:
        raise UserError(f"generate.folder: {loose[0]} is in no folder of a class; move it to one.")
    if not paths:
        raise UserError(f"generate.folder: {root} holds no image in any folder of a class.")
    stats = [Path(path).stat() for path, _ in paths]
    return tuple(
        File(path, label, stat.st_size, stat.st_mtime_ns)
        for (path, label), stat in zip(paths, stats, strict=True)
    )


def _label(folder: Path, classes: tuple[str, ...]) -> int:
    """The class that a folder is named after. Raises UserError if there is none."""
    if folder.name in classes:
        return classes.index(folder.name)
    # A class such as T-shirt/top is no name of a folder: it is called as `bank export` calls it.
    known = [bank_files.folder_name(c) for c in classes]
    if known.count(folder.name) != 1:
        raise UserError(
            f"generate.folder: {folder} is not named after one class of the dataset"
            f"{did_you_mean(folder.name, known)}; known: {some(known, SHOWN)}."
        )
    return known.index(folder.name)


@lru_cache(maxsize=1)
def _read(folder: str, files: tuple[File, ...], dataset: Dataset) -> OwnImages:
    """Cached: a study reads them to see whether they will do, and again to train with them."""
    source = data.source_of(dataset)
    channels, height, width = source.pool.shape
    if height != width:
        raise UserError(
            f"generate.folder: the dataset's images are {height} x {width} pixels (height x "
            "width), but one's own can be mixed with square ones only; set dataset.image_size."
        )
    fit = dataset.fit or ("crop" if dataset.name == "imagenet" else "stretch")
    reader = ImageFiles([f.path for f in files], height, 1 if channels == 1 else 3, fit)
    try:
        batches = list(data.batches(reader.stored(0, [f.label for f in files])))
    except UserError as error:
        raise UserError(f"generate.folder: {error}") from None
    images = torch.cat([batch.images for batch in batches])
    hashes = [content_hash(image) for image in images]
    _refuse_test_images(files, hashes, source.test)
    trained = _hashes(source.pool) | (_hashes(source.held_out) if source.held_out else set())
    kept: dict[tuple[int, str], int] = {}
    for i, (file, content) in enumerate(zip(files, hashes, strict=True)):
        if content not in trained:
            kept.setdefault((file.label, content), i)
    if not kept:
        raise UserError(
            f"generate.folder: all {len(files)} images in {folder} are copies of training images."
        )
    pairs = sorted(kept)
    return OwnImages(
        folder=folder,
        images=images[[kept[pair] for pair in pairs]],
        labels=torch.tensor([label for label, _ in pairs], dtype=torch.int64),
        hashes=tuple(content for _, content in pairs),
        classes=source.classes,
        found=len(files),
    )


def _hashes(split: AnySplit) -> set[str]:
    return {content_hash(i) for batch in data.batches(split) for i in batch.images.cpu()}


def _refuse_test_images(files: tuple[File, ...], hashes: list[str], test: AnySplit) -> None:
    """Raises UserError if the pixels of a file, once resized, are those of a test image."""
    tested = _hashes(test)
    if leaks := [f.path for f, content in zip(files, hashes, strict=True) if content in tested]:
        raise UserError(
            f"generate.folder: {leaks[0]} is a copy of an image that is tested on"
            f"{f', and so are {len(leaks) - 1} more' if len(leaks) > 1 else ''}: take it out, and "
            "find out whether others were made from test images, which nobody can see in them."
        )


def variants(path: Place, drawn: Drawn, shape: tuple[int, int, int], labels: Tensor) -> Edits:
    """The images of a bank's file that may be drawn in place of real ones with `labels` (n,).

    `shape`: (channels, height, width) of each. Raises UserError for another shape, and for a class
    without any.
    """
    images, counts = _of_classes(path, frozenset(drawn["own"]))
    if len(images) and tuple(images.shape[1:]) != shape:
        raise UserError(
            f"{path}: its images are {'x'.join(map(str, images.shape[1:]))}, the training's are "
            f"{'x'.join(map(str, shape))} (channels x height x width)."
        )
    start, count = shares(labels.cpu(), torch.tensor(counts))
    return Edits(images, start[:, None], count[:, None])


@lru_cache(maxsize=2)
def _of_classes(path: Place, drawn: Collection[int]) -> tuple[Tensor, tuple[int, ...]]:
    """The images of these classes (N, c, h, w), by class, and how many each class has.

    Cached: a process that runs many trials of one study decodes them once.
    """
    own = bank_files.read_own(path)
    rows = [i for i, label in enumerate(own.labels) if label in drawn]
    if lacking := set(drawn) - set(own.labels):
        raise UserError(f"{path} has no image of class {own.classes[min(lacking)]!r}.")
    counts = torch.bincount(torch.tensor(own.labels)[rows], minlength=len(own.classes))
    images = [bank_files.decode(own.encoded[i]) for i in rows]
    return (
        torch.stack(images) if images else torch.zeros((0, 0, 0, 0), dtype=torch.uint8),
        tuple(counts.tolist()),
    )


def shares(labels: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """(start, count) of (n,) each: the own images that belong to each real one of `labels` (n,).

    `counts` (classes,) own images lie one class after the other. Of m of them, the real image of
    rank r among the n of its class gets those from r m / n to (r + 1) m / n, rounded down, and at
    least one if there is any.
    """
    order = labels.argsort(stable=True)
    size = torch.bincount(labels, minlength=len(counts))
    rank = torch.empty_like(labels)
    rank[order] = torch.arange(len(labels)) - (size.cumsum(0) - size)[labels[order]]
    m, n = counts[labels], size[labels]
    begin = rank * m // n
    count = ((rank + 1) * m // n - begin).clamp_min(1).minimum(m)
    return (counts.cumsum(0) - counts)[labels] + begin, count
