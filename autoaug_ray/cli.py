"""The command: studies -> one Tune run each -> a report each."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from autoaug_ray import config, data, forecast
from autoaug_ray.config import Study
from autoaug_ray.errors import UserError, exit_status
from autoaug_ray.record import Folder, write_whole

QUICKSTART = Path(__file__).parent.parent / "search_spaces" / "quickstart.yaml"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 all runs finished, 1 some failed, 2 wrong input, 130 interrupted."""
    options = _parser().parse_args(arguments)
    # Where there is no terminal, a log is read later and wider than 80 columns.
    console = Console(width=None if sys.stdout.isatty() else 120)

    def work() -> int:
        studies = [
            config.load(path, changes=options.set, seeds=options.seeds) for path in options.studies
        ]
        failed = [_one(study, options, console) for study in studies]
        return 1 if any(failed) else 0

    return exit_status(work, interrupted="interrupted; the same command with --resume goes on.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run_all.py",
        description="Which augmentation is worth its compute: run studies and report accuracy "
        "against device-hours.",
    )
    parser.add_argument(
        "studies", nargs="*", type=Path, metavar="STUDY.yaml", default=[QUICKSTART],
        help="studies to run, one after the other (default: search_spaces/quickstart.yaml)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), metavar="DIR",
        help="where DIR/<study>/ is written (default: runs)",
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
    return parser


def _one(study: Study, options: argparse.Namespace, console: Console) -> bool:
    """Run one study; whether any of its runs failed."""
    folder = Folder(options.out / study.name)
    if folder.rows.exists() and not (options.resume or options.dry_run):
        raise UserError(
            f"{folder.root} holds rows of an earlier run; add --resume to go on with it, or "
            "--out for another folder."
        )
    # Reads the data before any work starts: what is wrong with it is said now.
    splits = data.load(study.dataset, val_fraction=study.val_fraction, device="cpu")
    console.print(
        f"[bold]{study.name}[/]: {study.dataset.name}, {len(splits.train)} + "
        f"{len(splits.val or ())} pool and {len(splits.test)} test images, "
        f"{len(splits.classes)} classes, classifier {study.model.name}, "
        f"{study.train.epochs} epochs, seeds {list(study.seeds)}",
        highlight=False,
    )
    if options.dry_run:
        console.print(_dry_run(study))
        return False

    from autoaug_ray import report
    from autoaug_ray.progress import Progress
    from autoaug_ray.study import execute, start_ray

    write_whole(folder.root / "study.json", study.model_dump_json(indent=1).encode())
    start_ray()
    plan = execute(study, folder, Progress(console))
    page = report.write(study, folder, splits.classes)
    summary = report.summarise(study, folder)
    console.print(report.table(summary))
    console.print(report.headline(summary), style="bold", highlight=False)
    for line in report.verdicts(summary, study, folder):
        console.print(line, highlight=False)
    for done in plan.done:
        if done.outcome == "failed":
            console.print(
                f"failed: {done.run.label} ({done.run.phase}, seed {done.run.seed}): {done.error}",
                style="red", highlight=False,
            )  # fmt: skip
    console.print(f"report: {page}", highlight=False, soft_wrap=True)
    return any(done.outcome == "failed" for done in plan.done)


def _dry_run(study: Study) -> Table:
    forecasts = forecast.forecast(study, torch.device("cpu"))
    table = Table(title="forecast; device-hours on this machine's CPU, from a few timed steps")
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
