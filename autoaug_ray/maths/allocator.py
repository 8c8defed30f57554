"""How the C library's allocator keeps the memory of tensors, for CPUs."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
"""glibc's numbers for mallopt (malloc.h)."""


def keep_memory() -> bool:
    """Makes glibc keep what tensors leave, for those to come; whether it could.

    By default it gives tensors above 32 MB back to the kernel, which then has to fill the pages of
    the next one with zeros: at 224 x 224 pixels that is more than half of a small network's step.
    What a process once needed it holds until its end.

    Call it before the thread starts that computes: threads that glibc has given an arena of their
    own get large blocks from the kernel whatever it is told, hence one arena for all.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):  # musl, say
        return False
    wanted = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**26, M_ARENA_MAX: 1}
    return all([library.mallopt(option, value) for option, value in wanted.items()])
