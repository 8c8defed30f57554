"""The results of a study in words: honest sentences, and the table's figures."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autoaug_ray.maths import statistics
from autoaug_ray.maths.statistics import ENOUGH, in_per_cent, in_points
from autoaug_ray.report import compare, cost_sentences
from autoaug_ray.report.compare import Entries, Order
from autoaug_ray.report.cost_sentences import number
from autoaug_ray.report.results import EntryResult, StudyResults
from autoaug_ray.report.terminal import Columns
from autoaug_ray.report.verdict import verdict

STILL = 0.02
"""A table of probabilities that are all closer to equal shares has learned next to nothing."""
PHASES = {
    "caption": "captions",
    "invert": "learned words",
    "generate": "generated images",
    "search": "search trainings",
    "final": "final trainings",
    "eval": "evaluation",
    "warm_up": "warm-up",
    "other": "loading, building, waiting",
}
"""What the meter's phases are called."""


def verdicts(results: StudyResults) -> list[str]:
    """Short sentences: what was learned, what can be told apart, what is missing."""
    return [
        *findings(results),
        *cost_sentences.verdicts(results),
        *_numbers_of_seeds(results.entries),
        *missing(results),
        *results.bill,
        *_about_test_set(results),
    ]


def findings(results: StudyResults) -> list[str]:
    """What was learned, and which entries can be told apart."""
    by_label = results.by_label
    out = [
        compare.paired(by_label[r.control_of], r).verdict(f"its control {r.label}")
        for r in results.entries
        if r.control_of
    ]
    return [*out, *_about_mixes(results), *_about_reference(results)]


def reservations(results: StudyResults) -> list[str]:
    """On how many seeds it all rests, and how the test set was used."""
    return [*_numbers_of_seeds(results.entries), *_about_test_set(results)]


def _numbers_of_seeds(entries: Entries) -> list[str]:
    counts = sorted({len(r.seeds) for r in entries})
    seeds = " to ".join(str(n) for n in {counts[0]: 0, counts[-1]: 0})
    out = [f"{seeds} finished seeds per entry."]
    if counts[0] < ENOUGH:
        out.append(
            f"With fewer than {ENOUGH} seeds an interval means nothing: no verdict is given there."
        )
    return out


def _about_test_set(results: StudyResults) -> list[str]:
    finals = sum(len(r.seeds) for r in results.entries)
    if not finals:
        return []
    closed = results.study.dataset.closed_test
    what = "What stands in for the closed test set" if closed else "The test set"
    more = "" if results.study.eliminate is None else ", but who got more seeds"
    return [
        f"{what} was read once by each of the {finals} final trainings, after the last epoch; "
        f"no setting was chosen by it{more}."
    ]


def _about_reference(results: StudyResults) -> list[str]:
    """Which entries are better or worse than the reference, as far as the seeds tell."""
    family = [
        (c, p) for c, p in compare.against_reference(results.entries).values() if c.n >= ENOUGH
    ]
    if not family:
        return []
    parts: dict[str, list[str]] = {"better": [], "worse": [], "not distinguishable": []}
    for c, p in family:
        parts[c.side(p)].append(c.name)
    listed = "; ".join(f"{word}: {', '.join(names)}" for word, names in parts.items() if names)
    return [
        f"Against {results.study.reference}, with Holm's correction for "
        f"{_plural(len(family), 'comparison')}: {listed}."
    ]


def missing(results: StudyResults) -> list[str]:
    """What did not finish, and what must not be trusted."""
    out = []
    factor, unit = compare.device_unit(results.entries)
    for r in results.entries:
        parts = []
        if r.missing_seeds:
            seeds = ", ".join(map(str, r.missing_seeds))
            parts.append(f"no finished final training for seed {seeds}")
        if r.failed:
            parts.append(f"{_plural(r.failed, 'run')} failed")
        if r.stopped:
            parts.append(f"{_plural(r.stopped, 'search trial')} stopped early by the scheduler")
        if r.lost_attempts:
            parts.append(
                f"{_plural(r.lost_attempts, 'attempt')} lost with the process, machine or "
                f"driver, and {factor * r.lost_device_hours:.2g} {unit} of work done again"
            )
        if parts:
            out.append(f"{r.label}: {'; '.join(parts)}.")
    out += [
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


# Mixes and uneven classes


def _about_mixes(results: StudyResults) -> list[str]:
    """Sentences on uneven classes, and on what the learned mixes of images learned and gained."""
    by_label, mixes = results.by_label, compare.learned_mixes(results)
    ranked = compare.order(results.last_rows)
    out = []
    if ranked is not None and not ranked.even():
        out.append(_imbalance(results, ranked))
    out += [
        compare.paired(by_label[label], by_label[plain]).verdict(f"its search-free mix {plain}")
        for label in mixes
        for plain in compare.equal_mixes_of(results, label)
        if by_label[plain].control_of != label  # else it stands among the controls already
    ]
    if ranked is not None and not ranked.even():
        out += _tails(results, ranked) + _best_by_macro(results.entries)
    out += [sentence for label in mixes for sentence in _learned(results, label)]
    factor, unit = compare.device_unit(results.entries)
    for r in results.entries:
        images = sum(r.device_hours[p] for p in ("caption", "invert", "generate"))
        if images and r.label in mixes:
            total, search = r.total_device_hours, r.device_hours["search"]
            out.append(
                f"{r.label}: of {factor * total:.3g} {unit}, {factor * images:.3g} went into "
                f"making the images that it mixes ({100 * images / total:.0f} %) and "
                f"{factor * search:.3g} into learning the mix ({100 * search / total:.0f} %)."
            )
    return out


def _best_by_macro(entries: Entries) -> list[str]:
    done = [(r.macro_accuracy_mean, r) for r in entries if r.macro_accuracy_mean is not None]
    if not done or not compare.macro_differs(entries):
        return []
    value, macro = max(done, key=lambda pair: pair[0])
    of_micro, micro = max(done, key=lambda pair: compare.mean_accuracy(pair[1]))
    if macro is micro:
        return []
    return [
        f"By macro accuracy, the mean over the classes, another entry is highest: "
        f"{macro.label} with {100 * value:.2f} %, before "
        f"{micro.label} with {100 * of_micro:.2f} %."
    ]


def _imbalance(results: StudyResults, ranked: Order) -> str:
    asked = [
        row["imbalance_nominal"]
        for row in results.last_rows
        if row.get("imbalance_nominal") is not None
    ]
    reached = ranked.counts[-1] / ranked.counts[0]
    text = f"Classes have {ranked.counts[0]:.4g} to {ranked.counts[-1]:.4g} training images"
    if asked and abs(reached / asked[0] - 1) > 0.05:
        text += f": a ratio of {reached:.2g}, where {asked[0]:g} was asked for"
    if not ranked.shared:
        text += ". Every seed has its own order of the classes: means are over classes of one rank"
    return text + "."


def _tails(results: StudyResults, ranked: Order) -> list[str]:
    """The gain over the reference in the rarest and in the most frequent third of the classes."""
    reference = results.study.reference
    base = compare.class_accuracies(results.finals, reference)
    head, tail = compare.thirds(len(ranked.counts))
    out = []
    for label in compare.told_apart_by_class(results):
        own = compare.class_accuracies(results.finals, label)
        if label == reference or not own.keys() & base.keys():
            continue
        parts = []
        for name, part in (("rarest", tail), ("most frequent", head)):
            x, y = (
                {s: float(v[part].mean()) for s, v in by.items() if v[part].count()}
                for by in (own, base)
            )
            if not x.keys() & y.keys():
                continue  # none of these classes was tested
            c = statistics.compare(label, x, reference, y)
            counts = ranked.counts[part]
            known = "" if c.n < ENOUGH or c.distinguishable() else "; not distinguishable"
            images = f"{counts[-1]:.4g}"
            if counts[0] > counts[-1]:
                images += f" to {counts[0]:.4g}"
            parts.append(f"the {name} third of the classes ({images} images): {c.figures()}{known}")
        out.append(f"{label} against {reference} in {'; in '.join(parts)}.")
    return out


def _learned(results: StudyResults, label: str) -> list[str]:
    """What a learned table is on average, and whether it is anything but equal shares."""
    rows = list(compare.tables(results.finals)[label].values())
    kinds = rows[0]["kinds"]
    ranked = compare.order(rows)
    alpha = compare.learned_table(rows, ranked)  # (seeds, classes, kinds)

    def shares(part: slice) -> str:
        means = alpha[:, part].mean(1)  # (seeds, kinds)
        spread = means.std(0, ddof=1) if len(means) > 1 else None
        return ", ".join(
            f"{kind} {means[:, k].mean():.2f}" + ("" if spread is None else f" ± {spread[k]:.2f}")
            for k, kind in enumerate(kinds)
        )

    text = f"{label} learned, as a mean over classes (± sd over seeds): {shares(slice(None))}"
    if ranked is not None and not ranked.even():
        head, tail = compare.thirds(len(ranked.counts))
        text += f"; in the rarest third: {shares(tail)}; in the most frequent: {shares(head)}"
    out = [text + "."]
    moved = float(np.abs(alpha - 1 / len(kinds)).max())
    if moved < STILL:
        out.append(
            f"That is next to nothing: no probability of {label} is further than {moved:.3f} from "
            f"equal shares, 1/{len(kinds)}."
        )
    return out


# The table


@dataclass(frozen=True)
class Line:
    """An entry with its figures as people read them; `-` where there is none."""

    entry: EntryResult
    accuracy: str
    """Mean, standard deviation and number of seeds."""
    macro: str
    top5: str
    difference: str
    """In points above the reference, with its interval and * where it is distinguishable."""
    cost: str
    search: str
    bank: str
    time: str
    """Device time of all attempts."""

    @property
    def label(self) -> str:
        return self.entry.label


def lines(results: StudyResults) -> list[Line]:
    """The lines of the table, one per entry."""
    entries = results.entries
    family = compare.against_reference(entries)
    factor, _ = compare.device_unit(entries)
    out = []
    for r in entries:
        c, p = family.get(r.label, (None, None))
        difference = ""
        if c is not None and c.difference is not None:
            difference = in_points(c.difference, c.half_width)
            difference += "*" if c.distinguishable(p) else ""
        accuracy = "-"
        if r.test_accuracy_mean is not None:
            accuracy = in_per_cent(r.test_accuracy_mean, r.test_accuracy_sd, len(r.seeds))
        out.append(
            Line(
                entry=r,
                accuracy=accuracy,
                macro="-" if r.macro_accuracy_mean is None else in_per_cent(r.macro_accuracy_mean),
                top5="-" if r.top5_accuracy_mean is None else in_per_cent(r.top5_accuracy_mean),
                difference=difference or "-",
                cost=cost_sentences.cost(r),
                search=number(r.relative_search_cost or None),
                bank=number(r.relative_bank_cost or None),
                time=f"{factor * r.total_device_hours:.2f}",
            )
        )
    return out


def phases_of(entries: Entries) -> dict[str, str]:
    """phase -> its name; those of generated images only where there are some."""
    always = ("search", "final", "eval", "other")
    spent = compare.hours(entries)
    return {phase: name for phase, name in PHASES.items() if phase in spent or phase in always}


def _indented(entry: EntryResult) -> str:
    """The label, of which a control has the part only that its learned entry above has not."""
    own = entry.label.removeprefix(f"{entry.control_of} ")
    return own if entry.control_of is None else f"  {own}"


def table(results: StudyResults) -> Columns:
    """The table for the terminal; a control is indented beside its learned entry.

    Where the classes are uneven, micro and macro accuracy are told apart.
    """
    entries, reference = results.entries, results.study.reference
    _, time_name = compare.device_unit(entries)
    classes_differ = compare.uneven(results)
    macro = classes_differ and compare.macro_differs(entries)
    top5 = compare.shows_top5(results)
    bank = compare.needs_bank(entries)
    about_accuracy = ""
    if classes_differ:
        about_accuracy = " Micro accuracy: all test images count the same"
        about_accuracy += (
            "; macro: all classes do." if macro else ", and so do all classes (micro = macro)."
        )
    caption = (
        "Mean ± standard deviation (n seeds); in brackets the paired 95 % interval; "
        f"* distinguishable from {reference} after Holm's correction; cost (search "
        f"{'and generated images ' * bank}included){',' if bank else ' and'} search"
        f"{' and images' * bank} in trainings of {reference}. Indented: controls of the entry "
        f"above.{about_accuracy}"
    )
    accuracy = "micro" if macro else "held-out" if results.study.dataset.closed_test else "test"
    head = [
        "method", f"{accuracy} accuracy %", *(["macro accuracy %"] * macro),
        *(["top-5 %"] * top5),
        f"points above {reference}", "cost", "search", *(["images"] * bank), "trials",
        time_name.replace("-", "-\n"),
    ]  # fmt: skip
    rows = [
        [
            _indented(line.entry), line.accuracy, *([line.macro] * macro),
            *([line.top5] * top5),
            line.difference, line.cost, line.search, *([line.bank] * bank), str(line.entry.trials),
            line.time,
        ]
        for line in lines(results)
    ]  # fmt: skip
    return Columns(head, rows, caption)


def markdown(results: StudyResults) -> str:
    """Verdict, table and sentences, as W&B's reports take them."""
    found, reference = verdict(results), results.study.reference
    head = ["method", "accuracy %", f"above {reference}", "cost", "search", "trials"]
    rows: list[Sequence[str]] = [head, ["---"] * len(head)]
    rows += [
        (x.label, x.accuracy, x.difference, x.cost, x.search, str(x.entry.trials))
        for x in lines(results)
    ]
    return "\n".join(
        [
            f"**{found.headline}**",
            "",
            *([f"What would change this answer: {found.change}", ""] if found.change else []),
            *(f"- {note}" for note in found.notes),
            *(["", f"`{found.load}`"] if found.load else []),
            "",
            *("|" + "|".join(row) + "|" for row in rows),
            "",
            f"Cost and search in trainings of {reference}.",
            "",
            *(f"- {sentence}" for sentence in verdicts(results)),
        ]
    )


def brief(value: Any) -> str:
    """A hyperparameter's value, cut where it is long."""
    text = f"{value:.4g}" if isinstance(value, float) else json.dumps(value)
    return text if len(text) < 60 else text[:57] + "..."


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"
