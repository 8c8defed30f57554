"""Rows and ledger of a study -> one row per entry: what it reached, what it cost.

Accuracy comes from the last rows of whole final trainings only. Cost comes from the ledger only:
every attempt counts, also those that failed or were stopped.

A folder may hold more than the study asks for: rows of an earlier version of it, or final
trainings of a setting that a longer search has since replaced. They are told from `settings`.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from autoaug_ray.config import Entry, Study
from autoaug_ray.errors import UserError
from autoaug_ray.maths.statistics import compare, mean_of
from autoaug_ray.methods import method_class
from autoaug_ray.report.published import gap_to
from autoaug_ray.store import meter
from autoaug_ray.store.folder import Folder, write_whole
from autoaug_ray.store.places import Place

Row = dict[str, Any]

SUMMARY = pa.schema(
    [
        ("method", pa.string()),
        ("label", pa.string()),
        ("control_of", pa.string()),  # label of the learned entry, in the row of a control
        ("reference", pa.string()),  # label of the entry whose training is the unit of cost
        ("dataset", pa.string()),
        ("epochs", pa.int64()),
        ("seeds", pa.list_(pa.int64())),  # whose final training is whole
        ("missing_seeds", pa.list_(pa.int64())),  # asked for, not whole
        ("test_accuracies", pa.list_(pa.float64())),  # [0, 1], in the order of `seeds`
        ("test_accuracy_mean", pa.float64()),
        ("test_accuracy_sd", pa.float64()),  # n - 1 in the denominator; null if n < 2
        ("test_accuracy_half_width", pa.float64()),  # of the 95 % t-interval; null if n < 2
        ("macro_accuracies", pa.list_(pa.float64())),  # means over classes, in the order of `seeds`
        ("macro_accuracy_mean", pa.float64()),
        ("difference", pa.float64()),  # to the reference, paired over common seeds
        ("difference_half_width", pa.float64()),  # of its 95 % interval, uncorrected
        ("published_accuracy", pa.float64()),  # [0, 1]; null if the study knows of none
        ("published_measure", pa.string()),  # of it: micro | macro
        ("published_cost", pa.float64()),  # in trainings of the paper's own reference
        ("published_difference", pa.float64()),  # our mean of that measure minus it
        ("published_half_width", pa.float64()),  # of its 95 % interval; null if n < 3
        ("training_device_hours", pa.float64()),  # bank + search + final of one seed, no eval
        ("relative_cost", pa.float64()),  # of it, in trainings of the reference
        ("relative_search_cost", pa.float64()),  # the search's part of it
        ("relative_bank_cost", pa.float64()),  # the part of the generated images that it needs
        ("clock_spread", pa.float64()),  # longest / shortest final training over the seeds
        ("search_device_hours", pa.float64()),  # all that the search trials held, eval included
        ("total_device_hours", pa.float64()),  # all attempts of all runs, eval and bank included
        *((f"device_hours_{phase}", pa.float64()) for phase in meter.PHASES),  # add up to it
        ("trials", pa.int64()),  # different runs in the ledger, search and final
        ("attempts", pa.int64()),
        ("stopped", pa.int64()),  # search trials that the scheduler stopped
        ("failed", pa.int64()),  # runs that failed and are not whole
        ("lost_attempts", pa.int64()),  # with their process, machine or driver
        ("lost_device_hours", pa.float64()),  # of these: what came after their last checkpoints
        ("displacement", pa.float64()),  # pixels; of the finals' last epoch, mean over seeds
        ("color_change", pa.float64()),  # [0, 1] units; likewise
        ("choices", pa.string()),  # JSON: what the search chose
        ("device", pa.string()),
    ]
)


@dataclass(frozen=True)
class Results:
    """What a folder holds of a study."""

    study: Study
    finals: dict[str, dict[int, list[Row]]]
    """label -> seed -> rows by epoch, of whole final trainings of the chosen setting."""
    choices: dict[str, Row]
    """label -> what the search chose, as the final trainings hold it."""
    searches: dict[str, list[list[Row]]]
    """label -> trials in their order -> rows by epoch."""
    learning: dict[str, dict[int, str]]
    """label -> seed -> key of the search run in which the seed learned its hyperparameters."""
    ledger: dict[str, list[Row]]
    """label -> last line of every attempt."""
    lost: dict[str, list[Row]]
    """label -> of these, attempts that were lost with their process, machine or driver."""
    failures: list[Row]
    """Runs that failed and are not whole, as `Folder.read_outcomes` tells them."""
    stopped: list[Row]
    """Likewise, search trials that the scheduler stopped."""
    misused: list[str]
    """Keys of final trainings that did not use the settings that they were asked to."""
    bank_faults: list[str]
    """Sentences about what went wrong with the generated images."""
    bill: list[str]
    """What the machines cost, in words; of a study of one case."""
    foreign: int
    """Runs in the folder with other settings than the study's."""


def collect(study: Study, folder: Folder) -> Results:
    entries = {e.label: e for e in study.entries}
    lines = meter.read(folder.ledger)
    last_seen: dict[str, float] = {}
    for line in lines:
        last_seen[line["run"]] = max(line["at"], last_seen.get(line["run"], 0.0))

    runs: defaultdict[str, list[Row]] = defaultdict(list)
    for row in folder.read_rows():
        runs[row["run_key"]].append(row)
    settings: defaultdict[str, dict[str, Row]] = defaultdict(dict)  # label -> final's key -> ...
    searches: defaultdict[str, list[list[Row]]] = defaultdict(list)
    learning: defaultdict[str, dict[int, str]] = defaultdict(dict)
    foreign = set()
    for key, rows in runs.items():
        rows.sort(key=lambda row: row["epoch"])
        label, last = rows[0]["label"], rows[-1]
        choices = _choices(study, entries.get(label), last)
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
        by_seed = {runs[key][-1]["seed"]: runs[key] for key in keys}
        finals[label] = dict(sorted(by_seed.items()))

    ledger: dict[str, list[Row]] = {label: [] for label in entries}
    for line in lines:
        if line.get("label") in ledger and line["run"] not in foreign:
            ledger[line["label"]].append(line)
    whole = {key for key, rows in runs.items() if rows[-1]["finished"]}
    outcomes = {line["run"]: dict(line) for line in folder.read_outcomes()}  # the last one counts
    ended = [
        line
        for line in outcomes.values()
        if line["label"] in entries and line["run"] not in foreign | whole
    ]
    last = {line["run"]: line["attempt"] for line in lines}
    lost = {
        label: [
            line
            for line in mine
            # Else it may be running.
            if line.get("open")
            and (line["attempt"] < last[line["run"]] or line["run"] in outcomes.keys() | whole)
        ]
        for label, mine in ledger.items()
    }
    return Results(
        study=study,
        finals=finals,
        choices=chosen,
        searches=dict(searches),
        learning=dict(learning),
        ledger=ledger,
        lost=lost,
        failures=[line for line in ended if line["outcome"] == "failed"],
        stopped=[line for line in ended if line["outcome"] == "stopped"],
        misused=[
            rows[-1]["run_key"]
            for by_seed in finals.values()
            for rows in by_seed.values()
            if rows[-1]["used_key"] != rows[-1]["run_key"]
        ],
        bank_faults=_lines(folder.bank_faults),
        bill=_lines(folder.bill),
        foreign=len(foreign),
    )


def _choices(study: Study, entry: Entry | None, row: Row) -> Row | None:
    """What the run of a row chose within its entry; None if it is no run of this study."""
    run = json.loads(row["settings"])
    asked = study.model_dump(mode="json", include={"dataset", "model", "train"})
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
    choices = {k: v for k, v in run["method"].items() if k in open_to_choice}
    try:
        method = entry.method(choices)
    except UserError:
        return None
    if method.model_dump(mode="json") != run["method"]:
        return None
    return {k: v for k, v in choices.items() if k not in of.found_per_seed}


def summarise(study: Study, folder: Folder) -> list[Row]:
    """One row per entry of the study, in its order; columns as SUMMARY says."""
    return summarise_results(collect(study, folder))


def summarise_results(results: Results) -> list[Row]:
    study = results.study
    accuracies = {
        label: {seed: rows[-1]["test_accuracy"] for seed, rows in by_seed.items()}
        for label, by_seed in results.finals.items()
    }
    training = {e.label: _final_seconds(results, e.label) for e in study.entries}
    reference = training[study.reference]
    out = []
    for entry in study.entries:
        label = entry.label
        mine, lines = accuracies[label], results.ledger[label]
        mean = mean_of(list(mine.values())) if mine else None
        difference = compare(label, mine, study.reference, accuracies[study.reference])
        last = [rows[-1] for rows in results.finals[label].values()]
        hours = {p: _seconds(lines, (p,)) / 3600 for p in meter.PHASES} | _bank_hours(last)
        devices = {line["device"] for line in lines} or {row["device"] for row in last}
        macro = [fmean(row["class_accuracy"]) for row in last if row["class_accuracy"]]
        paper = study.published.entries.get(label) if study.published else None
        measure = study.published.measure if study.published and paper else None
        gap = gap_to(paper, macro if measure == "macro" else list(mine.values()))
        common = sorted(training[label].keys() & reference.keys())
        unit = fmean(reference[s] for s in common or reference) if reference else None
        search = _search_seconds(results, label) + _found_elsewhere(results, training, entry)
        bank = 3600 * (_mean(sum(row["bank_hours"].values()) for row in last) or 0.0)
        cost = search + bank + fmean(training[label][s] for s in common) if common else None
        out.append(
            {
                "method": entry.hyperparameters["name"],
                "label": label,
                "control_of": entry.control_of,
                "reference": study.reference,
                "dataset": study.dataset.name,
                "epochs": study.train.epochs,
                "seeds": list(mine),
                "missing_seeds": [s for s in study.seeds if s not in mine],
                "test_accuracies": list(mine.values()),
                "test_accuracy_mean": mean.mean if mean else None,
                "test_accuracy_sd": mean.sd if mean else None,
                "test_accuracy_half_width": mean.half_width if mean else None,
                "macro_accuracies": macro,
                "macro_accuracy_mean": _mean(macro),
                "difference": difference.difference,
                "difference_half_width": difference.half_width,
                "published_accuracy": paper.accuracy / 100 if paper else None,
                "published_measure": measure,
                "published_cost": paper.cost if paper else None,
                "published_difference": gap.difference if gap else None,
                "published_half_width": gap.half_width if gap else None,
                "training_device_hours": None if cost is None else cost / 3600,
                "relative_cost": cost / unit if cost is not None and unit else None,
                "relative_search_cost": search / unit if unit else None,
                "relative_bank_cost": bank / unit if unit else None,
                "clock_spread": max(training[label].values()) / min(training[label].values())
                if training[label]
                else None,
                "search_device_hours": _seconds(
                    [line for line in lines if line["phase"] == "search"], meter.PHASES
                )
                / 3600,
                "total_device_hours": sum(hours.values()),
                **{f"device_hours_{phase}": value for phase, value in hours.items()},
                "trials": len({line["run"] for line in lines}),
                "attempts": len(lines),
                "stopped": sum(line["label"] == label for line in results.stopped),
                "failed": sum(line["label"] == label for line in results.failures),
                "lost_attempts": len(results.lost[label]),
                "lost_device_hours": math.fsum(map(meter.in_vain, results.lost[label])) / 3600,
                "displacement": _mean(row["displacement"] for row in last),
                "color_change": _mean(row["color_change"] for row in last),
                "choices": json.dumps(results.choices[label]),
                "device": ", ".join(sorted(devices)),
            }
        )
    return out


def cost_hours(results: Results, row: Row) -> float | None:
    """Device-hours of training of a final run and of all that it needed: search, images.

    `row` is its last one; None if the run is none of the study's.
    """
    label = row["label"]
    if row["run_key"] not in {rows[-1]["run_key"] for rows in results.finals[label].values()}:
        return None
    training = {e.label: _final_seconds(results, e.label) for e in results.study.entries}
    entry = results.study.entry(label)
    search = _search_seconds(results, label) + _found_elsewhere(results, training, entry)
    bank: float = sum(row["bank_hours"].values())
    return search / 3600 + bank + float(row["device_hours_training"])


def _lines(file: Place) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def write_summary(summary: Sequence[Mapping[str, Any]], path: Place) -> None:
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(summary), schema=SUMMARY), buffer)
    write_whole(path, buffer.getvalue().to_pybytes())


def _bank_hours(last: Sequence[Row]) -> dict[str, float]:
    """Device-hours of generated images, by phase; seeds that share a plan share its cost."""
    by_plan = {row["bank_plan"]: row["bank_hours"] for row in last}
    return {p: math.fsum(hours.get(p, 0.0) for hours in by_plan.values()) for p in meter.BANK}


def _search_seconds(results: Results, label: str) -> float:
    """What a final training needed: every trial that was compared, and its own seed's learning."""
    lines = results.ledger[label]
    own = results.learning.get(label, {}).values()
    learning = [_seconds([x for x in lines if x["run"] == key], ("search",)) for key in own]
    compared = _seconds([x for x in lines if x["run"] not in own], ("search",))
    return compared + (_mean(learning) or 0.0)


def _found_elsewhere(
    results: Results, training: Mapping[str, Mapping[int, float]], entry: Entry
) -> float:
    """Seconds that it took to find what an entry replays: search and one final of its source."""
    source = entry.first_method.follows
    if source is None:
        return 0.0
    return _search_seconds(results, source) + (_mean(training[source].values()) or 0.0)


def _final_seconds(results: Results, label: str) -> dict[int, float]:
    """seed -> device-seconds of training in its final run, all attempts; runs in the ledger."""
    out = {}
    for seed, rows in results.finals[label].items():
        key = rows[-1]["run_key"]
        if lines := [line for line in results.ledger[label] if line["run"] == key]:
            out[seed] = _seconds(lines, ("final",))
    return out


def _seconds(lines: Iterable[Row], phases: Sequence[str]) -> float:
    """Device-seconds: seconds held x share of the device."""
    return math.fsum(line["share"] * line["seconds"].get(p, 0.0) for line in lines for p in phases)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return fmean(known) if known else None
