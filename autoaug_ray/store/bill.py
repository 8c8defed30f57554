"""The bill of a study's machines: device-hours billed, allotted, held and useful.

The meter charges what attempts held, but a cluster costs what its nodes do. Between the two lie
nodes that wait for work or start up, and actors that import torch. A thread of the driver looks
at the cluster every few seconds, and keeps one small file per session, written anew every time:
kill -9 loses no more than the time since. Nodes that stay on between two sessions are not seen.
"""

import contextlib
import json
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from autoaug_ray.errors import RunError, UserError
from autoaug_ray.store import meter
from autoaug_ray.store.files import reading, write_whole
from autoaug_ray.store.places import Place, Remote, listed, read_all

IDLE = ("warm_up", "other")
"""The meter's phases that are no training, evaluation or generation."""
LOOK_SECONDS = 1.0
INTERVAL, REMOTE_INTERVAL = 5.0, 30.0
"""Seconds between two writes of the file, on this machine and on a store."""
FIELDS = ("began", "at", "billed", "allotted")
"""What a session's file holds."""


class ClusterState(NamedTuple):
    """The nodes of a cluster at one moment."""

    nodes: Mapping[str, Mapping[str, float]]
    """Resources ("CPU", "GPU") of every node that is alive, by its id."""
    free: Mapping[str, float]
    """Resources that no trial or actor holds."""


class Bill:
    """The bill of one session, as a file below `folder`; a context manager."""

    def __init__(
        self,
        folder: Place,
        look: Callable[[], ClusterState],
        *,
        interval: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if interval is None:
            interval = REMOTE_INTERVAL if isinstance(folder, Remote) else INTERVAL
        self._look, self._interval, self._clock = look, interval, clock
        self._began, self._then = time.time(), clock()
        self._file = folder / f"{self._began:.0f}-{uuid.uuid4().hex[:8]}.json"
        self._billed: defaultdict[str, defaultdict[str, float]] = defaultdict(
            lambda: defaultdict(float)
        )
        self._allotted: defaultdict[str, float] = defaultdict(float)
        self._last: ClusterState | None = None
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Bill":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if kind is None or not issubclass(kind, UserError):  # a refused input leaves no session
            self.note()

    def note(self, *, write: bool = True) -> None:
        """Charges the time since the last look to the nodes seen then, and looks again."""
        with self._lock, contextlib.suppress(OSError, RunError):
            now = self._clock()
            passed, self._then = now - self._then, now
            if self._last is not None:
                for node, resources in self._last.nodes.items():
                    for kind in ("CPU", "GPU"):
                        self._billed[node][kind] += passed * resources.get(kind, 0.0)
                for kind in ("CPU", "GPU"):
                    total = sum(r.get(kind, 0.0) for r in self._last.nodes.values())
                    self._allotted[kind] += passed * (total - self._last.free.get(kind, 0.0))
            with contextlib.suppress(Exception):  # a cluster that is going away
                self._last = self._look()
            if not write:
                return
            values = (self._began, time.time(), self._billed, self._allotted)
            line = dict(zip(FIELDS, values, strict=True))
            write_whole(self._file, json.dumps(line).encode())

    def _watch(self) -> None:
        with contextlib.suppress(Exception):
            self._last = self._look()
        written = self._clock()
        while not self._stop.wait(min(LOOK_SECONDS, self._interval)):
            due = self._clock() - written > self._interval
            self.note(write=due)
            written = self._clock() if due else written


class Sum(NamedTuple):
    """The device-hours of all sessions, counting the kind of device that the trainings ran on."""

    device: str
    """The kind of device: GPU or CPU."""
    sessions: int
    nodes: int
    billed: float
    """Device-hours of nodes while they were alive."""
    allotted: float
    """Device-hours that trials and actors were given, from their start to their end."""
    held: float
    """Device-hours of attempts in the ledgers: what methods are charged."""
    useful: float
    """The part of `held` in a phase of the work: training, evaluation, generation."""
    lost: float
    """Device-hours after the last checkpoint of attempts that were lost with process or machine."""


def read(folder: Place, ledgers: Sequence[Place]) -> Sum | None:
    """Adds up the bills in the folder and the ledgers of the same sessions; None without a bill."""
    files, bills = listed(folder, "*.json"), []
    for file, data in zip(files, read_all(files), strict=True):
        with reading(file, "delete it: the bill then lacks what this session was billed"):
            bills.append({field: json.loads(data)[field] for field in FIELDS})
    lines = [line for ledger in ledgers for line in meter.read(ledger)]
    attempts = [line for line in lines if any(_within(line, bill) for bill in bills)]
    if not bills:
        return None
    kind = "GPU" if any(line["device"] != "CPU" for line in attempts) else "CPU"
    attempts = [line for line in attempts if (line["device"] != "CPU") == (kind == "GPU")]
    held = sum(map(meter.spent, attempts)) / 3600
    idle = sum(line["share"] * line["seconds"].get(p, 0.0) for line in attempts for p in IDLE)
    return Sum(
        device=kind,
        sessions=len(bills),
        nodes=len({node for bill in bills for node in bill["billed"]}),
        billed=sum(n.get(kind, 0) for bill in bills for n in bill["billed"].values()) / 3600,
        allotted=sum(bill["allotted"].get(kind, 0) for bill in bills) / 3600,
        held=held,
        useful=held - idle / 3600,
        lost=sum(meter.in_vain(line) for line in attempts if line.get("open")) / 3600,
    )


def sentence(s: Sum) -> str:
    """The bill as a sentence, from the hours billed to the useful ones."""
    text = (
        f"The bill: {s.billed:.3g} {s.device}-hours of {s.nodes} "
        f"{'node' if s.nodes == 1 else 'nodes'}, of which {_share(s.allotted, s.billed)} were "
        f"allotted to trials and actors, {_share(s.held, s.billed)} charged to attempts, and "
        f"{_share(s.useful, s.billed)} useful (training, evaluation, generation)"
    )
    if s.lost:
        text += f"; {s.lost:.3g} went to work that was lost"
    return text + "."


def _share(part: float, whole: float) -> str:
    return f"{part:.3g} ({part / whole:.0%})" if whole else f"{part:.3g}"


def _within(line: Mapping[str, Any], bill: Mapping[str, Any]) -> bool:
    """True if the attempt began in the session; clocks of two machines differ a little."""
    began = line["at"] - sum(line["seconds"].values())
    return bool(bill["began"] - 1 <= began <= bill["at"] + 1)
