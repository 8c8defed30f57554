"""`autoaug-ray pilot`: a cheap early answer to whether a search is worth its compute here.

Runs the study with a third of its epochs and short searches, on 3 seeds and then on more while it
is undecided. The test set stays closed: a fifth of the pool stands in for it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from autoaug_ray import data
from autoaug_ray.commands import pilot_rule as pilot
from autoaug_ray.commands import run as cli
from autoaug_ray.config import Study
from autoaug_ray.report import sentences as report
from autoaug_ray.report.figures import time_unit
from autoaug_ray.store import meter
from autoaug_ray.store.folder import Folder


@dataclass(frozen=True)
class Options:
    study: Path
    out: Path
    epochs: int | None
    """Epochs of a training; None: a third of the study's."""
    worth: float
    """How much better a search would have to be, in points of accuracy."""


def run_pilots(studies: Sequence[Study], options: Options) -> int:
    """Run a pilot of each case of a study; the exit status."""
    console = cli.new_console()
    pilots = [pilot.shortened(study, options.epochs) for study in studies]
    pairs = zip(studies, pilots, strict=True)
    failed = [_pilot(whole, short, options, console) for whole, short in pairs]
    return 1 if any(failed) else 0


def _pilot(whole: Study, study: Study, options: Options, console: Console) -> bool:
    """Whether any of its runs failed."""
    folder = Folder(options.out / study.name / (study.case or ""))
    cli.introduce(study, console)
    for line in _shorter(whole, study):
        console.print(line, highlight=False, markup=False)
    searches, free = pilot.searching(study), pilot.search_free(study)
    classes = data.load(study.dataset, val_fraction=None, device="cpu").classes
    for seeds in pilot.LOOKS:
        asked = study.model_copy(update={"seeds": tuple(range(seeds))})
        (ran,), failed = cli.run_cases([asked], [folder], options.out / "bank", console)
        page = report.write(ran, folder, classes)
        summary = report.summarise(ran, folder)
        verdict = pilot.decide(summary, searches, free, worth=options.worth)
        if verdict.decided or seeds == pilot.LOOKS[-1]:
            break
        console.print(f"{verdict.sentence} Going on with more seeds.", highlight=False)
    console.print(report.table(summary, ran, folder))
    console.print(verdict.sentence, style="bold", highlight=False)
    if study.train.epochs < whole.train.epochs:
        console.print(
            f"That is after {study.train.epochs} of {whole.train.epochs} epochs. Strong "
            "augmentation needs long trainings and may be judged too early; --epochs asks again.",
            highlight=False,
        )
    console.print(_cost(whole, ran, folder), highlight=False)
    cli.say_failed(failed, console)
    for line in (f"report: {page}", f"the whole study: autoaug-ray {options.study}"):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return bool(failed)


def _shorter(whole: Study, study: Study) -> Iterator[str]:
    """What the pilot leaves out."""
    yield f"{study.train.epochs} of {whole.train.epochs} epochs, {pilot.LOOKS[0]} seeds at first"
    for entry, cut in zip(whole.entries, study.entries, strict=True):
        if cut != entry:
            yield f"{entry.label}: its search is cut to {pilot.TRIALS} trials"


def _cost(whole: Study, study: Study, folder: Folder) -> str:
    lines = meter.read(folder.ledger)
    mine, all_of_it = pilot.spent(lines), pilot.whole_hours(whole, study, lines)
    factor, unit = time_unit(all_of_it)
    devices = ", ".join(sorted({line["device"] for line in lines}))
    share = 100 * mine / all_of_it
    return (
        f"The pilot took {factor * mine:.1f} device-{unit} ({devices}), {share:.0f} % of the "
        f"{factor * all_of_it:.1f} that the whole study takes at this speed "
        f"({len(whole.seeds)} seeds of {whole.train.epochs} epochs)."
    )
