"""`autoaug-ray calibrate`, and the calibration that every run begins with."""

import json
import re

import pytest
from command import run_all
from hand import calibrated
from rich.console import Console

from autoaug_ray.commands import calibrate
from autoaug_ray.errors import UserError
from autoaug_ray.schedule import calibration_task
from autoaug_ray.schedule.calibration_task import Fault
from autoaug_ray.store import calibration
from autoaug_ray.store.calibration import KindOfStep, Training
from autoaug_ray.store.folder import Folder

LONG = {"epochs": 120, "batch_size": 32}
"""A training with more steps than five calibrations."""
OUTER, PLAIN = "meta_loss, train_loss", "train_loss"


def training(*kinds, after=0.0):
    """A training of kinds of step: (what is logged, steps of a run, ms, GFLOP) each."""
    return Training(
        after=after,
        kinds=tuple(
            KindOfStep(
                logged=logged, steps=9, in_run=number, q1=ms / 2e3, median=ms / 1e3, q3=ms / 5e2,
                gflop=gflop,
            )
            for logged, number, ms, gflop in kinds
        ),
    )  # fmt: skip


FOUND = calibrated(
    none=(None, training((PLAIN, 100, 10.0, 0.2))),
    near=(None, training((PLAIN, 100, 11.4, 0.2))),
    pixels=(None, training((PLAIN, 100, 12.0, 0.2))),
    colours=(None, training((PLAIN, 100, 15.0, 0.2))),
    bilevel=(None, training((OUTER, 50, 50.0, 0.7), (PLAIN, 50, 10.0, 0.2))),
    finder=(training((PLAIN, 100, 10.0, 0.2), after=1.0), training((PLAIN, 100, 10.0, 0.2))),
    uncounted=(None, training((PLAIN, 100, 30.0, None))),
)


def lines_of(thing):
    console = Console(width=140)
    with console.capture() as said:
        console.print(thing)
    return said.get().splitlines()


def cells(lines, label):
    (line,) = (x for x in lines if x.startswith(f"│ {label} "))
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_the_table_has_clock_and_arithmetic_side_by_side(tiny):
    lines = lines_of(calibrate.step_table(tiny({}), FOUND))
    assert cells(lines, "none") == [
        "none", PLAIN, "100", "10.00", "5.00-20.00", "0.2", "20.0", "1.00", "1.00", "",
    ]  # fmt: skip
    assert cells(lines, "bilevel")[1:] == [
        OUTER, "50", "50.00", "25.00-100.00", "0.7", "14.0", "3.00", "2.25", "",
    ]  # fmt: skip
    assert cells(lines, "finder, search")[-3:] == ["2.00", "1.00", ""]
    assert cells(lines, "uncounted")[-5:] == ["", "", "3.00", "", ""]


def test_a_difference_is_told_with_its_cause(tiny):
    pixels, passes, after = calibrate.differences(tiny({}), FOUND)
    assert "pixels 1.20 and 1.00, colours 1.50 and 1.00: the counter knows convol" in pixels
    assert "near" not in pixels
    assert "bilevel 3.00 and 2.25: passes" in passes
    assert "14.0 (meta_loss, train_loss) and 20.0 (train_loss) GFLOP/s, none at 20.0" in passes
    assert "finder, search 2.00 and 1.00: what is found after" in after


@pytest.mark.ray
def test_a_run_begins_with_its_calibration(real_study):
    said, folder = real_study.done.stdout, Folder(real_study.root)
    found = calibration.read(folder.calibration)
    assert [e.label for e in found.entries] == ["none", "bilevel", "bilevel learn:off"]
    assert re.search(
        r"^forecast: 6 runs, about [\d.]+ CPU-\w+ of training; the longest, bilevel, about [\d.]+ "
        r"CPU-seconds a run\.$", said, re.MULTILINE,
    )  # fmt: skip
    for row in folder.read_rows():
        assert found.seconds(row["label"], row) > 0 and found.gflop(row["label"], row) > 0
        assert found.entry(row["label"]).threads == row["threads"]


OWN = """
from autoaug_ray.methods.base import Method

class Own(Method):
    name: str
    breaks: bool = False

    def augment(self, state, images, noise, strength=None):
        if self.breaks:
            raise KeyError("this method is broken")
        return images
"""
STUDY = """
dataset: {name: fashion-mnist-mini, train_size: 160, test_size: 60}
model: {name: cnn, width: 2}
train: {epochs: 1, batch_size: 32}
seeds: 1
methods:
  none:
  bilevel: {every: 2, controls: []}
  own: {method: own.py:Own}
cases:
  sound: {}
  broken: {methods.own.breaks: true}
"""


@pytest.mark.ray
def test_the_command_says_what_it_found_in_every_case(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "tiny.yaml").write_text(STUDY)
    done = run_all("calibrate", tmp_path / "tiny.yaml", "--set", "model.width=4")
    assert done.returncode == 1, done.stderr
    assert "tiny, sound: CPU time on CPU; whole runs relative to none" in done.stdout
    for label in ("none", "bilevel", "own"):
        assert f"│ {label} " in done.stdout
    assert "tiny, broken is not calibrated: KeyError: 'this method is broken'." in done.stdout
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def planted(monkeypatch):
    """What comes back from the workers is `planted.outcomes`; what was kept is `planted.kept`."""

    class Planted:
        outcomes = kept = None

        def __call__(self, studies, kept=(), **_):
            self.kept = kept
            return self.outcomes

    planted = Planted()
    monkeypatch.setattr(calibrate, "calibrate_on_workers", planted)
    return planted


def test_a_calibration_that_fails_is_told_and_stops_nothing(tiny, planted, tmp_path):
    study = tiny({}, train=LONG)
    first, second = (study.model_copy(update={"case": case}) for case in ("a", "b"))
    folders = [Folder(tmp_path / case) for case in "ab"]
    said = []
    planted.outcomes = [FOUND, Fault("none: train_loss became nan")]
    calibrate.calibrate_before_runs([first, second], folders, said.append)
    assert planted.kept == [None, None]
    assert calibration.read(folders[0].calibration) == FOUND
    assert not folders[1].calibration.exists()
    assert said == [
        "tiny, b is not calibrated: none: train_loss became nan.",
        "forecast: 1 run, about 1 CPU-seconds of training; the longest, none, about 1 CPU-seconds "
        "a run.",
    ]
    calibrate.calibrate_before_runs([first, second], folders, said.append)
    assert planted.kept == [FOUND, None]


def test_a_study_shorter_than_its_calibration_is_not_held_up_by_it(tiny, planted, tmp_path):
    long, short = tiny({}, train=LONG), tiny({}).model_copy(update={"case": "short"})
    planted.outcomes, said = [FOUND], []
    folders = [Folder(tmp_path / name) for name in ("long", "short")]
    calibrate.calibrate_before_runs([long, short], folders, said.append)
    assert planted.kept == [None]
    assert calibration.read(folders[0].calibration) == FOUND
    assert not folders[1].calibration.exists()
    assert said[0] == (
        "no forecast of tiny, short: the runs are too short for a calibration before them."
    )


def test_a_study_without_runs_left_is_not_calibrated(tiny, planted, tmp_path):
    study, folder = tiny({}, train=LONG), Folder(tmp_path)
    run_key = study.run(study.entry("none"), "final", seed=0, choices={}).key
    folder.outcomes.write_text(json.dumps({"run": run_key, "outcome": "finished"}) + "\n")
    (folder.rows).mkdir()
    (folder.rows / f"{run_key}.parquet").write_bytes(b"")
    calibrate.calibrate_before_runs([study], [folder], pytest.fail)
    assert planted.kept is None


def test_a_case_is_measured_again_only_if_it_must_be(tiny, monkeypatch):
    measured = []
    monkeypatch.setattr(
        calibration_task, "calibrate", lambda study: measured.append(study.case) or FOUND
    )
    a, b, c = (tiny({}).model_copy(update={"case": case}) for case in "abc")
    known = calibrated(none=(None, training((PLAIN, 1, 1.0, 1.0))))
    monkeypatch.setattr(calibration_task, "fits", lambda kept, study: kept is known)

    def work(budget, *kept):
        texts = [study.model_dump_json() for study in (a, b, c)]
        return calibration_task._calibrate(texts, kept, {}, None, a.resources, budget)

    assert work(60.0, known, None, FOUND) == [known, FOUND, FOUND] and measured == ["b", "c"]
    first, second, third = work(0.0, None, known, None)
    assert second is known and "the cases before it" in first.message == third.message


def test_what_is_wrong_in_a_study_stops_it(tiny, monkeypatch):
    def raises(study):
        raise UserError("replay.policy: x is no file.")

    monkeypatch.setattr(calibration_task, "calibrate", raises)
    study = tiny({})
    (fault,) = calibration_task._calibrate(
        [study.model_dump_json()], [None], {}, None, study.resources, 60.0
    )
    assert fault == Fault("replay.policy: x is no file.", wrong_input=True)


def test_nothing_waits_for_a_machine_before_the_trials_are_in_line(tiny, monkeypatch):
    """A machine for the calibration alone would be the only one that starts."""
    monkeypatch.setattr(calibration_task.cluster, "join", lambda: None)
    monkeypatch.setattr(calibration_task, "check_resources", lambda study: None)
    monkeypatch.setattr(calibration_task.cluster, "machines", lambda: [{"CPU": 8.0}, {"GPU": 4.0}])
    study = tiny({}, resources={"gpus": 1})
    (fault,) = calibration_task.calibrate_on_workers([study], wait=False)
    assert fault.message == "no machine is here yet that has what its trials need"
