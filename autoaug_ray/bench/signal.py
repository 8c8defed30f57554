"""Whether a hypergradient points where it should: its bias and its noise, by the way it is had."""

import copy
import math
from collections.abc import Mapping
from statistics import fmean
from typing import Annotated, Any, NamedTuple

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from autoaug_ray import train
from autoaug_ray.bench import DATASET, Outcome
from autoaug_ray.bench.hypergradient import STILL
from autoaug_ray.config import Run
from autoaug_ray.errors import UserError
from autoaug_ray.maths.augmenter import Group
from autoaug_ray.methods.bilevel import Bilevel
from autoaug_ray.settings.classifier import Classifier
from autoaug_ray.settings.dataset import Shift
from autoaug_ray.settings.training import Training

EPOCHS = 24
"""The length of the trainings from which the frozen classifiers come."""


class Known(NamedTuple):
    """A shift of the images in use, of which an augmenter should learn more than it starts with."""

    shift: Shift
    group: Group
    grows: tuple[str, ...]
    """The parameters whose spread is too small at its start, so that h should be negative."""


KNOWN = {
    "translation": Known(Shift(translate=6), "translation", ("translate_x", "translate_y")),
    "rotation and zoom": Known(
        Shift(rotate=30, zoom=1.4), "similarity", ("rotate", "zoom")
    ),
    "brightness": Known(Shift(brightness=0.9), "color", ("brightness",)),
}  # fmt: skip


def estimators() -> dict[str, dict[str, Any]]:
    """Settings of `bilevel`, by the names of the rows."""
    ways: dict[str, dict[str, Any]] = {
        f"{estimator}, {normalise}": {"estimator": estimator, "normalise": normalise}
        for estimator in ("exact", "alignment")
        for normalise in ("none", "batch", "average")
    }
    for meta_every in (4, 20):
        ways[f"alignment, average, meta_every {meta_every}"] = {
            **ways["alignment, average"], "meta_every": meta_every,
        }  # fmt: skip
    return ways


def checkpoints(known: Known, seed: int, epochs: list[int]) -> dict[int, Mapping[str, Any]]:
    """Snapshots after so many epochs of a training whose augmenter stays at its start."""
    run = _run(known, seed, Bilevel(group=known.group, flip="none", learn="off"))
    saved: dict[int, Mapping[str, Any]] = {}
    for epoch, done in enumerate(train.run(run), 1):
        if epoch in epochs:
            saved[epoch] = copy.deepcopy(done.snapshot())
        if epoch == max(epochs):
            break
    return saved


def _run(known: Known, seed: int, method: Bilevel) -> Run:
    return Run(
        label="bilevel", phase="final", seed=seed, method=method, val_fraction=0.2,
        dataset=DATASET.model_copy(update={"shift": known.shift, "test_size": 100}),
        model=Classifier(name="cnn", width=8), train=Training(epochs=EPOCHS),
    )  # fmt: skip


def signal_of(
    known: Known, seed: int, saved: Mapping[str, Any], settings: Mapping[str, Any], batches: int
) -> dict[str, float]:
    """Mean / sd over batches of h towards the log of a spread, by the parameter's name.

    The classifier is put back to where it was saved before every step; the augmenter stands at its
    start, as it did in that training. What the method averages over steps, it averages all the
    same: the steps of one memory come before the first that counts.
    """
    device = torch.device("cpu")
    method = Bilevel(group=known.group, flip="none", every=1, until=1.0, lr=STILL, **settings)
    run = _run(known, seed, method)
    setup = train.prepare(run, device, train.load_data(run, device, None))
    learner, state = setup.learner, setup.state
    learner.load_state_dict(saved["learner"])
    train_batches, meta_batches = train.epoch_batches(setup, 100 + saved["epoch"])
    learner.model.train()
    size = run.train.batch_size
    before = math.ceil(method.memory)
    for step in range(before + batches):
        if step == before:
            state.new_epoch()
        noise = learner.noise.get_state()
        learner.load_state_dict({**saved["learner"], "noise": noise})
        learner.begin_step()
        method.step(learner, train_batches(size), meta_batches, state)
    at = [name for name, _ in state.named_parameters()].index("augmenter.log_gain")
    mean, square = state.sum[at] / batches, state.sum_of_squares[at] / batches
    ratios = mean / (square - mean.square()).clamp_min(1e-30).sqrt()
    named = zip(state.augmenter.names, ratios.tolist(), strict=True)
    return {name: ratio for name, ratio in named if name in known.grows}


def signal(
    *,
    case: Annotated[str, f"the shift that is known: {', '.join(KNOWN)}"] = "translation",
    seeds: Annotated[int, "trainings whose classifiers are frozen"] = 2,
    batches: Annotated[int, "over which mean and deviation are taken"] = 200,
    epochs: Annotated[str, "after which a classifier is frozen, of 24"] = "1,5,10",
) -> Outcome:
    """Whether hypergradients have the right sign, and how much of one is noise."""
    if case not in KNOWN:
        raise UserError(f"--case must be one of {', '.join(KNOWN)}; got {case!r}.")
    try:
        stops = sorted({int(epoch) for epoch in epochs.split(",")})
    except ValueError:
        stops = []
    if not stops or not 1 <= stops[0] <= stops[-1] <= EPOCHS:
        raise UserError(f"--epochs must be numbers from 1 to {EPOCHS}, as 1,5,10; got {epochs!r}.")
    known = KNOWN[case]
    found: list[dict[str, Any]] = []
    for seed in range(seeds):
        saved = checkpoints(known, seed, stops)
        for epoch in stops:
            for name, settings in estimators().items():
                signals = signal_of(known, seed, saved[epoch], settings, batches)
                found.append({"name": name, "seed": seed, "epoch": epoch, "signal": signals})
    error = 1 / math.sqrt(seeds * batches)
    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title=f"{case}: mean / sd of h towards the log spread of {', '.join(known.grows)}",
        caption=f"Means over the classifiers (cnn, width 8) of {seeds} seeds, frozen after so many "
        f"epochs of {EPOCHS}, on {batches} batches each. Spreads are too small, so h should be "
        f"negative. The standard error of a figure is {error:.2f}.",
    )
    table.add_column("estimator, what is held", no_wrap=True)
    for epoch in stops:
        table.add_column(f"epoch {epoch}", no_wrap=True)
    table.add_column("right sign", justify="right")
    for name in estimators():
        rows = [row for row in found if row["name"] == name]
        cells = [
            " ".join(
                f"{fmean(row['signal'][p] for row in rows if row['epoch'] == epoch):+.2f}"
                for p in known.grows
            )
            for epoch in stops
        ]
        values = [value for row in rows for value in row["signal"].values()]
        table.add_row(name, *cells, f"{sum(v < 0 for v in values)} of {len(values)}")
    figures = {"case": case, "seeds": seeds, "batches": batches, "error": error, "signals": found}
    return Outcome(figures, [table])
