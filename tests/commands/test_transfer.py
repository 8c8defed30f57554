"""Whether what is found elsewhere is there, and fits, is said before any work."""

import shutil
from dataclasses import replace

import pytest
from hand import TREE, Hand

from autoaug_ray import config, policy
from autoaug_ray.commands.transfer import check
from autoaug_ray.errors import UserError
from autoaug_ray.methods.base import Task
from autoaug_ray.store.folder import Folder

TASK = Task(1, 28, 28, (16,) * 10)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """OUT, in which the study `there` has a bilevel entry that finished its seeds 0 and 1."""
    out = tmp_path_factory.mktemp("out")
    there = Hand(out / "there")
    there.finals("bilevel", 0.5, 0.5)
    (there.folder.root / "study.json").write_text(there.study.model_dump_json())
    for seed in (0, 1):
        run = there.study.run(there.study.entry("bilevel"), "final", seed=seed, choices={})
        state = policy.tensors(run.method.init(TASK, seed, "cpu").state_dict())
        place = there.folder.policy("bilevel", seed)
        policy.export(place, run, TASK, state, [(0.0, state)], {})
    (out / "with cases" / "a").mkdir(parents=True)
    (out / "with cases" / "a" / "study.json").write_text(there.study.model_dump_json())
    return out


def study(of="there/bilevel", name="here", **changes):
    methods = {"none": None, "again": {"method": "replay", "of": of}}
    return config.study({**TREE, "methods": methods, "seeds": 2, **changes}, name=name)


def refused(study, out, to_come=None):
    with pytest.raises(UserError, match=r"^methods\.again: .*[^.]\.$") as error:
        check([study], [Folder(out / study.name)], to_come or {})
    return str(error.value)


def test_what_is_there_and_fits_is_taken(learned):
    check([study()], [Folder(learned / "here")], {})


@pytest.mark.parametrize(
    "of, sentence",
    [
        ("nowhere/bilevel", "nowhere holds no study; run nowhere first, into the same folder."),
        ("with cases/bilevel", "names no case; write with cases/CASE/bilevel, with one of a."),
        ("with cases/b/bilevel", "holds no study; run with cases first"),
        ("there/bilevl", "'bilevl' is no label of there (did you mean bilevel?); known: none,"),
        ("there/randaugment", "'there/randaugment' is randaugment; a replay needs a bilevel entry"),
        ("here/none", "of: here/none stands in this very study; name it none."),
    ],
)
def test_what_is_not_there_is_told(learned, of, sentence):
    assert sentence in refused(study(of), learned)


def test_each_seed_needs_its_own(learned, tmp_path):
    assert "of: there/bilevel has no seed 7, only 0, 1, 2;" in refused(study(seeds=[0, 7]), learned)
    assert "has not finished seed 2; run there first, to its end." in refused(
        study(seeds=3), learned
    )
    shutil.copytree(learned / "there", tmp_path / "there")
    (tmp_path / "there/policies/bilevel/seed-1/policy.pt").unlink()
    assert "of: there/bilevel has left no policy.pt of seed 1." in refused(study(), tmp_path)


def test_a_study_that_runs_first_need_not_have_finished(tmp_path):
    """But what it will leave has to fit."""
    there, here = Hand(tmp_path / "there").study, study()
    to_come = {("there", None): there.model_copy(update={"name": "there"})}
    check([here], [Folder(tmp_path / "here")], to_come)
    assert "has no seed 9" in refused(study(seeds=[9]), tmp_path, to_come)


def mixes(name, dataset, **entry):
    methods = {"none": None, "again": {"method": "autogenda", **entry}}
    return config.study({**TREE, "methods": methods, "dataset": dataset}, name=name)


def test_alpha_needs_the_same_classes(tmp_path, monkeypatch):
    """Names are compared too: as many of others are no better than another number."""
    from autoaug_ray import data

    mini = {"name": "fashion-mnist-mini"}
    there, here = mixes("there", {**mini, "train_size": 200}), mixes("here", mini, of="there/again")
    to_come = {("there", None): there}
    check([here], [Folder(tmp_path / "here")], to_come)
    real = data.load

    def load(dataset, **other):
        splits = real(dataset, **other)
        if dataset == there.dataset:
            return replace(splits, classes=names)
        return splits

    monkeypatch.setattr(data, "load", load)
    names = ("boot",) * 10
    assert "as many, but with other names" in refused(here, tmp_path, to_come)
    names = ("boot",) * 4
    assert "(4 classes there, 10 here)" in refused(here, tmp_path, to_come)


def test_a_source_that_may_get_fewer_seeds_is_run_first(learned):
    there = config.study(TREE | {"seeds": 5, "eliminate": 0.1}, name="there")
    message = refused(study(), learned, {("there", None): there})
    assert "there/bilevel may get fewer seeds, as its study eliminates entries" in message
