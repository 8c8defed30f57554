"""What was found in a folder -> the text of a study of it, which says why of every line."""

import math
from collections.abc import Sequence
from textwrap import wrap
from typing import NamedTuple

import yaml

from autoaug_ray.commands.budget import Plan
from autoaug_ray.commands.flips import Flips
from autoaug_ray.data.inspect import TEST_FRACTION, Inspection
from autoaug_ray.settings.classifier import Classifier

Line = tuple[str, str]
"""`key: value` of a YAML, and the reason for it."""
SIZES = (28, 32, 64, 96, 128, 224)
"""Sides in pixels that are proposed."""
LARGEST_ON_CPU = 64
SEEDS = 5
EPOCHS = (5, 10, 15, 20, 25, 30, 40, 50, 60, 80, 100, 150, 200)
STEPS, STEPS_ON_GPU = 1000, 8000
"""Steps that a proposed training from random weights takes on a CPU, where networks are small, and
on a GPU."""
VARIED = 1.2
"""Images are not stretched if width / height differs by this factor between them."""
CROPPED = 2 / 3
"""They are cropped if at least this share of each is kept, and else letterboxed."""
UNEVEN = 5.0
"""Batches are balanced if the largest class has this many times the images of the smallest."""
PHOTOGRAPH = 48.0
"""Sides in pixels below which trained networks, which have seen photographs, are not proposed."""
BACKBONES_ON_CPU = ("torchvision:mobilenet_v3_small", "timm:mobilenetv3_small_100.lamb_in1k")
BACKBONES = (
    "torchvision:convnext_tiny", "timm:convnext_tiny.fb_in22k", "hf:facebook/dinov2-small",
    "torchvision:resnet50",
)  # fmt: skip
"""Trained networks that are proposed; the first one whose weights can be had."""
OWN_SIDE, SIDE_ON_CPU = 224, 128
"""Pixels for which trained networks are proposed. A network of convolutions takes 128, too, for a
third of the work; those of timm and transformers scale the images themselves."""
TUNING_STEPS = ((1_000, 300), (20_000, 1_000), (math.inf, 5_000))
"""Images, at most -> steps of a fine-tuning: it is the shorter the fewer images there are, as they
are soon known by heart (cf. the BiT-HyperRule of Kolesnikov et al. 2020, of larger batches)."""
TUNING_STEPS_ON_CPU = 300
TUNING_RATE, OTHER_RATES = 1e-4, {"hf:facebook/dinov2-small": 5e-5}
"""Peak learning rates of AdamW for the last layer of a trained network."""
LAYER_DECAY = {"torchvision:convnext_tiny": 0.8, "timm:convnext_tiny.fb_in22k": 0.8,
               "hf:facebook/dinov2-small": 0.75}  # fmt: skip
"""By how much a block learns less than the one after it: MAE's and ConvNeXt's fine-tuning."""
FEW_IMAGES = 1_000
"""With fewer, labels are not smoothed: so few are soon known by heart, and their loss is small."""


class Recipe(NamedTuple):
    """How long and how fast a proposed training learns."""

    batch: int
    steps: int
    epochs: int
    lines: tuple[Line, ...]
    """What `train:` says of the optimiser."""


def backbones(found: Inspection, *, gpu: bool) -> tuple[Classifier, ...]:
    """The trained networks that suit the images, the best first; none for very small images."""
    if found.side < PHOTOGRAPH:
        return ()
    names = BACKBONES if gpu else BACKBONES_ON_CPU
    weights = {"torchvision": "imagenet", "timm": "pretrained", "hf": "pretrained"}
    return tuple(Classifier(name=n, weights=weights[n.partition(":")[0]]) for n in names)


def size_of(found: Inspection, *, gpu: bool, trained: bool) -> Line:
    """The side of the images in pixels, and why."""
    if trained:
        return (str(OWN_SIDE), "pixels, as the weights have seen") if gpu else (
            str(SIDE_ON_CPU), f"pixels; {OWN_SIDE}, as the weights have seen, takes three times as "
            "long",
        )  # fmt: skip
    size = nearest(found.side, SIZES)
    if not gpu and size > LARGEST_ON_CPU:
        return str(LARGEST_ON_CPU), f"pixels; with a GPU, {size} would suit these images"
    return str(size), f"pixels; the median image has {found.side:.0f}"


def recipe(pool: int, *, gpu: bool, backbone: Classifier | None) -> Recipe:
    """The training that suits so many images, from random weights or from those of a backbone."""
    lines: tuple[Line, ...] = ()
    if backbone is None:
        batch = 32 if pool < 1000 else 64 if pool < 10_000 else 128
        target: float = STEPS_ON_GPU if gpu else STEPS
    else:
        batch = 32 if pool < 5000 or not gpu else 64
        target = next(steps for most, steps in TUNING_STEPS if pool <= most)
        target = target if gpu else min(target, TUNING_STEPS_ON_CPU)
        lines = _fine_tuning(backbone.name, pool)
    steps = max(1, pool // batch)
    return Recipe(batch, steps, int(nearest(target / steps, EPOCHS)), lines)


def _fine_tuning(name: str, pool: int) -> tuple[Line, ...]:
    """The lines of `train:` for a trained network: parts of the recipes of MAE (He et al. 2022),
    ConvNeXt (Liu et al. 2022) and AutoGluon, none of them as a whole. No rate is measured."""
    lines = [
        ("optimiser: adamw", "the usual for trained weights"),
        (f"lr: {OTHER_RATES.get(name, TUNING_RATE)}", "the peak; they move little"),
        ("weight_decay: 0.05", ""),
        ("weight_decay_on: matrices", "not on biases and norms"),
        ("schedule: cosine", ""),
        ("warmup: 0.1", "of the steps"),
    ]
    if (decay := LAYER_DECAY.get(name)) is not None:
        lines.append((f"lr_decay: {decay}", "each block learns less than the one after it"))
    if pool >= FEW_IMAGES:
        lines.append(("label_smoothing: 0.1", ""))
    return tuple(lines)


def study_text(
    found: Inspection,
    *,
    gpu: bool,
    cpus: int,
    flips: Flips,
    backbone: Classifier | None = None,
    plan: Plan | None = None,
    group_by: str | None = None,
) -> str:
    """The YAML of a study of the folder, for a machine with `cpus` cores and perhaps a GPU.

    `backbone`: a trained network, whose weights can be had. `plan`: what of the study fits in a
    budget; None: all of it. `group_by`: the pattern by which files stay together; None: each alone.
    """
    name = found.root.resolve().name
    size, why_size = size_of(found, gpu=gpu, trained=backbone is not None)
    training = recipe(found.pool, gpu=gpu, backbone=backbone)
    model, why_model = _model(int(size), found.pool, gpu)
    if backbone is not None:
        model = f'{{name: "{backbone.name}", weights: {backbone.weights}}}'
        why_model = "trained on other images; fine-tuned here"
    plan = plan or Plan(SEEDS, training.epochs, ())
    top = [(f"model: {model}", why_model)]
    if gpu:
        top.append((f"resources: {{cpus: {min(4, cpus)}, gpus: 0.5}}", "two trainings share a GPU"))
    why = "final trainings of each method; fewer can seldom tell two apart"
    if plan.seeds < SEEDS:
        why = f"final trainings of each method; {SEEDS} did not fit in --budget"
    top.append((f"seeds: {plan.seeds}", why))
    left_out = f"\n# Left out for --budget: {', '.join(plan.left_out)}." if plan.left_out else ""
    return "\n".join(
        [
            f"# Which augmentation is worth its compute on {name}? {len(found.pictures)} images of "
            f"{len(found.classes)} classes.",
            f"# Proposed by `autoaug-ray init`; everything may be changed.{left_out}",
            "#",
            *(f"# {line}" for line in wrap(f"flip: {flips.why}.", 98)),
            "dataset:",
            *_beside(_dataset_lines(found, size, why_size, group_by), "  "),
            *_beside(top),
            "train:",
            *_beside(_train_lines(found, training, plan.epochs, gpu), "  "),
            "methods:",
            *(
                f"  # {why}\n  {code}"
                for code, why in _methods(found, int(size), flips)
                if code.partition(":")[0] not in plan.left_out
            ),
            "",
        ]
    )


def _dataset_lines(found: Inspection, size: str, why_size: str, group_by: str | None) -> list[Line]:
    root = yaml.safe_dump({"root": str(found.root)}, allow_unicode=True, width=10_000).strip()
    lines = [("name: folder", ""), (root, "")]
    if found.flat:
        lines.append((f"test_fraction: {TEST_FRACTION}", "of every class, always the same ones"))
    if found.unreadable:
        lines.append(("unreadable: skip", f"{len(found.unreadable)} files cannot be read"))
    if group_by is not None:
        (line,) = yaml.safe_dump({"group_by": group_by}, width=10_000).splitlines()
        lines.append((line, "files of one group stay on one side of each split"))
    why = "all images are grey" if found.grey else "not all images are grey"
    channels = f"channels: {1 if found.grey else 3}"
    return [*lines, (f"image_size: {size}", why_size), *_fit(found), (channels, why)]


def _train_lines(found: Inspection, training: Recipe, epochs: int, gpu: bool) -> list[Line]:
    steps = training.steps
    why = f"{epochs * steps} steps"
    if epochs < training.epochs:
        why += f"; {training.epochs} epochs did not fit in --budget"
    lines = [
        (f"batch_size: {training.batch}", f"{found.pool} images train: {steps} steps an epoch"),
        (f"epochs: {epochs}", why),
        *training.lines,
    ]
    if gpu:
        lines.append(("precision: bf16", "the usual on GPUs; hypergradients stay fp32"))
    return lines


def _methods(found: Inspection, size: int, flips: Flips) -> list[Line]:
    uneven = found.imbalance >= UNEVEN
    group = "affine" if found.grey else "affine+color"
    sampler = ", sampler: balanced" if uneven else ""
    common = f"flip: {flips.fixed}{sampler}"
    shift = round(size / 8)
    methods = [("none:", "The images as they are: the unit of cost.")]
    if uneven:
        why = f"The largest class has {found.imbalance:.0f} times the smallest: balanced batches."
        methods.append(("balanced: {method: none, sampler: balanced}", why))
    return [
        *methods,
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
            f"bilevel: {{flip: {flips.learned}{sampler}, group: {group}}}",
            "Learned while the classifier trains; brings its control, the same without learning.",
        ),
    ]


def _fit(found: Inspection) -> list[Line]:
    """The line that says how images of different shapes become squares; none if they are alike."""
    low, middle, high = found.shapes
    if high / low < VARIED:
        return []
    why = f"width / height from {low:.2f} to {high:.2f}: stretched, shapes would vary"
    kept = min(middle, 1 / middle)
    if min(low, 1 / high) >= CROPPED:
        return [("fit: crop", f"{why}; the middle is kept, {kept:.0%} of the median image")]
    return [("fit: letterbox", f"{why}, and cropped, more than a third would be lost")]


def _model(size: float, pool: int, gpu: bool) -> Line:
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


def _beside(lines: Sequence[Line], indent: str = "") -> list[str]:
    """Lines of (`key: value`, reason), with the reasons in one column of comments."""
    widest = max(len(code) for code, why in lines if why)
    return [indent + (f"{code:<{widest}}  # {why}" if why else code) for code, why in lines]
