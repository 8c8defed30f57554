"""Accuracy, cost and choices of each entry: arithmetic on rows written by hand."""

import json
import math
from pathlib import Path

import pytest
from hand import TREE, Hand

from autoaug_ray.store.meter import PHASES


@pytest.fixture
def hand(tmp_path: Path) -> Hand:
    return Hand(tmp_path)


def test_accuracy_is_that_of_whole_final_runs(hand: Hand) -> None:
    hand.run("randaugment", "search", accuracy=0.99, choices={"magnitude": 5})
    hand.run("randaugment", seed=0, accuracy=0.70, choices={"magnitude": 9})
    hand.run("randaugment", seed=1, accuracy=0.74, choices={"magnitude": 9})
    hand.run("randaugment", seed=2, accuracy=0.10, choices={"magnitude": 9}, finished=False)
    row = hand.rows()["randaugment"]
    assert row["seeds"] == [0, 1] and row["missing_seeds"] == [2]
    assert row["test_accuracy_mean"] == pytest.approx(0.72)
    assert row["test_accuracy_sd"] == pytest.approx(math.sqrt(0.0008))
    assert row["test_accuracy_half_width"] == pytest.approx(0.02 * math.tan(0.475 * math.pi))
    assert json.loads(row["choices"]) == {"magnitude": 9}
    assert row["displacement"] == pytest.approx(0.72)


def test_relative_cost_by_hand(hand: Hand) -> None:
    """Search 6 + 2 x (3 + 4) for an attempt that died with its work kept; finals (20 + 30) / 2;
    reference 10."""
    hand.finals("none", 0.5, 0.5)
    search = {"label": "randaugment", "phase": "search"}
    hand.run(**search, choices={"magnitude": 5}, seconds=(6.0,))
    hand.run(**search, choices={"magnitude": 9}, index=1, seconds=(3.0, 4.0), share=2.0)
    hand.run("randaugment", seed=0, choices={"magnitude": 9}, seconds=(5.0, 15.0))
    hand.run("randaugment", seed=1, choices={"magnitude": 9}, seconds=(30.0,))
    row = hand.rows()["randaugment"]
    assert row["relative_search_cost"] == pytest.approx(2.0)
    assert row["relative_cost"] == pytest.approx(4.5)
    assert row["training_device_hours"] == pytest.approx(45 / 3600)
    assert row["trials"] == 4 and row["attempts"] == 6
    assert hand.rows()["none"]["relative_cost"] == pytest.approx(1.0)
    assert row["search_device_hours"] == pytest.approx((20 + 1100 + 4 * 1100) / 3600)
    assert row["total_device_hours"] == pytest.approx((20 + 50 + 5 * 1100 + 3 * 1100) / 3600)


def test_failed_and_stopped_runs_cost(hand: Hand) -> None:
    hand.finals("none", 0.5, 0.5, 0.5)
    search = {"label": "randaugment", "phase": "search"}
    hand.run(**search, choices={"magnitude": 5}, seconds=(7.0,), error="out of memory", rows=False)
    hand.run(**search, choices={"magnitude": 9}, index=1, seconds=(3.0,), finished=False)
    hand.finals("randaugment", 0.6, 0.6, 0.6, choices={"magnitude": 9})
    row = hand.rows()["randaugment"]
    assert row["relative_cost"] == pytest.approx(2.0)
    assert (row["failed"], row["stopped"], row["trials"]) == (1, 1, 5)


def test_relative_cost_is_over_the_same_seeds(hand: Hand) -> None:
    """A machine that was slow during seed 1 was slow for both."""
    hand.run("none", seed=0, seconds=(10.0,))
    hand.run("none", seed=1, seconds=(40.0,))
    hand.run("bilevel", seed=1, seconds=(80.0,))
    hand.run("bilevel", seed=2, seconds=(999.0,))
    assert hand.rows()["bilevel"]["relative_cost"] == pytest.approx(2.0)


def test_every_seed_is_divided_by_the_same_seed_of_the_reference(hand: Hand) -> None:
    """The mean of 8 / 10 and 80 / 40, where the mean of the one over that of the other is 1.76."""
    for seed, seconds in enumerate((10.0, 40.0)):
        hand.run("none", seed=seed, seconds=(seconds,))
        hand.run("bilevel", seed=seed, seconds=((8.0, 80.0)[seed],))
    row = hand.rows()["bilevel"]
    assert row["cost_seeds"] == [0, 1] and row["relative_costs"] == pytest.approx([0.8, 2.0])
    assert row["relative_cost"] == pytest.approx(1.4)
    # t(1) sd / sqrt(2) of two values is t(1) / 2 times their difference
    assert row["relative_cost_half_width"] == pytest.approx(0.6 * math.tan(0.475 * math.pi))


def test_neighbours_make_a_training_longer_but_not_dearer(hand: Hand) -> None:
    hand.finals("none", 0.5, 0.5)
    hand.finals("bilevel", 0.5, 0.5, seconds=(20.0,), wall=3.0)
    row = hand.rows()["bilevel"]
    assert row["relative_cost"] == pytest.approx(2.0)
    assert row["device_hours_final"] == pytest.approx(2 * 60 / 3600)


def test_work_that_is_done_again_is_billed_and_no_cost(hand: Hand) -> None:
    """A fault that hits the reference makes nothing else cheaper: of 10 seconds that were lost
    with the process 4 were on disk, and 6 were done again."""
    hand.run("none", seed=0, seconds=(10.0, 6.0), kept=0.4)
    hand.run("bilevel", seed=0, seconds=(40.0,))
    rows = hand.rows()
    assert rows["bilevel"]["relative_cost"] == pytest.approx(4.0)
    assert rows["none"]["relative_cost"] == pytest.approx(1.0)
    assert rows["none"]["device_hours_final"] == pytest.approx(16 / 3600)


def test_attempts_of_before_work_was_measured_have_no_cost(hand: Hand) -> None:
    """Nor does a whole study of such attempts, and its page says why."""
    hand.finals("none", 0.5, 0.5)
    hand.finals("bilevel", 0.5, 0.5, seconds=(20.0,))
    for path in hand.folder.ledger.glob(f"{hand.key('bilevel', 'final', 1, {}, 0)}-*"):
        line = json.loads(path.read_text())
        del line["work"], line["kept_work"], line["clock"]
        path.write_text(json.dumps(line) + "\n")
    row = hand.rows()["bilevel"]
    assert row["cost_seeds"] == [0] and row["relative_cost"] == pytest.approx(2.0)
    for path in hand.folder.ledger.iterdir():
        line = json.loads(path.read_text())
        old = {k: v for k, v in line.items() if k not in ("work", "kept_work", "clock")}
        path.write_text(json.dumps(old) + "\n")
    assert "did not measure work: no costs." in hand.words()
    assert "and whose work is known." in hand.words()


def test_phases_add_up(hand: Hand) -> None:
    hand.run("none", seconds=(10.0, 20.0), share=0.5)
    row = hand.rows()["none"]
    assert row["device_hours_final"] == pytest.approx(15 / 3600)
    assert row["device_hours_eval"] == pytest.approx(100 / 3600)
    parts = [row[f"device_hours_{p}"] for p in PHASES]
    assert sum(parts) == pytest.approx(row["total_device_hours"])


def test_a_replay_pays_for_what_it_replays(tmp_path: Path) -> None:
    methods = TREE["methods"] | {"replay": {"of": "bilevel"}}
    hand = Hand(tmp_path, methods=methods)
    hand.finals("none", 0.5, 0.5)
    hand.finals("bilevel", 0.5, 0.5, seconds=(30.0,))
    for seed in (0, 1):
        hand.run("replay", seed=seed, choices={"policy": f"p{seed}.pt"}, seconds=(11.0,))
    row = hand.rows()["replay"]
    assert row["seeds"] == [0, 1] and json.loads(row["choices"]) == {}
    assert row["relative_cost"] == pytest.approx(4.1)


def test_rows_of_another_version_of_the_study_do_not_count(hand: Hand) -> None:
    other = Hand(hand.folder.root, train={"epochs": 2, "batch_size": 16, "lr": 0.01})
    other.finals("none", 0.9, 0.9, 0.9, seconds=(500.0,))
    hand.run("none", seed=1, accuracy=0.5)
    row = hand.rows()["none"]
    assert row["seeds"] == [1] and row["test_accuracy_mean"] == 0.5
    assert row["device_hours_final"] == pytest.approx(10 / 3600)
    assert "3 runs in this folder with other settings" in hand.words()


def test_a_longer_search_replaces_the_choice(hand: Hand) -> None:
    hand.finals("randaugment", 0.9, 0.9, 0.9, choices={"magnitude": 5})
    hand.run("randaugment", seed=1, accuracy=0.6, choices={"magnitude": 9})
    row = hand.rows()["randaugment"]
    assert row["seeds"] == [1] and json.loads(row["choices"]) == {"magnitude": 9}


def test_difference_is_paired(hand: Hand) -> None:
    hand.finals("none", 0.60, 0.70, 0.80)
    hand.finals("bilevel", 0.61, 0.71, 0.815)
    row = hand.rows()["bilevel"]
    assert row["difference"] == pytest.approx(0.035 / 3)
    assert row["difference_half_width"] < 0.01 < row["test_accuracy_half_width"]
