"""A study's folder -> a table, honest sentences, figures, and one self-contained page.

The words are made here, from the summary alone; the figures are in `figures`, the arithmetic is in
`summary` and `maths.statistics`.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from rich import box
from rich.table import Table

from autoaug_ray import figures
from autoaug_ray.config import Study
from autoaug_ray.maths.statistics import ENOUGH, Comparison, compare, holm
from autoaug_ray.record import Folder, write_whole
from autoaug_ray.summary import (
    Results,
    Row,
    collect,
    summarise,
    summarise_results,
    write_summary,
)

__all__ = ["headline", "summarise", "table", "verdicts", "write", "write_summary"]


NOISY_CLOCK = 1.25
"""Said if the same training takes so many times as long with one seed as with another."""
TOLERANCE = 1.1
"""The headline calls an entry cheaper only if it is so by this factor, or by the clock's noise."""


def write(study: Study, folder: Folder, classes: Sequence[str] = ()) -> Path:
    """summary.parquet, the PNGs that have data, and report.html, whose path is returned.

    `classes` are the names of the dataset's classes in the order of their labels.
    """
    results = collect(study, folder)
    summary = summarise_results(results)
    write_summary(summary, folder.root / "summary.parquet")
    shift = study.dataset.shift
    # With a rotation or a zoom, the mean displacement depends on the size of the images.
    moved = shift.translate if shift.rotate == 0 and shift.zoom == 1 else 0
    pictures = {
        "accuracy_vs_cost": figures.accuracy_vs_cost(summary),
        "strength": figures.strength(
            summary, results.finals, figures.true_displacement(moved) if moved else None
        ),
        "hypergradient": figures.hypergradient(summary, results.finals),
        "samples": figures.samples(summary, results.finals),
        "classes": figures.classes(summary, results.finals, classes),
    }
    for name, png in pictures.items():
        path = folder.root / f"{name}.png"
        if png is None:
            path.unlink(missing_ok=True)  # of an earlier report
        else:
            write_whole(path, png)
    path = folder.root / "report.html"
    write_whole(path, _page(results, summary, pictures, bool(moved)).encode())
    return path


def table(summary: Sequence[Row]) -> Table:
    """For the terminal; a control is indented beside its learned entry."""
    reference = summary[0]["reference"]
    _, time_name = _time(summary)
    out = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        caption="Mean ± standard deviation (n seeds); in brackets the paired 95 % interval; "
        f"* distinguishable from {reference} after Holm's correction; cost (search included) "
        f"and search in trainings of {reference}. Indented: controls.",
        caption_justify="left",
    )
    out.add_column("method", overflow="fold")
    for name in (
        "test accuracy %", f"points above {reference}", "cost", "search", "trials", time_name,
    ):  # fmt: skip
        out.add_column(name, justify="right", overflow="fold")
    for r in _lines(summary):
        mark = "  " if r["control_of"] else ""
        out.add_row(
            mark + r["label"], r["accuracy"], r["difference"], r["cost"], r["search"], r["trials"],
            r["time"],
        )  # fmt: skip
    return out


def headline(summary: Sequence[Row]) -> str:
    """What to use: the cheapest entry that cannot be told from the most accurate one."""
    done = [r for r in summary if r["test_accuracy_mean"] is not None]
    if not done:
        return "No final training has finished yet: there is nothing to compare."
    best = max(done, key=lambda r: r["test_accuracy_mean"])
    where = f"On {best['dataset']} ({_plural(best['epochs'], 'epoch')} per training)"
    if best["relative_cost"] is None:
        return (
            f"{where}, {best['label']} has the highest mean test accuracy so far "
            f"({_percent(best)}). Costs cannot be compared: it has no finished seed in common with "
            f"the reference {best['reference']}."
        )
    if len(best["seeds"]) < ENOUGH:
        return (
            f"{where}, {_plural(len(best['seeds']), 'seed')} cannot tell what to use; "
            f"{best['label']} has the highest mean test accuracy so far ({_at_cost(best)}). "
            f"Run at least {ENOUGH} seeds."
        )
    clearly = max(TOLERANCE, _clock_noise(summary))
    cheaper = [
        (r, c)
        for r in done
        if r["relative_cost"] is not None and clearly * r["relative_cost"] < best["relative_cost"]
        if (c := _paired(best, r)).n >= ENOUGH
    ]
    close = [(r, c) for r, c in cheaper if not c.distinguishable()]
    if not close:
        others = (
            f"every clearly cheaper entry is distinguishably worse at {len(best['seeds'])} seeds"
            if cheaper
            else "no entry costs clearly less"
        )
        return (
            f"{where}, use {best['label']}: it has the highest mean test accuracy "
            f"({_at_cost(best)}), and {others}."
        )
    choice, c = min(close, key=lambda pair: pair[0]["relative_cost"])
    assert c.difference is not None and c.half_width is not None
    return (
        f"{where}, use {choice['label']} ({_at_cost(choice)}): it is the cheapest entry that "
        f"cannot be told from the most accurate one, {best['label']} ({_at_cost(best)}), "
        f"at {c.n} seeds. That is not the same as equal: {best['label']} may be up to "
        f"{100 * (c.difference + c.half_width):.1f} points better, and more seeds would tell."
    )


def verdicts(
    summary: Sequence[Row], study: Study | None = None, folder: Folder | None = None
) -> list[str]:
    """Short sentences: what was learned, what can be told apart, what is missing.

    With the study and its folder also what the folder holds besides.
    """
    by_label = {r["label"]: r for r in summary}
    reference = by_label[summary[0]["reference"]]
    out = [
        _paired(by_label[r["control_of"]], r).verdict(f"its control {r['label']}")
        for r in summary
        if r["control_of"]
    ]
    family = [(c, p) for c, p in _against_reference(summary).values() if c.n >= ENOUGH]
    if family:
        better, worse, open_ = (
            [c.name for c, p in family if key(c, p)]
            for key in (
                lambda c, p: c.distinguishable(p) and c.difference > 0,
                lambda c, p: c.distinguishable(p) and c.difference < 0,
                lambda c, p: not c.distinguishable(p),
            )
        )
        parts = {"better": better, "worse": worse, "not distinguishable": open_}
        said = "; ".join(f"{word}: {', '.join(names)}" for word, names in parts.items() if names)
        out.append(
            f"Against {reference['label']}, with Holm's correction for "
            f"{_plural(len(family), 'comparison')}: {said}."
        )
    if front := figures.pareto(summary):
        steps = ", ".join(f"{r['label']} ({_at_cost(r)})" for r in front)
        out.append(f"Pareto front, by the means alone: {steps}.")
    counts = sorted({len(r["seeds"]) for r in summary})
    seeds = " to ".join(str(n) for n in {counts[0]: 0, counts[-1]: 0})
    out.append(f"{seeds} finished seeds per entry.")
    if counts[0] < ENOUGH:
        out.append(
            f"With fewer than {ENOUGH} seeds an interval means nothing: no verdict is given there."
        )
    out += _missing(summary)
    if study is not None and folder is not None:
        out += _warnings(collect(study, folder))
    devices = sorted({r["device"] for r in summary if r["device"]})
    if len(devices) > 1 or "," in "".join(devices):
        out.append(
            f"Not all ran on the same device ({', '.join(devices)}): costs cannot be compared."
        )
    elif devices:
        out.append(f"All costs are time on this device: {devices[0]}.")
    if (slow := _clock_noise(summary)) > NOISY_CLOCK:
        out.append(
            f"The clock was noisy: the same training took up to {slow:.1f}x as long with one seed "
            "as with another. Smaller differences in cost mean nothing."
        )
    if finals := sum(len(r["seeds"]) for r in summary):
        out.append(
            f"The test set was read once by each of the {finals} final trainings, after the last "
            "epoch; no setting was chosen by it."
        )
    return out


def _clock_noise(summary: Sequence[Row]) -> float:
    return max((r["clock_spread"] for r in summary if r["clock_spread"]), default=1.0)


def _missing(summary: Sequence[Row]) -> list[str]:
    out = []
    for r in summary:
        parts = []
        if r["missing_seeds"]:
            seeds = ", ".join(map(str, r["missing_seeds"]))
            parts.append(f"no finished final training for seed {seeds}")
        if r["failed"]:
            parts.append(f"{_plural(r['failed'], 'run')} failed")
        if r["stopped"]:
            parts.append(f"{_plural(r['stopped'], 'search trial')} stopped early by the scheduler")
        if parts:
            out.append(f"{r['label']}: {'; '.join(parts)}.")
    return out


def _warnings(results: Results) -> list[str]:
    out = [
        f"Run {key} did not use the settings that it was asked to: do not trust its entry."
        for key in results.misused
    ]
    if results.foreign:
        out.append(
            f"{_plural(results.foreign, 'run')} in this folder with other settings than this "
            "study's: not counted."
        )
    return out


def _paired(a: Row, b: Row) -> Comparison:
    x, y = (dict(zip(r["seeds"], r["test_accuracies"], strict=True)) for r in (a, b))
    return compare(a["label"], x, b["label"], y)


def _against_reference(summary: Sequence[Row]) -> dict[str, tuple[Comparison, float | None]]:
    """Every other entry against the reference, with its p-value after Holm's correction."""
    reference = next(r for r in summary if r["label"] == r["reference"])
    comparisons = [_paired(r, reference) for r in summary if r is not reference]
    p_values = holm([c.p_value if c.n >= ENOUGH else None for c in comparisons])
    return {c.name: (c, p) for c, p in zip(comparisons, p_values, strict=True)}


def _lines(summary: Sequence[Row]) -> list[Row]:
    """The summary's rows with their figures as people read them."""
    family = _against_reference(summary)
    factor, _ = _time(summary)
    look = figures.looks(summary)
    out = []
    for r in summary:
        n, sd = len(r["seeds"]), r["test_accuracy_sd"]
        spread = "" if sd is None else f"\u00a0±\u00a0{100 * sd:.2f}"
        c, p = family.get(r["label"], (None, None))
        difference = ""
        if c is not None and c.difference is not None:
            difference = f"{100 * c.difference:+.2f}"
            if c.half_width is not None:
                low, high = (100 * (c.difference + s * c.half_width) for s in (-1, 1))
                star = "*" if c.distinguishable(p) else ""
                difference += f" [{low:+.2f}, {high:+.2f}]{star}"
        out.append(
            {
                **r,
                "accuracy": f"{_number(r, 'test_accuracy_mean', 100)}{spread} ({n})" if n else "-",
                "difference_mean": r["difference"],
                "difference": difference or "-",
                "cost": _number(r, "relative_cost"),
                "search": _number(r, "relative_search_cost") if r["search_device_hours"] else "-",
                "time": f"{factor * r['total_device_hours']:.2f}",
                "trials": str(r["trials"]),
                "choices": {k: _short(v) for k, v in json.loads(r["choices"]).items()},
                "look": look[r["label"]],
                "hours": [f"{factor * r[f'device_hours_{p}']:.2f}" for p in _PHASES],
            }
        )
    return out


_PHASES = {
    "search": "search trainings", "final": "final trainings", "eval": "evaluation",
    "other": "loading, building, waiting",
}  # fmt: skip


def _page(
    results: Results,
    summary: Sequence[Row],
    pictures: Mapping[str, bytes | None],
    shifted: bool,
) -> str:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(Path(__file__).with_name("report.html.j2").read_text())
    settings = results.study.model_dump(mode="json", exclude_defaults=True)
    searches = {
        label: [
            {
                "choices": _varied(results, label, rows[-1]),
                "accuracy": rows[-1]["val_accuracy"],
                "epoch": rows[-1]["epoch"],
                "finished": rows[-1]["finished"],
            }
            for rows in trials
        ]
        for label, trials in results.searches.items()
    }
    return template.render(
        study=results.study,
        reference=results.study.reference,
        headline=headline(summary),
        verdicts=verdicts(summary),
        missing=_missing(summary) + _warnings(results),
        lines=_lines(summary),
        time_name=_time(summary)[1],
        phases=_PHASES,
        pictures={name: base64.b64encode(png).decode() for name, png in pictures.items() if png},
        shifted=shifted,
        searches=searches,
        failures=results.failures,
        settings=yaml.safe_dump(settings, sort_keys=False, allow_unicode=True),
        enough=ENOUGH,
        tolerance=round(100 * (TOLERANCE - 1)),
    )


def _varied(results: Results, label: str, row: Row) -> dict[str, str]:
    method = json.loads(row["settings"])["method"]
    return {k: _short(method[k]) for k in results.study.entry(label).ranges}


def _time(summary: Sequence[Row]) -> tuple[float, str]:
    """(factor to hours, name) for the table's device time."""
    factor, unit = figures.time_unit(max(r["total_device_hours"] for r in summary))
    on_cpu = all(r["device"] in ("CPU", "") for r in summary)
    return factor, f"{'CPU' if on_cpu else 'GPU'}-{unit}"


def _number(row: Row, name: str, factor: float = 1) -> str:
    return "-" if row[name] is None else f"{factor * row[name]:.2f}"


def _percent(row: Row) -> str:
    return f"{100 * row['test_accuracy_mean']:.2f} %"


def _at_cost(row: Row) -> str:
    return f"{_percent(row)} at {row['relative_cost']:.2f}x"


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _short(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else json.dumps(value)
    return text if len(text) < 60 else text[:57] + "..."
