"""The meter: what an attempt at a run is billed and how much work it does, by phase.

*Billed* are the wall-clock seconds that an attempt holds its share of a device, as a cloud charges
them. *Work* is what the attempt itself does on the device, by a `WorkClock`: other processes on the
machine make a training last longer, but do not give it more work. Costs are compared by work.

Every attempt has a file of its own in the ledger, `ledger/<run key>-<attempt>.jsonl`, whose lines
only ever get more: its last line is what the attempt has been billed and has done so far. A thread
writes one every few seconds, so that kill -9 loses no more than that; and nobody else writes to the
file, so that no lock and no merging is needed. On an object store, where nothing can be appended
to, the file is its last line, put there anew less often.

`open` in the last line: the attempt did not end, but was lost with its process, machine or driver.
Whatever came after the last checkpoint, at `kept` and `kept_work`, an attempt that follows does
again.
"""

import contextlib
import itertools
import json
import math
import os
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch

from autoaug_ray.errors import RunError, storing
from autoaug_ray.store.files import line_of
from autoaug_ray.store.places import Place, Remote, listed, read_all

PHASES = ("caption", "invert", "generate", "search", "final", "eval", "warm_up", "other")
"""caption, invert and generate make a bank of edited images; search and final are the training
steps of those stages; warm_up is what a process does once, before its first step or image: it loads
libraries and models, and takes steps on throw-away copies; other is the time that an attempt held
its device without being in a phase: loading data, building models, checkpoints, reporting."""
TRAINING = ("search", "final")
"""The phases of training, without evaluation and overhead."""
BANK = ("caption", "invert", "generate")
"""The phases that make generated images."""
HEARTBEAT, REMOTE_HEARTBEAT = 2.0, 20.0
"""Seconds between lines of a ledger on this machine, and on an object store."""


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


class WorkClock(Protocol):
    """Tells how much work this process has put on a device."""

    name: str
    """What it measures, as a report names it."""

    def mark(self) -> Any:
        """A point in the process's work on the device; costs next to nothing."""

    def between(self, marks: Sequence[Any]) -> list[float]:
        """Seconds of work between each mark and the next; waits until the last one is reached."""


class CPUClock:
    """CPU time of this process, over all its threads but those that write the ledger."""

    name = "CPU time"

    def __init__(self) -> None:
        self.own = 0.0
        """CPU-seconds of the threads that write the ledger."""

    def mark(self) -> float:
        return time.process_time() - self.own

    def between(self, marks: Sequence[float]) -> list[float]:
        return [end - begin for begin, end in itertools.pairwise(marks)]


class CUDAClock:
    """Time on the GPU between CUDA events.

    Whatever the GPU does meanwhile for other processes is part of it: only the figures of trials
    that have the GPU for themselves are exactly their own work.
    """

    name = "CUDA events"

    def __init__(self, new_event: Callable[..., Any] = torch.cuda.Event) -> None:
        self._new_event = new_event

    def mark(self) -> Any:
        event = self._new_event(enable_timing=True)
        event.record()
        return event

    def between(self, marks: Sequence[Any]) -> list[float]:
        marks[-1].synchronize()
        return [begin.elapsed_time(end) / 1e3 for begin, end in itertools.pairwise(marks)]


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
        workers: int = 1,
        heartbeat: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        work_clock: WorkClock | None = None,
    ) -> None:
        """`share` is the number of devices held (a fraction of a GPU, or CPUs), by all `workers`
        that do the same work as this process, itself included.

        `about` goes into every line of the ledger. Without a ledger nothing is written. `clock`
        tells the seconds that are billed, `work_clock` the work; None: that of the device.
        """
        self.device = device or torch.device("cpu")
        self.share, self._clock, self._start = share, clock, clock()
        on_gpu = self.device.type == "cuda"
        self.work_clock = work_clock or (CUDAClock() if on_gpu else CPUClock())
        self._devices = share if on_gpu else float(workers)
        """Devices whose seconds the work clock tells: CPU time is of all CPUs that were at work."""
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._work: defaultdict[str, float] = defaultdict(float)
        self._phases: list[str] = []
        """The phases that are open, the innermost last; it alone is charged."""
        self._since, self._mark = self._start, self.work_clock.mark()
        self._lock, self._writing = threading.RLock(), threading.Lock()
        self.earlier: defaultdict[str, float] = defaultdict(float)
        self.attempt = 1
        self._file: Place | None = None
        self._line: dict[str, Any] = {}
        self._kept: dict[str, Any] = {"kept": 0.0, "kept_work": {}}
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
                "device": device_name(self.device), "clock": self.work_clock.name,
                "pid": os.getpid(), **(about or {}),
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
        """Charges the time and the work in here to `name`; a phase within another is charged alone.

        A phase's work is charged when it ends, its time all along.
        """
        assert name in PHASES
        self._charge()
        with self._lock:
            self._phases.append(name)
        try:
            yield
        finally:
            self._charge()
            with self._lock:
                self._phases.pop()

    def _charge(self) -> None:
        """Charges what has passed since the last change of phase to the phase that is open."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        mark = self.work_clock.mark()
        (worked,) = self.between([self._mark, mark])
        with self._lock:
            now = self._clock()
            if self._phases:
                self._seconds[self._phases[-1]] += now - self._since
                self._work[self._phases[-1]] += worked
            self._since, self._mark = now, mark

    def between(self, marks: Sequence[Any]) -> list[float]:
        """Device-seconds of work between each mark of the `work_clock` and the next."""
        return [seconds * self._devices for seconds in self.work_clock.between(marks)]

    def keep(self) -> None:
        """Notes that all work so far is on disk, and would not be lost with the attempt."""
        with self._lock:
            self._kept = {"kept": sum(self.seconds().values()), "kept_work": dict(self._work)}
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
            if self._phases:
                out[self._phases[-1]] += now - self._since
            out["other"] += now - self._start - sum(out.values())
            return out

    def device_hours(self) -> dict[str, float]:
        """The device-hours of all attempts at this run so far, by phase.

        Earlier attempts held the same share: it is part of what the study asks for.
        """
        now = self.seconds()
        return {p: (now[p] + self.earlier[p]) * self.share / 3600 for p in PHASES}

    def _live(self, interval: float) -> None:
        while not self._stop.wait(interval):
            self._beat()
            if isinstance(self.work_clock, CPUClock):
                self.work_clock.own = time.thread_time()

    def _beat(self) -> None:
        # What one line lacks, the next one holds; only the last one must be written.
        with contextlib.suppress(OSError, RunError):
            self._write(ended=False)

    def _write(self, *, ended: bool) -> None:
        with self._writing:  # not the clock's lock: a store may take its time
            if self._file is None:
                return
            about = {
                **self._line, "at": time.time(), "open": not ended, **self._kept,
                "seconds": self.seconds(), "work": dict(self._work),
            }  # fmt: skip
            line = json.dumps(about).encode() + b"\n"
            if isinstance(self._file, Remote):
                self._file.write_bytes(line)
                return
            with open(self._file, "ab", buffering=0) as file:
                file.write(line)
                os.fsync(file.fileno())


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
        for text in reversed(data.decode(errors="replace").splitlines()):
            if (line := line_of(text)) is not None:
                lines[file] = line
                break
    ended |= {file: line for file, line in lines.items() if not line.get("open", True)}
    return [lines[file] for file in files if file in lines]


def spent(line: Mapping[str, Any]) -> float:
    """The device-seconds that an attempt is billed, by its last line."""
    return float(line["share"] * math.fsum(line["seconds"].values()))


def in_vain(line: Mapping[str, Any]) -> float:
    """The device-seconds after the last checkpoint of an attempt that was lost."""
    return spent(line) - float(line["share"] * line["kept"])


def work(lines: Iterable[Mapping[str, Any]], phases: Sequence[str]) -> float | None:
    """Device-seconds of work in these phases that one run, or one piece of a bank, needed.

    `lines` are the last lines of all its attempts. Whatever an attempt did after its last
    checkpoint is left out if another one followed, and did it again. None without attempts, and if
    one of them was made by a version of this package that did not measure work.
    """
    attempts = sorted(lines, key=lambda line: line["attempt"])
    if not attempts or any("work" not in line for line in attempts):
        return None
    needed = [*(line["kept_work"] for line in attempts[:-1]), attempts[-1]["work"]]
    return math.fsum(done.get(phase, 0.0) for done in needed for phase in phases)


def out_of_memory(error: BaseException) -> bool:
    """True if a device had too little memory; a CPU's allocator says so in words only."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
