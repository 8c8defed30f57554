"""`autoaug-ray pilot`: a cheap early answer to whether a search is worth its compute here.

Runs the study with a third of its epochs and short searches, on 3 seeds and then on more while it
is undecided. The test set stays closed: a fifth of the pool stands in for it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from autoaug_ray.commands import run, transfer
from autoaug_ray.commands.console import new_console
from autoaug_ray.commands.pilot_rule import (
    TRIALS,
    Finding,
    decide,
    device_hours,
    search_free,
    searching,
    shortened,
    whole_hours,
)
from autoaug_ray.config import Study
from autoaug_ray.report.compare import time_unit
from autoaug_ray.report.elimination import LOOKS, waits
from autoaug_ray.report.results import collect, collect_cases
from autoaug_ray.report.sentences import table
from autoaug_ray.store import meter
from autoaug_ray.store.files import write_whole
from autoaug_ray.store.folder import Folder


def run_pilots(
    studies: Sequence[Study], path: Path, out: Path, *, epochs: int | None, worth: float
) -> int:
    """Run a pilot of each case of the study in the file `path`; the exit status.

    `epochs` are those of a training; None: a third of the study's. `worth`: how much better a
    search would have to be, in points of accuracy.
    """
    console = new_console()
    pilots = [shortened(study, epochs) for study in studies]
    pairs = zip(studies, pilots, strict=True)
    failed = [_pilot(whole, short, path, out, worth, console) for whole, short in pairs]
    return 1 if any(failed) else 0


def _pilot(
    whole: Study, study: Study, path: Path, out: Path, worth: float, console: Console
) -> bool:
    """Run the pilot of a study and print what it found; whether any of its runs failed."""
    from autoaug_ray.report.write import write

    folder = Folder(out / study.name / (study.case or ""))
    transfer.check([study], [folder], {})
    run.introduce(study, console)
    for line in _shorter(whole, study):
        console.print(line)
    watch = _Looks(study, worth, console)
    most = study.model_copy(update={"seeds": tuple(range(LOOKS[-1]))})
    (ran,), failed = run.run_cases([most], [folder], out / "bank", console, wanted=watch.wanted)
    ran, finding = watch.look(ran, folder)
    write_whole(folder.root / "study.json", ran.model_dump_json(indent=1).encode())
    (results,) = collect_cases([(ran, folder)])
    page = write(results)
    console.print(table(results))
    console.print(finding.sentence)
    if study.train.epochs < whole.train.epochs:
        console.print(
            f"That is after {study.train.epochs} of {whole.train.epochs} epochs. Strong "
            "augmentation needs long trainings and may be judged too early; --epochs asks again.",
        )
    console.print(_cost(whole, ran, folder))
    run.say_failed(failed, console)
    run.say_verdict(results, console)
    for line in (f"report: {page}", f"the whole study: autoaug-ray {path}"):
        console.print(line, soft_wrap=True)
    return bool(failed)


class _Looks:
    """Looks at a pilot after so many seeds, and asks for more while it is undecided."""

    def __init__(self, study: Study, worth: float, console: Console) -> None:
        self.searches, self.free = searching(study), search_free(study)
        self.worth, self.console = worth, console
        self.said: set[int] = set()

    def wanted(self, study: Study, folder: Folder) -> dict[str, tuple[int, ...]]:
        """label -> the seeds of the look that the pilot has come to."""
        asked, _ = self.look(study, folder)
        return dict.fromkeys((entry.label for entry in study.entries), asked.seeds)

    def look(self, study: Study, folder: Folder) -> tuple[Study, Finding]:
        """The study with the seeds of the look that it has come to, and what it finds there."""
        for n in LOOKS:
            asked = study.model_copy(update={"seeds": study.seeds[:n]})
            results = collect(asked, folder)
            finding = decide(results.entries, self.searches, self.free, worth=self.worth)
            if finding.decided or waits(results):
                break
            if n != LOOKS[-1] and n not in self.said:
                self.said.add(n)
                self.console.print(f"{finding.sentence} Going on with more seeds.")
        return asked, finding


def _shorter(whole: Study, study: Study) -> Iterator[str]:
    """What the pilot leaves out."""
    yield (
        f"{study.train.epochs} of {whole.train.epochs} epochs, {LOOKS[0]} seeds at first; a "
        f"forecast is that of {LOOKS[-1]}, at most"
    )
    for entry, cut in zip(whole.entries, study.entries, strict=True):
        if cut != entry:
            yield f"{entry.label}: its search is cut to {TRIALS} trials"


def _cost(whole: Study, study: Study, folder: Folder) -> str:
    lines = meter.read(folder.ledger)
    used, all_of_it = device_hours(lines), whole_hours(whole, study, lines)
    factor, unit = time_unit(all_of_it)
    devices = ", ".join(sorted({line["device"] for line in lines}))
    share = 100 * used / all_of_it
    return (
        f"The pilot took {factor * used:.1f} device-{unit} ({devices}), {share:.0f} % of the "
        f"{factor * all_of_it:.1f} that the whole study takes at this speed "
        f"({len(whole.seeds)} seeds of {whole.train.epochs} epochs)."
    )
