"""The C allocator of a process that trains on the CPU."""

from __future__ import annotations

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt(3)."""
BLOCK = 1 << 25
"""32 MiB: larger blocks come from the system one by one, and go back; kept in the heap, they would tear holes in it."""
TOP = (1 << 31) - 1
"""Nothing of the heap is given back while a step frees what the next one asks for again."""


def keep() -> bool:
    """Let glibc keep what a step frees, for the next step: else the system takes it, and clears it anew each time.

    For the rest of the process. False, and nothing is changed, where the C library is another one or the environment
    has settings of its own, MALLOC_... or GLIBC_TUNABLES.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    return mallopt is not None and bool(mallopt(M_MMAP_THRESHOLD, BLOCK) and mallopt(M_TRIM_THRESHOLD, TOP))
