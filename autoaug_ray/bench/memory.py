"""What a bilevel step takes in memory and time, and how right it is, by each way to make it fit."""

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import cosine_similarity

from autoaug_ray import models
from autoaug_ray.bench import Outcome, device_of, now
from autoaug_ray.bench.hypergradient import (
    EACH_STEP,
    Batch,
    Place,
    Variant,
    as_it_is,
    classifier_of,
    theta_gradient,
)
from autoaug_ray.learner import Learner
from autoaug_ray.maths import hypergradient as hg
from autoaug_ray.methods.bilevel import Bilevel
from autoaug_ray.schedule.memory import Peak
from autoaug_ray.settings.classifier import Classifier
from autoaug_ray.settings.training import Training
from autoaug_ray.store import meter as metering

WAYS: Mapping[str, Mapping[str, Any]] = {
    "the whole batch": {},
    "in 2 parts": {"accumulate": 2},
    "in 4 parts": {"accumulate": 4},
    "in 8 parts": {"accumulate": 8},
    "blocks recomputed": {"recompute": True},
    "blocks recomputed, in 4 parts": {"recompute": True, "accumulate": 4},
    "bf16": {"hypergradient_precision": "bf16"},
}
"""Settings of `train:`; the first is the unit."""

COUNTED = Classifier(name="resnet50")
"""What steps on ImageNet are counted for."""


class Step(NamedTuple):
    """One step of one way."""

    megabytes: float
    seconds: float
    cosine: float
    """To the hypergradient of the whole batch."""


def memory(
    *,
    model: Annotated[
        str, "classifier of residual blocks: resnet20, resnet18, wrn-28-10, ..."
    ] = "resnet20",
    width: Annotated[int, "channels of the first blocks, where it can be chosen"] = 8,
    device: Annotated[str, "cpu or cuda"] = "cpu",
    warmup: Annotated[int, "steps of training before anything is measured"] = 60,
    batches: Annotated[int, "steps of each way"] = 8,
    imagenet: Annotated[int, "images of 224 x 224 in a batch for resnet50"] = 256,
) -> Outcome:
    """Memory, time and cosine of every way to take a bilevel step; and the memory of steps on
    ImageNet, which is counted from the shapes of their tensors."""
    where, classifier = device_of(device), classifier_of(model, width)
    place = Place(classifier, where, as_it_is, warmup=warmup)
    names = list(WAYS)
    steps: dict[str, list[Step]] = {name: [] for name in names}
    plain = place.training
    for _ in range(batches):
        batch, exact = place.batch(), None
        for name in names:
            place.training = plain.model_copy(update=WAYS[name])
            step, h = _measured(place, batch)
            exact = h if exact is None else exact
            cosine = float(cosine_similarity(h, exact, dim=0))
            steps[name].append(step._replace(cosine=cosine))
        place.training = plain
        place.advance(1)
    unit = np.array([s.seconds for s in steps[names[0]]])
    rows = [
        {
            "name": name,
            "megabytes": max(s.megabytes for s in taken),
            "cost": float(np.median(np.array([s.seconds for s in taken]) / unit)),
            "cosine": {
                "mean": float(np.mean([s.cosine for s in taken])),
                "lowest": min(s.cosine for s in taken),
            },
        }
        for name, taken in steps.items()
    ]
    figures: dict[str, Any] = {
        "model": model, "width": width, "device": metering.device_name(where),
        "batch_size": Training().batch_size, "images": list(place.shape[:3]), "warmup": warmup,
        "batches": batches, "steps": rows,
    }  # fmt: skip
    figures["imagenet"] = {
        "model": COUNTED.name, "batch_size": imagenet,
        "gigabytes": {name: counted(imagenet, way) / 1e9 for name, way in WAYS.items()},
    }  # fmt: skip
    return Outcome(figures, [_table(figures), _counted_table(figures["imagenet"])])


def counted(batch: int, way: Mapping[str, Any]) -> int:
    """Bytes of the tensors at a time of a hypergradient of K = 1 with so many images of 224 x 224
    pixels, at most; nothing is computed. The augmentation is one factor for all images."""
    # A module of fake tensors cannot be given another memory format.
    model = models.build(COUNTED, 1000, torch.zeros(3), torch.ones(3), seed=0)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        for module in model.modules():
            tensors: Any
            for tensors in (module._parameters, module._buffers):
                kept = {k: fake.from_tensor(t) for k, t in tensors.items() if t is not None}
                tensors.update(kept)
        training = Training(batch_size=batch, **way)
        learner = Learner(model, training, total_steps=1, noise=torch.Generator())
        x, y = torch.rand(batch, 3, 224, 224), torch.zeros(batch, dtype=torch.long)
        theta = torch.ones((), requires_grad=True)
        peak = Peak(torch.device("cpu"), [x, y, *model.parameters(), *learner.buffers().values()])
        with peak.measured():
            hg.unrolled(
                [learner.loss_at(lambda part: theta * x[part], y, real_pass=True)],
                learner.loss_at(x, y),
                {k: v.detach().requires_grad_() for k, v in learner.weights().items()},
                learner.buffers(),
                [theta],
                [learner.rule],
                hold=hg.same_length,
            )
    return peak.bytes


def _counted_table(f: Mapping[str, Any]) -> Table:
    table = Table(
        box=SIMPLE_HEAD,
        title=f"{f['model']}, batch {f['batch_size']} of 3x224x224, counted",
        caption="GB of all tensors of a hypergradient at a time, at most, without those of an "
        "augmentation; a GPU's libraries and workspaces come on top.",
    )
    table.add_column("train")
    table.add_column("GB", justify="right")
    for name, size in f["gigabytes"].items():
        table.add_row(name, f"{size:.1f}")
    return table


def _measured(place: Place, batch: Batch) -> tuple[Step, Any]:
    """A step from the present point, and its hypergradient (n,); the time is of another one, as
    counting takes time as well."""
    variant = Variant("", method := Bilevel(**EACH_STEP), method.step, True)
    h = theta_gradient(place, variant, [batch])
    begin = now(place.device)
    theta_gradient(place, variant, [batch])
    seconds = now(place.device) - begin
    learner, state = place.start(method)
    held = [*learner.model.parameters(), *learner.model.buffers()]
    held += learner.buffers().values()
    peak = Peak(place.device, held)
    learner.begin_step()
    with peak.measured():
        method.step(learner, batch.train, batch.next_meta, state)
    return Step(peak.bytes / 1e6, seconds, 1.0), h


def _table(f: Mapping[str, Any]) -> Table:
    table = Table(
        box=SIMPLE_HEAD,
        title=f"{f['model']} on {f['device']}, batch {f['batch_size']} of "
        f"{'x'.join(map(str, f['images']))}",
        caption=f"Steps of bilevel. MB: of all tensors at a time, at most. Cost: 1 is a step on "
        f"the whole batch; medians over {f['batches']} steps. Cosines of the hypergradient to that "
        f"of the whole batch in fp32; in parts, batch norm's statistics are those of the parts.",
    )
    for name in ("train", "MB", "cost", "cosine", "lowest"):
        table.add_column(name, justify="left" if name == "train" else "right")
    for row in f["steps"]:
        c = row["cosine"]
        table.add_row(
            row["name"], f"{row['megabytes']:.0f}", f"{row['cost']:.2f}", f"{c['mean']:.4f}",
            f"{c['lowest']:.4f}",
        )  # fmt: skip
    return table
