"""The runs of a study, read from its folder and sorted out by entry.

A folder may hold more than the study asks for: rows of an earlier version of it, or final
trainings of a setting that a longer search has since replaced. They are told from `settings`.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from autoaug_ray.config import Entry, Study
from autoaug_ray.errors import UserError
from autoaug_ray.methods import method_class
from autoaug_ray.store import meter
from autoaug_ray.store.files import reading
from autoaug_ray.store.folder import Folder
from autoaug_ray.store.places import Place

Row = dict[str, Any]
"""One epoch of one training, by the columns of `store.folder.ROW`, or one line of the ledger."""
Finals = Mapping[str, Mapping[int, Sequence[Row]]]
"""label -> seed -> rows by epoch, of whole final trainings."""
Searches = Mapping[str, Sequence[Sequence[Row]]]
"""label -> search trials in their order -> rows by epoch."""


class Runs(NamedTuple):
    """The runs of a study, sorted out; all but `outcomes` and `foreign` by label."""

    finals: dict[str, dict[int, list[Row]]]
    choices: dict[str, Row]
    searches: dict[str, list[list[Row]]]
    learning: dict[str, dict[int, str]]
    """seed -> key of the search run in which the seed learned its hyperparameters."""
    ledger: dict[str, list[Row]]
    """The last line of every attempt."""
    lost: dict[str, list[Row]]
    """The lines of attempts that were lost with their process, machine or driver."""
    outcomes: list[Row]
    """The last outcome of each run of the study that is not whole."""
    foreign: set[str]
    """Keys of runs with other settings than the study's."""


def read_study(root: Place) -> Study:
    """The study in a folder as it was run. Raises UserError if its file is damaged, or was written
    by another version."""
    file = root / "study.json"
    with reading(file, "run its study again with --resume, which writes it anew"):
        try:
            study = Study.model_validate_json(file.read_bytes())
            for entry in study.entries:
                _ = entry.first_method
            return study
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(f"{where}: {first['msg']}" if where else first["msg"]) from None


def read_runs(study: Study, folder: Folder) -> Runs:
    """Read rows, ledger and outcomes of a study's folder, each file once."""
    entries = {e.label: e for e in study.entries}
    lines = meter.read(folder.ledger)
    last_seen: dict[str, float] = {}
    for line in lines:
        last_seen[line["run"]] = max(line["at"], last_seen.get(line["run"], 0.0))

    runs: defaultdict[str, list[Row]] = defaultdict(list)
    for row in folder.read_rows():
        runs[row["run_key"]].append(row | own_images_cost(study, row))
    settings: defaultdict[str, dict[str, Row]] = defaultdict(dict)  # label -> final's key -> ...
    searches: defaultdict[str, list[list[Row]]] = defaultdict(list)
    learning: defaultdict[str, dict[int, str]] = defaultdict(dict)
    foreign = set()
    for key, rows in runs.items():
        rows.sort(key=lambda row: row["epoch"])
        label, last = rows[0]["label"], rows[-1]
        choices = choices_of(study, entries.get(label), last)
        if choices is None:
            foreign.add(key)
        elif last["phase"] == "search":
            searches[label].append(rows)
            if json.loads(last["settings"])["val_fraction"] is None:
                learning[label][last["seed"]] = key
        elif last["finished"]:
            settings[label][key] = choices
    for trials in searches.values():
        trials.sort(key=lambda rows: rows[0]["index"])

    finals: dict[str, dict[int, list[Row]]] = {label: {} for label in entries}
    chosen: dict[str, Row] = {label: {} for label in entries}
    for label, by_key in settings.items():
        newest = max(by_key, key=lambda key: last_seen.get(key, 0.0))
        chosen[label] = by_key[newest]
        keys = [key for key, choices in by_key.items() if choices == chosen[label]]
        keys.sort(key=lambda key: last_seen.get(key, 0.0))  # what replaces another one is newer
        by_seed = {runs[key][-1]["seed"]: runs[key] for key in keys}
        finals[label] = dict(sorted(by_seed.items()))

    ledger: dict[str, list[Row]] = {label: [] for label in entries}
    for line in lines:
        if line.get("label") in ledger and line["run"] not in foreign:
            ledger[line["label"]].append(line)
    whole = {key for key, rows in runs.items() if rows[-1]["finished"]}
    outcomes = {line["run"]: dict(line) for line in folder.read_outcomes()}  # the last one counts
    return Runs(
        finals=finals,
        choices=chosen,
        searches=dict(searches),
        learning=dict(learning),
        ledger=ledger,
        lost=_lost(lines, ledger, outcomes.keys() | whole),
        outcomes=[
            line
            for line in outcomes.values()
            if line["label"] in entries and line["run"] not in foreign | whole
        ],
        foreign=foreign,
    )


def own_images_cost(study: Study, row: Row) -> Row:
    """The columns that say what a run's images took, if somebody made them elsewhere: by what the
    study says now, so that it can be mended without training again."""
    if study.generate.folder is None or not row.get("generated"):
        return {}
    seconds = row["generated"] * (study.generate.seconds_per_image or 0.0)
    return {"bank_work": {"generate": seconds}, "bank_hours": {"generate": seconds / 3600}}


def _lost(
    lines: Sequence[Row], ledger: Mapping[str, Sequence[Row]], ended: set[str]
) -> dict[str, list[Row]]:
    """The attempts that are still open though a later one began or the run has ended.

    Any other open attempt may be running.
    """
    last = {line["run"]: line["attempt"] for line in lines}
    return {
        label: [
            line
            for line in attempts
            if line.get("open") and (line["attempt"] < last[line["run"]] or line["run"] in ended)
        ]
        for label, attempts in ledger.items()
    }


def choices_of(study: Study, entry: Entry | None, row: Row) -> Row | None:
    """What the run of a row chose within its entry; None if it is no run of this study."""
    run = json.loads(row["settings"])
    asked = study.model_dump(mode="json", include={"dataset", "model"})
    if entry is None or any(run[k] != v for k, v in asked.items()):
        return None
    if run["val_fraction"] not in (None, study.val_fraction):
        return None
    if run["bank_plan"] not in (None, *study.bank_plans.values()):
        return None
    if run["phase"] == "final" and run["seed"] not in study.seeds:
        return None
    of = method_class(entry.hyperparameters["name"])
    open_to_choice = {*entry.ranges, *of.found_names} - set(entry.hyperparameters)
    open_to_choice |= {*of.places}  # another spelling of where a file lies is the same run
    choices = {k: v for k, v in run["method"].items() if k in open_to_choice}
    try:
        method = entry.method(choices)
    except UserError:
        return None
    if method.model_dump(mode="json") != run["method"]:
        return None
    if method.training(run["phase"], study.train).model_dump(mode="json") != run["train"]:
        return None
    return {k: v for k, v in choices.items() if k not in of.found_per_seed}
