"""Busy neighbours on the machine, to see what a study says of its costs beside them."""

import contextlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from autoaug_ray.bench import Outcome, neighbour
from autoaug_ray.errors import RunError, UserError

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Neighbour:
    """A process that is busy from its birth until `end`, or until this process dies."""

    def __init__(self, megabytes: int, turn: int) -> None:
        """`turn` says with which kind of load it begins. It may not be busy before `wait`."""
        # In a session of its own: Ctrl-C is for this process, which then ends it.
        self._process = subprocess.Popen(
            [sys.executable, Path(neighbour.__file__), str(megabytes), str(turn)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
            env=os.environ | ONE_THREAD,
        )  # fmt: skip
        self._cpu = self._began = 0.0

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self) -> None:
        """Wait until it is busy. Raises RunError if it has died, for want of memory perhaps."""
        self._cpu, self._began = self._said(), time.monotonic()

    def end(self) -> dict[str, float]:
        """End it. Returns the CPU time that it used since `wait`, and the time that passed.

        Raises RunError if it had died before.
        """
        seconds = time.monotonic() - self._began
        with contextlib.suppress(BrokenPipeError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        return {"cpu_seconds": self._said() - self._cpu, "seconds": seconds}

    def _said(self) -> float:
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            return float(line)
        raise RunError(f"a neighbour died (status {self._process.wait()}); see above.")

    def kill(self) -> None:
        """End it, whatever it does, and let go of what belongs to it."""
        self._process.kill()
        with self._process:
            pass


@contextlib.contextmanager
def beside(count: int, megabytes: int) -> Iterator[list[Neighbour]]:
    """So many neighbours, all of them busy; half of them begin with each kind of load."""
    with contextlib.ExitStack() as stack:
        made = []
        for i in range(count):
            made.append(Neighbour(megabytes, i % 2))
            stack.callback(made[-1].kill)
        for one in made:
            one.wait()
        yield made


def neighbours(
    *,
    count: Annotated[int, "of them, with a thread each"] = 2,
    megabytes: Annotated[int, "that each streams through: more than a cache holds"] = 256,
    command: Annotated[str, "to run beside them, without a shell; none: until Ctrl-C"] = "",
) -> Outcome:
    """Keeps a machine busy while a command runs: multiplies matrices and streams through memory.

    The exit status is the command's.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UserError(f"--command {command} cannot be read as words ({error}).") from None
    with beside(count, megabytes) as made:
        began = time.monotonic()
        status = _run(words) if words else _until_interrupted(made)
        seconds = time.monotonic() - began
        used = [one.end() for one in made]
    figures = {
        "count": count, "megabytes": megabytes, "command": words, "status": status,
        "wall_seconds": seconds, "cores": os.cpu_count(), "neighbours": used,
    }  # fmt: skip
    return Outcome(figures, [_table(figures)], status)


def _run(words: list[str]) -> int:
    """The status of a command, as a shell gives it. Raises UserError if it cannot be started."""
    try:
        process = subprocess.Popen(words)
    except OSError as error:
        raise UserError(f"--command {words[0]} cannot be run ({error.strerror}).") from None
    with process:
        try:
            status = process.wait()
        except KeyboardInterrupt:  # which the command has met, too: it may tidy up
            status = process.wait()
    return status if status >= 0 else 128 - status


def _until_interrupted(made: list[Neighbour]) -> int:
    pids = ", ".join(str(one.pid) for one in made)
    with contextlib.suppress(KeyboardInterrupt):
        print(f"Busy: the processes {pids}. Ctrl-C ends them.", flush=True)
        while True:
            time.sleep(3600)
    return 0


def _table(f: Mapping[str, Any]) -> Table:
    total = sum(one["cpu_seconds"] for one in f["neighbours"])
    what = shlex.join(f["command"]) or "none"
    table = Table(
        box=SIMPLE_HEAD,
        title=f"Neighbours: {f['count']}; cores: {f['cores']}; command: {what}",
        caption=f"{f['wall_seconds']:.1f} s, status {f['status']}. All neighbours: {total:.1f} s "
        "of CPU time.",
    )
    table.add_column("neighbour")
    for name in ("CPU seconds", "of a core"):
        table.add_column(name, justify="right")
    for i, one in enumerate(f["neighbours"], start=1):
        share = one["cpu_seconds"] / one["seconds"]
        table.add_row(str(i), f"{one['cpu_seconds']:.1f}", f"{share:.0%}")
    return table
