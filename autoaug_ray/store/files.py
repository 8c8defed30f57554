"""Files that are written in one piece, and states of tensors in them.

It needs torch alone: whoever loads a policy reads it through here.
"""

import io
import os
import uuid
from collections.abc import Mapping
from typing import Any

import torch

from autoaug_ray.errors import storing
from autoaug_ray.store.places import Place, Remote


def save_state(path: Place, state: Mapping[str, Any], *, parents: bool = True) -> None:
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    write_whole(path, buffer.getvalue(), parents=parents)


def load_state(path: Place) -> dict[str, Any]:
    """Reads what `save_state` wrote. Only tensors and plain values are read: no code can run."""
    data = io.BytesIO(path.read_bytes())
    state: dict[str, Any] = torch.load(data, map_location="cpu", weights_only=True)
    return state


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
