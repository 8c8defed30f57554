"""A method whose step is a busy loop of known length must cost what arithmetic says."""

import os
import signal
import time

import pytest

from autoaug_ray import config, own_code, train
from autoaug_ray.bench.faults import meanwhile
from autoaug_ray.bench.neighbours import beside
from autoaug_ray.report.results import collect
from autoaug_ray.schedule import cluster, tune
from autoaug_ray.store import meter as m
from autoaug_ray.store.folder import Folder

BUSY = """
import time

from pydantic import Field

from autoaug_ray.methods.base import Method


class Busy(Method):
    seconds: float = Field(0.02, gt=0)

    def augment(self, state, images, noise, strength=None):
        return images

    def step(self, learner, batch, next_meta, state):
        begin = time.process_time()
        logs = super().step(learner, batch, next_meta, state)
        while time.process_time() - begin < self.seconds:
            pass
        return logs
"""
STUDY = """
dataset: {{name: fashion-mnist-mini, train_size: 160, test_size: 60}}
model: {{width: 2}}
train: {{epochs: {epochs}, batch_size: 8, iters_per_epoch: {steps}, lr: 0.01}}
seeds: {seeds}
reference: short
methods:
  none:
  short: {{method: busy.py:Busy, seconds: {short}}}
  long: {{method: busy.py:Busy, seconds: {long}}}
"""


@pytest.fixture
def busy(tmp_path, monkeypatch):
    """A study with steps of two known lengths: `busy(short=0.02, long=0.05, ...)`."""
    monkeypatch.setattr(own_code, "_known", {})
    monkeypatch.setattr(train, "WARM", set())

    def make(**numbers):
        (tmp_path / "busy.py").write_text(BUSY)
        (tmp_path / "busy.yaml").write_text(STUDY.format(**numbers))
        (study,) = config.load(tmp_path / "busy.yaml")
        return study

    return make


TICK = 2**-10  # seconds; sums of them are exact


class Killed(BaseException):
    pass


class Ticks:
    """CPU time of which a tick passes whenever it is read, and no other clock."""

    def __init__(self):
        self.now, self.dies_at, self.heartbeat = 0, None, None

    def __call__(self):
        self.now += 1
        if self.now == self.dies_at:
            self.heartbeat()  # the last line that gets into the ledger
            raise Killed
        return self.now * TICK

    def wall(self):
        return self.now * TICK


@pytest.fixture
def ticks(monkeypatch):
    made = Ticks()
    monkeypatch.setattr(time, "process_time", made)
    return made


def attempt(folder, run, ticks, dies_at=None):
    """What schedule.trial does, with a checkpoint after every other epoch.

    It dies after so many ticks of its own: then the ledger's file stays open, as SIGKILL leaves it.
    """
    saved = folder.load_checkpoint(run.key)
    rows = saved["rows"] if saved else []
    meter = m.Meter(
        folder.ledger, key=run.key, clock=ticks.wall, heartbeat=1e6,
        about={"label": run.label, "phase": run.phase, "seed": run.seed},
    )  # fmt: skip
    ticks.heartbeat, ticks.dies_at = meter._beat, dies_at and ticks.now + dies_at
    try:
        for row, snapshot in train.run(run, meter, saved):
            rows.append(row)
            folder.write_rows(run.key, rows)
            if row["finished"]:
                folder.drop_checkpoint(run.key)
            elif row["epoch"] % 2 == 0:
                folder.save_checkpoint(run.key, snapshot() | {"rows": rows})
                meter.keep()
        meter.__exit__()
    except Killed:
        meter._stop.set()  # its thread, which would live on here
    return rows


def final(study, label, seed=0):
    return study.run(study.entry(label), "final", seed=seed, choices={})


def lines_of(folder, run):
    return [line for line in m.read(folder.ledger) if line["run"] == run.key]


EPOCHS, STEPS, SHORT, LONG = 6, 4, 16, 40  # the last two in ticks


def step(length):
    """Ticks of a step: the loop's, one as it begins, and the mark that ends it."""
    return length + 2


def epoch(length):
    """Ticks of an epoch's steps, with its first mark and the phase's last."""
    return STEPS * step(length) + 2


@pytest.fixture
def made(busy):
    return busy(epochs=EPOCHS, steps=STEPS, seeds=1, short=SHORT * TICK, long=LONG * TICK)


def rows_by_arithmetic(rows, length):
    assert [row["epoch"] for row in rows] == list(range(1, EPOCHS + 1))
    for row in rows:
        assert row["work"] == STEPS * step(length) * TICK
        (kind,) = row["step_work"]
        assert kind["steps"] == STEPS
        assert kind["q1"] == kind["median"] == kind["q3"] == step(length) * TICK


def test_a_whole_training_is_charged_its_arithmetic(made, tmp_path, ticks):
    folder = Folder(tmp_path / "runs")
    for label, length in (("short", SHORT), ("long", LONG)):
        run = final(made, label)
        rows_by_arithmetic(attempt(folder, run, ticks), length)
        lines = lines_of(folder, run)
        assert m.work(lines, m.TRAINING) == EPOCHS * epoch(length) * TICK
        # Two ticks are the phase's own marks. Steps of this kind are warm for the second run.
        assert (m.work(lines, ("warm_up",)) > 2 * TICK) == (label == "short")


@pytest.mark.parametrize("deaths", [[2.5], [3.5], [0.5], [2.5, 1.5], [4.25, 0.25, 1.0]])
def test_a_training_that_was_killed_is_charged_the_same_and_the_rest_is_lost(
    made, tmp_path, ticks, deaths
):
    """Deaths after so many epochs of an attempt; a checkpoint follows each second one."""
    folder, run = Folder(tmp_path / "runs"), final(made, "long")
    train.warm_up(run, m.Meter().device, train.load_data(run, m.Meter().device, None))
    for epochs in deaths:
        attempt(folder, run, ticks, dies_at=round(epochs * epoch(LONG)))
    rows_by_arithmetic(attempt(folder, run, ticks), LONG)
    lines = lines_of(folder, run)
    assert [line["open"] for line in lines] == [True] * len(deaths) + [False]
    assert m.work(lines, m.TRAINING) == EPOCHS * epoch(LONG) * TICK
    everything = sum(line["work"].get("final", 0.0) for line in lines)
    assert (everything > EPOCHS * epoch(LONG) * TICK) == any(e % 2 > 1 for e in deaths)

    entry = collect(made, folder).by_label["long"]
    assert entry.lost_attempts == len(deaths)
    lost = sum(m.spent(line) - line["kept"] for line in lines[:-1])
    assert entry.lost_device_hours * 3600 == pytest.approx(lost, rel=1e-12)
    assert lost > 0.24 * sum(epochs % 2 for epochs in deaths) * epoch(LONG) * TICK


@pytest.mark.ray
@pytest.mark.nightly
def test_a_busy_loop_costs_its_length_beside_neighbours_and_killed(busy, tmp_path, capsys):
    """By a real clock, in Ray's processes: one run of each is killed (SIGKILL) within an epoch."""
    short, long, epochs, steps = 0.04, 0.1, 8, 15
    made = busy(epochs=epochs, steps=steps, seeds=2, short=short, long=long)
    folder = Folder(tmp_path / "runs")
    doomed = {final(made, label, seed=1).key for label in ("short", "long")}

    def kill():
        for line in m.read(folder.ledger):
            within = len(folder.read_rows(line["run"])) >= 3 and line["seconds"]["final"] > 0
            if line["run"] in doomed and line["open"] and within:
                time.sleep(steps * short / 2)
                os.kill(line["pid"], signal.SIGKILL)
                doomed.discard(line["run"])
        return not doomed

    cluster.join(2)
    with beside(1, 64), meanwhile(kill):
        (queue,) = tune.execute([(made, folder)], tune.Watch())
    assert {done.outcome for done in queue.done} == {"finished"} and not doomed

    spent = {}
    for label, seconds in (("short", short), ("long", long)):
        for seed in made.seeds:
            run = final(made, label, seed)
            rows = folder.read_rows(run.key)
            spent[label, seed] = m.work(lines_of(folder, run), m.TRAINING)
            for found in (spent[label, seed], sum(row["work"] for row in rows)):
                assert found == pytest.approx(epochs * steps * seconds, rel=0.02)
    results = collect(made, folder)
    with capsys.disabled():
        for seed in made.seeds:
            ratio = spent["long", seed] / spent["short", seed]
            print(f"\nseed {seed}: {ratio:.4f} by the ledger; {long / short} by arithmetic", end="")
        print(f"\nrelative cost: {results.by_label['long'].relative_cost:.4f}")
    for label in ("short", "long"):
        entry = results.by_label[label]
        assert entry.lost_attempts == 1 and entry.lost_device_hours > 0
    assert results.by_label["long"].relative_cost == pytest.approx(long / short, rel=0.02)
