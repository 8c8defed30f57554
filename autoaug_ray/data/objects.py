"""Photographs of several things, classed by one of them: VOC 2012, COCO 2017, LVIS v1; Caltech101.

These are AutoGenDA's datasets (section 4.1), made from objects as DAFusion makes them. The paper
says "the object class with the largest area in the image"; DAFusion's code takes the class of the
largest single *instance*, not the class whose instances cover most, and so does this file.

`protocol: clean` is what we would defend, `protocol: dafusion` does what DAFusion's public code
does, faults included:

- VOC. clean: background and void are no instances. dafusion: the lowest and the highest id of an
  image are left out, which are background and void only where an image has both: without a void
  border the last object is lost, without background the first one.
- COCO. clean: crowds are no instances. dafusion: they are.
- LVIS (of which DAFusion has no reader). clean: its training and validation images together, each
  class cut in two fixed halves, as its own validation set has few images of uncommon things.
  dafusion: as COCO, trained on its training set and tested on its validation set.
- Caltech101, which comes without a split, and with one object per image. Both: two fixed halves of
  each class. clean: without the background class; each class is cut by itself. dafusion: with it;
  one `numpy.random.default_rng(0)` cuts all classes in turn, on sorted paths. (DAFusion's code has
  the paths in the file system's order: its halves differ between machines, and between trials.)

VOC and COCO are tested on the publisher's validation set: the labels of their test sets are not
public. Among instances of equal size the largest is the one of the lower id (VOC), or the one that
the file names first. In both protocols images without an instance are left out (DAFusion's code
calls a VOC image a television if it has lost all of its objects), and so are classes with fewer
training images than `min_class_count` or without a test image; the notes say which.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from autoaug_ray.data.files import ImageFiles, inside, opened
from autoaug_ray.data.folders import in_turn
from autoaug_ray.data.splits import Source
from autoaug_ray.errors import UserError, some
from autoaug_ray.settings.dataset import Dataset

Items = list[tuple[Path, int]]  # images and their classes

VOC_CLASSES = (
    "airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "dining table", "dog", "horse", "motorcycle", "person", "potted plant", "sheep", "sofa",
    "train", "television",
)  # fmt: skip
"""Named as in DAFusion's prompts; a class's value in a mask is its place in this tuple, from 1."""
VOC_VOID = 255
VOC_ARCHIVE = "VOCtrainval_11-May-2012.tar"
COCO_IMAGES = "train2017.zip and val2017.zip"
CALTECH_BACKGROUND = "background google"
CALTECH_FOLDERS = 102
NAMED = 10
"""A note names at most so many dropped classes."""


def voc2012(dataset: Dataset) -> Source:
    """The 1,464 training and 1,449 validation images that have masks of their objects.

    `root` holds VOCdevkit/VOC2012, or is one of these two folders.
    """
    root = Path(dataset.root).expanduser()
    places = [root, root / "VOC2012", root / "VOCdevkit/VOC2012"]
    base = next((p for p in places if (p / "ImageSets/Segmentation").is_dir()), None)
    if base is None:
        raise UserError(
            f"dataset.root: no VOCdevkit/VOC2012/ImageSets/Segmentation in {root}; unpack "
            f"{VOC_ARCHIVE} there."
        )
    listed = []
    for part in ("train", "val"):
        path = base / f"ImageSets/Segmentation/{part}.txt"
        if not path.is_file():
            raise UserError(f"dataset.root: no {path}; unpack {VOC_ARCHIVE} again.")
        listed.append(path.read_text().split())
    kinds = ("SegmentationClass", "SegmentationObject")
    every = [name for names in listed for name in names]
    _present([inside(base / kind, f"{name}.png") for kind in kinds for name in every], VOC_ARCHIVE)
    pool, test = (_masked(base, names, dataset.protocol == "dafusion") for names in listed)
    note = _count(len(every) - len(pool) - len(test), len(every), "have no instance that counts")
    return _source(dataset, VOC_CLASSES, pool, test, [note], VOC_ARCHIVE)


def _masked(base: Path, names: list[str], dafusion: bool) -> Items:
    """The images that have an instance, each with the class of its largest one."""
    items: Items = []
    for name in names:
        classes = _mask(base / f"SegmentationClass/{name}.png")
        objects = _mask(path := base / f"SegmentationObject/{name}.png")
        if classes.shape != objects.shape:
            raise UserError(
                f"{path} has another size than its class mask; unpack {VOC_ARCHIVE} again."
            )
        ids, first, counts = np.unique(objects, return_index=True, return_counts=True)
        if dafusion:
            counts[[0, -1]] = 0
        else:
            counts[(ids == 0) | (ids == VOC_VOID)] = 0
        # Where nothing is left, the first id is taken: background, which is no class.
        value = int(classes.flat[first[counts.argmax()]])
        if 1 <= value <= len(VOC_CLASSES):
            items.append((base / f"JPEGImages/{name}.jpg", value - 1))
    return items


def _mask(path: Path) -> np.ndarray:
    """(height, width) uint8: the palette numbers of an image.

    Raises UserError if it cannot be read, or is in colour.
    """
    with opened(path, str(path)) as image:
        mode, numbers = image.mode, np.asarray(image)
    if mode not in ("P", "L"):
        raise UserError(
            f"{path} is in colour ({mode}), but a mask of numbers is expected; unpack "
            f"{VOC_ARCHIVE} again."
        )
    return numbers


def coco2017(dataset: Dataset) -> Source:
    """80 classes in the order of their ids; classes below 32 training images are dropped.

    32 images are 16 shots and as many for a search. With `protocol: dafusion`, few images are no
    reason to drop a class. `root` holds train2017/, val2017/ and annotations/.
    """
    root = Path(dataset.root).expanduser()
    names, parts, note = _annotated(
        {part: root / f"annotations/instances_{part}2017.json" for part in ("train", "val")},
        "annotations_trainval2017.zip",
        place=lambda part, image: inside(root / f"{part}2017", image["file_name"]),
        crowds=dataset.protocol == "dafusion",
    )
    index = {category: label for label, category in enumerate(sorted(names))}
    pool, test = ([(path, index[category]) for path, category in part] for part in parts)
    classes = tuple(names[category] for category in index)
    return _source(dataset, classes, pool, test, [note], COCO_IMAGES, least=32)


def lvis(dataset: Dataset) -> Source:
    """Classes of some `frequencies` (default: common), in the order of their names.

    An image belongs to the class of its largest annotated instance, of whatever frequency, and is
    used if that is a chosen one. (Annotation is federated: most classes were not looked for in most
    images.) Classes below 20 training images are dropped, that is, below 39 before they are halved.
    With `protocol: dafusion`, few images are no reason to drop a class. `root` holds COCO's
    train2017/ and val2017/, and lvis_v1_{train,val}.json, which may lie in annotations/.
    """
    root = Path(dataset.root).expanduser()
    chosen = dataset.frequencies or ("c",)
    files = {part: root / f"annotations/lvis_v1_{part}.json" for part in ("train", "val")}
    names, parts, note = _annotated(
        {part: p if p.is_file() else root / p.name for part, p in files.items()},
        "lvis_v1_train.json.zip and lvis_v1_val.json.zip",
        # LVIS divides COCO's images in its own way: coco_url ends in COCO's folder and file.
        place=lambda _, image: inside(root, "/".join(image["coco_url"].split("/")[-2:])),
        crowds=True,  # LVIS marks none
        wanted=lambda category: category["frequency"] in chosen,
    )
    index = {c: label for label, c in enumerate(sorted(names, key=lambda c: names[c].lower()))}
    pool, test = ([(p, index[c]) for p, c in part if c in index] for part in parts)
    seen = sum(map(len, parts))
    what = f"show most of a thing of a frequency other than {'/'.join(chosen)}"
    other = _count(seen - len(pool) - len(test), seen, what)
    if dataset.protocol != "dafusion":
        pool, test = _halves(pool + test, one_stream=False)
    classes = tuple(names[category] for category in index)
    return _source(dataset, classes, pool, test, [note, other], COCO_IMAGES, least=20)


def _annotated(
    files: dict[str, Path],
    archive: str,
    place: Callable[[str, dict[str, Any]], Path],
    crowds: bool,
    wanted: Callable[[dict[str, Any]], bool] = lambda category: True,
) -> tuple[dict[int, str], list[Items], str]:
    """Reads COCO's format, from the files of train and val.

    Returns the names of the wanted categories by their ids; the images of each file, with the
    category of their largest instance; and a note on images without one. `place` finds an image of
    a part by its entry; `crowds` says whether crowds count as instances. Raises UserError for files
    that are missing, damaged or of different downloads.
    """
    names: dict[str, dict[int, str]] = {}
    parts: list[Items] = []
    images = 0
    for part, path in files.items():
        if not path.is_file():
            raise UserError(f"dataset.root: no {path}; unpack {archive} there.")
        try:
            with path.open(encoding="utf-8") as file:
                content = json.load(file, object_hook=_without_outline)
            largest: dict[int, tuple[float, int]] = {}
            for a in content["annotations"]:
                if crowds or not a.get("iscrowd"):
                    best = largest.get(a["image_id"])
                    if best is None or a["area"] > best[0]:
                        largest[a["image_id"]] = a["area"], a["category_id"]
            every = {c["id"]: c for c in content["categories"]}
            names[part] = {key: c["name"] for key, c in every.items() if wanted(c)}
            parts.append(
                [
                    (place(part, image), every[largest[image["id"]][1]]["id"])
                    for image in content["images"]
                    if image["id"] in largest
                ]
            )
            images += len(content["images"])
        except UserError:
            raise
        except ValueError as error:
            raise UserError(
                f"{path} is not whole JSON ({error}); unpack {archive} again."
            ) from None
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} is not in the format of {archive} ({type(error).__name__}: {error})."
            ) from None
    first, second = names
    if names[first] != names[second]:
        raise UserError(
            f"{files[first]} and {files[second]} have different categories; they belong to "
            "different downloads."
        )
    without = images - sum(map(len, parts))
    return names[first], parts, _count(without, images, "have no instance that counts")


def _without_outline(record: dict[str, Any]) -> dict[str, Any]:
    """The record without its outline: outlines are most of such a file, and would fill memory."""
    record.pop("segmentation", None)
    return record


def caltech101(dataset: Dataset) -> Source:
    """101 classes, or 102 with the background, named as in DAFusion's prompts.

    Faces and Faces_easy show the same 435 photographs, whole and cut out, as two classes: where
    each class is cut by itself, classes of one size are cut alike, so that a photograph is in the
    same half of both. `root` is 101_ObjectCategories/, or the folder that holds it, or the folder
    above that, if it is called caltech-101/ or caltech101/.
    """
    root = Path(dataset.root).expanduser()
    name = "101_ObjectCategories"
    places = [root / sub / name for sub in ("", "caltech-101", "caltech101")]
    base = root if root.name == name else next((p for p in places if p.is_dir()), places[0])
    paths = list(base.glob("*/image_*.jpg"))
    if not paths:
        raise UserError(
            f"dataset.root: no {base}/CLASS/image_0001.jpg; unpack {name}.tar.gz of "
            f"caltech-101.zip in {base.parent}."
        )
    class_of = {path.parent.name: path.parent.name.lower().replace("_", " ") for path in paths}
    classes = tuple(sorted(class_of.values()))
    notes = [
        f"{len(classes)} of {CALTECH_FOLDERS} class folders are there."
        if len(classes) != CALTECH_FOLDERS
        else ""
    ]
    dafusion = dataset.protocol == "dafusion"
    if not dafusion:
        classes = tuple(c for c in classes if c != CALTECH_BACKGROUND)
    index = {folder: classes.index(c) for folder, c in class_of.items() if c in classes}
    items = [(p, index[p.parent.name]) for p in paths if p.parent.name in index]
    pool, test = _halves(items, one_stream=dafusion)
    return _source(dataset, classes, pool, test, notes, "101_ObjectCategories.tar.gz")


def _halves(items: Items, *, one_stream: bool) -> tuple[Items, Items]:
    """The images of each class, sorted by name, shuffled, then cut in two.

    The first half may have one image more. With `one_stream`, one random stream shuffles all
    classes in turn; else each class has its own, of the same seed.
    """
    members: dict[int, list[Path]] = defaultdict(list)
    for path, label in sorted(items, key=lambda item: item[0].name):
        members[label].append(path)
    halves: tuple[Items, Items] = ([], [])
    rng = np.random.default_rng(0)
    for label in sorted(members):
        if not one_stream:
            rng = np.random.default_rng(0)
        order = rng.permutation(len(members[label]))
        for half, chosen in zip(halves, np.array_split(order, 2), strict=True):
            half += [(members[label][i], label) for i in chosen]
    return halves


def _source(
    dataset: Dataset,
    classes: tuple[str, ...],
    pool: Items,
    test: Items,
    notes: list[str],
    archive: str,
    least: int = 1,
) -> Source:
    """A source without the classes that lack a test image, or `least` training images.

    `dataset.min_class_count` takes the place of `least`. The images stay on disk. Raises UserError
    if fewer than two classes are left, or if a file of `archive` is missing.
    """
    least = dataset.min_class_count or (1 if dataset.protocol == "dafusion" else least)
    have, tested = (Counter(label for _, label in part) for part in (pool, test))
    kept = [label for label in range(len(classes)) if have[label] >= least and tested[label]]
    if len(kept) < 2:
        raise UserError(
            f"dataset.min_class_count: {len(kept)} of {len(classes)} classes have at least "
            f"{least} training image(s) and a test image; 2 such classes are needed."
        )
    dropped = [
        f"{name} ({have[label]} + {tested[label]})"
        for label, name in enumerate(classes)
        if label not in kept
    ]
    if dropped:
        few = f"fewer than {least} training images" if least > 1 else "no training image"
        notes = [
            *notes,
            f"{len(dropped)} of {len(classes)} classes have {few} or no test image and are "
            f"dropped (training + test images): {some(dropped, NAMED)}.",
        ]
    dense = {label: i for i, label in enumerate(kept)}
    parts = [[(p, dense[label]) for p, label in part if label in dense] for part in (pool, test)]
    paths = [path for part in parts for path, _ in part]
    _present(paths, archive)
    read = ImageFiles(paths, dataset.image_size or 256, 3, dataset.fit or "stretch")
    stored, stored_test = in_turn(read, *([label for _, label in part] for part in parts))
    names = tuple(classes[label] for label in kept)
    return Source(stored, None, stored_test, names, notes=tuple(n for n in notes if n))


def _present(paths: list[Path], archive: str) -> None:
    """Raises UserError if one of these files is missing."""
    if missing := [path for path in paths if not path.is_file()]:
        raise UserError(
            f"dataset.root: {len(missing):,} of {len(paths):,} files are missing, the first is "
            f"{missing[0]}; unpack {archive} again."
        )


def _count(images: int, of: int, what: str) -> str:
    """A note on images that are not used, with the reason; empty if there are none."""
    return f"{images:,} of {of:,} images {what} and are not used." if images else ""
