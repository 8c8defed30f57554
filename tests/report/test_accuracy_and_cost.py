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
    hand.finals("none", 0.5, 0.5, 0.5)
    hand.finals("bilevel", 0.5, 0.5, 0.5, seconds=(20.0,))
    hand.finals("randaugment", 0.5, 0.5, 0.5, choices={"magnitude": 5})
    for path in hand.folder.ledger.glob(f"{hand.key('bilevel', 'final', 1, {}, 0)}-*"):
        line = json.loads(path.read_text())
        del line["work"], line["kept_work"], line["clock"]
        path.write_text(json.dumps(line) + "\n")
    row = hand.rows()["bilevel"]
    assert row["cost_seeds"] == [0, 2] and row["relative_cost"] == pytest.approx(2.0)
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


# What another entry found


def followed(tmp_path: Path, *labels: str, seconds: float = 30.0) -> Hand:
    """A study of replays of the bilevel entry of another one, whose `none` takes 5 seconds."""
    there = Hand(tmp_path / "there")
    there.finals("none", 0.5, 0.5, 0.5, seconds=(5.0,))
    there.finals("bilevel", 0.5, 0.5, 0.5, seconds=(seconds,))
    (there.folder.root / "study.json").write_text(there.study.model_dump_json())
    replays = {label: {"method": "replay", "of": "there/bilevel"} for label in labels}
    here = Hand(tmp_path / "here", methods={"none": None} | replays)
    here.finals("none", 0.5, 0.5, 0.5)
    for label in labels:
        for seed in (0, 1, 2):
            here.run(label, seed=seed, choices={"policy": f"p{seed}.pt"}, seconds=(11.0,))
    return here


def test_a_search_in_another_study_is_told_in_trainings_of_this_one(tmp_path: Path) -> None:
    """30 seconds are 3 trainings here, not the 6 that they are there; billed is what ran here."""
    row = followed(tmp_path, "replay").rows()["replay"]
    assert row["relative_search_cost"] == pytest.approx(3.0)
    assert row["relative_cost"] == pytest.approx(3.0 + 1.1)
    assert (row["amortised_search_cost"], row["search_users"]) == (pytest.approx(3.0), 1)
    assert row["device_hours_final"] == pytest.approx(3 * 11 / 3600)
    assert row["search_device_hours"] == 0


def test_a_search_is_shared_by_the_entries_that_train_with_it(tmp_path: Path) -> None:
    hand = followed(tmp_path, "replay", "again")
    for label in ("replay", "again"):
        row = hand.rows()[label]
        assert row["relative_search_cost"] == pytest.approx(3.0), "in full"
        assert row["amortised_search_cost"] == pytest.approx(1.5) and row["search_users"] == 2
    assert (
        "replay trains with what there/bilevel found: a search of 3.00 trainings of none, all of "
        "which is in its cost of 4.10; divided among its 2 users here 1.50, with which it costs "
        "2.60."
    ) in hand.words()


def test_the_owner_of_a_search_is_one_of_its_users(tmp_path: Path) -> None:
    """What alpha costs is the training that learned it, not the final one of its owner."""
    then = {"name": "randaugment"}
    methods = {"none": None, "mine": {"method": "autogenda"},
               "two": {"method": "autogenda", "of": "mine", "then": then}}  # fmt: skip
    hand = Hand(tmp_path, methods=methods)
    hand.study = hand.study.model_copy(update={"bank_plans": {"whole": "plan"}})
    hand.finals("none", 0.5)
    table = [[0.5, 0.25, 0.25]] * 10
    hand.run("mine", "search", seconds=(40.0,), by_epoch={"alpha": [table, table]})
    hand.finals("mine", 0.5, choices={"alpha_table": table}, seconds=(12.0,))
    hand.finals("two", 0.5, choices={"alpha_table": table}, seconds=(14.0,))
    rows = hand.rows()
    assert rows["mine"]["relative_cost"] == pytest.approx(4.0 + 1.2)
    assert rows["two"]["relative_cost"] == pytest.approx(4.0 + 1.4)
    for label in ("mine", "two"):
        assert rows[label]["relative_search_cost"] == pytest.approx(4.0)
        assert rows[label]["amortised_search_cost"] == pytest.approx(2.0)
        assert rows[label]["search_users"] == 2


@pytest.mark.parametrize("plan, images", [("theirs", 3.0), ("ours", 5.0)])
def test_images_that_a_search_elsewhere_needed_count_once(
    tmp_path: Path, plan: str, images: float
) -> None:
    """30 seconds of images that it mixes, and 20 of those that alpha was learned on, if others."""
    table = [[0.5, 0.25, 0.25]] * 10

    def fill(hand: Hand, plan: str, seconds: float) -> Hand:
        hand.study = hand.study.model_copy(update={"bank_plans": {"whole": plan}})
        work = {"generate": seconds}
        more = {"bank_plan": plan, "bank_work": work, "bank_hours": {}}
        hand.finals("none", 0.5)
        hand.finals("mine", 0.5, choices={"alpha_table": table}, more=more)
        return hand

    there = fill(Hand(tmp_path / "there", methods={"none": None, "mine": {"method": "autogenda"}}),
                 "theirs", 20.0)  # fmt: skip
    there.run("mine", "search", seconds=(40.0,), by_epoch={"alpha": [table, table]})
    (there.folder.root / "study.json").write_text(there.study.model_dump_json())
    follows = {"method": "autogenda", "of": "there/mine"}
    here = fill(Hand(tmp_path / "here", methods={"none": None, "mine": follows}), plan, 30.0)
    row = here.rows()["mine"]
    assert row["relative_bank_cost"] == pytest.approx(images)
    assert row["relative_search_cost"] == pytest.approx(4.0)
    assert row["relative_cost"] == pytest.approx(1.0 + 4.0 + images)


def test_seconds_of_a_cpu_and_of_a_gpu_are_not_added(tmp_path: Path) -> None:
    hand = followed(tmp_path, "replay")
    for path in (tmp_path / "there" / "ledger").iterdir():
        path.write_text(path.read_text().replace('"CPU time"', '"CUDA events"'))
    row = hand.rows()["replay"]
    assert row["relative_cost"] is None and row["test_accuracy_mean"] == pytest.approx(0.5)
    words = hand.words()
    assert "The cost of replay is not known, since that of finding what it trains with" in words
    assert "it was measured by CUDA events, this study by CPU time" in words


def test_a_search_whose_folder_is_gone_has_no_cost(tmp_path: Path) -> None:
    hand = followed(tmp_path, "replay")
    (tmp_path / "there" / "study.json").unlink()
    assert hand.rows()["replay"]["relative_cost"] is None
    assert "there holds no study; run there first" in hand.words()


def test_a_replay_of_newer_content_replaces_the_older_one(tmp_path: Path) -> None:
    hand = followed(tmp_path, "replay")
    newer = {"policy": "elsewhere/p1.pt", "content": "ff"}
    hand.run("replay", seed=1, accuracy=0.9, choices=newer)
    row = hand.rows()["replay"]
    assert row["seeds"] == [0, 1, 2] and row["test_accuracies"] == [0.5, 0.9, 0.5]


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
