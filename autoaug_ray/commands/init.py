"""`autoaug-ray init`: look at a folder of images and propose a study of it, with reasons."""

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import torch
from rich import box
from rich.table import Table

from autoaug_ray import config
from autoaug_ray.commands.calibrate import forecast_table
from autoaug_ray.commands.propose import study_text
from autoaug_ray.commands.run import new_console
from autoaug_ray.data import alike, groups
from autoaug_ray.data.files import some
from autoaug_ray.data.inspect import Inspection, Picture, inspect
from autoaug_ray.methods.stage import Flip
from autoaug_ray.schedule.calibrate import calibrate
from autoaug_ray.store.files import write_whole

SHOWN = 20
"""Number of classes that the table lists, the largest first."""
FEW = 5
"""A class with fewer images may have none in the test set."""


def propose_study(folder: Path, path: Path, flip: Flip, group_by: str | None = None) -> int:
    """Describe the images, write the study to `path`, time its methods; the exit status."""
    console = new_console()
    say = partial(console.print, markup=False)
    with console.status(f"reading {folder}"):
        found = inspect(folder)
    say(
        f"{found.root}: {len(found.pictures)} images of {len(found.classes)} classes in "
        f"{found.where}"
    )
    console.print(_counts(found))
    for line in _facts(found):
        say(line)
    for line in _warnings(found):
        say(f"warning: {line}", style="yellow")
    if group_by is not None:
        parts = [[p.path for p in found.pictures if p.part == part] for part in found.parts]
        _, note = groups.of_parts(parts, found.root, group_by)
        say(note)

    gpu = torch.cuda.is_available()
    text = study_text(found, gpu=gpu, cpus=os.cpu_count() or 1, flip=flip, group_by=group_by)
    write_whole(path, text.encode())
    say(f"\nwrote {path}: a proposal that says why. Timing a few steps of every method ...")
    (study,) = config.load(path)
    console.print(forecast_table(study, calibrate(study)))
    say(
        f"next: autoaug-ray pilot {path}   a cheap early answer: is a search worth it here?\n"
        f"      autoaug-ray {path}         the whole study -> runs/{path.stem}/report.html",
        soft_wrap=True,
    )
    return 0


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
