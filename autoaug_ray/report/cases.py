"""Several cases of one study -> one page over them: who is better throughout, not in one case only.

A case is a study of its own with its own folder and page. What is said across them is by ranks, as
Demsar (JMLR 2006) suggests for classifiers over several data sets.
"""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any
from urllib.parse import quote

import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.markup import escape
from rich.table import Table

from autoaug_ray.config import Study
from autoaug_ray.maths.statistics import BLOCKS, ENOUGH, LEVEL, Ranking, in_per_cent, rank
from autoaug_ray.report import figures, published
from autoaug_ray.report import html as page
from autoaug_ray.report import mixes as mix_figures
from autoaug_ray.report import sentences as report
from autoaug_ray.report.mixes import Point
from autoaug_ray.report.results import Results, Row, collect, summarise_results
from autoaug_ray.store.folder import Folder, write_whole
from autoaug_ray.store.places import Place, relative

__all__ = ["published_of", "table", "verdicts", "write"]

Cases = Sequence[tuple[Study, Folder]]
INDEPENDENT = 5
"""Cases from which on a case is a block; with fewer, a block is a seed of a case."""
AXES = {
    "dataset.imbalance.factor": "imbalance factor asked for (rarest / most frequent class)",
    "dataset.shots": "training images per class",
}
"""Numbers in which cases may differ, by their path in a study."""


@dataclass(frozen=True)
class Case:
    name: str
    study: Study
    folder: Folder
    results: Results
    rows: dict[str, Row]
    """label -> row of the summary."""


@dataclass(frozen=True)
class Across:
    """What the cases hold, and what may be said of them together."""

    cases: list[Case]
    entries: list[Row]
    """label, reference and control_of of every entry, in order of appearance."""
    control: str
    """The entry that all others are held against in rank."""
    ranking: Ranking | None
    """None with too few blocks or entries."""
    by_case: bool
    """Whether a block is a case, by its mean over the seeds, or else a seed of a case."""
    blocks: int
    """In which every ranked entry has finished."""
    left_out: list[str]
    """Entries that some case has no finished training of, which are not ranked."""

    @property
    def labels(self) -> list[str]:
        return [r["label"] for r in self.entries]

    @property
    def reference(self) -> str:
        return str(self.entries[0]["reference"])


def gather(cases: Cases, control: str | None = None) -> Across:
    """`control`: a label; None: the first entry that learned something, or else the reference."""
    found = []
    for study, folder in cases:
        results = collect(study, folder)
        name = study.case or folder.root.name
        rows = {r["label"]: r for r in summarise_results(results)}
        found.append(Case(name, study, folder, results, rows))
    entries: dict[str, Row] = {}
    for case in found:
        entries = {**case.rows, **entries}  # the first case's rows stand first in the end
    order = dict.fromkeys(label for case in found for label in case.rows)
    rows_in_order = [entries[label] for label in order]
    if control is None:
        learned = [m for case in found for m in report.learned_mixes(case.results)]
        learned += [r["control_of"] for r in rows_in_order if r["control_of"]]
        control = next(iter(learned), rows_in_order[0]["reference"])
    if control not in order:
        raise ValueError(f"control is {control!r}, which is no entry of {list(order)}")

    ranked = [label for label in order if all(_seeds(case, label) for case in found)]
    by_case = len(found) >= INDEPENDENT
    blocks = _blocks(found, ranked, by_case)
    enough = len(blocks) >= BLOCKS and len(ranked) >= 3 and control in ranked
    return Across(
        cases=found,
        entries=rows_in_order,
        control=control,
        ranking=rank(blocks, control) if enough else None,
        by_case=by_case,
        blocks=len(blocks),
        left_out=[label for label in order if label not in ranked],
    )


def _seeds(case: Case, label: str) -> dict[int, float]:
    """seed -> test accuracy [0, 1] of an entry's whole final trainings."""
    row = case.rows.get(label)
    return {} if row is None else dict(zip(row["seeds"], row["test_accuracies"], strict=True))


def _blocks(cases: Sequence[Case], labels: Sequence[str], by_case: bool) -> list[dict[str, float]]:
    """Accuracies [0, 1] by entry; only seeds that all of the entries have finished."""
    out = []
    for case in cases:
        by_label = {label: _seeds(case, label) for label in labels}
        seeds = sorted(set.intersection(*map(set, by_label.values()))) if by_label else []
        blocks = [{label: by_label[label][seed] for label in labels} for seed in seeds]
        if by_case and blocks:
            blocks = [{label: fmean(b[label] for b in blocks) for label in labels}]
        out += blocks
    return out


def write(cases: Cases, root: Place, control: str | None = None) -> Place:
    """report.html and its figures in `root`; the path of the page.

    The cases' own pages are linked: they are wherever the cases' folders are.
    """
    found = gather(cases, control)
    drawn = {
        "ranks": None
        if found.ranking is None
        else mix_figures.critical_difference(found.ranking, _looks(found)),
        "gain": _gain(found),
        "alpha": _alpha(found),
    }
    pictures = {k: figures.png(figure) if figure else None for k, figure in drawn.items()}
    report.keep_pictures(root, pictures)
    path = root / "report.html"
    write_whole(path, _page(found, pictures, root).encode())
    return path


def table(cases: Cases, control: str | None = None) -> Table:
    """For the terminal: entries x cases, or cases x entries where there are more of them."""
    found = gather(cases, control)
    spread = len(found.cases) < 5
    caption = (
        f"Test accuracy in %, mean{' ± standard deviation' * spread} over seeds; bold: the highest "
        f"mean of the case; * distinguishable from {found.reference} in that case after Holm's "
        "correction."
    )
    if found.ranking is not None:
        caption += f" Rank: mean over {_of_blocks(found)}; 1 is best."
    grid = []
    for line in _lines(found):
        cells = []
        for cell in line["cells"]:
            text = cell["text"] if spread else cell["short"]
            cells.append(f"[bold]{text}[/]" if cell["best"] else text)
        grid.append(["  " * bool(line["control_of"]) + line["label"], *cells, line["rank"]])
    grid.insert(0, ["method", *(case.name for case in found.cases), "rank"])
    if len(found.cases) > len(found.entries):  # terminals are higher than wide
        grid = [list(column) for column in zip(*grid, strict=True)]
        grid[0] = ["case", *(name.strip() for name in grid[0][1:])]
    out = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=caption, caption_justify="left")
    for i, name in enumerate(grid[0]):
        out.add_column(escape(name), justify="right" if i else "left", overflow="fold")
    for row in grid[1:]:
        out.add_row(*row)
    return out


def verdicts(cases: Cases, control: str | None = None) -> list[str]:
    """Short sentences: what holds across the cases, and what does not."""
    return _verdicts(gather(cases, control))


def published_of(cases: Cases) -> published.Cases:
    """What `published` makes its table and sentences of; nothing if no case has figures."""
    return _published(gather(cases))


def _published(found: Across) -> published.Cases:
    beside = {case.name: (case.study.published, case.rows) for case in found.cases}
    return beside if any(block is not None for block, _ in beside.values()) else {}


def _verdicts(found: Across) -> list[str]:
    out = [_wins(found, label) for label in _interesting(found)]
    out += _without_search(found)
    out += _friedman(found)
    if found.left_out:
        out.append(
            f"Not ranked, because some case has no finished training of it: "
            f"{', '.join(found.left_out)}."
        )
    for case in found.cases:
        missing = sum(len(row["missing_seeds"]) for row in case.rows.values())
        if missing:
            out.append(f"{case.name}: {missing} final trainings are missing.")
    return out


def _interesting(found: Across) -> list[str]:
    mixes = [m for case in found.cases for m in report.learned_mixes(case.results)]
    wanted = {found.control, *mixes} - {found.reference}
    return [label for label in found.labels if label in wanted]


def _wins(found: Across, label: str) -> str:
    """In which cases an entry beats the reference, and where it is the best of all."""
    names: dict[str, list[str]] = {"better": [], "worse": [], "open": [], "too few": []}
    best = []
    for case in found.cases:
        if label not in case.rows or not case.rows[label]["seeds"]:
            continue
        done = [r for r in case.rows.values() if r["test_accuracy_mean"] is not None]
        if max(done, key=lambda r: r["test_accuracy_mean"])["label"] == label:
            best.append(case.name)
        c, p = report.against_reference(list(case.rows.values()))[label]
        if c.n < ENOUGH:
            names["too few"].append(case.name)
        elif not c.distinguishable(p):
            names["open"].append(case.name)
        else:
            assert c.difference is not None
            names["better" if c.difference > 0 else "worse"].append(case.name)
    count = sum(map(len, names.values()))
    parts = [
        f"{word} in {len(which)} ({', '.join(which)})"
        for word, which in (
            ("better", names["better"]),
            ("worse", names["worse"]),
            ("not distinguishable", names["open"]),
            ("too few seeds to tell", names["too few"]),
        )
        if which
    ]
    highest = f"{len(best)} ({', '.join(best)})" if best else "none"
    if not parts:
        return f"{label} has no finished training in any case."
    return (
        f"{label} against {found.reference}, each case with Holm's correction, of {count} "
        f"case{'' if count == 1 else 's'}: {'; '.join(parts)}. It has the highest mean in "
        f"{highest}."
    )


def _without_search(found: Across) -> list[str]:
    """A learned mix against the same mix without a search: the sign of the difference by case."""
    signs: dict[tuple[str, str], list[float]] = {}
    for case in found.cases:
        for label in report.learned_mixes(case.results):
            for plain in report.equal_mixes_of(case.results, label):
                x, y = _seeds(case, label), _seeds(case, plain)
                if common := x.keys() & y.keys():
                    d = fmean(x[s] - y[s] for s in common)
                    signs.setdefault((label, plain), []).append(100 * d)
    return [
        f"{label} minus its search-free mix {plain}: "
        f"{', '.join(f'{d:+.2f}' for d in differences)} points by case; above zero in "
        f"{sum(d > 0 for d in differences)} of {len(differences)}."
        for (label, plain), differences in signs.items()
    ]


def _of_blocks(found: Across) -> str:
    if found.by_case:
        return f"{found.blocks} blocks, which are cases (means over their seeds)"
    return f"{found.blocks} blocks, which are (case, seed) pairs"


def _friedman(found: Across) -> list[str]:
    """What Friedman's test and the comparisons with the control say, or why none was made."""
    r = found.ranking
    if r is None:
        ranked = len(found.labels) - len(found.left_out)
        why = f"there are {_of_blocks(found)}, in which every entry has finished"
        if ranked < 3:
            why = f"only {ranked} entries have finished in every case, and it compares 3 or more"
        elif found.control in found.left_out:
            why = f"{found.control} has not finished in every case"
        return [f"No test of the ranks was made: {why}. It takes {BLOCKS} blocks."]
    out = []
    k = len(r.mean_ranks)
    test = f"Friedman's test of {k} entries in {_of_blocks(found)}: "
    test += "all ties" if math.isnan(r.statistic) else f"chi-square {r.statistic:.2f}"
    test += f", {k - 1} degrees of freedom, p = {_p(r.p_value)}"
    if r.rejected():
        out.append(f"{test}. The entries are not all the same.")
        parts: dict[str, list[str]] = {"better than": [], "worse than": [], "open": []}
        mine = r.mean_ranks[r.control]
        for name, p in r.against_control.items():
            said = f"{name} (rank {r.mean_ranks[name]:.2f}, p = {_p(p)})"
            key = "open" if p >= 1 - LEVEL else "better than"
            if key != "open" and mine > r.mean_ranks[name]:
                key = "worse than"
            parts[key].append(said)
        words = [
            f"{key} {', '.join(names)}" for key, names in parts.items() if names and key != "open"
        ]
        if parts["open"]:
            words.append(f"not distinguishable from {', '.join(parts['open'])}")
        out.append(
            f"{r.control} (mean rank {mine:.2f}) by rank, with Holm's correction for "
            f"{len(r.against_control)} comparisons: {'; '.join(words)}."
        )
    else:
        out.append(
            f"{test}. No difference between the entries was found, so no entry is held against "
            f"{r.control}."
        )
    if not found.by_case:
        out.append(
            f"Seeds of one case are not independent datasets: they share their test images. With "
            f"fewer than {INDEPENDENT} cases there is nothing else to rank in, and the p-values of "
            "the ranks are smaller than they ought to be."
        )
    if found.blocks <= 10:
        out.append(
            f"With {found.blocks} blocks the chi-square of Friedman's test is a rough "
            "approximation."
        )
    return out


def _p(p: float) -> str:
    return f"{p:.1e}" if p < 1e-3 else f"{p:.3f}"


def _looks(found: Across) -> dict[str, figures.Style]:
    return figures.looks(found.entries)


def _lines(found: Across) -> list[dict[str, Any]]:
    """Of the table: one per entry, a cell per case."""
    look = _looks(found)
    stars: list[dict[str, str]] = []
    best: list[str | None] = []
    for case in found.cases:
        family = report.against_reference(list(case.rows.values()))
        stars.append({k: "*" for k, (c, p) in family.items() if c.distinguishable(p)})
        done = [r for r in case.rows.values() if r["test_accuracy_mean"] is not None]
        top = max(done, key=lambda r: r["test_accuracy_mean"], default=None)
        best.append(None if top is None else top["label"])
    out = []
    for entry in found.entries:
        label = entry["label"]
        cells = []
        for case, star, top_label in zip(found.cases, stars, best, strict=True):
            row = case.rows.get(label)
            cells.append({**_cell(row, star.get(label, "")), "best": label == top_label})
        mean_rank = found.ranking.mean_ranks.get(label) if found.ranking else None
        out.append(
            {
                "label": label,
                "control_of": entry["control_of"],
                "look": look[label],
                "cells": cells,
                "rank_value": mean_rank,
                "rank": "-" if mean_rank is None else f"{mean_rank:.2f}",
            }
        )
    return out


def _cell(row: Row | None, star: str) -> dict[str, Any]:
    if row is None or row["test_accuracy_mean"] is None:
        return {"value": None, "text": "-", "short": "-", "cost_value": None, "cost": "-"}
    mean = row["test_accuracy_mean"]
    cost = row["relative_cost"]
    return {
        "value": 100 * mean,
        "text": in_per_cent(mean, row["test_accuracy_sd"]) + star,
        "short": in_per_cent(mean) + star,
        "cost_value": cost,
        "cost": "-" if cost is None else f"{cost:.2f}",
    }


# What the cases differ in


@dataclass(frozen=True)
class Axis:
    name: str
    log: bool
    ticks: dict[float, str]
    panels: dict[str, list[tuple[float, Case]]]
    """Cases that differ in nothing else, in rising order."""


def axis(cases: Sequence[Case]) -> Axis | None:
    """The one number that cases differ in, or differ in within each dataset; None if there is none.

    A panel holds at least two cases; cases without a partner are in none.
    """
    flat = [_flat(_settings(case.study)) for case in cases]
    varied = [key for key in AXES if len({f.get(key) for f in flat} - {None}) > 1]
    if len(varied) != 1:
        return None
    key = varied[0]
    groups: dict[str, list[tuple[float, Case]]] = {}
    for f, case in zip(flat, cases, strict=True):
        if f.get(key) is not None:
            rest = json.dumps({k: v for k, v in sorted(f.items()) if k != key})
            groups.setdefault(rest, []).append((float(f[key]), case))
    whole = [sorted(g, key=lambda pair: pair[0]) for g in groups.values()]
    whole = [g for g in whole if len({x for x, _ in g}) == len(g) > 1]
    if not whole:
        return None
    names: list[str] = [g[0][1].study.dataset.name for g in whole]
    if len(set(names)) < len(names):
        names = [f"{g[0][1].name} to {g[-1][1].name}" for g in whole]
    xs = sorted({x for g in whole for x, _ in g})
    return Axis(
        name=AXES[key],
        log=xs[0] > 0 and xs[-1] >= 4 * xs[0],
        ticks={x: f"{x:g}" for x in xs},
        panels=dict(zip(names, whole, strict=True)),
    )


def _settings(study: Study) -> dict[str, Any]:
    return study.model_dump(mode="json", include={"dataset", "model", "train", "val_fraction"})


def _flat(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= _flat(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return out


def gains(found: Across) -> tuple[Axis, dict[str, dict[str, list[Point]]]] | None:
    """panel -> label -> points above the reference, with the paired 95 % interval."""
    along = axis(found.cases)
    if along is None:
        return None
    out: dict[str, dict[str, list[Point]]] = {}
    for title, group in along.panels.items():
        for label in found.labels:
            points = []
            for x, case in group:
                row = case.rows.get(label)
                if label == found.reference or row is None or row["difference"] is None:
                    continue
                y = 100 * row["difference"]
                known = len(set(row["seeds"]) & set(case.rows[found.reference]["seeds"])) >= ENOUGH
                half = 100 * row["difference_half_width"] if known else 0.0
                points.append(Point(x, y, y - half, y + half))
            out.setdefault(title, {})[label] = points
    return along, out


def _gain(found: Across) -> Figure | None:
    if (known := gains(found)) is None:
        return None
    along, curves = known
    return mix_figures.over_cases(
        curves, _looks(found), x_name=along.name, ticks=along.ticks, log=along.log,
        y_name=f"points above {found.reference}",
    )  # fmt: skip


def mean_alphas(found: Across) -> tuple[Axis, dict[str, dict[str, list[Point]]]] | None:
    """kind -> learned mix -> its mean probability over classes, lowest to highest seed.

    Where the cases differ in no one number, they stand side by side; where there are several
    datasets, a mix has a curve in each.
    """
    along = axis(found.cases)
    if along is None:
        beside = [(float(i), case) for i, case in enumerate(found.cases)]
        ticks = {x: case.name for x, case in beside}
        along = Axis("case", False, ticks, {"": beside})
    out: dict[str, dict[str, list[Point]]] = {}
    for title, group in along.panels.items():
        for x, case in group:
            mixed = mix_figures.tables(case.results.finals)
            for label in report.learned_mixes(case.results):
                rows = list(mixed[label].values())
                for k, kind in enumerate(rows[0]["kinds"]):
                    shares = [float(np.mean(row["alpha"], axis=0)[k]) for row in rows]
                    name = label if len(along.panels) == 1 else f"{label}, {title}"
                    out.setdefault(kind, {}).setdefault(name, []).append(
                        Point(x, fmean(shares), min(shares), max(shares))
                    )
    return (along, out) if out else None


def _alpha(found: Across) -> Figure | None:
    if len(found.cases) < 2 or (known := mean_alphas(found)) is None:
        return None
    along, curves = known
    names = list(dict.fromkeys(name for c in curves.values() for name in c))
    look = _looks(found)
    if len(along.panels) > 1:  # several lines of one entry: a colour for each
        look = {
            name: figures.Style(figures.PALETTE[i % 10], figures.MARKERS[i % 12], False)
            for i, name in enumerate(names)
        }
    return mix_figures.over_cases(
        curves, look, x_name=along.name, ticks=along.ticks, log=along.log,
        y_name="mean probability", share=True,
    )  # fmt: skip


# The page


def _page(found: Across, pictures: Mapping[str, bytes | None], root: Place) -> str:
    beside = _published(found)
    return page.render(
        "cases.html.j2",
        name=found.cases[0].study.name,
        reference=found.reference,
        control=found.control,
        cases=[_about(case, root) for case in found.cases],
        lines=_lines(found),
        verdicts=_verdicts(found),
        published=beside
        and {
            "grid": published.grid(beside),
            "verdicts": published.verdicts_over_cases(beside),
        },
        ranking=found.ranking,
        blocks=_of_blocks(found),
        by_case=found.by_case,
        pictures={k: base64.b64encode(png).decode() for k, png in pictures.items() if png},
        along=axis(found.cases),
        enough=ENOUGH,
    )


def _about(case: Case, root: Place) -> dict[str, Any]:
    last = [rows[-1] for by_seed in case.results.finals.values() for rows in by_seed.values()]
    ranked = mix_figures.order(last)
    images = "-"
    if ranked is not None:
        images = f"{ranked.counts[0]:.4g}"
        if not ranked.even():
            images = f"{ranked.counts[-1]:.4g} to {ranked.counts[0]:.4g}"
    reached = [r["imbalance_effective"] for r in last if r.get("imbalance_effective") is not None]
    asked = [r["imbalance_nominal"] for r in last if r.get("imbalance_nominal") is not None]
    link = relative(case.folder.root / "report.html", root)
    return {
        "name": case.name,
        "link": quote(link),
        "dataset": case.study.dataset.name,
        "images": images,
        "asked": f"{asked[0]:g}" if asked else "-",
        "reached": f"{fmean(reached):.2g}" if reached else "-",
        "seeds": len(case.study.seeds),
        "headline": report.headline(list(case.rows.values())),
    }
