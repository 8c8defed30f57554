"""A search of proportions, among images of which it is known that they are useless."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Annotated, Any, NamedTuple

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor

from autoaug_ray import config, data, train
from autoaug_ray.bench import DATASET, Outcome
from autoaug_ray.config import Run
from autoaug_ray.data import Edits
from autoaug_ray.errors import UserError
from autoaug_ray.generate.plan import content_hash
from autoaug_ray.generate.settings import Drawn, ImageKind

Edit = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""(images, labels, generator) -> edited images."""


class Search(NamedTuple):
    """A way to search, and how long it trains."""

    settings: Mapping[str, Any]
    """Hyperparameters of `autogenda`."""
    epochs: int
    iters: int
    """Steps of an epoch."""
    batch: int
    """Images of a step, of each half of the pool."""


OURS = {"gradient": "hypergradient", "optimiser": "adam", "lr": 0.05}
ALIGNED = {"gradient": "alignment", "optimiser": "adam", "lr": 0.15, "every": 4}
SEARCHES: Mapping[str, Search] = {
    # Section 4.1: 50 epochs at a batch of 32, which are 10,000 steps in DAFusion's code.
    "published": Search(
        {"gradient": "first_order", "optimiser": "sgd", "lr": 1e-3}, epochs=50, iters=200, batch=32
    ),
    "ours": Search(OURS, epochs=12, iters=40, batch=64),
    "likelihood_ratio": Search(
        {**OURS, "estimator": "likelihood_ratio"}, epochs=12, iters=40, batch=64
    ),
    "alignment": Search(ALIGNED, epochs=12, iters=40, batch=64),
    "online": Search({**ALIGNED, "learn": "online"}, epochs=12, iters=40, batch=64),
    "off": Search({**OURS, "learn": "off"}, epochs=12, iters=40, batch=64),
}
"""The published search (section 3.3), the hypergradient of the studies, and its other estimator;
the same to first order; that in the training which it is for; and equal parts, whose step is a
plain one."""
SPOILT: Mapping[ImageKind, Sequence[int]] = {"transfer": range(5), "local": range(5, 10)}
"""Classes whose images of a kind are noise; the other edits are the images themselves."""


class Planted:
    """A bank of known edits, for the pool of one run; it needs no generative model."""

    PER_SOURCE = 2

    def __init__(self, run: Run, **edits: Edit) -> None:
        """`edits` are those of each kind; edits of other kinds are the images as they are."""
        held_out = None if run.phase == "final" else run.val_fraction
        splits = data.load(run.dataset, val_fraction=held_out, device="cpu", seed=run.seed)
        self.pool, self.edits = splits.train.load(), edits
        self.hashes = [content_hash(image) for image in self.pool.images]

    def variants(
        self,
        plan_key: str,
        drawn: Drawn,
        shape: tuple[int, int, int],
        hashes: Sequence[str],
        labels: Tensor,
    ) -> Edits:
        assert list(hashes) == self.hashes
        generator = torch.Generator().manual_seed(0)
        images = self.pool.images
        edited = [
            self.edits[kind](images, labels, generator) if kind in self.edits else images
            for kind in drawn
            for _ in range(self.PER_SOURCE)
        ]
        start = self.PER_SOURCE * torch.arange(len(images) * len(drawn))
        start = start.view(len(images), len(drawn))
        count = torch.full_like(start, self.PER_SOURCE)
        return Edits(torch.stack(edited, dim=1).flatten(0, 1), start, count)

    def cost(self, plan_key: str, drawn: Drawn) -> dict[str, float]:
        return {"caption": 1.0, "invert": 0.0, "generate": 2.0 * len(drawn)}

    work = cost


def noise_for(classes: Sequence[int]) -> Edit:
    """An edit that is uniform noise for these classes."""

    def edit(images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randint(0, 256, images.shape, generator=generator, dtype=torch.uint8)
        spoilt = torch.isin(labels, torch.tensor(list(classes)))[:, None, None, None]
        return torch.where(spoilt, noise, images)

    return edit


class Shares(NamedTuple):
    """The probabilities that a search ends with, each (10,), by class."""

    noise: Tensor
    sound: Tensor
    """The share of the edits that are the images themselves."""
    identity: Tensor
    """The share of the images as they are."""


def learned(search: Search, seed: int, *, images: int, width: int) -> tuple[Shares, float]:
    """What a search ends with on a pool of so many images, by a classifier of this width, and the
    device-milliseconds that a step of it takes."""
    study = config.study(
        {
            "dataset": {**DATASET.model_dump(exclude_defaults=True), "train_size": images},
            "model": {"width": width},
            "train": {
                "epochs": search.epochs,
                "iters_per_epoch": search.iters,
                "batch_size": search.batch,
            },
            "seeds": [seed],
            "reference": "search",
            "methods": {"search": {"method": "autogenda", **search.settings}},
        },
        name="planted",
    ).model_copy(update={"bank_plans": {"whole": "planted"}})
    run = study.run(study.entries[0], "search", seed=seed, choices={}, whole_pool=True)
    bank = Planted(run, **{kind: noise_for(classes) for kind, classes in SPOILT.items()})
    rows = [epoch.row for epoch in train.run(run, bank=bank)]
    row, work = rows[-1], sum(epoch["work"] for epoch in rows)
    by_kind = dict(zip(row["kinds"], torch.tensor(row["alpha"]).T, strict=True))
    noise, sound = by_kind["transfer"].clone(), by_kind["local"].clone()
    late = list(SPOILT["local"])
    noise[late], sound[late] = by_kind["local"][late], by_kind["transfer"][late]
    milliseconds = 1000 * work / (search.epochs * search.iters)
    return Shares(noise, sound, by_kind["identity"]), milliseconds


def asked(
    search: str,
    optimiser: str | None,
    lr: str | None,
    epochs: int | None,
    iters: int | None,
    batch: int | None,
) -> list[tuple[str, Search]]:
    """Name and settings of every search that the options ask for. Raises UserError."""
    names = [name.strip() for name in search.split(",")]
    if unknown := [name for name in names if name not in SEARCHES]:
        raise UserError(
            f"--search {unknown[0]!r} is unknown; known: {', '.join(SEARCHES)} (commas between)."
        )
    if optimiser not in (None, "sgd", "adam"):
        raise UserError(f"--optimiser must be sgd or adam, got {optimiser!r}.")
    try:
        rates = [float(rate) for rate in lr.split(",")] if lr is not None else None
        if rates and not all(0 < rate <= 100 for rate in rates):
            raise ValueError
    except ValueError:
        raise UserError(
            f"--lr must be numbers above 0 and at most 100, with commas between, got {lr!r}."
        ) from None
    out = []
    for name in names:
        own = SEARCHES[name]
        for rate in rates or [own.settings["lr"]]:
            chosen = {"optimiser": optimiser or own.settings["optimiser"], "lr": rate}
            length = (epochs or own.epochs, iters or own.iters, batch or own.batch)
            out.append((name, Search({**own.settings, **chosen}, *length)))
    return out


def alpha(
    search: Annotated[str, f"ways, with commas between: {', '.join(SEARCHES)}"] = "published,ours",
    seeds: Annotated[int, "searches of each way"] = 5,
    optimiser: Annotated[str | None, "of alpha, sgd or adam; default: each way's own"] = None,
    lr: Annotated[str | None, "of alpha, commas between; default: each way's own"] = None,
    epochs: Annotated[int | None, "of a search; default: each way's own"] = None,
    iters: Annotated[int | None, "steps of an epoch; default: each way's own"] = None,
    batch: Annotated[int | None, "images of a step; default: each way's own"] = None,
    images: Annotated[int, "in the pool; half of them explore"] = 800,
) -> Outcome:
    """whether a search turns away from noise among the generated images"""
    rows: list[dict[str, Any]] = []
    table = Table(
        box=SIMPLE_HEAD, pad_edge=False, caption_justify="left",
        caption="A third each at the start. Noise are the transfer images of five classes and the "
        "local ones of the others; all other edits are the real images. Mean over classes and "
        "seeds; `turned away`: classes (of all seeds) that give noise less than the sound edits; "
        "`taken over`: those that give it more than half.",
    )  # fmt: skip
    for name in ("search", "optimiser"):
        table.add_column(name)
    shares = ("noise", "sound edits", "identity", "turned away", "taken over")
    for name in ("lr", "steps", "batch", "ms a step", *shares):
        table.add_column(name, justify="right")
    for name, one in asked(search, optimiser, lr, epochs, iters, batch):
        found = [learned(one, seed, images=images, width=4) for seed in range(seeds)]
        ends, times = zip(*found, strict=True)
        noise, sound, identity = (torch.stack(part) for part in zip(*ends, strict=True))
        row = {
            "search": name, **one.settings, "steps": one.epochs * one.iters, "batch": one.batch,
            "noise": fmean(noise.flatten().tolist()), "sound": fmean(sound.flatten().tolist()),
            "identity": fmean(identity.flatten().tolist()),
            "ms_per_step": fmean(times),
            "turned_away": int((noise < sound).sum()), "taken_over": int((noise > 0.5).sum()),
            "classes": noise.numel(),
            "by_seed": [{k: v.tolist() for k, v in end._asdict().items()} for end in ends],
        }  # fmt: skip
        rows.append(row)
        table.add_row(
            name, row["optimiser"], f"{row['lr']:g}", f"{row['steps']:,}", str(row["batch"]),
            f"{row['ms_per_step']:.1f}",
            f"{row['noise']:.3f}", f"{row['sound']:.3f}", f"{row['identity']:.3f}",
            f"{row['turned_away']} of {row['classes']}", str(row["taken_over"]),
        )  # fmt: skip
    return Outcome({"rows": rows}, [table])
