"""Does a horizontal flip alone help on these images? Measured in seconds, before a study is
proposed: a mirrored b is a d, and a policy that flips it is blamed for whatever else it does.

`none` and a flip, and nothing else, train a small network on a part of the pool, paired over seeds
and over the images of the pool that are held out of it. No test image is read.
"""

from typing import Literal, NamedTuple

import torch

from autoaug_ray import config, data, train
from autoaug_ray.config import Study
from autoaug_ray.data import Splits
from autoaug_ray.data.splits import stratified
from autoaug_ray.evaluation import evaluate
from autoaug_ray.maths.statistics import Comparison, compare, in_points
from autoaug_ray.methods.stage import Flip
from autoaug_ray.settings.dataset import Dataset
from autoaug_ray.settings.tree import read_yaml
from autoaug_ray.store.meter import Meter

SEEDS = 5
STEPS = 240
SIDE = 32
"""Pixels to which larger images are scaled."""
HELD_OUT = 0.4
"""Share of the pool that tells the two apart; a folder's own val/ takes its place."""
MOST_TRAINED, MOST_HELD_OUT = 800, 800
"""Images that are used at most."""
FEWEST = 40
"""A pool with fewer images is not measured: what is held out of it tells 17 points apart."""
METHODS = "{none: {}, flip: {method: predefined, translate: 0.0}}"
"""What is compared, as a study would say it."""


class Flips(NamedTuple):
    """How the images of a proposed study are mirrored."""

    fixed: Flip
    """The flip of the methods that do not learn theirs."""
    learned: Flip | Literal["learned"]
    """That of the methods that can."""
    why: str
    """A sentence without its full stop."""


def asked_for(flip: Flip) -> Flips:
    """What `--flip` says; whether to flip at all is still learned by what can."""
    return Flips(flip, "none" if flip == "none" else "learned", f"{flip}, as --flip says")


def decide(c: Comparison) -> Flips:
    """What follows from `c`, a flip minus none: nothing flips if it is worse, everything if it is
    better. Between the two, bilevel learns it, and the mean decides for the others.

    By the mean, what is lost if the choice is wrong is the smaller part of the interval.
    """
    if c.difference is None:
        return Flips(
            "none", "learned",
            f"not measured, with fewer than {FEWEST} images to train on: bilevel learns whether to "
            "mirror, the others do not (--flip says otherwise)",
        )  # fmt: skip
    fixed: Flip = "horizontal" if c.difference > 0 else "none"
    learned: Flip | Literal["learned"] = fixed
    side = c.side()
    if side == "better":
        found = "it helps, and whatever augments mirrors"
    elif side == "worse":
        found = "it does harm, and nothing mirrors"
    else:
        learned = "learned"
        others = "mirror" if fixed == "horizontal" else "do not"
        found = f"it may help or harm: bilevel learns whether to, the others {others}, by the mean"
    return Flips(
        fixed, learned,
        f"mirroring alone: {in_points(c.difference, c.half_width)} points (a small network, "
        f"{STEPS} steps, {c.n} seeds, on held-out images of the pool); {found} (--flip says "
        "otherwise)",
    )  # fmt: skip


def measure(dataset: Dataset) -> Comparison:
    """A horizontal flip minus none, with its 95 % interval, on a part of the dataset's pool.

    Raises UserError for data that cannot be used.
    """
    small = dataset.model_copy(
        # Without memory, no image is decoded but those that are used.
        update={"image_size": min(dataset.image_size or SIDE, SIDE), "memory_gb": 0.0}
    )
    splits = data.load(small, val_fraction=HELD_OUT, device="cpu")
    assert splits.val is not None
    if len(splits.train) + len(splits.val) < FEWEST:
        return Comparison("flip", "none", 0, None, None, None)
    trained, held_out = (
        part.take(stratified(part.labels, min(most, len(part)), seed=0)).load()
        for part, most in ((splits.train, MOST_TRAINED), (splits.val, MOST_HELD_OUT))
    )
    # In the place of the test set, of which no image is here.
    splits = Splits(trained, trained, None, held_out, splits.classes)
    tree = {
        "dataset": {"name": "folder"},
        "model": {"name": "cnn", "width": 8},
        "train": {"epochs": 1, "iters_per_epoch": STEPS, "batch_size": 32},
        "methods": read_yaml(METHODS, "methods"),
    }
    study = config.study(tree, name="flips").model_copy(update={"dataset": small})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them wait for each other in a network that small
    try:
        right = {
            label: {seed: _right(study, label, seed, splits) for seed in range(SEEDS)}
            for label in ("none", "flip")
        }
    finally:
        torch.set_num_threads(threads)
    shares = {
        label: {seed: sum(r) / len(r) for seed, r in by_seed.items()}
        for label, by_seed in right.items()
    }
    return compare(
        "flip", shares["flip"], "none", shares["none"], right=(right["flip"], right["none"])
    )


def _right(study: Study, label: str, seed: int, splits: Splits) -> bytes:
    """A byte for each image that is held out: 1 where the trained network is right."""
    device = torch.device("cpu")
    run = study.run(study.entry(label), "search", seed=seed, choices={})
    setup = train.prepare(run, device, train.DataUsed(splits, {}, {}))
    train.learn(setup, 1, *train.epoch_batches(setup, 1), Meter(device=device))
    return evaluate(setup.method, setup.learner, splits.test, setup.state).right
