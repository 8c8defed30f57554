"""What is searched: the values that a hyperparameter may take."""

from typing import Any, Literal, get_args

from autoaug_ray.errors import UserError
from autoaug_ray.settings import Settings

RangeKind = Literal["grid", "choice", "uniform", "loguniform", "randint"]
RANGE_KINDS: tuple[str, ...] = get_args(RangeKind)


class Range(Settings):
    kind: RangeKind
    values: tuple[Any, ...]


def range_of(tree: dict[str, Any], where: str) -> Range:
    """The range of a tree such as {"grid": [5, 9]}, which stands at `where`. Raises UserError."""
    (kind, *others), values = tree, next(iter(tree.values()))
    if others:
        raise UserError(f"{where} must have one of {', '.join(RANGE_KINDS)} as its only key.")
    if not isinstance(values, list) or not values:
        raise UserError(f"{where}.{kind} must be a list, got {values!r}.")
    if kind not in ("grid", "choice"):
        numbers = all(type(v) in ((int,) if kind == "randint" else (int, float)) for v in values)
        if not (numbers and len(values) == 2 and values[0] < values[1]):
            raise UserError(
                f"{where}.{kind} must be [low, high] with low < high"
                f"{' and whole numbers' if kind == 'randint' else ''}, got {values}."
            )
        if kind == "loguniform" and values[0] <= 0:
            raise UserError(f"{where}.loguniform must have low > 0, got {values}.")
    return Range(kind=kind, values=tuple(values))  # type: ignore[arg-type]
