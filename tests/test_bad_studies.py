"""Studies that a slip, or malice, has made bad: each gets one sentence that names its key."""

import datetime
import math
import random
from pathlib import Path

import pytest
import yaml

from autoaug_ray import config
from autoaug_ray.errors import UserError

SPACES = Path(__file__).parents[1] / "search_spaces"
HEAD = "dataset: {name: fashion-mnist-mini}\nmethods: {none: }\n"
ALIASES = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
CASES = "cases: {one: {}, two: {train.epochs: 2}}\n"
FAULTS = {
    "since: 2026-11-01": r"^since: datetime.date\(2026, 11, 1\) is date; only texts, numbers",
    CASES + "since: 2026-11-01": r"^since: datetime.date",
    "seeds: !!binary aGVsbG8=": r"^seeds: b'hello' is bytes; only texts",
    CASES + "seeds: !!set {1, 2}": r"^seeds: .* is set",
    CASES + "train: &t {lr: *t}": "holds: found undefined alias|more than 30 values within",
    "train: {lr: .nan}": r"^train.lr: a number must be finite, got nan",
    "train: {epochs: 1e400}": r"^train.epochs: a number must be finite, got inf",
    "train: {epochs: 1" + "0" * 40 + "}": r"^train.epochs: a whole number must be below 2\^63",
    "train: {epochs: 1" + "0" * 5000 + "}": "Exceeds the limit|below 2",
    'dataset: {name: folder, root: "a\\0b"}\nmethods: {none: }': r"^dataset.root: a text must have",
    'model: "' + "é" * 5000 + '"': r"^model: a text must have at most 4096 .* \(5002 characters\)",
    "train: " + "[" * 500 + "]" * 500: "more than 30 values within|recursion",
    ALIASES: "^[a-i].*: the study holds more than 100000 values",
    "seeds: 1000000000": "^seeds must be between 1 and 100000",
    "train: {1: 2}": "^train: keys must be texts, got 1",
}


@pytest.mark.parametrize("text", FAULTS, ids=range(len(FAULTS)))
def test_what_no_setting_can_have_is_refused_by_its_key(text, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(text if "methods:" in text else HEAD + text)
    with pytest.raises(UserError, match=FAULTS[text].replace("holds: ", "")) as error:
        config.load(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


METHODS = {
    "{method: [a]}": r"^methods.a.method must be the name of a method, got \['a'\]",
    "{method: none, name: none}": r"^methods.a.name: unknown key \(did you mean method",
    "{method: bilevel, controls: 3}": r"^methods.a.controls must be a list such as \[off\], got 3",
    "{method: predefined, translate: {grid: " + str(list(range(400))) + "}, rotate: {grid: "
    + str(list(range(400))) + "}}": "^methods.a: its search would be more than 100000 trainings",
}  # fmt: skip


@pytest.mark.parametrize("body", METHODS, ids=range(len(METHODS)))
def test_a_method_of_another_kind_is_refused_by_its_label(body, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(f"dataset: {{name: fashion-mnist-mini}}\nmethods: {{none: , a: {body}}}\n")
    with pytest.raises(UserError, match=METHODS[body]):
        config.load(path)


BAD = [
    None, True, -1, 0, 1e308, -1e-9, math.nan, math.inf, 10**40, 2**70, "", "x", "[bold]", "..",
    "\x1b[31m", "a/b", "\x00", "é" * 600, "1e3", [], [1], [[]], [None], [0] * 50, {}, {"a": 1},
    {1: 2}, {"grid": []}, {"grid": [1, "a"]}, {"uniform": [1, 0]}, {"choice": []}, 3.5,
    {"name": ["a"]}, datetime.date(2026, 11, 1), b"bytes",
]  # fmt: skip


def places(tree, path=()):
    yield path
    keys = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield from places(tree[key], (*path, key))


@pytest.mark.nightly
def test_five_hundred_studies_with_one_slip_each(tmp_path):
    """A value, or the name of a key, somewhere in a study that ships; none but sentences."""
    rng = random.Random(0)
    texts = [path.read_text() for path in sorted(SPACES.glob("*.yaml"))]
    (tmp_path / "letters.py").write_bytes((SPACES / "letters.py").read_bytes())
    refused = 0
    for _ in range(500):
        tree = yaml.safe_load(rng.choice(texts))
        *above, last = rng.choice([path for path in places(tree) if path])
        parent = tree
        for key in above:
            parent = parent[key]
        value = rng.choice(BAD)
        if rng.random() < 0.8 or isinstance(parent, list):
            parent[last] = value
        else:
            parent[f"{last}s"] = parent.pop(last)
        path = tmp_path / "bad.yaml"
        path.write_text(yaml.safe_dump(tree, allow_unicode=True))
        try:
            config.load(path)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 900, (above, last, value)
            if parent.get(last, "") == value if isinstance(parent, dict) else False:
                named = [str(key) for key in (*above, last)]
                assert any(key in str(error) for key in named), (str(error), named)
    assert refused > 400
