"""A real Ray Tune run, killed and resumed; the command and what it refuses."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import torch
from command import run_all

import autoaug_ray
from autoaug_ray.schedule import cluster, tune
from autoaug_ray.store import meter
from autoaug_ray.store.folder import Folder

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]
RUN_ALL = [sys.executable, str(ROOT / "run_all.py")]

EVERYTHING = """
dataset: {name: fashion-mnist-mini, train_size: 320, test_size: 100}
model: {name: cnn, width: 4}
train: {epochs: 6, batch_size: 32}
seeds: [0, 1]
methods:
  none:
  grid:
    method: random_affine
    translate_x: {grid: [0, 0.3]}
    scale_x: {grid: [0, 0.2]}
    search: {scheduler: asha, grace_epochs: 1, reduction: 2}
  random: {method: validated_magnitude, magnitude: {uniform: [0, 0.5]}, search: {samples: 2}}
  pba: {population: 8, perturb_every: 1}
  bilevel: {group: translation, every: 2}
  replay: {of: bilevel}
  fast_autoaugment: {samples: 6, keep: 2, images: 100}
  dada: {lr: 0.1}
"""


@pytest.fixture(scope="module")
def killed_and_resumed(tmp_path_factory):
    """A study with every kind of scheduler; its driver is killed on the way, then resumed."""
    place = tmp_path_factory.mktemp("study")
    (place / "everything.yaml").write_text(EVERYTHING)
    command = [str(place / "everything.yaml"), "--out", str(place / "runs")]
    driver = subprocess.Popen(
        [*RUN_ALL, *command], stdout=subprocess.DEVNULL, start_new_session=True
    )
    folder = Folder(place / "runs" / "everything")
    began = time.monotonic()
    while len(folder.finished()) < 6:
        assert driver.poll() is None and time.monotonic() - began < 300
        time.sleep(0.5)
    driver.kill()
    driver.wait()
    # Its workers notice, and end: what they write is part of what the driver left behind.
    orphans = {line["pid"] for line in meter.read(folder.ledger)}
    while any(map(psutil.pid_exists, orphans)):
        assert time.monotonic() - began < 300
        time.sleep(0.1)
    at_kill = {
        "finished": set(folder.finished()),
        "attempts": {line["run"]: line["attempt"] for line in meter.read(folder.ledger)},
        "seconds": {(line["run"], line["attempt"]): line for line in meter.read(folder.ledger)},
    }
    resumed = run_all(*command, "--resume")
    return folder, at_kill, resumed


def test_it_ends_well_with_a_table_and_a_report(killed_and_resumed):
    folder, _, resumed = killed_and_resumed
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "Traceback" not in resumed.stderr
    assert "runs are on disk already" in resumed.stdout
    labels = ["none", "grid", "random", "pba", "bilevel", "bilevel learn:off", "replay"]
    for label in [*labels, "fast_autoaugment", "dada"]:
        assert label in resumed.stdout
    assert (folder.root / "report.html").stat().st_size > 10_000
    summary = pq.read_table(folder.root / "summary.parquet").to_pylist()
    by_label = {row["label"]: row for row in summary}
    assert all(row["seeds"] == [0, 1] for row in summary)
    assert by_label["none"]["relative_cost"] == pytest.approx(1)
    assert by_label["grid"]["relative_cost"] > 1 and by_label["grid"]["trials"] == 6


def test_no_finished_run_is_run_again(killed_and_resumed):
    folder, at_kill, _ = killed_and_resumed
    attempts = {line["run"]: line["attempt"] for line in meter.read(folder.ledger)}
    for key in at_kill["finished"]:
        assert attempts[key] == at_kill["attempts"][key]
    ended = [line["run"] for line in folder.read_outcomes() if line["outcome"] == "finished"]
    assert len(ended) == len(set(ended))


def test_rows_are_whole(killed_and_resumed):
    folder, _, _ = killed_and_resumed
    rows = {}
    for row in folder.read_rows():
        rows.setdefault(row["run_key"], []).append(row)
    for key, history in rows.items():
        assert [r["epoch"] for r in history] == list(range(1, len(history) + 1)), key
        hours = [r["device_hours"] for r in history]
        assert hours == sorted(hours)
    final = [h for h in rows.values() if h[-1]["phase"] == "final"]
    assert len(final) == 9 * 2 and all(h[-1]["finished"] for h in final)
    for history in final:
        tests = [r["test_accuracy"] for r in history]
        assert tests[:-1] == [None] * 5 and 0 <= tests[-1] <= 1


def test_cost_counts_both_attempts(killed_and_resumed):
    folder, at_kill, _ = killed_and_resumed
    lines = {(line["run"], line["attempt"]): line for line in meter.read(folder.ledger)}
    for key, line in at_kill["seconds"].items():
        assert lines[key]["seconds"] == line["seconds"], "an earlier attempt changed"
    cut = [k for k in at_kill["seconds"] if k[0] not in at_kill["finished"]]
    assert cut, "nothing was cut short: the kill came too late to test anything"
    again = {run for run, attempt in lines if attempt == 2}
    for run, _ in cut:
        if run in again:
            last = folder.read_rows(run)[-1]
            costs = [
                sum(line["seconds"].values()) * line["share"] / 3600
                for (key, _), line in lines.items()
                if key == run
            ]
            assert costs[0] <= last["device_hours"] <= sum(costs) * 1.001


def test_every_trial_of_a_search_with_asha_finishes_or_is_stopped(killed_and_resumed):
    folder, _, _ = killed_and_resumed
    outcomes = [
        x for x in folder.read_outcomes() if x["label"] == "grid" and x["phase"] == "search"
    ]
    assert {x["outcome"] for x in outcomes} <= {"finished", "stopped"}
    assert any(x["outcome"] == "finished" for x in outcomes)


def test_asha_stops_a_trial_that_is_certainly_worse(tiny, tmp_path):
    """The second trial shifts its training images out of the frame; the first one has ended."""
    study = tiny(
        {
            "grid": {
                "method": "predefined",
                "translate": {"grid": [0, 1000]},
                "search": {"scheduler": "asha", "grace_epochs": 1, "reduction": 2},
            }
        },
        # After 40 steps the first trial is hardly better than chance.
        train={"epochs": 3, "iters_per_epoch": 120, "batch_size": 32},
        # One after another, each with one thread: a second would wait for other tests' processes.
        resources={"cpus": 1.9},
    )
    folder = Folder(tmp_path / "runs")
    cluster.join(2)
    (queue,) = tune.execute([(study, folder)], tune.Watch())
    search = {d.run.index: d for d in queue.done if d.run.phase == "search"}
    assert [search[i].outcome for i in (0, 1)] == ["finished", "stopped"]
    whole, cut = (folder.read_rows(search[i].run.key) for i in (0, 1))
    assert (len(whole), len(cut)) == (3, 1)
    assert whole[0]["val_accuracy"] > cut[0]["val_accuracy"] + 0.1
    (final,) = (d.run for d in queue.done if d.run.label == "grid" and d.run.phase == "final")
    assert final.method.translate == 0


def test_pba_evolved_a_schedule_and_replayed_it(killed_and_resumed):
    folder, _, _ = killed_and_resumed
    finals = [
        r for r in folder.finished().values() if r["label"] == "pba" and r["phase"] == "final"
    ]
    schedule = json.loads(finals[0]["settings"])["method"]["schedule"]
    assert schedule[0][0] == 0.0
    starts = [start for start, _ in schedule]
    assert starts == sorted(set(starts)) and all(len(p) == 60 for _, p in schedule)
    rows = [r for r in folder.read_rows() if r["label"] == "pba" and r["phase"] == "search"]
    assert {r["index"] for r in rows} == {r["seed"] for r in rows} == set(range(8))
    policies = {str(json.loads(r["settings"])["method"]["policy"]) for r in rows}
    assert len(policies) > 1, "the population was never perturbed"


@pytest.mark.parametrize("label", ["fast_autoaugment", "dada"])
def test_each_seed_draws_from_the_sub_policies_that_it_found(killed_and_resumed, label):
    folder, _, _ = killed_and_resumed
    mine = [row for row in folder.finished().values() if row["label"] == label]
    found = {row["seed"]: json.loads(row["found"]) for row in mine if row["phase"] == "search"}
    finals = {row["seed"]: row for row in mine if row["phase"] == "final"}
    assert set(found) == set(finals) == {0, 1} and found[0] != found[1]
    for seed, row in finals.items():
        method = json.loads(row["settings"])["method"]
        assert {name: method[name] for name in found[seed]} == found[seed]
        assert row["found"] is None and row["displacement"] > 0
        transform = autoaug_ray.load_policy(folder.policy(label, seed) / "policy.pt")
        assert transform(torch.rand(4, 1, 28, 28)).shape == (4, 1, 28, 28)
    summary = pq.read_table(folder.root / "summary.parquet").to_pylist()
    (cost,) = (row["relative_search_cost"] for row in summary if row["label"] == label)
    assert cost > 0.5  # one training for each seed


def test_what_was_asked_is_what_ran(killed_and_resumed):
    folder, _, _ = killed_and_resumed
    for row in folder.read_rows():
        if row["method"] != "pba":
            assert row["used_key"] == row["run_key"]


def test_a_second_start_says_so_and_destroys_nothing(killed_and_resumed):
    folder, _, _ = killed_and_resumed
    before = sorted(p.name for p in folder.rows.iterdir())
    again = run_all(folder.root.parent.parent / "everything.yaml", "--out", folder.root.parent)
    assert again.returncode == 2 and "add --resume" in again.stderr
    assert "Traceback" not in again.stderr
    assert sorted(p.name for p in folder.rows.iterdir()) == before


@pytest.mark.nightly
def test_more_seeds_run_only_what_is_new(killed_and_resumed):
    folder, _, _ = killed_and_resumed
    before = {line["run"] for line in meter.read(folder.ledger)}
    yaml = folder.root.parent.parent / "everything.yaml"
    more = run_all(
        yaml, "--out", folder.root.parent, "--resume", "--seeds", 3,
        "--set", "methods.pba.population=2", "--dry-run",
    )  # fmt: skip
    assert more.returncode == 0 and "device-hours" in more.stdout
    assert {line["run"] for line in meter.read(folder.ledger)} == before


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--set", "train.epoch=3"], "error: train.epoch: unknown key (did you mean epochs?)"),
        (["no.yaml"], "error: no.yaml cannot be read"),
        (["--seeds", "0"], "error: seeds must be between 1 and 100000"),
        (["--set", "dataset.imbalance.largest=999"], "dataset.imbalance.largest: 999 images"),
        (["--set", "dataset={name: fashion-mnist-mini, train_size: 100000}"], "is 100000, but"),
        (
            [
                "--set",
                "generate={model: ./nowhere, captioner: embedded, strength: 1, guidance: 2, "
                "calls: 2, per_source: 1, per_class: 1}",
            ],
            "error: generate: no model folder at ./nowhere",
        ),
        (["--set", "dataset={name: folder, root: nowhere}"], "is not a folder"),
    ],
)
def test_wrong_input_is_one_sentence_and_status_2(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_all(*arguments)
    assert done.returncode == 2 and message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_a_run_that_must_not_go_on_is_named_and_the_next_study_still_runs(tmp_path):
    (tmp_path / "bad.yaml").write_text(
        "dataset: {name: fashion-mnist-mini, train_size: 160, test_size: 50}\n"
        "model: {name: cnn, width: 4}\ntrain: {epochs: 1, batch_size: 32}\nseeds: 1\n"
        "methods: {none: , again: {method: replay, policy: nowhere.pt}}\n"
    )
    (tmp_path / "good.yaml").write_text(
        (tmp_path / "bad.yaml").read_text().split(", again")[0]
        + "}\npublished: {source: A paper, entries: {none: {accuracy: 60}}}\n"
    )
    done = run_all(tmp_path / "bad.yaml", tmp_path / "good.yaml", "--out", tmp_path / "runs")
    assert done.returncode == 1, done.stdout + done.stderr
    assert len(Folder(tmp_path / "runs" / "good").finished()) == 1
    assert "failed: again (final, seed 0): replay.policy: nowhere.pt is no file" in done.stdout
    assert "Published: A paper." in done.stdout and "ours - published" in done.stdout
    assert len(Folder(tmp_path / "runs" / "bad").finished()) == 1
    assert os.path.exists(tmp_path / "runs" / "bad" / "report.html")


def test_more_than_the_machine_has_is_refused_before_anything_runs(tmp_path):
    (tmp_path / "greedy.yaml").write_text(
        "dataset: {name: fashion-mnist-mini}\nmethods: {none: {resources: {gpus: 512}}}\n"
    )
    done = run_all(tmp_path / "greedy.yaml", "--out", tmp_path / "runs")
    assert done.returncode == 2
    assert "methods.none: resources ask for 512 GPU, but no machine here has" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_is_not_lost_where_exceptions_are_swallowed(number):
    before = signal.getsignal(number)
    step = tune._Callback(tune.Watch(), tune._QueueSearcher([])).on_step_end
    with tune.interruptible():
        step(0, [])
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(number)
        with pytest.raises(KeyboardInterrupt):
            step(1, [])
    assert signal.getsignal(number) is before
    with tune.interruptible():
        step(2, [])


def test_sigterm_ends_a_study_as_ctrl_c_does_and_says_how_to_go_on(tmp_path):
    (tmp_path / "long.yaml").write_text(
        "dataset: {name: fashion-mnist-mini}\ntrain: {epochs: 200, iters_per_epoch: 2}\nseeds: 1\n"
        "methods: {none: }\n"  # so short that it is not calibrated first
    )
    process = subprocess.Popen(
        [*RUN_ALL, str(tmp_path / "long.yaml"), "--out", str(tmp_path / "runs")],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    ledger = tmp_path / "runs" / "long" / "ledger"
    began = time.monotonic()
    while not meter.read(ledger):
        assert process.poll() is None and time.monotonic() - began < 120
        time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "--resume goes on" in errors and "Stack" not in errors and "***" not in errors
    assert Folder(ledger.parent).read_outcomes() == []
