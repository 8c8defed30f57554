"""What W&B is given: read back from its own files, or taken in by a server on loopback."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import wandb_files

from autoaug_ray.commands import main
from autoaug_ray.report.track import Target, Tracker, tracking
from autoaug_ray.report.wandb import WandB
from autoaug_ray.store.folder import Folder

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]
KEY = "planted0" * 5
AGENT = {"WANDB_RUN_ID": "agent", "WANDB_SWEEP_ID": "sweep", "WANDB_NAME": "agent"}
OFFLINE, ONLINE = Target("wandb", "offline"), Target("wandb", "online")
STUDY = """
dataset: {name: fashion-mnist-mini, train_size: 160, test_size: 60}
model: {name: cnn, width: 4}
train: {epochs: 2, batch_size: 32}
seeds: 1
methods:
  none:
  random: {method: validated_magnitude, magnitude: {grid: [0, 0.5]}}
  bilevel: {group: translation, every: 2}
"""


def closed_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run_all(*arguments, **variables):
    environment = {k: v for k, v in os.environ.items() if k != "WANDB_MODE"} | variables
    return subprocess.run(
        [sys.executable, str(ROOT / "run_all.py"), *map(str, arguments)],
        capture_output=True, text=True, timeout=400, env=environment,
    )  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study while W&B is out, then with one more seed, no key, and as `wandb agent` would start
    it; (folder, outputs)."""
    place = tmp_path_factory.mktemp("track")
    (place / "small.yaml").write_text(STUDY)
    command = [place / "small.yaml", "--out", place / "runs"]
    nowhere = f"http://127.0.0.1:{closed_port()}"
    out = run_all(*command, WANDB_API_KEY=KEY, WANDB_BASE_URL=nowhere, WANDB_INIT_TIMEOUT="3")
    first = wandb_files.runs(place / "runs" / "small")
    resumed = run_all(*command, "--resume", "--seeds", "2", **AGENT)
    return Folder(place / "runs" / "small"), first, out, resumed


@pytest.fixture(scope="module")
def tracked(study):
    return wandb_files.runs(study[0].root)


def by_key(tracked):
    return {name.split("-", 1)[1]: run for name, run in tracked.items()}


def test_an_outage_is_said_once_and_stops_nothing(study):
    folder, first, out, resumed = study
    assert out.returncode == 0, out.stdout + out.stderr
    assert out.stdout.count("W&B") == 1 and "wandb sync" in out.stdout
    assert resumed.returncode == 0 and "W&B" not in resumed.stdout
    assert len(first) == 4 + 2  # final and search trainings of one seed
    assert not list(folder.root.glob("wandb/run-*")), "an online run that was then written offline"


def test_the_key_is_in_no_file_and_no_output(study):
    folder, _, out, resumed = study
    said = out.stdout + out.stderr + resumed.stdout + resumed.stderr
    assert KEY not in said
    files = [path for path in folder.root.parent.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_nothing_of_the_machine_is_in_the_files(tracked, study):
    for path in study[0].root.glob("wandb/offline-run-*/*.wandb"):
        data = path.read_bytes()
        assert str(Path.home()).encode() + b"/" not in data
        assert b"requirements.txt" not in data and b"wandb-metadata" not in data
    assert {run.about.host for run in tracked.values()} == {"-"}


def test_every_training_is_one_run(tracked, study):
    folder, first, _, _ = study
    runs = by_key(tracked)
    assert set(runs) == {path.stem for path in folder.rows.glob("*.parquet")}
    assert set(first) < set(tracked), "the first seed's runs keep their ids"
    assert sorted(r.about.job_type for r in tracked.values()) == ["final"] * 8 + ["search"] * 2
    for key, run in runs.items():
        (row, *_) = folder.read_rows(key)
        assert run.about.project == "autoaug_ray" and run.about.run_group == "small"
        assert list(run.about.tags) == [row["method"], "fashion-mnist-mini", row["phase"]]
        assert row["label"] in run.about.display_name
        assert run.config["seed"] == row["seed"] and run.config["train"]["epochs"] == 2
        assert run.config == json.loads(row["settings"])


def test_rows_are_there_once_against_device_hours(tracked, study):
    for key, run in by_key(tracked).items():
        rows = study[0].read_rows(key)
        assert run.metrics == {"device_hours": "", "*": "device_hours"}
        assert [h["epoch"] for h in run.history] == [h["_step"] for h in run.history] == [1, 2]
        hours = [h["device_hours"] for h in run.history]
        assert hours == [row["device_hours"] for row in rows] and 0 < hours[0] < hours[1]
        for told, row in zip(run.history, rows, strict=True):
            for name in ("train_loss", "val_accuracy", "test_accuracy", "displacement"):
                assert told.get(name) == row[name]
            assert {k[4:]: v for k, v in told.items() if k.startswith("log/")} == row["log"]
            assert ("samples/path" in told) == bool(row["samples"])


def test_a_final_run_ends_with_its_accuracy_cost_and_policy(tracked, study):
    folder = study[0]
    summary = pq.read_table(folder.root / "summary.parquet").to_pylist()
    for entry in summary:
        finals = [
            run
            for run in tracked.values()
            if run.config["label"] == entry["label"] and run.about.job_type == "final"
        ]
        assert [run.summary["outcome"] for run in finals] == ["finished"] * 2
        accuracies = [run.summary["test_accuracy"] for run in finals]
        assert sorted(accuracies) == sorted(entry["test_accuracies"])
        costs = [run.summary["cost_device_hours"] for run in finals]
        assert sum(costs) / 2 == pytest.approx(entry["training_device_hours"], rel=0.02)
        for run in finals:
            files = folder.policy(entry["label"], run.config["seed"])
            kept = {path.name for path in files.iterdir()} if files.is_dir() else set()
            named = {f.path for a in run.artifacts for f in a.manifest.contents}
            assert named == kept
    assert any(run.artifacts for run in tracked.values())


@pytest.fixture
def copied(study, tmp_path):
    """The rows of a study, of which W&B knows nothing."""
    root = tmp_path / "copied"
    shutil.copytree(study[0].root, root, ignore=shutil.ignore_patterns("wandb", "policies"))
    return Folder(root)


@pytest.fixture
def interrupted(copied):
    """(folder, key, all its rows) with one training's last row not there yet."""
    key = next(k for k, row in copied.finished().items() if row["phase"] == "final")
    rows = copied.read_rows(key)
    copied.write_rows(key, rows[:1])
    outcomes = copied.root / "outcomes.jsonl"
    kept = [x for x in outcomes.read_text().splitlines() if key not in x]
    outcomes.write_text("\n".join(kept) + "\n")
    return copied, key, rows


def test_a_resumed_training_goes_on_in_its_run(interrupted):
    folder, key, rows = interrupted
    Tracker(folder, OFFLINE).send(last=True)
    before = wandb_files.runs(folder.root)
    run = by_key(before)[key]
    assert len(run.history) == 1 and run.summary["outcome"] == "unfinished"
    folder.write_rows(key, rows)
    Tracker(folder, OFFLINE).send(last=True)
    after = wandb_files.runs(folder.root)
    assert set(after) == set(before)
    run = by_key(after)[key]
    assert len(run.history) == 2 and run.summary["outcome"] == "finished"


def test_a_clock_that_goes_back_is_shown_as_standing(interrupted):
    folder, key, rows = interrupted
    behind = rows[0]["device_hours"] / 2
    folder.write_rows(key, [rows[0], rows[1] | {"device_hours": behind}])
    Tracker(folder, OFFLINE).send(last=True)
    run = by_key(wandb_files.runs(folder.root))[key]
    assert [h["device_hours"] for h in run.history] == [rows[0]["device_hours"]] * 2


def test_mixed_images_bring_a_run_of_their_generation_and_a_table(interrupted):
    folder, key, rows = interrupted
    mixed = {
        "bank_plan": "f" * 64, "bank_hours": {"caption": 0.5, "generate": 2.0},
        "kinds": ["identity", "fixed"], "alpha": [[0.75, 0.25], [0.25, 0.75]],
    }  # fmt: skip
    folder.write_rows(key, [row | mixed for row in rows])
    Tracker(folder, OFFLINE).send(last=True)
    runs = by_key(wandb_files.runs(folder.root))
    (made,) = (run for run in runs.values() if run.about.job_type == "generate")
    assert made.summary["device_hours"] == 2.5 and made.summary["device_hours/caption"] == 0.5
    assert made.about.run_group == "small" and "captioner" in made.config
    last = runs[key].history[-1]
    assert last["alpha/fixed"] == 0.5 and last["alpha_table/_type"] == "table-file"
    (path,) = folder.root.glob(f"wandb/*{key}/files/{last['alpha_table/path']}")
    table = json.loads(path.read_text())
    assert table["columns"] == ["class", "identity", "fixed"]
    assert table["data"] == [[0, 0.75, 0.25], [1, 0.25, 0.75]]


@pytest.fixture
def online(monkeypatch):
    with wandb_files.server() as kept:
        monkeypatch.setenv("WANDB_BASE_URL", kept.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.delenv("WANDB_MODE")
        yield kept


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # as wandb_workspaces is imported
def test_online_the_server_gets_every_row_once_and_a_report(interrupted, online, capsys):
    folder, key, rows = interrupted
    failures = []
    with tracking([folder], ONLINE, failures.append, patience=None):
        pass
    assert not failures
    folder.write_rows(key, rows)
    assert main(["report", str(folder.root), "--wandb"]) == 0
    said = capsys.readouterr()
    assert "W&B cannot" not in said.out and "W&B: not" not in said.out and not online.unknown
    assert {k.split("-", 1)[1]: steps for k, steps in online.steps.items()} == {
        path.stem: [1, 2] for path in folder.rows.glob("*.parquet")
    }
    assert KEY not in said.out + said.err
    asked = online.reports[-1]
    assert (asked["entityName"], asked["projectName"]) == ("me", "autoaug_ray")
    blocks = json.loads(asked["spec"])["blocks"]
    (text,) = (b for b in blocks if b["type"].startswith("markdown"))
    assert "|none|" in json.dumps(text) and "Pareto front" in json.dumps(text)
    finals, searches = (b["metadata"] for b in blocks if b["type"] == "panel-grid")

    def panels(grid):
        return {p["viewType"]: p for p in grid["panelBankSectionConfig"]["panels"]}

    scatter = panels(finals)["Scatter Plot"]["config"]
    assert scatter["xAxis"] == "summary:cost_device_hours" and scatter["xAxisLogScale"]
    assert scatter["yAxis"] == "summary:test_accuracy"
    curve = panels(finals)["Run History Line Plot"]["config"]
    assert curve["xAxis"] == "device_hours"
    assert "Run Comparer" in panels(finals)
    columns = panels(searches)["Parallel Coordinates Plot"]["config"]["columns"]
    assert [c["accessor"] for c in columns] == [
        "config:label.value", "config:method.value.magnitude", "summary:val_accuracy",
    ]  # fmt: skip
    assert '"small"' in json.dumps(finals["runSets"]) and '"final"' in json.dumps(finals["runSets"])


def test_the_local_page_is_written_anew(copied, capsys):
    page = copied.root / "report.html"
    page.unlink()
    assert main(["report", str(copied.root)]) == 0
    assert page.stat().st_size > 10_000 and f"report: {page}" in capsys.readouterr().out


def test_a_folder_without_a_study_is_one_sentence(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert f"STUDY_FOLDER: {tmp_path} holds no study.json" in capsys.readouterr().err


def test_a_tracker_that_hangs_is_left_behind(copied, monkeypatch):
    """W&B takes the connection and never answers."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        said = []
        began = time.monotonic()
        with tracking([copied], ONLINE, said.append, patience=0.5):
            inside = time.monotonic() - began
        assert inside < 2 and len(said) == 1 and "--resume" in said[0]


@pytest.mark.parametrize(
    "variables, mode",
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": KEY}, "online"),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_MODE": "disabled"}, "off"),
    ],
)
def test_offline_is_the_default_without_a_key(monkeypatch, variables, mode):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert WandB.default_mode() == mode
