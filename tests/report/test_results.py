"""What generated images and per-seed searches cost; the rest of summary.py is in test_report.py."""

import pytest
from hand import KINDS, MixHand

MIX = {"kinds": KINDS, "alpha": [[0.4, 0.3, 0.3]] * 10}
ALPHA = {"alpha_table": tuple((0.4, 0.3, 0.3) for _ in range(10))}


@pytest.fixture
def hand(tmp_path):
    """Seed 0 and 1 share a bank plan, seed 2 has its own; 3600 s and 7200 s of images."""
    dataset = {"name": "fashion-mnist-mini", "imbalance": {"factor": 0.1}, "redraw": False}
    hand = MixHand(tmp_path, dataset=dataset)
    hand.study = hand.study.model_copy(update={"bank_plans": {"whole": "a"}})
    bank = {
        seed: {"bank_plan": "a", "bank_hours": {"generate": 1.0, "caption": 0.5}} for seed in (0, 1)
    }
    bank[2] = {"bank_plan": "b", "bank_hours": {"generate": 2.0, "caption": 0.5}}
    for seed in range(3):
        hand.run("none", seed=seed, seconds=(100.0,))
        hand.run("search-free", seed=seed, seconds=(100.0,), more=MIX | bank[seed])
        learning = {"kinds": [KINDS] * 2, "alpha": [MIX["alpha"]] * 2}
        hand.run("autogenda", "search", seed, seconds=(60.0 + 60 * seed,), by_epoch=learning)
        hand.run("autogenda", seed=seed, seconds=(100.0,), choices=ALPHA, more=MIX | bank[seed])
    return hand


def test_images_cost_what_a_seed_needs_and_a_plan_is_paid_once(hand):
    row = hand.rows()["search-free"]
    assert row["seeds"] == [0, 1, 2]
    mean = (1.5 + 1.5 + 2.5) / 3 * 3600
    assert row["relative_bank_cost"] == pytest.approx(mean / 100)
    assert row["relative_cost"] == pytest.approx((mean + 100) / 100)
    assert row["device_hours_generate"] == pytest.approx(3.0)  # plans a and b, not seeds
    assert row["device_hours_caption"] == pytest.approx(1.0)
    parts = 4.0 + 3 * (100 + 100 + 1000) / 3600
    assert row["total_device_hours"] == pytest.approx(parts)


def test_what_each_seed_learns_first_counts_once_for_a_training(hand):
    row = hand.rows()["autogenda"]
    assert row["relative_search_cost"] == pytest.approx((60 + 120 + 180) / 3 / 100)
    assert row["device_hours_search"] == pytest.approx((60 + 120 + 180) / 3600)
    assert row["choices"] == "{}"  # proportions are each seed's own, not a choice between trials


def test_macro_accuracy_is_the_mean_over_classes(hand):
    assert hand.rows()["none"]["macro_accuracy_mean"] == pytest.approx(0.75)


def test_another_bank_is_another_study(hand):
    hand.study = hand.study.model_copy(update={"bank_plans": {"whole": "c"}})
    rows = hand.rows()
    assert rows["search-free"]["seeds"] == [] and rows["none"]["seeds"] == [0, 1, 2]
