"""The memory of this process: how much it has used, and when it gives some back."""

from __future__ import annotations

import ctypes
import os
import resource
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # as in malloc.h
KEPT_BYTES = 32 << 20  # the most that glibc itself raises the threshold to on 64 bits
C_INT_MAX = (1 << 31) - 1
OWN_CHOICE = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


def peak_rss_bytes() -> int:
    """Return the most memory that this process ever had resident, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, instead of giving it back to the system.

    Training on the CPU frees tensors of some megabytes in each minibatch and asks for them again
    in the next. As glibc is set up, it returns many of them in between, and the kernel then has to
    find and clear their pages anew, which can take a good part of a visit. What is larger than the
    threshold, as the states of large models are, goes back to the system as before.

    Returns:
        Whether it is so now. Not where the C library has no such settings, and not where the
        environment has them: that is somebody's own choice.

    Source: mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD.
    """
    tuned = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if tuned or any(name in os.environ for name in OWN_CHOICE):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((M_MMAP_THRESHOLD, KEPT_BYTES), (M_TRIM_THRESHOLD, C_INT_MAX))
    return all(mallopt(name, value) == 1 for name, value in settings)
