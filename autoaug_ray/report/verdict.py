"""What to do with the results of a study: one of three answers, in the same words everywhere.

*use*: an entry whose difference to the cheapest one has an interval above zero, also after Holm's
correction for the number of entries. *cheapest*: there is none such. *too early*: it cannot be told
yet. Differences are paired over the seeds, and cover the choice of the test images where it is
known which of them each training classified correctly.

Candidates are the entries that are no controls and whose seeds have all finished; where a study
eliminates entries, those that are left after the looks at it (`elimination`). The cheapest is
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
    in_points,
    resolution,
)
from autoaug_ray.report import turning_points
from autoaug_ray.report.compare import Entries, mean_accuracy, paired
from autoaug_ray.report.cost_sentences import in_words, number
from autoaug_ray.report.elimination import LOOKS, Course, course
from autoaug_ray.report.results import EntryResult, StudyResults
from autoaug_ray.report.standing import Standing, candidates, failed_seeds

Answer = Literal["use", "cheapest", "too early"]


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
    change: str | None = None
    """What would have to be true for another answer; None where it is too early for any."""
    provisos: tuple[str, ...] = ()
    """Those of `notes` without which the headline must not be read: who may not be recommended,
    and what was pre-trained on other pictures."""

    @property
    def says(self) -> str:
        """The words with which `headline` begins."""
        if self.use is None:
            return "Too early to say what to use"
        return f"Use {'the cheapest, ' * (self.answer == 'cheapest')}{self.use.label}"


def verdict(results: StudyResults) -> Verdict:
    """What the results of a study, or of one of its cases, say to use."""
    run = course(results)
    found, early = run.standing, _too_early(results)
    if early is not None or found is None:
        return Verdict("too early", None, f"Too early to say what to use: {early}")
    if not found.above:
        nearest = max(
            found.others, key=lambda r: _points(found.against_base[r.label]), default=None
        )
        comparison = None if nearest is None else found.against_base[nearest.label]
        headline = _headline_cheapest(found, nearest, comparison, run)
        change = None if nearest is None else turning_points.of_cheapest(nearest, found)
        return _said("cheapest", found, headline, change, comparison, results, run)
    use, best, base = found.use, found.best, found.base
    comparison = found.against_base[use.label]
    headline = (
        f"Use {use.label} ({_at(use)}): {_interval(comparison)} against the cheapest, {base.label} "
        f"({_at(base)}), at {_sizes(comparison)}."
    )
    if best is not None and use is not best:
        headline += (
            f" {best.label} ({_at(best)}) has the highest mean, but is not distinguishable from "
            f"it: {_interval(found.ties[use.label])}."
        )
    change = turning_points.of_use(found)
    return _said("use", found, headline, change, comparison, results, run)


def _too_early(results: StudyResults) -> str | None:
    """Why nothing can be said yet; None if something can."""
    entries = candidates(results)
    failed = failed_seeds(results, entries)
    if not any(r.seeds for r in entries):
        return "no final training has finished yet."
    waiting = [r for r in entries if r.missing_seeds and r.label not in failed]
    if waiting:
        missing = sum(len(r.missing_seeds) for r in waiting)
        names = ", ".join(f"{r.label} {len(r.missing_seeds)}" for r in waiting)
        total = sum(len(r.seeds) + len(r.missing_seeds) for r in entries)
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
    found: Standing, nearest: EntryResult | None, comparison: Comparison | None, run: Course
) -> str:
    base = found.base
    if nearest is None or comparison is None or comparison.parts is None:
        return f"Use the cheapest, {base.label} ({_at(base)}): there is no other entry to use."
    text = (
        f"Use the cheapest, {base.label} ({_at(base)}): nothing is distinguishably more accurate "
        f"at {_sizes(comparison)}."
    )
    alpha, parts, whole = run.last_error / found.family, comparison.parts, run.planned
    if _points(comparison) <= 0:
        least = 100 * float(parts.detectable(alpha, n=whole))
        text += " No other entry has a higher mean."
        if least < 0.05:  # accuracies that do not vary, as where all images are easy
            return text
        return (
            f"{text} One that is {least:.1f} points better would have been found with a chance of "
            f"{_SURELY}{'' if whole is None else f' by {whole} seeds'}."
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
    found: Standing,
    headline: str,
    change: str | None,
    comparison: Comparison | None,
    results: StudyResults,
    run: Course,
) -> Verdict:
    use, failed = found.use, failed_seeds(results, candidates(results))
    named = [use] if found.best in (None, use) else [use, found.best]
    provisos = (
        *_not_candidates(results, failed),
        *_about_eliminated(run, results),
        *_about_pre_training(named, results),
    )
    notes = [
        *([in_words(use)] if answer == "use" else []),
        *provisos,
        *(_about_search(use, results) if answer == "use" else ()),
        *(_about_choice(use, results) if answer == "use" else ()),
        *(_about_controls(use, results) if answer == "use" else ()),
        *_covers(comparison, results),
        *_what_else(use, results),
    ]
    whole = results.by_label[use.label]
    return Verdict(answer, whole, headline, tuple(notes), _load(use), change, provisos)


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


def _about_eliminated(run: Course, results: StudyResults) -> list[str]:
    """Who got no more seeds, and why; who failed is told elsewhere."""
    out, planned = [], len(results.study.seeds)
    for gone in run.eliminated:
        if gone.comparison is None:
            continue
        text = (
            f"{gone.label} was eliminated after {gone.seeds} of {planned} seeds: "
            f"{_interval(gone.comparison)} against {gone.comparison.other}, "
        )
        if gone.chance is None:
            out.append(f"{text}which is distinguishably more accurate.")
        else:
            chance = f"of about {100 * gone.chance:.0f} %" if gone.chance >= 0.01 else "below 1 %"
            out.append(f"{text}and a chance {chance} of being told above it after {planned}.")
    if run.eliminated or run.look < planned:
        asked = sum(map(len, run.seeds.values()))
        out.append(
            f"{asked} final trainings were enough for this answer, of {planned * len(run.seeds)} "
            f"that were planned (eliminate: {results.study.eliminate:g}). The "
            f"{_images(results.study.dataset.closed_test)} said who got more seeds: means of what "
            "was eliminated may be too low, as it stopped low, and its intervals are those of one "
            "look (95 %)."
        )
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
        if study.generate.folder is not None:
            of = (
                f"{study.generate.folder}, made elsewhere by something that may have seen pictures "
                "of these classes, test images among them"
            )
        elif study.generate.model == "embedded":
            of = "a generator pre-trained on 30,000 " + {
                "fashion-mnist-mini": "other pictures of these classes",
                "fashion-mnist": "pictures that are half of this very training set",
            }.get(study.dataset.name, "other pictures of ten kinds of clothes")
        unpaid = study.generate.folder is not None and study.generate.seconds_per_image is None
        out.append(
            f"The images that {r.label} mixes in come from {of}: that is in its accuracy"
            f"{', and making them is in no cost' if unpaid else ''}."
        )
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
    if results.study.eliminate is not None:
        *early, last = results.study.looks
        level += f" over looks at {', '.join(map(str, early))} and {last} seeds"
    elif closed:
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
