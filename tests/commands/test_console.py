"""Whatever somebody called a class, a study or a folder is printed as that name."""

import io

from rich.table import Table

from autoaug_ray.commands.console import Literal

NAMES = ("[bold]x", "[/10] of it", "[link=file:///etc/passwd]y[/link]", ":smile:", "3 [m")


def printed(thing):
    out = io.StringIO()
    Literal(file=out, width=80, force_terminal=True, color_system=None).print(thing)
    return out.getvalue()


def test_names_are_no_markup_in_lines_and_tables():
    for name in NAMES:
        assert printed(f"class {name}") == f"class {name}\n"
        table = Table(title=name, box=None)
        table.add_column(name)
        table.add_row(name)
        assert printed(table).count(name) == 3


def test_names_do_not_steer_the_terminal():
    for attack in ("\x1b[2Jgone", "\x1b]0;title\x07", "\x9b31mred", "a\rb", "\x7f"):
        shown = printed(attack)
        assert "\ufffd" in shown and not set(shown) & {"\x1b", "\x07", "\x9b", "\r", "\x7f"}
        table = Table(box=None)
        table.add_column(attack)
        assert not set(printed(table)) & {"\x1b", "\x07", "\x9b", "\r"}
    assert printed("one\ntwo\xa0three") == "one\ntwo\xa0three\n"
