"""Whose trained weights can be had here: kept by a library already, or fetched within a minute."""

import time
from collections.abc import Sequence
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import urlopen

import torch
from torchvision import models as torchvision_models

from autoaug_ray.errors import UserError
from autoaug_ray.models import check
from autoaug_ray.settings.classifier import Classifier

WAIT = 4.0
"""Seconds that a server has to answer, and again for each part of its answer."""
PATIENCE = 60.0
"""Seconds that a download may take."""
TRIED = 2**20
"""Bytes of which the speed of a download is told."""
FILE = "model.safetensors"
"""What the weights of a model of timm and transformers are called on the hub."""


def first_at_hand(
    wanted: Sequence[Classifier], classes: int, shape: tuple[int, int, int]
) -> tuple[Classifier | None, str]:
    """The first classifier whose trained weights a library keeps here and which takes images of
    this shape, (channels, H, W); if there is none, the first of all, if its weights can be fetched.

    Returns with it how its weights were had or, with None, why there are none. What it returns is
    on this machine: it has been built, and two images have gone through it.
    """
    kept = [c for c in wanted if is_kept(c)]
    reasons = []
    for classifier in kept or wanted[:1]:
        try:
            if not kept:
                _check_speed(url_of(classifier))
            check(classifier, classes, shape)
        except UserError as error:
            reasons.append(str(error).rstrip("."))
        else:
            return classifier, "weights that are kept here" if kept else "weights fetched just now"
    return None, reasons[0]


def is_kept(classifier: Classifier) -> bool:
    """Whether a library keeps the trained weights of a network of its own on this machine."""
    if classifier.library == "torchvision":
        name = Path(urlparse(url_of(classifier)).path).name
        return (Path(torch.hub.get_dir()) / "checkpoints" / name).is_file()
    if classifier.library == "timm" and find_spec("timm") is None:
        return False
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(_repository(classifier), FILE), str)


def url_of(classifier: Classifier) -> str:
    """Where a library fetches the trained weights of its network from."""
    if classifier.library == "torchvision":
        weights = torchvision_models.get_model_weights(classifier.in_library)
        url: str = next(iter(weights)).DEFAULT.url
        return url
    from huggingface_hub import hf_hub_url

    return str(hf_hub_url(_repository(classifier), FILE))


def _repository(classifier: Classifier) -> str:
    return (
        f"timm/{classifier.in_library}" if classifier.library == "timm" else classifier.in_library
    )


def _check_speed(url: str) -> None:
    """Raises UserError for what does not answer, or would take longer than PATIENCE to fetch."""
    host = urlparse(url).hostname
    begin = time.monotonic()
    try:
        with urlopen(url, timeout=WAIT) as answer:
            size = int(answer.headers.get("Content-Length", 0))
            tried = len(answer.read(TRIED))
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)  # urllib wraps what went wrong
        raise UserError(f"{host} cannot be reached ({reason}).") from None
    seconds = (time.monotonic() - begin) * max(size, tried) / max(tried, 1)
    if seconds > PATIENCE:
        raise UserError(f"{host} would take about {seconds:.0f} seconds to send them.")
