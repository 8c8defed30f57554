"""Finding a generative model's weights, and a short name for exactly these weights."""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Literal

from autoaug_ray.errors import UserError

EMBEDDED = Path(__file__).with_name("tiny") / "fashion-mnist-tiny"
"""Small real models of clothes that ship with the package; their MODEL_CARD.md says what for."""

Part = Literal["stable-diffusion", "blip"]


def resolve(model: str, part: Part) -> str:
    """What `from_pretrained` takes: the shipped folder for "embedded", else the id or path itself.

    Raises UserError for a path that is not there.
    """
    if model == "embedded":
        return str(EMBEDDED / part)
    looks_like_path = model.startswith((".", "/", "~"))
    path = Path(model).expanduser()
    if looks_like_path and not path.is_dir():
        raise UserError(f"generate: no model folder at {model}.")
    return str(path) if path.is_dir() else model


@lru_cache(maxsize=32)
def fingerprint(model: str) -> str:
    """16 hex digits that name a folder's weights and configs, or a hub id at the revision used.

    Raises UserError for a hub id that is neither in the local cache nor can be asked for.
    """
    path = Path(model)
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.suffix in (".json", ".safetensors", ".bin", ".txt", ".model"):
                digest.update(file.relative_to(path).as_posix().encode())
                digest.update(hashlib.sha256(file.read_bytes()).digest())
    else:
        digest.update(f"{model}@{_revision(model)}".encode())
    return digest.hexdigest()[:16]


def _revision(model: str) -> str | None:
    """The commit that `from_pretrained` takes: the newest, or the cached one without a network."""
    from huggingface_hub import model_info, try_to_load_from_cache

    try:
        return model_info(model).sha
    except ValueError as error:
        raise UserError(f"generate: {model!r} is no model: {error}") from None
    except Exception as error:  # those of its HTTP library are its own affair
        for name in ("model_index.json", "config.json"):
            if isinstance(path := try_to_load_from_cache(model, name), str):
                return Path(path).parent.name
        reason = str(error).splitlines()[0]
        raise UserError(f"generate: the model {model} cannot be found ({reason}).") from None
