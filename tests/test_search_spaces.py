"""A one-epoch version of every study that ships runs, on a few images."""

from pathlib import Path

import pytest

from autoaug_ray import config, policy, train
from autoaug_ray.methods import ImageShape

SPACES = sorted((Path(__file__).parent.parent / "search_spaces").glob("*.yaml"))
SMALL = [
    "dataset.train_size=80", "dataset.test_size=20", "model.width=2",
    "train.epochs=1", "train.batch_size=16",
]  # fmt: skip


@pytest.mark.parametrize("path", SPACES, ids=lambda p: p.stem)
def test_a_small_version_of_the_study_runs(path, tmp_path):
    study = config.load(path, changes=SMALL, seeds=1)
    assert study.dataset.name == "fashion-mnist-mini", "needs a stand-in for its data"
    for entry in study.entries:
        for choices in entry.extremes():
            if (source := entry.hyperparameters.get("of")) is not None:
                choices = {**choices, "policy": str(tmp_path / source / "policy.pt")}
            run = study.run(entry, "final", seed=study.seeds[0], choices=choices)
            (epoch,) = train.run(run)
            assert epoch.row["finished"] and epoch.row["used_key"] == run.key
        state = epoch.snapshot()["state"]
        schedule = [(0.0, policy.tensors(state))]
        policy.export(tmp_path / entry.label, run, ImageShape(1, 28, 28), state, schedule, {})
