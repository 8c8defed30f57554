"""What a study may say: methods, models, their keys, and a JSON schema of its YAML for editors."""

import ast
import inspect
import json
import textwrap
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from autoaug_ray.config import INNER, Study
from autoaug_ray.errors import UserError, did_you_mean
from autoaug_ray.methods import METHODS, method_class
from autoaug_ray.models import listing
from autoaug_ray.settings import Settings
from autoaug_ray.settings.classifier import Classifier
from autoaug_ray.settings.ranges import Search
from autoaug_ray.settings.resources import Resources

NUMBERS = {
    "minimum": "at least {}", "exclusiveMinimum": "above {}",
    "maximum": "at most {}", "exclusiveMaximum": "below {}",
}  # fmt: skip
EXTRA: Mapping[str, type[Settings]] = {"search": Search, "resources": Resources}
"""What an entry may say beside its hyperparameters."""
Schema = dict[str, Any]


def print_methods(name: str | None, console: Console, *, as_json: bool = False) -> int:
    """All methods, or the keys of one: what it may be, its default, what it does.

    `as_json`: a list of objects, or the JSON schema of the method.
    """
    if name is None:
        known = {known: _summary(method_class(known)) for known in METHODS}
        if as_json:
            _print_json([{"method": k, "about": about} for k, about in known.items()])
            return 0
        table = Table("method", "what it is", box=None, padding=(0, 2, 0, 0))
        for label, about in known.items():
            table.add_row(label, about)
        console.print(table)
        console.print("\nautoaug-ray methods NAME tells a method's keys.")
        return 0
    if name not in METHODS:
        raise UserError(
            f"{name} is no method{did_you_mean(name, METHODS)}; known: {', '.join(METHODS)}."
        )
    cls = method_class(name)
    if as_json:
        defs: Schema = {}
        _print_json({**_own_defs(cls, defs), "$defs": defs})
        return 0
    console.print(_summary(cls))
    console.print(_keys(cls, leave_out="name"))
    return 0


def print_models(pattern: str | None, console: Console, *, as_json: bool = False) -> int:
    """The classifiers that there are, or those that fit a pattern; without one, also the keys of
    `model:`. The exit status: 1 if none fits."""
    found = listing.known(pattern)
    if as_json:
        _print_json([one._asdict() for one in found])
        return int(not found)
    if not found:
        console.print(
            f"no classifier fits {pattern}; hf:NAME, any image classifier of transformers by hub "
            "id or folder, cannot be listed.",
        )
        return 1
    table = Table("model", "weights", box=None, padding=(0, 2, 0, 0))
    for column in ("million parameters", "ImageNet %"):
        table.add_column(column, justify="right")
    for one in found:
        size = "" if one.parameters is None else f"{one.parameters / 1e6:.1f}"
        table.add_row(one.name, one.weights or "", size, str(one.top1 or ""))
    console.print(table)
    if pattern is None:
        console.print(
            "\ntimm:NAME, where timm is installed: autoaug-ray models timm:PART lists them.\n"
            "hf:NAME: any image classifier of transformers, by hub id or folder.\n\n"
            "model: NAME, or model: {name: NAME, ...} with these keys:\n",
        )
        console.print(_keys(Classifier))
    return 0


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))


def _keys(cls: type[Settings], leave_out: str = "") -> Table:
    """The keys of a settings object: default, what it may be, what it does."""
    schema = cls.model_json_schema()
    said = docstrings(cls)
    table = Table("key", "default", "may be", "", box=None, padding=(0, 2, 0, 0))
    for key, node in schema["properties"].items():
        if key != leave_out:
            needed = key in schema.get("required", ())
            default = "(needed)" if needed else _default(node)
            told = default, _words(node, schema), " ".join(said.get(key, "").split())
            table.add_row(key, *told)
    return table


def _default(node: Schema) -> str:
    if "default" not in node:
        return "(see there)"  # it depends on another key
    value = node["default"]
    return value["name"] if isinstance(value, dict) and "name" in value else json.dumps(value)


def _summary(cls: type) -> str:
    first, *_ = inspect.getdoc(cls).split("\n\n")  # type: ignore[union-attr]
    return " ".join(first.split())


def docstrings(cls: type[Settings]) -> dict[str, str]:
    """The string below each field of a class or of one that it inherits from."""
    out: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not (issubclass(base, Settings) and base is not Settings):
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(body, ast.ClassDef)
        for field, below in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                match below:
                    case ast.Expr(ast.Constant(str(text))):
                        out[field.target.id] = text
    return out


def _words(node: Schema, root: Schema) -> str:
    """What a key may be, in words."""
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        return _words(root["$defs"][name], root)
    if options := node.get("anyOf") or node.get("oneOf"):
        return " | ".join(_words(option, root) for option in options)
    if "enum" in node or "const" in node:
        return " | ".join(str(value) for value in node.get("enum", [node.get("const")]))
    kind = node.get("type", "anything")
    if kind == "array":
        inner: Schema = node.get("items") or next(iter(node.get("prefixItems", [])), {})
        return f"list of {_words(inner, root)}"
    if kind == "object":
        keys = node.get("properties", {"...": {}})
        if "const" in keys.get("name", {}):  # a method among some
            keys = {f"name: {keys['name']['const']}": {}, "...": {}}
        return "{" + ", ".join(keys) + "}"
    limits = [text.format(node[key]) for key, text in NUMBERS.items() if key in node]
    return ", ".join([kind, *limits])


def study_schema() -> Schema:
    """A JSON schema (draft 2020-12) of a study's YAML.

    It refuses unknown keys, wrong types and numbers out of their bounds. What only the whole study
    tells (a label that `reference` names, say) it does not know.
    """
    defs: Schema = {}
    top = _own_defs(Study, defs)
    keys = {k: v for k, v in top["properties"].items() if k not in INNER | {"name"}}
    extra = {key: _own_defs(kind, defs) for key, kind in EXTRA.items()}
    extra["controls"] = {"type": "array", "items": {"type": "string"}}
    bodies = {}
    for name in METHODS:
        own = _own_defs(method_class(name), defs)["properties"]
        either = {k: {"anyOf": [v, {"$ref": "#/$defs/range"}]} for k, v in own.items()}
        bodies[name] = {k: v for k, v in either.items() if k != "name"} | extra
    defs |= {"range": _range(), "entry": _entry(bodies)}
    labels = {
        name: {
            "if": {"type": "object", "required": ["method"]},
            "then": {"$ref": "#/$defs/entry"},
            "else": {"type": ["object", "null"], "properties": body, "additionalProperties": False},
        }
        for name, body in bodies.items()
    }
    keys["seeds"] = {"anyOf": [{"type": "integer", "minimum": 1}, keys["seeds"]]}
    keys["model"] = {"anyOf": [{"type": "string"}, keys["model"]]}
    keys["methods"] = {
        "type": "object", "minProperties": 1, "properties": labels,
        "additionalProperties": {"$ref": "#/$defs/entry"},
    }  # fmt: skip
    keys["cases"] = {
        "type": "object", "minProperties": 1, "additionalProperties": {"type": "object"},
    }  # fmt: skip
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A study of autoaug_ray",
        "type": "object",
        "properties": keys,
        "required": ["methods"],
        "additionalProperties": False,
        "$defs": defs,
    }


def _own_defs(cls: type[Settings], defs: Schema) -> Schema:
    """The schema of a class; what it refers to goes into `defs`."""
    schema = cls.model_json_schema()
    defs |= schema.pop("$defs", {})
    said = docstrings(cls)
    for key, node in schema.get("properties", {}).items():
        if key in said:
            node["description"] = " ".join(said[key].split())
    return schema


def _entry(bodies: Mapping[str, Schema]) -> Schema:
    """An entry whose `method` says which of these properties it may have; one of code of one's own,
    path/to/file.py:Class, may have any."""
    return {
        "type": "object",
        "required": ["method"],
        "properties": {
            "method": {"anyOf": [{"enum": list(bodies)}, {"type": "string", "pattern": r":\w+$"}]}
        },
        "allOf": [
            {
                "if": {"properties": {"method": {"const": name}}},
                "then": {"properties": {"method": True, **body}, "additionalProperties": False},
            }
            for name, body in bodies.items()
        ],
    }


def _range() -> Schema:
    def one(kind: str, **values: Any) -> Schema:
        return {
            "type": "object", "required": [kind], "additionalProperties": False,
            "properties": {kind: {"type": "array", **values}},
        }  # fmt: skip

    pair = {"minItems": 2, "maxItems": 2}
    number, whole = {"items": {"type": "number"}}, {"items": {"type": "integer"}}
    return {
        "description": "values that are searched",
        "anyOf": [
            one("grid", minItems=1), one("choice", minItems=1), one("uniform", **pair, **number),
            one("loguniform", **pair, **number), one("randint", **pair, **whole),
        ],
    }  # fmt: skip
