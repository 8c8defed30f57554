"""The generated images that a study mixes: its pools, and filling a bank with their edits."""

import io
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import product

import torch
from PIL import Image

from autoaug_ray import data
from autoaug_ray.config import Entry, Study
from autoaug_ray.errors import UserError
from autoaug_ray.generate import flops, own
from autoaug_ray.generate.bank import Bank
from autoaug_ray.generate.flops import Forecast
from autoaug_ray.generate.own import OwnImages
from autoaug_ray.generate.plan import Pool, edits_per_source
from autoaug_ray.generate.settings import EDITS, Drawn, Generation, ImageKind
from autoaug_ray.generate.sheet import own_sheet, sheet
from autoaug_ray.schedule.queue import is_searched
from autoaug_ray.store.files import write_whole
from autoaug_ray.store.folder import Folder
from autoaug_ray.store.places import Place

SHOWN = 12
"""Classes on a study's sheet, at most."""


def kinds_of(study: Study) -> tuple[ImageKind, ...]:
    """The kinds of generated images that some entry mixes and that are made here."""
    used = {kind for entry in study.entries for kind in _kinds(entry)}
    return tuple(kind for kind in EDITS if kind in used)


def drawn_of(study: Study, pool_name: str, pool: Pool) -> Drawn:
    """The edits of a pool that some entry may draw: all that has to be made."""
    counts = torch.bincount(pool.labels, minlength=len(pool.classes)).tolist()
    whole = {study.pool_name(seed, None) for seed in study.seeds}
    used: dict[ImageKind, set[int]] = {kind: set() for kind in kinds_of(study)}
    for entry in study.entries:
        if pool_name in whole or is_searched(entry):
            for choices in entry.extremes():
                for kind, classes in entry.method(choices).drawn(counts).items():
                    used[kind] |= set(classes)
    return {kind: sorted(classes) for kind, classes in used.items()}


def pools_of(study: Study) -> dict[str, Pool]:
    """The pools whose images are edited, by `Study.pool_name`; seeds may share one."""
    pools = {}
    for name, (seed, part) in _wanted(study).items() if kinds_of(study) else ():
        splits = data.load(study.dataset, val_fraction=part, device="cpu", seed=seed)
        train = splits.train.load()
        pools[name] = Pool(train.images, train.labels, splits.classes)
    return pools


def _wanted(study: Study) -> dict[str, tuple[int, float | None]]:
    """The pools that entries with generated images train on: `pool_name` -> seed, val_fraction."""
    mixing = [entry for entry in study.entries if _kinds(entry)]
    wanted: dict[str, tuple[int, float | None]] = {}
    for seed in study.seeds if mixing else ():
        wanted.setdefault(study.pool_name(seed, None), (seed, None))
    if any(is_searched(entry) for entry in mixing):
        # Search trials are compared on images that their pool, and so its captions, must lack.
        first = study.seeds[0], study.val_fraction
        wanted[study.pool_name(*first)] = first
    return wanted


def own_images(study: Study) -> OwnImages | None:
    """The images of `generate.folder`; None for a study without one.

    Raises UserError for a folder that cannot be used, or lacks a class of which some entry draws.
    """
    if study.generate.folder is None:
        return None
    images = own.read(study.generate.folder, study.dataset)
    for (seed, part), entry in product(_wanted(study).values(), study.entries):
        splits = data.load(study.dataset, val_fraction=part, device="cpu", seed=seed)
        counts = torch.bincount(splits.train.labels, minlength=len(splits.classes)).tolist()
        for choices in entry.extremes():
            drawn = entry.method(choices).drawn(counts).get("own", ())
            if lacking := [c for c in drawn if not images.counts[c]]:
                raise UserError(
                    f"generate.folder: {images.folder} has no image of class "
                    f"{images.classes[lacking[0]]!r} besides copies of training images, but "
                    f"methods.{entry.label} draws some of it."
                )
    return images


def fill_bank(studies: Sequence[Study], root: Place, watch: Callable[[str], None]) -> list[Study]:
    """Makes what the bank lacks; returns the studies with `bank_plans` filled in.

    Raises UserError or RunError if nothing can be made.
    """
    out = []
    for study in studies:
        if images := own_images(study):
            Bank(root).write_own(images)
            update = {"bank_plans": dict.fromkeys(_wanted(study), images.key)}
            cost = study.generate.for_each(images.found, len(images.labels))
            study = study.model_copy(update=update | {"generate": cost})
        elif pools := pools_of(study):
            from autoaug_ray.schedule.fill_bank import fill

            drawn = [drawn_of(study, name, pool) for name, pool in pools.items()]
            plan_keys = fill(
                Bank(root), list(pools.values()), study.generate, study.workers, drawn, watch
            )
            study = study.model_copy(
                update={"bank_plans": dict(zip(pools, plan_keys, strict=True))}
            )
        out.append(study)
    return out


def forecast_bank(studies: Sequence[Study]) -> tuple[int, dict[str, Forecast]]:
    """The number of captions, and a forecast by device, of the images that the studies need.

    Both are upper limits, since pools that share images share most of their edits. A pipeline whose
    work cannot be counted has figures that are nan, for no device. Nothing is made.
    """
    images: defaultdict[Generation, dict[str, int]] = defaultdict(dict)
    captions: set[tuple[str, str]] = set()
    shape = None
    for study in studies:
        settings, edited = study.generate, images[study.generate]
        for name, pool in pools_of(study).items():
            drawn = drawn_of(study, name, pool)
            channels, height, width = pool.images.shape[1:]
            shape = channels, height, width
            counts = torch.bincount(pool.labels).tolist()
            for image, label in zip(pool.hashes, pool.labels.tolist(), strict=True):
                kinds = sum(label in classes for classes in drawn.values())
                if kinds:
                    most = edits_per_source(counts[label], settings) * kinds
                    edited[image] = max(edited.get(image, 0), most)
            if any(classes for kind, classes in drawn.items() if kind != "fixed"):
                captions.update((settings.captioner, image) for image in pool.hashes)
    by_device: defaultdict[str, list[Forecast]] = defaultdict(list)
    for settings, edited in images.items():
        if not edited:
            continue
        count = sum(edited.values())
        if settings.solver == "own":
            by_device["not counted"].append(Forecast(count, *(math.nan,) * 4))
            continue
        work = flops.of_model(settings)
        for name, device in flops.DEVICES.items():
            by_device[name].append(
                flops.forecast(settings, count, device, sources=len(edited), work=work, shape=shape)
            )
    return len(captions), {name: flops.total(parts) for name, parts in by_device.items()}


def write_faults(study: Study, folder: Folder, root: Place) -> None:
    """Writes bank_faults.txt, a line for each fault, into the study's folder for its report."""
    if images := own_images(study):
        lines = dict.fromkeys(images.faults())
    else:
        keys = study.bank_plans.values()
        lines = dict.fromkeys(line for key in keys for line in Bank(root).faults(key))
    write_whole(folder.bank_faults, "".join(f"{line}\n" for line in lines).encode())


def write_sheet(study: Study, folder: Folder, root: Place) -> None:
    """Writes sheet.png into the study's folder: an image of SHOWN classes each, and its edits."""
    if not study.bank_plans:
        return
    if images := own_images(study):
        pages = [own_sheet(images, label) for label in range(len(images.classes[:SHOWN]))]
    else:
        key, bank = next(iter(study.bank_plans.values())), Bank(root)
        classes = bank.read_plan(key).classes[:SHOWN]
        pages = [sheet(bank, key, name, sources=1) for name in classes]
    size = max(page.width for page in pages), sum(page.height for page in pages)
    out, top = Image.new("RGB", size, "white"), 0
    for page in pages:
        out.paste(page, (0, top))
        top += page.height
    png = io.BytesIO()
    out.save(png, "PNG")
    write_whole(folder.root / "sheet.png", png.getvalue())


def _kinds(entry: Entry) -> tuple[ImageKind, ...]:
    kinds = (kind for choices in entry.extremes() for kind in entry.method(choices).kinds[1:])
    return tuple(dict.fromkeys(kinds))
