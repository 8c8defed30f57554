"""`autoaug-ray run`: studies -> one Tune run each -> a report each."""

import contextlib
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console

from autoaug_ray import data, models
from autoaug_ray.commands import transfer
from autoaug_ray.commands.calibrate import (
    calibrate_before_runs,
    forecast_lines,
    forecast_table,
    print_calibrations,
)
from autoaug_ray.commands.console import new_console
from autoaug_ray.config import Study
from autoaug_ray.errors import UserError
from autoaug_ray.generate import weights
from autoaug_ray.maths.statistics import resolution
from autoaug_ray.report.terminal import Columns
from autoaug_ray.schedule.bank_for_study import (
    fill_bank,
    forecast_bank,
    kinds_of,
    own_images,
    write_faults,
    write_sheet,
)
from autoaug_ray.schedule.calibration_task import calibrate_on_workers
from autoaug_ray.schedule.queue import Done, Wanted, is_searched
from autoaug_ray.store import bill, driver, places
from autoaug_ray.store.bill import Bill
from autoaug_ray.store.calibration import Calibration
from autoaug_ray.store.files import write_whole
from autoaug_ray.store.folder import Folder
from autoaug_ray.store.places import Place, place

if TYPE_CHECKING:
    from autoaug_ray.report.results import StudyResults
    from autoaug_ray.report.track import Target


OUT = "runs"
"""Where results go without --out."""


def run_studies(
    studies: Sequence[Sequence[Study]],
    *,
    out: str | None,
    bank: str | None,
    resume: bool,
    dry_run: bool,
    wandb: str | None,
    named: bool,
    track: str | None = None,
) -> int:
    """Run each study, in all its cases, and report it; the exit status.

    `out` None: runs/, on one machine. `bank` None: a folder of `out`. `track` and `wandb`: see
    `report.track.target`. `named`: whether the cases were asked for by name, so that none may be
    left out.
    """
    from autoaug_ray.report.track import target
    from autoaug_ray.schedule import cluster

    to = target(track, wandb)
    root = place(out or OUT)
    kept = place(bank) if bank else root / "bank"
    places.check(root)
    console = new_console()
    say = partial(console.print, soft_wrap=True)
    failed = False
    to_come: dict[transfer.Case, Study] = {}
    for cases in studies:
        to_come |= {(study.name, study.case): study for study in cases}
        transfer.check(cases, _folders(cases, root), to_come)
    for cases in studies:
        for folder in _folders(cases, root):
            if folder.rows.exists() and not (resume or dry_run):
                raise UserError(
                    f"{folder.root} holds rows of an earlier run; add --resume (resume=True in "
                    "Python) to go on with it, or --out for another folder."
                )
        ready, left_out = introduce_all(cases, console, named=named)
        if dry_run:
            _dry_run(ready, console)
        else:
            if out is None:
                cluster.join(say=say)
                cluster.check_alone(OUT)
            failed |= carry_out(ready, root, kept, console, to)
        failed |= bool(left_out)
        say_left_out(left_out, console)
    return int(failed)


def smoke_studies(studies: Sequence[Sequence[Study]]) -> int:
    """Run each study once, small and in a temporary folder; the exit status."""
    from autoaug_ray.commands import smoke

    console = new_console()

    def execute(cases: Sequence[Study], out: Path, console: Console) -> bool:
        for study in cases:
            introduce(study, console)
        return carry_out(cases, out, out / "bank", console, calibrated=False)

    with tempfile.TemporaryDirectory(prefix="smoke-") as folder:
        outcomes = smoke.run(studies, Path(folder), execute, console)
    return 1 if any(outcome.fault for outcome in outcomes) else 0


def calibrate_studies(studies: Sequence[Sequence[Study]], *, named: bool) -> int:
    """Print what a step of every entry takes, in all cases of each study; the exit status.

    `named`: as for `run_studies`.
    """
    console = new_console()
    found = [introduce_all(cases, console, named=named) for cases in studies]
    return max(max(print_calibrations(ready, console), bool(left)) for ready, left in found)


def _dry_run(studies: Sequence[Study], console: Console) -> None:
    """Print what the cases of a study will cost."""
    outcomes = calibrate_on_workers(studies)
    for study, outcome in zip(studies, outcomes, strict=True):
        if isinstance(outcome, Calibration):
            console.print(forecast_table(study, outcome))
    for line in forecast_lines(studies, outcomes):
        console.print(line, soft_wrap=True)
    if any(kinds_of(study) for study in studies):
        console.print(_dry_run_bank(studies))


def _folders(studies: Sequence[Study], out: Place) -> list[Folder]:
    roots = [out / study.name for study in studies]
    return [Folder(r / s.case if s.case else r) for r, s in zip(roots, studies, strict=True)]


def _bills(study: Study, folder: Folder) -> Place:
    """The folder of the bill: all cases of a study share one, as they share the machines."""
    return (folder.root.parent if study.case else folder.root) / "bill"


def carry_out(
    studies: Sequence[Study],
    out: Place,
    bank: Place,
    console: Console,
    to: "Target | None" = None,
    *,
    calibrated: bool = True,
) -> bool:
    """Run the cases of a study, and report them; returns whether any of its runs failed."""
    from autoaug_ray.report.results import collect_cases, studies_in

    folders, root = _folders(studies, out), out / studies[0].name
    studies, failed = run_cases(studies, folders, bank, console, to, calibrated=calibrated)
    results = collect_cases(zip(studies, folders, strict=True))
    page = show(results, root, console)
    say_failed(failed, console)
    console.print(f"report: {page}", soft_wrap=True)
    if studies[0].case and len(studies_in(root)) > len(studies):
        console.print(
            f"{root} holds other cases, too; autoaug-ray report {root} writes the page of all.",
            soft_wrap=True,
        )
    return bool(failed)


def show(results: "Sequence[StudyResults]", root: Place, console: Console) -> Place:
    """Write the pages of a study's cases below `root` and print what they say; the first page."""
    from autoaug_ray.report import budgets, cases, claims, published, sentences, verdict, write

    def tell(lines: Sequence[str]) -> None:
        for line in lines:
            console.print(line)

    for one in results:
        page, study = write.write(one), one.study
        if study.case:
            console.rule(f"{study.name}, {study.case}")
        console.print(sentences.table(one))
        tell(sentences.verdicts(one))
        if bought := budgets.lines(one):
            console.print(budgets.table(one, bought))
            tell(budgets.verdicts(bought))
        if study.published is not None:
            if study.published.figures:
                console.print(published.table(one, study.published))
            tell(published.verdicts(one.entries, study.published))
            if not study.case:
                tell(claims.verdicts(results))
        say_verdict(one, console)
    if len(results) > 1:
        found = cases.gather(results)
        page = write.write_cases(found, root)
        console.rule(f"{results[0].study.name}, all cases")
        console.print(cases.table(found))
        tell(cases.verdicts(found))
        if any(one.study.published for one in results):
            if published.grid(results):
                console.print(published.table_over_cases(results))
            tell(published.verdicts_over_cases(results))
            tell(claims.verdicts(results))
        for line in verdict.over_cases(results):
            console.print(line, style="bold")
    return page


def say_verdict(results: "StudyResults", console: Console) -> None:
    """Print what to use, as the page has it."""
    from autoaug_ray.report.verdict import verdict

    found = verdict(results)
    console.print()
    console.print(found.headline, style="bold")
    if found.change:
        console.print(f"What would change this answer: {found.change}")
    for note in found.notes:
        console.print(note)
    if found.load:
        console.print(found.load, soft_wrap=True)


def run_cases(
    studies: Sequence[Study],
    folders: Sequence[Folder],
    bank: Place,
    console: Console,
    to: "Target | None" = None,
    *,
    calibrated: bool = True,
    wanted: Wanted | None = None,
) -> tuple[list[Study], list[Done]]:
    """Run what the folders lack; returns the studies as they were run, and the runs that failed.

    `to`: where the trainings are tracked. `calibrated`: whether a few steps of every entry are
    measured first, where runs are left to do. `wanted`: which seeds entries get, by what was found
    so far; None: as the studies say.
    """
    from autoaug_ray.report.elimination import seeds_wanted
    from autoaug_ray.report.track import tracking
    from autoaug_ray.schedule import cluster
    from autoaug_ray.schedule.progress import Progress
    from autoaug_ray.schedule.tune import check_resources, execute

    say = partial(console.print, soft_wrap=True)
    cluster.join(say=say)
    for study in studies:
        if kinds_of(study):  # images that may take hours, before a training asks for anything
            check_resources(study)
    wanted, ended = wanted or seeds_wanted, False
    with contextlib.ExitStack() as held:
        for folder in folders:
            held.enter_context(driver.alone(folder.root, say))
        for study, folder in zip(studies, folders, strict=True):
            classes = data.source_of(study.dataset).classes
            folder.note_data(data.fingerprint(study.dataset), classes)
        held.enter_context(Bill(_bills(studies[0], folders[0]), cluster.look))
        while not ended:
            studies = _with_images(studies, list(map(wanted, studies, folders)), bank, say)
            for study, folder in zip(studies, folders, strict=True):
                write_whole(folder.root / "study.json", study.model_dump_json(indent=1).encode())
                write_sheet(study, folder, bank)
                write_faults(study, folder, bank)
            if calibrated:
                calibrate_before_runs(studies, folders, say)
            with tracking(folders, to, say):
                cases = list(zip(studies, folders, strict=True))
                queues = execute(cases, Progress(console), bank, _with_plans(wanted))
            ended = all(queue.seeds == wanted(queue.study, queue.folder) for queue in queues)
    ledgers = [folder.ledger for folder in folders] + [bank / "ledger"]
    if paid := bill.read(_bills(studies[0], folders[0]), ledgers):
        if studies[0].case:  # one bill for all of them, which is no case's own
            say(bill.sentence(paid))
        else:
            write_whole(folders[0].bill, bill.sentence(paid).encode())
    return list(studies), [
        done for queue in queues for done in queue.done if done.outcome == "failed"
    ]


def _with_images(
    studies: Sequence[Study],
    asked: Sequence[Mapping[str, Sequence[int]]],
    bank: Place,
    say: Callable[[str], None],
) -> list[Study]:
    """The studies with the images that they mix made, for the seeds that are asked for."""
    now = []
    for study, seeds in zip(studies, asked, strict=True):
        some = set(chain(*seeds.values()))
        now.append(study.model_copy(update={"seeds": tuple(s for s in study.seeds if s in some)}))
    plans = [study.bank_plans for study in fill_bank(now, bank, say)]
    return [
        study.model_copy(update={"bank_plans": study.bank_plans | more})
        for study, more in zip(studies, plans, strict=True)
    ]


def _with_plans(wanted: Wanted) -> Wanted:
    """What is wanted, but for seeds of which no images have been made: they come in the next round.

    Studies whose seeds all train on one pool, or mix no images, have one round.
    """

    def made(study: Study, folder: Folder) -> Mapping[str, Sequence[int]]:
        seeds = wanted(study, folder)
        if not study.bank_plans:
            return seeds
        there = {s for s in study.seeds if study.pool_name(s, None) in study.bank_plans}
        return {label: tuple(s for s in own if s in there) for label, own in seeds.items()}

    return made


def say_failed(failed: Sequence[Done], console: Console) -> None:
    for done in failed:
        console.print(
            f"failed: {done.run.label} ({done.run.phase}, seed {done.run.seed}): {done.error}",
            style="red",
        )  # fmt: skip


def say_left_out(sentences: Sequence[str], console: Console) -> None:
    for sentence in sentences:
        console.print(sentence, style="red", soft_wrap=True)


def introduce_all(
    cases: Sequence[Study], console: Console, *, named: bool
) -> tuple[list[Study], list[str]]:
    """Introduce every case; returns those that can run, and a sentence on each that cannot.

    One missing dataset does not stop the others. Raises UserError if no case can run or, where
    cases were `named`, if one of them cannot.
    """
    ready, left_out = [], []
    for study in cases:
        try:
            introduce(study, console)
        except UserError as error:
            if named or len(cases) == 1:
                raise
            left_out.append(f"{study.name}, {study.case} is left out: {error}")
        else:
            ready.append(study)
    if not ready:
        raise UserError(f"no case of {cases[0].name} can run: {' '.join(left_out)}")
    say_left_out(left_out, console)
    return ready, left_out


def introduce(study: Study, console: Console) -> None:
    """Print what a study is, read its data and weights, and let images through the classifier: what
    is wrong with them is said before any work starts."""
    splits = data.load(
        study.dataset, val_fraction=study.val_fraction, device="cpu", seed=study.seeds[0]
    )
    counts = torch.bincount(splits.train.labels, minlength=len(splits.classes)).tolist()
    _check_validation(study, splits, min(counts))
    tail = f" of {max(counts)} to {min(counts)} training images"
    what = "test images"
    if study.dataset.closed_test:
        what = "images in place of the test set, which stays closed"
    tests = f"{len(splits.test)} {what} ({tell_apart(len(splits.test))})"
    console.print(
        f"{study.name}{f', {study.case}' if study.case else ''}: "
        f"{study.dataset.name}, "
        f"{len(splits.train)} + {len(splits.val or ())} pool and {tests}, "
        f"{len(splits.classes)} classes{tail if min(counts) < max(counts) else ''}, classifier "
        f"{study.model.name}, {study.train.epochs} epochs, seeds {list(study.seeds)}",
    )
    if study.eliminate is not None:
        *early, last = study.looks
        console.print(
            f"Seeds go to the entries that still matter, after {' and '.join(map(str, early))} of "
            f"{last}: forecasts are those of all seeds, at most.",
        )
    _check_images(study, splits.train.shape)
    if kinds := kinds_of(study):
        weights.resolve(study.generate.model, "stable-diffusion")
        if {"local", "transfer"} & set(kinds):
            weights.resolve(study.generate.captioner, "blip")
    for note in data.source_of(study.dataset).notes:
        console.print(note)
    if images := own_images(study):
        fewest, most = min(images.counts), max(images.counts)
        number = f"{len(images.labels)} images of one's own, {fewest} to {most} of a class"
        console.print(f"{images.folder}: {number}")
        for line in images.faults():
            console.print(line)
    study.train.check(len(splits.train))
    layer_wise = study.train.lr_decay < 1
    models.check(study.model, len(splits.classes), splits.train.shape, layer_wise=layer_wise)


def _check_validation(study: Study, splits: data.Splits, least: int) -> None:
    """Raise UserError if a search would have nothing to choose by, or its trainings lack a class.

    `least`: training images of the smallest class.
    """
    searched = [entry.label for entry in study.entries if is_searched(entry)]
    if not searched:
        return
    if splits.val and least:
        return
    lack = "a class without training images" if splits.val else "no image for validation"
    raise UserError(
        f"val_fraction: {study.val_fraction:g} leaves {lack}, of {len(splits.train)} + "
        f"{len(splits.val or ())} images in {len(splits.classes)} classes; the search of "
        f"methods.{searched[0]} needs both."
    )


def tell_apart(images: int) -> str:
    """What difference between two trainings so many test images can show."""
    return f"they tell about {100 * resolution(images):.2g} points apart"


def _check_images(study: Study, shape: tuple[int, int, int]) -> None:
    """Raise UserError for an entry that does not suit images of this shape, (channels, H, W)."""
    for entry in study.entries:
        for choices in entry.extremes():
            try:
                entry.method(choices).check_images(*shape)
            except ValueError as error:
                raise UserError(f"methods.{entry.label}.{error}.") from None


def _dry_run_bank(studies: Sequence[Study]) -> Columns:
    captions, forecasts = forecast_bank(studies)
    rows = []
    for device, f in forecasts.items():
        figures = (f.tflop_per_image, f.eflop, f.device_hours, f.gigabytes)
        shown = ["-" if math.isnan(x) else f"{x:.3g}" for x in figures]
        rows.append([device, str(f.images), *shown])
    return Columns(
        ["device", "images", "TFLOP per image", "EFLOP", "device-hours", "GB on disk"],
        rows,
        title="generated images, at most; device-hours at the published share of each device's "
        f"peak; {captions} captions come first, at a small part of the cost",
    )
