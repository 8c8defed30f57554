"""A matplotlib figure as a part of a page: its text is text, and its entries can be hidden."""

import io
import re

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.figure import Figure

MARK = "entry:"
NOTHING = dict.fromkeys(("Creator", "Date", "Format", "Type"))
"""No metadata: the same data make the same bytes, and no address stands in the page."""


def mark(label: str, *artists: Artist) -> None:
    """Say that the artists show this entry, and only it: the page hides them with its row."""
    for artist in artists:
        artist.set_gid(MARK + label)


def inline(figure: Figure, name: str, alt: str) -> Markup:
    """The figure as an `<svg>` element; `name` is what keeps its inner names apart from others'.

    What `mark` marked has the attribute data-entry. Texts and labels are escaped by matplotlib.
    """
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata=NOTHING)
    drawn = buffer.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r' xmlns(:xlink)?="[^"]*"', "", drawn, count=2)
    drawn = re.sub(rf'<g id="{MARK}([^"]*)"', r'<g data-entry="\1"', drawn)
    # What is left are matplotlib's own numbers, which are the same in every figure.
    drawn = re.sub(r'<g id="[^"]*"', "<g", drawn)
    return Markup('<svg role="img" aria-label="{}"').format(alt) + Markup(
        drawn.removeprefix("<svg")
    )
