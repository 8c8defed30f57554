"""Which cases of a study run, and below which folder their datasets are: --case and --data."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autoaug_ray.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from autoaug_ray.config import Study

SHIPPED = "fashion-mnist-mini"
"""The dataset within the package, which has no root."""
USUAL = "data"
"""The folder, relative to where the command runs, below which our studies expect their datasets."""


def only(studies: "Sequence[Study]", cases: Sequence[str]) -> "list[Study]":
    """The cases of a study that have these names, in the study's order.

    Raises UserError for a name that the study does not have.
    """
    known = [study.case for study in studies if study.case]
    for name in cases:
        if not known:
            raise UserError(f"--case {name}: {studies[0].name} has no cases; leave --case out.")
        if name not in known:
            raise UserError(
                f"--case {name}: no case of {studies[0].name}{did_you_mean(name, known)}; known: "
                f"{', '.join(known)}."
            )
    return [study for study in studies if study.case in cases]


def below(study: "Study", folder: Path) -> "Study":
    """The study with `folder` in place of data/, where its dataset.root is relative.

    `data/coco` becomes `folder/coco`, and `photos` becomes `folder/photos`.
    """
    dataset, root = study.dataset, Path(study.dataset.root)
    if dataset.name == SHIPPED or root.expanduser().is_absolute():
        return study
    rest = root.parts[1:] if root.parts[:1] == (USUAL,) else root.parts
    moved = dataset.model_copy(update={"root": str(folder.joinpath(*rest))})
    return study.model_copy(update={"dataset": moved})
