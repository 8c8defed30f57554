"""Read this first: one run, from images to rows. It never names a method.

The shared loop is the experimental control. All methods of a study see the same images in the same
order, start from the same weights (per seed), take the same number of steps of the same optimiser
on the same schedule, and are timed by the same meter; they differ in `method.step` alone.
"""

import contextlib
import hashlib
import io
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import make_grid

from autoaug_ray import data, models
from autoaug_ray.config import Run
from autoaug_ray.data import AnySplit, Edits, Split, Splits
from autoaug_ray.errors import RunError
from autoaug_ray.evaluation import Accuracy, evaluate
from autoaug_ray.generate.plan import content_hash
from autoaug_ray.generate.settings import Drawn
from autoaug_ray.learner import Learner
from autoaug_ray.maths.allocator import keep_memory
from autoaug_ray.maths.strength import Strength
from autoaug_ray.maths.workers import ALONE, Workers
from autoaug_ray.methods.base import Method, Task, as_float
from autoaug_ray.settings.training import Training
from autoaug_ray.store.meter import TRAINING, Meter, device_name
from autoaug_ray.store.work import EpochWork, epoch_work

PROBE = 256
"""Training images used to measure strength."""
PICTURES = 8
"""How many of them are stored as pictures."""
PICTURED_EPOCHS = 6
"""Epochs pictured, at most, evenly spaced."""
WARM_UP_SHARE = 0.01
"""Steps of a warm-up, at most, as a share of the run's."""
WARM: set[Any] = set()
"""The kinds of steps for which this process is warm."""

keep_memory()  # as this is imported: before Ray starts the thread in which it trains


class Epoch(NamedTuple):
    row: dict[str, Any]
    """The columns that `store.folder.ROW` describes."""
    snapshot: Callable[[], dict[str, Any]]
    """All that the next epoch depends on: `run(..., resume=snapshot())` goes on from here."""


class EditBank(Protocol):
    """Where generated images come from; `autoaug_ray.generate.bank.Bank` is the one."""

    def variants(
        self, plan_key: str, drawn: Drawn, shape: tuple[int, int, int], hashes: Sequence[str],
        labels: Tensor,
    ) -> Edits: ...  # fmt: skip

    def cost(self, plan_key: str, drawn: Drawn) -> Mapping[str, float]: ...

    def work(self, plan_key: str, drawn: Drawn) -> Mapping[str, float]: ...


def run(
    config: Run,
    meter: Meter | None = None,
    resume: Mapping[str, Any] | None = None,
    bank: EditBank | None = None,
    workers: Workers = ALONE,
) -> Iterator[Epoch]:
    """Train as `config` says and yield after every epoch. Whoever iterates decides what is kept.

    A search run never reads the test set; a final run reads it once, after its last epoch. `bank`
    holds the generated images, if the method mixes any. Each of several `workers` calls this and
    gets the same epochs. Raises UserError for data that cannot be used and RunError for a run that
    must not go on.
    """
    meter = meter or Meter()
    data_used = load_data(config, meter.device, bank)
    with meter.phase("warm_up"):
        warm_up(config, meter.device, data_used)
    setup = prepare(config, meter.device, data_used, workers)
    method, learner, state = setup.method, setup.learner, setup.state
    epochs_done = 0 if resume is None else restore(setup, resume)

    for epoch in range(epochs_done + 1, config.train.epochs + 1):
        batches, next_meta = epoch_batches(setup, epoch)
        log, work = learn(setup, epoch, batches, next_meta, meter)
        if setup.is_last(epoch) and method.searches_in_own_run:
            with meter.phase("search"):
                begin = meter.work_clock.mark()
                method.finish(learner, next_meta, state)
                (after,) = meter.between([begin, meter.work_clock.mark()])
            work = work._replace(after=after)
        with meter.phase("eval"):
            learner.check_alive(probed(setup.splits.train))
            log |= method.end_epoch(state)
            measures = measure(setup, epoch)
        row = row_of(setup, epoch, log, work, measures, meter)
        yield Epoch(row, partial(snapshot, setup, epoch))


class DataUsed(NamedTuple):
    """The images of a run, and what the generated ones among them cost."""

    splits: Splits
    bank_hours: Mapping[str, float]
    """Device-hours billed for the generated images, by phase; empty if the method mixes none."""
    bank_work: Mapping[str, float]
    """Device-seconds of the work to make them, by phase."""


@dataclass(frozen=True)
class Setup:
    """What a run trains, and on what: complete before its first step."""

    config: Run
    data_used: DataUsed
    task: Task
    learner: Learner
    state: Any
    """The method's own, as its `init` made it."""
    steps: int
    """Steps of an epoch."""

    @property
    def method(self) -> Method:
        return self.config.method

    @property
    def splits(self) -> Splits:
        return self.data_used.splits

    def is_last(self, epoch: int) -> bool:
        """Whether the run ends with this epoch, counted from 1."""
        return epoch == self.config.train.epochs


def load_data(config: Run, device: torch.device, bank: EditBank | None) -> DataUsed:
    """The images of the run, with the generated ones beside them if its method mixes any."""
    splits = data.load(
        config.dataset,
        val_fraction=None if config.phase == "final" else config.val_fraction,
        device=device,
        seed=config.seed,
    )
    return with_edits(splits, config, bank) if config.method.kinds else DataUsed(splits, {}, {})


def with_edits(splits: Splits, config: Run, bank: EditBank | None) -> DataUsed:
    """`splits` whose train and meta images have the edits beside them that the method may draw."""
    if bank is None or config.bank_plan is None:
        raise RunError(f"{config.label}: generated images are needed, but no bank was given.")
    plan, labels = config.bank_plan, splits.train.labels
    counts = torch.bincount(labels, minlength=len(splits.classes)).tolist()
    drawn = config.method.drawn(counts)
    hashes = [content_hash(i) for b in data.batches(splits.train) for i in b.images.cpu()]
    variants = bank.variants(plan, drawn, splits.train.shape, hashes, labels)
    if any(drawn.values()) and not len(variants.images):
        raise RunError(f"{config.label}: none of the generated images can be used.")
    edits = Edits(*(x.to(labels.device) for x in (variants.images, variants.start, variants.count)))
    train, meta = (replace(s, edits=edits) for s in (splits.train, splits.meta))
    hours = {phase: seconds / 3600 for phase, seconds in bank.cost(plan, drawn).items()}
    return DataUsed(replace(splits, train=train, meta=meta), hours, bank.work(plan, drawn))


def prepare(
    config: Run, device: torch.device, data_used: DataUsed, workers: Workers = ALONE
) -> Setup:
    """Build the classifier, its optimiser and the method's state."""
    method: Method = config.method
    training, splits = config.train, data_used.splits
    pool, classes = splits.train, len(splits.classes)
    class_counts = torch.bincount(pool.labels, minlength=classes).tolist()
    mean, std = data.channel_statistics(pool)
    seed = seed_of(config.seed, "init")
    model = models.build(config.model, classes, mean, std, seed=seed).to(device)
    steps = training.steps_per_epoch(len(pool))
    noise = stream(config.seed, "augment", device)
    total = steps * training.epochs
    learner = Learner(model, training, total_steps=total, noise=noise, workers=workers)
    task = Task(*pool.shape, tuple(class_counts), tuple(mean.tolist()))
    state = method.start(task, seed_of(config.seed, "augmenter"), device)
    return Setup(config, data_used, task, learner, state, steps)


def warm_up(config: Run, device: torch.device, data_used: DataUsed) -> None:
    """Take a few steps on throw-away copies, once for each kind of step in a process.

    The first steps of a process build thread pools, choose kernels and fill caches. What they cost
    depends on which run happens to be a process's first, so no run is charged for it. The copies
    have random streams of their own, and the global one is put back: no row depends on this.
    """
    kind = (config.method.name, config.model, config.train.batch_size, data_used.splits.train.shape)
    if kind in WARM:
        return
    WARM.add(kind)
    devices = [device] if device.type == "cuda" else []
    # A run that must not go on is told of by its own steps.
    with torch.random.fork_rng(devices=devices), contextlib.suppress(RunError):
        setup = prepare(config, device, data_used)
        most = math.ceil(WARM_UP_SHARE * setup.learner.total_steps)
        steps = min(max(2, config.method.steps_per_round), most)
        learn(replace(setup, steps=steps), 1, *epoch_batches(setup, 1), Meter(device=device))


def snapshot(setup: Setup, epoch: int) -> dict[str, Any]:
    """All that the epochs after this one depend on."""
    return {
        "epoch": epoch,
        "shape": setup.task.plain(),
        "learner": setup.learner.state_dict(),
        "state": dict(setup.state.state_dict()),
    }


def restore(setup: Setup, saved: Mapping[str, Any]) -> int:
    """Put a snapshot's weights, optimisers and random streams in place; returns its epoch."""
    setup.learner.load_state_dict(saved["learner"])
    setup.state.load_state_dict(saved["state"])
    return int(saved["epoch"])


def epoch_batches(
    setup: Setup, epoch: int
) -> tuple[Callable[[int], Split], Callable[[int], Split]]:
    """Callables for the images of the train and of the meta role of this epoch, as dealt for it."""
    method, splits, seed = setup.method, setup.splits, setup.config.seed
    deal_number = epoch if method.resplits_each_epoch else 1
    train_index, meta_index = roles(
        method, setup.config.train, splits.train.labels, seed, deal_number, splits.groups
    )
    order = epoch if method.reshuffles_each_epoch else 1
    cycle = balanced if method.sampler == "balanced" else shuffled
    return (
        cycle(splits.train, train_index, stream(seed, f"order/{order}")),
        cycle(splits.meta, meta_index, stream(seed, f"meta/{order}")),
    )


def learn(
    setup: Setup,
    epoch: int,
    batches: Callable[[int], Split],
    next_meta: Callable[[int], Split],
    meter: Meter,
) -> tuple[dict[str, float], EpochWork]:
    """The steps of one epoch. Returns the mean over its steps of everything the method logs, and
    what the steps were as work.

    Raises RunError if the training loss is not finite.
    """
    config, learner = setup.config, setup.learner
    totals: defaultdict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=meter.device))
    counts: defaultdict[str, int] = defaultdict(int)
    logged: list[str] = []
    learner.model.train()
    with meter.phase(config.phase):
        marks = [meter.work_clock.mark()]
        for _ in range(setup.steps):
            learner.begin_step()
            batch = batches(config.train.batch_size)
            logs = setup.method.step(learner, batch, next_meta, setup.state)
            learner.end_step()
            for name, value in logs.items():
                totals[name] += value
                counts[name] += 1
            logged.append(", ".join(sorted(logs)))
            marks.append(meter.work_clock.mark())
        learner.share_statistics()
        work = epoch_work(logged, meter.between(marks))
    log = {name: float(totals[name]) / counts[name] for name in totals}
    if not math.isfinite(log["train_loss"]):
        raise RunError(
            f"{config.label}: train_loss became {log['train_loss']} in epoch {epoch} "
            f"(steps {learner.steps_done - setup.steps + 1} to {learner.steps_done}); "
            f"lower train.lr ({config.train.lr}) or the strength of the augmentation."
        )
    return log, work


class Measures(NamedTuple):
    """What is measured after an epoch, without any effect on the next one."""

    val: Accuracy | None
    """None in a final run, whose val images train."""
    test: Accuracy | None
    """None but after the last epoch of a final run."""
    strength: Strength
    pictures: Tensor | None
    """Augmented images (PICTURES, C, H, W) in [0, 1]; None for an epoch that is not pictured."""


def measure(setup: Setup, epoch: int) -> Measures:
    """Accuracy and delivered strength. This alone reads test, once: a final run's last epoch."""
    splits, method, learner, state = setup.splits, setup.method, setup.learner, setup.state
    final = setup.config.phase == "final"
    val = evaluate(method, learner, splits.val, state) if splits.val else None
    read_test = final and setup.is_last(epoch)
    test = evaluate(method, learner, splits.test, state) if read_test else None
    strength, augmented = probe(method, state, splits.train)
    pictured = final and epoch in pictured_epochs(setup.config.train.epochs)
    return Measures(val, test, strength, augmented[:PICTURES] if pictured else None)


@torch.no_grad()
def probe(method: Method, state: nn.Module, pool: AnySplit) -> tuple[Strength, Tensor]:
    """Delivered strength, and the augmented images (at most PROBE, C, H, W) that show it.

    Every method is measured in every epoch on the same images with the same noise, which comes from
    a stream of its own.
    """
    images = probed(pool)
    strength = Strength(images)
    augmented = method.augment(state, images, stream(0, "probe", images.device), strength)
    return strength, augmented


def probed(pool: AnySplit) -> Tensor:
    """The first of the training images, at most PROBE, (n, C, H, W) in [0, 1]."""
    first = torch.arange(min(PROBE, len(pool)), device=pool.labels.device)
    return as_float(pool.take(first).load().images)


def row_of(
    setup: Setup,
    epoch: int,
    log: Mapping[str, float],
    work: EpochWork,
    measures: Measures,
    meter: Meter,
) -> dict[str, Any]:
    """The row of one epoch; `store.folder.ROW` says what its columns mean."""
    config, method, state = setup.config, setup.method, setup.state
    epochs, last = config.train.epochs, setup.is_last(epoch)
    _, test, strength, pictures = measures
    class_counts = list(setup.task.class_counts)
    hours = meter.device_hours()
    alpha, edits = method.alpha(state), setup.splits.train.edits
    found = method.found_hyperparameters(state) if last and method.searches_in_own_run else None
    return {
        "run_key": config.key,
        "label": config.label,
        "method": method.name,
        "phase": config.phase,
        "seed": config.seed,
        "index": config.index,
        "used_key": used(config, setup.learner, epoch if last else epochs).key,
        "settings": config.model_dump_json(),
        "epoch": epoch,
        "epochs": epochs,
        "train_loss": log["train_loss"],
        "val_accuracy": None if measures.val is None else float(measures.val.mean_accuracy),
        "test_accuracy": None if test is None else float(test.mean_accuracy),
        "test_top5": None if test is None else test.top5,
        "test_right": None if test is None else test.right,
        "class_accuracy": None if test is None else test.class_accuracy,
        "class_counts": class_counts,
        "imbalance_nominal": config.dataset.imbalance and config.dataset.imbalance.factor,
        "imbalance_effective": min(class_counts) / max(class_counts),
        "kinds": list(method.kinds),
        "alpha": None if alpha is None else alpha.tolist(),
        "found": found and json.dumps(found),
        "bank_plan": config.bank_plan,
        "generated": 0 if edits is None else len(edits.images),
        "bank_hours": dict(setup.data_used.bank_hours),
        "bank_work": dict(setup.data_used.bank_work),
        "displacement": float(strength.displacement().mean()),
        "color_change": float(strength.color_change().mean()),
        "log": {name: value for name, value in log.items() if name != "train_loss"},
        "samples": None if pictures is None else strip(pictures),
        "device": device_name(meter.device),
        "share": meter.share,
        "threads": torch.get_num_threads(),
        "channels_last": channels_last(setup.learner.model),
        "attempt": meter.attempt,
        "clock": meter.work_clock.name,
        "step_work": work.steps,
        "work": work.total + work.after,
        "work_after": work.after,
        "device_hours": sum(hours.values()),
        "device_hours_training": sum(hours[phase] for phase in TRAINING),
        "finished": last,
    }


def channels_last(model: nn.Module) -> bool:
    """Whether the weights of the model's convolutions lie in memory with the channels last."""
    kernels = [p for p in model.parameters() if p.dim() == 4 and p.shape[1] > 1]
    return any(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)


def strip(images: Tensor) -> bytes:
    """Images (n, C, H, W) in [0, 1] side by side, as PNG."""
    png = io.BytesIO()
    grid = make_grid(images.cpu(), nrow=len(images), padding=1)
    to_pil_image(grid.clamp(0, 1)).save(png, "PNG")
    return png.getvalue()


def pictured_epochs(epochs: int) -> set[int]:
    """The epochs, counted from 1, of a run of so many whose row has pictures."""
    return {round(1 + i * (epochs - 1) / (PICTURED_EPOCHS - 1)) for i in range(PICTURED_EPOCHS)}


def seed_of(seed: int, name: str) -> int:
    """A seed for one purpose, so that a method that draws more noise does not reorder the data."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7])


def stream(seed: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """The random numbers of one purpose."""
    return torch.Generator(device).manual_seed(seed_of(seed, name))


def roles(
    method: Method,
    training: Training,
    labels: Tensor,
    seed: int,
    epoch: int,
    groups: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Indices of the pool in the (train, meta) role, as the method's protocol deals them.

    `labels` and `groups` (n,) are those of the pool; `epoch` numbers the deal.
    """
    if not method.uses_meta:
        return deal(len(labels), 0.0, seed, epoch)
    if groups is not None:
        share = method.meta_fraction or training.meta_fraction
        by_class = method.meta_fraction is not None
        drawn_by = seed_of(seed, f"roles/{epoch}")
        return data.apart(labels.cpu(), groups, share, seed=drawn_by, every_class=by_class)
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
    """`deal` within every class: of two images, each role gets one; a single image has both."""
    order = torch.randperm(len(labels), generator=stream(seed, f"roles/{epoch}"))
    train, meta = [], []
    for members in data.by_class(labels, order):
        count = int(len(members) * meta_fraction)
        train.append(members[count:])
        meta.append(members[:count] if count else members)
    return torch.cat(train), torch.cat(meta)


def balanced(split: AnySplit, index: Tensor, order: torch.Generator) -> Callable[[int], Split]:
    """A callable n -> n of the images at `index`, all classes with the same probability."""
    labels = split.labels.cpu()[index]
    weights = 1 / torch.bincount(labels)[labels].double()

    def draw(n: int) -> Tensor:
        return index[torch.multinomial(weights, n, replacement=True, generator=order)]

    return data.draws(split, draw)


def shuffled(split: AnySplit, index: Tensor, order: torch.Generator) -> Callable[[int], Split]:
    """A callable n -> n of the images at `index`, in a new random order each time round."""
    queue = index[:0]

    def draw(n: int) -> Tensor:
        nonlocal queue
        while len(queue) < n:
            queue = torch.cat([queue, index[torch.randperm(len(index), generator=order)]])
        head, queue = queue[:n], queue[n:]
        return head

    return data.draws(split, draw)


def used(config: Run, learner: Learner, epochs: int) -> Run:
    """The run as the optimiser that trained would describe it; its key must be that of `config`.

    They differ if a scheduler's settings never reached the trainer, whose trials are then alike.
    """
    return config.model_copy(update={"train": learner.used.model_copy(update={"epochs": epochs})})
