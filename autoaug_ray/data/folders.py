"""Datasets that come as image files in a folder per class."""

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from autoaug_ray.data import groups
from autoaug_ray.data.files import IMAGE_ENDINGS, ImageFiles, class_folders, digest, listed
from autoaug_ray.data.splits import Source, Stored, stratified
from autoaug_ray.errors import UserError, some
from autoaug_ray.settings.dataset import Dataset

Listing = tuple[list[str], list[int], tuple[str, ...]]
"""Paths of images, their labels, and the names of the classes."""
PARTS = {
    "train": ("train", "training"),
    "val": ("validation", "valid", "val"),
    "test": ("test", "testing"),
}
"""What the folders of a dataset's parts are called, in upper or lower case."""


def folder(dataset: Dataset) -> Source:
    """A user's own images: train/CLASS/IMAGE, test/CLASS/IMAGE and, if wanted, val/CLASS/IMAGE.

    The parts may be called as in `PARTS`. With `test_fraction` it is CLASS/IMAGE, from which the
    test set is cut. Raises UserError for any other layout.
    """
    root = Path(dataset.root).expanduser()
    places = part_folders(root)
    unread: list[str] = []
    notes: list[str] = []

    def read(paths: list[str]) -> ImageFiles:
        return ImageFiles(
            paths, dataset.image_size or 32, dataset.channels or 3, dataset.fit or "stretch"
        )

    def files(place: Path, classes: tuple[str, ...] | None = None) -> Listing:
        paths, labels, names = class_folders(place, classes, unread)
        if dataset.unreadable == "skip":
            paths, labels, skipped = _readable(read(paths), paths, labels)
            if skipped:
                notes.append(f"{len(skipped)} images cannot be read: {some(skipped)}.")
        return paths, labels, names

    if dataset.test_fraction is not None:
        _check_flat(root, places, dataset.test_fraction)
        paths, labels, classes = files(root)
        grouping = None
        if dataset.group_by is not None:
            grouping, note = groups.numbered(paths, root, dataset.group_by)
            notes.append(note)
        in_test = in_test_part(paths, labels, dataset.test_fraction, grouping)
        order = [i for part in (False, True) for i, test in enumerate(in_test) if test is part]
        paths, labels = [paths[i] for i in order], [labels[i] for i in order]
        pool_size = in_test.count(False)
        pool, test = in_turn(read(paths), labels[:pool_size], labels[pool_size:])
        if grouping is not None:
            grouping = grouping[torch.tensor(order[:pool_size])]
        return Source(pool, None, test, classes, grouping, (*notes, *not_read(unread)))
    paths, labels, classes = files(root / places.get("train", "train"))
    parts = [labels]
    for part in ("val", "test"):
        if part == "test" or part in places:
            more, labels, _ = files(root / places.get(part, part), classes)
            paths, parts = paths + more, [*parts, labels]
    pool, *held_out, test = in_turn(read(paths), *parts)
    notes += not_read(unread, [name for name in _folders(root) if name not in places.values()])
    return Source(pool, held_out[0] if held_out else None, test, classes, notes=tuple(notes))


def test_files(dataset: Dataset) -> list[str]:
    """The test images that `folder` gives, in its order: their paths below the root, with /."""
    test = folder(dataset).test
    assert isinstance(test, Stored) and isinstance(test.read, ImageFiles)
    paths = [Path(test.read.paths[i]) for i in test.index.tolist()]
    root = Path(dataset.root).expanduser()
    return [path.relative_to(root).as_posix() for path in paths]


def part_folders(root: Path) -> dict[str, str]:
    """train, val and test -> the name of the folder in the root that holds the part, if one does.

    Raises UserError if several do.
    """
    found: dict[str, str] = {}
    names = _folders(root) if root.is_dir() else []
    for part, usual in PARTS.items():
        matching = [name for name in names if name.lower() in usual]
        if len(matching) > 1:
            raise UserError(
                f"dataset.root: {root} holds {' and '.join(f'{n}/' for n in matching)}, each of "
                f"which may be its {part} part; leave one of them there."
            )
        if matching:
            found[part] = matching[0]
    return found


def _folders(root: Path) -> list[str]:
    return [entry.name for entry in listed(root) if entry.is_dir()]


def has_parts(places: dict[str, str]) -> bool:
    """Whether a folder with these parts has a train and a test part; one alone may be a class."""
    return {"train", "test"} <= places.keys()


def _check_flat(root: Path, places: dict[str, str], test_fraction: float) -> None:
    """Raises UserError for a folder whose folders are parts rather than classes."""
    if has_parts(places):
        raise UserError(
            f"dataset.test_fraction is {test_fraction}, but {root} has its own "
            f"{places['train']}/ and {places['test']}/: leave it out."
        )
    if len(places) > 1 and set(_folders(root)) == set(places.values()):
        raise UserError(
            f"dataset.root: {root} holds {' and '.join(f'{n}/' for n in places.values())}, which "
            "are parts rather than classes, but a train and a test part are needed."
        )


def not_read(unread: Sequence[str], folders: Sequence[str] = ()) -> list[str]:
    """Notes on files that are not read, and on such folders of a root with parts."""
    notes = []
    strange = [path for path in unread if _ending(path) not in IMAGE_ENDINGS]
    if strange:
        endings = Counter(_ending(path) or "none" for path in strange).most_common()
        notes.append(
            f"{len(strange)} files are not read, as their ending is none of an image that is: "
            f"{some([f'{n} {ending}' for ending, n in endings])} ({strange[0]} for one)."
        )
    if loose := [path for path in unread if _ending(path) in IMAGE_ENDINGS]:
        notes.append(f"{len(loose)} images are not read, as they are in no class: {some(loose)}.")
    if folders:
        notes.append(f"Folders that are not read, as they are no part: {some(folders)}.")
    return notes


def _ending(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def in_test_part(
    paths: list[str], labels: list[int], test_fraction: float, grouping: Tensor | None = None
) -> list[bool]:
    """Whether each image is in the test set, which has a share of every class.

    Drawn from the paths in their order; files of the same bytes are on one side, and so are those
    of one number in `grouping` (n,). Images that only look alike are not kept together: how alike
    is for a person to say, who has `group_by`. Raises UserError if no image is left to test on.
    """
    first: dict[bytes, int] = {}
    original = torch.tensor([first.setdefault(digest(p), i) for i, p in enumerate(paths)])
    if grouping is not None:
        grouping = groups.joined(original, grouping)
        _, chosen = groups.apart(torch.tensor(labels), grouping, test_fraction, seed=3)
        in_test = torch.zeros(len(paths), dtype=torch.bool)
        in_test[chosen] = True
        return in_test.tolist()
    alone = torch.tensor(list(first.values()))
    size = round(len(alone) * test_fraction)
    chosen = alone[stratified(torch.tensor(labels)[alone], size, seed=3)]
    if not len(chosen):
        raise UserError(
            f"dataset.test_fraction: {test_fraction} of {len(alone)} images leaves none to test on."
        )
    return torch.isin(original, chosen).tolist()


def _readable(
    read: ImageFiles, paths: list[str], labels: list[int]
) -> tuple[list[str], list[int], list[str]]:
    """Paths and labels of the images that can be decoded, and the paths of the others.

    Each is read once to see. Raises UserError if there is none.
    """

    def is_readable(i: int) -> bool:
        try:
            read(i)
        except UserError:
            return False
        return True

    with ThreadPoolExecutor(torch.get_num_threads()) as workers:
        readable = list(workers.map(is_readable, range(len(paths))))
    kept = [i for i, ok in enumerate(readable) if ok]
    if not kept:
        raise UserError(f"dataset.root: none of {len(paths)} images can be read.")
    skipped = [path for path, ok in zip(paths, readable, strict=True) if not ok]
    return [paths[i] for i in kept], [labels[i] for i in kept], skipped


def in_turn(read: ImageFiles, *parts: list[int]) -> list[Stored]:
    """The reader's images, cut in their order into parts with these labels."""
    stored, first = [], 0
    for labels in parts:
        stored.append(read.stored(first, labels))
        first += len(labels)
    return stored
