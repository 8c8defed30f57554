"""The terminal, or the log, that the words of the command line print to."""

import re
import sys
from typing import Any

from rich.console import Console
from rich.text import Text

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that move the cursor or begin an escape sequence; \\t and \\n are none."""


class Literal(Console):
    """Prints texts as they are: a class named `[bold]`, or after an escape sequence, is a name."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text), **options)


def new_console() -> Literal:
    """Where there is no terminal, a log is read later and wider than 80 columns."""
    return Literal(width=None if sys.stdout.isatty() else 120)
