import json
import subprocess
import sys
import time

import pytest

from autoaug_ray.errors import StorageError
from autoaug_ray.store import meter as m


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_phases_add_up_to_the_time_held():
    clock = Clock()
    meter = m.Meter(clock=clock, share=0.5)
    clock.now += 1
    with meter.phase("search"):
        clock.now += 3
    with meter.phase("eval"):
        clock.now += 2
        assert meter.seconds()["eval"] == 2  # an open phase counts
    clock.now += 4
    others = dict.fromkeys(m.PHASES, 0)
    assert meter.seconds() == others | {"search": 3, "eval": 2, "other": 5}
    assert meter.device_hours()["search"] == pytest.approx(3 * 0.5 / 3600)


def test_attempts_add_up(tmp_path):
    clock = Clock()
    for seconds in (3, 5):
        with m.Meter(tmp_path, key="k", clock=clock, about={"label": "x"}) as meter:
            with meter.phase("final"):
                clock.now += seconds
    assert meter.attempt == 2
    assert meter.device_hours()["final"] == pytest.approx(8 / 3600)
    lines = m.read(tmp_path)
    assert [(line["attempt"], line["seconds"]["final"], line["label"]) for line in lines] == [
        (1, 3, "x"), (2, 5, "x"),
    ]  # fmt: skip


def test_another_run_is_not_charged(tmp_path):
    clock = Clock()
    with m.Meter(tmp_path, key="a", clock=clock) as meter, meter.phase("final"):
        clock.now += 3
    assert m.Meter(tmp_path, key="b", clock=clock).earlier == {}


def test_an_exception_still_costs(tmp_path):
    clock = Clock()
    with pytest.raises(ZeroDivisionError), m.Meter(tmp_path, key="a", clock=clock) as meter:
        with meter.phase("final"):
            clock.now += 3
            raise ZeroDivisionError
    assert m.read(tmp_path)[0]["seconds"]["final"] == 3


def test_kill_9_loses_less_than_a_heartbeat(tmp_path):
    code = f"""
import time
from pathlib import Path
from autoaug_ray.store.meter import Meter
meter = Meter(Path({str(tmp_path)!r}), key="k", heartbeat=0.1)
with meter.phase("final"):
    print("in", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"in\n"
    began = time.monotonic()
    while not (lines := m.read(tmp_path)) or lines[0]["seconds"]["final"] < 0.3:
        assert time.monotonic() - began < 30
        time.sleep(0.05)
    process.kill()
    process.wait()
    process.stdout.close()
    waited = time.monotonic() - began
    assert 0.3 <= m.read(tmp_path)[0]["seconds"]["final"] <= waited + 0.3


def test_a_line_cut_short_does_not_count(tmp_path):
    good = {"run": "k", "seconds": {"final": 1.0}}
    (tmp_path / "k-001-x.jsonl").write_text(json.dumps(good) + "\n" + '{"run": "k", "sec')
    assert m.read(tmp_path) == [good]


def test_what_was_lost_came_after_the_last_checkpoint(tmp_path):
    clock = Clock()
    meter = m.Meter(tmp_path, key="k", clock=clock, share=0.5, heartbeat=1e6)
    clock.now += 10
    meter.keep()
    clock.now += 3
    meter._beat()
    (line,) = m.read(tmp_path)
    assert line["open"] and m.spent(line) == 6.5 and m.in_vain(line) == 1.5
    with meter:
        meter.note(rows=7)
    (line,) = m.read(tmp_path)
    assert not line["open"] and line["rows"] == 7


def test_a_full_disk_costs_no_more_than_the_lines_that_found_no_room(small_disk):
    small_disk.root.joinpath("there").mkdir()
    clock = Clock()
    meter = m.Meter(small_disk.root / "there", key="k", clock=clock, heartbeat=1e6)
    small_disk.fill()
    for _ in range(50):  # until the page that it has already is full
        clock.now += 1
        meter._beat()
    assert sum(m.read(small_disk.root / "there")[0]["seconds"].values()) < 50
    with pytest.raises(StorageError, match="No space left on device"), meter:
        pass
    small_disk.free()
    assert len(m.read(small_disk.root / "there")) == 1
