"""Tables in a terminal: in one piece where it is wide enough, else in parts below each other."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderResult
from rich.table import Table
from rich.text import Text

GAP, EDGES = 3, 2
"""Columns of the terminal between two columns of a table, and beside all of them."""


@dataclass(frozen=True)
class Columns:
    """A table with numbers to the right of its first column, which every part repeats.

    A string is what it says, whatever brackets are in it; what has a style is a Text.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str | Text]]
    caption: str = ""
    title: str = ""
    dim: Sequence[int] = ()
    """The rows that stand back."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = options.max_width
        if self.title:
            yield Text(self.title, "table.title")
        for part in self._parts(room):
            yield self._table(part, room)
        if self.caption:
            yield Text(self.caption, "table.caption")

    def _parts(self, room: int) -> Iterator[list[int]]:
        """Which columns stand beside each other: as many as there is room for."""
        part = [0]
        for i in range(1, len(self.head)):
            widths = [self._width(k, room) for k in (*part, i)]
            if len(part) > 1 and sum(widths) + GAP * len(part) + EDGES > room:
                yield part
                part = [0]
            part.append(i)
        yield part

    def _table(self, part: Sequence[int], room: int) -> Table:
        out = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        widths = [self._width(i, room) for i in part]
        spare = room - EDGES - GAP * (len(part) - 1) - sum(widths)
        for i, width in zip(part, widths, strict=True):
            more = max(map(len, self.head[i].splitlines()), default=0) - width
            if 0 < more <= spare:  # its head, too, stays in one line
                spare, width = spare - more, width + more
            justify: JustifyMethod = "right" if i else "left"
            out.add_column(Text(self.head[i]), justify=justify, overflow="fold", width=width)
        for r, row in enumerate(self.rows):
            cells = (row[i] for i in part)
            texts = [cell if isinstance(cell, Text) else Text(cell) for cell in cells]
            out.add_row(*texts, style="dim" if r in self.dim else None)
        return out

    def _width(self, i: int, room: int) -> int:
        """What column i takes where none of its cells is broken, or what there is for it."""
        cells = [row[i] for row in self.rows]
        texts = [cell.plain if isinstance(cell, Text) else cell for cell in cells]
        lines = [line for text in texts for line in text.splitlines()]
        width = max(map(len, [*lines, *self.head[i].split()]), default=1)
        if i == 0:
            return min(width, max(room // 2, 8))
        return min(width, room - EDGES - GAP - self._width(0, room))
