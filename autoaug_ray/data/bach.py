"""BACH (Aresta et al. 2019): breast cancer histology, large photographs of four classes."""

from collections.abc import Sequence

import torch

from autoaug_ray.data.files import ImageFiles, find_place, images_in, none_empty, opened
from autoaug_ray.data.splits import Source
from autoaug_ray.errors import UserError
from autoaug_ray.settings.dataset import Dataset

ARCHIVE = "ICIAR2018_BACH_Challenge.zip"
CLASSES = ("Benign", "InSitu", "Invasive", "Normal")


def bach(dataset: Dataset) -> Source:
    """ICIAR 2018's microscopy photographs: Photos/{Benign,InSitu,Invasive,Normal}/*.tif.

    No test set was published; as in the paper (4.1), half of the photographs are one. Everyone gets
    the same half: each class, in the order of its file names, is permuted with seed 0. The other
    half trains as a grid of patches of `image_size` pixels, 512 as in the paper's code: 12 of each
    photograph of 2048x1536 (strips at the right and below that hold no whole patch are left out).
    The test set shows whole photographs. Val takes all patches of its photographs, so none of these
    is trained on; the train and meta roles of an epoch share photographs, though never a patch, as
    in the paper. Raises UserError for photographs of different sizes, or smaller than a patch.
    """
    marks = [f"{at}Benign" for at in ("Photos/", "ICIAR2018_BACH_Challenge/Photos/", "")]
    photos = find_place(dataset.root, marks, ARCHIVE).parent
    paths = [images_in(photos / name) for name in CLASSES]
    given = [label for label, of_class in enumerate(paths) for _ in of_class]
    none_empty(given, CLASSES, photos, ARCHIVE)
    width, height = _equal_size([path for of_class in paths for path in of_class])
    side = dataset.image_size or 512
    if side > min(width, height):
        raise UserError(
            f"dataset.image_size: patches of {side} pixels do not fit into the photographs of "
            f"{photos}, which are {width}x{height}."
        )
    corners = [
        (x, y) for y in range(0, height - side + 1, side) for x in range(0, width - side + 1, side)
    ]
    boxes = [(x, y, x + side, y + side) for x, y in corners]
    train: list[tuple[str, int]] = []
    test: list[tuple[str, int]] = []
    for label, of_class in enumerate(paths):
        order = torch.randperm(len(of_class), generator=torch.Generator().manual_seed(0)).tolist()
        half = len(of_class) // 2
        train += [(of_class[i], label) for i in sorted(order[:half])]
        test += [(of_class[i], label) for i in sorted(order[half:])]
    patches = ImageFiles(
        [path for path, _ in train for _ in boxes], None, boxes=boxes * len(train)
    ).stored(0, [label for _, label in train for _ in boxes], (side, side))
    whole = ImageFiles([path for path, _ in test], None)
    return Source(
        patches, None, whole.stored(0, [label for _, label in test], (height, width)), CLASSES,
        groups=torch.arange(len(train)).repeat_interleave(len(boxes)),
    )  # fmt: skip


def _equal_size(paths: Sequence[str]) -> tuple[int, int]:
    """Width and height of these image files, read from their headers.

    Raises UserError if one cannot be read, or if they differ.
    """
    sizes: dict[tuple[int, int], str] = {}
    for path in paths:
        with opened(path, path) as image:
            sizes.setdefault(image.size, path)
    if len(sizes) > 1:
        (a, b), (one, other) = list(sizes)[:2], list(sizes.values())[:2]
        raise UserError(
            f"dataset.root: {one} is {a[0]}x{a[1]} but {other} {b[0]}x{b[1]}; the photographs of "
            f"{ARCHIVE} are all of one size."
        )
    return next(iter(sizes))
