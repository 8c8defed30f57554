"""Options that several words of the command line share."""

from pathlib import Path
from typing import Annotated, Any

import typer

PLAIN: dict[str, Any] = {
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"], "max_content_width": 100},
}
"""Help and errors as plain lines, which boxes would break."""

Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE",
        help="Change the study, as in --set train.epochs=5; may be given several times.",
    ),
]  # fmt: skip
Studies = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="STUDY.yaml",
        show_default=False,
        help="Studies, one after the other (default: search_spaces/quickstart.yaml).",
    ),
]
Seeds = Annotated[
    int | None,
    typer.Option(metavar="N", help="Final trainings per entry, instead of the study's."),
]
Cases = Annotated[
    list[str] | None,
    typer.Option(
        "--case", metavar="NAME", help="Only this case of the study; may be given several times."
    ),
]
DataFolder = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="DIR",
        help="The folder with all datasets, in place of data/: a root data/coco is DIR/coco.",
    ),
]  # fmt: skip
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for a program.")]
