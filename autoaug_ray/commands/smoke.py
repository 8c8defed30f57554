"""Any study end to end in a minute, on stand-ins for its data: does everything in it run?

What a smoke run keeps: the format of the data, all entries with their searches, controls and
schedules, captions and edits of the generated images, the report. What it shrinks: the images,
their number, the trainings (a step or two), the classifier, and the generator, which becomes the
one that ships with the package. Accuracies of a smoke run mean nothing.
"""

import io
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from autoaug_ray import data
from autoaug_ray.commands.console import Literal
from autoaug_ray.config import Entry, Study
from autoaug_ray.data import standins
from autoaug_ray.errors import RunError, UserError
from autoaug_ray.generate.bank_files import folder_name
from autoaug_ray.generate.settings import Generation, Workers
from autoaug_ray.own_code import is_own
from autoaug_ray.settings.classifier import Classifier
from autoaug_ray.settings.dataset import OPTIONS, Dataset
from autoaug_ray.settings.ranges import Range, Search

SIDE = 32
"""Side of the images in pixels, where a dataset does not fix it."""
SMALL = {
    "fashion-mnist-mini", "fashion-mnist", "cifar10", "cifar100", "npz", "tiny-imagenet",
}  # fmt: skip
"""Datasets whose images are small unless image_size is set."""
PER_CLASS = 6
"""Number of images of each class that a stand-in trains on."""


def smaller(study: Study, place: Path) -> Study:
    """A small version of the study, on a stand-in for its data that is written to `place`."""
    dataset = _dataset(study.dataset, place)
    return study.model_copy(
        update={
            "dataset": dataset,
            "model": Classifier(width=2, crop=study.model.crop and SIDE - 4),
            "train": study.train.model_copy(
                update={
                    "epochs": 1, "iters_per_epoch": 2, "batch_size": 8, "precision": "fp32",
                    "compile": False, "accumulate": min(2, study.train.accumulate),
                    "recompute": False, "hypergradient_precision": "fp32",
                    "ema": study.train.ema and 0.5,
                }
            ),
            "val_fraction": 0.25,
            "seeds": study.seeds[:1],
            "resources": type(study.resources)(),
            "generate": _generation(study, dataset, place),
            "workers": Workers(),
            "entries": tuple(_entry(entry) for entry in study.entries),
        }
    )  # fmt: skip


def _dataset(dataset: Dataset, place: Path) -> Dataset:
    if is_own(dataset.name):
        return dataset  # in a format that only its owner knows
    changes: dict[str, Any] = {"test_size": None, "memory_gb": 4.0, "download": False}
    if dataset.name == "fashion-mnist-mini":
        changes |= {"test_size": 40, "train_size": None if dataset.imbalance else 80}
    else:
        root = place / dataset.name
        standins.write(dataset.name, root, per_class=PER_CLASS)
        changes |= {"root": str(root), "train_size": None}
    if dataset.image_size or dataset.name not in SMALL:
        changes["image_size"] = SIDE
    if "min_class_count" in OPTIONS[dataset.name]:
        changes["min_class_count"] = 2
    if dataset.imbalance:
        changes["imbalance"] = dataset.imbalance.model_copy(update={"largest": None})
        if dataset.name == "fashion-mnist-mini":
            changes["imbalance"] = dataset.imbalance.model_copy(update={"largest": PER_CLASS})
    if dataset.shots:
        changes["shots"] = min(dataset.shots, 2)
    return dataset.model_copy(update=changes)


def _generation(study: Study, dataset: Dataset, place: Path) -> Generation:
    """A quick way to generate images; noise, where the study has images of somebody's own."""
    if study.generate.folder is None:
        return Generation(calls=2, per_source=1, per_class=2)
    folder, stream = place / f"own {study.name} {study.case}", np.random.default_rng(0)
    for name in data.source_of(dataset).classes:
        of_class = folder / folder_name(name)
        of_class.mkdir(parents=True)
        for i in range(2):
            noise = stream.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            Image.fromarray(noise).save(of_class / f"{i}.png")
    return Generation(folder=str(folder))


def _entry(entry: Entry) -> Entry:
    """The ends of every grid, one draw of the random ranges, the smallest population."""
    ranges = {
        k: Range(kind=r.kind, values=(r.values[0], r.values[-1])) if r.kind == "grid" else r
        for k, r in entry.ranges.items()
    }
    if len(entry.grid()) > 4:  # all combinations of all ends may be many
        first = {k: r.values[0] for k, r in ranges.items() if r.kind == "grid"}
        last = next(k for k, r in ranges.items() if r.kind == "grid")
        ranges = {
            k: Range(kind=r.kind, values=(first[k],)) if k in first and k != last else r
            for k, r in ranges.items()
        }
    fixed = {**entry.hyperparameters, **entry.first_method.small}
    return entry.model_copy(
        update={
            "ranges": ranges, "hyperparameters": fixed, "resources": None,
            "search": Search(samples=1, scheduler=entry.search.scheduler),
        }
    )  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    study: str
    cases: list[str]
    entries: int
    seconds: float
    fault: str | None


def run(
    several: Sequence[Sequence[Study]],
    place: Path,
    execute: Callable[[Sequence[Study], Path, Console], bool],
    console: Console,
) -> list[Outcome]:
    """Run every study, in one case of each of its datasets and each case with entries of its own.

    `execute(studies, out, console)` runs the cases of a study and says whether any run failed.
    """
    outcomes = []
    for studies in several:
        began, fault, log = time.monotonic(), None, io.StringIO()
        chosen = with_something_new(studies)
        try:
            small = [smaller(study, place / "data") for study in chosen]
            with redirect_stdout(log), redirect_stderr(log):
                failed = execute(small, place / "runs", Literal(file=log, width=120))
            if failed:
                lines = [x for x in log.getvalue().splitlines() if x.startswith("failed")]
                fault = next(iter(lines), "some of its runs failed")
        except (UserError, RunError) as error:
            fault = str(error)
        cases = [study.case or study.dataset.name for study in chosen]
        entries = len({entry.label for study in chosen for entry in study.entries})
        outcome = Outcome(studies[0].name, cases, entries, time.monotonic() - began, fault)
        outcomes.append(outcome)
        word = f"FAILED: {fault}" if fault else "passed"
        console.print(f"{outcome.study}: {word} ({outcome.seconds:.0f} s)", soft_wrap=True)
    console.print(table(outcomes))
    return outcomes


def with_something_new(studies: Sequence[Study]) -> list[Study]:
    """The cases whose dataset, or one of whose entries by label and method, no case before had."""
    chosen, seen = [], set[tuple[str, ...]]()
    for study in studies:
        entries = {(e.label, e.hyperparameters["name"]) for e in study.entries}
        if not {(study.dataset.name,), *entries} <= seen:
            chosen.append(study)
            seen |= {(study.dataset.name,), *entries}
    return chosen


def table(outcomes: Sequence[Outcome]) -> Table:
    failed = sum(o.fault is not None for o in outcomes)
    out = Table(
        title=f"{len(outcomes) - failed} passed, {failed} failed. Stand-in images, a small "
        "classifier, a step or two: does everything run? Accuracies mean nothing.",
        title_justify="left",
    )
    for name in ("study", "on (every dataset and entry once)", "entries", "seconds", ""):
        out.add_column(name, justify="right" if name in ("entries", "seconds") else "left")
    for o in outcomes:
        out.add_row(
            o.study, ", ".join(o.cases), str(o.entries), f"{o.seconds:.0f}",
            Text("FAILED", "red") if o.fault else Text("passed", "green"),
        )  # fmt: skip
    return out
