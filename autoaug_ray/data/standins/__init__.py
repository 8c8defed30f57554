"""Small trees in the publishers' formats: what tests and smoke runs read instead of data."""

from pathlib import Path

from autoaug_ray.data.standins import natural, objects

WRITERS = objects.WRITERS | natural.WRITERS


def write(name: str, root: Path, *, per_class: int = 6, seed: int = 0) -> None:
    """Writes a stand-in for the dataset of that name to `root`, unless that exists.

    `root` is what `dataset.root` will name: a folder, or for npz a file. Each class has `per_class`
    training images, as far as the format leaves that open, and a classifier could learn them.
    """
    if not root.exists():
        WRITERS[name](root, per_class, seed)
