"""What a YAML may hold at all, whatever its keys mean: plain values, and not too many of them."""

import math
from typing import Any

from autoaug_ray.errors import UserError

VALUES = 100_000
"""Most values in a study; a few lines of YAML's aliases can stand for billions."""
DEPTH = 30
TEXT = 4096
"""Most characters of a text, which may be a path."""
WHOLE = 2**63
"""Whole numbers are below it in size."""


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
        elif isinstance(value, list):
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
