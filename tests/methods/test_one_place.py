"""What is said about one method is said in its own file: the rest of the package names no method.

Then a method is one file, one line in METHODS and one study, also if it searches.
"""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import rooms

from autoaug_ray.methods import METHODS, method_class
from autoaug_ray.methods.base import Method

ABOVE = {"config", "policy", "train", "schedule", "report", "commands"}
"""The rooms that use methods. Those below cannot know them; bench/ measures single methods, which
it has to name."""
NAMES = set(METHODS) - {"none"}
"""`none` is also an English word, and the label that a study takes for its reference unless it says
another."""
OTHER_THINGS = {
    "alpha_table", "images", "samples", "schedule", "score", "size", "table", "warm_up",
}  # fmt: skip
"""Columns, panels of W&B, parts of a checkpoint, a phase of the meter, what a scheduler looks at:
they share their name with a hyperparameter."""


def hyperparameters() -> set[str]:
    """Names that the classes of one method alone have; `learn` is a word of `Method` itself."""
    fields = [set(method_class(name).model_fields) for name in METHODS]
    owners = Counter(field for of in fields for field in of - set(Method.model_fields))
    return {field for field, count in owners.items() if count == 1} - OTHER_THINGS - {"learn"}


def named(source: str, words: set[str]) -> list[str]:
    """Strings of a source that are one of the words, and fields of a `method` that are."""
    out = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in words:
            out.append(f"line {node.lineno}: {node.value!r}")
        if isinstance(node, ast.Attribute) and node.attr in words:
            if ast.unparse(node.value).endswith("method"):
                out.append(f"line {node.lineno}: {ast.unparse(node)}")
    return out


def sources() -> Iterator[Path]:
    return (path for path in rooms.files() if rooms.room_of(path) in ABOVE)


def test_no_file_outside_of_methods_names_one():
    words = NAMES | hyperparameters()
    found = {str(path): lines for path in sources() if (lines := named(path.read_text(), words))}
    assert found == {}


@pytest.mark.parametrize("code", [
    'if entry.hyperparameters["name"] == "pba": pass',
    'SMALL = {"fast_autoaugment": {}}',
    'steps = getattr(run.method, "unroll", 1)',
    "steps = run.method.unroll",
    'if entry.hyperparameters.get("resplit"): pass',
    'source = entry.hyperparameters.get("search_steps")',
])  # fmt: skip
def test_the_law_above_can_be_broken(code):
    assert named(code, NAMES | hyperparameters())
