"""Small made-up trees in the formats of VOC 2012, COCO 2017, LVIS v1 and Caltech101.

A thing is a regular polygon, and its class is its colour (and its number of corners). The largest
thing of a photograph may be alone, beside a small one, or beside two of another class that together
cover more. The trees have whatever a reader of the publishers' files must cope with: crowds, void,
masks without a void border, images without objects, classes with a single image. Fields that nobody
reads are left out.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from autoaug_ray.data.standins.natural import save, tested

SIDE = 48
COLOURS = [(220, 40, 40), (40, 200, 60), (50, 80, 230), (230, 210, 40), (200, 60, 210)]
LARGE, MEDIUM, SMALL = 300, 190, 60
"""Areas in pixels: two of MEDIUM are more than one of LARGE."""
CROWD = (25, 25)
"""Height and width of a crowd in the lower right corner, where no thing is: more than LARGE."""

Thing = tuple[int, list[tuple[float, float]]]  # its kind, and the corners of its outline


def _thing(kind: int, x: float, y: float, area: float) -> Thing:
    """A polygon of 4 + kind corners around (x, y), in pixels."""
    n = 4 + kind
    angle = 2 * np.pi * np.arange(n) / n
    radius = np.sqrt(2 * area / (n * np.sin(2 * np.pi / n)))
    return kind, [(x + radius * np.cos(a), y + radius * np.sin(a)) for a in angle]


def _things(kind: int, number: int, kinds: int) -> list[Thing]:
    """The things of a photograph: the last is of area LARGE, its number says what is beside it."""
    other = (kind + 1 + number) % kinds
    beside = [
        [],
        [_thing(other, 37, 11, SMALL)],
        [_thing(other, 37, 11, MEDIUM), _thing(other, 11, 37, MEDIUM)],
    ]
    return [*beside[number % 3], _thing(kind, 14, 14, LARGE)]


def _photograph(rng: np.random.Generator, things: list[Thing]) -> Image.Image:
    """The things on a noisy background, in their order."""
    image = Image.fromarray(rng.integers(70, 180, (SIDE, SIDE, 3), dtype=np.uint8))
    for kind, corners in things:
        ImageDraw.Draw(image).polygon(corners, fill=COLOURS[kind % len(COLOURS)])
    return image


def _counts(per_class: int) -> dict[str, int]:
    return {"train": per_class, "val": tested(per_class)}


VOC_VALUES = (1, 8, 12, 15, 19)  # aeroplane, cat, dog, person, train


def voc2012(root: Path, per_class: int, seed: int) -> None:
    """5 of the 20 classes; every fourth image of a class has masks without a void border."""
    base, rng = root / "VOCdevkit/VOC2012", np.random.default_rng(seed)
    palette = rng.integers(0, 256, 768).tolist()
    for part, count in _counts(per_class).items():
        names: list[str] = []
        for number in range(count):
            for kind in range(len(VOC_VALUES)):
                name = f"{2007 if part == 'train' else 2008}_{len(names):06d}"
                names.append(name)
                things = _things(kind, number, len(VOC_VALUES))
                save(_photograph(rng, things), base / f"JPEGImages/{name}.jpg")
                border = 255 if number % 4 != 3 else None
                values = {"Class": [VOC_VALUES[k] for k, _ in things], "Object": range(1, 9)}
                for which, fills in values.items():
                    mask = Image.new("P", (SIDE, SIDE))
                    mask.putpalette(palette)
                    for (_, corners), fill in zip(things, fills, strict=False):
                        ImageDraw.Draw(mask).polygon(corners, fill=fill, outline=border)
                    save(mask, base / f"Segmentation{which}/{name}.png")
        void = np.zeros((SIDE, SIDE), np.uint8)
        void[:9] = 255
        names.append(f"2009_{part}")
        save(_photograph(rng, []), base / f"JPEGImages/{names[-1]}.jpg")
        for which in values:
            save(Image.fromarray(void), base / f"Segmentation{which}/{names[-1]}.png")
        listed = base / f"ImageSets/Segmentation/{part}.txt"
        listed.parent.mkdir(parents=True, exist_ok=True)
        listed.write_text("".join(f"{name}\n" for name in names))
    # Most photographs of the real set have no masks.
    save(_photograph(rng, []), base / "JPEGImages/2007_999999.jpg")


COCO_CATEGORIES = {1: "person", 3: "car", 17: "cat", 18: "dog", 80: "toaster"}


def coco2017(root: Path, per_class: int, seed: int) -> None:
    """5 of the 80 classes, the last with one image; every fourth image of a class has a crowd."""
    rng = np.random.default_rng(seed)
    categories = [{"id": i, "name": n, "supercategory": ""} for i, n in COCO_CATEGORIES.items()]
    first = 1
    for part, count in _counts(per_class).items():
        images, annotations = [], []
        kinds = [(kind, number) for number in range(count) for kind in range(4)]
        shown = [_things(*k, 4) for k in kinds] + [_things(4, 0, 5)] * (part == "train") + [[], []]
        for key, things in enumerate(shown, first):
            name = f"{key:012d}.jpg"
            save(_photograph(rng, things), root / f"{part}2017" / name)
            url = f"http://images.cocodataset.org/{part}2017/{name}"
            images.append(_record(key) | {"file_name": name, "coco_url": url})
            annotations += [
                _annotation(key, categories[k]["id"], c) | {"iscrowd": 0} for k, c in things
            ]
            if things and (key - first) // 4 % 4 == 3:
                annotations.append(_crowd(key, categories[0]["id"]))
        first += len(shown)
        _dump(root / f"annotations/instances_{part}2017.json", images, annotations, categories)


LVIS_CATEGORIES = (
    ("banana", "f"), ("bath_mat", "c"), ("bow_(decorative_ribbons)", "c"), ("bow_(weapon)", "c"),
    ("canoe", "c"), ("domestic_ass", "r"),
)  # fmt: skip


def lvis(root: Path, per_class: int, seed: int) -> None:
    """4 common classes, a frequent and a rare one; half of the val images lie in train2017."""
    rng = np.random.default_rng(seed)
    categories: list[dict[str, Any]] = [
        {"id": i, "name": name, "synset": f"{name}.n.01", "synonyms": [name], "def": "",
         "frequency": frequency}
        for i, (name, frequency) in enumerate(LVIS_CATEGORIES, 1)
    ]  # fmt: skip
    first = 1
    for part, count in _counts(per_class).items():
        images, annotations = [], []
        kinds = [(kind, number) for number in range(count) for kind in range(5)] + [(5, 0)]
        shown = [_things(*k, 5) for k in kinds] + [[]]
        for key, things in enumerate(shown, first):
            folder = "train2017" if part == "train" or key % 2 else "val2017"
            save(_photograph(rng, things), root / folder / f"{key:012d}.jpg")
            url = f"http://images.cocodataset.org/{folder}/{key:012d}.jpg"
            lists: dict[str, list[int]] = {
                "not_exhaustive_category_ids": [],
                "neg_category_ids": [1],
            }
            images.append(_record(key) | {"coco_url": url} | lists)
            annotations += [_annotation(key, k + 1, corners) for k, corners in things]
        first += len(shown)
        _dump(root / f"annotations/lvis_v1_{part}.json", images, annotations, categories)


def _record(key: int) -> dict[str, Any]:
    return {"id": key, "width": SIDE, "height": SIDE, "license": 1}


def _annotation(image: int, category: Any, corners: list[tuple[float, float]]) -> dict[str, Any]:
    x, y = np.array(corners).T
    area = abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2
    low = x.min(), y.min()
    return {
        "image_id": image,
        "category_id": category,
        "area": float(area),
        "bbox": [float(v) for v in (*low, x.max() - low[0], y.max() - low[1])],
        "segmentation": [[float(v) for corner in corners for v in corner]],
    }


def _crowd(image: int, category: Any) -> dict[str, Any]:
    height, width = CROWD
    x, y = SIDE - width, SIDE - height
    # Runs of 0 and of 1 in turn, column by column.
    runs = [x * SIDE + y, *[height, y] * (width - 1), height]
    return {
        "image_id": image,
        "category_id": category,
        "area": height * width,
        "bbox": [x, y, width, height],
        "iscrowd": 1,
        "segmentation": {"counts": runs, "size": [SIDE, SIDE]},
    }


def _dump(
    path: Path, images: Iterable[Any], annotations: list[dict[str, Any]], categories: Any
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "info": {"description": "made up"},
        "licenses": [],
        "images": images,
        "annotations": [{"id": i, **a} for i, a in enumerate(annotations, 1)],
        "categories": categories,
    }
    path.write_text(json.dumps(content))


def caltech101(root: Path, per_class: int, seed: int) -> None:
    """4 classes and the background, twice `per_class` of each, as the reader cuts them in two."""
    base, rng = root / "caltech-101/101_ObjectCategories", np.random.default_rng(seed)
    for number in range(2 * per_class):
        name = f"image_{number + 1:04d}.jpg"
        save(_photograph(rng, []), base / "BACKGROUND_Google" / name)
        for kind, folder in enumerate(("accordion", "Faces", "water_lilly")):
            photograph = _photograph(rng, [_thing(kind, 24, 24, 2 * LARGE)])
            save(photograph, base / folder / name)
            if folder == "Faces":
                save(photograph.crop((8, 8, 40, 40)), base / "Faces_easy" / name)


WRITERS: dict[str, Callable[[Path, int, int], None]] = {
    "voc2012": voc2012,
    "coco2017": coco2017,
    "lvis": lvis,
    "caltech101": caltech101,
}
