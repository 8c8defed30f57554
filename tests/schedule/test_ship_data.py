"""Data that reaches a machine from the driver instead of from the machine's disk."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from autoaug_ray import config, data, train
from autoaug_ray.errors import RunError
from autoaug_ray.methods import METHODS
from autoaug_ray.schedule.ship_data import pack, take
from autoaug_ray.settings.dataset import Dataset, Imbalance
from autoaug_ray.store.folder import Folder

FEW = {"samples": 2, "keep": 1, "images": 40}


@pytest.fixture
def npz(tmp_path):
    """A dataset of 120 + 40 + 40 images in a file."""
    rng = np.random.default_rng(0)
    path = tmp_path / "d.npz"
    arrays = {}
    for part, n in (("train", 120), ("val", 40), ("test", 40)):
        arrays[f"{part}_images"] = rng.integers(0, 256, (n, 8, 8), dtype=np.uint8)
        arrays[f"{part}_labels"] = np.arange(n) % 4
    np.savez(path, **arrays)
    return path


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch):
    monkeypatch.setattr(data, "_given", {})


def hand(dataset):
    """What the object store gives back: arrays that must not be written."""
    handed = pack(dataset)
    for images, labels in handed.parts.values():
        for array in (images, labels):
            array.flags.writeable = False
    return handed


def test_the_same_splits_without_the_file(npz):
    whole = Dataset(name="npz", root=str(npz))
    drawn = whole.model_copy(update={"imbalance": Imbalance(factor=0.1)})
    asked = [(d, v) for d in (whole, drawn) for v in (None, 0.2)]
    read = [data.load(d, val_fraction=v, device="cpu") for d, v in asked]
    handed = hand(drawn)  # of one case; the other takes it, too
    data._read.cache_clear()
    npz.unlink()
    take(whole, [handed])
    for (dataset, fraction), before in zip(asked, read, strict=True):
        after = data.load(dataset, val_fraction=fraction, device="cpu")
        for name in ("train", "meta", "val", "test"):
            a, b = getattr(before, name), getattr(after, name)
            assert (a is None) == (b is None)
            if a is not None:
                assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
        assert before.classes == after.classes


def test_shared_images_are_not_copied(npz):
    handed = hand(Dataset(name="npz", root=str(npz)))
    take(handed.dataset, [handed])
    images = data.source_of(handed.dataset).pool.images
    assert images.data_ptr() == handed.parts["pool"][0].ctypes.data


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"replay", "mix", "autogenda"}))
def test_no_method_writes_into_them(name, final_run):
    few = {"pba": {"schedule": [[0.0, [3] * 60]]}, "fast_autoaugment": FEW}
    run = final_run(name, few.get(name))
    handed = hand(run.dataset)
    arrays = [array for part in handed.parts.values() for array in part]
    before = [array.copy() for array in arrays]
    take(run.dataset, [handed])
    for _ in train.run(run):
        pass
    assert all(np.array_equal(a, b) for a, b in zip(before, arrays, strict=True))


def test_a_machine_without_the_files_says_so_at_once(tmp_path):
    dataset = Dataset(name="folder", root=str(tmp_path / "gone"), image_size=16)
    with pytest.raises(RunError) as raised:
        take(dataset, [])
    message = str(raised.value)
    assert message.startswith(f"dataset.root: {dataset.root} cannot be read on the machine ")
    assert "storage that all of them share" in message and "\n" not in message


CLUSTER = """
import json, os, sys
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from autoaug_ray import data
from autoaug_ray.config import Study
from autoaug_ray.store.folder import Folder
from autoaug_ray.schedule import cluster as joined
from autoaug_ray.schedule.tune import Watch, execute

small = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
os.environ["RAY_ADDRESS"] = cluster.address
joined.join()
study = Study.model_validate_json(sys.argv[1])
data.source_of(study.dataset)
Path(study.dataset.root).unlink()  # from here on only the driver has it
(plan,) = execute([(study, Folder(Path(sys.argv[2])))], Watch())
print(json.dumps([[done.outcome, done.error] for done in plan.done]))
ray.shutdown()  # before the cluster, whose end would else end this process with an error
cluster.shutdown()
"""


@pytest.mark.ray
@pytest.mark.nightly
def test_two_machines_one_of_them_without_the_data(npz, tmp_path):
    """The rows are those of a training that read the file itself."""
    tree = {
        "dataset": {"name": "npz", "root": str(npz)}, "model": {"width": 4},
        "train": {"epochs": 2, "batch_size": 32}, "seeds": 1, "methods": {"none": {}},
    }  # fmt: skip
    study = config.study(tree, name="two")
    run = study.run(study.entry("none"), "final", seed=0, choices={})
    expected = [epoch.row for epoch in train.run(run)]
    done = subprocess.run(
        [sys.executable, "-c", CLUSTER, study.model_dump_json(), str(tmp_path / "out")],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [["finished", None]]
    for row, other in zip(expected, Folder(tmp_path / "out").read_rows(run.key), strict=True):
        for name in ("train_loss", "test_accuracy", "class_accuracy", "class_counts", "epoch"):
            assert row[name] == other[name], name
