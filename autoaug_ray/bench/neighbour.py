"""A busy neighbour, run as a script by `neighbours`: it imports little, so that it starts at once.

It says on stdout how much CPU time it has used, once when it begins and once when it ends. It ends
when its stdin does: a pipe closes however the process at its other end dies.
"""

import os
import sys
import threading
import time

import numpy as np

SIDE = 512
"""Rows and columns of the matrices: three of them fit in a cache."""
TURN = 0.5
"""Seconds of one kind of load, before the other has its turn."""


def say_cpu() -> None:
    print(time.process_time(), flush=True)


def end_with_stdin() -> None:
    sys.stdin.read()
    try:
        say_cpu()
    finally:  # also if nobody reads it any more
        os._exit(0)


def work(megabytes: int, turn: int) -> None:
    """Multiply matrices and stream through so much memory, in turns, for ever.

    `turn` 0 begins with the matrices, 1 with the memory.
    """
    left, right, product = np.random.default_rng(0).random((3, SIDE, SIDE), dtype=np.float32)
    memory = np.zeros((2, megabytes << 19), dtype=np.uint8)
    memory += 1  # so that it is there: pages of zeros may all be one
    say_cpu()
    threading.Thread(target=end_with_stdin, daemon=True).start()
    while True:
        end = time.monotonic() + TURN
        while time.monotonic() < end:
            if turn % 2 == 0:
                np.matmul(left, right, out=product)
            else:
                np.copyto(memory[0], memory[1])
        turn += 1


if __name__ == "__main__":
    work(int(sys.argv[1]), int(sys.argv[2]))
