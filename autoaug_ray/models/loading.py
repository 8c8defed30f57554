"""What loading any pretrained model shares: silence, and one sentence when it fails."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from autoaug_ray.errors import UserError

ERRORS = (OSError, ValueError, KeyError, TypeError)
"""What the libraries raise for a model that is not there or is none."""


@contextmanager
def loading(field: str, what: str, errors: tuple[type[Exception], ...] = ERRORS) -> Iterator[None]:
    """Loads a model; raises UserError, which names the `field` of the study, for one of `errors`.

    The progress bars of transformers and diffusers are hidden, as far as these are imported: many
    workers write into one terminal. Missing packages are the caller's to explain.
    """
    names = ("transformers.utils.logging", "diffusers.utils.logging")
    loggings = [sys.modules[name] for name in names if name in sys.modules]
    shown = [logging for logging in loggings if logging.is_progress_bar_enabled()]
    for logging in shown:
        logging.disable_progress_bar()
    try:
        yield
    except UserError:
        raise
    except errors as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise UserError(f"{field}: cannot load {what} ({reason}).") from None
    finally:
        for logging in shown:
            logging.enable_progress_bar()
