"""A search of proportions, among images of which it is known that they are useless."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Annotated, Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor

from autoaug_ray import config, data, train
from autoaug_ray.bench import DATASET, Outcome
from autoaug_ray.config import Run
from autoaug_ray.data import Edits
from autoaug_ray.generate.plan import content_hash
from autoaug_ray.generate.settings import Drawn, ImageKind

Edit = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""(images, labels, generator) -> edited images."""

SEARCHES: Mapping[str, dict[str, Any]] = {
    "first_order": {"gradient": "first_order"},
    "hypergradient": {"gradient": "hypergradient"},
    "hypergradient, likelihood ratio": {
        "gradient": "hypergradient",
        "estimator": "likelihood_ratio",
    },
}
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
    ) -> Edits:
        assert list(hashes) == self.hashes
        generator = torch.Generator().manual_seed(0)
        images, labels = self.pool.images, self.pool.labels
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


def learned(
    search: Mapping[str, Any], seed: int, *, epochs: int, iters: int, images: int, width: int
) -> tuple[Tensor, Tensor]:
    """The probabilities of the noise and of the sound edits that a search ends with, each (10,)."""
    study = config.study(
        {
            "dataset": {**DATASET.model_dump(exclude_defaults=True), "train_size": images},
            "model": {"width": width},
            "train": {"epochs": epochs, "iters_per_epoch": iters},
            "seeds": [seed],
            "reference": "search",
            "methods": {"search": {"method": "autogenda", **search}},
        },
        name="planted",
    ).model_copy(update={"bank_plans": {"whole": "planted"}})
    run = study.run(study.entries[0], "search", seed=seed, choices={}, whole_pool=True)
    bank = Planted(run, **{kind: noise_for(classes) for kind, classes in SPOILT.items()})
    row = [epoch.row for epoch in train.run(run, bank=bank)][-1]
    by_kind = dict(zip(row["kinds"], torch.tensor(row["alpha"]).T, strict=True))
    spoilt, sound = by_kind["transfer"].clone(), by_kind["local"].clone()
    late = list(SPOILT["local"])
    spoilt[late], sound[late] = by_kind["local"][late], by_kind["transfer"][late]
    return spoilt, sound


def alpha(
    seeds: Annotated[int, "searches of each way"] = 5,
    epochs: Annotated[int, "of a search"] = 12,
    iters: Annotated[int, "steps of an epoch"] = 40,
    images: Annotated[int, "in the pool; half of them explore"] = 800,
    lr: Annotated[float, "of alpha, by Adam"] = 0.1,
) -> Outcome:
    """whether a search turns away from noise among the generated images"""
    figures: dict[str, Any] = {}
    table = Table(
        box=SIMPLE_HEAD, pad_edge=False, caption_justify="left",
        caption="A third each at the start. Noise are the transfer images of five classes and the "
        "local ones of the others; all other edits are the real images. Mean over classes and "
        "seeds; `turned away`: classes (of all seeds) that give noise less than the sound edits; "
        "`taken over`: those that give it more than half.",
    )  # fmt: skip
    table.add_column("search")
    for name in ("noise", "sound edits", "turned away", "taken over"):
        table.add_column(name, justify="right")
    for name, search in SEARCHES.items():
        settings = {**search, "optimiser": "adam", "lr": lr}
        runs = [
            learned(settings, s, epochs=epochs, iters=iters, images=images, width=4)
            for s in range(seeds)
        ]
        spoilt, sound = (torch.stack(part) for part in zip(*runs, strict=True))
        f = figures[name] = {
            "noise": fmean(spoilt.flatten().tolist()),
            "sound": fmean(sound.flatten().tolist()),
            "turned_away": int((spoilt < sound).sum()),
            "taken_over": int((spoilt > 0.5).sum()),
            "classes": spoilt.numel(),
        }
        table.add_row(
            name, f"{f['noise']:.3f}", f"{f['sound']:.3f}",
            f"{f['turned_away']} of {f['classes']}", str(f["taken_over"]),
        )  # fmt: skip
    return Outcome(figures, [table])
