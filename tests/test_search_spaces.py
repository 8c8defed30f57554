"""A version of a few steps of every study that ships runs, on a stand-in for its data."""

from pathlib import Path

import pytest

from autoaug_ray import config, policy, train
from autoaug_ray.bench.alpha import Planted
from autoaug_ray.commands import smoke
from autoaug_ray.methods.base import Task

SPACES = sorted((Path(__file__).parent.parent / "search_spaces").glob("*.yaml"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Stand-ins are written once for all studies."""
    return tmp_path_factory.mktemp("stand-ins")


@pytest.mark.parametrize("path", SPACES, ids=lambda p: p.stem)
def test_a_small_version_of_the_study_runs(path, place, tmp_path):
    studies = config.load(path)
    study = smoke.smaller(studies[-1], place)
    plans = {study.pool_name(seed, None): "planted" for seed in study.seeds}
    study = study.model_copy(update={"bank_plans": plans})
    for entry in study.entries:
        for choices in entry.extremes():
            if (source := entry.hyperparameters.get("of")) is not None:
                label = source.split("/")[-1]  # another case's: this one has its like
                choices = {**choices, "policy": str(tmp_path / label / "policy.pt")}
            run = study.run(entry, "final", seed=study.seeds[0], choices=choices)
            (epoch,) = train.run(run, bank=Planted(run))
            assert epoch.row["finished"] and epoch.row["used_key"] == run.key
        state = epoch.snapshot()["state"]
        schedule = [(0.0, policy.tensors(state))]
        task = Task(*epoch.snapshot()["shape"][:3], tuple(epoch.row["class_counts"]))
        policy.export(tmp_path / entry.label, run, task, state, schedule, {})
