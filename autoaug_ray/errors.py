"""The errors that a person can mend: shown as their one sentence, without a traceback."""


class UserError(ValueError):
    """A wrong input: names the field or file, the value, and what is allowed. Exit status 2."""


class RunError(RuntimeError):
    """A run that must not go on (a loss is not finite, no gradient arrives), with where and why."""
