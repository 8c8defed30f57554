"""What was found in a folder -> the text of a study of it, which says why of every line."""

import math
from collections.abc import Sequence

import yaml

from autoaug_ray.data.inspect import TEST_FRACTION, Inspection
from autoaug_ray.methods.stage import Flip

SIZES = (28, 32, 64, 96, 128, 224)
"""Sides in pixels that are proposed."""
LARGEST_ON_CPU = 64
EPOCHS = (5, 10, 15, 20, 25, 30, 40, 50, 60, 80, 100, 150, 200)
STEPS, STEPS_ON_GPU = 1000, 8000
"""Steps that a proposed training takes on a CPU, where networks are small, and on a GPU."""
VARIED = 1.2
"""Images are not stretched if width / height differs by this factor between them."""
CROPPED = 2 / 3
"""They are cropped if at least this share of each is kept, and else letterboxed."""
UNEVEN = 5.0
"""Batches are balanced if the largest class has this many times the images of the smallest."""


def study_text(
    found: Inspection, *, gpu: bool, cpus: int, flip: Flip, group_by: str | None = None
) -> str:
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
    sampler = ", sampler: balanced" if uneven else ""
    common = f"flip: {flip}{sampler}"
    learned_flip = "none" if flip == "none" else "learned"
    note = "" if flip == "none" else FLIP_NOTE

    dataset = _files(found, group_by)
    why = "all images are grey" if channels == 1 else "not all images are grey"
    dataset += [(f"image_size: {size}", why_size), *_fit(found), (f"channels: {channels}", why)]

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
            f"bilevel: {{flip: {learned_flip}{sampler}, group: {group}}}",
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


def _files(found: Inspection, group_by: str | None) -> list[tuple[str, str]]:
    """The lines that say which files are read, and how they are split."""
    dataset = [
        ("name: folder", ""),
        (yaml.safe_dump({"root": str(found.root)}, allow_unicode=True, width=10_000).strip(), ""),
    ]
    if found.flat:
        dataset.append((f"test_fraction: {TEST_FRACTION}", "of every class, always the same ones"))
    if found.unreadable:
        dataset.append(("unreadable: skip", f"{len(found.unreadable)} files cannot be read"))
    if group_by is not None:
        (line,) = yaml.safe_dump({"group_by": group_by}, width=10_000).splitlines()
        dataset.append((line, "files of one group stay on one side of each split"))
    return dataset


def _fit(found: Inspection) -> list[tuple[str, str]]:
    """The line that says how images of different shapes become squares; none if they are alike."""
    low, middle, high = found.shapes
    if high / low < VARIED:
        return []
    why = f"width / height from {low:.2f} to {high:.2f}: stretched, shapes would vary"
    kept = min(middle, 1 / middle)
    if min(low, 1 / high) >= CROPPED:
        return [("fit: crop", f"{why}; the middle is kept, {kept:.0%} of the median image")]
    return [("fit: letterbox", f"{why}, and cropped, more than a third would be lost")]


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
    """The choice whose ratio to `value` is nearest to 1."""
    return min(choices, key=lambda c: abs(math.log(c / value)))


def _beside(lines: Sequence[tuple[str, str]], indent: str = "") -> list[str]:
    """Lines of (`key: value`, reason), with the reasons in one column of comments."""
    widest = max(len(code) for code, why in lines if why)
    return [indent + (f"{code:<{widest}}  # {why}" if why else code) for code, why in lines]
