"""Small made-up datasets in the formats of published ones, for tests and for a try without data.

A writer takes the root that `dataset.root` will name, how many images of each class are for
training, and a seed. Parts for validation and testing get half as many of each class, at least 2.
Classes differ in colour, and in where a bright disk is, so that a classifier can tell them apart.
"""

import gzip
import importlib.util
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

FASHION_MNIST_CLASSES = 10
CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
OWN_CLASSES = ("amber", "blue", "coral")
WORDS = {
    "n03126707": "crane",
    "n01443537": "goldfish, Carassius auratus",
    "n02012849": "crane",
    "n02124075": "Egyptian cat",
    "n02823428": "beer bottle",
}
"""WordNet ids and their names; two ids share a name, as in ImageNet."""
BACH_CLASSES = {"Normal": "n", "Benign": "b", "InSitu": "is", "Invasive": "iv"}
"""Folder of each class -> the beginning of its files' names."""


def picture(
    rng: np.random.Generator, label: int, classes: int, height: int, width: int
) -> np.ndarray:
    """An image (height, width, 3) uint8 of the class `label`."""
    turn = 2 * np.pi * label / classes
    colour = 110 + 70 * np.cos(turn + 2 * np.pi / 3 * np.arange(3))
    y, x = np.mgrid[0:height, 0:width] / [[[height]], [[width]]] - 0.5
    disk = np.hypot(x - 0.25 * np.cos(turn), y - 0.25 * np.sin(turn)) < 0.15
    image = colour * rng.uniform(0.9, 1.1) + 80 * disk[:, :, None]
    noisy: np.ndarray = image + rng.normal(0, 12, image.shape)
    return noisy.clip(0, 255).astype(np.uint8)


def fashion_mnist(root: Path, per_class: int, seed: int) -> None:
    """The four packed IDX files, of grey images."""
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    for stem, count in (("train", per_class), ("t10k", tested(per_class))):
        images, labels = _arrays(rng, FASHION_MNIST_CLASSES, count, 28)
        grey = images.mean(3).astype(np.uint8)
        for name, array in (("images-idx3", grey), ("labels-idx1", labels.astype(np.uint8))):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            packed = gzip.compress(header + array.tobytes(), mtime=0)
            (root / f"{stem}-{name}-ubyte.gz").write_bytes(packed)


def cifar10(root: Path, per_class: int, seed: int) -> None:
    """Five training batches and a test batch, pickled as the publisher's are."""
    rng = np.random.default_rng(seed)
    folder = root / "cifar-10-batches-py"
    images, labels = _arrays(rng, len(CIFAR10_CLASSES), per_class, 32)
    for i, part in enumerate(np.array_split(np.arange(len(labels)), 5), 1):
        _batch(folder / f"data_batch_{i}", images[part], labels=labels[part].tolist())
    images, labels = _arrays(rng, len(CIFAR10_CLASSES), tested(per_class), 32)
    _batch(folder / "test_batch", images, labels=labels.tolist())
    _pickle(folder / "batches.meta", {"label_names": list(CIFAR10_CLASSES), "num_vis": 3072})


def cifar100(root: Path, per_class: int, seed: int) -> None:
    """One training batch and one test batch, with fine and coarse labels."""
    rng = np.random.default_rng(seed)
    folder = root / "cifar-100-python"
    for name, count in (("train", per_class), ("test", tested(per_class))):
        images, labels = _arrays(rng, 100, count, 32)
        coarse = (labels // 5).tolist()
        _batch(folder / name, images, fine_labels=labels.tolist(), coarse_labels=coarse)
    names = {
        "fine_label_names": [f"class {i}" for i in range(100)],
        "coarse_label_names": [f"group {i}" for i in range(20)],
    }
    _pickle(folder / "meta", names)


def tiny_imagenet(root: Path, per_class: int, seed: int) -> None:
    """Five classes; one of the training images is grey, as some of the publisher's are."""
    rng = np.random.default_rng(seed)
    top = root / "tiny-imagenet-200"
    for wnid, i, image in _pictures(rng, tuple(WORDS), per_class, 64, 64):
        picture = image.convert("L") if i == 0 and wnid == next(iter(WORDS)) else image
        save(picture, top / "train" / wnid / "images" / f"{wnid}_{i}.JPEG")
    lines = []
    for n, (wnid, _, image) in enumerate(_pictures(rng, tuple(WORDS), tested(per_class), 64, 64)):
        save(image, top / "val/images" / f"val_{n}.JPEG")
        save(image, top / "test/images" / f"test_{n}.JPEG")
        lines.append(f"val_{n}.JPEG\t{wnid}\t0\t0\t63\t63\n")
    (top / "val/val_annotations.txt").write_text("".join(lines))
    (top / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in WORDS))
    words = {"n00001740": "entity", **WORDS}
    (top / "words.txt").write_text("".join(f"{wnid}\t{name}\n" for wnid, name in words.items()))


def imagenet(root: Path, per_class: int, seed: int) -> None:
    """Five classes of images of two sizes, with a val/ that is sorted by class."""
    rng = np.random.default_rng(seed)
    for part, count in (("train", per_class), ("val", tested(per_class))):
        for wnid, i, image in _pictures(rng, tuple(WORDS), count, 72, 96):
            turned = image.transpose(Image.Transpose.ROTATE_90) if i % 3 == 2 else image
            save(turned, root / part / wnid / f"{wnid}_{i}.JPEG")
    lines = (f"{wnid} {name}\n" for wnid, name in WORDS.items())
    (root / "LOC_synset_mapping.txt").write_text("".join(lines))


def bach(root: Path, per_class: int, seed: int) -> None:
    """Photographs of 96x64, twice as many as are for training: half of them are the test set."""
    rng = np.random.default_rng(seed)
    for name, i, image in _pictures(rng, tuple(BACH_CLASSES), 2 * per_class, 64, 96):
        save(image, root / "Photos" / name / f"{BACH_CLASSES[name]}{i + 1:03}.tif")


def npz(root: Path, per_class: int, seed: int) -> None:
    """Writes the file `root`, in the layout of MedMNIST."""
    rng = np.random.default_rng(seed)
    counts = {"train": per_class, "val": tested(per_class), "test": tested(per_class)}
    arrays: dict[str, np.ndarray] = {}
    for part, count in counts.items():
        images, labels = _arrays(rng, len(OWN_CLASSES), count, 28)
        arrays |= {f"{part}_images": images, f"{part}_labels": labels[:, None]}
    root.parent.mkdir(parents=True, exist_ok=True)
    with root.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def folder(root: Path, per_class: int, seed: int) -> None:
    """A folder per part and class, which `datasets` takes for an image folder, too."""
    rng = np.random.default_rng(seed)
    counts = {"train": per_class, "val": tested(per_class), "test": tested(per_class)}
    for part, count in counts.items():
        for name, i, image in _pictures(rng, OWN_CLASSES, count, 32, 40):
            save(image, root / part / name / f"{i}.png")


WRITERS: dict[str, Callable[[Path, int, int], None]] = {
    "fashion-mnist": fashion_mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "tiny-imagenet": tiny_imagenet,
    "imagenet": imagenet,
    "bach": bach,
    "npz": npz,
    "folder": folder,
}
"""Name of a dataset -> function of (root, training images per class, seed)."""
if importlib.util.find_spec("datasets"):  # its reader needs this optional extra
    WRITERS["hub"] = folder


def tested(per_class: int) -> int:
    """Images of each class in a part for validation or testing."""
    return max(2, per_class // 2)


def _arrays(
    rng: np.random.Generator, classes: int, count: int, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Images (classes * count, side, side, 3) uint8 in a random order, and their labels int64."""
    labels = rng.permutation(np.repeat(np.arange(classes), count))
    return np.stack([picture(rng, int(c), classes, side, side) for c in labels]), labels


def _pictures(
    rng: np.random.Generator, classes: Sequence[str], count: int, height: int, width: int
) -> Iterator[tuple[str, int, Image.Image]]:
    """Yields (class, number in the class from 0, image)."""
    for label, name in enumerate(classes):
        for i in range(count):
            yield name, i, Image.fromarray(picture(rng, label, len(classes), height, width))


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=95) if path.suffix == ".jpg" else image.save(path)


def _batch(path: Path, images: np.ndarray, **labels: list[int]) -> None:
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)
    _pickle(path, {"data": planes, **labels})


def _pickle(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=3))
