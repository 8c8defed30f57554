"""What loading any pretrained model shares: silence, and one sentence when it fails."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from autoaug_ray.errors import UserError


@contextmanager
def quiet() -> Iterator[None]:
    """Hides the progress bars of transformers and diffusers, as far as they are imported.

    Many workers write into one terminal.
    """
    names = ("transformers.utils.logging", "diffusers.utils.logging")
    loggings = [sys.modules[name] for name in names if name in sys.modules]
    shown = [logging for logging in loggings if logging.is_progress_bar_enabled()]
    for logging in shown:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        for logging in shown:
            logging.enable_progress_bar()


def cannot_load(field: str, what: str, error: Exception) -> UserError:
    """The error that a model, named by a `field` of `generate:`, cannot be loaded, and why."""
    reason = str(error).strip().partition("\n")[0].rstrip(".")
    return UserError(f"generate.{field}: cannot load {what} ({reason}).")
