"""Cases by name, all datasets below one folder, and what a missing dataset does to the others."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from autoaug_ray import config
from autoaug_ray.commands import choose, main, run
from autoaug_ray.data import standins
from autoaug_ray.errors import UserError

SPACES = Path(__file__).parents[2] / "search_spaces"
TEXT = """
dataset: {name: cifar10}
methods: {none: }
cases:
  here: {dataset.name: fashion-mnist-mini}
  ten: {}
  tiny: {dataset: {name: tiny-imagenet, root: data/tiny}}
"""


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(TEXT)
    return tmp_path / "mine.yaml"


def test_cases_are_chosen_by_name(path):
    studies = config.load(path)
    assert [s.case for s in choose.only(studies, ["tiny", "here"])] == ["here", "tiny"]
    with pytest.raises(
        UserError, match=r"tem: no case of mine \(did you mean ten\?\); known: here"
    ):
        choose.only(studies, ["here", "tem"])
    (whole,) = config.load(SPACES / "shift_color.yaml")
    with pytest.raises(UserError, match="--case x: shift_color has no cases"):
        choose.only([whole], ["x"])


@pytest.mark.parametrize("word", ["run", "calibrate", "pilot"])
def test_a_wrong_name_of_a_case_is_said_by_every_word(word, path, capsys):
    assert main([word, str(path), "--case", "four"]) == 2
    assert "known: here, ten, tiny." in capsys.readouterr().err


def test_one_folder_holds_all_datasets(path, tmp_path):
    here, ten, tiny = (choose.below(s, tmp_path / "all") for s in config.load(path))
    assert here == config.load(path)[0], "what ships with the package is not moved"
    assert ten.dataset.root == str(tmp_path / "all")
    assert tiny.dataset.root == str(tmp_path / "all/tiny")
    for root, wanted in (("/x/data", "/x/data"), ("photos/data", str(tmp_path / "photos/data"))):
        study = config.load(path, changes=[f"dataset.root={root}"])[1]
        assert choose.below(study, tmp_path).dataset.root == wanted


def introduced(path, *, folder="all", named=False, only=()):
    """`folder` is another one in each test: a process keeps what it has read, by its root."""
    studies, said = config.load(path), io.StringIO()
    studies = [choose.below(s, Path(folder)) for s in studies if not only or s.case in only]
    console = Console(file=said, width=120)
    return run.introduce_all(studies, console, named=named), said.getvalue()


def test_a_missing_dataset_does_not_stop_the_other_cases(path, tmp_path):
    standins.write("cifar10", tmp_path / "all", per_class=6)
    (ready, left_out), said = introduced(path)
    assert [s.case for s in ready] == ["here", "ten"]
    (sentence,) = left_out
    assert sentence.startswith("mine, tiny is left out: dataset.root: all/tiny holds no wnids.txt")
    assert sentence in said and "mine, ten: cifar10" in said
    with pytest.raises(UserError, match="all/tiny holds no wnids.txt"):
        introduced(path, named=True, only=("tiny", "ten"))


def test_without_any_data_nothing_runs(path):
    with pytest.raises(UserError, match="no case of mine can run: .*, ten is.*, tiny is left out"):
        introduced(path, folder="empty", only=("ten", "tiny"))


def test_the_exit_status_says_that_a_case_was_left_out(path, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(run, "carry_out", lambda cases, *_: ran.extend(cases) or False)
    assert main([str(path), "--data", "nowhere", "--out", "o"]) == 1
    assert [s.case for s in ran] == ["here"]
    out = capsys.readouterr().out
    assert out.count("mine, ten is left out: ") == 2, "at the beginning and, for who waits, the end"
    assert main([str(path), "--data", "nowhere", "--out", "o", "--case", "here"]) == 0
    assert main([str(path), "--data", "nowhere", "--out", "o", "--case", "ten"]) == 2


@pytest.mark.parametrize(
    "fraction, lack", [(0.02, "no image for validation"), (0.9, "a class without training images")]
)
def test_a_search_without_validation_is_refused(tmp_path, fraction, lack):
    path = tmp_path / "few.yaml"
    path.write_text(
        f"dataset: {{name: fashion-mnist-mini, shots: 2}}\nval_fraction: {fraction}\n"
        "methods: {none: , randaugment: {magnitude: {grid: [1, 2]}}}\n"
    )
    (study,) = config.load(path)
    with pytest.raises(
        UserError, match=f"val_fraction: {fraction} leaves {lack}, of .*methods.randaug"
    ):
        run.introduce(study, Console(file=io.StringIO()))
    without_search = study.model_copy(update={"entries": study.entries[:1]})
    run.introduce(without_search, Console(file=io.StringIO()))
