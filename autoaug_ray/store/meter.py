"""The meter: what an attempt at a run costs, as wall-clock seconds x device share, by phase.

Every attempt has a file of its own in the ledger, `ledger/<run key>-<attempt>.jsonl`, whose lines
only ever get more: its last line is what the attempt has cost so far. A thread writes one every few
seconds, so that kill -9 loses no more than that; and nobody else writes to the file, so that no
lock and no merging is needed. A run costs the sum over its attempts. On an object store, where
nothing can be appended to, the file is its last line, put there anew less often.

`open` in the last line: the attempt did not end, but was lost with its process, machine or driver.
Of its seconds those up to `kept`, the last checkpoint, were not in vain.
"""

import contextlib
import json
import math
import os
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from autoaug_ray.errors import RunError, storing
from autoaug_ray.store.places import Place, Remote, listed, read_all

PHASES = ("caption", "invert", "generate", "search", "final", "eval", "other")
"""caption, invert and generate make a bank of edited images; search and final are the training
steps of those stages; other is the time that an attempt held its device without being in a phase:
loading data, building models, checkpoints, reporting."""
TRAINING = ("search", "final")
"""The phases of training, without evaluation and overhead."""
BANK = ("caption", "invert", "generate")
"""The phases that make generated images."""
HEARTBEAT, REMOTE_HEARTBEAT = 2.0, 20.0
"""Seconds between lines of a ledger on this machine, and on an object store."""


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


class Meter:
    """The meter of one attempt; a context manager that closes its ledger file."""

    def __init__(
        self,
        ledger: Place | None = None,
        *,
        key: str = "run",
        about: Mapping[str, Any] | None = None,
        device: torch.device | None = None,
        share: float = 1.0,
        heartbeat: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`share` is the number of devices held (a fraction of a GPU, or CPUs).

        `about` goes into every line of the ledger. Without a ledger nothing is written.
        """
        self.device = device or torch.device("cpu")
        self.share, self._clock, self._start = share, clock, clock()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._open: tuple[str, float] | None = None
        self._lock, self._writing = threading.RLock(), threading.Lock()
        self.earlier: defaultdict[str, float] = defaultdict(float)
        self.attempt = 1
        self._file: Place | None = None
        self._line: dict[str, Any] = {}
        self._kept = 0.0
        self._stop = threading.Event()
        if ledger is not None:
            if not isinstance(ledger, Remote):
                with storing(ledger):
                    ledger.mkdir(parents=True, exist_ok=True)
            earlier = read(ledger, key)
            self.attempt = 1 + len(earlier)
            for line in earlier:
                for phase, seconds in line["seconds"].items():
                    self.earlier[phase] += seconds
            self._line = {
                "run": key, "attempt": self.attempt, "share": share,
                "device": device_name(self.device), "pid": os.getpid(), **(about or {}),
            }  # fmt: skip
            name = f"{key}-{self.attempt:03d}-{uuid.uuid4().hex[:8]}.jsonl"
            self._file = ledger / name
            if heartbeat is None:
                heartbeat = REMOTE_HEARTBEAT if isinstance(ledger, Remote) else HEARTBEAT
            with storing(ledger):
                self._write(ended=False)  # now: the process may die at once
            threading.Thread(target=self._live, args=(heartbeat,), daemon=True).start()

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        with storing(self._file):
            self._write(ended=True)
        with self._writing:
            self._file = None

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charges the time in here to `name`; phases do not nest."""
        assert name in PHASES and self._open is None
        self._synchronise()
        with self._lock:
            self._open = (name, self._clock())
        try:
            yield
        finally:
            self._synchronise()
            with self._lock:
                self._seconds[name] += self._clock() - self._open[1]
                self._open = None

    def keep(self) -> None:
        """Notes that all work so far is on disk, and would not be lost with the attempt."""
        self._kept = sum(self.seconds().values())
        self._beat()

    def note(self, **about: Any) -> None:
        """Adds fields about the attempt to its line of the ledger."""
        with self._lock:
            self._line |= about

    def seconds(self) -> dict[str, float]:
        """The seconds of this attempt so far, by phase; they add up to the time since it began."""
        with self._lock:
            now = self._clock()
            out = {p: self._seconds[p] for p in PHASES}
            if self._open is not None:
                out[self._open[0]] += now - self._open[1]
            out["other"] += now - self._start - sum(out.values())
            return out

    def device_hours(self) -> dict[str, float]:
        """The device-hours of all attempts at this run so far, by phase.

        Earlier attempts held the same share: it is part of what the study asks for.
        """
        now = self.seconds()
        return {p: (now[p] + self.earlier[p]) * self.share / 3600 for p in PHASES}

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _live(self, interval: float) -> None:
        while not self._stop.wait(interval):
            self._beat()

    def _beat(self) -> None:
        # What one line lacks, the next one holds; only the last one must be written.
        with contextlib.suppress(OSError, RunError):
            self._write(ended=False)

    def _write(self, *, ended: bool) -> None:
        with self._writing:  # not the clock's lock: a store may take its time
            if self._file is None:
                return
            about = {
                **self._line, "at": time.time(), "open": not ended, "kept": self._kept,
                "seconds": self.seconds(),
            }  # fmt: skip
            line = json.dumps(about).encode() + b"\n"
            if isinstance(self._file, Remote):
                self._file.write_bytes(line)
                return
            with open(self._file, "ab", buffering=0) as file:
                file.write(line)


def read(
    ledger: Place, key: str = "*", *, ended: dict[Place, dict[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """The last whole line of every attempt (at one run, or at all).

    A line that a crash cut short does not count. Whoever reads a ledger again and again keeps
    `ended`, an empty dict at first: it remembers the attempts that have ended, whose files do not
    change any more and are then not read again.
    """
    ended = {} if ended is None else ended
    files = listed(ledger, f"{key}-*.jsonl")
    lines = {file: ended[file] for file in files if file in ended}
    others = [file for file in files if file not in ended]
    for file, data in zip(others, read_all(others), strict=True):
        for text in reversed(data.decode().splitlines()):
            with contextlib.suppress(json.JSONDecodeError):
                lines[file] = json.loads(text)
                break
    ended |= {file: line for file, line in lines.items() if not line.get("open", True)}
    return [lines[file] for file in files if file in lines]


def spent(line: Mapping[str, Any]) -> float:
    """The device-seconds of an attempt, by its last line."""
    return float(line["share"] * math.fsum(line["seconds"].values()))


def in_vain(line: Mapping[str, Any]) -> float:
    """The device-seconds after the last checkpoint of an attempt that was lost."""
    return spent(line) - float(line["share"] * line["kept"])


def out_of_memory(error: BaseException) -> bool:
    """True if a device had too little memory; a CPU's allocator says so in words only."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
