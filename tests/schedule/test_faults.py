"""Every fault is caused for real, and meets the policy that clusters/README.md gives for it."""

import json
import os
import signal
import subprocess
import sys

import pytest
import ray
import torch

from autoaug_ray import train
from autoaug_ray.bench.faults import meanwhile
from autoaug_ray.errors import RunError, StorageError, exit_status
from autoaug_ray.generate.bank import Bank
from autoaug_ray.generate.plan import Pool, build, draw, fingerprints
from autoaug_ray.generate.settings import Generation, Workers, of_all_classes
from autoaug_ray.generate.worker import Failure, Worker
from autoaug_ray.report.results import collect
from autoaug_ray.report.sentences import verdicts
from autoaug_ray.report.write import write
from autoaug_ray.schedule import cluster, tune
from autoaug_ray.schedule.trial import trial
from autoaug_ray.store import meter
from autoaug_ray.store.folder import Folder

pytestmark = pytest.mark.ray


def execute(made, folder, attempt=None):
    cluster.join(2)
    (plan,) = tune.execute([(made, folder)], tune.Watch(), attempt=attempt)
    return plan


def attempts(folder, key):
    return [line for line in meter.read(folder.ledger) if line["run"] == key]


def final(made, label, seed):
    return made.run(made.entry(label), "final", seed=seed, choices={})


def undisturbed(run):
    """The test accuracy that it reaches without Ray, without a folder, and in one piece."""
    *_, last = train.run(run)
    return last.row["test_accuracy"]


@pytest.mark.nightly
def test_a_run_is_given_up_only_if_it_dies_again_and_again_without_an_epoch_more(
    tiny, tmp_path, monkeypatch
):
    monkeypatch.setattr(tune, "RETRIES", 1)
    made = tiny({}, seeds=[0, 1], train={"epochs": 10, "batch_size": 32, "iters_per_epoch": 20})
    folder, killed = Folder(tmp_path / "runs"), {}
    lucky, unlucky = (final(made, "none", seed).key for seed in (0, 1))

    def kill():
        for line in meter.read(folder.ledger):
            run, n = line["run"], line["attempt"]
            epochs = len(folder.read_rows(run))
            due = n <= 2 and epochs >= killed.get((run, n - 1), 0) + 2 if run == lucky else n <= 2
            if due and line["open"] and (run, n) not in killed:
                os.kill(line["pid"], signal.SIGKILL)
                killed[run, n] = epochs

    with meanwhile(kill):
        plan = execute(made, folder)
    outcomes = {done.run.key: done for done in plan.done}
    assert outcomes[lucky].outcome == "finished"
    assert outcomes[unlucky].outcome == "failed"
    assert outcomes[unlucky].error == (
        "its process died 2 times in a row before it could finish another epoch"
    )
    tries = attempts(folder, lucky)
    assert [line["open"] for line in tries] == [True] * 2 + [False]
    assert all(line["kept"] > 0 for line in tries), "every attempt went on from a checkpoint"
    assert [line["open"] for line in attempts(folder, unlucky)] == [True] * 2
    assert folder.finished()[lucky]["test_accuracy"] == undisturbed(final(made, "none", 0))

    results = collect(made, folder)
    (entry,) = results.entries
    assert entry.lost_attempts == 4 and entry.failed == 1
    spent = sum(map(meter.spent, meter.read(folder.ledger))) / 3600
    assert entry.total_device_hours == pytest.approx(spent)
    assert 0 < entry.lost_device_hours < spent
    said = [line for line in verdicts(results) if line.startswith("none: ")]
    assert "4 attempts lost with the process, machine or driver, and " in said[0]
    write(results)
    assert "died 2 times in a row" in (folder.root / "report.html").read_text()

    again = execute(made, folder)  # what failed is tried again, what has finished is not
    assert {done.run.key: done.outcome for done in again.done} == {
        lucky: "finished", unlucky: "finished",
    }  # fmt: skip
    assert len(attempts(folder, lucky)) == len(attempts(folder, unlucky)) == 3


@pytest.mark.nightly
def test_a_place_that_cannot_be_used_ends_the_study_and_no_run_has_failed(
    tiny, tmp_path, small_disk, capsys
):
    made = tiny({}, seeds=[0], train={"epochs": 12, "batch_size": 32, "iters_per_epoch": 40})
    folder, away = Folder(small_disk.root / "runs"), small_disk.root / "away"
    key = final(made, "none", 0).key

    def once(epochs, act):
        def when_it_runs():
            if len(folder.read_rows(key)) >= epochs:
                act()
                return True

        return meanwhile(when_it_runs)

    def work():
        execute(made, folder)
        return 0

    with once(2, small_disk.fill):
        assert exit_status(work, again="the same command goes on.") == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {folder.root}")
    assert said.endswith(" cannot be used (No space left on device); the same command goes on.\n")
    small_disk.free()
    assert not folder.read_outcomes()
    before = len(folder.read_rows(key))
    assert 2 <= before < 12 and not list(folder.root.rglob("*.tmp"))

    with once(before + 1, lambda: folder.root.rename(away)):
        with pytest.raises(StorageError, match="runs.* cannot be used"):
            execute(made, folder)
    assert not list(folder.root.rglob("*.parquet")), "rows were written where nobody looks"
    if folder.root.exists():
        folder.root.rename(tmp_path / "rest")  # Tune's own
    away.rename(folder.root)

    (done,) = execute(made, folder).done
    assert done.outcome == "finished" and len(attempts(folder, key)) == 3
    assert folder.finished()[key]["test_accuracy"] == undisturbed(final(made, "none", 0))
    assert [line["outcome"] for line in folder.read_outcomes()] == ["finished"]


@pytest.mark.parametrize("fits", [4, 0])
def test_a_device_with_too_little_memory_is_given_fewer_images_at_a_time(
    tmp_path, monkeypatch, fits
):
    """Here nothing but a graphics card raises this error by itself, so that a UNet has to."""
    pytest.importorskip("diffusers")
    import tiny_sd

    settings = Generation(model=str(tiny_sd.save(tmp_path / "sd")), calls=2)
    pool = Pool(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.arange(2), ("a", "b"))
    marks = fingerprints(pool, settings, ["fixed"])
    drawn = draw(pool, (), settings, of_all_classes(["fixed"], 2))
    edits = build(pool, drawn, {}, settings, marks, len)
    bank = Bank(tmp_path / "bank")
    worker = Worker(str(bank.root), settings, Workers())
    unet = worker._editor_with(())._pipe.unet
    forward = unet.forward

    def small(rows, *arguments, **more):
        if len(rows) > 2 * fits:  # with the prompt and without
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(rows, *arguments, **more)

    monkeypatch.setattr(unet, "forward", small)
    work = (edits[:6], list(pool.images.numpy()), [e.source for e in edits[:6]], marks, ())
    outcome = worker.work("edit", "shard", "generate", work)
    (line,) = meter.read(bank.ledger)
    if not fits:
        assert outcome == Failure(
            "generate: not even one image at a time fits in the memory of CPU; set generate.size "
            "or generate.precision lower, or workers.gpus higher.", RunError,
        )  # fmt: skip
        return
    assert outcome.items == 6 and outcome.rows == line["rows"] == 4
    assert bank.verify() == [] and len(bank.shards()) == 1


def greedy(config, *, bank, handed):
    """`trial`, in which a step of trivialaugment asks for more memory than there is."""
    from autoaug_ray.methods.discrete import TrivialAugment

    TrivialAugment.step = lambda *_: {"train_loss": torch.zeros(2**50)}
    trial(config, bank=bank, handed=handed)


def test_what_a_run_cannot_go_on_with_is_not_tried_again(tiny, tmp_path):
    wild = {"lr": 100, "weight_decay": 1, "schedule": "constant", "iters_per_epoch": 40}
    made = tiny({"trivialaugment": {}}, train={"epochs": 2, "batch_size": 32, **wild})
    folder = Folder(tmp_path / "runs")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        failed = {done.run.label: done for done in execute(made, folder, greedy).done}
    finally:
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert {done.outcome for done in failed.values()} == {"failed"}
    assert failed["none"].error.startswith("none: train_loss became nan in epoch 1 (steps 1 to 40)")
    assert failed["trivialaugment"].error == (
        "trivialaugment: a batch of 32 images does not fit in the memory of its share of CPU; "
        "set train.accumulate to 2 (the same gradients from parts of the batch, each with batch "
        "norm statistics of its own) or train.precision to bf16, for all methods alike, or give "
        "it more of a device (resources)."
    )
    lines = meter.read(folder.ledger)
    assert len(lines) == 2 and not any(line["open"] for line in lines)
    write(collect(made, folder))
    page = (folder.root / "report.html").read_text()
    assert "train_loss became nan" in page and "does not fit in the memory" in page


@pytest.mark.nightly
def test_a_lost_machine_and_a_lost_driver_change_no_result(tmp_path):
    """`bench faults` compares the results, and the sums of the ledger, itself."""
    figures = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, "-m", "autoaug_ray.bench", "faults", "--epochs", "4", "--json", figures],
        env={**os.environ, "RAY_health_check_period_ms": "500"},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(figures.read_text())
    assert len(found["results"]) == found["runs"] == 6
    legs = found["legs"]
    assert legs["undisturbed"]["attempts"] == 6 and legs["undisturbed"]["lost_attempts"] == 0
    assert legs["1 of 2 machines lost"]["lost_attempts"] >= 1
    assert all(0 <= leg["vain_seconds"] < leg["device_seconds"] for leg in legs.values())
