"""Small trees in the publishers' formats: what tests and smoke runs read instead of data."""

from pathlib import Path

from autoaug_ray.data.standins import natural, objects

WRITERS = objects.WRITERS | natural.WRITERS


def write(name: str, root: Path, *, per_class: int = 6, seed: int = 0) -> None:
    """A stand-in for the dataset of that name at `root`, its `dataset.root`; of npz, the file.

    It has `per_class` training images of every class, as far as its format lets that be chosen,
    and pictures that a classifier could learn. What is there already is kept.
    """
    if not root.exists():
        WRITERS[name](root, per_class, seed)
