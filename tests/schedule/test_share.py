"""Trials whose batches several processes share."""

import pytest

from autoaug_ray.errors import UserError
from autoaug_ray.schedule import cluster, tune
from autoaug_ray.store import meter
from autoaug_ray.store.folder import Folder


def test_workers_share_parts(tiny):
    study = tiny({}, train={"epochs": 1, "accumulate": 3}, resources={"workers": 2})
    with pytest.raises(UserError, match=r"methods.none: resources.workers: 2 share .* got 3"):
        tune.check_resources(study)


def test_more_workers_than_the_machine_has_are_refused(tiny, monkeypatch):
    monkeypatch.setattr(tune.cluster, "machines", lambda: [{"CPU": 2.0}])
    monkeypatch.setattr(tune.cluster, "most", lambda kind: 2.0 if kind == "CPU" else 0.0)
    monkeypatch.setattr(tune.cluster, "may_grow", lambda: False)
    study = tiny({}, train={"epochs": 1, "accumulate": 4}, resources={"workers": 4})
    with pytest.raises(
        UserError, match=r"4 workers ask for 4 CPU together, but this machine has 2"
    ):
        tune.check_resources(study)


def test_every_worker_is_metered():
    held = [meter.Meter(share=2.0, workers=n) for n in (1, 2)]
    one, two = (m.between([0.0, 1.5])[0] for m in held)
    assert two == 2 * one


@pytest.mark.ray
@pytest.mark.nightly
def test_a_study_is_the_same_with_two_workers(tiny, tmp_path):
    cluster.join(2)
    rows = {}
    for workers in (1, 2):
        study = tiny(
            {"bilevel": {"every": 2, "controls": []}},
            train={"epochs": 2, "batch_size": 32, "accumulate": 2},
            resources={"cpus": 1, "workers": workers},
        )
        folder = Folder(tmp_path / str(workers))
        tune.execute([(study, folder)], tune.Watch())
        found = folder.read_rows()
        rows[workers] = {(r["label"], r["epoch"]): r for r in found}
        assert all(line["share"] == workers for line in meter.read(folder.ledger))
    assert rows[1].keys() == rows[2].keys() and len(rows[1]) == 4
    for key, row in rows[1].items():
        assert rows[2][key]["train_loss"] == pytest.approx(row["train_loss"], rel=1e-3), key
        assert rows[2][key]["run_key"] == row["run_key"]
