"""Which entry's find another entry trains with: LABEL, STUDY/LABEL or STUDY/CASE/LABEL."""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from autoaug_ray.errors import did_you_mean

if TYPE_CHECKING:  # the others need torch or pyarrow, for which a mistake in a study does not wait
    from autoaug_ray.methods.base import Method
    from autoaug_ray.store.places import Place

NAME = re.compile(r"[^./\\\x00][^/\\\x00]*")
"""What names a study, a case or an entry: it must not lead to another folder."""


class Source(NamedTuple):
    """An entry that has found something, and where it stands."""

    study: str | None
    """None: in the study (and case) of the entry that trains with it."""
    case: str | None
    label: str

    def __str__(self) -> str:
        return "/".join(part for part in self if part is not None)

    def root(self, own: "Place", case: str | None) -> "Place":
        """The folder of the source's study, or case of it, for an entry whose own is `own`.

        `case` is the name of the entry's case; the studies are neighbours in one folder.
        """
        if self.study is None:
            return own
        out = own.parent if case is None else own.parent.parent
        root = out / self.study
        return root if self.case is None else root / self.case


def parse(of: str) -> Source:
    """The source that a study names. Raises ValueError for a text of another form."""
    parts = of.split("/")
    if len(parts) > 3 or not all(map(NAME.fullmatch, parts)):
        raise ValueError(f"of: must be LABEL, STUDY/LABEL or STUDY/CASE/LABEL, got {of!r}")
    study, case = ([*parts[:-1], None, None])[:2]
    return Source(study, case, parts[-1])


def check(method: "Method", labels: Sequence[str], find: "Callable[[str], Method]") -> None:
    """Raise ValueError, in one sentence, if `method` cannot follow the entry that it names.

    `labels` are those of the other entries of its study, and `find` gives the method of one. An
    entry of another study is only checked for the form of its name.
    """
    if method.follows is None:
        return
    source = parse(method.follows)
    if source.study is None:
        check_label(source.label, labels, "no other label of methods")
        check_source(method, find(source.label))


def check_label(label: str, labels: Sequence[str], fault: str) -> None:
    """Raise ValueError for a label that is not among those that are known."""
    if label not in labels:
        guess = did_you_mean(label, labels)
        raise ValueError(f"of: {label!r} is {fault}{guess}; known: {', '.join(labels)}")


def check_source(method: "Method", source: "Method") -> None:
    """Raise ValueError, in one sentence, if `method` cannot train with what `source` finds."""
    if source.follows is not None:
        raise ValueError(
            f"of: {method.follows!r} found nothing of its own, it follows {source.follows!r}; "
            "name that one"
        )
    method.check_source(source)
