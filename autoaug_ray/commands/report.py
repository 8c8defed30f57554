"""`autoaug-ray report`: what a study's folder says, without training anything.

Writes the local page anew from what is on disk. With --wandb, W&B also gets the trainings that it
lacks, and a report of its own: accuracy against device-hours, the table, curves, settings.
"""

from collections.abc import Sequence

from rich.console import Console

from autoaug_ray.commands import run as cli
from autoaug_ray.config import Study
from autoaug_ray.errors import UserError
from autoaug_ray.report import sentences as report
from autoaug_ray.report import wandb as track
from autoaug_ray.store.folder import Folder
from autoaug_ray.store.places import Place, folders, listed, place


def report_folder(folder: str, *, wandb: bool) -> int:
    """Write the pages of a study's folder anew; the exit status. Raises UserError or RunError."""
    console = cli.new_console()
    root = place(folder)
    cases = cases_of(root)
    page = cli.show(cases, root, console)
    console.print(f"report: {page}", highlight=False, soft_wrap=True)
    if wandb:
        console.print(f"report in W&B: {_publish(cases, console)}", highlight=False)
    return 0


def cases_of(root: Place) -> list[tuple[Study, Folder]]:
    """The study of a folder as it was run, or its cases, by name. Raises UserError."""
    files = listed(root, "study.json")
    files = files or [f for case in folders(root) for f in listed(case, "study.json")]
    if not files:
        raise UserError(
            f"STUDY_FOLDER: {root} holds no study.json; give the folder of one study, as in "
            "runs/quickstart."
        )
    return [(Study.model_validate_json(f.read_bytes()), Folder(f.parent)) for f in files]


def _publish(cases: Sequence[tuple[Study, Folder]], console: Console) -> str:
    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    with track.tracking([folder for _, folder in cases], "online", say, patience=None):
        pass  # nothing is running: what is on disk is all there is
    return track.publish([(study, _text(study, folder)) for study, folder in cases])


def _text(study: Study, folder: Folder) -> str:
    """Headline, table and verdicts, in Markdown."""
    summary = report.summarise(study, folder)
    columns = {
        "label": "method", "accuracy": "accuracy %", "difference": f"above {study.reference}",
        "cost": "cost", "search": "search", "trials": "trials",
    }  # fmt: skip
    table = [columns, dict.fromkeys(columns, "---"), *report.lines(summary)]
    return "\n".join(
        [
            f"**{report.headline(summary)}**",
            "",
            *("|" + "|".join(str(line[key]) for key in columns) + "|" for line in table),
            "",
            f"Cost and search in trainings of {study.reference}.",
            "",
            *(f"- {verdict}" for verdict in report.verdicts(summary, study, folder)),
        ]
    )
