"""Two drivers never run one study: a lock on a file system, signs of life on an object store."""

import json
import os
import subprocess
import sys
import time

import pytest

from autoaug_ray.errors import UserError
from autoaug_ray.store import driver

HOLD = """
import sys, time
from pathlib import Path
from autoaug_ray.store import driver
{no_lock}
with driver.alone(Path(sys.argv[1]), print, beat=0.1):
    print("held", flush=True)
    time.sleep(60)
"""


NO_LOCK = """
class NoLock(driver.FileLock):
    def acquire(self, *args, **kwargs): raise NotImplementedError
driver.FileLock = NoLock
"""


@pytest.fixture(params=["lock", "signs"])
def other(request, tmp_path, monkeypatch):
    """A process that runs a study in tmp_path / "study"."""
    no_lock = ""
    if request.param == "signs":

        class NoLock(driver.FileLock):
            def acquire(self, *args, **kwargs):
                raise NotImplementedError

        monkeypatch.setattr(driver, "FileLock", NoLock)
        no_lock = NO_LOCK
    with subprocess.Popen(
        [sys.executable, "-c", HOLD.format(no_lock=no_lock), str(tmp_path / "study")],
        stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def hold(folder, said=None):
    with driver.alone(folder, (said if said is not None else []).append, beat=0.1):
        pass


def test_the_second_driver_is_refused_with_host_and_process_and_may_follow_a_killed_one(
    other, tmp_path
):
    with pytest.raises(UserError, match=f"study is in use: process {other.pid} on .* since 20"):
        hold(tmp_path / "study")
    hold(tmp_path / "beside")
    other.kill()
    other.wait()
    hold(tmp_path / "study")
    hold(tmp_path / "study")


def test_a_silent_driver_of_another_machine_is_watched_and_then_replaced(tmp_path, monkeypatch):
    drivers, said = tmp_path / "study" / "drivers", []
    drivers.mkdir(parents=True)
    about = {"host": "elsewhere", "pid": os.getpid(), "since": time.time()}
    (drivers / "a.json").write_text(json.dumps(about))
    with driver._living(drivers, {"host": "here", "pid": 1}, said.append, 0.05):
        assert len([*drivers.iterdir()]) == 1 and not (drivers / "a.json").exists()
    assert said and "waiting 0.125 s" in said[0]
    assert not [*drivers.iterdir()]
