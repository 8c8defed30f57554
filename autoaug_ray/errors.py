"""The errors that a person can mend: shown as their one sentence, without a traceback."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import get_close_matches

NAMED = 5
"""Files or classes that a sentence names, if it is about more."""


class UserError(ValueError):
    """A wrong input: names the field or file, the value, and what is allowed. Exit status 2."""


class RunError(RuntimeError):
    """A run that must not go on (a loss is not finite, no gradient arrives), with where and why."""


class StorageError(RunError):
    """A place that cannot be used: a full disk, a folder that is gone. The run itself is sound, and
    goes on once the place is back."""


@contextlib.contextmanager
def storing(place: object) -> Iterator[None]:
    """Turns an OSError inside the block into a StorageError that names the place."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(f"{place} cannot be used ({reason}).") from error


def exit_status(work: Callable[[], int], *, again: str = "") -> int:
    """The exit status of a command: what `work` returns (0: done) or, with a line on stderr, 1 if a
    run failed, 2 for wrong input, 130 if it was interrupted, by Ctrl-C or by SIGTERM.

    `again` says how to go on after an interruption, or once a place can be used again; it is added
    to the line.
    """
    how = f"; {again}" if again else ""
    if threading.current_thread() is threading.main_thread():
        # As Slurm, Kubernetes and spot machines end a process that they will kill soon after.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return work()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        line = f"error: {error}"
        if isinstance(error, StorageError):
            line = line.removesuffix(".") + how
        print(line, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted{how}", file=sys.stderr)
        return 130


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean X?)` for the known word that is closest to a wrong one, if one is close."""
    close = get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def some(names: Sequence[object], most: int = NAMED) -> str:
    """The first of these names, and how many there are besides."""
    shown = ", ".join(map(str, names[:most]))
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
