"""A study before it is checked: the tree of its YAML, and changes by dotted keys."""

import json
import os
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from autoaug_ray.errors import UserError


def read_yaml(text: str, where: str) -> Any:
    """What a text of YAML 1.2 holds: `off` is a word, 1e-3 and 010 are decimal numbers.

    Raises UserError, which begins with `where`, if it is not YAML or a key stands twice.
    """
    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
            raise UserError(f"{where}: {' '.join(str(error).split())}.") from None
        mark, problem = error.problem_mark, str(error.problem).partition(" with value ")[0]
        place = f"line {mark.line + 1}, column {mark.column + 1}"
        raise UserError(f"{where}: {place}: {problem}.") from None


def plain(value: Any, where: str) -> Any:
    """A copy of what Python code says as YAML would hold it: tuples become lists, paths text.

    Raises UserError, which begins with `where`, for what YAML cannot hold.
    """
    try:
        return json.loads(json.dumps(value, default=os.fspath))
    except TypeError as error:
        raise UserError(f"{where}: {error}; only plain values and paths are.") from None


def apply(tree: dict[str, Any], change: str) -> None:
    """Change a tree by `dotted.key=value`, whose value is YAML. Raises UserError."""
    path, equals, text = change.partition("=")
    if not equals or not path:
        raise UserError(f"--set {change}: write it as dotted.key=value.")
    assign(tree, path, read_yaml(text, f"--set {change}"), f"--set {change}")


def assign(tree: dict[str, Any], path: str, value: Any, where: str) -> None:
    """Put a value into a tree at a dotted key; a name on the way, as in `model: cnn`, becomes a
    mapping. Raises UserError, which begins with `where`, if something else is on the way."""
    *parents, leaf = path.split(".")
    node = tree
    for key in parents:
        if isinstance(node.get(key), str):
            node[key] = {"name": node[key]}
        if node.get(key) is None:
            node[key] = {}
        node = node[key]
        if not isinstance(node, dict):
            raise UserError(f"{where}: {key} holds {node!r}, which has no keys.")
    node[leaf] = value
