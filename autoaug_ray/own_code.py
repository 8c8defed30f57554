"""Methods and datasets of a user's own, which a study names by their file or their module.

A study says `path/to/file.py:Name`, relative to the study's file, or `package.module:Name`. Its
settings hold `file.py:Name@<hash>`, with a hash of the file's content: the same code is the same
run wherever the file lies, and changed code is another run, whose rows are never mixed with those
of the old. What the file imports is not part of the hash, so a method belongs into one file.

Naming code runs it: the file is imported when the study is read, and again in each process that
trains. Processes of a study are given its text, so that no other machine needs the file.
"""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from autoaug_ray.errors import UserError


class Code(NamedTuple):
    where: str
    """Absolute path of a file, or the dotted name of a module."""
    text: str | None
    """The file's content; None if it is yet to be read from `where`."""


_known: dict[str, Code] = {}
"""Name in settings -> its code, for all that this process has heard of."""


def is_own(name: object) -> bool:
    """Whether a name in settings or in a study is that of own code."""
    return isinstance(name, str) and ":" in name


def is_known(name: str) -> bool:
    """Whether this process has been told where the code of this name is."""
    return name in _known


def find(reference: str, folder: Path) -> str:
    """The name for settings of `file.py:Name`, relative to `folder`, or of `package.module:Name`.

    Raises UserError if the code is not there or cannot be imported.
    """
    where, _, attribute = reference.rpartition(":")
    if where.endswith(".py"):
        where = str((folder / Path(where).expanduser()).resolve())
    text = _read(where)
    name = f"{Path(where).name if where.endswith('.py') else where}:{attribute}@{_hash(text)}"
    _known[name] = Code(where, text)
    load(name)
    return name


def locate(name: str, where: str) -> None:
    """Say where the code of this name lies, unless this process has it. Nothing is read yet."""
    if not is_known(name) or _known[name].text is None:
        _known[name] = Code(where, None)


def where_is(names: Iterable[str]) -> dict[str, str]:
    """Name -> file or module, for those of the names that are own code."""
    return {name: _known[name].where for name in names if is_own(name)}


def sent(names: Iterable[str]) -> dict[str, Code]:
    """What another process must `receive` before it can load the names."""
    return {name: Code(_known[name].where, _text(name)) for name in names if is_own(name)}


def receive(codes: Mapping[str, tuple[str, str]]) -> None:
    for name, (where, text) in codes.items():
        _known[name] = Code(where, text)


def load(name: str) -> Any:
    """The class or function of a name in settings.

    Raises UserError if the process does not know where its code is, if that has changed, or if it
    cannot be imported.
    """
    if name not in _known:
        raise UserError(f"{name} is code of a user's own, and its file was not given.")
    text, (where, _), attribute = _text(name), _known[name], name.rpartition(":")[2].split("@")[0]
    try:
        module = _execute(where, text) if where.endswith(".py") else importlib.import_module(where)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{where} cannot be imported ({type(error).__name__}: {reason})."
        ) from error
    if not hasattr(module, attribute):
        raise UserError(f"{where} defines no {attribute!r}.")
    return getattr(module, attribute)


def _text(name: str) -> str:
    """The source of a name. Raises UserError if it is not the one that the name was made from."""
    where, text = _known[name]
    if text is None or not where.endswith(".py"):
        text = _read(where)
        if _hash(text) != name.rpartition("@")[2]:
            raise UserError(f"{where} is not what it was when {name} was named: it has changed.")
        _known[name] = Code(where, text)
    return text


def _read(where: str) -> str:
    path = where
    if not where.endswith(".py"):
        try:
            spec = importlib.util.find_spec(where)
        except (ImportError, ValueError) as error:
            raise UserError(f"no module {where!r} can be imported ({error}).") from None
        if spec is None or not spec.origin or not spec.origin.endswith(".py"):
            raise UserError(f"no module {where!r} of one file can be imported here.")
        path = spec.origin
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}).") from None


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _execute(path: str, text: str) -> ModuleType:
    """The module that a file's text makes; once in a process."""
    module_name = f"autoaug_ray_own_{_hash(text)}"
    if module_name not in sys.modules:
        module = ModuleType(module_name)
        module.__file__ = path
        sys.modules[module_name] = module  # pydantic looks annotations up in there
        try:
            exec(compile(text, path, "exec"), module.__dict__)
        except BaseException:
            del sys.modules[module_name]
            raise
    return sys.modules[module_name]
