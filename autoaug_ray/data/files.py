"""Image files -> uint8 arrays of one size. Errors name the file and what was expected there.

Every reader of files sees an image as a person does who opens it (`as_seen`): turned as its EXIF
orientation says, on white where it is transparent, and with grey of more than 8 bits scaled to 8.
"""

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
import torch
from PIL import Image, ImageOps

from autoaug_ray.data.splits import Reader, Stored
from autoaug_ray.errors import UserError
from autoaug_ray.settings.dataset import Fit

IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
LEFT_BY_SYSTEMS = {
    "__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found",
    "system volume information",
}  # fmt: skip
"""Files and folders that nobody put there, in lower case; so are those that begin with a dot."""
BACKGROUND = (255, 255, 255, 255)
"""The white, opaque, on which transparent images are seen."""
PADDING = 128
"""The grey beside the image where `fit` is letterbox."""
TIFF_BITS = 258
"""The tag of a TIFF file with the bits of each channel."""
MOST_PIXELS = 2**27
"""Images that decode to more pixels are refused: in colour, one takes 0.4 GB, and as much again
for every step of its conversion."""
Box = tuple[int, int, int, int]  # left, upper, right, lower, in pixels of the image as it is seen


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
    """`as_array` of an image file as it is seen, or of the part of it in the box.

    Raises UserError, in which the file is called `name`, if it is no whole image.
    """
    with opened(file, name) as image:
        if size and box is None:
            # A JPEG is decoded at a half, a quarter or an eighth where that is enough.
            image.draft("L" if channels == 1 else "RGB", (size, size))
        seen = as_seen(image)
        return as_array(seen.crop(box) if box else seen, size, channels, fit)


@contextlib.contextmanager
def opened(file: str | Path | IO[bytes], name: str) -> Iterator[Image.Image]:
    """An image file, for as long as it is read; nothing of it is decoded yet.

    Raises UserError, in which the file is called `name`, for whatever goes wrong until its end.
    """
    try:
        if isinstance(file, (str, Path)) and not stat.S_ISREG(os.stat(file).st_mode):
            raise ValueError("it is no regular file")  # reading a pipe would wait for ever
        with Image.open(file) as image:
            yield image
    except UserError:
        raise
    except Exception as error:  # there is no list of what a damaged image may raise
        why = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise UserError(f"{name} cannot be read as an image ({why}).") from None


def as_seen(image: Image.Image) -> Image.Image:
    """An opened image as a person sees it, with 8 bits a channel and without transparency.

    Raises ValueError for an image that is too large, or whose white is not known.
    """
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(
            f"it has {image.width} x {image.height} pixels, and at most {MOST_PIXELS:,} are decoded"
        )
    image.load()
    # A damaged EXIF block says nothing of how the pixels stand.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode[0] in "IF":
        return _to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image)
    return image


def _to_8_bits(image: Image.Image) -> Image.Image:
    """A grey image of 12 or 16 bits, or of floats in [0, 1], scaled to 8 bits.

    Raises ValueError for other floats and for integers of 32 bits, whose white is not known.
    """
    values = np.asarray(image)
    if image.mode == "F":
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError("its floating-point values are not all in [0, 1]")
        return Image.fromarray((values * 255).round().astype(np.uint8))
    # Pillow has 16 bits as I, of 32, in PGM and, before version 11, in PNG.
    if image.mode == "I" and image.format not in ("PPM", "PNG"):
        raise ValueError("its pixels are integers of 32 bits; save it with 8 or 16 bits")
    bits = getattr(image, "tag_v2", {}).get(TIFF_BITS, (16,))[0]
    scaled = (values.astype(np.float64) * (255 / (2**bits - 1))).round().astype(np.uint8)
    if (clear := image.info.get("transparency")) is not None:
        scaled[values == clear] = BACKGROUND[0]
    return Image.fromarray(scaled)


def as_array(image: Image.Image, size: int | None, channels: int, fit: Fit) -> np.ndarray:
    """(channels, height, width) uint8, resized to `size` by antialiased bilinear interpolation."""
    image = image.convert("L" if channels == 1 else "RGB")
    if size is not None and fit == "letterbox":
        image = ImageOps.pad(
            image, (size, size), Image.Resampling.BILINEAR, color=(PADDING,) * channels
        )
    elif size is not None:
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
    root: Path, classes: tuple[str, ...] | None = None, unread: list[str] | None = None
) -> tuple[list[str], list[int], tuple[str, ...]]:
    """The images of a `CLASS/IMAGE` tree in sorted order, their labels, and the class names.

    `classes` are those of the training folder, for a validation or test folder: it may lack some of
    them. All other files, but for `LEFT_BY_SYSTEMS`, are added to `unread`. Raises UserError for a
    folder of another name, for a class folder without images, and for fewer than two classes.
    """
    if not root.is_dir():
        raise UserError(
            f"dataset.root: {root} is not a folder; a train/ and a test/ with a folder per class "
            "are expected, or a folder per class right in dataset.root and dataset.test_fraction."
        )
    entries = listed(root)
    folders = tuple(entry.name for entry in entries if entry.is_dir())
    if unread is not None:
        unread += [entry.path for entry in entries if not entry.is_dir()]
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
        images = images_in(inside(root, name), unread)
        if not images and name in folders:
            raise UserError(f"{root / name} holds no image ({', '.join(sorted(IMAGE_ENDINGS))}).")
        paths += images
        labels += [label] * len(images)
    if not paths:
        raise UserError(f"{root} holds no image in any class folder ({', '.join(classes)}).")
    return paths, labels, classes


def digest(path: str | Path) -> bytes:
    """SHA-256 of the file's bytes. Raises UserError if they cannot be read."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UserError(f"{path} cannot be read as an image (it is no regular file).")
        return hashlib.sha256(Path(path).read_bytes()).digest()
    except OSError as error:
        raise UserError(f"{path} cannot be read as an image ({error.strerror}).") from None


def listed(folder: str | Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, by name, without what is hidden or left by the system.

    Raises UserError for a folder that may not be listed.
    """
    try:
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"dataset.root: {folder} cannot be listed ({error.strerror}).") from None
    return [e for e in entries if e.name[0] != "." and e.name.lower() not in LEFT_BY_SYSTEMS]


def images_in(folder: str | Path, unread: list[str] | None = None) -> list[str]:
    """Image files in a folder and those below it, sorted: the same on every machine.

    All others are added to `unread`. Strings from a scan take a third of the memory, and of the
    time, of `Path`s from a glob: ImageNet has 1.3 million, in every process that trains on it.
    """
    if not os.path.isdir(folder):
        return []
    images: list[str] = []
    for entry in listed(folder):
        if entry.is_dir(follow_symlinks=False):
            images += images_in(entry.path, unread)
        elif os.path.splitext(entry.name)[1].lower() in IMAGE_ENDINGS:
            images.append(entry.path)
        elif unread is not None:
            unread.append(entry.path)
    return images
