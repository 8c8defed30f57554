"""What a running study shows; its queues are real, what Tune would tell is told by hand."""

import io
import logging
import re
import sys
import time
from types import SimpleNamespace

import pytest
from hand import Hand, calibrated
from rich.console import Console

from autoaug_ray.schedule import progress
from autoaug_ray.schedule.progress import Line, Progress, View, duration
from autoaug_ray.schedule.queue import queues_of
from autoaug_ray.schedule.tune import draw
from autoaug_ray.store import calibration
from autoaug_ray.store.calibration import KindOfStep, Training

LONG = "a learned policy [red]of[/] 大 names"


METHODS = {
    "none": {},
    "randaugment": {"magnitude": {"grid": [5, 9]}},
    "bilevel": {"every": 2, "until": 1.0, "group": "translation", "controls": []},
}


class Play:
    """A study whose runs start, report and end as a test says."""

    def __init__(self, root, console, cases=("one",), methods=METHODS, **changes):
        changes |= {"methods": methods}
        self.hands = [Hand(root / case, case=case, **changes) for case in cases]
        self.watch = Progress(console)
        self.trials = {}

    def begin(self):
        self.queues = queues_of([(hand.study, hand.folder) for hand in self.hands], draw)
        self.watch.begin(self.queues)

    def start(self):
        """The next run, as Tune starts it."""
        queue = next(queue for queue in self.queues if queue.queue)
        run = queue.next()
        trial_id = f"t{len(self.trials)}"
        hand = self.hands[self.queues.index(queue)]
        self.trials[trial_id] = SimpleNamespace(queue=queue, run=run, hand=hand)
        self.watch.started(queue, run, trial_id)
        return trial_id

    def report(self, trial_id, epoch, hours, score=0.0):
        told = {"trial_id": trial_id, "epoch": epoch, "device_hours": hours, "score": score}
        self.watch.update({"label": self.trials[trial_id].run.label, **told})

    def end(self, trial_id, accuracy=None, error=None):
        queue, run, hand = vars(self.trials[trial_id]).values()
        if error is None:
            choices = {"magnitude": run.method.magnitude} if run.phase == "search" else {}
            if run.label == "randaugment" and run.phase == "final":
                choices = {"magnitude": run.method.magnitude}
            hand.run(run.label, run.phase, run.seed, accuracy=accuracy, index=run.index,
                     choices=choices)  # fmt: skip
            (hand.folder.ledger / f"{run.key}-001.jsonl").unlink()
        queue.settle(run, "failed" if error else "finished", error)
        self.watch.ended(trial_id)


def console(width, **more):
    return Console(file=io.StringIO(), width=width, height=50, color_system=None, **more)


def shown(view, width):
    one = console(width)
    one.print(view)
    return one.file.getvalue()


@pytest.fixture
def play(tmp_path):
    made = Play(tmp_path, console(120), seeds=2)
    made.begin()
    return made


def lines_of(play):
    return {line.name: line for line in play.watch.view().lines}


def test_a_row_has_what_its_entry_has_done_what_it_does_and_what_is_to_come(play):
    a, b = play.start(), play.start()  # the two search trials
    assert lines_of(play)["randaugment"].now == "search 0/2"
    assert {line.left for line in lines_of(play).values()} == {None}
    assert "time left unknown" in play.watch.view().sentence
    play.report(a, 2, 0.5, score=0.625)
    play.end(a, accuracy=0.625)
    play.report(b, 1, 0.25, score=0.5)
    found = lines_of(play)["randaugment"]
    assert found[:5] == ("randaugment", (1, 2), (0, 2), 0, None)
    assert found.spent == 0.75 and found.now == "search 1/2, best 62.5 %"
    assert found.left is None, "nobody knows what its final trainings take"
    play.end(b, accuracy=0.5)
    c, d = play.start(), play.start()
    assert [play.trials[t].run.label for t in (c, d)] == ["none", "bilevel"]
    play.report(c, 2, 1.0)
    play.end(c, accuracy=0.75)
    e = play.start()
    play.report(d, 1, 1.5)
    play.report(e, 1, 0.125)
    none, randaugment, bilevel = lines_of(play).values()
    assert none == Line("none", (0, 0), (1, 2), 0, 0.75, 1.0, 1.0, "")
    assert randaugment.now == "seed 0 1/2" and bilevel.now == "seed 0 1/2"
    assert randaugment.left == 0.25 * (2 - 0.5) and bilevel.left == 3.0 * (2 - 0.5)
    # Two devices at a time for 1 + 0.375 + 4.5 device-hours.
    assert play.watch.view().sentence == (
        "hand: 3/8 runs done, 2 running, 3.4 h of device time, about 2.9 h left"
    )
    play.report(d, 2, 30.0)
    play.end(d, error="Traceback\n  File x\nRunError: no gradient [0]")
    assert lines_of(play)["bilevel"][2:5] == ((0, 2), 1, None)


def test_the_mean_is_over_the_seeds_that_have_finished(play):
    for trial_id in (play.start(), play.start()):
        play.end(trial_id, accuracy=0.5)
    for accuracy in (0.75, 0.5, 0.25, 0.25, 0.75, 0.5):
        play.end(play.start(), accuracy=accuracy)
    assert {n: x.accuracy for n, x in lines_of(play).items()} == {
        "none": 0.5, "randaugment": 0.375, "bilevel": 0.625,
    }  # fmt: skip
    said = play.watch.console.file.getvalue().splitlines()
    assert len(said) == 3 + 1 + 6, "three begin, one has searched, six trainings end"
    assert said[0].startswith("randaugment begins; 0/8 runs done, 1 running")
    assert said[-1].startswith("randaugment: seed 1 has finished, 50.00 %; 8/8 runs done, ")


def test_a_failure_is_a_line_with_its_reason(play):
    play.end(play.start(), error="Traceback\n  File x\nRunError: no gradient [0]")
    (_, line) = play.watch.console.file.getvalue().splitlines()
    assert line.startswith(
        "randaugment: a search trial, seed 0, failed: RunError: no gradient [0]; 1/8 runs"
    )


def test_thousands_of_search_trials_are_no_thousands_of_lines(tmp_path, monkeypatch):
    methods = {"none": {}, "randaugment": {"magnitude": {"grid": list(range(1, 17))}}}
    play = Play(tmp_path, console(120), seeds=1, methods=methods)
    play.begin()
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    for _ in range(16):
        play.end(play.start(), accuracy=0.5)
        clock.now += 3
    said = [x.split(";")[0] for x in play.watch.console.file.getvalue().splitlines()]
    assert said == ["randaugment begins", *(
        f"randaugment: {n}/16 search trials" for n in (8, 15, 16)
    )]  # fmt: skip


def test_calibration_is_what_is_known_before_a_run_has_ended(tmp_path):
    play = Play(tmp_path, console(120), seeds=2)
    kind = KindOfStep(logged="train_loss", steps=9, in_run=10, q1=0, median=36, q3=9, gflop=None)
    hour = Training(kinds=(kind,), after=0.0)
    tenth = calibrated(none=(None, hour), randaugment=(None, hour))
    calibration.write(play.hands[0].folder.calibration, tenth)
    play.begin()
    found = lines_of(play)
    assert found["none"].left == pytest.approx(0.2)
    assert found["randaugment"].left == pytest.approx(0.4) and found["bilevel"].left is None
    play.start()
    assert "more than 36 min left" in play.watch.view().sentence


def test_what_is_on_disk_already_counts(tmp_path):
    play = Play(tmp_path, console(120), seeds=2)
    play.hands[0].finals("none", 0.25, 0.5, seconds=(2500.0,))  # and 1100 besides
    play.begin()
    none = lines_of(play)["none"]
    assert none == Line("none", (0, 0), (2, 2), 0, 0.375, 2.0, 0.0, "")
    assert play.watch.console.file.getvalue() == "2 of 8 runs are on disk already.\n"


def test_cases_in_which_nothing_runs_are_a_line_each(tmp_path):
    play = Play(tmp_path, console(120), cases=("a", "b"), seeds=1)
    play.begin()
    play.start()
    names = [line.name for line in play.watch.view().lines]
    assert names == ["a", "  none", "  randaugment", "  bilevel", "b"]
    assert play.watch.view().lines[4][1:3] == ((0, 2), (0, 3))
    assert "a, randaugment begins" in play.watch.console.file.getvalue()


LINES = [
    Line("none", (0, 0), (3, 3), 0, 0.6517, 0.02, 0.0, ""),
    Line(LONG, (64, 64), (1, 3), 1, 0.7238, 12.345, 1.5, "seed 1 12/60, seed 2 3/60"),
    Line("randaugment", (12, 64), (0, 3), 0, None, 0.5, None, "search 12/64, best 61.5 %"),
]


@pytest.mark.parametrize(
    "width, headers",
    [
        (120, "entry search seeds failed accuracy spent left now"),
        (80, "entry seeds failed accuracy spent left now"),
        (60, "entry seeds failed accuracy left"),
        (40, "entry seeds failed accuracy"),
    ],
)
def test_it_is_readable_at_every_width(width, headers):
    text = shown(View("mine: 16/130 runs done, about 1.5 h left", LINES), width)
    rows = text.splitlines()
    assert max(map(progress.cell_len, rows)) <= width
    head = next(i for i, row in enumerate(rows) if "entry" in row)
    assert rows[head].split() == headers.split()
    assert "65.17 %" in text and "72.38 %" in text and "3/3" in text
    at = rows[head].index("entry")
    end = rows[head].index("search" if width == 120 else "seeds")
    assert at == 3, "a mark of what runs stands before it"
    name = "".join(row[at:end].rstrip() for row in rows[head + 3 : -1] if "randaugment" not in row)
    squeezed = re.sub(r"\s", "", name)
    assert re.sub(r"\s", "", LONG) in squeezed, "folded, not cut, and no markup"
    marked = [row[at:].split()[0] for row in rows[head + 2 :] if row.startswith(">")]
    assert marked == ["a", "randaugment"]


def test_lines_that_do_not_fit_on_the_terminal_are_counted_until_the_end():
    many = [LINES[0]] * 60 + [LINES[2]]
    text = shown(View("mine", many), 80)
    assert "60 lines do not fit on the terminal" in text and "randaugment" in text
    assert text.count("\n") < 50
    assert shown(View("mine", many, whole=True), 80).count("none") == 60


def test_what_is_printed_meanwhile_stands_above_the_table(tmp_path, capsys, monkeypatch):
    terminal = console(80, force_terminal=True)
    play = Play(tmp_path, terminal, seeds=1)
    play.begin()
    trial_id = play.start()
    before = len(terminal.file.getvalue())
    print("a warning [red]", file=sys.stderr)
    logging.lastResort.emit(logging.makeLogRecord({"msg": "as Ray logs: %s", "args": ("[/]",)}))
    print("printed [bold]")
    play.watch.console.print("W&B: said", markup=False)
    written = terminal.file.getvalue()[before:]
    play.end(trial_id, accuracy=0.5)
    play.watch.end()
    for words in ("a warning [red]", "as Ray logs: [/]", "printed [bold]", "W&B: said"):
        (line,) = (x for x in re.split("[\n\r]", written) if words in x)
        assert line.endswith(words), "nothing of the table behind it"
        assert written.index(words) < written.rindex("entry")
    assert capsys.readouterr() == ("", "")
    assert sys.stderr is not None and play.watch.live is None


@pytest.mark.parametrize(
    "hours, words",
    [
        (0.0, "0 s"),
        (90 / 3600, "90 s"),
        (0.05, "3.0 min"),
        (0.5, "30 min"),
        (2.25, "2.2 h"),
        (250, "250 h"),
    ],
)
def test_durations_have_the_unit_that_suits_them(hours, words):
    assert duration(hours) == words


def test_drawing_a_thousand_trials_takes_no_time(tmp_path):
    play = Play(tmp_path, console(120), seeds=1)
    play.begin()
    entry = play.watch.entries[0]["randaugment"]
    entry.hours = {str(i): 0.1 for i in range(1000)}
    entry.whole["search"] = list(entry.hours)
    began = time.process_time()
    for _ in range(20):
        play.watch.view()
    assert (time.process_time() - began) / 20 < 0.01
