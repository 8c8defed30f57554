"""Every study that ships loads in all its cases, and a version of a few steps of it runs."""

from pathlib import Path

import pytest
from rich.console import Console

from autoaug_ray import cli, config, policy, smoke, train
from autoaug_ray.bench.alpha import Planted
from autoaug_ray.methods import Task

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
                choices = {**choices, "policy": str(tmp_path / source / "policy.pt")}
            run = study.run(entry, "final", seed=study.seeds[0], choices=choices)
            (epoch,) = train.run(run, bank=Planted(run))
            assert epoch.row["finished"] and epoch.row["used_key"] == run.key
        state = epoch.snapshot()["state"]
        schedule = [(0.0, policy.tensors(state))]
        task = Task(*epoch.snapshot()["shape"][:3], tuple(epoch.row["class_counts"]))
        policy.export(tmp_path / entry.label, run, task, state, schedule, {})


@pytest.mark.parametrize("path", SPACES, ids=lambda p: p.stem)
def test_the_header_says_command_cost_and_result(path):
    header = path.read_text().split("\n\n")[0]
    assert f"python run_all.py search_spaces/{path.name}" in header or path.stem == "quickstart"
    assert "Cost: " in header
    assert "Result: " in header or "Expected" in header
    assert "TODO" not in header
