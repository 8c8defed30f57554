"""What loading any pretrained model shares: silence, and one sentence when it fails."""

from collections.abc import Iterator
from contextlib import contextmanager

from autoaug_ray.errors import UserError


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of transformers: many workers write into one terminal."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def cannot_load(field: str, what: str, error: Exception) -> UserError:
    """`field` of `generate:` says what to load; of `error`, its first line is shown."""
    reason = str(error).strip().partition("\n")[0].rstrip(".")
    return UserError(f"generate.{field}: cannot load {what} ({reason}).")
