"""One process at a time runs a study in a folder: two would do, and charge, everything twice."""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from filelock import FileLock, Timeout

from autoaug_ray.errors import RunError, UserError, storing
from autoaug_ray.store.files import write_whole
from autoaug_ray.store.places import Place, Remote, listed

BEAT = 10.0
"""Seconds between the signs of life of a driver, where a file cannot be locked."""
SILENCE = 2.5
"""Beats after which a driver that gave no sign of life is taken for dead."""


@contextlib.contextmanager
def alone(folder: Place, say: Callable[[str], None], beat: float = BEAT) -> Iterator[None]:
    """Within this context no other driver runs the study of `folder`.

    On a file system the lock is the operating system's, and ends with the process however that
    ends. An object store has none: there a driver changes a file of its own every `beat` seconds,
    and whoever comes later watches it for SILENCE beats, which `say` is told. Raises UserError,
    with the host and process of the other driver.
    """
    me = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
    if isinstance(folder, Remote):
        with _living(folder / "drivers", me, say, beat):
            yield
        return
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock, about = FileLock(folder / "driver.lock", timeout=0), folder / "driver.json"
    try:
        lock.acquire()
    except Timeout:
        raise UserError(_refusal(folder, about)) from None
    except NotImplementedError:  # a mounted bucket, say
        with _living(folder / "drivers", me, say, beat):
            yield
        return
    try:
        write_whole(about, json.dumps(me).encode())
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _living(
    folder: Place, me: dict[str, Any], say: Callable[[str], None], beat: float
) -> Iterator[None]:
    if found := [file for file in listed(folder, "*.json") if not _died_here(file)]:
        say(f"waiting {SILENCE * beat:g} s to see whether another driver runs {folder.parent} ...")
        before = {file: _read(file) for file in found}
        time.sleep(SILENCE * beat)
        for file in found:
            if (now := _read(file)) is not None and now != before[file]:
                raise UserError(_refusal(folder.parent, file))
    for file in listed(folder, "*.json"):
        if file in found or _died_here(file):
            file.unlink(missing_ok=True)
    mine, ended = folder / f"{uuid.uuid4().hex}.json", threading.Event()

    def sign(number: int) -> None:
        write_whole(mine, json.dumps(me | {"beat": number}).encode())

    def live() -> None:
        number = 0
        while not ended.wait(beat):
            number += 1
            with contextlib.suppress(RunError, OSError):  # the next one may get through
                sign(number)

    sign(0)
    thread = threading.Thread(target=live, daemon=True)
    try:
        # Where two start at once, each sees the other here, or one of them does.
        for other in listed(folder, "*.json"):
            if other != mine:
                raise UserError(_refusal(folder.parent, other))
        thread.start()
        yield
    finally:
        ended.set()
        if thread.ident is not None:
            thread.join()
        mine.unlink(missing_ok=True)


def _died_here(file: Place) -> bool:
    """Whether it is the sign of life of a process of this machine that has ended."""
    about = _read(file)
    if about is None or about["host"] != socket.gethostname():
        return False
    try:
        os.kill(about["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _read(file: Place) -> dict[str, Any] | None:
    try:
        about: dict[str, Any] = json.loads(file.read_text())
    except (OSError, json.JSONDecodeError):
        return None
    return about


def _refusal(folder: Place, file: Place) -> str:
    about = _read(file) or {"host": "?", "pid": "?", "since": time.time()}
    since = datetime.fromtimestamp(about["since"]).strftime("%Y-%m-%d %H:%M")
    return (
        f"{folder} is in use: process {about['pid']} on {about['host']} has been running this "
        f"study since {since}; wait for its end, or give --out another folder."
    )
