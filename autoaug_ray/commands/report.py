"""`autoaug-ray report`: what a study's folder says, without training anything.

Writes the local page anew from what is on disk. With --wandb, W&B also gets the trainings that it
lacks, and a report of its own: accuracy against device-hours, the table, curves, settings.
"""

import argparse
from collections.abc import Sequence

from rich.console import Console

from autoaug_ray.commands import run
from autoaug_ray.errors import UserError, exit_status
from autoaug_ray.report import sentences, wandb
from autoaug_ray.report.results import StudyResults, collect_cases, studies_in
from autoaug_ray.store.folder import Folder
from autoaug_ray.store.places import place


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 W&B did not take the report, 2 wrong input, 130 interrupted."""
    options = _parser().parse_args(arguments)
    console = run.new_console()

    def work() -> int:
        root = place(options.folder)
        try:
            cases = studies_in(root)
        except UserError as error:
            raise UserError(f"STUDY_FOLDER: {error}") from None
        results = collect_cases(cases)
        page = run.show(results, root, console)
        console.print(f"report: {page}", highlight=False, soft_wrap=True)
        if options.wandb:
            console.print(f"report in W&B: {_publish(results, console)}", highlight=False)
        return 0

    return exit_status(work, interrupted="interrupted; nothing was trained or changed.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="autoaug-ray report", description=__doc__)
    parser.add_argument(
        "folder",
        metavar="STUDY_FOLDER",
        help="of one study, as in runs/quickstart, or s3://bucket/prefix/quickstart",
    )
    parser.add_argument(
        "--wandb", action="store_true",
        help="also create a W&B report, with the key in WANDB_API_KEY, in the project "
        "WANDB_PROJECT (default: autoaug_ray); needs pip install 'autoaug_ray[wandb-report]'",
    )  # fmt: skip
    return parser


def _publish(results: Sequence[StudyResults], console: Console) -> str:
    """Send what W&B lacks and make a report there; its address."""

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    with wandb.tracking([Folder(one.root) for one in results], "online", say, patience=None):
        pass  # nothing is running: what is on disk is all there is
    return wandb.publish([(one.study, sentences.markdown(one)) for one in results])
