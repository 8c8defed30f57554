"""The command, in this process: no seconds for the imports, and the Ray that is there already."""

import contextlib
import io
from subprocess import CompletedProcess

from autoaug_ray.commands import main


def run_all(*arguments) -> CompletedProcess:
    """As `subprocess.run` of run_all.py with these arguments."""
    out, err = io.StringIO(), io.StringIO()
    words = list(map(str, arguments))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(words)
    return CompletedProcess(words, status, out.getvalue(), err.getvalue())
