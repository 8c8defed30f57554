"""Tables in terminals of 40, 80 and 120 columns."""

import io
import re

import pytest
from rich.console import Console
from rich.text import Text

from autoaug_ray.report.terminal import Columns

HEAD = ["method", "test accuracy %", "points above none", "cost", "search", "CPU-\nminutes"]
ROWS = [
    ["none", "60.22 ± 2.57 (3)", "-", "1.00", "-", "0.24"],
    [
        "validated_magnitude",
        "68.47 ± 0.35 (3)",
        "+8.25 [+1.74, +14.76]*",
        "3.90 ± 0.78",
        "2.9",
        "1",
    ],
    ["  learn:off [bold]", "68.07 ± 0.44 (3)", "+7.85 [+2.42, +13.28]", "1.07 ± 0.14", "-", "0.2"],
]


def printed(width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(Columns(HEAD, ROWS, "What it is. " * 9))
    return console.export_text().splitlines()


@pytest.mark.parametrize(("width", "parts"), [(40, 4), (80, 2), (120, 1)])
def test_every_figure_is_whole_and_beside_its_name(width: int, parts: int) -> None:
    lines = printed(width)
    assert max(map(len, lines)) <= width
    assert sum(line.strip().startswith("none ") for line in lines) == parts
    for row in ROWS:
        of_row = " ".join(line for line in lines if row[0] in line)
        for cell in row[1:]:
            assert cell in of_row or (width == 40 and cell.split()[0] in of_row), cell


def test_a_very_long_name_leaves_room_for_the_figures() -> None:
    console = Console(width=40, file=io.StringIO(), record=True)
    console.print(Columns(["method", "cost"], [["x" * 90, "18.70 ± 3.65"]]))
    text = console.export_text()
    assert "18.70 ± 3.65" in text and text.count("x") == 90


def test_only_a_text_has_a_style() -> None:
    console = Console(width=80, file=io.StringIO(), record=True, force_terminal=True)
    console.print(Columns(["a", "b"], [["[bold]one[/]", Text("two", "bold")]]))
    text = console.export_text(styles=True)
    assert "[bold]one[/]" in re.sub(r"\x1b\[[0-9;]*m", "", text) and "\x1b[1mtwo" in text
