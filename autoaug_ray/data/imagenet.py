"""ImageNet (Russakovsky et al. 2015) and Tiny ImageNet, whose classes are WordNet's ids."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from autoaug_ray.data.files import ImageFiles, class_folders, find_place, none_empty
from autoaug_ray.data.folders import in_turn
from autoaug_ray.data.splits import Source
from autoaug_ray.errors import UserError
from autoaug_ray.settings.dataset import Dataset

TINY = "tiny-imagenet-200.zip"
TRAIN = "ILSVRC2012_img_train.tar, and each class archive in it into a folder of its name,"
VAL = "ILSVRC2012_img_val.tar"


def tiny_imagenet(dataset: Dataset) -> Source:
    """The tree of tiny-imagenet-200.zip, 64x64: its val is the test set, as in the paper (4.1).

    The labels of its own test set were never published. Val is cut from the 100,000 for training.
    """
    marks = ("wnids.txt", "tiny-imagenet-200/wnids.txt")
    top = find_place(dataset.root, marks, TINY).parent
    train, val, annotations, words = (
        find_place(top, [place], f"the whole of {TINY}")
        for place in ("train", "val/images", "val/val_annotations.txt", "words.txt")
    )
    wnids = tuple(sorted((top / "wnids.txt").read_text().split()))
    paths, labels, _ = class_folders(train, wnids)
    none_empty(labels, wnids, train, TINY)
    lines = annotations.read_text().splitlines()
    wnid_of = {name: rest[:9] for name, _, rest in (line.partition("\t") for line in lines)}
    test_paths, test_labels = _labelled(val, wnid_of, wnids, annotations, TINY)
    pool, test = in_turn(
        ImageFiles(paths + test_paths, dataset.image_size or 64), labels, test_labels
    )
    return Source(pool, None, test, class_names(wnids, words))


def imagenet(dataset: Dataset) -> Source:
    """ILSVRC 2012: train/WNID/*.JPEG and val/WNID/*.JPEG, or Kaggle's tree; val is the test set.

    Val is cut from the images for training. Images have their shorter side scaled to 256 pixels
    and the middle of the longer one kept (`image_size`, `fit: crop`), or both sides scaled to it
    (`fit: stretch`, the bilevel paper's "resize to 256x256", 5.3); a classifier that takes 224
    crops them. Class names are those of LOC_synset_mapping.txt, if it is in the root, else
    WordNet's ids.
    """
    root = Path(dataset.root).expanduser()
    train = find_place(root, ("train", "ILSVRC/Data/CLS-LOC/train"), TRAIN)
    if packed := next(train.glob("*.tar"), None):
        raise UserError(
            f"dataset.root: {packed} is still packed; unpack it into {packed.with_suffix('')}/ and "
            "remove it, and every other like it."
        )
    paths, labels, wnids = class_folders(train)
    val = find_place(train.parent, ["val"], VAL)
    solution = root / "LOC_val_solution.csv"
    if any(place.is_dir() for place in val.iterdir()):
        test_paths, test_labels, _ = class_folders(val, wnids)
    elif solution.is_file():
        lines = solution.read_text().splitlines()[1:]
        answers = (line.partition(",") for line in lines)
        wnid_of = {f"{image}.JPEG": boxes[:9] for image, _, boxes in answers}
        test_paths, test_labels = _labelled(val, wnid_of, wnids, solution, VAL)
    else:
        raise UserError(
            f"dataset.root: {val} has to be sorted into class folders, {val}/{wnids[0]}/*.JPEG and "
            f"so on, as the widely used script valprep.sh does (or put Kaggle's {solution.name} "
            f"into {root})."
        )
    none_empty(test_labels, wnids, val, VAL)
    read = ImageFiles(paths + test_paths, dataset.image_size or 256, fit=dataset.fit or "crop")
    pool, test = in_turn(read, labels, test_labels)
    return Source(pool, None, test, class_names(wnids, root / "LOC_synset_mapping.txt"))


def class_names(wnids: Sequence[str], words: Path) -> tuple[str, ...]:
    """The first name of each WordNet id in a file of lines `WNID NAME, NAME, ...`.

    Ids that share it, as two of ImageNet's are cranes, have theirs behind it; ids that the file
    does not have, or all if it is not there, are their own names.
    """
    lines = words.read_text().splitlines() if words.is_file() else []
    named = {line[:9]: line[10:] for line in lines}
    first = {wnid: (named.get(wnid) or wnid).split(",")[0] for wnid in wnids}
    shared = Counter(first.values())
    return tuple(f"{n} ({wnid})" if shared[n] > 1 else n for wnid, n in first.items())


def _labelled(
    folder: Path, wnid_of: Mapping[str, str], wnids: Sequence[str], listing: Path, archive: str
) -> tuple[list[str], list[int]]:
    """Paths and labels of the files that a listing names in one flat folder."""
    if missing := sorted(set(wnid_of) - set(os.listdir(folder))):
        raise UserError(
            f"dataset.root: {folder} lacks {len(missing)} of the {len(wnid_of)} images that "
            f"{listing.name} names, {missing[0]} for one; unpack the whole of {archive}."
        )
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    if unknown := sorted(set(wnid_of.values()) - set(label_of)):
        raise UserError(
            f"dataset.root: {listing} names the class {unknown[0]!r}, which has no training images."
        )
    names = sorted(wnid_of)
    return [str(folder / name) for name in names], [label_of[wnid_of[name]] for name in names]
