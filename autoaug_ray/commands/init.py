"""`autoaug-ray init`: look at a folder of images and propose a study of it, with reasons."""

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from autoaug_ray import config
from autoaug_ray.commands.budget import as_planned, at_epochs, differences, fit, parse, seconds_of
from autoaug_ray.commands.calibrate import forecast_table
from autoaug_ray.commands.console import new_console
from autoaug_ray.commands.flips import asked_for, decide, measure
from autoaug_ray.commands.pilot_rule import searching
from autoaug_ray.commands.propose import backbones, size_of, study_text
from autoaug_ray.commands.run import tell_apart
from autoaug_ray.config import Study
from autoaug_ray.data import alike, folders, groups
from autoaug_ray.data.inspect import Inspection, Picture, inspect
from autoaug_ray.errors import some
from autoaug_ray.methods.stage import Flip
from autoaug_ray.models.at_hand import first_at_hand
from autoaug_ray.schedule.calibrate import calibrate
from autoaug_ray.schedule.forecast import forecast
from autoaug_ray.settings.classifier import Classifier
from autoaug_ray.store.files import write_whole

TURNS = 3
"""Turns in which the steps of every method are timed: a person waits."""
SHOWN = 20
"""Number of classes that the table lists, the largest first."""
FEW = 5
"""A class with fewer images may have none in the test set."""


def propose_study(
    folder: Path, path: Path, flip: Flip | None, budget: str | None, group_by: str | None = None
) -> int:
    """Describe the images and write a study of them to `path`, with its forecast; the exit status.

    `flip` None: as a few short trainings say. `budget`: the time, as in 30m, that the whole study
    may take on this machine; None: any. Raises UserError, and writes nothing, if it is too short.
    """
    seconds = None if budget is None else parse(budget)
    console = new_console()
    say = console.print
    with console.status(Text(f"reading {folder}")):
        found = inspect(folder)
    gpu, cpus = torch.cuda.is_available(), os.cpu_count() or 1
    draft = partial(study_text, found, gpu=gpu, cpus=cpus, group_by=group_by)
    dataset = _loaded(draft(flips=asked_for("none")), path).dataset
    held_back = folders.test_files(dataset) if found.flat else []
    _describe(found, console, len(held_back), group_by)

    with console.status("looking for trained weights"):
        backbone, why = _backbone(found, gpu)
    say(f"network     {why}", soft_wrap=True)
    with console.status("training a small network with and without a flip"):
        flips = asked_for(flip) if flip else decide(measure(dataset))
    say(f"flip        {flips.why}", soft_wrap=True)
    draft = partial(draft, flips=flips, backbone=backbone)
    study = _loaded(draft(), path)
    with console.status("timing a few steps of every method"):
        calibration = calibrate(study, turns=TURNS)
    if seconds is not None:
        devices = torch.cuda.device_count() if gpu else cpus
        plan = fit(study, calibration, seconds, devices)
        calibration = at_epochs(calibration, plan.epochs / study.train.epochs)
        planned = as_planned(study, plan)
        expected = seconds_of(forecast(planned, calibration), devices)
        for line in differences(study, plan, expected):
            say(f"budget      {line}", soft_wrap=True)
        study, draft = planned, partial(draft, plan=plan)

    write_whole(path, draft().encode())
    say(f"\nwrote {path}: a proposal that says why.")
    if found.flat:
        listed = path.with_suffix(".test_files.txt")
        write_whole(listed, "".join(f"{name}\n" for name in held_back).encode())
        say(f"wrote {listed}: the files of its test set, on which nothing else should train.")
    console.print(forecast_table(study, calibration))
    if searching(study):
        say(f"next: autoaug-ray pilot {path}   a cheap early answer: is a search worth it here?")
    say(
        f"{'     ' if searching(study) else 'next:'} autoaug-ray {path}         "
        f"the whole study -> runs/{path.stem}/report.html",
        soft_wrap=True,
    )
    return 0


def _loaded(text: str, path: Path) -> Study:
    """The study that a text would be in the file `path`, which stays as it is."""
    with TemporaryDirectory() as folder:
        draft = Path(folder) / path.name
        draft.write_text(text)
        (study,) = config.load(draft)
    return study


def _backbone(found: Inspection, gpu: bool) -> tuple[Classifier | None, str]:
    """The trained network that suits the images, if its weights can be had; and a sentence."""
    wanted = backbones(found, gpu=gpu)
    if not wanted:
        return None, "random weights: trained networks have seen no images that small"
    side = int(size_of(found, gpu=gpu, trained=True)[0])
    channels = 1 if found.grey else 3
    backbone, why = first_at_hand(wanted, len(found.classes), (channels, side, side))
    if backbone is None:
        return None, f"random weights, as no trained ones can be had here: {why}"
    return backbone, f"{backbone.name}, with {why}"


def _describe(found: Inspection, console: Console, held_back: int, group_by: str | None) -> None:
    """Print what is in the folder; `held_back`: the test images that are cut from a flat one."""
    say = console.print
    say(
        f"{found.root}: {len(found.pictures)} images of {len(found.classes)} classes in "
        f"{found.where}"
    )
    console.print(_counts(found))
    for line in _facts(found):
        say(line)
    tests = held_back if found.flat else sum(found.counts("test").values())
    say(f"test set    {tests} images ({tell_apart(tests)})")
    for line in _warnings(found):
        say(f"warning: {line}", style="yellow")
    if group_by is not None:
        parts = [[p.path for p in found.pictures if p.part == part] for part in found.parts]
        _, note = groups.of_parts(parts, found.root, group_by)
        say(note)


def _counts(found: Inspection) -> Table:
    parts = [found.counts(part) for part in found.parts]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("class", overflow="fold")
    for part in found.parts:
        table.add_column(part or "images", justify="right")
    for name in list(parts[0])[:SHOWN]:
        table.add_row(name, *(str(counts[name]) for counts in parts))
    if (more := len(found.classes) - SHOWN) > 0:
        rest = list(parts[0])[SHOWN:]
        table.add_row(f"and {more} more", *(str(sum(c[n] for n in rest)) for c in parts))
    return table


def _facts(found: Inspection) -> Iterator[str]:
    by_area = sorted(found.pictures, key=lambda p: p.width * p.height)
    low, high = (f"{p.width} x {p.height}" for p in (by_area[0], by_area[-1]))
    aspects = [p.width / p.height for p in found.pictures]
    width, height = (median(getattr(p, k) for p in found.pictures) for k in ("width", "height"))
    if low == high:
        yield f"size        {low} pixels, all of them"
    else:
        yield (
            f"size        {low} to {high} pixels, median {width:.0f} x {height:.0f}; "
            f"width / height {min(aspects):.2f} to {max(aspects):.2f}"
        )
    grey = sum(p.grey for p in found.pictures)
    colour = len(found.pictures) - grey
    both = f"{colour} in colour, {grey} grey"
    yield f"colour      {both if colour and grey else 'all in colour' if colour else 'all grey'}"
    counts = list(found.counts(found.parts[0]).values())
    yield (
        f"balance     {counts[0]} images in the largest class, {counts[-1]} in the smallest "
        f"({found.imbalance:.1f} : 1)"
    )
    yield f"copies      {len(found.copies) or 'none'} (files of the same bytes as another one)"
    if found.alike is None:
        yield f"alike       not compared, as there are more than {alike.MOST:,} images"
    else:
        yield f"alike       {len(found.alike) or 'none'} (look the same as another one)"
    yield f"unreadable  {len(found.unreadable) or 'none'}"


def _warnings(found: Inspection) -> Iterator[str]:
    if found.unreadable:
        yield f"cannot be read, and will be left out: {some(found.unreadable)}."
    if leaks := [b.path for a, b in found.copies if a.part != b.part]:
        yield (
            "copies of images of an earlier part, which will be recognised rather than "
            f"classified: {some(leaks)}."
        )
    if torn := [b.path for a, b in found.copies if a.label != b.label]:
        yield f"copies of images of another class: {some(torn)}."
    across = [(a, b) for a, b in found.alike or () if a.part != b.part]
    if across:
        yield f"look the same as images of an earlier part: {_pairs(across)}."
    if within := [(a, b) for a, b in found.alike or () if a.part == b.part]:
        yield (
            "look the same as another image, such as the next frame of a video; --group-by keeps "
            f"images that belong together on one side of each split: {_pairs(within)}."
        )
    if dim := [p.path for p in found.pictures if p.dim]:
        yield f"nearly black, as they use few of the values of more than 8 bits: {some(dim)}."
    yield from found.unread
    if found.flat and (few := [c for c, n in found.counts("").items() if n < FEW]):
        yield f"with fewer than {FEW} images a class may have none in the test set: {some(few)}."


def _pairs(same: Sequence[tuple[Picture, Picture]]) -> str:
    return some([f"{b.path} (as {a.path})" for a, b in same])
