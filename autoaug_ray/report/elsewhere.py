"""What entries of other studies found that entries of this one train with, and what it cost.

The other study's folder lies beside this one's and is read as it is now. Its costs are
device-seconds, which become trainings of this study's reference; they are only taken over if the
same kind of clock measured both.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from autoaug_ray.config import Study
from autoaug_ray.errors import UserError
from autoaug_ray.methods.sources import Source, parse
from autoaug_ray.report import costs
from autoaug_ray.report.runs import Runs, read_runs, read_study
from autoaug_ray.store import calibration
from autoaug_ray.store.folder import Folder
from autoaug_ray.store.places import Place, folders


@dataclass(frozen=True)
class Elsewhere:
    """The find of an entry of another study, or of another case."""

    source: Source
    finding: Mapping[int, costs.Work] = field(default_factory=dict)
    """seed -> the work of finding it."""
    images: Mapping[int, float] = field(default_factory=dict)
    """seed -> device-seconds of the generated images that this needed."""
    plans: Mapping[int, str | None] = field(default_factory=dict)
    """seed -> the plan of those images."""
    device: str = ""
    fault: str | None = None
    """Why what it cost cannot be told, as part of a sentence."""


def open_source(source: Source, root: Place) -> tuple[Study, Folder]:
    """The study, or case, of a source, as it was run, and its folder, which is `root`.

    Raises UserError, in one sentence that ends with what is to be done, if it has not run.
    """
    file = root / "study.json"
    if not file.is_file():
        cases = [one.name for one in folders(root) if (one / "study.json").is_file()]
        if cases and source.case is None:
            raise UserError(
                f"{source} names no case; write {source.study}/CASE/{source.label}, with one of "
                f"{', '.join(cases)}."
            )
        raise UserError(f"{root} holds no study; run {source.study} first, into the same folder.")
    return read_study(root), Folder(root)


def find(study: Study, folder: Folder, runs: Runs) -> dict[str, Elsewhere]:
    """Label -> what the entry trains with, for all entries that follow one of another study."""
    clocks = _clocks(runs, study.reference)
    out = {}
    for entry in study.entries:
        follows = entry.first_method.follows
        source = None if follows is None else parse(follows)
        if source is None or source.study is None:
            continue
        try:
            there, place = open_source(source, source.root(folder.root, study.case))
        except UserError as error:
            out[entry.label] = Elsewhere(source, fault=str(error).rstrip("."))
            continue
        out[entry.label] = _read(source, there, place, clocks)
    return out


def _read(source: Source, study: Study, folder: Folder, clocks: set[str]) -> Elsewhere:
    runs, label = read_runs(study, folder), source.label
    if not runs.finals.get(label):
        return Elsewhere(source, fault=f"{folder.root} has no finished training of {label}")
    theirs = _clocks(runs, label)
    if clocks and theirs != clocks:
        words = [" and ".join(sorted(those)) or "nothing" for those in (theirs, clocks)]
        return Elsewhere(
            source, fault=f"it was measured by {words[0]}, this study by {words[1]}, and seconds "
            "of the two are not the same"
        )  # fmt: skip
    work = costs.work_of(study, runs, calibration.read(folder.calibration))
    last = {seed: rows[-1] for seed, rows in runs.finals[label].items()}
    return Elsewhere(
        source,
        finding={seed: work.finding(label, seed) for seed in last},
        images=work.images[label],
        plans={seed: row["bank_plan"] for seed, row in last.items()},
        device=", ".join(sorted({line["device"] for line in runs.ledger[label]})),
    )


def _clocks(runs: Runs, label: str) -> set[str]:
    return {line["clock"] for line in runs.ledger[label] if "clock" in line}
