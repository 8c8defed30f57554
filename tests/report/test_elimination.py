"""Which entries get more seeds: the looks, who is given up, who stays, and what is said of it."""

import random
import re
from pathlib import Path
from typing import Any

import pytest
from hand import Hand

from autoaug_ray import config
from autoaug_ray.errors import UserError
from autoaug_ray.report.elimination import LOOKS, course, errors, seeds_wanted
from autoaug_ray.report.sentences import missing
from autoaug_ray.report.verdict import verdict

NONE = (0.60, 0.61, 0.62, 0.60, 0.61, 0.62, 0.60, 0.61)
METHODS: dict[str, Any] = {"none": None, "predefined": None, "bilevel": None}


def above(points: float, spread: float = 1.0) -> list[float]:
    """So many points above none, give or take."""
    signs = (1, -1, 0, 1, -1, 0.5, 0, -0.5)
    return [a + (points + spread * s) / 100 for a, s in zip(NONE, signs, strict=True)]


ROWS = {
    "none": list(NONE),
    "predefined": above(-2, -1.0),
    "bilevel": above(3),
    "bilevel learn:off": above(2),
}


class Drawn:
    """A study whose trainings are done as they are asked for."""

    def __init__(self, root: Path, rows: dict[str, list[float]], methods: Any = METHODS) -> None:
        self.rows = rows
        self.hand = Hand(root, methods=methods, seeds=8, eliminate=0.1)

    def wanted(self) -> dict[str, int]:
        """label -> number of seeds."""
        wanted = seeds_wanted(self.hand.study, self.hand.folder)
        assert all(seeds == self.hand.study.seeds[: len(seeds)] for seeds in wanted.values())
        return {label: len(seeds) for label, seeds in wanted.items()}

    def train(self, *failing: str) -> None:
        """All that is wanted, in no order."""
        there = {r.label: r.seeds for r in self.hand.results().entries}
        todo = [(k, s) for k, n in self.wanted().items() for s in range(n) if s not in there[k]]
        random.Random(0).shuffle(todo)
        for label, seed in todo:
            error = "nan" if label in failing and seed == 1 else None
            cost = {"none": 10.0, "predefined": 11.0}.get(label, 20.0)
            accuracy = self.rows[label][seed]
            self.hand.run(label, seed=seed, accuracy=accuracy, error=error, seconds=(cost,))


def test_seeds_go_to_what_still_matters(tmp_path: Path) -> None:
    drawn = Drawn(tmp_path, ROWS)
    assert drawn.wanted() == dict.fromkeys(ROWS, 3)
    drawn.train()
    assert drawn.wanted() == dict.fromkeys(ROWS, 5) | {"predefined": 3}
    early = verdict(drawn.hand.results())
    assert early.headline == (
        "Too early to say what to use: 4 of 13 final trainings have not finished (none 2, bilevel "
        "2); --resume goes on."
    )
    drawn.train()
    said, wanted = verdict(drawn.hand.results()), drawn.wanted()
    assert said.answer == "use" and said.use and said.use.label == "bilevel"
    assert wanted == {"none": 5, "predefined": 3, "bilevel": 5, "bilevel learn:off": 5}
    assert missing(drawn.hand.results()) == []
    assert (
        "predefined was eliminated after 3 of 8 seeds: -2.00 [-4.48, +0.48] points against none, "
        "and a chance of about 1 % of being told above it after 8."
    ) in said.notes
    enough = "18 final trainings were enough for this answer, of 32 that were planned (eliminate: "
    assert any(note.startswith(enough) for note in said.notes)
    assert "95 % over looks at 3, 5 and 8 seeds" in said.notes[-1]


def test_what_lies_there_beyond_a_look_does_not_change_it(tmp_path: Path) -> None:
    """All seeds are there, and those after the third are another story."""
    later = ROWS | {"predefined": above(-2, -1.0)[:3] + [0.9] * 5}
    hand = Hand(tmp_path, methods=METHODS, seeds=8, eliminate=0.1)
    for label, accuracies in later.items():
        hand.finals(label, *accuracies)
    (gone,) = course(hand.results()).eliminated
    assert (gone.label, gone.seeds, gone.why) == ("predefined", 3, "chance")
    said = verdict(hand.results())
    assert said.use and said.use.label == "bilevel"


def test_nothing_is_better_and_the_study_ends_at_its_first_look(tmp_path: Path) -> None:
    rows = dict.fromkeys(ROWS, above(-1)) | {"none": list(NONE)}
    drawn = Drawn(tmp_path, rows)
    drawn.train()
    assert drawn.wanted() == dict.fromkeys(ROWS, 3)
    said = verdict(drawn.hand.results())
    assert said.answer == "cheapest" and "at 3 seeds" in said.headline
    # What the whole design would have found, not what its first look can.
    assert re.search(r"One that is \d\.\d points better .* 80 % by 8 seeds\.", said.headline)


def test_one_that_failed_gets_no_more_seeds(tmp_path: Path) -> None:
    drawn = Drawn(tmp_path, ROWS | {"predefined": above(2, -1.0)})
    drawn.train("predefined")
    assert drawn.wanted() == dict.fromkeys(ROWS, 5) | {"predefined": 3}
    drawn.train()  # the failed training is tried again, and finishes
    assert drawn.wanted()["predefined"] == 5


def test_what_another_entry_follows_stays_with_it(tmp_path: Path) -> None:
    again = {"method": "replay", "of": "bilevel"}
    methods = {"none": None, "bilevel": {"controls": []}, "again": again}
    rows = {"none": list(NONE), "bilevel": above(-3), "again": above(2)}
    drawn = Drawn(tmp_path, rows, methods)
    for label, accuracies in rows.items():
        choices = {"policy": "p.pt"} if label == "again" else {}
        for seed in range(3):
            drawn.hand.run(label, seed=seed, accuracy=accuracies[seed], choices=choices)
    assert drawn.wanted() == dict.fromkeys(rows, 5)


def test_one_that_is_told_below_another_is_given_up(tmp_path: Path) -> None:
    """Predefined is above none, and below bilevel: every seed says so."""
    rows = ROWS | {"predefined": above(3, 0.01), "bilevel": above(9, 0.01)}
    drawn = Drawn(tmp_path, rows)
    drawn.train()
    (gone,) = course(drawn.hand.results()).eliminated
    assert (gone.label, gone.seeds, gone.why) == ("predefined", 3, "worse")
    assert (
        "predefined was eliminated after 3 of 8 seeds: -6.00 [-6.00, -6.00] points against "
        "bilevel, which is distinguishably more accurate."
    ) in verdict(drawn.hand.results()).notes


def test_the_error_of_all_looks_is_that_of_one() -> None:
    assert errors((8,)) == {8: pytest.approx(0.05)}
    by_look = errors((3, 5, 8))
    assert sum(by_look.values()) == pytest.approx(0.05)
    assert by_look[3] < 0.002 and by_look[8] > 0.03  # nearly all of it is kept for the end


@pytest.mark.parametrize(
    "seeds, looks", [(5, (3, 5)), (8, LOOKS), (10, (3, 5, 10)), (12, (3, 5, 8, 12))]
)
def test_the_looks_of_a_study(tiny: Any, seeds: int, looks: tuple[int, ...]) -> None:
    assert tiny({}, seeds=seeds, eliminate=0.1).looks == looks
    assert tiny({}, seeds=seeds).looks == (seeds,)


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"seeds": 4}, "eliminate: it takes seeds: 5 or more, got 4."),
        ({"eliminate": 0}, "eliminate: input should be greater than 0, got 0."),
    ],
)
def test_wrong_settings_are_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    tree = {"dataset": {"name": "fashion-mnist-mini"}, "seeds": 8, "eliminate": 0.1}
    with pytest.raises(UserError) as error:
        config.study(tree | {"methods": {"none": None}} | changes, name="x")
    assert str(error.value) == sentence


def test_a_control_goes_with_its_row(tmp_path: Path) -> None:
    rows = ROWS | {"predefined": above(2, -1.0), "bilevel": above(-2, -1.0)}
    drawn = Drawn(tmp_path, rows)
    drawn.train()
    wanted = {"none": 5, "predefined": 5, "bilevel": 3, "bilevel learn:off": 3}
    assert drawn.wanted() == wanted
