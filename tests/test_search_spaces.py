"""A one-epoch version of every study that ships runs, on a few images."""

from pathlib import Path

import pytest

from autoaug_ray import config, policy, train
from autoaug_ray.bench.alpha import Planted
from autoaug_ray.methods import Task

SPACES = sorted((Path(__file__).parent.parent / "search_spaces").glob("*.yaml"))
SMALL = ["dataset.test_size=20", "model.width=2", "train.epochs=1", "train.batch_size=16"]


@pytest.mark.parametrize("path", SPACES, ids=lambda p: p.stem)
def test_a_small_version_of_the_study_runs(path, tmp_path):
    imbalanced = config.load(path)[0].dataset.imbalance is not None
    size = "dataset.imbalance.largest=20" if imbalanced else "dataset.train_size=80"
    study = config.load(path, changes=[*SMALL, size], seeds=1)[0]
    assert study.dataset.name == "fashion-mnist-mini", "needs a stand-in for its data"
    study = study.model_copy(update={"bank_plans": {study.pool_name(0, None): "planted"}})
    for entry in study.entries:
        for choices in entry.extremes():
            if (source := entry.hyperparameters.get("of")) is not None:
                choices = {**choices, "policy": str(tmp_path / source / "policy.pt")}
            run = study.run(entry, "final", seed=study.seeds[0], choices=choices)
            (epoch,) = train.run(run, bank=Planted(run))
            assert epoch.row["finished"] and epoch.row["used_key"] == run.key
        state = epoch.snapshot()["state"]
        schedule = [(0.0, policy.tensors(state))]
        task = Task(1, 28, 28, tuple(epoch.row["class_counts"]))
        policy.export(tmp_path / entry.label, run, task, state, schedule, {})
