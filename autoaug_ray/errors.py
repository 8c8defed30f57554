"""The errors that a person can mend: shown as their one sentence, without a traceback."""

import sys
from collections.abc import Callable


class UserError(ValueError):
    """A wrong input: names the field or file, the value, and what is allowed. Exit status 2."""


class RunError(RuntimeError):
    """A run that must not go on (a loss is not finite, no gradient arrives), with where and why."""


def exit_status(work: Callable[[], int], *, interrupted: str) -> int:
    """What `work` returns (0 done), or the status for how it ended, with a line on stderr.

    1 a run failed, 2 wrong input, 130 interrupted, of which the line is `interrupted`.
    """
    try:
        return work()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
