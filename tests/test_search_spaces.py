"""A version of a few steps of every study that ships runs, on a stand-in for its data."""

import json
from pathlib import Path

import pytest

from autoaug_ray import config, policy, train
from autoaug_ray.bench.alpha import Planted
from autoaug_ray.commands import smoke
from autoaug_ray.methods.base import Task
from autoaug_ray.report import runs

SPACES = sorted((Path(__file__).parent.parent / "search_spaces").glob("*.yaml"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Stand-ins are written once for all studies."""
    return tmp_path_factory.mktemp("stand-ins")


@pytest.mark.parametrize("path", SPACES, ids=lambda p: p.stem)
def test_a_row_that_is_autogenda_searches_as_its_paper_does(path):
    """Sections 3.3 and 4.1; a search with other settings says `(ours)` in its label."""
    for study in config.load(path):
        for entry in study.entries:
            method = entry.first_method
            if "autogenda" in entry.label:
                assert method.name == "autogenda"
            if method.name != "autogenda" or "(ours)" in entry.label:
                continue
            assert not entry.ranges and method.alpha_table is None
            search = (method.gradient, method.estimator, method.optimiser, method.lr, method.tau)
            assert search == ("first_order", "gumbel", "sgd", 1e-3, 1.0), entry.label
            if method.of is None:
                assert method.training("search", study.train).steps(pool=1) == 10_000, entry.label


@pytest.mark.parametrize("path", SPACES, ids=lambda p: p.stem)
def test_no_run_that_a_study_asks_for_is_foreign_to_its_report(path):
    """Also a search that is longer than the final training; a foreign run is in no cost."""
    for study in config.load(path):
        for entry in study.entries:
            for choices in entry.extremes():
                method = entry.method(choices)
                own = method.searches_in_own_run
                for phase in ("search", "final"):
                    run = study.run(
                        entry, phase, seed=study.seeds[0], choices=choices,
                        whole_pool=own and phase == "search",
                    )  # fmt: skip
                    row = {"settings": run.model_dump_json()}
                    found = runs.choices_of(study, entry, row)
                    assert found is not None and choices.items() <= found.items(), entry.label


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
                found = entry.first_method.inherit(tmp_path / label / "policy.pt")
                choices = {**choices, **found}
            run = study.run(entry, "final", seed=study.seeds[0], choices=choices)
            (epoch,) = train.run(run, bank=Planted(run))
            assert epoch.row["finished"] and epoch.row["used_key"] == run.key
            if epoch.row["found"] is not None:
                choices = {**choices, **json.loads(epoch.row["found"])}
                run = study.run(entry, "final", seed=study.seeds[0], choices=choices)
        state = epoch.snapshot()["state"]
        schedule = [(0.0, policy.tensors(state))]
        task = Task(*epoch.snapshot()["shape"][:3], tuple(epoch.row["class_counts"]))
        policy.export(tmp_path / entry.label, run, task, state, schedule, {})
