"""Smoke runs: what they keep of a study, what they say of one that fails, and one for real."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from autoaug_ray import config
from autoaug_ray.commands import main, smoke
from autoaug_ray.data import standins
from autoaug_ray.errors import UserError
from autoaug_ray.settings.dataset import OPTIONS

SPACES = Path(__file__).parents[2] / "search_spaces"


def test_every_dataset_has_a_stand_in():
    assert set(standins.WRITERS) == set(OPTIONS) - {"fashion-mnist-mini"}


def test_a_smoke_run_keeps_entries_and_formats_and_shrinks_the_rest(tmp_path):
    whole, _ = config.load(SPACES / "bilevel_table1.yaml")
    study = smoke.smaller(whole, tmp_path)
    assert [e.label for e in study.entries] == [e.label for e in whole.entries]
    assert study.dataset.name == "cifar10" and (tmp_path / "cifar10").is_dir()
    magnitudes = study.entry("validated_magnitude").ranges["magnitude"].values
    assert magnitudes == (0.02, 1.0)
    assert study.train.epochs == 1 and study.train.schedule == "step"
    assert study.resources.gpus == 0 and study.seeds == (0,)
    assert study.published == whole.published
    grid = smoke.smaller(config.load(SPACES / "bilevel_table1.yaml")[1], tmp_path).entry("grid")
    assert len(grid.grid()) == 2, "64 combinations are not for a smoke run"
    long = smoke.smaller(config.load(SPACES / "autogenda_quickstart.yaml")[0], tmp_path)
    run = long.run(long.entry("autogenda"), "search", seed=0, choices={}, whole_pool=True)
    assert run.train.steps(pool=1) == 2


def run(several, execute, tmp_path):
    said = io.StringIO()
    outcomes = smoke.run(several, tmp_path, execute, Console(file=said, width=150))
    return outcomes, said.getvalue()


def test_one_case_of_each_dataset_is_run(tmp_path):
    asked = []

    def execute(studies, out, console):
        asked.extend((study.case, study.dataset.name) for study in studies)
        return False

    (outcome,), _ = run([config.load(SPACES / "bilevel_table7.yaml")], execute, tmp_path)
    assert asked == [
        ("CIFAR-10 ResNet18", "cifar10"), ("CIFAR-100 ResNet18", "cifar100"),
        ("ImageNet ResNet50", "imagenet"),
    ]  # fmt: skip
    assert outcome.cases == [case for case, _ in asked] and outcome.fault is None


def test_a_case_with_entries_of_its_own_is_run(tmp_path):
    """The grid stands in the second case of Table 1 alone, whose dataset is that of the first."""
    asked = []

    def execute(studies, out, console):
        asked.extend([e.label for e in study.entries] for study in studies)
        return False

    studies = config.load(SPACES / "bilevel_table1.yaml")
    (outcome,), _ = run([studies], execute, tmp_path)
    assert outcome.cases == ["translation", "affine"] and len(asked) == 2
    assert "grid" not in asked[0] and "grid" in asked[1]
    assert outcome.entries == len({label for labels in asked for label in labels})
    assert smoke.with_something_new([studies[0], studies[0]]) == [studies[0]]


def test_what_fails_is_named_and_the_others_still_run(tmp_path):
    def wrong_input(console):
        raise UserError("dataset.root: nothing is there.")

    def failed_run(console):
        console.print("failed: none (final, seed 0): train_loss became nan")
        return True

    fates = iter([wrong_input, failed_run, lambda console: False])
    study = config.load(SPACES / "shift_color.yaml")
    outcomes, said = run([study] * 3, lambda s, out, console: next(fates)(console), tmp_path)
    assert [o.fault for o in outcomes] == [
        "dataset.root: nothing is there.",
        "failed: none (final, seed 0): train_loss became nan",
        None,
    ]
    assert "1 passed, 2 failed" in said and said.count("FAILED: ") == 2


@pytest.mark.nightly
@pytest.mark.ray
def test_two_studies_for_real(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = [str(SPACES / name) for name in ("shift_color.yaml", "bilevel_table3.yaml")]
    assert main(["--smoke", *paths]) == 0
    said = capsys.readouterr().out
    assert "2 passed, 0 failed" in said and "bach" in said
    assert list(tmp_path.iterdir()) == [], "a smoke run leaves nothing behind"


def test_of_several_studies_the_wrong_one_is_named(tmp_path, capsys):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("dataset: {name: fashion-mnist-mini}\nmethods: {nothing: {}}\n")
    assert main(["--smoke", str(SPACES / "shift_color.yaml"), str(wrong)]) == 2
    assert f"error: {wrong}: methods.nothing.method: unknown method" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(standins.WRITERS))
def test_what_is_there_already_is_kept(name, tmp_path):
    place = tmp_path / name
    place.mkdir()
    standins.write(name, place)
    assert list(place.iterdir()) == []
