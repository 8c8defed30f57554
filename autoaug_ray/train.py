"""Read this first: one run, from images to rows. It never names a method.

The shared loop is the experimental control. All methods of a study see the same images in the same
order, start from the same weights (per seed), take the same number of steps of the same optimiser
on the same schedule, and are timed by the same meter; they differ in `method.step` alone.
"""

import hashlib
import io
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from autoaug_ray import data, models
from autoaug_ray.config import Run
from autoaug_ray.data import AnySplit, Edits, Split, Splits
from autoaug_ray.errors import RunError
from autoaug_ray.generate.plan import content_hash
from autoaug_ray.generate.settings import ImageKind
from autoaug_ray.learner import Learner
from autoaug_ray.maths.strength import Strength
from autoaug_ray.methods.base import Method, Task, as_float
from autoaug_ray.settings.training import Training
from autoaug_ray.store.meter import TRAINING, Meter, device_name

PROBE = 256  # training images on which delivered strength is measured
PICTURES = 8  # of them shown
PICTURED_EPOCHS = 6  # at most, evenly spaced


class Epoch(NamedTuple):
    row: dict[str, Any]
    """As `record.ROW` describes it."""
    snapshot: Callable[[], dict[str, Any]]
    """All that the next epoch depends on: `run(..., resume=snapshot())` goes on from here."""


class Variants(Protocol):
    """Edited images, as `data.Edits` holds them, and how many could not be used, by kind."""

    @property
    def images(self) -> Tensor: ...
    @property
    def start(self) -> Tensor: ...
    @property
    def count(self) -> Tensor: ...


class EditBank(Protocol):
    """Where generated images come from; `autoaug_ray.generate.bank.Bank` is the one."""

    def variants(
        self, plan_key: str, kinds: Sequence[ImageKind], shape: tuple[int, int, int],
        hashes: Sequence[str],
    ) -> Variants: ...  # fmt: skip

    def cost(self, plan_key: str, kinds: Sequence[ImageKind]) -> Mapping[str, float]: ...


def run(
    config: Run,
    meter: Meter | None = None,
    resume: Mapping[str, Any] | None = None,
    bank: EditBank | None = None,
) -> Iterator[Epoch]:
    """Train as `config` says and yield after every epoch. Whoever iterates decides what is kept.

    A search run never reads the test set; a final run reads it once, after its last epoch. `bank`
    holds the generated images, if the method mixes any. Raises UserError for data that cannot be
    used and RunError for a run that must not go on.
    """
    meter = meter or Meter()
    device = meter.device
    final = config.phase == "final"
    method: Method = config.method
    training = config.train

    splits = data.load(
        config.dataset,
        val_fraction=None if final else config.val_fraction,
        device=device,
        seed=config.seed,
    )
    bank_hours: Mapping[str, float] = {}
    if method.kinds:
        splits, bank_hours = with_edits(splits, config, bank)
    pool = len(splits.train)
    steps = training.iters_per_epoch or max(1, pool // training.batch_size)
    class_counts = torch.bincount(splits.train.labels, minlength=len(splits.classes)).tolist()
    model = models.build(
        config.model, len(splits.classes), *data.channel_statistics(splits.train),
        seed=seed_of(config.seed, "init"),
    ).to(device)  # fmt: skip
    noise = stream(config.seed, "augment", device)
    learner = Learner(model, training, total_steps=steps * training.epochs, noise=noise)
    channels, height, width = splits.train.shape
    task = Task(channels, height, width, tuple(class_counts))
    state: Any = method.init(task, seed_of(config.seed, "augmenter"), device)

    start = 0
    if resume is not None:
        start = resume["epoch"]
        learner.load_state_dict(resume["learner"])
        state.load_state_dict(resume["state"])

    for epoch in range(start + 1, training.epochs + 1):
        drawing = epoch if method.reshuffles_each_epoch else 1
        train_index, meta_index = roles(method, training, splits.train.labels, config.seed, drawing)
        cycle = balanced if method.sampler == "balanced" else shuffled
        batches = cycle(splits.train, train_index, stream(config.seed, f"order/{drawing}"))
        metas = cycle(splits.meta, meta_index, stream(config.seed, f"meta/{drawing}"))
        totals: defaultdict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=device))
        counts: defaultdict[str, int] = defaultdict(int)

        model.train()
        with meter.phase(config.phase):
            for _ in range(steps):
                learner.begin_step()
                logs = method.step(learner, batches(training.batch_size), metas, state)
                learner.end_step()
                for name, value in logs.items():
                    totals[name] += value
                    counts[name] += 1
        log = {name: float(totals[name]) / counts[name] for name in totals}
        if not math.isfinite(log["train_loss"]):
            raise RunError(
                f"{config.label}: train_loss became {log['train_loss']} in epoch {epoch} "
                f"(steps {learner.steps_done - steps + 1} to {learner.steps_done}); "
                f"lower train.lr ({training.lr}) or the strength of the augmentation."
            )

        last = epoch == training.epochs
        if last and method.searches_in_own_run:
            with meter.phase("search"):
                method.finish(learner, metas, state)

        with meter.phase("eval"):
            log |= method.end_epoch(state)
            val = evaluate(method, learner, splits.val, state) if splits.val else None
            test = evaluate(method, learner, splits.test, state) if final and last else None
            pictured = final and epoch in pictured_epochs(training.epochs)
            strength, augmented = probe(method, state, splits.train)

        hours = meter.device_hours()
        alpha = method.alpha(state)
        found = method.found_hyperparameters(state) if last and method.searches_in_own_run else None
        row = {
            "run_key": config.key,
            "label": config.label,
            "method": method.name,
            "phase": config.phase,
            "seed": config.seed,
            "index": config.index,
            "used_key": used(config, learner, epoch if last else training.epochs).key,
            "settings": config.model_dump_json(),
            "epoch": epoch,
            "epochs": training.epochs,
            "train_loss": log.pop("train_loss"),
            "val_accuracy": None if val is None else float(val.mean_accuracy),
            "test_accuracy": None if test is None else float(test.mean_accuracy),
            "class_accuracy": None if test is None else test.class_accuracy,
            "class_counts": class_counts,
            "imbalance_nominal": config.dataset.imbalance and config.dataset.imbalance.factor,
            "imbalance_effective": min(class_counts) / max(class_counts),
            "kinds": list(method.kinds),
            "alpha": None if alpha is None else alpha.tolist(),
            "found": found and json.dumps(found),
            "bank_plan": config.bank_plan,
            "bank_hours": dict(bank_hours),
            "displacement": float(strength.displacement().mean()),
            "color_change": float(strength.color_change().mean()),
            "log": log,
            "samples": strip(augmented[:PICTURES]) if pictured else None,
            "device": device_name(device),
            "share": meter.share,
            "attempt": meter.attempt,
            "device_hours": sum(hours.values()),
            "device_hours_training": sum(hours[p] for p in TRAINING),
            "finished": last,
        }

        def snapshot(epoch: int = epoch) -> dict[str, Any]:
            return {
                "epoch": epoch,
                "shape": [channels, height, width, class_counts],
                "learner": learner.state_dict(),
                "state": dict(state.state_dict()),
            }

        yield Epoch(row, snapshot)


def with_edits(
    splits: Splits, config: Run, bank: EditBank | None
) -> tuple[Splits, Mapping[str, float]]:
    """The pool with the edits of the method's kinds beside its images, and their device-hours."""
    if bank is None or config.bank_plan is None:
        raise RunError(f"{config.label}: generated images are needed, but no bank was given.")
    kinds, device = config.method.kinds[1:], splits.train.labels.device
    hashes = [content_hash(i) for b in data.batches(splits.train) for i in b.images.cpu()]
    found = bank.variants(config.bank_plan, kinds, splits.train.shape, hashes)
    if not len(found.images):
        raise RunError(f"{config.label}: none of the generated images can be used.")
    edits = Edits(*(x.to(device) for x in (found.images, found.start, found.count)))
    train, meta = (replace(s, edits=edits) for s in (splits.train, splits.meta))
    seconds = bank.cost(config.bank_plan, kinds)
    return replace(splits, train=train, meta=meta), {p: s / 3600 for p, s in seconds.items()}


class Accuracy(NamedTuple):
    mean_accuracy: float
    class_accuracy: list[float]


@torch.no_grad()
def evaluate(
    method: Method, learner: Learner, split: AnySplit | None, state: nn.Module
) -> Accuracy:
    """Share of images that are classified correctly, over all images and per class."""
    assert split is not None
    learner.model.eval()
    right = torch.cat(
        [
            method.predict(learner, as_float(b.images), state).argmax(1) == b.labels
            for b in data.batches(split)
        ]
    ).float()
    learner.model.train()
    sums = torch.bincount(split.labels, weights=right)
    counts = torch.bincount(split.labels)
    return Accuracy(float(right.mean()), (sums / counts.clamp_min(1)).tolist())


@torch.no_grad()
def probe(method: Method, state: nn.Module, pool: AnySplit) -> tuple[Strength, Tensor]:
    """Delivered strength, and the images (PROBE, C, H, W) that it was measured on.

    On the same images with the same noise for every method and epoch, from a stream of its own.
    """
    first = torch.arange(min(PROBE, len(pool)), device=pool.labels.device)
    images = as_float(pool.take(first).load().images)
    strength = Strength(images)
    out = method.augment(state, images, stream(0, "probe", images.device), strength)
    return strength, out


def strip(images: Tensor) -> bytes:
    """Images (n, C, H, W) in [0, 1] side by side, as PNG."""
    png = io.BytesIO()
    grid = make_grid(images.cpu(), nrow=len(images), padding=1)
    to_pil_image(grid.clamp(0, 1)).save(png, "PNG")
    return png.getvalue()


def pictured_epochs(epochs: int) -> set[int]:
    return {round(1 + i * (epochs - 1) / (PICTURED_EPOCHS - 1)) for i in range(PICTURED_EPOCHS)}


def seed_of(seed: int, name: str) -> int:
    """A seed for one purpose, so that a method that draws more noise does not reorder the data."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7])


def stream(seed: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed_of(seed, name))


def roles(
    method: Method, training: Training, labels: Tensor, seed: int, epoch: int
) -> tuple[Tensor, Tensor]:
    """Indices of the pool in the (train, meta) role, as the method's protocol deals them."""
    if not method.uses_meta:
        return deal(len(labels), 0.0, seed, epoch)
    if method.meta_fraction is None:
        return deal(len(labels), training.meta_fraction, seed, epoch)
    return deal_by_class(labels.cpu(), method.meta_fraction, seed, epoch)


def deal(n: int, meta_fraction: float, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    """Indices of the pool in the (train, meta) role this epoch; disjoint, together all of it."""
    order = torch.randperm(n, generator=stream(seed, f"roles/{epoch}"))
    count = round(n * meta_fraction)
    return order[count:], order[:count]


def deal_by_class(
    labels: Tensor, meta_fraction: float, seed: int, epoch: int
) -> tuple[Tensor, Tensor]:
    """The same within every class: of two images one each; a single image has both roles."""
    order = torch.randperm(len(labels), generator=stream(seed, f"roles/{epoch}"))
    train, meta = [], []
    for members in data.by_class(labels, order):
        count = int(len(members) * meta_fraction)
        train.append(members[count:])
        meta.append(members[:count] if count else members)
    return torch.cat(train), torch.cat(meta)


def balanced(split: AnySplit, index: Tensor, order: torch.Generator) -> Callable[[int], Split]:
    """A callable that hands out so many of these images, all classes with the same probability."""
    labels = split.labels.cpu()[index]
    weights = 1 / torch.bincount(labels)[labels].double()

    def draw(n: int) -> Tensor:
        return index[torch.multinomial(weights, n, replacement=True, generator=order)]

    return data.draws(split, draw)


def shuffled(split: AnySplit, index: Tensor, order: torch.Generator) -> Callable[[int], Split]:
    """A callable that hands out so many of these images, in a new random order each time round."""
    queue = index[:0]

    def draw(n: int) -> Tensor:
        nonlocal queue
        while len(queue) < n:
            queue = torch.cat([queue, index[torch.randperm(len(index), generator=order)]])
        head, queue = queue[:n], queue[n:]
        return head

    return data.draws(split, draw)


def used(config: Run, learner: Learner, epochs: int) -> Run:
    """The run as the optimiser that trained would describe it; its key must be the one asked for.

    A scheduler's settings that never reach the trainer are a known way to compare nothing.
    """
    return config.model_copy(update={"train": learner.used.model_copy(update={"epochs": epochs})})
