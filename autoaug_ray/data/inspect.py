"""A folder of images -> what is in it, and the text of a study of it that says why."""

import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import yaml
from PIL import Image

from autoaug_ray.data.files import IMAGE_ENDINGS, UNREADABLE, class_folders, digest
from autoaug_ray.data.folders import has_parts
from autoaug_ray.errors import UserError
from autoaug_ray.methods.base import Flip

SIZES = (28, 32, 64, 96, 128, 224)
"""Sides in pixels that are proposed."""
LARGEST_ON_CPU = 64
EPOCHS = (5, 10, 15, 20, 25, 30, 40, 50, 60, 80, 100, 150, 200)
STEPS, STEPS_ON_GPU = 1000, 8000
"""What a training is proposed to be long; a small network is done sooner."""
UNEVEN = 5.0
"""Images of the largest class over those of the smallest from which on batches are balanced."""
GREY = 4
"""Levels of 255 by which the channels of a grey image may differ, after JPEG."""
TEST_FRACTION = 0.2


class Picture(NamedTuple):
    path: Path
    part: str
    """train, val or test; empty where the folder has no parts."""
    label: str
    width: int
    height: int
    mode: str
    """PIL's."""
    grey: bool
    digest: bytes
    """The same for files of the same bytes."""


@dataclass(frozen=True)
class Inspection:
    root: Path
    classes: tuple[str, ...]
    pictures: tuple[Picture, ...]
    """Those that can be read."""
    unreadable: tuple[Path, ...]

    @property
    def parts(self) -> tuple[str, ...]:
        """train, val (if there is one), test; one without a name for a folder per class."""
        return tuple(dict.fromkeys(p.part for p in self.pictures))

    @property
    def flat(self) -> bool:
        return self.parts == ("",)

    def counts(self, part: str) -> dict[str, int]:
        """Images of every class, the largest class first."""
        counts = Counter(p.label for p in self.pictures if p.part == part)
        return {c: counts[c] for c in sorted(self.classes, key=lambda c: (-counts[c], c))}

    @property
    def imbalance(self) -> float:
        """Images of the largest class of the pool over those of the smallest."""
        counts = list(self.counts(self.parts[0]).values())
        return counts[0] / max(1, counts[-1])

    @property
    def pool(self) -> int:
        """Images that train."""
        if self.flat:
            return round((1 - TEST_FRACTION) * len(self.pictures))
        return sum(p.part != "test" for p in self.pictures)

    @property
    def side(self) -> float:
        """Pixels: the median over images of the geometric mean of width and height."""
        return median(math.sqrt(p.width * p.height) for p in self.pictures)

    @property
    def grey(self) -> bool:
        return all(p.grey for p in self.pictures)

    @property
    def copies(self) -> list[tuple[Picture, Picture]]:
        """(a file of the same bytes that comes before, file)."""
        first: dict[bytes, Picture] = {}
        pairs = [(first.setdefault(p.digest, p), p) for p in self.pictures]
        return [(a, b) for a, b in pairs if a is not b]


def inspect(root: Path) -> Inspection:
    """Reads every image once. Raises UserError for a folder that no study could use."""
    if has_parts(root):
        parts = [part for part in ("train", "val", "test") if (root / part).is_dir()]
    else:
        _check_layout(root)
        parts = [""]
    classes = class_folders(root / parts[0])[2]
    where = [
        (Path(path), part, classes[label])
        for part in parts
        for path, label in zip(*class_folders(root / part, classes)[:2], strict=True)
    ]
    with ThreadPoolExecutor() as pool:
        looks = list(pool.map(lambda x: _look(*x), where))
    pictures = tuple(look for look in looks if look is not None)
    bad = tuple(path for (path, *_), look in zip(where, looks, strict=True) if look is None)
    if not pictures:
        raise UserError(f"{root}: none of its {len(where)} images can be read.")
    found = Inspection(root, classes, pictures, bad)
    if empty := [c for c, n in found.counts(parts[0]).items() if not n]:
        raise UserError(f"{root / parts[0] / empty[0]}: none of its images can be read.")
    if not found.flat and parts[-1] not in found.parts:
        raise UserError(f"{root / parts[-1]}: none of its images can be read.")
    return found


def _check_layout(root: Path) -> None:
    if not root.is_dir():
        raise UserError(f"{root} is not a folder.")
    inside = sorted(p for p in root.iterdir() if p.is_dir() and p.name[0] != ".")
    names = {p.name for p in inside}
    hint = ""
    if "train" in names and names <= {"train", "val", "valid", "validation"}:
        what = f"{' and '.join(f'{n}/' for n in sorted(names))} but no test/"
        hint = f", where `autoaug-ray init {root / 'train'}` would cut a test set from train/ alone"
    elif len(inside) >= 2:
        return
    else:
        loose = sum(p.suffix.lower() in IMAGE_ENDINGS for p in root.iterdir())
        what = f"{loose} images and {len(inside)} folder{'s' * (len(inside) != 1)}"
        if inside and sum(p.is_dir() for p in inside[0].iterdir()) >= 2:
            hint = f"; did you mean {inside[0]}?"
    raise UserError(
        f"{root} holds {what}; expected are {root}/train/CLASS/*.png and {root}/test/CLASS/*.png, "
        f"or {root}/CLASS/*.png for at least 2 classes{hint or '.'}"
    )


def _look(path: Path, part: str, label: str) -> Picture | None:
    try:
        with Image.open(path) as image:
            image.load()
            (width, height), mode = image.size, image.mode
            few = image.convert("RGB").resize((32, 32), Image.Resampling.NEAREST)
    except UNREADABLE:
        return None
    grey = int(np.ptp(np.asarray(few).astype(int), axis=2).max()) <= GREY
    return Picture(path, part, label, width, height, mode, grey, digest(path))


def study_text(found: Inspection, *, gpu: bool, cpus: int, flip: Flip) -> str:
    """The YAML of a study of the folder, for a machine with `cpus` cores and perhaps a GPU."""
    name = found.root.resolve().name
    size = nearest(found.side, SIZES)
    why_size = f"pixels; the median image has {found.side:.0f}"
    if not gpu and size > LARGEST_ON_CPU:
        why_size = f"pixels; with a GPU, {size} would suit these images"
        size = LARGEST_ON_CPU
    channels = 1 if found.grey else 3
    model, why_model = _model(size, found.pool, gpu)
    batch = 32 if found.pool < 1000 else 64 if found.pool < 10_000 else 128
    steps = max(1, found.pool // batch)
    target = STEPS_ON_GPU if gpu else STEPS
    epochs = int(nearest(target / steps, EPOCHS))
    uneven = found.imbalance >= UNEVEN
    group = "affine" if channels == 1 else "affine+color"
    common = f"flip: {flip}" + (", sampler: balanced" if uneven else "")
    note = "" if flip == "none" else FLIP_NOTE

    dataset = [
        ("name: folder", ""),
        (yaml.safe_dump({"root": str(found.root)}, allow_unicode=True, width=10_000).strip(), ""),
    ]
    if found.flat:
        dataset.append((f"test_fraction: {TEST_FRACTION}", "of every class, always the same ones"))
    if found.unreadable:
        dataset.append(("unreadable: skip", f"{len(found.unreadable)} files cannot be read"))
    why = "all images are grey" if channels == 1 else "not all images are grey"
    dataset += [(f"image_size: {size}", why_size), (f"channels: {channels}", why)]

    train = [
        (f"batch_size: {batch}", f"{found.pool} images train: {steps} steps an epoch"),
        (f"epochs: {epochs}", f"{epochs * steps} steps; the aim was about {target}"),
    ]
    if gpu:
        train.append(("precision: bf16", "the usual on GPUs; hypergradients stay fp32"))
    top = [(f"model: {model}", why_model)]
    if gpu:
        top.append((f"resources: {{cpus: {min(4, cpus)}, gpus: 0.5}}", "two trainings share a GPU"))
    top.append(("seeds: 5", "final trainings of each method; fewer can seldom tell two apart"))

    shift = round(size / 8)
    methods = [("none:", "The images as they are: the unit of cost.")]
    if uneven:
        why = f"The largest class has {found.imbalance:.0f} times the smallest: balanced batches."
        methods.append(("balanced: {method: none, sampler: balanced}", why))
    methods += [
        (f"predefined: {{{common}, translate: {shift}}}", f"Moved by up to {shift} pixels."),
        (f"trivialaugment: {{{common}}}", "One random operation an image; nothing to tune."),
        (
            f"randaugment: {{{common}, magnitude: {{grid: [5, 9, 13]}}}}",
            "Two random operations of one magnitude, which is searched.",
        ),
        (
            f"validated_magnitude: {{{common}, group: {group}, "
            "magnitude: {grid: [0.05, 0.1, 0.2]}}",
            "Random transformations of one magnitude, which is searched.",
        ),
        (
            f"bilevel: {{{common}, group: {group}, every: 2, until: 0.5}}",
            "Learned while the classifier trains; brings its control, the same without learning.",
        ),
    ]
    return "\n".join(
        [
            f"# Which augmentation is worth its compute on {name}? {len(found.pictures)} images of "
            f"{len(found.classes)} classes.",
            "# Proposed by `autoaug-ray init`; everything may be changed." + note,
            "dataset:",
            *_beside(dataset, "  "),
            *_beside(top),
            "train:",
            *_beside(train, "  "),
            "methods:",
            *(f"  # {why}\n  {code}" for code, why in methods),
            "",
        ]
    )


FLIP_NOTE = """
#
# flip: horizontal mirrors half of the training images. Where left and right mean something, as in
# text and digits, write this file again with `--flip none --force`."""


def _model(size: float, pool: int, gpu: bool) -> tuple[str, str]:
    if not gpu:
        return "cnn", "a small one: there is no GPU here; with one, try resnet18"
    if size <= 32 and pool < 20_000:
        return "cnn", "small images, and not many; resnet18 is the next step"
    if size <= 64:
        return "resnet18", "with the stem for small images"
    if pool < 5_000:
        return "torchvision:resnet18", "few images for so many pixels"
    return "torchvision:resnet50", "large images, and enough of them"


def nearest(value: float, choices: Sequence[int]) -> int:
    """By ratio."""
    return min(choices, key=lambda c: abs(math.log(c / value)))


def _beside(lines: Sequence[tuple[str, str]], indent: str = "") -> list[str]:
    """`key: value` lines with their reasons beside them."""
    widest = max(len(code) for code, why in lines if why)
    return [indent + (f"{code:<{widest}}  # {why}" if why else code) for code, why in lines]
