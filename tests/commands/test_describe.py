"""The words `methods`, `models` and `schema`: what they say is what a study may hold."""

import copy
import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from autoaug_ray.commands import describe, main
from autoaug_ray.methods import METHODS, method_class
from autoaug_ray.models import parameter_count
from autoaug_ray.models.libraries import library_network
from autoaug_ray.settings.classifier import CLASSIFIER_NAMES, Classifier

STUDIES = sorted((Path(__file__).parents[2] / "search_spaces").glob("*.yaml"))


@pytest.fixture(scope="module")
def schema():
    out = json.loads(json.dumps(describe.study_schema()))
    Draft202012Validator.check_schema(out)
    return Draft202012Validator(out)


def test_every_study_of_ours_fits_the_schema(schema):
    for path in STUDIES:
        tree = YAML(typ="safe", pure=True).load(path)
        assert [e.message for e in schema.iter_errors(tree)] == [], path.name


FINE = {
    "dataset": {"name": "fashion-mnist-mini"},
    "model": {"name": "cnn"},
    "methods": {
        "none": None,
        "bilevel": {"lr": {"loguniform": [0.01, 0.1]}},
        "two ops": {"method": "randaugment", "num_ops": 2},
        "mine": {"method": "mine.py:Mine", "whatever": 3},
    },
}


@pytest.mark.parametrize(
    "where, value",
    [
        (["dataset", "nmae"], "x"),
        (["train"], {"epchs": 3}),
        (["train"], {"epochs": 0}),
        (["seeds"], 0),
        (["methods", "none"], {"flipp": "none"}),
        (["methods", "bilevel", "lr"], "fast"),
        (["methods", "bilevel", "lr"], {"loguniform": [0.01]}),
        (["methods", "two ops", "method"], "randaugmnet"),
        (["methods", "two ops", "magnitudes"], 3),
        (["methods", "trivialaugment"], {"method": "trivialaugment", "lr": 3}),
        (["methods", "autogenda"], {"then": {"name": "predefined", "cop": 3}}),
        (["methods"], {}),
    ],
    ids=lambda v: json.dumps(v) if not isinstance(v, list) else ".".join(v),
)
def test_what_no_study_may_hold_does_not_fit(schema, where, value):
    assert schema.is_valid(FINE)
    tree = copy.deepcopy(FINE)
    *parents, leaf = where
    node = tree
    for key in parents:
        node = node[key]
    node[leaf] = value
    assert not schema.is_valid(tree)


@pytest.mark.parametrize("name", METHODS)
def test_every_key_of_a_method_is_told(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["methods", name]) == 0
    out = capsys.readouterr().out
    keys = set(method_class(name).model_fields) - {"name"}
    assert keys <= set(describe.docstrings(method_class(name)))
    assert keys <= {line.split()[0] for line in out.splitlines() if line[:1].strip()}


def test_all_methods_are_told_and_a_wrong_name_is_one_sentence(capsys):
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-2] if line[0] != " "] == list(METHODS)
    assert main(["methods", "bilvel"]) == 2
    assert "did you mean bilevel?" in capsys.readouterr().err


def printed(capsys, *words):
    assert main(words) == 0
    return json.loads(capsys.readouterr().out)


def test_methods_are_told_to_programs(capsys):
    found = printed(capsys, "methods", "--json")
    assert [one["method"] for one in found] == list(METHODS) and all(o["about"] for o in found)
    told = printed(capsys, "methods", "bilevel", "--json")
    Draft202012Validator.check_schema(told)
    assert told["properties"]["group"]["description"]
    fits = Draft202012Validator(told).is_valid
    assert fits({"name": "bilevel", "every": 2}) and not fits({"name": "bilevel", "evry": 2})


def test_models_are_those_that_a_study_may_name(capsys):
    found = printed(capsys, "models", "--json")
    for one in found:
        model = {"name": one["name"], "weights": one["weights"]}
        assert Classifier(**model).name == one["name"]
    by_name = {one["name"]: one for one in found}
    assert list(by_name)[: len(CLASSIFIER_NAMES)] == list(CLASSIFIER_NAMES)
    network = library_network(Classifier(name="torchvision:squeezenet1_1"), 1000)
    about = by_name["torchvision:squeezenet1_1"]
    assert about["parameters"] == parameter_count(network) and 50 < about["top1"] < 100


def test_models_are_found_by_a_part_of_their_name_or_a_pattern(capsys):
    def names(pattern):
        return [one["name"] for one in printed(capsys, "models", pattern, "--json")]

    assert names("torchvision:resnet?8") == ["torchvision:resnet18"]
    assert {"resnet56", "torchvision:resnet50", "torchvision:wide_resnet50_2"} <= set(names("net5"))
    assert main(["models", "resent"]) == 1
    assert "no classifier fits resent; hf:NAME" in capsys.readouterr().out


def test_all_models_come_with_the_keys_of_a_model(capsys):
    assert main(["models"]) == 0
    said = capsys.readouterr().out
    assert all(key in said for key in Classifier.model_fields) and "hf:NAME" in said


@pytest.mark.parametrize(
    "line, words", [("methods bile", ["bilevel"]), ("mod", ["models"]), ("methods zz", [])]
)
def test_a_shell_completes_words_and_names(line, words, monkeypatch, capsys):
    count = len(line.split())
    for name, value in (
        ("COMP_WORDS", f"autoaug-ray {line}"), ("COMP_CWORD", str(count)),
        ("_AUTOAUG_RAY_COMPLETE", "complete_bash"),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    assert main([]) == 0
    assert capsys.readouterr().out.split() == words
