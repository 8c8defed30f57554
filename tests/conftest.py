import errno
import os
import subprocess

# One intra-op thread per process, before torch is imported: tests share few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ["RAY_ADDRESS"] = "local"  # whatever other Ray may run on this machine
os.environ["WANDB_MODE"] = "disabled"  # test_track.py turns it on
os.environ.pop("WANDB_API_KEY", None)

import pytest
import torch

from autoaug_ray import config

torch.set_num_threads(1)

DATA = {"name": "fashion-mnist-mini", "train_size": 160, "test_size": 60}
TRAIN = {"epochs": 2, "batch_size": 32}


@pytest.fixture
def tiny():
    """Makes a study of a few seconds: `tiny({"none": {}}, train={...})`."""

    def make(methods, **other):
        tree = {"dataset": DATA, "model": {"width": 4}, "train": TRAIN, "seeds": 1, **other}
        methods = methods if "none" in methods else {"none": {}, **methods}
        return config.study({**tree, "methods": methods}, name="tiny")

    return make


@pytest.fixture
def final_run(tiny):
    """A final run of one entry: `final_run("bilevel", {"lr": 0.1})`."""

    def make(method, hyperparameters=None, seed=0, **other):
        study = tiny({"entry": {"method": method, **(hyperparameters or {})}}, **other)
        study = study.model_copy(update={"bank_plans": {"whole": "planted"}})
        return study.run(study.entry("entry"), "final", seed=seed, choices={})

    return make


class SmallDisk:
    """A disk of 4 MB that a test may fill."""

    def __init__(self, root):
        self.root, self._filler = root, root / "filler"

    def fill(self):
        with open(self._filler, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError as error:
                assert error.errno == errno.ENOSPC

    def free(self):
        self._filler.unlink()


@pytest.fixture
def small_disk(tmp_path):
    root = tmp_path / "disk"
    root.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(root)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield SmallDisk(root)
    subprocess.run(["umount", "--lazy", str(root)], check=True)
