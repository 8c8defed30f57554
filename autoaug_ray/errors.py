"""The errors that a person can mend: shown as their one sentence, without a traceback."""

import contextlib
import sys
from collections.abc import Callable, Iterator


class UserError(ValueError):
    """A wrong input: names the field or file, the value, and what is allowed. Exit status 2."""


class RunError(RuntimeError):
    """A run that must not go on (a loss is not finite, no gradient arrives), with where and why."""


class StorageError(RunError):
    """A place that cannot be used: a full disk, a folder that is gone. Nothing is wrong with the
    run that meets it, which goes on once the place is back."""


@contextlib.contextmanager
def storing(place: object) -> Iterator[None]:
    """OSErrors in here are raised as a StorageError that names the place."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(f"{place} cannot be used ({reason}).") from error


def exit_status(work: Callable[[], int], *, interrupted: str, again: str = "") -> int:
    """What `work` returns (0 done), or the status for how it ended, with a line on stderr.

    1 a run failed, 2 wrong input, 130 interrupted, of which the line is `interrupted`. `again` says
    how to go on once a place can be used again.
    """
    try:
        return work()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except StorageError as error:
        print(f"error: {error}".removesuffix(".") + f"; {again}" * bool(again), file=sys.stderr)
        return 1
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
