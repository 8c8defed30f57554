"""Image files -> uint8 arrays of one size. Errors name the file and what was expected there."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from autoaug_ray.data.splits import Reader, Stored
from autoaug_ray.errors import UserError

IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
UNREADABLE = (
    UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError,
)  # fmt: skip
"""What Pillow raises for a file that is no whole image; SyntaxError for a damaged PNG."""
Fit = Literal["stretch", "crop"]
Box = tuple[int, int, int, int]  # left, upper, right, lower, in pixels of the file


@dataclass(frozen=True, eq=False)
class ImageFiles(Reader):
    """Reads the image at a position of `paths`, or the part of it in the box there."""

    paths: Sequence[str | Path]
    size: int | None
    """Side of the result in pixels; None: the image keeps its size."""
    channels: Literal[1, 3] = 3
    fit: Fit = "stretch"
    boxes: Sequence[Box] | None = None

    def __call__(self, position: int) -> np.ndarray:
        path = self.paths[position]
        box = self.boxes[position] if self.boxes else None
        return read_image(path, str(path), self.size, self.channels, self.fit, box)

    def mark(self, position: int) -> bytes:
        """The file's name, its class folder's and its size, and the box: no image is read."""
        path = self.paths[position]
        box = self.boxes[position] if self.boxes else None
        return repr((*Path(path).parts[-2:], os.path.getsize(path), box)).encode()

    def stored(
        self, first: int, labels: Sequence[int], shape: tuple[int, int] | None = None
    ) -> Stored:
        """The images at `first` and after it, as many as there are labels.

        `shape` is their height and width, where `size` does not say it.
        """
        height, width = shape or (self.size or 0, self.size or 0)
        index = torch.arange(first, first + len(labels))
        label_tensor = torch.tensor(labels, dtype=torch.int64)
        return Stored(self, index, label_tensor, (self.channels, height, width))


def read_image(
    file: str | Path | IO[bytes],
    name: str,
    size: int | None,
    channels: int,
    fit: Fit,
    box: Box | None = None,
) -> np.ndarray:
    """`as_array` of an image file, or of the part in the box.

    Raises UserError, in which the file is called `name`, if it is no whole image.
    """
    try:
        with Image.open(file) as image:
            if size and box is None:
                # A JPEG is decoded at a half, a quarter or an eighth where that is enough.
                image.draft("L" if channels == 1 else "RGB", (size, size))
            return as_array(image.crop(box) if box else image, size, channels, fit)
    except UNREADABLE as error:
        raise UserError(f"{name} cannot be read as an image ({error}).") from None


def as_array(image: Image.Image, size: int | None, channels: int, fit: Fit) -> np.ndarray:
    """(channels, height, width) uint8, resized to `size` by antialiased bilinear interpolation."""
    image = image.convert("L" if channels == 1 else "RGB")
    if size is not None:
        if fit == "crop":
            side = min(image.size)
            left, upper = ((length - side) // 2 for length in image.size)
            image = image.crop((left, upper, left + side, upper + side))
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.array(image).reshape(image.height, image.width, channels).transpose(2, 0, 1)


def find_place(root: str | Path, places: Sequence[str], archive: str) -> Path:
    """The first of these files or folders below the root that exists.

    Raises UserError if none does; `archive` says what they are unpacked from.
    """
    top = Path(root).expanduser()
    for place in places:
        if (top / place).exists():
            return top / place
    raise UserError(f"dataset.root: {top} holds no {' or '.join(places)}; unpack {archive} there.")


def inside(top: Path, place: str) -> Path:
    """`top / place`, where `place` comes from a dataset's own list.

    Raises UserError if that leaves `top`.
    """
    path = Path(place)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"dataset.root: {place!r} is listed, which is no place inside of {top}.")
    return top / path


def none_empty(labels: Sequence[int], classes: Sequence[str], folder: Path, archive: str) -> None:
    """Raises UserError for a class folder without images."""
    if missing := sorted(set(range(len(classes))) - set(labels)):
        raise UserError(
            f"dataset.root: {folder / classes[missing[0]]} holds no image; unpack the whole of "
            f"{archive}."
        )


def class_folders(
    root: Path, classes: tuple[str, ...] | None = None
) -> tuple[list[str], list[int], tuple[str, ...]]:
    """The images of a `CLASS/IMAGE` tree in sorted order, their labels, and the class names.

    `classes` are those of the training folder, for a validation or test folder: it may lack some of
    them. Raises UserError for a folder of another name, for a class folder without images, and for
    fewer than two classes.
    """
    if not root.is_dir():
        raise UserError(
            f"dataset.root: {root} is not a folder; a train/ and a test/ with a folder per class "
            "are expected, or a folder per class right in dataset.root and dataset.test_fraction."
        )
    folders = tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and p.name[0] != "."))
    if classes is None:
        classes = folders
        if len(classes) < 2:
            raise UserError(
                f"{root} holds {len(classes)} class folder(s) ({', '.join(classes) or 'none'}); "
                "at least 2 are needed, one folder per class."
            )
    if unknown := sorted(set(folders) - set(classes)):
        raise UserError(
            f"{root / unknown[0]}: the class {unknown[0]!r} is not among the training classes "
            f"({', '.join(classes)})."
        )
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        images = images_in(inside(root, name))
        if not images and name in folders:
            raise UserError(f"{root / name} holds no image ({', '.join(sorted(IMAGE_ENDINGS))}).")
        paths += images
        labels += [label] * len(images)
    if not paths:
        raise UserError(f"{root} holds no image in any class folder ({', '.join(classes)}).")
    return paths, labels, classes


def digest(path: str | Path) -> bytes:
    """SHA-256 of the file's bytes."""
    return hashlib.sha256(Path(path).read_bytes()).digest()


def images_in(folder: str | Path) -> list[str]:
    """Image files in a folder and those below it, sorted: the same on every machine.

    Strings from a scan take a third of the memory, and of the time, of `Path`s from a glob:
    ImageNet has 1.3 million, in every process that trains on it.
    """
    if not os.path.isdir(folder):
        return []
    with os.scandir(folder) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    images: list[str] = []
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            images += images_in(entry.path)
        elif os.path.splitext(entry.name)[1].lower() in IMAGE_ENDINGS:
            images.append(entry.path)
    return images
