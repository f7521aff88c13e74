"""Memory of a CPU process."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of mallopt's parameters in malloc.h
_KEEP = 1 << 30


def keep_freed_memory() -> None:
    """Let glibc's malloc keep what is freed, up to a gibibyte, instead of giving it back to the system at once.

    A training step frees and takes the same large tensors over and over; by default each is mapped, zeroed page by page
    and unmapped again, a tenth of a small model's step. Does nothing without glibc.
    """
    if sys.platform.startswith("linux"):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_MMAP_THRESHOLD, _KEEP)
            mallopt(_TRIM_THRESHOLD, _KEEP)
