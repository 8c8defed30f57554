"""Datasets that come as arrays, and are small enough to be held as such."""

import gzip
from pathlib import Path

import numpy as np
import torch

from autoaug_ray.data.settings import Dataset
from autoaug_ray.data.splits import Source, Split
from autoaug_ray.errors import UserError

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


def fashion_mnist_mini(dataset: Dataset) -> Source:
    """The excerpt that ships with the package; `excerpt` says how it was drawn."""
    with np.load(Path(__file__).with_name("fashion-mnist-mini.npz"), allow_pickle=False) as a:
        pool = as_split(a["pool_images"], a["pool_labels"])
        test = as_split(a["test_images"], a["test_labels"])
    return Source(pool, None, test, FASHION_MNIST_CLASSES)


def fashion_mnist(dataset: Dataset) -> Source:
    root = Path(dataset.root).expanduser()
    if dataset.download:
        from torchvision.datasets import FashionMNIST

        FashionMNIST(str(root), download=True)
    pool, test = (as_split(*read_fashion_mnist(root, train=train)) for train in (True, False))
    return Source(pool, None, test, FASHION_MNIST_CLASSES)


def cifar(dataset: Dataset) -> Source:
    from torchvision import datasets

    make = datasets.CIFAR10 if dataset.name == "cifar10" else datasets.CIFAR100
    root = Path(dataset.root).expanduser()
    try:
        parts = [make(str(root), train=t, download=dataset.download) for t in (True, False)]
    except RuntimeError:
        raise UserError(
            f"dataset.root: no whole {make.base_folder} in {root}; unpack the {dataset.name} "
            "python archive there, or set dataset.download to true."
        ) from None
    pool, test = (as_split(p.data, np.array(p.targets)) for p in parts)
    return Source(pool, None, test, tuple(parts[0].classes))


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
