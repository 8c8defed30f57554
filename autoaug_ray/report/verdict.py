"""What to do with the results of a study: one of three answers, in the same words everywhere.

*use*: an entry whose difference to the cheapest one has an interval above zero, also after Holm's
correction for the number of entries. *cheapest*: there is none such. *too early*: it cannot be told
yet. Differences are paired over the seeds, and cover the choice of the test images where it is
known which of them each training classified correctly.

Candidates are the entries that are no controls and whose seeds have all finished. The cheapest is
the simplest of those than which no other one is clearly cheaper, and costs do not depend on
accuracies: so at most one study in twenty in which all are equally accurate says *use*. Of several
entries above the cheapest, the one to use is the cheapest and simplest among those that cannot be
told from the most accurate of them.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from autoaug_ray.maths.statistics import (
    ENOUGH,
    LEVEL,
    POWER,
    Comparison,
    Parts,
    holm,
    in_points,
    resolution,
)
from autoaug_ray.report.compare import Entries, cheaper, mean_accuracy, paired
from autoaug_ray.report.cost_sentences import in_words, number
from autoaug_ray.report.results import EntryResult, StudyResults

Answer = Literal["use", "cheapest", "too early"]
LOOKS = (3, 5, 8)
"""Seeds after which a pilot, of which the test set is closed, is looked at: its answers are given
at a third of the error, so that all looks together have no more (Bonferroni)."""


@dataclass(frozen=True)
class Verdict:
    """What to use, and what there is to know about it."""

    answer: Answer
    use: EntryResult | None
    """None where it is too early."""
    headline: str
    notes: tuple[str, ...] = ()
    """Sentences about what the headline does not cover."""
    load: str | None = None
    """The line of Python that loads the policy of what to use, if there is one."""

    @property
    def says(self) -> str:
        """The words with which `headline` begins."""
        if self.use is None:
            return "Too early to say what to use"
        return f"Use {'the cheapest, ' * (self.answer == 'cheapest')}{self.use.label}"


def verdict(results: StudyResults) -> Verdict:
    """What the results of a study, or of one of its cases, say to use."""
    failed, early = _failed(results), _too_early(results)
    if early is not None:
        return Verdict("too early", None, f"Too early to say what to use: {early}")
    known = [
        r for r in candidates(results) if r.label not in failed and r.relative_cost is not None
    ]
    base = simplest(known, results)
    error = (1 - LEVEL) / (len(LOOKS) if results.study.dataset.closed_test else 1)
    others = [r for r in known if r is not base]
    found = {r.label: paired(r, base, 1 - error) for r in others}
    corrected = holm([c.p_value for c in found.values()])
    above = [
        r
        for r, p in zip(others, corrected, strict=True)
        if p is not None and p < error and _points(found[r.label]) > 0
    ]
    if not above:
        nearest = max(others, key=lambda r: _points(found[r.label]), default=None)
        comparison = None if nearest is None else found[nearest.label]
        headline = _headline_cheapest(base, nearest, comparison, error, len(others))
        return _said("cheapest", base, headline, comparison, results, failed)
    best = max(above, key=mean_accuracy)
    ties = {r.label: paired(best, r, 1 - error) for r in above if r is not best}
    as_good = [r for r in above if r is best or not _told(ties[r.label], error)]
    use = simplest(as_good, results)
    comparison = found[use.label]
    headline = (
        f"Use {use.label} ({_at(use)}): {_interval(comparison)} against the cheapest, {base.label} "
        f"({_at(base)}), at {_sizes(comparison)}."
    )
    if use is not best:
        headline += (
            f" {best.label} ({_at(best)}) has the highest mean, but is not distinguishable from "
            f"it: {_interval(ties[use.label])}."
        )
    return _said("use", use, headline, comparison, results, failed, best)


def candidates(results: StudyResults) -> list[EntryResult]:
    """The entries that may be recommended: all but controls."""
    return [r for r in results.entries if r.control_of is None]


def simplest(entries: Entries, results: StudyResults) -> EntryResult:
    """Among the entries than which no other one is clearly cheaper: the reference, else one that
    neither searches nor learns, else that of the lowest mean cost."""
    cheap = [r for r in entries if not any(cheaper(other, r) for other in entries)]

    def order(r: EntryResult) -> tuple[bool, bool, float]:
        learns = results.study.entry(r.label).first_method.learns
        return r.label != r.reference, learns or bool(r.relative_search_cost), r.relative_cost or 0

    return min(cheap, key=order)


def _failed(results: StudyResults) -> dict[str, tuple[int, ...]]:
    """label -> seeds that will not finish: runs of the entry, or of the one it follows, failed."""
    fallen = {row["label"] for row in results.failures}
    return {
        r.label: r.missing_seeds
        for r in candidates(results)
        if r.missing_seeds and {r.label, results.study.entry(r.label).first_method.follows} & fallen
    }


def _too_early(results: StudyResults) -> str | None:
    """Why nothing can be said yet; None if something can."""
    entries, failed = candidates(results), _failed(results)
    if not any(r.seeds for r in entries):
        return "no final training has finished yet."
    waiting = [r for r in entries if r.missing_seeds and r.label not in failed]
    if waiting:
        missing = sum(len(r.missing_seeds) for r in waiting)
        names = ", ".join(f"{r.label} {len(r.missing_seeds)}" for r in waiting)
        total = len(entries) * len(results.study.seeds)
        return (
            f"{missing} of {total} final trainings have not finished ({names}); --resume goes on."
        )
    whole = [r for r in entries if r.label not in failed]
    if not whole:
        return "of every entry some final training failed."
    if (seeds := len(results.study.seeds)) < ENOUGH:
        return (
            f"{seeds} {'seed tells' if seeds == 1 else 'seeds tell'} nothing apart; run at least "
            f"{ENOUGH} (--seeds {ENOUGH} --resume)."
        )
    if not any(r.relative_cost is not None for r in whole):
        return (
            "costs cannot be compared, as there is no seed with which both an entry and the "
            f"reference {results.study.reference} have finished, and whose work is known."
        )
    return None


# Words

_SURELY = f"{100 * POWER:.0f} %"


def _headline_cheapest(
    base: EntryResult,
    nearest: EntryResult | None,
    comparison: Comparison | None,
    error: float,
    others: int,
) -> str:
    if nearest is None or comparison is None or comparison.parts is None:
        return f"Use the cheapest, {base.label} ({_at(base)}): there is no other entry to use."
    text = (
        f"Use the cheapest, {base.label} ({_at(base)}): nothing is distinguishably more accurate "
        f"at {_sizes(comparison)}."
    )
    alpha, parts = error / others, comparison.parts
    if _points(comparison) <= 0:
        least = 100 * float(parts.detectable(alpha))
        text += " No other entry has a higher mean."
        if least < 0.05:  # accuracies that do not vary, as where all images are easy
            return text
        return (
            f"{text} One that is {least:.1f} points better would have been found with a chance of "
            f"{_SURELY}."
        )
    return (
        f"{text} The nearest, {nearest.label} ({_at(nearest)}), has {_interval(comparison)}; "
        f"{_power(parts, _points(comparison) / 100, alpha)}"
    )


def _power(parts: Parts, difference: float, alpha: float) -> str:
    """How many seeds, or test images, would tell a difference apart, by the spread that is seen."""
    seeds, images = parts.seeds_for(difference, alpha), parts.images_for(difference, alpha)
    ways = [f"about {seeds} seeds"] if seeds else []
    if images:
        ways += [f"about {images:,} test images at {parts.n} seeds"]
    if not ways:
        return "neither more seeds nor more test images alone would tell such a difference apart."
    return (
        f"{' or '.join(ways)} would tell such a difference apart with a chance of {_SURELY}, if "
        "it is real."
    )


def _said(
    answer: Answer,
    use: EntryResult,
    headline: str,
    comparison: Comparison | None,
    results: StudyResults,
    failed: dict[str, tuple[int, ...]],
    best: EntryResult | None = None,
) -> Verdict:
    named = [use] if best in (None, use) else [use, best]
    notes = [
        *([in_words(use)] if answer == "use" else []),
        *_not_candidates(results, failed),
        *_about_pre_training(named, results),
        *(_about_search(use, results) if answer == "use" else ()),
        *(_about_choice(use, results) if answer == "use" else ()),
        *(_about_controls(use, results) if answer == "use" else ()),
        *_covers(comparison, results),
        *_what_else(use, results),
    ]
    return Verdict(answer, use, headline, tuple(notes), _load(use))


def _not_candidates(results: StudyResults, failed: dict[str, tuple[int, ...]]) -> list[str]:
    out = []
    for label, seeds in failed.items():
        reached = results.by_label[label]
        mean = "" if not reached.seeds else f", whose others have a mean of {_percent(reached)}"
        out.append(
            f"{label} is not recommended, as {len(seeds)} of its {len(results.study.seeds)} final "
            f"trainings failed{mean}."
        )
    unknown = [
        r.label for r in candidates(results) if r.relative_cost is None and r.label not in failed
    ]
    if unknown:
        out.append(f"Not recommended, as the cost is not known: {', '.join(unknown)}.")
    return out


def _about_pre_training(entries: Entries, results: StudyResults) -> list[str]:
    """What has seen more pictures than the study's own training images."""
    out, study = [], results.study
    for r in entries:
        kinds = {
            k for rows in results.finals[r.label].values() for k in rows[-1].get("kinds") or ()
        }
        if kinds <= {"identity"}:
            continue
        of = f"{study.generate.model}, pre-trained on pictures that may show these classes"
        if study.generate.model == "embedded":
            of = "a generator pre-trained on 30,000 " + {
                "fashion-mnist-mini": "other pictures of these classes",
                "fashion-mnist": "pictures that are half of this very training set",
            }.get(study.dataset.name, "other pictures of ten kinds of clothes")
        out.append(f"The images that {r.label} mixes in come from {of}: that is in its accuracy.")
    if study.model.weights is not None:
        out.append(
            f"Every training started from {study.model.weights} weights, which may have seen "
            "pictures of these classes."
        )
    return out


def _about_search(use: EntryResult, results: StudyResults) -> list[str]:
    if not use.choices:
        return []
    trials = len(results.searches.get(use.label, ()))
    asha = results.study.entry(use.label).search.scheduler == "asha"
    return [
        f"All seeds of {use.label} train with what one search of {trials} trials chose: the "
        "interval is that of this choice, and another search may choose another"
        + (", also one of the same study, as ASHA stops trials by their arrival." if asha else ".")
    ]


def _about_choice(use: EntryResult, results: StudyResults) -> list[str]:
    closed = results.study.dataset.closed_test
    return [
        f"{use.label} was chosen among {len(candidates(results))} entries by the {_images(closed)} "
        "themselves: expect a little less."
    ]


def _images(closed: bool) -> str:
    return "held-out images" if closed else "test images"


def _about_controls(use: EntryResult, results: StudyResults) -> list[str]:
    controls = [r for r in results.entries if r.control_of == use.label]
    tied = [r.label for r in controls if paired(use, r).side() != "better"]
    return [
        f"Its control {label} is not distinguishably worse: that the learning is what helps is "
        "not shown."
        for label in tied
    ]


def _covers(comparison: Comparison | None, results: StudyResults) -> list[str]:
    """Which draws the interval covers, and what the test images can tell apart."""
    if comparison is None or comparison.parts is None:
        return []
    closed = results.study.dataset.closed_test
    parts, level = comparison.parts, f"{100 * LEVEL:.0f} %"
    if closed:
        level += f" over the {len(LOOKS)} looks of a pilot"
    if parts.images is None or parts.apart is None:
        return [
            f"Intervals ({level}) cover the choice of the seed, not that of the test images: the "
            "version that ran this did not keep which of them were classified correctly."
        ]
    points = 100 * resolution(parts.images, parts.apart)
    return [
        f"Intervals ({level}) cover the choice of the seed and of the test images, not of the "
        f"training images. {parts.images:,} {_images(closed)} tell two trainings apart from "
        f"{points:.1f} points on (one of the two alone is right on {parts.apart:.0%} of them here)."
    ]


def _what_else(use: EntryResult, results: StudyResults) -> list[str]:
    if results.study.entry(use.label).first_method.sampler != "balanced":
        return []
    return [
        f"Batches of {use.label} were class-balanced, which no policy holds: draw yours so, too."
    ]


def _load(use: EntryResult) -> str | None:
    if not use.policies or use.method == "none":
        return None
    path = json.dumps(str(next(iter(use.policies.values()))), ensure_ascii=False)
    return f"augment = autoaug_ray.load_policy({path})"


def _told(comparison: Comparison, error: float) -> bool:
    return comparison.p_value is not None and comparison.p_value < error


def _points(comparison: Comparison) -> float:
    """The difference in points (hundredths)."""
    return 100 * (comparison.difference or 0.0)


def _interval(comparison: Comparison) -> str:
    return f"{in_points(comparison.difference or 0.0, comparison.half_width)} points"


def _sizes(comparison: Comparison) -> str:
    text = f"{comparison.n} seeds"
    images = comparison.parts and comparison.parts.images
    return f"{text} and {images:,} test images" if images else text


def _percent(entry: EntryResult) -> str:
    return f"{100 * mean_accuracy(entry):.2f} %"


def _at(entry: EntryResult) -> str:
    return f"{_percent(entry)} at {number(entry.relative_cost)}x"


# Over several cases


def over_cases(cases: Sequence[StudyResults]) -> list[str]:
    """What each answer is, and in which cases; one sentence if all cases have the same."""
    by_answer: dict[str, list[str]] = {}
    for case in cases:
        by_answer.setdefault(verdict(case).says, []).append(case.name)
    return [
        f"{say}: in {'all' if len(names) == len(cases) else f'{len(names)} of the'} {len(cases)} "
        f"cases ({', '.join(names)})."
        for say, names in sorted(by_answer.items(), key=lambda pair: -len(pair[1]))
    ]
