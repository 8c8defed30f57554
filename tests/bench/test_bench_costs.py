"""Costs run several times, and the neighbours beside them."""

import itertools
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hand import Hand

from autoaug_ray import load_results, train
from autoaug_ray.bench import __main__ as command
from autoaug_ray.bench import meter, tune
from autoaug_ray.bench.costs import costs
from autoaug_ray.bench.neighbours import beside
from autoaug_ray.errors import UserError
from autoaug_ray.settings.dataset import Dataset
from autoaug_ray.settings.training import Training

SMALL = Dataset(name="fashion-mnist-mini", train_size=160, test_size=20)


def study(root, seconds, **changes):
    """A study whose finals were billed so many seconds: `study(root, {"none": 10})`."""
    root.mkdir(parents=True)
    hand = Hand(root, **changes)
    (root / "study.json").write_text(hand.study.model_dump_json())
    for label, one in seconds.items():
        hand.finals(label, 0.5, 0.5, 0.5, seconds=(one,))
    return str(root)


def test_the_farthest_cost_is_said_of_each_entry(tmp_path, capsys):
    billed = [(10, 30), (10, 24), (20, 50)]
    folders = [
        study(tmp_path / str(i), {"none": none, "bilevel": bilevel})
        for i, (none, bilevel) in enumerate(billed)
    ]
    out = tmp_path / "costs.json"
    assert command.main(["costs", "--folders", ", ".join(folders), "--json", str(out)]) == 0
    figures, printed = json.loads(out.read_text()), capsys.readouterr().out
    by_label = {one["label"]: one for one in figures["entries"]}
    none, searched, bilevel = (by_label[label] for label in ("none", "randaugment", "bilevel"))
    assert none["billed"] == {"values": [1.0] * 3, "median": 1.0, "deviation": 0.0}
    assert bilevel["billed"]["values"] == [3.0, 2.4, 2.5] and bilevel["billed"]["median"] == 2.5
    assert bilevel["billed"]["deviation"] == pytest.approx(0.2)
    assert searched["billed"] == {"values": [None] * 3, "median": None, "deviation": None}
    assert figures["largest"]["billed"] == pytest.approx(0.2) and "20.0%" in printed
    assert bilevel["cost"]["values"] == [
        load_results(folder).by_label["bilevel"].relative_cost for folder in folders
    ]


def test_other_folders_are_refused(tmp_path):
    one = study(tmp_path / "one", {"none": 10})
    other = study(tmp_path / "other", {"none": 10}, seeds=2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="hold different studies: they differ in seeds"):
        costs(folders=f"{one},{other}")
    with pytest.raises(UserError, match=r"empty holds no study\.json"):
        costs(folders=f"{one},{tmp_path / 'empty'}")
    with pytest.raises(UserError, match="--folders must name two folders at least"):
        costs(folders=one)


def test_cases_are_compared_with_their_like(tmp_path):
    for run, seconds in (("a", 20), ("b", 30)):
        for case in ("few", "many"):
            taken = {"none": 10, "bilevel": seconds if case == "many" else 40}
            study(tmp_path / run / case, taken, case=case)
    found = costs(folders=f"{tmp_path / 'a'},{tmp_path / 'b'}").figures["entries"]
    billed = {(one["case"], one["label"]): one["billed"]["values"] for one in found}
    assert billed["few", "bilevel"] == [4, 4] and billed["many", "bilevel"] == [2, 3]


def test_a_command_beside_neighbours_keeps_its_status(tmp_path, capsys):
    out = tmp_path / "n.json"
    arguments = ["neighbours", "--count", "1", "--megabytes", "1", "--json", str(out), "--command"]
    assert command.main([*arguments, "sh -c 'exit 7'"]) == 7
    figures = json.loads(out.read_text())
    assert figures["command"] == ["sh", "-c", "exit 7"] and figures["status"] == 7
    assert command.main([*arguments, "sh -c 'kill -9 $$'"]) == 128 + 9
    capsys.readouterr()
    assert command.main([*arguments, "nonesuch"]) == 2
    assert "--command nonesuch cannot be run (No such file" in capsys.readouterr().err
    assert command.main([*arguments, "a 'b"]) == 2
    assert "cannot be read as words" in capsys.readouterr().err


def stat(pid):
    """(state, CPU ticks) of a process as Linux has it; None if there is none."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return None
    return words[0], int(words[11]) + int(words[12])


def wait_until(done, seconds=60):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks Linux about processes")
def test_neighbours_are_busy_and_say_so():
    with beside(2, 1) as both:
        before = [stat(one.pid)[1] for one in both]
        wait_until(lambda: all(stat(n.pid)[1] >= b + 5 for n, b in zip(both, before, strict=True)))
        used = [one.end() for one in both]
    for one in used:  # five ticks, of which the first may be older
        assert 0.03 < one["cpu_seconds"]
    assert [stat(one.pid) for one in both] == [None, None]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks Linux about processes")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_neighbours_end_with_the_process_that_keeps_them(number):
    arguments = ["-m", "autoaug_ray.bench", "neighbours", "--count", "2", "--megabytes", "1"]
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, text=True,
        # A shell lets its background jobs, such as these tests may be, ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    with process:
        try:
            pids = re.findall(r"\d+", process.stdout.readline())
            assert len(pids) == 2
        finally:
            process.send_signal(number)
        printed = process.stdout.read()
    assert process.returncode == (0 if number == signal.SIGINT else -9)
    assert ("CPU seconds" in printed) == (number == signal.SIGINT)
    wait_until(lambda: all(stat(pid) is None or stat(pid)[0] == "Z" for pid in pids))


def test_what_it_adds_to_measure(tmp_path, capsys, monkeypatch):
    """With a clock for the process that ticks whenever it is read: by marks, and by the loop."""
    for bench in (meter, tune):
        monkeypatch.setattr(bench, "DATASET", SMALL)
    monkeypatch.setattr(train, "WARM", set())
    reads = itertools.count()
    monkeypatch.setattr(time, "process_time", lambda: float(next(reads)))
    out = tmp_path / "m.json"
    assert command.main(["meter", "--seconds", "0.01", "--rounds", "2", "--json", str(out)]) == 0
    figures, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert figures["epochs"] == 1 and len(train.WARM) == 1
    plain, marks, both = figures["seconds"].values()
    steps = SMALL.train_size // Training().batch_size
    assert plain == [1.0, 1.0] and marks[0] == marks[1] >= 1 + steps
    assert both[0] == both[1] > marks[0], "a warm-up has marks of its own"
    assert figures["overhead"]["marks"] == [marks[0] - 1] * 2
    assert figures["warm_up_seconds"] == both[0] - marks[0] + 1  # the clock's own tick
    by_parts = figures["parts"]["marks and warm-up"] - figures["parts"]["marks"]
    assert by_parts == pytest.approx(figures["warm_up_seconds"])
    assert "above the aim of 2%" in " ".join(printed.split())
