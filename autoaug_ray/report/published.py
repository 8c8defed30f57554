"""What a paper reported, beside what was measured.

A study's `published:` block holds the paper's figures. They are no part of any run, and choose
nothing: they are read when all has been measured. The arithmetic is `maths.statistics.gap`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from rich.text import Text

from autoaug_ray.maths.statistics import ENOUGH, Gap, in_per_cent, in_points, mean_of
from autoaug_ray.report.compare import Entries
from autoaug_ray.report.results import EntryResult, StudyResults, gap_to
from autoaug_ray.report.sentences import Line
from autoaug_ray.report.sentences import lines as lines_of_results
from autoaug_ray.report.terminal import Columns
from autoaug_ray.settings.published import Published, PublishedRow

Cases = Sequence[StudyResults]

MANY = 20
"""Intervals from which on it is said how many of them miss by chance."""
OURS = {"micro": "test accuracy %", "macro": "macro accuracy %"}
"""What our figures are called, by measure."""
WITHIN = "within it"
QUOTED = "quoted, not run"
SIGNS = {"exactly": "", "about": "~ ", "more than": "> ", "less than": "< "}


def accuracies(entry: EntryResult, published: Published) -> tuple[float, ...]:
    """Our accuracies [0, 1], over seeds, as the paper measures them."""
    return entry.macro_accuracies if published.measure == "macro" else entry.test_accuracies


def gaps(entries: Entries, published: Published) -> dict[str, Gap]:
    """Our mean minus the published figure, by label, where there are both."""
    found = {
        r.label: gap_to(published.entries.get(r.label), accuracies(r, published)) for r in entries
    }
    return {label: g for label, g in found.items() if g is not None}


# One study


@dataclass(frozen=True)
class PublishedLine:
    """A published figure beside ours, as people read them, and by which numbers they are sorted."""

    label: str
    line: Line | None
    """The entry's line of the study's table; None for what is quoted and not run."""
    ours: str
    ours_value: float | None
    published: str
    published_value: float
    apart: str
    """Ours minus published in points, with its interval; * where it leaves zero out."""
    apart_value: float | None
    top5: str
    """Ours / published."""
    top5_value: float | None
    published_cost: str
    published_cost_value: float | None

    @property
    def cost(self) -> str:
        return "-" if self.line is None else self.line.cost


def lines(results: StudyResults, published: Published) -> list[PublishedLine]:
    """The lines of entries that the paper has a figure of, then those of quoted ones."""
    known = gaps(results.entries, published)
    out = []
    for line in lines_of_results(results):
        if row := published.entries.get(line.label):
            ours = accuracies(line.entry, published)
            out.append(_line(line.label, row, line, ours, known.get(line.label)))
    return out + [_line(name, row, None, (), None) for name, row in published.quoted.items()]


def _line(
    label: str, row: PublishedRow, line: Line | None, ours: Sequence[float], g: Gap | None
) -> PublishedLine:
    mean = mean_of(ours) if ours else None
    top5 = line.entry.top5_accuracy_mean if line else None
    sd = None if row.sd is None else row.sd / 100
    return PublishedLine(
        label=label,
        line=line,
        ours=in_per_cent(mean.mean, mean.sd, mean.n) if mean else "-" if line else QUOTED,
        ours_value=mean.mean if mean else None,
        published=in_per_cent(row.accuracy / 100, sd, row.seeds),
        published_value=row.accuracy,
        apart="-" if g is None else in_points(g.difference, g.half_width) + "*" * g.outside(),
        apart_value=None if g is None else g.difference,
        top5=f"{line.top5 if line else '-'} / {'-' if row.top5 is None else f'{row.top5:.2f}'}",
        top5_value=top5,
        published_cost="-" if row.cost is None else f"{SIGNS[row.cost_is]}{row.cost:g}",
        published_cost_value=row.cost,
    )


def gives_cost(published: Published) -> bool:
    """Whether the paper tells what some system cost."""
    return any(row.cost for row in (*published.entries.values(), *published.quoted.values()))


def gives_top5(published: Published) -> bool:
    """Whether the paper tells the top-5 accuracy of some system."""
    return any(row.top5 for row in (*published.entries.values(), *published.quoted.values()))


def table(results: StudyResults, published: Published) -> Columns:
    """The table for the terminal."""
    cost, top5 = gives_cost(published), gives_top5(published)
    caption = (
        f"Published: {published.source}. Mean ± standard deviation (n seeds), as far as "
        "given; in brackets the 95 % interval of the difference; * it leaves zero out."
    )
    if cost:
        caption += f" Cost in trainings of {results.study.reference}, ours and the paper's."
    head = ["method", OURS[published.measure], "published %", "ours - published"]
    head += ["top-5 %, ours / published"] * top5
    shown = lines(results, published)
    rows = [
        [
            r.label, r.ours, r.published, r.apart, *([r.top5] * top5),
            *([r.cost, r.published_cost] * cost),
        ]
        for r in shown
    ]  # fmt: skip
    quoted = [i for i, r in enumerate(shown) if r.line is None]
    return Columns(head + ["cost", "published cost"] * cost, rows, caption, dim=quoted)


def verdicts(entries: Entries, published: Published) -> list[str]:
    """Short sentences: where our figures are the published ones, as far as our seeds can tell."""
    known = gaps(entries, published)
    out = []
    exact = {k: g for k, g in known.items() if g.half_width is not None and not g.welch}
    if exact:
        out.append(
            f"Against the published figures, each by its own 95 % interval: {_listed(exact)}. The "
            "paper gives no spread over a known number of seeds here, so the interval covers our "
            "seeds only."
        )
    if outside := {k: g for k, g in exact.items() if g.outside()}:
        still = [
            k for k, g in outside.items() if g.alike is not None and abs(g.difference) > g.alike
        ]
        out.append(
            "Had the paper's trainings varied as ours do (a figure without a number of seeds taken "
            f"for one training), outside would still be: {_names(still) or 'none of them'}."
        )
    if welch := {k: g for k, g in known.items() if g.half_width is not None and g.welch}:
        out.append(
            "Against the published means, by Welch's 95 % interval, which covers the paper's seeds "
            f"too: {_listed(welch)}."
        )
    if within := [g.half_width for g in known.values() if g.half_width and not g.outside()]:
        out.append(
            "Within is not the same as equal: the widest of these intervals reaches "
            f"{100 * max(within):.1f} points to each side."
        )
    if few := [k for k, g in known.items() if g.half_width is None]:
        out.append(
            f"Too few seeds for an interval around the difference ({ENOUGH} are needed): "
            f"{_names(few)}."
        )
    if missing := [k for k in published.entries if k not in known]:
        out.append(f"Published, but without a finished training here: {_names(missing)}.")
    for name, row in (published.entries | published.quoted).items():
        if row.note:
            out.append(f"{name}, as published: {row.note.rstrip('.')}.")
        if row.source:
            out.append(f"The published figure of {name} is from {row.source.rstrip('.')}.")
    if published.quoted:
        out.append(
            f"Quoted from the paper and not run here: {_names(published.quoted)}. Nothing was "
            "checked about them."
        )
    out += [f"Note on the paper: {note.rstrip('.')}." for note in published.notes]
    return out


def _sides(known: Mapping[str, Gap]) -> dict[str, list[str]]:
    """On which side of the published figure ours are, as far as the intervals tell."""
    parts = {
        WITHIN: [k for k, g in known.items() if not g.outside()],
        "ours above": [k for k, g in known.items() if g.outside() and g.difference > 0],
        "ours below": [k for k, g in known.items() if g.outside() and g.difference < 0],
    }
    return {side: names for side, names in parts.items() if names}


def _listed(known: Mapping[str, Gap]) -> str:
    return "; ".join(f"{side}: {_names(names)}" for side, names in _sides(known).items())


def _names(names: Iterable[str]) -> str:
    return ", ".join(names)


# Several cases


@dataclass(frozen=True)
class Cell:
    """One entry in one case."""

    figures: str
    """Ours / published."""
    apart: str
    """Ours minus published, in points."""
    ran: bool


Grid = dict[str, dict[str, Cell]]
"""Name of a row -> name of a column -> cell."""


def grid(cases: Cases) -> Grid:
    """Entries that are published in some case, then the quoted, x cases.

    The other way round where there are more cases than entries: pages are higher than wide.
    """
    blocks = [(case.study.published, case) for case in cases if case.study.published is not None]
    ran = dict.fromkeys(k for block, case in blocks for k in case.by_label if k in block.entries)
    quoted = dict.fromkeys(k for block, _ in blocks for k in block.quoted if k not in ran)
    names = {k: k for k in ran} | {k: f"{k} ({QUOTED})" for k in quoted}
    out = {name: {case.name: _cell(label, case) for case in cases} for label, name in names.items()}
    if not out or len(cases) <= len(out):
        return out
    return {
        case.name: {name: by_case[case.name] for name, by_case in out.items()} for case in cases
    }


def _cell(label: str, case: StudyResults) -> Cell:
    block = case.study.published
    row = None if block is None else (block.entries | block.quoted).get(label)
    published = "-" if row is None else f"{row.accuracy:.2f}"
    entry = case.by_label.get(label)
    if entry is None:
        return Cell(published, "", False)
    values = entry.test_accuracies if block is None else accuracies(entry, block)
    g = gap_to(row, values)
    return Cell(
        f"{in_per_cent(fmean(values)) if values else '-'} / {published}",
        "-" if g is None else in_points(g.difference, None) + "*" * g.outside(),
        True,
    )


def table_over_cases(cases: Cases) -> Columns:
    """The table for the terminal."""
    caption = (
        "Accuracy in %, as the paper measures it, ours / published; below it ours - published in "
        "points; * the 95 % interval of the difference leaves zero out."
    )
    by_row = grid(cases)
    head = ["", *next(iter(by_row.values()))]
    rows: list[list[str | Text]] = []
    for name, cells in by_row.items():
        shown = [
            f"{c.figures}\n{c.apart}" if c.ran else Text(c.figures, "dim") for c in cells.values()
        ]
        rows.append([name, *shown])
    return Columns(head, rows, caption)


def verdicts_over_cases(cases: Cases) -> list[str]:
    """One sentence for each published entry, then what the papers' readers must know."""
    found: dict[str, dict[str, Gap]] = {}  # label -> case -> gap
    blocks = [(case, case.study.published) for case in cases if case.study.published is not None]
    for case, block in blocks:
        for label, g in gaps(case.entries, block).items():
            found.setdefault(label, {})[case.name] = g
    out = []
    for label, by_case in found.items():
        sides = _sides({k: g for k, g in by_case.items() if g.half_width is not None})
        if few := [k for k, g in by_case.items() if g.half_width is None]:
            sides["too few seeds to tell"] = few
        parts = [
            f"{side} in {len(names)}" + ("" if side == WITHIN else f" ({_names(names)})")
            for side, names in sides.items()
        ]
        mean = fmean(g.difference for g in by_case.values())
        out.append(
            f"{label} against its published figures, each case by its own 95 % interval: "
            f"{'; '.join(parts)}. Mean difference over {len(by_case)} "
            f"case{'' if len(by_case) == 1 else 's'}: {100 * mean:+.2f} points."
        )
    count = sum(g.half_width is not None for by_case in found.values() for g in by_case.values())
    if count >= MANY:
        out.append(
            f"Of {count} intervals at 95 %, some {count / 20:.0f} leave zero out by chance where "
            "nothing differs."
        )
    if any(not g.welch for by_case in found.values() for g in by_case.values()):
        out.append("Where the paper gives no spread, an interval covers our seeds only.")
    sources = dict.fromkeys(block.source.rstrip(".") for _, block in blocks)
    notes = dict.fromkeys(note.rstrip(".") for _, block in blocks for note in block.notes)
    return [
        *out,
        *(f"Published figures: {source}." for source in sources),
        *(f"Note on the paper: {note}." for note in notes),
    ]
