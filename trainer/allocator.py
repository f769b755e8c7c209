"""The host's memory allocator, told once per process what training on a CPU needs of it. Called before the first large tensor is made."""

from __future__ import annotations

import ctypes

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # parameters of mallopt in <malloc.h>
KEEP_BYTES, GROW_BYTES = 2**31 - 1, 64 << 20


def keep_freed_memory() -> bool:
    """Freed tensors stay with the process for the next step; returns whether the C library can be told so (glibc can).

    Otherwise glibc gives every tensor above 32 MB back to the kernel, which zeroes its pages anew at each use: at 17,000 tokens a
    tenth of a CPU step (tests/benchmarks/train_step.py).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    wishes = {MMAP_MAX: 0, TRIM_THRESHOLD: KEEP_BYTES, TOP_PAD: GROW_BYTES}
    return all(mallopt(parameter, value) for parameter, value in wishes.items())
