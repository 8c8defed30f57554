"""The verdict: which of three answers is given, to whom, and what is said with it."""

import ast
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hand import TREE, Hand, Page, entry

from autoaug_ray import config
from autoaug_ray.maths.statistics import holm
from autoaug_ray.report.compare import paired
from autoaug_ray.report.elimination import LOOKS
from autoaug_ray.report.results import StudyResults
from autoaug_ray.report.turning_points import needed
from autoaug_ray.report.verdict import over_cases, verdict
from autoaug_ray.report.write import write

ROWS: dict[str, tuple[float, tuple[float, ...]]] = {
    "none": (1.0, (0.60, 0.61, 0.62)),
    "predefined": (1.1, (0.60, 0.62, 0.61)),
    "bilevel": (1.7, (0.60, 0.60, 0.63)),
}


@pytest.fixture
def hand(tmp_path: Path) -> Hand:
    methods = {
        "none": None, "predefined": None, "bilevel": None,
        "randaugment": {"magnitude": {"grid": [5, 9]}},
    }  # fmt: skip
    return Hand(tmp_path, methods=methods)


def results(hand: Hand, rows: Mapping[str, Any], **more: Mapping[str, Any]) -> StudyResults:
    """A finished study of entries with (cost, accuracies by seed); `more` by label."""
    empty = hand.results()
    entries = [
        entry(label, relative_cost=cost, test_accuracies=accuracies, **more.get(label, {}))
        for label, (cost, accuracies) in rows.items()
    ]
    return replace(empty, entries=tuple(entries))


def above(points: float, spread: float = 0.1) -> tuple[float, ...]:
    """So many points above none at three seeds, give or take."""
    by_seed = zip(ROWS["none"][1], (-1, 0, 1), strict=True)
    return tuple(a + (points + spread * s) / 100 for a, s in by_seed)


# Three answers


def test_where_nothing_is_distinguishable_the_cheapest_is_used_and_power_is_said(
    hand: Hand,
) -> None:
    """Predefined is 0, 1, -1 points above none: in the mean nothing. Bilevel is 0, -1, 1."""
    said = verdict(results(hand, ROWS))
    assert said.answer == "cheapest" and said.use and said.use.label == "none"
    assert said.headline.startswith(
        "Use the cheapest, none (61.00 % at 1.00x): nothing is distinguishably more accurate at 3 "
        "seeds. No other entry has a higher mean. One that is "
    )
    said = verdict(results(hand, ROWS | {"predefined": (1.1, above(0.5, 1.0))}))
    assert (
        "The nearest, predefined (61.50 % at 1.10x), has +0.50 [-1.98, +2.98] points; about 41 "
        "seeds would tell such a difference apart with a chance of 80 %, if it is real."
    ) in said.headline


def test_an_interval_above_the_cheapest_is_used(hand: Hand) -> None:
    said = verdict(results(hand, ROWS | {"predefined": (1.1, above(3))}))
    assert said.answer == "use" and said.use and said.use.label == "predefined"
    assert said.headline == (
        "Use predefined (64.00 % at 1.10x): +3.00 [+2.75, +3.25] points against the cheapest, none "
        "(61.00 % at 1.00x), at 3 seeds."
    )
    assert "Intervals (95 %) cover the choice of the seed, not that of the test" in said.notes[-1]


def test_what_only_one_of_many_comparisons_tells_is_not_used(hand: Hand) -> None:
    """p = 0.03 alone, 0.06 as one of two."""
    rows = ROWS | {"predefined": (1.1, above(1, 0.32))}
    assert verdict(results(hand, {k: rows[k] for k in ("none", "predefined")})).answer == "use"
    assert verdict(results(hand, rows)).answer == "cheapest"


def test_ties_go_to_the_cheaper_and_at_equal_cost_to_the_simpler(hand: Hand) -> None:
    rows = ROWS | {"predefined": (1.1, above(3, 0.5)), "bilevel": (1.7, above(3.2, 0.5))}
    rows["bilevel"] = (1.7, tuple(np.array(above(3.2))[[0, 2, 1]] + (0, -0.003, 0.003)))
    said = verdict(results(hand, rows))
    assert said.use and said.use.label == "predefined"
    assert (
        "bilevel (64.20 % at 1.70x) has the highest mean, but is not distinguish" in said.headline
    )
    rows["bilevel"] = (1.0, rows["bilevel"][1])
    rows["predefined"] = (1.02, rows["predefined"][1])
    said = verdict(results(hand, rows))  # costs that cannot be told apart: bilevel learns
    assert said.use and said.use.label == "predefined"
    rows["bilevel"] = (1.7, above(6))
    said = verdict(results(hand, rows))
    assert said.use and said.use.label == "bilevel"


def test_at_equal_cost_the_cheapest_is_the_reference(hand: Hand) -> None:
    said = verdict(results(hand, ROWS | {"predefined": (0.97, ROWS["predefined"][1])}))
    assert said.use and said.use.label == "none"


# Who is not recommended


def test_a_control_is_never_recommended_and_is_named_where_it_ties(hand: Hand) -> None:
    rows = ROWS | {"bilevel": (1.7, above(3)), "bilevel learn:off": (1.1, above(3.1, 0.5))}
    said = verdict(results(hand, rows, **{"bilevel learn:off": {"control_of": "bilevel"}}))
    assert said.use and said.use.label == "bilevel"
    assert (
        "Its control bilevel learn:off is not distinguishably worse: that the learning is what "
        "helps is not shown."
    ) in said.notes
    rows["bilevel"] = ROWS["bilevel"]
    said = verdict(results(hand, rows, **{"bilevel learn:off": {"control_of": "bilevel"}}))
    assert said.answer == "cheapest"


def test_an_entry_of_which_a_training_failed_is_not_recommended(hand: Hand) -> None:
    for label, accuracy in (("none", 0.6), ("predefined", 0.6), ("bilevel", 0.6)):
        hand.finals(label, accuracy, accuracy + 0.01, accuracy + 0.02)
    for seed in range(2):
        hand.run("randaugment", seed=seed, accuracy=0.8 + seed / 100, choices={"magnitude": 5})
    early = verdict(hand.results())
    assert early.headline == (
        "Too early to say what to use: 1 of 12 final trainings have not finished (randaugment 1); "
        "--resume goes on."
    )
    hand.run("randaugment", seed=2, error="nan", choices={"magnitude": 5})
    said = verdict(hand.results())
    assert said.answer == "cheapest" and said.use and said.use.label == "none"
    assert said.notes[0] == (
        "randaugment is not recommended, as 1 of its 3 final trainings failed, whose others have a "
        "mean of 80.50 %."
    )


def test_too_early_says_why(hand: Hand) -> None:
    assert "no final training has finished yet" in verdict(hand.results()).headline
    two = hand.study.model_copy(update={"seeds": (0, 1)})
    few = {label: (cost, accuracies[:2]) for label, (cost, accuracies) in ROWS.items()}
    said = verdict(replace(results(hand, few), study=two))
    assert said.answer == "too early" and said.use is None
    assert "2 seeds tell nothing apart; run at least 3 (--seeds 3 --resume)" in said.headline
    unknown = {label: (None, accuracies) for label, (_, accuracies) in ROWS.items()}
    assert "costs cannot be compared" in verdict(results(hand, unknown)).headline


# What is said with it


def test_a_pilot_has_a_third_of_the_error(hand: Hand) -> None:
    """p = 0.03: told in a study, and not at one of three looks."""
    rows = {k: ROWS[k] for k in ("none", "predefined")} | {"predefined": (1.1, above(1, 0.32))}
    study = results(hand, rows)
    closed = study.study.dataset.model_copy(update={"closed_test": True})
    pilot = replace(study, study=study.study.model_copy(update={"dataset": closed}))
    assert (verdict(study).answer, verdict(pilot).answer) == ("use", "cheapest")
    assert f"95 % over the {len(LOOKS)} looks of a pilot" in verdict(pilot).notes[-1]


def test_which_images_were_right_is_in_the_interval_and_in_the_words(hand: Hand) -> None:
    """One more of 50 images at each of three seeds, always another one."""
    right = np.zeros((3, 50), bool)
    right[:, :30] = True
    more = right.copy()
    more[[0, 1, 2], [40, 41, 42]] = True
    kept = [{"test_right": {s: z[s].tobytes() for s in range(3)}} for z in (right, more)]
    rows = {"none": (1.0, (0.60,) * 3), "predefined": (1.1, (0.62,) * 3)}
    said = verdict(results(hand, rows, none=kept[0], predefined=kept[1]))
    assert said.answer == "cheapest" and "at 3 seeds and 50 test images" in said.headline
    assert verdict(results(hand, rows)).answer == "use"  # the accuracies alone do not tell
    # 1.96 sqrt(0.02 / 50)
    assert "50 test images tell two trainings apart from 3.9 points on" in said.notes[-1]
    assert "alone is right on 2% of them here" in said.notes[-1]


def test_one_search_for_all_seeds_is_said(hand: Hand) -> None:
    rows = ROWS | {"randaugment": (4.0, above(3))}
    said = verdict(results(hand, rows, randaugment={"choices": {"magnitude": 5}}))
    (note,) = [note for note in said.notes if "what one search of 0 trials chose" in note]
    assert "ASHA" not in note
    said = verdict(results(hand, rows))
    assert not any("one search" in note for note in said.notes)


def test_what_a_generator_was_pre_trained_on_is_said(hand: Hand) -> None:
    row = {"kinds": ["identity", "fixed"]}
    study = results(hand, ROWS | {"predefined": (1.1, above(3))})
    said = verdict(replace(study, finals=study.finals | {"predefined": {0: [row]}}))
    assert (
        "The images that predefined mixes in come from a generator pre-trained on 30,000 other "
        "pictures of these classes: that is in its accuracy."
    ) in said.notes
    assert not any("pre-trained" in note for note in verdict(study).notes)
    full = study.study.dataset.model_copy(update={"name": "fashion-mnist"})
    said = verdict(
        replace(
            study,
            finals=study.finals | {"predefined": {0: [row]}},
            study=study.study.model_copy(update={"dataset": full}),
        )
    )
    assert any("30,000 pictures that are half of this very training set" in n for n in said.notes)


def test_class_balanced_batches_are_no_part_of_a_policy(hand: Hand, tmp_path: Path) -> None:
    methods = {"none": None, "predefined": {"sampler": "balanced"}}
    study = config.study(TREE | {"methods": methods}, name="hand")
    rows = {"none": ROWS["none"], "predefined": (1.1, above(3))}
    kept = {"policies": {1: tmp_path / "it's" / "policy.pt"}}
    said = verdict(replace(results(hand, rows, predefined=kept), study=study))
    assert "class-balanced, which no policy holds" in said.notes[-1]
    assert said.load is not None
    path = said.load.removeprefix("augment = autoaug_ray.load_policy(").removesuffix(")")
    assert ast.literal_eval(path) == str(kept["policies"][1])


# One verdict everywhere


def test_page_and_table_of_cases_have_the_same_words(hand: Hand) -> None:
    for label, accuracies in (("none", ROWS["none"][1]), ("predefined", above(3))):
        hand.finals(label, *accuracies)
    for label in ("bilevel", "bilevel learn:off", "randaugment"):
        choices = {"magnitude": 5} if label == "randaugment" else {}
        hand.finals(label, *ROWS["none"][1], choices=choices, seconds=(40.0,))
    found = hand.results()
    text = " ".join(Page(write(found).read_text()).text.split())
    said = verdict(found)
    assert said.use and said.use.label == "predefined"
    assert all(" ".join(line.split()) in text for line in (said.headline, *said.notes))
    assert found.best() is said.use and said.headline.startswith(f"{said.says} (")


def test_cases_with_one_answer_are_one_sentence(hand: Hand) -> None:
    tie, gain = results(hand, ROWS), results(hand, ROWS | {"predefined": (1.1, above(3))})

    def case(found: StudyResults, name: str) -> StudyResults:
        return replace(found, study=found.study.model_copy(update={"case": name}))

    same = [case(gain, "a"), case(gain, "b")]
    assert over_cases(same) == ["Use predefined: in all 2 cases (a, b)."]
    assert over_cases([*same, case(tie, "c")]) == [
        "Use predefined: in 2 of the 3 cases (a, b).",
        "Use the cheapest, none: in 1 of the 3 cases (c).",
    ]


# What would change it


def moved(rows: Mapping[str, Any], label: str, points: float) -> dict[str, Any]:
    """The same spread, so many points higher."""
    cost, accuracies = rows[label]
    return dict(rows) | {label: (cost, tuple(a + points / 100 for a in accuracies))}


@pytest.mark.parametrize("rival", [-2.0, 0.2, 9.0])
def test_the_gain_that_would_change_the_answer_does(hand: Hand, rival: float) -> None:
    """With an entry that is worse, like or better beside it, of which Holm's correction knows."""
    rows = ROWS | {"predefined": (1.1, above(2, 0.8)), "bilevel": (1.7, above(rival, 0.1))}
    rows |= {"randaugment": (2.9, above(-0.5, 0.7))}
    study = results(hand, rows)
    by_label = study.by_label
    found = {k: paired(r, by_label["none"]) for k, r in by_label.items() if k != "none"}
    least = needed("predefined", found, 0.05)
    assert least is not None

    def told(points: float) -> bool:
        shifted = results(hand, moved(rows, "predefined", points - 2)).by_label
        others = {k: paired(r, shifted["none"]) for k, r in shifted.items() if k != "none"}
        corrected = dict(zip(others, holm([c.p_value for c in others.values()]), strict=True))
        p = corrected["predefined"]
        return p is not None and p < 0.05

    assert told(100 * least + 1e-4) and not told(100 * least - 1e-4)


def test_what_would_change_the_answer_is_said_in_points_and_in_compute(hand: Hand) -> None:
    hours = {
        "none": {"training_device_hours": 0.50001},
        "predefined": {"training_device_hours": 0.6},
    }
    rows = {"none": ROWS["none"], "predefined": (1.2, above(3))}
    said = verdict(results(hand, rows, **hours))
    # sd 0.1 over 3 seeds: t(2) = 4.3027, half a width 0.248; 0.2 trainings are 6 minutes.
    assert said.change == (
        "predefined would have to be less than 0.25 points above none (it is +3.00), given this "
        "spread and the correction for all entries. predefined costs 0.2 trainings of "
        "none (6 CPU-minutes) more than none: 0.067 (2 CPU-minutes) for each point, or 0.073 (2.2 "
        "CPU-minutes) at the lower end of its interval. If a point is worth less than that to "
        "you, use none."
    )
    said = verdict(results(hand, {"none": ROWS["none"], "predefined": (1.2, above(0.5, 1.0))}))
    assert said.change == (
        "predefined would have to be at least 2.48 points above none (it is +0.50), given this "
        "spread and the correction for all entries. predefined costs 0.2 trainings of "
        "none more than none: 0.067 for each point even at the upper end of its interval. If a "
        "point is worth less than that to you, none stays the answer."
    )


def test_no_price_speaks_against_what_costs_no_more(hand: Hand) -> None:
    said = verdict(results(hand, {"none": ROWS["none"], "predefined": (1.02, above(3))}))
    assert said.change and said.change.endswith(
        "predefined does not cost distinguishably more than none, so no price of compute speaks "
        "against it."
    )


def test_more_than_is_left_is_said(hand: Hand) -> None:
    rows = {"none": (1.0, (0.99, 0.995, 1.0)), "predefined": (1.1, (1.0, 0.995, 0.995))}
    said = verdict(results(hand, rows))
    assert said.change and "all entries, more than the 0.50 to 100 %." in said.change


def test_too_early_has_nothing_to_change(hand: Hand) -> None:
    assert verdict(hand.results()).change is None
