"""A study's folder -> a table, honest sentences, figures, and one self-contained page.

The words are made here, from the summary alone; the figures are in `figures`, the arithmetic is in
`summary` and `maths.statistics`.
"""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import yaml
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from autoaug_ray.config import Study
from autoaug_ray.maths.statistics import ENOUGH, Comparison, compare, holm, in_per_cent, in_points
from autoaug_ray.report import figures, published
from autoaug_ray.report import html as page
from autoaug_ray.report import mixes as mix_figures
from autoaug_ray.report.results import (
    Results,
    Row,
    collect,
    summarise,
    summarise_results,
    write_summary,
)
from autoaug_ray.store.folder import Folder, write_whole
from autoaug_ray.store.places import Place

__all__ = ["headline", "lines", "summarise", "table", "verdicts", "write", "write_summary"]


NOISY_CLOCK = 1.25
"""Said if the same training takes so many times as long with one seed as with another."""
TOLERANCE = 1.1
"""The headline calls an entry cheaper only if it is so by this factor, or by the clock's noise."""


def write(study: Study, folder: Folder, classes: Sequence[str] = ()) -> Place:
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
        **_mix_pictures(results, summary, classes),
    }
    keep_pictures(folder.root, pictures)
    sheet = folder.root / "sheet.png"
    pictures["sheet"] = sheet.read_bytes() if sheet.is_file() else None
    path = folder.root / "report.html"
    write_whole(path, _page(results, folder, summary, pictures, bool(moved)).encode())
    return path


def keep_pictures(root: Place, pictures: Mapping[str, bytes | None]) -> None:
    """NAME.png for each; one that has no data any more is removed."""
    for name, png in pictures.items():
        path = root / f"{name}.png"
        if png is None:
            path.unlink(missing_ok=True)  # of an earlier report
        else:
            write_whole(path, png)


def _mix_pictures(
    results: Results, summary: Sequence[Row], classes: Sequence[str]
) -> dict[str, bytes | None]:
    mixes = learned_mixes(results)
    chosen = _chosen(results, summary)
    drawn: dict[str, Figure | None] = {
        "frequency": mix_figures.frequency(summary, results.finals, chosen, classes),
        "mixture": mix_figures.mixture(summary, results.finals, mixes, classes),
        "trajectories": mix_figures.trajectories(results.searches, mixes),
        "device_hours": mix_figures.device_hours(summary),
    }
    return {name: figures.png(figure) if figure else None for name, figure in drawn.items()}


def table(
    summary: Sequence[Row], study: Study | None = None, folder: Folder | None = None
) -> Table:
    """For the terminal; a control is indented beside its learned entry.

    With the study and its folder it is known whether the classes are uneven: then micro and macro
    accuracy are told apart.
    """
    reference = summary[0]["reference"]
    _, time_name = _time(summary)
    uneven = study is not None and folder is not None and _uneven(collect(study, folder))
    macro = uneven and _macro_differs(summary)
    bank = needs_bank(summary)
    about_accuracy = ""
    if uneven:
        about_accuracy = " Micro accuracy: all test images count the same"
        about_accuracy += (
            "; macro: all classes do." if macro else ", and so do all classes (micro = macro)."
        )
    out = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        caption="Mean ± standard deviation (n seeds); in brackets the paired 95 % interval; "
        f"* distinguishable from {reference} after Holm's correction; cost (search "
        f"{'and generated images ' * bank}included){',' if bank else ' and'} search"
        f"{' and images' * bank} in trainings of {reference}. Indented: controls.{about_accuracy}",
        caption_justify="left",
    )
    out.add_column("method", overflow="fold")
    closed = study is not None and study.dataset.closed_test
    accuracy = "micro" if macro else "held-out" if closed else "test"
    for name in (
        f"{accuracy} accuracy %", *(["macro accuracy %"] * macro),
        f"points above {reference}", "cost", "search", *(["images"] * bank), "trials", time_name,
    ):  # fmt: skip
        out.add_column(name, justify="right", overflow="fold")
    for r in lines(summary):
        mark = "  " if r["control_of"] else ""
        out.add_row(
            mark + r["label"], r["accuracy"], *([r["macro"]] * macro), r["difference"], r["cost"],
            r["search"], *([r["bank"]] * bank), r["trials"], r["time"],
        )  # fmt: skip
    return out


def needs_bank(summary: Sequence[Row]) -> bool:
    """Whether some entry mixes generated images, and pays for them."""
    return any(r.get("relative_bank_cost") for r in summary)


def _uneven(results: Results) -> bool:
    """Whether the classes have different numbers of training images."""
    ranked = mix_figures.order(_last_rows(results))
    return ranked is not None and not ranked.even()


def _last_rows(results: Results) -> list[Row]:
    return [rows[-1] for by_seed in results.finals.values() for rows in by_seed.values()]


def _macro_differs(summary: Sequence[Row]) -> bool:
    """Whether micro and macro accuracy do, that is, whether the test classes are uneven too."""
    pairs = [(r["test_accuracy_mean"], r.get("macro_accuracy_mean")) for r in summary]
    return any(abs(a - b) > 5e-5 for a, b in pairs if a is not None and b is not None)


def learned_mixes(results: Results) -> list[str]:
    """Labels of the entries that learned how to mix kinds of images."""
    found = mix_figures.learned(results.searches).keys()
    return [label for label in mix_figures.tables(results.finals) if label in found]


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
    results = None if study is None or folder is None else collect(study, folder)
    return _verdicts(summary, results)


def _verdicts(summary: Sequence[Row], results: Results | None) -> list[str]:
    by_label = {r["label"]: r for r in summary}
    reference = by_label[summary[0]["reference"]]
    out = [
        _paired(by_label[r["control_of"]], r).verdict(f"its control {r['label']}")
        for r in summary
        if r["control_of"]
    ]
    if results is not None:
        out += _mix_verdicts(results, summary)
    family = [(c, p) for c, p in against_reference(summary).values() if c.n >= ENOUGH]
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
    if results is not None:
        out += _warnings(results) + results.bill
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
        closed = results is not None and results.study.dataset.closed_test
        what = "What stands in for the closed test set" if closed else "The test set"
        out.append(
            f"{what} was read once by each of the {finals} final trainings, after the last epoch; "
            "no setting was chosen by it."
        )
    return out


STILL = 0.02
"""A table of probabilities that are all closer to equal shares is said to have learned nothing."""


def _mix_verdicts(results: Results, summary: Sequence[Row]) -> list[str]:
    """Sentences on uneven classes, and on what the learned mixes of images learned and gained."""
    by_label = {r["label"]: r for r in summary}
    reference = by_label[summary[0]["reference"]]
    mixes = learned_mixes(results)
    out = _imbalance(results)
    out += [
        _paired(by_label[label], by_label[plain]).verdict(f"its search-free mix {plain}")
        for label in mixes
        for plain in equal_mixes_of(results, label)
        if by_label[plain]["control_of"] != label  # said already
    ]
    if _uneven(results):
        out += _tails(results, reference["label"], _chosen(results, summary))
        done = [r for r in summary if r.get("macro_accuracy_mean") is not None]
        if done and _macro_differs(summary):
            best, micro = (
                max(done, key=lambda r: r[key])
                for key in ("macro_accuracy_mean", "test_accuracy_mean")
            )
            if best is not micro:
                out.append(
                    f"By macro accuracy, the mean over the classes, another entry is highest: "
                    f"{best['label']} with {100 * best['macro_accuracy_mean']:.2f} %, before "
                    f"{micro['label']} with {100 * micro['macro_accuracy_mean']:.2f} %."
                )
    out += [sentence for label in mixes for sentence in _learned(results, label)]
    for r in summary:
        made = sum(r.get(f"device_hours_{p}") or 0.0 for p in ("caption", "invert", "generate"))
        if made and r["label"] in mixes:
            total, search = r["total_device_hours"], r["device_hours_search"]
            factor, unit = _time(summary)
            out.append(
                f"{r['label']}: of {factor * total:.3g} {unit}, {factor * made:.3g} went into "
                f"making the images that it mixes ({100 * made / total:.0f} %) and "
                f"{factor * search:.3g} into learning the mix ({100 * search / total:.0f} %)."
            )
    return out


def _chosen(results: Results, summary: Sequence[Row]) -> list[str]:
    """Entries that are looked at class by class: few enough to be told apart in a figure."""
    mixes = learned_mixes(results)
    plain = [p for label in mixes for p in equal_mixes_of(results, label)]
    return mix_figures.interesting(summary, [*mixes, *plain])


def equal_mixes_of(results: Results, label: str) -> list[str]:
    """Entries that mix the same kinds as the learned one, all with the same constant probability.

    That is AutoGenDA's search-free baseline (its appendix D).
    """
    mixed = mix_figures.tables(results.finals)
    kinds = set(next(iter(mixed[label].values()))["kinds"])
    then = _then(results, label)
    return [
        other
        for other, by_seed in mixed.items()
        if other not in mix_figures.learned(results.searches)
        and _then(results, other) == then
        and all(
            set(row["kinds"]) == kinds and np.allclose(row["alpha"], 1 / len(kinds), atol=1e-4)
            for row in by_seed.values()
        )
    ]


def _then(results: Results, label: str) -> Any:
    """What is done to an image after it was chosen, as the entry's runs say."""
    row = next(iter(results.finals[label].values()))[-1]
    return json.loads(row["settings"])["method"].get("then")


def _imbalance(results: Results) -> list[str]:
    last = _last_rows(results)
    ranked = mix_figures.order(last)
    if ranked is None or ranked.even():
        return []
    asked = [r["imbalance_nominal"] for r in last if r.get("imbalance_nominal") is not None]
    reached = ranked.counts[-1] / ranked.counts[0]
    text = f"Classes have {ranked.counts[0]:.4g} to {ranked.counts[-1]:.4g} training images"
    if asked and abs(reached / asked[0] - 1) > 0.05:
        text += f": a ratio of {reached:.2g}, where {asked[0]:g} was asked for"
    if not ranked.shared:
        text += ". Every seed has its own order of the classes: means are over classes of one rank"
    return [text + "."]


def _tails(results: Results, reference: str, chosen: Iterable[str]) -> list[str]:
    """The gain over the reference in the rarest and in the most frequent third of the classes."""
    ranked = mix_figures.order(_last_rows(results))
    base = mix_figures.class_accuracies(results.finals, reference)
    if ranked is None or not base:
        return []
    head, tail = mix_figures.thirds(len(ranked.counts))
    out = []
    for label in chosen:
        mine = mix_figures.class_accuracies(results.finals, label)
        if label == reference or not mine.keys() & base.keys():
            continue
        parts = []
        for name, part in (("rarest", tail), ("most frequent", head)):
            x, y = ({s: float(v[part].mean()) for s, v in by.items()} for by in (mine, base))
            c = compare(label, x, reference, y)
            counts = ranked.counts[part]
            known = "" if c.n < ENOUGH or c.distinguishable() else "; not distinguishable"
            images = f"{counts[-1]:.4g}"
            if counts[0] > counts[-1]:
                images += f" to {counts[0]:.4g}"
            parts.append(f"the {name} third of the classes ({images} images): {c.figures()}{known}")
        out.append(f"{label} against {reference} in {'; in '.join(parts)}.")
    return out


def _learned(results: Results, label: str) -> list[str]:
    """What a learned table says on average, and whether it is anything but equal shares."""
    rows = list(mix_figures.tables(results.finals)[label].values())
    kinds = rows[0]["kinds"]
    ranked = mix_figures.order(rows)
    alpha = np.stack(
        [mix_figures.by_frequency(r, r["alpha"]) if ranked else np.array(r["alpha"]) for r in rows]
    )  # (seeds, classes, kinds)

    def shares(part: slice) -> str:
        means = alpha[:, part].mean(1)  # (seeds, kinds)
        spread = means.std(0, ddof=1) if len(means) > 1 else None
        return ", ".join(
            f"{kind} {means[:, k].mean():.2f}" + ("" if spread is None else f" ± {spread[k]:.2f}")
            for k, kind in enumerate(kinds)
        )

    text = f"{label} learned, as a mean over classes (± sd over seeds): {shares(slice(None))}"
    if ranked is not None and not ranked.even():
        head, tail = mix_figures.thirds(len(ranked.counts))
        text += f"; in the rarest third: {shares(tail)}; in the most frequent: {shares(head)}"
    out = [text + "."]
    moved = float(np.abs(alpha - 1 / len(kinds)).max())
    if moved < STILL:
        out.append(
            f"That is next to nothing: no probability of {label} is further than {moved:.3f} from "
            f"equal shares, 1/{len(kinds)}."
        )
    return out


def _clock_noise(summary: Sequence[Row]) -> float:
    return max((r["clock_spread"] for r in summary if r["clock_spread"]), default=1.0)


def _missing(summary: Sequence[Row]) -> list[str]:
    out = []
    factor, unit = _time(summary)
    for r in summary:
        parts = []
        if r["missing_seeds"]:
            seeds = ", ".join(map(str, r["missing_seeds"]))
            parts.append(f"no finished final training for seed {seeds}")
        if r["failed"]:
            parts.append(f"{_plural(r['failed'], 'run')} failed")
        if r["stopped"]:
            parts.append(f"{_plural(r['stopped'], 'search trial')} stopped early by the scheduler")
        if r["lost_attempts"]:
            parts.append(
                f"{_plural(r['lost_attempts'], 'attempt')} lost with the process, machine or "
                f"driver, and {factor * r['lost_device_hours']:.2g} {unit} of work done again"
            )
        if parts:
            out.append(f"{r['label']}: {'; '.join(parts)}.")
    return out


def _warnings(results: Results) -> list[str]:
    out = [
        f"Run {key} did not use the settings that it was asked to: do not trust its entry."
        for key in results.misused
    ]
    out += results.bank_faults
    if results.foreign:
        out.append(
            f"{_plural(results.foreign, 'run')} in this folder with other settings than this "
            "study's: not counted."
        )
    return out


def _paired(a: Row, b: Row) -> Comparison:
    x, y = (dict(zip(r["seeds"], r["test_accuracies"], strict=True)) for r in (a, b))
    return compare(a["label"], x, b["label"], y)


def against_reference(summary: Sequence[Row]) -> dict[str, tuple[Comparison, float | None]]:
    """Every other entry against the reference, with its p-value after Holm's correction."""
    reference = next(r for r in summary if r["label"] == r["reference"])
    comparisons = [_paired(r, reference) for r in summary if r is not reference]
    p_values = holm([c.p_value if c.n >= ENOUGH else None for c in comparisons])
    return {c.name: (c, p) for c, p in zip(comparisons, p_values, strict=True)}


def lines(summary: Sequence[Row]) -> list[Row]:
    """The summary's rows with their figures as people read them."""
    family = against_reference(summary)
    factor, _ = _time(summary)
    look = figures.looks(summary)
    phases = phases_of(summary)
    out = []
    for r in summary:
        n, mean = len(r["seeds"]), r["test_accuracy_mean"]
        c, p = family.get(r["label"], (None, None))
        difference = ""
        if c is not None and c.difference is not None:
            difference = in_points(c.difference, c.half_width)
            difference += "*" if c.distinguishable(p) else ""
        out.append(
            {
                **r,
                "accuracy": in_per_cent(mean, r["test_accuracy_sd"], n) if n else "-",
                "difference_mean": r["difference"],
                "difference": difference or "-",
                "cost": _number(r, "relative_cost"),
                "search": _number(r, "relative_search_cost") if r["search_device_hours"] else "-",
                "bank_cost": r.get("relative_bank_cost"),
                "bank": f"{r['relative_bank_cost']:.2f}" if r.get("relative_bank_cost") else "-",
                "time": f"{factor * r['total_device_hours']:.2f}",
                "trials": str(r["trials"]),
                "choices": {k: _short(v) for k, v in json.loads(r["choices"]).items()},
                "look": look[r["label"]],
                "macro_mean": r.get("macro_accuracy_mean"),
                "macro": "-" if r.get("macro_accuracy_mean") is None
                else f"{100 * r['macro_accuracy_mean']:.2f}",
                "hours": [f"{factor * r[f'device_hours_{p}']:.2f}" for p in phases],
            }
        )  # fmt: skip
    return out


def phases_of(summary: Sequence[Row]) -> dict[str, str]:
    """phase -> its name; those of generated images only where there are some."""
    spent = mix_figures.hours(summary)
    always = ("search", "final", "eval", "other")
    return {
        phase: name
        for phase, (name, _) in mix_figures.PHASES.items()
        if phase in spent or phase in always
    }


def _page(
    results: Results,
    folder: Folder,
    summary: Sequence[Row],
    pictures: Mapping[str, bytes | None],
    shifted: bool,
) -> str:
    settings = results.study.model_dump(mode="json", exclude_defaults=True)
    searches = {
        label: [
            {
                "choices": _varied(results, label, rows[-1]),
                "accuracy": rows[-1]["val_accuracy"],
                "epoch": rows[-1]["epoch"],
                "finished": rows[-1]["finished"],
            }
            for rows in shown
        ]
        for label, trials in results.searches.items()
        # One that learns a mix is no trial: there is one per seed, and nothing to choose.
        if (shown := [rows for rows in trials if not mix_figures.learns(rows[-1])])
    }
    uneven = _uneven(results)
    paper = results.study.published
    table_lines = lines(summary)
    _, time_name = _time(summary)
    return page.render(
        "report.html.j2",
        study=results.study,
        case=getattr(results.study, "case", None),
        uneven=uneven,
        macro=uneven and _macro_differs(summary),
        mixes=learned_mixes(results),
        bank=needs_bank(summary),
        ranked=mix_figures.order(_last_rows(results)),
        reference=results.study.reference,
        headline=headline(summary),
        verdicts=_verdicts(summary, results),
        missing=_missing(summary) + _warnings(results),
        lines=table_lines,
        published=paper
        and {
            "lines": published.lines(table_lines, paper),
            "ours": published.OURS[paper.measure],
            "cost": published.gives_cost(paper),
            "verdicts": published.verdicts(summary, paper),
        },
        time_name=time_name,
        plot=page.accuracy_vs_cost(table_lines, time_name, ENOUGH),
        library=page.library(),
        policies=page.policies(results, folder),
        phases=phases_of(summary),
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
