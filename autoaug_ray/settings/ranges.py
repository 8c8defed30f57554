"""What is searched: the values that a hyperparameter may take."""

from typing import Any, Literal, get_args

from pydantic import Field

from autoaug_ray.errors import UserError
from autoaug_ray.settings import Settings

RangeKind = Literal["grid", "choice", "uniform", "loguniform", "randint"]
RANGE_KINDS: tuple[str, ...] = get_args(RangeKind)


class Range(Settings):
    kind: RangeKind
    values: tuple[Any, ...]


class Search(Settings):
    """How the trials of a method with ranges are chosen and stopped."""

    samples: int = Field(1, ge=1, le=100_000)
    """Draws of the random ranges for each combination of the grids."""
    scheduler: Literal["fifo", "asha"] = "fifo"
    """asha stops the worse trials early. Which ones depends on which arrived first, as in its paper
    (Li et al. 2020), so that another run of the same study may choose another setting."""
    grace_epochs: int = Field(2, ge=1)
    """ASHA: epochs a trial runs before it may be stopped."""
    reduction: int = Field(3, ge=2)
    """ASHA: one trial in so many goes on at each rung."""


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
