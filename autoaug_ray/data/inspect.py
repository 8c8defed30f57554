"""What is in a folder of images: classes, sizes, colours, copies, and files that cannot be read."""

import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from PIL import Image

from autoaug_ray.data.files import IMAGE_ENDINGS, UNREADABLE, class_folders, digest
from autoaug_ray.data.folders import has_parts
from autoaug_ray.errors import UserError

GREY = 4
"""Levels of 255 by which the channels of a grey image may differ, after JPEG."""
TEST_FRACTION = 0.2


class Picture(NamedTuple):
    path: Path
    part: str
    """train, val or test; empty where the folder has no parts."""
    label: str
    width: int
    height: int
    mode: str
    """Pillow's name of the colour mode."""
    grey: bool
    digest: bytes
    """SHA-256 of the file's bytes."""


@dataclass(frozen=True)
class Inspection:
    root: Path
    classes: tuple[str, ...]
    pictures: tuple[Picture, ...]
    """The images that can be read."""
    unreadable: tuple[Path, ...]

    @property
    def parts(self) -> tuple[str, ...]:
        """The folder's train, val (if there is one) and test; ("",) where it has no parts."""
        return tuple(dict.fromkeys(p.part for p in self.pictures))

    @property
    def flat(self) -> bool:
        """Whether the class folders lie right in the root, without parts."""
        return self.parts == ("",)

    def counts(self, part: str) -> dict[str, int]:
        """Images of every class, the largest class first."""
        counts = Counter(p.label for p in self.pictures if p.part == part)
        return {c: counts[c] for c in sorted(self.classes, key=lambda c: (-counts[c], c))}

    @property
    def imbalance(self) -> float:
        """Images of the largest class of the pool over those of the smallest."""
        counts = list(self.counts(self.parts[0]).values())
        return counts[0] / max(1, counts[-1])

    @property
    def pool(self) -> int:
        """Number of images in the pool; for a flat folder, once a test set is cut from it."""
        if self.flat:
            return round((1 - TEST_FRACTION) * len(self.pictures))
        return sum(p.part != "test" for p in self.pictures)

    @property
    def side(self) -> float:
        """Typical side in pixels: the median of the images' sqrt(width x height)."""
        return median(math.sqrt(p.width * p.height) for p in self.pictures)

    @property
    def grey(self) -> bool:
        """Whether every image is grey, in whatever mode it is stored."""
        return all(p.grey for p in self.pictures)

    @property
    def copies(self) -> list[tuple[Picture, Picture]]:
        """Pairs of (the first file of these bytes, a later file of the same bytes)."""
        first: dict[bytes, Picture] = {}
        pairs = [(first.setdefault(p.digest, p), p) for p in self.pictures]
        return [(a, b) for a, b in pairs if a is not b]


def inspect(root: Path) -> Inspection:
    """Every image of a folder, read once. Raises UserError if no study could use the folder."""
    if has_parts(root):
        parts = [part for part in ("train", "val", "test") if (root / part).is_dir()]
    else:
        _check_layout(root)
        parts = [""]
    classes = class_folders(root / parts[0])[2]
    files = [
        (Path(path), part, classes[label])
        for part in parts
        for path, label in zip(*class_folders(root / part, classes)[:2], strict=True)
    ]
    with ThreadPoolExecutor() as pool:
        looks = list(pool.map(lambda file: _look(*file), files))
    pictures = tuple(look for look in looks if look is not None)
    bad = tuple(path for (path, *_), look in zip(files, looks, strict=True) if look is None)
    if not pictures:
        raise UserError(f"{root}: none of its {len(files)} images can be read.")
    inspection = Inspection(root, classes, pictures, bad)
    if empty := [c for c, n in inspection.counts(parts[0]).items() if not n]:
        raise UserError(f"{root / parts[0] / empty[0]}: none of its images can be read.")
    if not inspection.flat and parts[-1] not in inspection.parts:
        raise UserError(f"{root / parts[-1]}: none of its images can be read.")
    return inspection


def _check_layout(root: Path) -> None:
    """Raises UserError, with a hint if possible, for a folder that has no class folders."""
    if not root.is_dir():
        raise UserError(f"{root} is not a folder.")
    inside = sorted(p for p in root.iterdir() if p.is_dir() and p.name[0] != ".")
    names = {p.name for p in inside}
    hint = ""
    if "train" in names and names <= {"train", "val", "valid", "validation"}:
        what = f"{' and '.join(f'{n}/' for n in sorted(names))} but no test/"
        hint = f", where `autoaug-ray init {root / 'train'}` would cut a test set from train/ alone"
    elif len(inside) >= 2:
        return
    else:
        loose = sum(p.suffix.lower() in IMAGE_ENDINGS for p in root.iterdir())
        what = f"{loose} images and {len(inside)} folder{'s' * (len(inside) != 1)}"
        if inside and sum(p.is_dir() for p in inside[0].iterdir()) >= 2:
            hint = f"; did you mean {inside[0]}?"
    raise UserError(
        f"{root} holds {what}; expected are {root}/train/CLASS/*.png and {root}/test/CLASS/*.png, "
        f"or {root}/CLASS/*.png for at least 2 classes{hint or '.'}"
    )


def _look(path: Path, part: str, label: str) -> Picture | None:
    """What there is to know of one image file; None if it cannot be read."""
    try:
        with Image.open(path) as image:
            image.load()
            (width, height), mode = image.size, image.mode
            small = image.convert("RGB").resize((32, 32), Image.Resampling.NEAREST)
    except UNREADABLE:
        return None
    grey = int(np.ptp(np.asarray(small).astype(int), axis=2).max()) <= GREY
    return Picture(path, part, label, width, height, mode, grey, digest(path))
