"""Datasets that come as arrays, and are small enough to be held as such."""

import gzip
import pickle
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from autoaug_ray.data.files import as_array, find_place
from autoaug_ray.data.splits import AnySplit, Reader, Source, Split, Stored
from autoaug_ray.errors import UserError
from autoaug_ray.settings.dataset import Dataset

FASHION_MNIST_CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip


def as_split(images: np.ndarray, labels: np.ndarray) -> Split:
    """(n, h, w), (n, h, w, c) or (n, c, h, w) uint8 arrays -> a Split."""
    x = torch.from_numpy(np.array(images))
    if x.ndim == 3:
        x = x[:, None]
    elif x.shape[1] not in (1, 3):
        x = x.permute(0, 3, 1, 2).contiguous()
    return Split(x, torch.from_numpy(labels.astype(np.int64)))


@dataclass(frozen=True, eq=False)
class Resized(Reader):
    """Scales both sides of the image at a position of an array to one size, when it is drawn.

    50,000 images of 32 pixels take 0.15 GB, and 7.5 GB at 224: `data` keeps what fits.
    """

    images: Tensor  # (n, channels, height, width) uint8
    size: int

    def __call__(self, position: int) -> np.ndarray:
        image = self.images[position].numpy()
        channels = len(image)
        pixels = image[0] if channels == 1 else image.transpose(1, 2, 0)
        return as_array(Image.fromarray(pixels), self.size, channels, "stretch")


def resized(source: Source, size: int | None) -> Source:
    """The source with images of `size` x `size` pixels; None: as they are.

    All parts share one reader, so that a held-out part can join the pool.
    """
    parts = [p for p in (source.pool, source.held_out, source.test) if p is not None]
    channels, *sides = parts[0].shape
    if size is None or sides == [size, size]:
        return source
    read = Resized(torch.cat([part.load().images for part in parts]), size)
    sizes, labels = [len(part) for part in parts], [part.labels for part in parts]
    index = torch.arange(sum(sizes)).split(sizes)
    stored: list[AnySplit] = [
        Stored(read, i, y, (channels, size, size)) for i, y in zip(index, labels, strict=True)
    ]
    held_out = None if source.held_out is None else stored[1]
    return replace(source, pool=stored[0], held_out=held_out, test=stored[-1])


def fashion_mnist_mini(dataset: Dataset) -> Source:
    """The excerpt that ships with the package; `excerpt` says how it was drawn."""
    with np.load(Path(__file__).with_name("fashion-mnist-mini.npz"), allow_pickle=False) as a:
        pool = as_split(a["pool_images"], a["pool_labels"])
        test = as_split(a["test_images"], a["test_labels"])
    return resized(Source(pool, None, test, FASHION_MNIST_CLASSES), dataset.image_size)


def fashion_mnist(dataset: Dataset) -> Source:
    """The four IDX files of Xiao et al. 2017, below the root."""
    root = Path(dataset.root).expanduser()
    if dataset.download:
        from torchvision.datasets import FashionMNIST

        _download(FashionMNIST, dataset)
    pool, test = (as_split(*read_fashion_mnist(root, train=train)) for train in (True, False))
    return resized(Source(pool, None, test, FASHION_MNIST_CLASSES), dataset.image_size)


def _download(torchvision_dataset: Callable[..., object], dataset: Dataset) -> None:
    """Raises UserError if it fails."""
    try:
        torchvision_dataset(str(Path(dataset.root).expanduser()), download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"dataset.download: {dataset.name} did not come whole to {dataset.root} ({error})."
        ) from None


class _Cifar(NamedTuple):
    """The files of an archive of Krizhevsky 2009, python version, and the keys in them."""

    archive: str
    folder: str
    train: tuple[str, ...]
    test: str
    meta: str
    labels: str
    classes: str


CIFAR = {
    "cifar10": _Cifar(
        "cifar-10-python.tar.gz", "cifar-10-batches-py",
        tuple(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta",
        "labels", "label_names",
    ),
    "cifar100": _Cifar(
        "cifar-100-python.tar.gz", "cifar-100-python",
        ("train",), "test", "meta", "fine_labels", "fine_label_names",
    ),
}  # fmt: skip


def cifar(dataset: Dataset) -> Source:
    """CIFAR-10 or, with its fine labels, CIFAR-100: the publisher's folder below the root."""
    if dataset.download:
        from torchvision import datasets

        torchvision_datasets = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}
        _download(torchvision_datasets[dataset.name], dataset)
    kind = CIFAR[dataset.name]
    folder = find_place(
        dataset.root, [kind.folder], f"{kind.archive} (or set dataset.download to true)"
    )

    def read(name: str, *keys: str) -> list[Any]:
        path = find_place(folder, [name], f"the whole of {kind.archive}")
        with path.open("rb") as file:
            try:
                content = _Unpickler(file, encoding="latin1").load()
                values = [content[key] for key in keys]
                return [x.pixels() if isinstance(x, _Pickled) else x for x in values]
            except Exception as error:  # there is no list of what a broken pickle may raise
                raise UserError(
                    f"dataset.root: {path} is not a whole batch of {kind.archive} ({error}); "
                    "unpack it again."
                ) from None

    def part(*names: str) -> Split:
        images, labels = zip(*(read(name, "data", kind.labels) for name in names), strict=True)
        return as_split(np.concatenate(images), np.concatenate(labels))

    (classes,) = read(kind.meta, kind.classes)
    source = Source(part(*kind.train), None, part(kind.test), tuple(classes))
    return resized(source, dataset.image_size)


class _Pickled:
    """Stands for a numpy array, or for its dtype, in a pickle: holds the state it was saved in."""

    state: tuple[Any, ...]

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def pixels(self) -> np.ndarray:
        """Images (n, 3, 32, 32) uint8, from the state of an array (n, 3072) of bytes."""
        _, shape, _, fortran, raw = self.state
        data = raw if isinstance(raw, bytes) else raw.encode("latin1")  # as Python 2 wrote it
        array = np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")
        return array.reshape(-1, 3, 32, 32)


class _Unpickler(pickle.Unpickler):
    """Reads pickled dicts, lists, strings, numbers and arrays of bytes.

    A pickle can name any function and have it called. The publisher's names three, all for arrays;
    they become `_Pickled`, and every other name is refused: a file from anywhere can be read, and
    none has to be known by its checksum first.
    """

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("numpy") and name in ("_reconstruct", "ndarray", "dtype"):
            return _Pickled
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def npz(dataset: Dataset) -> Source:
    """One file in the layout of MedMNIST (Yang et al. 2023), which `root` names.

    {train,val,test}_images (n, h, w) or (n, h, w, 3) uint8 and {train,val,test}_labels (n,) or
    (n, 1) integers from 0; val may be missing. `classes` may name them; else they are numbers.
    """
    path = Path(dataset.root).expanduser()
    if not zipfile.is_zipfile(path):
        raise UserError(f"dataset.root: {path} is not a whole .npz file, which name: npz expects.")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"dataset.root: {path} is damaged ({error}).") from None
    parts = {}
    for part in ("train", "val", "test"):
        if part == "val" and not {"val_images", "val_labels"} & set(arrays):
            continue
        images, labels = (
            _npz_array(arrays, f"{part}_{kind}", path) for kind in ("images", "labels")
        )
        if len(images) != len(labels):
            raise UserError(
                f"dataset.root: {path} has {len(images)} {part}_images but {len(labels)} "
                f"{part}_labels."
            )
        parts[part] = as_split(images, labels.reshape(-1))
    if len(shapes := {split.shape for split in parts.values()}) > 1:
        raise UserError(
            f"dataset.root: the images of {path} differ in shape between its parts, {shapes}."
        )
    most = max(int(split.labels.max()) for split in parts.values())
    classes = tuple(str(c) for c in arrays.get("classes", range(most + 1)))
    if most >= len(classes) or min(int(split.labels.min()) for split in parts.values()) < 0:
        raise UserError(
            f"dataset.root: {path} has a label outside 0 to {len(classes) - 1}, the numbers of its "
            "classes."
        )
    source = Source(parts["train"], parts.get("val"), parts["test"], classes)
    return resized(source, dataset.image_size)


def _npz_array(arrays: dict[str, np.ndarray], name: str, path: Path) -> np.ndarray:
    """The array of this name. Raises UserError if it is missing, or is not what `npz` expects."""
    if name not in arrays:
        raise UserError(
            f"dataset.root: {path} has no {name}; it has {', '.join(arrays) or 'none'}."
        )
    array = arrays[name]
    if name.endswith("labels"):
        if array.ndim == 2 and array.shape[1] > 1:
            raise UserError(
                f"dataset.root: the {name} of {path} have {array.shape[1]} columns; images with "
                "several labels each cannot be used, only one label per image."
            )
        wanted, right = "(n,) or (n, 1) integers", array.dtype.kind in "iu" and array.ndim in (1, 2)
    else:
        wanted = "(n, h, w) or (n, h, w, 3) uint8"
        right = array.dtype == np.uint8 and (array.ndim == 3 or array.shape[3:] in ((1,), (3,)))
    if not right or not len(array):
        raise UserError(
            f"dataset.root: the {name} of {path} are {array.shape} {array.dtype}; {wanted} are "
            "expected."
        )
    return array


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
    """The uint8 array of `dims` dimensions in an IDX file, unpacked or not, below the root."""
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
