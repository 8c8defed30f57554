"""A study before it is checked: the tree of its YAML, changes by dotted keys, and what it may hold
whatever its keys mean: plain values, and not too many of them."""

import json
import math
import os
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from autoaug_ray.errors import UserError

VALUES = 100_000
"""Most values in a study; a few lines of YAML's aliases can stand for billions."""
DEPTH = 30
TEXT = 4096
"""Most characters of a text, which may be a path."""
WHOLE = 2**63
"""Whole numbers are below it in size."""


def read_yaml(text: str, where: str) -> Any:
    """What a text of YAML 1.2 holds: `off` is a word, 1e-3 and 010 are decimal numbers.

    Raises UserError, which begins with `where`, if it is not YAML or a key stands twice.
    """
    try:
        return YAML(typ="safe", pure=True).load(text)
    except (RecursionError, ValueError) as error:  # nesting without end; a date that is none
        raise UserError(f"{where}: {' '.join(str(error).split())}.") from None
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


def check_plain(tree: Any) -> None:
    """Raises UserError, which names the key, for a value that no setting can have.

    Plain are texts without control characters, finite numbers, true, false, null, and lists and
    mappings of them. Dates, sets, bytes and mappings that hold themselves are not.
    """
    left = VALUES

    def check(value: Any, where: str, depth: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise UserError(f"{where}: the study holds more than {VALUES} values.")
        if depth > DEPTH:
            raise UserError(f"{where[:80]}...: more than {DEPTH} values within one another.")
        if isinstance(value, dict):
            for key, inner in value.items():
                if not isinstance(key, str):
                    raise UserError(f"{where}: keys must be texts, got {brief(key)}.")
                check(key, where, depth + 1)
                check(inner, f"{where}.{key}" if where else key, depth + 1)
        elif isinstance(value, list | tuple):
            for number, inner in enumerate(value):
                check(inner, f"{where}[{number}]", depth + 1)
        elif isinstance(value, str):
            if len(value) > TEXT or any(c < " " and c not in "\t\n" or c == "\x7f" for c in value):
                raise UserError(
                    f"{where}: a text must have at most {TEXT} characters and no control "
                    f"characters, got {brief(value)}."
                )
        elif isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{where}: a number must be finite, got {value}.")
        elif isinstance(value, int) and abs(value) >= WHOLE:
            raise UserError(f"{where}: a whole number must be below 2^63, got {brief(value)}.")
        elif value is not None and not isinstance(value, bool | int | float):
            raise UserError(
                f"{where}: {brief(value)} is {type(value).__name__}; only texts, numbers, true, "
                "false, null, lists and mappings are."
            )

    check(tree, "", 0)


def brief(value: Any) -> str:
    """A value as a sentence can hold it."""
    if isinstance(value, int) and abs(value) >= WHOLE:  # Python refuses to print very long ones
        return f"one of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text)} characters)"
