"""Datasets on disk -> uint8 arrays. Every error names the file and what was expected there."""

import gzip
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from autoaug_ray.errors import UserError

FASHION_MNIST_CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
UNREADABLE = (
    UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError,
)  # fmt: skip
"""What Pillow raises for a file that is no whole image; SyntaxError for a damaged PNG."""
IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}


def read_fashion_mnist(root: Path, *, train: bool) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 28, 28) uint8 and labels (n,) uint8 from the IDX files below `root`.

    Takes the publisher's .gz files and torchvision's unpacked `FashionMNIST/raw` alike.
    """
    stem = "train" if train else "t10k"
    images = _read_idx(root, f"{stem}-images-idx3-ubyte", 3)
    labels = _read_idx(root, f"{stem}-labels-idx1-ubyte", 1)
    if len(images) != len(labels):
        raise UserError(
            f"{root}: {stem} has {len(images)} images but {len(labels)} labels; "
            "the two files belong to different downloads."
        )
    return images, labels


def _read_idx(root: Path, name: str, dims: int) -> np.ndarray:
    places = [root / f"{sub}{name}{gz}" for sub in ("", "FashionMNIST/raw/") for gz in ("", ".gz")]
    path = next((p for p in places if p.is_file()), None)
    if path is None:
        raise UserError(
            f"dataset.root: no {name}[.gz] in {root} or {root}/FashionMNIST/raw; "
            "put the Fashion-MNIST files there, or set dataset.download to true."
        )
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        shape = np.frombuffer(raw, ">u4", count=dims, offset=4).astype(int)
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape)
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path} is not a whole IDX file ({error}); download it again.") from None


class ImageFiles(NamedTuple):
    """The images of a `CLASS/IMAGE` tree, class by class, each sorted by path."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    def take(self, kept: Sequence[int]) -> "ImageFiles":
        return ImageFiles(
            tuple(self.paths[i] for i in kept), tuple(self.labels[i] for i in kept), self.classes
        )


def find_images(root: Path, classes: tuple[str, ...] | None = None) -> ImageFiles:
    """`classes` are those of the training folder: another name in a validation or test folder is an
    error, a missing one is not."""
    if not root.is_dir():
        raise UserError(
            f"dataset.root: {root} is not a folder; a train/ and a test/ with a folder per class "
            "are expected, or a folder per class right in dataset.root and dataset.test_fraction."
        )
    found = tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and p.name[0] != "."))
    if classes is None:
        classes = found
        if len(classes) < 2:
            raise UserError(
                f"{root} holds {len(classes)} class folder(s) ({', '.join(classes) or 'none'}); "
                "at least 2 are needed, one folder per class."
            )
    if unknown := sorted(set(found) - set(classes)):
        raise UserError(
            f"{root / unknown[0]}: the class {unknown[0]!r} is not among the training classes "
            f"({', '.join(classes)})."
        )
    images: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        here = (root / name).rglob("*")
        paths = sorted(p for p in here if p.suffix.lower() in IMAGE_ENDINGS)
        if not paths and name in found:
            raise UserError(f"{root / name} holds no image ({', '.join(sorted(IMAGE_ENDINGS))}).")
        images += paths
        labels += [label] * len(paths)
    if not images:
        raise UserError(f"{root} holds no image in any class folder ({', '.join(classes)}).")
    return ImageFiles(tuple(images), tuple(labels), classes)


def digest(path: Path) -> bytes:
    """The same for files of the same bytes."""
    return hashlib.sha256(path.read_bytes()).digest()


def read_images(
    files: ImageFiles, *, size: int, channels: int, skip_unreadable: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, channels, size, size) uint8, stretched to `size` (bilinear), and labels (n,)."""
    images, labels = [], []
    for path, label in zip(files.paths, files.labels, strict=True):
        try:
            images.append(_read_image(path, size, channels))
        except UserError:
            if not skip_unreadable:
                raise
        else:
            labels.append(label)
    if not images:
        raise UserError(f"dataset.root: none of {len(files.paths)} images can be read.")
    return np.stack(images), np.array(labels, np.uint8 if len(files.classes) < 256 else np.int64)


def _read_image(path: Path, size: int, channels: int) -> np.ndarray:
    try:
        with Image.open(path) as image:
            resized = image.convert("L" if channels == 1 else "RGB").resize(
                (size, size), Image.Resampling.BILINEAR
            )
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read as an image ({error}).") from None
    return np.asarray(resized).reshape(size, size, channels).transpose(2, 0, 1)
