"""The generative family as its users run it: one command, real models, Ray, a bank, two cases."""

import json
import re

import pyarrow.parquet as pq
import pytest
import torch
from command import run_all

from autoaug_ray import config, data
from autoaug_ray.generate.bank import Bank
from autoaug_ray.schedule.bank_for_study import drawn_of, forecast_bank, kinds_of, pools_of
from autoaug_ray.store import meter
from autoaug_ray.store.folder import Folder

pytestmark = pytest.mark.ray
MIXED = """
dataset:
  {name: fashion-mnist-mini, test_size: 100, imbalance: {factor: 0.5, largest: 3}, redraw: false}
model: {name: cnn, width: 2}
train: {epochs: 2, iters_per_epoch: 3, batch_size: 8}
generate: {calls: 2, per_class: 3}
workers: {shard_size: 32}
seeds: [0, 1]
reference: simple
cases:
  f=0.5: {dataset.imbalance.factor: 0.5}
  f=1: {dataset.imbalance.factor: 1.0}
methods:
  simple: {method: predefined}
  dafusion: {method: mix, probabilities: {identity: 0.5, fixed: 0.5}}
  autogenda: {lr: {grid: [0.01, 0.1]}}
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    place = tmp_path_factory.mktemp("mixed")
    path = place / "mixed.yaml"
    path.write_text(MIXED)
    return place, run_all(path, "--out", place / "runs")


def cases(place):
    for case in ("f=0.5", "f=1"):
        folder = Folder(place / "runs" / "mixed" / case)
        yield folder, pq.read_table(folder.root / "summary.parquet").to_pylist()


def test_captions_edits_searches_and_finals_are_one_command(done):
    place, out = done
    assert out.returncode == 0, out.stdout + out.stderr
    assert "Traceback" not in out.stderr and "all cases" in out.stdout
    for folder, summary in cases(place):
        assert [row["seeds"] for row in summary] == [[0, 1]] * 3
        assert (folder.root / "sheet.png").stat().st_size > 5000
    assert (place / "runs" / "mixed" / "report.html").stat().st_size > 10_000
    bank = Bank(place / "runs" / "bank")
    assert bank.verify() == [] and len(bank.shards()) > 1


def test_each_seed_trains_with_the_proportions_that_it_learned(done):
    place, _ = done
    for folder, _ in cases(place):
        rows = [row for row in folder.read_rows() if row["finished"]]
        mine = [row for row in rows if row["label"] == "autogenda"]
        learned = {
            row["seed"]: row["alpha"] for row in mine
            if row["phase"] == "search" and row["val_accuracy"] is None
        }  # fmt: skip
        final = {row["seed"]: row["alpha"] for row in mine if row["phase"] == "final"}
        assert set(learned) == set(final) == {0, 1}
        for seed in final:
            assert torch.allclose(torch.tensor(final[seed]), torch.tensor(learned[seed]))
        assert not torch.allclose(torch.tensor(learned[0]), torch.full((10, 3), 1 / 3))
        compared = [row for row in rows if row["val_accuracy"] is not None]
        assert len(compared) == 2  # the grid, on a pool and a bank plan without the val images
        plans = {row["bank_plan"] for row in rows if row["bank_plan"]}
        assert len(plans) == 2 and {row["bank_plan"] for row in compared} < plans


def test_generated_images_are_charged_to_who_needs_them(done):
    place, _ = done
    for _, summary in cases(place):
        by_label = {row["label"]: row for row in summary}
        assert by_label["simple"]["relative_bank_cost"] == 0
        assert by_label["simple"]["relative_cost"] == pytest.approx(1)
        one, three = by_label["dafusion"], by_label["autogenda"]
        assert one["device_hours_caption"] == 0 < three["device_hours_caption"]
        assert 0 < one["device_hours_generate"] and one["relative_search_cost"] == 0
        for row in summary:
            parts = sum(row[f"device_hours_{phase}"] for phase in meter.PHASES)
            assert row["total_device_hours"] == pytest.approx(parts)
            seeds = len(row["seeds"])
            assert row["relative_cost"] > row["relative_bank_cost"] and seeds == 2
    spent = sum(Bank(place / "runs" / "bank").spent().values()) / 3600
    charged = three["device_hours_generate"] + three["device_hours_caption"]
    assert charged < spent


def test_resumed_it_makes_nothing_twice(done):
    place, _ = done
    bank = Bank(place / "runs" / "bank")
    before = {path: path.read_bytes() for path in bank.shards()}
    attempts = len(meter.read(bank.ledger))
    out = run_all(place / "mixed.yaml", "--out", place / "runs", "--resume")
    assert out.returncode == 0, out.stdout + out.stderr
    made = re.findall(r"(\d+) to make", out.stdout)
    assert made and set(made) == {"0"} and "captions" not in out.stdout
    assert {path: path.read_bytes() for path in bank.shards()} == before
    assert len(meter.read(bank.ledger)) == attempts


def test_the_dry_run_says_what_the_images_will_cost(tmp_path):
    (tmp_path / "mixed.yaml").write_text(MIXED)
    out = run_all(tmp_path / "mixed.yaml", "--out", tmp_path / "runs", "--dry-run")
    assert out.returncode == 0, out.stdout + out.stderr
    assert "RTX 3090" in out.stdout and not (tmp_path / "runs").exists()
    studies = config.load(tmp_path / "mixed.yaml")
    captions, forecasts = forecast_bank(studies)
    assert captions == 30  # three images of ten classes at f = 1; the others are among them
    # At f = 0.5 the small classes have fewer images, and so more edits of each.
    assert 30 * 3 <= forecasts["H100"].images <= 30 * 3 * 2
    assert forecasts["H100"].device_hours < forecasts["RTX 3090"].device_hours


def test_pools_are_those_of_the_runs(tmp_path):
    (tmp_path / "mixed.yaml").write_text(MIXED)
    study = config.load(tmp_path / "mixed.yaml", changes=["dataset.redraw=true"])[0]
    assert kinds_of(study) == ("fixed", "local", "transfer")
    pools = pools_of(study)
    assert len(pools) == 3  # a whole one per seed, and the first one's without its val images
    for seed in (0, 1):
        run = study.run(study.entry("dafusion"), "final", seed=seed, choices={})
        splits = data.load(run.dataset, val_fraction=None, device="cpu", seed=seed)
        assert torch.equal(pools[study.pool_name(seed, None)].images, splits.train.images)
    assert json.loads(study.model_dump_json())["bank_plans"] == {}


LONG_TAIL = """
dataset:
  {name: fashion-mnist-mini, test_size: 100, redraw: false,
   imbalance: {factor: 0.1, largest: 20, order: index}}
model: {name: cnn, width: 2}
generate: {per_source: 2, per_class: 1}
reference: simple
methods:
  simple: {method: predefined}
  git: {method: mix, probabilities: {identity: 0.5, fixed: 0.5}, below: 0.25}
"""
SEARCHED = "  autogenda: {lr: {grid: [0.01, 0.1]}}\n"


def test_a_pools_bank_has_what_some_entry_that_trains_on_it_can_draw(tmp_path):
    """The classes have 20, 15, 11, 9, 7, 5, 4, 3, 2, 2 images; those below 5 are GIT's."""
    path = tmp_path / "tail.yaml"
    path.write_text(LONG_TAIL)
    (alone,) = config.load(path)
    ((name, pool),) = pools_of(alone).items()
    assert torch.bincount(pool.labels).tolist() == [20, 15, 11, 9, 7, 5, 4, 3, 2, 2]
    assert drawn_of(alone, name, pool) == {"fixed": [6, 7, 8, 9]}
    captions, forecasts = forecast_bank([alone])
    assert captions == 0 and forecasts["A100"].images == 2 * (4 + 3 + 2 + 2)

    path.write_text(LONG_TAIL + SEARCHED)
    (study,) = config.load(path)
    pools = pools_of(study)
    whole, held_out = (drawn_of(study, name, pool) for name, pool in pools.items())
    every = list(range(10))
    assert whole == {"fixed": [6, 7, 8, 9], "local": every, "transfer": every}
    assert held_out == {"fixed": [], "local": every, "transfer": every}


def test_what_cannot_be_counted_is_not_forecast(tmp_path):
    path = tmp_path / "tail.yaml"
    path.write_text(LONG_TAIL)
    (study,) = config.load(path, changes=["generate.solver=own"])
    _, forecasts = forecast_bank([study])
    assert {name: f.images for name, f in forecasts.items()} == {"not counted": 22}
    (pndm,) = config.load(path, changes=["generate.solver=pndm", "generate.calls=50"])
    (ours,) = config.load(path)
    _, forecasts = forecast_bank([ours, pndm, ours])
    each = [forecast_bank([s])[1]["H100"] for s in (ours, pndm)]
    both = forecasts["H100"]  # other recipes make other images, the same one none
    assert both.images == 44 and both.eflop == pytest.approx(sum(f.eflop for f in each))
    assert both.device_hours == pytest.approx(sum(f.device_hours for f in each))
