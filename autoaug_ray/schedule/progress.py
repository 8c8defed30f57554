"""The display of a running study on the terminal."""

import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from autoaug_ray.schedule.queue import RunQueue
from autoaug_ray.schedule.tune import Watch

LINE_SECONDS = 20.0  # between two lines if the output is no terminal


class Progress(Watch):
    """Shows a live table on a terminal, and a line now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.queues: Sequence[RunQueue] = ()
        self.live: Live | None = None
        self.began = self.last_line = time.monotonic()
        self.hours: dict[str, dict[str, float]] = defaultdict(dict)
        self.best: dict[str, float] = {}
        self.running: dict[str, str] = {}
        self.already = 0
        self.epochs: Counter[str] = Counter()

    def begin(self, queues: Sequence[RunQueue]) -> None:
        self.queues = queues
        self.already = self._done
        self.began = self.last_line = time.monotonic()
        if self.already:
            self.console.print(f"{self.already} of {self._expected} runs are on disk already.")
        if self.console.is_terminal and not all(queue.complete for queue in queues):
            self.live = Live(self._table(), console=self.console, refresh_per_second=4)
            self.live.start()

    @property
    def _done(self) -> int:
        return sum(len(queue.done) for queue in self.queues)

    @property
    def _expected(self) -> int:
        return sum(queue.expected for queue in self.queues)

    def started(self, label: str, trial_id: str) -> None:
        self.running[trial_id] = label

    def lost(self, label: str, trial_id: str, epoch: int) -> None:
        self.running.pop(trial_id, None)
        self.console.print(
            f"{label}: lost a process, or its machine, after epoch {epoch} of a run; going on from "
            "the last checkpoint",
            style="yellow",
        )  # fmt: skip

    def ended(self, trial_id: str) -> None:
        self.running.pop(trial_id, None)
        self.update()

    def update(self, result: Mapping[str, Any] | None = None) -> None:
        if result is not None and "device_hours" in result:
            label = result["label"]
            self.hours[label][result["trial_id"]] = result["device_hours"]
            self.epochs[label] += 1
            if result["score"]:
                self.best[label] = max(self.best.get(label, 0.0), result["score"])
        if self.live is not None:
            self.live.update(self._table())
        elif time.monotonic() - self.last_line > LINE_SECONDS:
            self.last_line = time.monotonic()
            self.console.print(self._line())

    def end(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    def _line(self) -> str:
        hours = sum(sum(h.values()) for h in self.hours.values())
        return (
            f"{self._done}/{self._expected} runs done, {len(self.running)} running, "
            f"{hours:.4f} device-hours, {self._left()}"
        )

    def _left(self) -> str:
        """The time left, by the epochs seen so far, in runs under way too."""
        total = (self._expected - self.already) * self.queues[0].study.train.epochs
        seen = sum(self.epochs.values())
        if not seen:
            return "time left unknown"
        left = max(0.0, (time.monotonic() - self.began) * (total / seen - 1))
        return f"about {left / 60:.1f} min left" if left > 60 else f"about {left:.0f} s left"

    def _table(self) -> Table:
        done = Counter((d.run.label, d.outcome) for queue in self.queues for d in queue.done)
        running = Counter(self.running.values())
        table = Table(title=f"{self.queues[0].study.name}: {self._line()}", title_justify="left")
        table.add_column("entry")
        for name in ("done", "failed", "running", "best val. accuracy", "device-hours"):
            table.add_column(name, justify="right")
        for entry in self.queues[0].study.entries:
            label = entry.label
            table.add_row(
                label,
                str(done[label, "finished"] + done[label, "stopped"]),
                str(done[label, "failed"] or ""),
                str(running[label] or ""),
                f"{self.best[label]:.2%}" if label in self.best else "",
                f"{sum(self.hours[label].values()):.4f}" if self.hours[label] else "",
            )
        return table
