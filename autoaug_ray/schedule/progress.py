"""The display of a running study: a table that stays in place on a terminal, lines elsewhere."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, NamedTuple

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from autoaug_ray.config import Run
from autoaug_ray.schedule.forecast import forecast, run_counts
from autoaug_ray.schedule.queue import Done, RunQueue
from autoaug_ray.schedule.tune import Watch
from autoaug_ray.store import calibration, meter

LINE_SECONDS = 20.0
"""Between two lines about search trials, which may be thousands."""
FOLDED = {"entry": 14, "now": 18}
"""Columns whose words are folded, and the cells for which others make room."""
DROPPED = ("search", "spent", "now", "left")
"""Columns that go where the terminal is too narrow, in this order."""


@dataclass
class EntryProgress:
    """What is known of an entry's runs, in one case."""

    queue: RunQueue
    label: str
    planned: Mapping[str, int]
    """By phase: search, final."""
    calibrated: Mapping[str, float]
    """Device-hours of one run by phase, if that was measured before the study."""
    hours: dict[str, float] = field(default_factory=dict)
    """Device-hours of each run that has begun, by key, all attempts."""
    ended: Counter[str] = field(default_factory=Counter)
    """Runs by phase."""
    whole: dict[str, list[str]] = field(default_factory=lambda: {"search": [], "final": []})
    """Keys of the runs that did not fail, by phase."""
    failed: int = 0
    accuracies: list[float] = field(default_factory=list)
    """The test accuracies of final trainings, in [0, 1]."""
    running: dict[str, Run] = field(default_factory=dict)
    """By Tune's id of the trial."""
    epochs: dict[str, int] = field(default_factory=dict)
    """Epochs that a run has finished, by key."""
    best: float = 0.0
    """The best validation accuracy of the search, in [0, 1]."""

    def end(self, done: Done) -> None:
        phase = done.run.phase
        self.ended[phase] += 1
        if done.outcome == "failed":
            self.failed += 1
            return
        self.whole[phase].append(done.run.key)
        row = self.queue.last_row(done.run) if phase == "final" else None
        if row is not None and row["test_accuracy"] is not None:
            self.accuracies.append(row["test_accuracy"])

    @property
    def share(self) -> float:
        """The devices that a run holds."""
        need = self.queue.study.resources_of(self.label)
        return need.workers * (need.gpus or need.cpus)

    def run_hours(self, phase: str) -> float | None:
        """Device-hours of one run: as those that have ended, else as the epochs seen so far, else
        by calibration; None if nothing is known."""
        if ended := [self.hours[key] for key in self.whole[phase] if key in self.hours]:
            return fmean(ended)
        begun = [run for run in self.running.values() if run.phase == phase]
        if seen := [
            self.hours[run.key] * run.train.epochs / self.epochs[run.key]
            for run in begun
            if self.epochs.get(run.key) and run.key in self.hours
        ]:
            return fmean(seen)
        return self.calibrated.get(phase)

    def left_of(self, run: Run) -> float:
        """The share of a run that is still to come."""
        return 1 - self.epochs.get(run.key, 0) / run.train.epochs

    def rest(self) -> float | None:
        """Device-hours that are still to come; None if what a run takes is not known."""
        total = 0.0
        for phase, planned in self.planned.items():
            runs = planned - self.ended[phase]
            if phase == "final":
                runs -= self.queue.given_up(self.label)
            if runs <= 0 or self.queue.complete:
                continue
            if (each := self.run_hours(phase)) is None:
                return None
            begun = [run for run in self.running.values() if run.phase == phase]
            total += each * (runs - sum(1 - self.left_of(run) for run in begun))
        return total

    def now(self) -> str:
        """What of it runs."""
        notes = []
        if any(run.phase == "search" for run in self.running.values()):
            best = f", best {100 * self.best:.1f} %" if self.best else ""
            notes.append(f"search {self.ended['search']}/{self.planned['search']}{best}")
        finals = [run for run in self.running.values() if run.phase == "final"]
        for run in sorted(finals, key=lambda run: run.seed):
            notes.append(f"seed {run.seed} {self.epochs.get(run.key, 0)}/{run.train.epochs}")
        return ", ".join(notes)


class Line(NamedTuple):
    """One line of the table: an entry, or all of a case. Device-hours."""

    name: str
    searches: tuple[int, int]
    """Ended and planned, as `seeds`."""
    seeds: tuple[int, int]
    failed: int
    accuracy: float | None
    """Mean over the seeds that have finished, in [0, 1]."""
    spent: float
    left: float | None
    now: str

    @property
    def cells(self) -> dict[str, str]:
        """What stands in the columns, by their headers."""
        return {
            "": ">" if self.now else " ",
            "entry": self.name,
            "search": "{}/{}".format(*self.searches) if self.searches[1] else "",
            "seeds": "{}/{}".format(*self.seeds),
            "failed": str(self.failed or ""),
            "accuracy": "" if self.accuracy is None else f"{100 * self.accuracy:.2f} %",
            "spent": duration(self.spent) if self.spent else "",
            "left": "?" if self.left is None else duration(self.left) if self.left else "",
            "now": self.now,
        }


def table(lines: Sequence[Line], width: int) -> Table:
    """The lines in at most `width` cells, with the columns for which these suffice."""
    rows = [line.cells for line in lines]
    least = {}
    for name in rows[0]:
        if cells := max(cell_len(row[name]) for row in rows):
            least[name] = min(max(cells, cell_len(name)), FOLDED.get(name, width))
    for name in DROPPED:
        if sum(least.values()) + 2 * (len(least) - 1) > width:
            least.pop(name, None)
    out = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in least:
        justify: JustifyMethod = "left" if name in ("", *FOLDED) else "right"
        out.add_column(name, justify=justify, overflow="fold", no_wrap=name not in FOLDED)
    for row in rows:
        out.add_row(*(Text(row[name]) for name in least))
    return out


class View(NamedTuple):
    """The table under a sentence, as wide as the terminal."""

    sentence: str
    lines: Sequence[Line]
    whole: bool = False
    """Also lines for which the terminal is not high enough."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self.sentence)
        lines, room = self.lines, options.max_height - 6
        if len(lines) > room and not self.whole:
            lines = [line for line in lines if line.now][: max(0, room)]
            yield Text(f"{len(self.lines) - len(lines)} lines do not fit on the terminal")
        if lines:
            yield table(lines, options.max_width)


class Progress(Watch):
    """Shows a live table on a terminal, and a line for each change elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.queues: Sequence[RunQueue] = ()
        self.entries: list[dict[str, EntryProgress]] = []
        """By label, for each queue."""
        self.live: Live | None = None
        self.last_line = -LINE_SECONDS
        self.most = 0.0
        """Devices that were held at a time."""
        self.told: list[int] = []
        """How many of the runs that each queue has done are told."""

    def begin(self, queues: Sequence[RunQueue]) -> None:
        self.queues = queues
        self.entries = [_entries_of(queue) for queue in queues]
        self.told = [0] * len(queues)
        for _ in self._news():
            pass
        if already := self._done:
            self.console.print(f"{already} of {self._expected} runs are on disk already.")
        if self.console.is_terminal and not all(queue.complete for queue in queues):
            self.live = Live(self.view(), console=self.console, refresh_per_second=4)
            self.live.start()

    @property
    def _done(self) -> int:
        return sum(len(queue.done) for queue in self.queues)

    @property
    def _expected(self) -> int:
        return sum(queue.expected for queue in self.queues)

    @property
    def _all(self) -> Iterator[EntryProgress]:
        return (entry for entries in self.entries for entry in entries.values())

    def _name(self, entry: EntryProgress) -> str:
        case = entry.queue.study.case
        return f"{case}, {entry.label}" if case and len(self.queues) > 1 else entry.label

    def _news(self) -> Iterator[tuple[EntryProgress, Done]]:
        """The runs that have ended since this was asked before."""
        for i, queue in enumerate(self.queues):
            for done in queue.done[self.told[i] :]:
                self.told[i] += 1
                entry = self.entries[i][done.run.label]
                entry.end(done)
                yield entry, done

    def started(self, queue: RunQueue, run: Run, trial_id: str) -> None:
        entry = self.entries[list(self.queues).index(queue)][run.label]
        first = not (entry.running or entry.ended)
        entry.running[trial_id] = run
        held = sum(entry.share * len(entry.running) for entry in self._all)
        self.most = max(self.most, held)
        if self.live is None and first:
            self._say(f"{self._name(entry)} begins")
        self._draw()

    def lost(self, label: str, trial_id: str, epoch: int) -> None:
        self._forget(trial_id)
        self.console.print(
            f"{label}: lost a process, or its machine, after epoch {epoch} of a run; going on from "
            "the last checkpoint",
            style="yellow", markup=False,
        )  # fmt: skip

    def ended(self, trial_id: str) -> None:
        self._forget(trial_id)
        self.update()

    def _forget(self, trial_id: str) -> None:
        for entry in self._all:
            entry.running.pop(trial_id, None)

    def update(self, result: Mapping[str, Any] | None = None) -> None:
        if result is not None and "device_hours" in result:
            for entry in self._all:
                if (run := entry.running.get(result["trial_id"])) is not None:
                    entry.hours[run.key] = result["device_hours"]
                    entry.epochs[run.key] = result["epoch"]
                    entry.best = max(entry.best, result["score"] or 0.0)
        self._tell()
        self._draw()

    def end(self) -> None:
        self._tell()
        if self.live is not None:
            self.live.update(self.view()._replace(whole=True))
            self.live.stop()
            self.live = None

    def _draw(self) -> None:
        if self.live is not None:
            self.live.update(self.view())

    def _tell(self) -> None:
        """A line for each training that has ended, and now and then for search trials."""
        for entry, done in self._news():
            if self.live is not None:
                continue
            if done.outcome == "failed":
                why = (done.error or "").strip().splitlines()
                what = f"{_of(done.run)} failed{''.join(f': {line}' for line in why[-1:])}"
            elif done.run.phase == "final":
                accuracy = entry.accuracies[-1:]
                what = f"{_of(done.run)} has finished"
                what += f", {100 * accuracy[0]:.2f} %" if accuracy else ""
            else:
                ended, planned = entry.ended["search"], entry.planned["search"]
                if ended < planned and time.monotonic() - self.last_line < LINE_SECONDS:
                    continue
                best = f", best {100 * entry.best:.2f} %" if entry.best else ""
                what = f"{ended}/{planned} search trials{best}"
            self._say(f"{self._name(entry)}: {what}")

    def _say(self, what: str) -> None:
        self.last_line = time.monotonic()
        self.console.print(f"{what}; {self._sentence()}", markup=False, soft_wrap=True)

    def _sentence(self) -> str:
        spent = sum(sum(entry.hours.values()) for entry in self._all)
        running = sum(len(entry.running) for entry in self._all)
        counts = f"{self._done}/{self._expected} runs done"
        if all(queue.complete for queue in self.queues):
            return f"{counts}, {duration(spent)} of device time"
        return f"{counts}, {running} running, {duration(spent)} of device time, {self.time_left()}"

    def time_left(self) -> str:
        """By the clock on the wall, if as many devices go on as were held at most."""
        rests = [entry.rest() for entry in self._all]
        known = [rest for rest in rests if rest is not None]
        longest = 0.0
        for entry in self._all:
            for run in entry.running.values():
                each = entry.run_hours(run.phase) or 0.0
                longest = max(longest, each * entry.left_of(run) / entry.share)
        hours = max(sum(known) / self.most, longest) if self.most else 0.0
        if not hours:
            return "time left unknown"
        return f"{'about' if len(known) == len(rests) else 'more than'} {duration(hours)} left"

    def view(self) -> View:
        """The table as it is now: cases without running trainings are a line each."""
        lines: list[Line] = []
        for queue, entries in zip(self.queues, self.entries, strict=True):
            own = [_line(entry) for entry in entries.values()]
            if len(self.queues) == 1:
                lines += own
                continue
            lines.append(_sum(own, queue.study.case or queue.study.name))
            if any(line.now for line in own):
                lines += [line._replace(name=f"  {line.name}") for line in own]
        return View(f"{self.queues[0].study.name}: {self._sentence()}", lines)


def _entries_of(queue: RunQueue) -> dict[str, EntryProgress]:
    """The entries of a study, with what its folder knows of their costs."""
    study, folder = queue.study, queue.folder
    found = calibration.read(folder.calibration)
    forecasts = {f.label: f for f in forecast(study, found)} if found else {}
    entries = {}
    for one in study.entries:
        known = {}
        if (expected := forecasts.get(one.label)) is not None:
            known = {
                "search": expected.search_run_seconds / 3600,
                "final": expected.final_run_seconds / 3600,
            }
        searches, finals = run_counts(study, one)
        planned = {"search": searches, "final": finals}
        entries[one.label] = EntryProgress(queue, one.label, planned, known)
    for line in meter.read(folder.ledger):
        if line["label"] in entries:
            hours = entries[line["label"]].hours
            hours[line["run"]] = hours.get(line["run"], 0.0) + meter.spent(line) / 3600
    return entries


def _of(run: Run) -> str:
    return f"seed {run.seed}" if run.phase == "final" else f"a search trial, seed {run.seed},"


def _line(entry: EntryProgress) -> Line:
    return Line(
        entry.label,
        (entry.ended["search"], entry.planned["search"]),
        (len(entry.whole["final"]), entry.planned["final"]),
        entry.failed,
        fmean(entry.accuracies) if entry.accuracies else None,
        sum(entry.hours.values()),
        entry.rest(),
        entry.now(),
    )


def _sum(lines: Sequence[Line], name: str) -> Line:
    """All entries of a case; accuracies of different entries have no mean."""
    lefts = [line.left for line in lines if line.left is not None]
    return Line(
        name,
        (sum(line.searches[0] for line in lines), sum(line.searches[1] for line in lines)),
        (sum(line.seeds[0] for line in lines), sum(line.seeds[1] for line in lines)),
        sum(line.failed for line in lines),
        None,
        sum(line.spent for line in lines),
        sum(lefts) if len(lefts) == len(lines) else None,
        "",
    )


def duration(hours: float) -> str:
    for size, unit in ((1.0, "h"), (1 / 60, "min")):
        if hours >= 2 * size:
            amount = hours / size
            return f"{amount:.1f} {unit}" if amount < 10 else f"{amount:.0f} {unit}"
    return f"{3600 * hours:.0f} s"
