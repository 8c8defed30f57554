"""The memory of a large tensor is kept for the next one, also in a thread, as Ray Tune's are."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, threading
from autoaug_ray.maths.allocator import keep_memory
if sys.argv[1] == "kept" and not keep_memory():
    sys.exit(3)
import torch

def work():
    for _ in range(30):  # blocks are aligned, so that at first one does not fit where one was
        torch.ones(2**24)  # 64 MB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(2**24)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def faults(how):
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True)
    if done.returncode == 3:
        pytest.skip("no glibc")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_no_page_is_filled_twice():
    pages = 4 * 2**26 // 4096
    assert faults("given back") > pages / 600  # of 2 MB each where the kernel has such pages
    assert faults("kept") < 20
