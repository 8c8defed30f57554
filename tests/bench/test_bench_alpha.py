"""The planted-noise benchmark: its options are those of the searches that it runs."""

import json

import pytest
import torch

from autoaug_ray.bench import __main__ as command
from autoaug_ray.bench.alpha import SEARCHES, Search, asked

NOTHING = {"optimiser": None, "lr": None, "epochs": None, "iters": None, "batch": None}
PAPER = {"gradient": "first_order", "optimiser": "sgd", "lr": 1e-3}
"""Sections 3.3 and 4.1."""


def test_by_default_a_search_is_the_published_one_or_ours():
    ((name, published),) = asked("published", **NOTHING)
    assert name == "published" and published.settings == PAPER and published.batch == 32
    assert published.epochs * published.iters == 10_000
    both = dict(asked("published, ours", **NOTHING))
    assert both == {name: SEARCHES[name] for name in ("published", "ours")}
    assert both["ours"].settings["optimiser"] == "adam"


def test_options_take_the_place_of_a_search_s_own():
    given = {"optimiser": "adam", "lr": "1e-2, 0.1", "epochs": 3, "iters": 7, "batch": 16}
    found = asked("published,likelihood_ratio", **given)
    assert [name for name, _ in found] == ["published"] * 2 + ["likelihood_ratio"] * 2
    assert [one.settings["lr"] for _, one in found] == [0.01, 0.1] * 2
    assert found[0][1] == Search({**PAPER, "optimiser": "adam", "lr": 0.01}, 3, 7, 16)
    assert found[2][1].settings["estimator"] == "likelihood_ratio"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--search", "publshed"], "--search 'publshed' is unknown; known: published, ours, "),
        (["--optimiser", "lion"], "--optimiser must be sgd or adam, got 'lion'."),
        (["--lr", "0.1,fast"], "--lr must be numbers above 0 and at most 100, with commas"),
        (["--lr", "0"], "--lr must be numbers above 0"),
        (["--lr", "nan"], "--lr must be numbers above 0"),
        (["--batch", "0"], "--batch must be above 0, got 0."),
    ],
)
def test_wrong_options_are_one_sentence(arguments, message, capsys):
    assert command.main(["alpha", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_search_is_the_one_that_was_asked_for(tmp_path, capsys):
    """Adam's first step is its rate times the sign of the gradient, whatever that is."""
    out = tmp_path / "a.json"
    one = "--search published --optimiser adam --lr 0.07,0.2 --epochs 1 --iters 1 --batch 32"
    small = ["--images", "200", "--seeds", "1", "--json", str(out)]
    assert command.main(["alpha", *one.split(), *small]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row["lr"] for row in rows] == [0.07, 0.2]
    assert {(row["steps"], row["batch"]) for row in rows} == {(1, 32)}
    for row in rows:
        (ends,) = row["by_seed"]
        shares = torch.tensor([ends[kind] for kind in ("noise", "sound", "identity")])
        assert torch.allclose(shares.sum(0), torch.ones(10))
        between = (shares.log() - shares.log()[2]).abs() / row["lr"]
        assert bool((between - between.round()).abs().max() < 1e-3)
        assert set(between.round().int().flatten().tolist()) == {0, 2}
    assert "0.07" in capsys.readouterr().out
