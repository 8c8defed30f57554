"""What an augmentation costs an image, beside what a DataLoader would do."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.functional import to_pil_image

from autoaug_ray.bench import Outcome
from autoaug_ray.maths.allocator import keep_memory
from autoaug_ray.methods import method_class
from autoaug_ray.methods.base import Task, as_float
from autoaug_ray.store import meter as metering

Way = Callable[[], object]
OURS, UINT8, PIL = "ours, a batch", "torchvision, uint8", "torchvision, PIL"
OWN: dict[str, dict[str, Any]] = {
    "randaugment": {"name": "randaugment"},
    "trivialaugment": {"name": "trivialaugment"},
    "autoaugment": {"name": "autoaugment"},
    "bilevel, affine": {"name": "bilevel", "group": "affine"},
    "bilevel, affine + colour": {"name": "bilevel", "group": "affine+color"},
}


def augment(
    *,
    batch: Annotated[int, "images that ours takes at a time, and the others one by one"] = 64,
    rounds: Annotated[int, "of all ways by turns, after one to warm up"] = 7,
    sizes: Annotated[str, "sides in pixels, with commas between them"] = "32,64,224",
) -> Outcome:
    """Microseconds of CPU time an image: ours in a batch, torchvision's image by image."""
    keep_memory()
    figures: dict[str, Any] = {"batch": batch, "device": metering.device_name(torch.device("cpu"))}
    tables = []
    for size in map(int, sizes.split(",")):
        images = torch.randint(256, (batch, 3, size, size), dtype=torch.uint8)
        times: dict[str, dict[str, list[float]]] = {}
        policies = _ways(images)
        for turn in range(rounds + 1):
            for policy, ways in policies.items():
                for name, way in ways.items():
                    begin = time.process_time()
                    way()
                    if turn:
                        spent = (time.process_time() - begin) / batch * 1e6
                        times.setdefault(policy, {}).setdefault(name, []).append(spent)
        figures[str(size)] = times
        tables.append(_table(size, times))
    return Outcome(figures, tables)


def _ways(images: Tensor) -> dict[str, dict[str, Way]]:
    """policy -> name -> what augments all images once."""
    pictures = [to_pil_image(image) for image in images]
    out: dict[str, dict[str, Way]] = {
        name: {OURS: _ours(images, **how)} for name, how in OWN.items()
    }
    for name, theirs in (
        ("randaugment", v2.RandAugment()),
        ("trivialaugment", v2.TrivialAugmentWide()),
        ("autoaugment", v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)),
    ):
        out[name] |= {UINT8: _each(theirs, list(images)), PIL: _each(theirs, pictures)}
    return out


def _each(transform: Callable[[Any], object], images: Sequence[Any]) -> Way:
    return lambda: [transform(image) for image in images]


def _ours(images: Tensor, **settings: Any) -> Way:
    method = method_class(settings["name"]).model_validate({"flip": "none", **settings})
    channels, height, width = images.shape[1:]
    noise = torch.Generator().manual_seed(0)
    state = method.init(Task(channels, height, width, (1,)), 0, torch.device("cpu"))

    def way() -> object:
        with torch.no_grad():
            return method.augment(state, as_float(images), noise)

    return way


def _table(size: int, times: dict[str, dict[str, list[float]]]) -> Table:
    table = Table(
        box=SIMPLE_HEAD,
        title=f"microseconds of CPU time an image of {size} x {size} x 3 (median)",
        caption="ratio: ours to the fastest of the others, round by round (median)",
    )
    names = (OURS, UINT8, PIL)
    for name in ("policy", *names, "ratio"):
        table.add_column(name, justify="left" if name == "policy" else "right")
    for policy, ways in times.items():
        shown = [f"{statistics.median(ways[n]):.0f}" if n in ways else "" for n in names]
        others = [ways[name] for name in ways if name != OURS]
        ratio = ""
        if others:
            fastest = min(others, key=statistics.median)
            pairs = zip(ways[OURS], fastest, strict=True)
            ratio = f"{statistics.median(a / b for a, b in pairs):.2f}"
        table.add_row(policy, *shown, ratio)
    return table
