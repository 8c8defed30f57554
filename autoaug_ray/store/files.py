"""Files that are written in one piece and checked when they are read, and states of tensors.

It needs torch alone: whoever loads a policy reads it through here.
"""

import contextlib
import errno
import io
import json
import os
import pickle
import struct
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from autoaug_ray.errors import RunError, UserError, storing
from autoaug_ray.store.places import Place, Remote

DAMAGE = (
    ValueError, LookupError, EOFError, RuntimeError, OSError, zipfile.BadZipFile, struct.error,
    pickle.UnpicklingError,
)  # fmt: skip
"""What readers of JSON, Parquet and torch's files raise at bytes that they cannot read."""


class DamagedFile(UserError):
    """A file that is not as it was written."""


@contextlib.contextmanager
def reading(path: Place, remedy: str) -> Iterator[None]:
    """Turns what a damaged file raises inside the block into a DamagedFile that names it.

    `remedy` says what to do about it, as the end of a sentence. A file that is not there or may not
    be read keeps its OSError.
    """
    try:
        yield
    except (DamagedFile, RunError):
        raise
    except DAMAGE as error:
        if getattr(error, "errno", None) is not None:  # the place is at fault, not the content
            raise
        why = " ".join(str(error).split())[:120].rstrip(".") or type(error).__name__
        raise DamagedFile(f"{path} cannot be read ({why}); {remedy}.") from error


def save_state(path: Place, state: Mapping[str, Any], *, parents: bool = True) -> None:
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    write_whole(path, buffer.getvalue(), parents=parents)


def load_state(path: Place, remedy: str = "make it again") -> dict[str, Any]:
    """Reads what `save_state` wrote. Only tensors and plain values are read: no code can run.

    Raises DamagedFile, with `remedy`, if a bit of it is not as it was written.
    """
    with reading(path, remedy):
        return state_of(path.read_bytes())


def state_of(data: bytes) -> dict[str, Any]:
    """The state in the bytes that `save_state` wrote. Raises ValueError if they were changed."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if (part := archive.testzip()) is not None:  # torch reads the sums, and ignores them
            raise ValueError(f"the checksum of {part} is another")
    state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return state


def read_lines(path: Place) -> list[dict[str, Any]]:
    """The lines of a JSON-lines file; one that is not whole does not count. [] without a file."""
    if not path.is_file():
        return []
    texts = path.read_bytes().decode(errors="replace").splitlines()
    return [line for text in texts if (line := line_of(text)) is not None]


def line_of(text: str) -> dict[str, Any] | None:
    """The JSON object in a line; None if it is not whole."""
    with contextlib.suppress(json.JSONDecodeError):
        if isinstance(line := json.loads(text), dict):
            return line
    return None


def write_whole(path: Place, data: bytes, *, parents: bool = True) -> None:
    """Writes a file atomically: a reader, or a crash, never meets half of it. Raises StorageError.

    Makes the file's folder if it is missing; with `parents` also those above it.
    """
    if isinstance(path, Remote):
        path.write_bytes(data)
        return
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with storing(path):
        path.parent.mkdir(parents=parents, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)  # half a file, on a disk that is full
            raise
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Makes a file's new name outlast a loss of power, as its content does."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # file systems that cannot, do it by themselves
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)
