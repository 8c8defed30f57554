"""What is in a folder of images: classes, sizes, colours, copies, and files that are not read."""

import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from PIL import Image

from autoaug_ray.data import alike
from autoaug_ray.data.files import (
    IMAGE_ENDINGS,
    as_seen,
    class_folders,
    digest,
    listed,
    opened,
)
from autoaug_ray.data.folders import PARTS, has_parts, not_read, part_folders
from autoaug_ray.errors import UserError

GREY = 4
"""Levels of 255 by which the channels of a grey image may differ, after JPEG."""
DIM = 32
"""Deep images of which no pixel reaches this level of 255 are nearly black."""
TEST_FRACTION = 0.2


class Picture(NamedTuple):
    path: Path
    part: str
    """train, val or test; empty where the folder has no parts."""
    label: str
    width: int
    height: int
    """As it is seen, turned as its EXIF orientation says."""
    grey: bool
    dim: bool
    """Whether it has more than 8 bits, but uses few of their values: nearly black with 8."""
    digest: bytes
    """SHA-256 of the file's bytes."""
    thumbnail: np.ndarray
    """What `alike` compares."""


@dataclass(frozen=True)
class Inspection:
    root: Path
    classes: tuple[str, ...]
    pictures: tuple[Picture, ...]
    """The images that can be read."""
    unreadable: tuple[Path, ...]
    places: dict[str, str]
    """train, val, test -> the name of the folder that holds it; empty for a folder without
    parts."""
    unread: tuple[str, ...]
    """Notes on files and folders that are no part of the dataset."""

    @property
    def where(self) -> str:
        """How the images lie in the root."""
        return " ".join(f"{n}/CLASS/*" for n in self.places.values()) or "CLASS/*"

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
    def shapes(self) -> tuple[float, float, float]:
        """Width / height of the images: the 5th percentile, the median and the 95th."""
        low, middle, high = np.quantile(
            [p.width / p.height for p in self.pictures], (0.05, 0.5, 0.95)
        )
        return float(low), float(middle), float(high)

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

    @cached_property
    def alike(self) -> list[tuple[Picture, Picture]] | None:
        """Pairs of (the first image that looks the same, a later image of other bytes).

        None if there are more than `alike.MOST` images to compare.
        """
        if len(self.pictures) > alike.MOST:
            return None
        pairs = alike.look_alike([p.thumbnail for p in self.pictures])
        copies = {later.path for _, later in self.copies}
        named = [(self.pictures[a], self.pictures[b]) for a, b in pairs]
        return [(a, b) for a, b in named if b.path not in copies]


def inspect(root: Path) -> Inspection:
    """Every image of a folder, read once. Raises UserError if no study could use the folder."""
    places = part_folders(root)
    if has_parts(places):
        parts = [part for part in PARTS if part in places]
    else:
        _check_layout(root, places)
        places, parts = {}, [""]
    unread: list[str] = []
    classes = class_folders(root / places.get(parts[0], ""))[2]
    files = [
        (Path(path), part, classes[label])
        for part in parts
        for path, label in zip(
            *class_folders(root / places.get(part, ""), classes, unread)[:2], strict=True
        )
    ]
    with ThreadPoolExecutor() as pool:
        looks = list(pool.map(lambda file: _look(*file), files))
    pictures = tuple(look for look in looks if look is not None)
    bad = tuple(path for (path, *_), look in zip(files, looks, strict=True) if look is None)
    if not pictures:
        raise UserError(f"{root}: none of its {len(files)} images can be read.")
    others = [e.name for e in listed(root) if e.is_dir() and e.name not in places.values()]
    notes = not_read(unread, others if places else ())
    inspection = Inspection(
        root, classes, pictures, bad, {part: places[part] for part in parts if part}, tuple(notes)
    )
    if empty := [c for c, n in inspection.counts(parts[0]).items() if not n]:
        raise UserError(
            f"{root / places.get(parts[0], '') / empty[0]}: none of its images can be read."
        )
    if not inspection.flat and parts[-1] not in inspection.parts:
        raise UserError(f"{root / places[parts[-1]]}: none of its images can be read.")
    return inspection


def _check_layout(root: Path, places: dict[str, str]) -> None:
    """Raises UserError, with a hint if possible, for a folder that has no class folders."""
    if not root.is_dir():
        raise UserError(f"{root} is not a folder.")
    entries = listed(root)
    inside = [Path(entry.path) for entry in entries if entry.is_dir()]
    hint = ""
    if "train" in places and {p.name for p in inside} == set(places.values()):
        what = f"{' and '.join(f'{n}/' for n in places.values())} but no test/"
        train = root / places["train"]
        hint = f", where `autoaug-ray init {train}` would cut a test set from {train.name}/ alone"
    elif len(inside) >= 2:
        return
    else:
        loose = sum(Path(entry.name).suffix.lower() in IMAGE_ENDINGS for entry in entries)
        what = f"{loose} images and {len(inside)} folder{'s' * (len(inside) != 1)}"
        if inside and sum(entry.is_dir() for entry in listed(inside[0])) >= 2:
            hint = f"; did you mean {inside[0]}?"
    raise UserError(
        f"{root} holds {what}; expected are {root}/train/CLASS/*.png and {root}/test/CLASS/*.png, "
        f"or {root}/CLASS/*.png for at least 2 classes{hint or '.'}"
    )


def _look(path: Path, part: str, label: str) -> Picture | None:
    """What there is to know of one image file; None if it cannot be read."""
    try:
        with opened(path, str(path)) as image:
            deep, (width, height) = image.mode[0] in "IF", image.size
            image.draft("RGB", (64, 64))
            drafted = image.size
            seen = as_seen(image)
            if seen.size != drafted:
                width, height = height, width
            dim = deep and int(np.asarray(seen).max()) < DIM
            small = seen.convert("RGB").resize((32, 32), Image.Resampling.NEAREST)
            thumbnail = alike.thumbnail(seen)
        bytes_ = digest(path)
    except UserError:
        return None
    grey = int(np.ptp(np.asarray(small).astype(int), axis=2).max()) <= GREY
    return Picture(path, part, label, width, height, grey, dim, bytes_, thumbnail)
