import errno
import os
import pickle
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

# One intra-op thread per process, before torch is imported: tests share few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ["RAY_ADDRESS"] = "local"  # whatever other Ray may run on this machine
os.environ["WANDB_MODE"] = "disabled"  # test_wandb.py turns it on
os.environ.pop("WANDB_API_KEY", None)

import pytest
import torch
from attacks import SECRETS, Attack

from autoaug_ray import config

torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """In an order in which two processes seldom wait for Ray at once, and end together.

    Tests that start Ray wait more than they compute; those of schedule/ take longest.
    """
    compute_most = ("tests/generate/", "tests/maths/", "tests/methods/")

    def turn(item):
        if item.get_closest_marker("ray"):
            return 0 if item.nodeid.startswith("tests/schedule/") else 2
        return 1 if item.nodeid.startswith(compute_most) else 3

    items.sort(key=turn)


def pytest_xdist_make_scheduler(config, log):
    """Each file is run by one process, so that its fixtures are made once; Ray's tests by two.

    Ray's tests wait more than they compute: those of schedule/ are one group, the others another.
    The groups of pytest-xdist 3.8 would be that, but with pytest 9.2 it puts all tests anywhere.
    """
    from xdist.scheduler import LoadScopeScheduling

    @lru_cache
    def with_ray(path):
        """The names of a file's tests that carry the marker; {""} if all of them do."""
        text = (config.rootpath / path).read_text()
        if "\npytestmark = pytest.mark.ray\n" in text:
            return {""}
        return set(re.findall(r"\n@pytest\.mark\.ray\n(?:@.*\n)*def (\w+)", text))

    class RayTogether(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            path, _, test = nodeid.partition("::")
            if not {test.partition("[")[0], ""} & with_ray(path):
                return path
            return "schedule" if path.startswith("tests/schedule/") else "other rooms with Ray"

    return RayTogether(config, log)


def ray_runs():
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


@pytest.fixture(autouse=True)
def ray_is_marked(request):
    """Fails a test without the marker that starts Ray in its own process, or needs the study that
    is to be run in one process only."""
    marked, ran_before = request.node.get_closest_marker("ray"), ray_runs()
    if "real_study" in request.fixturenames and not marked:
        pytest.fail("this test needs real_study: mark it with pytest.mark.ray")
    yield
    if ray_runs() and not ran_before and not marked:
        pytest.fail("this test starts Ray: mark it with pytest.mark.ray")


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


STUDY = """
dataset: {name: fashion-mnist-mini}
model: {name: cnn, width: 2}
train: {epochs: 1, batch_size: 16}
seeds: 2
methods:
  none:
  bilevel: {every: 8}
"""


@pytest.fixture(scope="session")
def real_study(tmp_path_factory):
    """A study run by its command, for every test that needs one and changes nothing in it.

    Secrets are in its environment. In its folder are pickles, where Tune keeps its own, which make
    the folder `sign` if anything reads them.
    """
    place = tmp_path_factory.mktemp("real")
    path, sign = place / "tiny.yaml", place / "owned"
    path.write_text(STUDY)
    trials = place / "runs/tiny/trials"
    for folder in (trials, trials / "tiny"):
        folder.mkdir(parents=True)
        for name in ("tuner.pkl", "trainable.pkl", "searcher-state.pkl", "scheduler-state.pkl"):
            (folder / name).write_bytes(pickle.dumps(Attack(sign)))
    command = [sys.executable, Path(__file__).parents[1] / "run_all.py", path]
    done = subprocess.run(
        [*command, "--out", place / "runs"],
        capture_output=True, text=True, timeout=200, env=os.environ | SECRETS,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return SimpleNamespace(yaml=path, root=place / "runs/tiny", done=done, sign=sign)


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
