"""`autoaug-ray report`: what a study's folder says, without training anything.

Writes the local page anew from what is on disk. With --wandb, W&B also gets the trainings that it
lacks, and a report of its own: accuracy against device-hours, the table, curves, settings.
"""

import json
from collections.abc import Sequence
from functools import partial

from rich.console import Console

from autoaug_ray import data
from autoaug_ray.commands import run
from autoaug_ray.commands.console import new_console
from autoaug_ray.errors import UserError
from autoaug_ray.report import sentences, verdict, wandb
from autoaug_ray.report.results import StudyResults, collect_cases, studies_in
from autoaug_ray.report.track import Target, tracking
from autoaug_ray.store.folder import Folder
from autoaug_ray.store.places import place


def report_folder(folder: str, *, publish: bool) -> int:
    """Write the pages of a study's folder anew; the exit status. Raises UserError or RunError."""
    console = new_console()
    root, results = place(folder), _results(folder)
    page = run.show(results, root, console)
    console.print(f"report: {page}", soft_wrap=True)
    if publish:
        console.print(f"report in W&B: {_publish(results, console)}")
    return 0


def print_results(folder: str) -> int:
    """Print what a study's folder says as JSON: a list with an object for each case; the exit
    status. Raises UserError."""
    out = []
    for one in _results(folder):
        found = verdict.verdict(one)
        out.append(
            {
                "study": one.study.name, "case": one.study.case, "answer": found.answer,
                "use": found.use and found.use.label, "headline": found.headline,
                "notes": found.notes, "load": found.load,
                "entries": [entry.row() for entry in one.entries],
            }
        )  # fmt: skip
    print(json.dumps(out, indent=1, allow_nan=False))
    return 0


def _results(folder: str) -> list[StudyResults]:
    try:
        cases = studies_in(place(folder))
    except UserError as error:
        raise UserError(f"STUDY_FOLDER: {error}") from None
    for study, kept in cases:
        if not kept.classes():  # a version that did not note them
            classes = data.source_of(study.dataset).classes
            kept.note_data(data.fingerprint(study.dataset), classes)
    return collect_cases(cases)


def _publish(results: Sequence[StudyResults], console: Console) -> str:
    """Send what W&B lacks and make a report there; its address."""
    say = partial(console.print, soft_wrap=True)
    folders = [Folder(one.root) for one in results]
    with tracking(folders, Target("wandb", "online"), say, patience=None):
        pass  # nothing is running: what is on disk is all there is
    return wandb.publish([(one.study, sentences.markdown(one)) for one in results])
