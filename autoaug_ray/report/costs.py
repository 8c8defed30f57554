"""What each entry costs, in trainings of the reference with the same seed.

The cost of a seed is the work of all that its final training needed and of that training itself:
search, generated images, steps. It is divided by the work of the reference's training with the same
seed. Work comes from the ledger, and says nothing of the neighbours on the machine. Each run's sum
is corrected to its number of steps times their typical work (`store.work`); the plain sum is kept
beside it. Work that was done again after a fault is no part of it, but is billed.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from autoaug_ray.config import Study
from autoaug_ray.maths.statistics import mean_of
from autoaug_ray.methods.sources import parse
from autoaug_ray.report.runs import Row, Runs
from autoaug_ray.store import meter
from autoaug_ray.store.calibration import Calibration
from autoaug_ray.store.work import typical

if TYPE_CHECKING:
    from autoaug_ray.report.elsewhere import Elsewhere


class Work(NamedTuple):
    """The work of one run, or of several, each in its own unit; None where it is not known."""

    typical: float | None
    """Device-seconds: steps times their typical work."""
    plain: float | None
    """Device-seconds: the sum over all steps."""
    calibrated: float | None
    """Device-seconds, if the steps had taken as long as in the calibration."""
    gflop: float | None
    """Floating-point operations of convolutions and matrix products, in 10^9."""

    def shared(self, users: int) -> "Work":
        """The part of one of so many users."""
        return Work(*(None if x is None else x / users for x in self))


NOTHING = Work(0.0, 0.0, 0.0, 0.0)
UNKNOWN = Work(None, None, None, None)


def add(parts: Iterable[Work]) -> Work:
    """Their sum; what one of them does not know the sum does not know either."""
    columns = zip(*(parts or [NOTHING]), strict=True)
    return Work(*(None if None in column else sum(column) for column in columns))


def mean(parts: Sequence[Work]) -> Work:
    """Their mean, NOTHING without any; what one of them does not know is not known."""
    return Work(*(None if x is None else x / max(1, len(parts)) for x in add([NOTHING, *parts])))


def of_run(rows: Sequence[Row], lines: Sequence[Row], calibration: Calibration | None) -> Work:
    """The training work of a run, from its rows by epoch and its attempts' lines in the ledger."""
    plain = meter.work(lines, meter.TRAINING)
    if plain is None or any(row["work"] is None for row in rows):
        return UNKNOWN
    counted = sum(row["work"] for row in rows)
    scale = sum(map(typical, rows)) / counted if counted else 1.0
    label = lines[0]["label"]
    known = [] if calibration is None else [calibration.seconds(label, row) for row in rows]
    gflop = [] if calibration is None else [calibration.gflop(label, row) for row in rows]
    return Work(plain * scale, plain, _sum(known), _sum(gflop))


def _sum(values: Sequence[float | None]) -> float | None:
    """None if nothing is known, or not all of it."""
    known = [v for v in values if v is not None]
    return sum(known) if known and len(known) == len(values) else None


@dataclass(frozen=True)
class StudyWork:
    """The work of all runs of a study, sorted out by what they are for."""

    study: Study
    finals: Mapping[str, Mapping[int, Work]]
    """label -> seed -> the final training."""
    compared: Mapping[str, Work]
    """label -> all search trials, whose best one every seed trains with."""
    learning: Mapping[str, Mapping[int, Work]]
    """label -> seed -> the training in which the seed learned its hyperparameters."""
    images: Mapping[str, Mapping[int, float]]
    """label -> seed -> device-seconds of work for the generated images that it mixes, and for those
    that another study needed to find what it trains with."""
    elsewhere: Mapping[str, "Elsewhere"]
    """label -> what the entry trains with, if another study found it."""

    def search(self, label: str, seed: int) -> Work:
        """What a seed's final training was preceded by; what it replays was found elsewhere."""
        return add([self._own_search(label, seed), self._followed(label, seed)])

    def amortised(self, label: str, seed: int) -> Work:
        """The same, with what was found divided among its users (see `users`)."""
        users = self.users(label)
        followed = self._followed(label, seed)
        if self.study.entry(label).first_method.follows is not None:
            return add([self._own_search(label, seed), followed.shared(users)])
        return self._own_search(label, seed).shared(users)

    def users(self, label: str) -> int:
        """How many entries of this study train with what this one, or what it follows, found.

        Those that follow the same entry, and that entry itself if it stands in this study.
        """
        own = {e.label: e.first_method.follows for e in self.study.entries}
        source = own[label] or label
        return max(1, sum(s == source for s in own.values()) + (source in own))

    def finding(self, label: str, seed: int) -> Work:
        """What it took to find what others train with: the search, and where augmentation is
        learned in the training that it is for, that training."""
        search = self.search(label, seed)
        if self.study.entry(label).first_method.searches_in_own_run:
            return search
        finals = self.finals[label]
        return add([search, finals[seed] if seed in finals else mean(list(finals.values()))])

    def _own_search(self, label: str, seed: int) -> Work:
        own = self.learning[label]
        learned = own[seed] if seed in own else mean(list(own.values()))
        return add([self.compared[label], learned])

    def _followed(self, label: str, seed: int) -> Work:
        """What it took to find what the entry follows; NOTHING if it follows none."""
        if label in self.elsewhere:
            return self.elsewhere[label].finding.get(seed, UNKNOWN)
        follows = self.study.entry(label).first_method.follows
        return NOTHING if follows is None else self.finding(parse(follows).label, seed)


def work_of(
    study: Study,
    runs: Runs,
    calibration: Calibration | None,
    elsewhere: Mapping[str, "Elsewhere"] | None = None,
) -> StudyWork:
    """Sort the ledger and the rows of a study out.

    `elsewhere`: what its entries train with that others found.
    """
    elsewhere = elsewhere or {}
    by_key: defaultdict[str, list[Row]] = defaultdict(list)
    searching: defaultdict[str, set[str]] = defaultdict(set)
    for label, lines in runs.ledger.items():
        for line in lines:
            by_key[line["run"]].append(line)
            if line["phase"] == "search":
                searching[label].add(line["run"])
    rows = {r[0]["run_key"]: r for trials in runs.searches.values() for r in trials}
    rows |= {r[0]["run_key"]: r for by_seed in runs.finals.values() for r in by_seed.values()}

    def of(key: str) -> Work:
        return of_run(rows.get(key, []), by_key.get(key, []), calibration)

    labels = [entry.label for entry in study.entries]
    learning = {label: runs.learning.get(label, {}) for label in labels}
    return StudyWork(
        study=study,
        finals={
            label: {seed: of(r[0]["run_key"]) for seed, r in runs.finals[label].items()}
            for label in labels
        },
        compared={
            label: add([NOTHING, *map(of, sorted(searching[label] - {*learning[label].values()}))])
            for label in labels
        },
        learning={label: {s: of(key) for s, key in learning[label].items()} for label in labels},
        images={
            label: {
                seed: _images(r[-1], elsewhere.get(label))
                for seed, r in runs.finals[label].items()
            }
            for label in labels
        },
        elsewhere=elsewhere,
    )  # fmt: skip


def _images(row: Row, there: "Elsewhere | None") -> float:
    """Device-seconds of a final training's images, and of others that its search needed."""
    own: float = sum(row["bank_work"].values())
    if there is None or there.plans.get(row["seed"]) == row["bank_plan"]:
        return own
    return own + there.images.get(row["seed"], 0.0)


def run_costs(work: StudyWork, runs: Runs) -> dict[str, float]:
    """Key of a final training -> device-hours of its work and of all that it needed."""
    out = {}
    for label, by_seed in work.finals.items():
        for seed, final in by_seed.items():
            whole = add([work.search(label, seed), final]).typical
            if whole is not None:
                seconds = whole + work.images[label][seed]
                out[runs.finals[label][seed][-1]["run_key"]] = seconds / 3600
    return out


class SeedCost(NamedTuple):
    """The cost of one seed; all but `hours` in trainings of the reference with that seed."""

    whole: float
    search: float | None
    amortised: float | None
    """The search, with what was found divided among its users."""
    images: float
    plain: float | None
    """Search and training by plain sums, without images; so are the next two."""
    calibrated: float | None
    flops: float | None
    hours: float
    """The whole in device-hours."""


def of_seed(work: StudyWork, label: str, seed: int) -> SeedCost | None:
    """None if the work of the seed's final training, or of the reference's, is not known."""
    unit = work.finals[work.study.reference].get(seed)
    search = work.search(label, seed)
    training = add([search, work.finals[label][seed]])
    if unit is None or not unit.typical or training.typical is None:
        return None
    images = work.images[label][seed]
    return SeedCost(
        whole=(training.typical + images) / unit.typical,
        search=_ratio(search.typical, unit.typical),
        amortised=_ratio(work.amortised(label, seed).typical, unit.typical),
        images=images / unit.typical,
        plain=_ratio(training.plain, unit.plain),
        calibrated=_ratio(training.calibrated, unit.calibrated),
        flops=_ratio(training.gflop, unit.gflop),
        hours=(training.typical + images) / 3600,
    )


def of_entry(work: StudyWork, label: str) -> dict[str, Any]:
    """The fields of `results.EntryResult` that tell an entry's cost."""
    by_seed = {seed: of_seed(work, label, seed) for seed in work.finals[label]}
    known = {seed: cost for seed, cost in by_seed.items() if cost is not None}
    costs = list(known.values())
    whole = mean_of([cost.whole for cost in costs]) if costs else None
    return {
        "cost_seeds": tuple(known),
        "relative_costs": tuple(cost.whole for cost in costs),
        "relative_cost": whole.mean if whole else None,
        "relative_cost_half_width": whole.half_width if whole else None,
        "relative_search_cost": _mean([cost.search for cost in costs]),
        "amortised_search_cost": _mean([cost.amortised for cost in costs]),
        "search_users": work.users(label),
        "relative_bank_cost": _mean([cost.images for cost in costs]),
        "plain_training_cost": _mean([cost.plain for cost in costs]),
        "calibrated_training_cost": _mean([cost.calibrated for cost in costs]),
        "flop_training_cost": _mean([cost.flops for cost in costs]),
        "training_device_hours": _mean([cost.hours for cost in costs]),
    }


def _ratio(part: float | None, unit: float | None) -> float | None:
    return part / unit if part is not None and unit else None


def _mean(values: Sequence[float | None]) -> float | None:
    """None if a value is missing."""
    known = [v for v in values if v is not None]
    return fmean(known) if known and len(known) == len(values) else None
