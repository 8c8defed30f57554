"""Datasets in the formats of Hugging Face's `datasets`, from a folder on this machine."""

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autoaug_ray.data.files import read_image
from autoaug_ray.data.folders import PARTS
from autoaug_ray.data.splits import Reader, Source, Stored
from autoaug_ray.errors import UserError
from autoaug_ray.settings.dataset import Dataset, Fit


@dataclass(frozen=True, eq=False)
class Rows(Reader):
    """Reads the image in a row of a table that holds encoded images, or their paths."""

    table: Any
    column: str
    root: Path
    size: int
    channels: int
    fit: Fit

    def __call__(self, position: int) -> np.ndarray:
        cell = self.table[position][self.column]
        name = f"{self.root}: image {position}"
        if cell is None:
            raise UserError(f"{name} is empty.")
        if cell["bytes"] is not None:
            return self._read(io.BytesIO(cell["bytes"]), name)
        path, root = Path(cell["path"]), self.root
        # As written, or with links followed: the hub's cache is a folder of links to files outside.
        if not (
            Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root))
            or path.resolve().is_relative_to(root.resolve())
        ):
            raise UserError(f"{name} is said to be {path}, which is not in that folder.")
        return self._read(path, name)

    def _read(self, file: Path | io.BytesIO, name: str) -> np.ndarray:
        return read_image(file, name, self.size, self.channels, self.fit)


def hub(dataset: Dataset) -> Source:
    """The splits train and test, and validation if there is one, of a folder in these formats.

    Each has one column of images and one of class labels; other columns are not read. Raises
    UserError for any other folder.
    """
    root = Path(dataset.root).expanduser()
    splits = _opened(root)
    import datasets  # an optional extra; without it, `_opened` raised

    held_out = next((name for name in PARTS["val"] if name in splits), None)
    used = [name for name in ("train", held_out, "test") if name is not None]
    image, label = columns = [
        _only_column(splits["train"].features, kind, root)
        for kind in (datasets.Image, datasets.ClassLabel)
    ]
    features = [[splits[name].features.get(column) for column in columns] for name in used]
    if any(f != features[0] for f in features):
        raise UserError(
            f"dataset.root: the splits {', '.join(used)} of {root} differ in their columns "
            f"{' and '.join(columns)}, or in the classes there."
        )
    table = datasets.concatenate_datasets([splits[name].select_columns(columns) for name in used])
    labels = table[label][:]
    if (unknown := next((i for i, c in enumerate(labels) if c is None or c < 0), None)) is not None:
        raise UserError(
            f"dataset.root: image {unknown} of the splits {', '.join(used)} of {root} has no label."
        )
    size = dataset.image_size or 32
    read = Rows(
        table.cast_column(image, datasets.Image(decode=False)), image, root,
        size, dataset.channels or 3, dataset.fit or "stretch",
    )  # fmt: skip
    whole = Stored(
        read, torch.arange(len(labels)), torch.tensor(labels), (read.channels, size, size)
    )
    sizes = [len(splits[name]) for name in used]
    parts = [whole.take(index) for index in torch.arange(len(labels)).split(sizes)]
    notes = tuple(f"the split {name} is not used" for name in splits if name not in used)
    classes = tuple(features[0][1].names)
    return Source(parts[0], parts[1] if held_out else None, parts[-1], classes, notes=notes)


def _opened(root: Path) -> Any:
    """The DatasetDict in a folder that its `save_to_disk` wrote, or that `load_dataset` can read.

    Raises UserError for a folder that is neither, and for the id of a dataset: nothing is
    downloaded here.
    """
    if not root.is_dir():
        raise UserError(
            f"dataset.root: {root} is not a folder; for name: hub it is a dataset repository that "
            "was downloaded, or a DatasetDict that was saved, and never the id of one."
        )
    try:
        import datasets
    except ImportError:
        raise UserError(
            "dataset.name: hub needs the package datasets; pip install 'autoaug_ray[hub]'."
        ) from None
    try:
        if (root / "dataset_dict.json").is_file():
            splits = datasets.load_from_disk(str(root))
        else:
            splits = datasets.load_dataset(str(root))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        why = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"dataset.root: {root} cannot be read as a dataset ({why}).") from None
    if not {"train", "test"} <= set(splits):
        raise UserError(
            f"dataset.root: {root} has the splits {', '.join(splits)}; train and test are needed, "
            "and validation may be there."
        )
    return splits


def _only_column(features: Mapping[str, Any], kind: type, root: Path) -> str:
    """The name of the one column of this type. Raises UserError if there are none or several."""
    matching = [name for name, feature in features.items() if isinstance(feature, kind)]
    if len(matching) != 1:
        raise UserError(
            f"dataset.root: the train split of {root} has {len(matching)} columns of the type "
            f"{kind.__name__} ({', '.join(matching) or 'none'} of {', '.join(features)}); it needs "
            "exactly one."
        )
    return matching[0]
