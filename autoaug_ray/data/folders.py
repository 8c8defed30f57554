"""Datasets that come as image files in a folder per class."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from autoaug_ray.data.files import ImageFiles, class_folders, digest
from autoaug_ray.data.splits import Source, Stored, stratified
from autoaug_ray.errors import UserError
from autoaug_ray.settings.dataset import Dataset

Listing = tuple[list[str], list[int], tuple[str, ...]]
"""Paths of images, their labels, and the names of the classes."""


def folder(dataset: Dataset) -> Source:
    """A user's own images: train/CLASS/IMAGE, test/CLASS/IMAGE and, if wanted, val/CLASS/IMAGE.

    With `test_fraction` it is CLASS/IMAGE, from which the test set is cut. Raises UserError for any
    other layout.
    """
    root = Path(dataset.root).expanduser()

    def read(paths: list[str]) -> ImageFiles:
        return ImageFiles(
            paths, dataset.image_size or 32, dataset.channels or 3, dataset.fit or "stretch"
        )

    def listed(part: str, classes: tuple[str, ...] | None = None) -> Listing:
        paths, labels, names = class_folders(root / part, classes)
        if dataset.unreadable == "skip":
            paths, labels = _readable(read(paths), paths, labels)
        return paths, labels, names

    if dataset.test_fraction is not None:
        if has_parts(root):
            raise UserError(
                f"dataset.test_fraction is {dataset.test_fraction}, but {root} has its own train/ "
                "and test/: leave it out."
            )
        paths, labels, classes = listed("")
        in_test = in_test_part(paths, labels, dataset.test_fraction)
        order = [i for part in (False, True) for i, test in enumerate(in_test) if test is part]
        paths, labels = [paths[i] for i in order], [labels[i] for i in order]
        pool_size = in_test.count(False)
        pool, test = in_turn(read(paths), labels[:pool_size], labels[pool_size:])
        return Source(pool, None, test, classes)
    paths, labels, classes = listed("train")
    parts = [labels]
    for part in ("val", "test"):
        if part == "test" or (root / part).is_dir():
            more, labels, _ = listed(part, classes)
            paths, parts = paths + more, [*parts, labels]
    pool, *held_out, test = in_turn(read(paths), *parts)
    return Source(pool, held_out[0] if held_out else None, test, classes)


def test_files(dataset: Dataset) -> list[str]:
    """The test images that `folder` gives, in its order: their paths below the root, with /."""
    test = folder(dataset).test
    assert isinstance(test, Stored) and isinstance(test.read, ImageFiles)
    paths = [Path(test.read.paths[i]) for i in test.index.tolist()]
    root = Path(dataset.root).expanduser()
    return [path.relative_to(root).as_posix() for path in paths]


def has_parts(root: Path) -> bool:
    """Whether a folder has a train/ and a test/; one of them alone may be a class."""
    return (root / "train").is_dir() and (root / "test").is_dir()


def in_test_part(paths: list[str], labels: list[int], test_fraction: float) -> list[bool]:
    """Whether each image is in the test set, which has a share of every class.

    Drawn from the paths in their order; files of the same bytes are on one side. Raises UserError
    if no image is left to test on.
    """
    first: dict[bytes, int] = {}
    original = torch.tensor([first.setdefault(digest(p), i) for i, p in enumerate(paths)])
    alone = torch.tensor(list(first.values()))
    size = round(len(alone) * test_fraction)
    chosen = alone[stratified(torch.tensor(labels)[alone], size, seed=3)]
    if not len(chosen):
        raise UserError(
            f"dataset.test_fraction: {test_fraction} of {len(alone)} images leaves none to test on."
        )
    in_test: list[bool] = torch.isin(original, chosen).tolist()
    return in_test


def _readable(read: ImageFiles, paths: list[str], labels: list[int]) -> tuple[list[str], list[int]]:
    """Paths and labels of the images that can be decoded: each is read once to see.

    Raises UserError if there is none.
    """

    def is_readable(i: int) -> bool:
        try:
            read(i)
        except UserError:
            return False
        return True

    with ThreadPoolExecutor(torch.get_num_threads()) as workers:
        kept = [i for i, ok in enumerate(workers.map(is_readable, range(len(paths)))) if ok]
    if not kept:
        raise UserError(f"dataset.root: none of {len(paths)} images can be read.")
    return [paths[i] for i in kept], [labels[i] for i in kept]


def in_turn(read: ImageFiles, *parts: list[int]) -> list[Stored]:
    """The reader's images, cut in their order into parts with these labels."""
    stored, first = [], 0
    for labels in parts:
        stored.append(read.stored(first, labels))
        first += len(labels)
    return stored
