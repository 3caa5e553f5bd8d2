"""Memory that a step frees stays with the process for the next step."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt, in malloc.h
KEPT = 2**30
USUAL = {TRIM_THRESHOLD: 2**26, MMAP_THRESHOLD: 2**25}
"""Where glibc's own, moving thresholds end."""


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep what is freed in here, instead of giving it to the system and asking for the same pages, emptied, a moment later.

    A step's maps, of half a megabyte and more, are at the thresholds of glibc's allocator: pages that come and go take up to a
    fifth of a step. The process holds no more at its peak, and gives all back in the end. Other allocators are left alone.

    Example:
        >>> with freed_memory_kept():
        ...     size = len(bytearray(2**20))
    """
    libc = ctypes.CDLL(None) if os.name == "posix" else None
    if not (libc and hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):  # not glibc
        yield
        return
    for threshold in USUAL:
        libc.mallopt(threshold, KEPT)
    try:
        yield
    finally:
        for threshold, usual in USUAL.items():
            libc.mallopt(threshold, usual)
        libc.malloc_trim(0)
