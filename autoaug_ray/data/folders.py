"""Datasets that come as image files in a folder per class."""

from pathlib import Path

from autoaug_ray.data.files import ImageFiles, class_folders
from autoaug_ray.data.settings import Dataset
from autoaug_ray.data.splits import Source, Stored


def folder(dataset: Dataset) -> Source:
    """Anyone's own: train/CLASS/IMAGE, test/CLASS/IMAGE and, if it is there, val/CLASS/IMAGE."""
    root = Path(dataset.root).expanduser()
    paths, labels, classes = class_folders(root / "train")
    parts = [labels]
    for part in ("val", "test"):
        if part == "test" or (root / part).is_dir():
            more, labels, _ = class_folders(root / part, classes)
            paths, parts = paths + more, [*parts, labels]
    read = ImageFiles(
        paths, dataset.image_size or 32, dataset.channels or 3, dataset.fit or "stretch"
    )
    pool, *held_out, test = in_turn(read, *parts)
    return Source(pool, held_out[0] if held_out else None, test, classes)


def in_turn(read: ImageFiles, *parts: list[int]) -> list[Stored]:
    """Parts of the images that one reader reads, one after the other, by their labels."""
    out, first = [], 0
    for labels in parts:
        out.append(read.stored(first, labels))
        first += len(labels)
    return out
