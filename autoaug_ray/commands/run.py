"""The command: studies -> one Tune run each -> a report each."""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.table import Table

from autoaug_ray import config, data, models
from autoaug_ray.config import Study
from autoaug_ray.errors import UserError, exit_status
from autoaug_ray.report import wandb as track
from autoaug_ray.schedule import forecast
from autoaug_ray.schedule.bank_for_study import (
    fill_bank,
    forecast_bank,
    kinds_of,
    write_faults,
    write_sheet,
)
from autoaug_ray.schedule.queue import Done
from autoaug_ray.store import bill, places
from autoaug_ray.store.bill import Bill
from autoaug_ray.store.folder import Folder, write_whole
from autoaug_ray.store.meter import device_name
from autoaug_ray.store.places import Place, place

if TYPE_CHECKING:
    from autoaug_ray.report.results import StudyResults

COMMANDS = ("bank", "init", "pilot", "report")
"""Words in the place of the first study; the rest of the line is for autoaug_ray.commands.WORD."""
QUICKSTART = Path(__file__).parents[2] / "search_spaces" / "quickstart.yaml"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 all runs finished, 1 some failed, 2 wrong input, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in COMMANDS:
        command: Callable[[Sequence[str]], int] = import_module(
            f"autoaug_ray.commands.{arguments[0]}"
        ).main
        return command(arguments[1:])
    options = _parser().parse_args(arguments)
    console = new_console()

    def work() -> int:
        studies = [_load(path, options) for path in options.studies]
        options.out = place(options.out)
        options.bank = place(options.bank) if options.bank else options.out / "bank"
        places.check(options.out)
        if options.smoke:
            return 1 if _smoke(studies, console) else 0
        failed = [_one(cases, options, console) for cases in studies]
        return 1 if any(failed) else 0

    again = "the same command with --resume goes on."
    return exit_status(work, interrupted=f"interrupted; {again}", again=again)


def new_console() -> Console:
    """Where there is no terminal, a log is read later and wider than 80 columns."""
    return Console(width=None if sys.stdout.isatty() else 120)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run_all.py",
        description="Which augmentation is worth its compute: run studies and report accuracy "
        "against device-hours. Sub-commands, each with a --help of its own: init (a study of a "
        "folder of images), pilot (a cheap early answer), bank (look at generated images), "
        "report (a study's page anew, or in W&B).",
    )
    parser.add_argument(
        "studies", nargs="*", type=Path, metavar="STUDY.yaml", default=[QUICKSTART],
        help="studies to run, one after the other (default: search_spaces/quickstart.yaml)",
    )  # fmt: skip
    parser.add_argument(
        "--out", default="runs", metavar="DIR",
        help="where DIR/<study>/ is written (default: runs)",
    )  # fmt: skip
    parser.add_argument(
        "--storage", dest="out", metavar="URI",
        help="instead of --out: where all machines of a cluster write, s3://bucket/prefix or a "
        "folder that they share",
    )  # fmt: skip
    parser.add_argument(
        "--bank", metavar="DIR",
        help="where generated images are kept, for all studies (default: the --out folder's bank)",
    )  # fmt: skip
    parser.add_argument(
        "--resume", action="store_true",
        help="go on with what DIR holds; finished runs are not run again",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", type=int, metavar="N", help="final trainings per entry, instead of the study's"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="change the study, as in --set train.epochs=5; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--dry-run", action="store_true",
        help="list the runs and forecast their cost from a few timed steps; run nothing",
    )  # fmt: skip
    parser.add_argument(
        "--wandb", choices=track.MODES, default=track.default_mode(),
        help="W&B runs of all trainings: offline files below the study's folder, for wandb sync, "
        "or online, with WANDB_API_KEY (default: WANDB_MODE, or else online if there is a key, "
        "offline if not)",
    )  # fmt: skip
    parser.add_argument(
        "--smoke", action="store_true",
        help="run everything in the studies once, small and on stand-ins for their data, in a "
        "temporary folder: does it run?",
    )  # fmt: skip
    return parser


def _load(path: Path, options: argparse.Namespace) -> list[Study]:
    try:
        return config.load(path, changes=options.set, seeds=options.seeds)
    except UserError as error:
        several = len(options.studies) > 1 and str(path) not in str(error)
        raise UserError(f"{path}: {error}" if several else str(error)) from None


def _smoke(studies: Sequence[Sequence[Study]], console: Console) -> bool:
    """Whether any study failed."""
    from autoaug_ray.commands import smoke

    def execute(cases: Sequence[Study], out: Path, console: Console) -> bool:
        for study in cases:
            introduce(study, console)
        return carry_out(cases, out, out / "bank", console)

    with tempfile.TemporaryDirectory(prefix="smoke-") as place:
        outcomes = smoke.run(studies, Path(place), execute, console)
    return any(outcome.fault for outcome in outcomes)


def _one(studies: Sequence[Study], options: argparse.Namespace, console: Console) -> bool:
    """Run one study, in all its cases; whether any of its runs failed."""
    for folder in _folders(studies, options.out):
        if folder.rows.exists() and not (options.resume or options.dry_run):
            raise UserError(
                f"{folder.root} holds rows of an earlier run; add --resume to go on with it, or "
                "--out for another folder."
            )
    for study in studies:
        introduce(study, console)
    if options.dry_run:
        for study in studies:
            console.print(forecast_table(study, torch.device("cpu")))
        if any(kinds_of(study) for study in studies):
            console.print(_dry_run_bank(studies))
        return False
    return carry_out(studies, options.out, options.bank, console, options.wandb)


def _folders(studies: Sequence[Study], out: Place) -> list[Folder]:
    roots = [out / study.name for study in studies]
    return [Folder(r / s.case if s.case else r) for r, s in zip(roots, studies, strict=True)]


def _bills(study: Study, folder: Folder) -> Place:
    """One machine, and one bill, for all cases of a study."""
    return (folder.root.parent if study.case else folder.root) / "bill"


def carry_out(
    studies: Sequence[Study], out: Place, bank: Place, console: Console, wandb: str = "off"
) -> bool:
    """Run the cases of a study, and report them; whether any of its runs failed."""
    from autoaug_ray.report.results import collect_cases

    folders = _folders(studies, out)
    studies, failed = run(studies, folders, bank, console, wandb)
    results = collect_cases(zip(studies, folders, strict=True))
    page = show(results, out / studies[0].name, console)
    say_failed(failed, console)
    console.print(f"report: {page}", highlight=False, soft_wrap=True)
    return bool(failed)


def show(results: "Sequence[StudyResults]", root: Place, console: Console) -> Place:
    """Write the pages of a study's cases below `root` and print what they say; the first page."""
    from autoaug_ray.report import cases, published, sentences, write

    def tell(lines: Sequence[str]) -> None:
        for line in lines:
            console.print(line, highlight=False, markup=False)

    for one in results:
        page, study = write.write(one), one.study
        if study.case:
            console.rule(f"{study.name}, {study.case}")
        console.print(sentences.table(one))
        console.print(sentences.headline(one), style="bold", highlight=False)
        tell(sentences.verdicts(one))
        if study.published is not None:
            if study.published.figures:
                console.print(published.table(one, study.published))
            tell(published.verdicts(one.entries, study.published))
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
    return page


def run(
    studies: Sequence[Study],
    folders: Sequence[Folder],
    bank: Place,
    console: Console,
    wandb: str = "off",
) -> tuple[list[Study], list[Done]]:
    """Run what the folders lack; the studies as they were run, and the runs that failed."""
    from autoaug_ray.schedule import cluster
    from autoaug_ray.schedule.progress import Progress
    from autoaug_ray.schedule.tune import execute

    cluster.join()
    say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
    with Bill(_bills(studies[0], folders[0]), cluster.look):
        studies = fill_bank(studies, bank, say)
        for study, folder in zip(studies, folders, strict=True):
            write_whole(folder.root / "study.json", study.model_dump_json(indent=1).encode())
            write_sheet(study, folder, bank)
            write_faults(study, folder, bank)
        with track.tracking(folders, wandb, say):
            queues = execute(list(zip(studies, folders, strict=True)), Progress(console), bank)
    ledgers = [folder.ledger for folder in folders] + [bank / "ledger"]
    if paid := bill.read(_bills(studies[0], folders[0]), ledgers):
        if studies[0].case:  # one bill for all of them, which is no case's own
            say(bill.sentence(paid))
        else:
            write_whole(folders[0].bill, bill.sentence(paid).encode())
    return studies, [done for queue in queues for done in queue.done if done.outcome == "failed"]


def say_failed(failed: Sequence[Done], console: Console) -> None:
    for done in failed:
        console.print(
            f"failed: {done.run.label} ({done.run.phase}, seed {done.run.seed}): {done.error}",
            style="red", highlight=False,
        )  # fmt: skip


def introduce(study: Study, console: Console) -> None:
    """Reads data and weights before any work starts: what is wrong with them is said now."""
    splits = data.load(
        study.dataset, val_fraction=study.val_fraction, device="cpu", seed=study.seeds[0]
    )
    counts = torch.bincount(splits.train.labels).tolist()
    tail = f" of {max(counts)} to {min(counts)} training images"
    tests = f"{len(splits.test)} test images"
    if study.dataset.closed_test:
        tests = f"{len(splits.test)} images in place of the test set, which stays closed"
    console.print(
        f"[bold]{study.name}[/]{f', {study.case}' if study.case else ''}: {study.dataset.name}, "
        f"{len(splits.train)} + {len(splits.val or ())} pool and {tests}, "
        f"{len(splits.classes)} classes{tail if min(counts) < max(counts) else ''}, classifier "
        f"{study.model.name}, {study.train.epochs} epochs, seeds {list(study.seeds)}",
        highlight=False,
    )
    for note in data.source_of(study.dataset).notes:
        console.print(note, highlight=False, markup=False)
    if study.model.weights is not None:
        models.build(study.model, len(splits.classes), torch.zeros(1), torch.ones(1), seed=0)


def forecast_table(study: Study, device: torch.device) -> Table:
    forecasts = forecast.forecast(study, device)
    table = Table(
        title=f"forecast; device-hours on this machine's {device_name(device)}, from a few timed "
        "steps",
    )
    table.add_column("entry")
    for name in ("search runs", "final runs", "ms/step", "min per run", "device-hours"):
        table.add_column(name, justify="right")
    for f in forecasts:
        table.add_row(
            f.label, str(f.search_runs), str(f.final_runs), f"{f.step_seconds * 1e3:.1f}",
            f"{f.run_seconds / 60:.2f}", f"{f.device_hours:.4f}",
        )  # fmt: skip
    total = sum(f.device_hours for f in forecasts)
    runs = sum(f.search_runs + f.final_runs for f in forecasts)
    table.add_section()
    table.add_row("all", "", str(runs), "", "", f"{total:.4f}")
    return table


def _dry_run_bank(studies: Sequence[Study]) -> Table:
    captions, forecasts = forecast_bank(studies)
    table = Table(
        title="generated images, at most; device-hours at the published share of each device's "
        f"peak; {captions} captions come first, at a small part of the cost",
    )
    for name in ("device", "images", "TFLOP per image", "EFLOP", "device-hours", "GB on disk"):
        table.add_column(name, justify="left" if name == "device" else "right")
    for device, f in forecasts.items():
        table.add_row(
            device, str(f.images), f"{f.tflop_per_image:.3g}", f"{f.eflop:.3g}",
            f"{f.device_hours:.3g}", f"{f.gigabytes:.3g}",
        )  # fmt: skip
    return table
