"""Keep freed activations instead of handing them back to the system at every layer.

glibc serves large blocks by mmap and returns them on free, so a training step on a CPU maps,
zeroes and unmaps each layer's activations anew; the page faults cost several per cent of a step.
Raising two thresholds makes it reuse the memory, as a caching allocator does on a GPU.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import sys

# From glibc's malloc.h. The largest mmap threshold that glibc accepts is 32 MiB.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3
_MIB = 2**20


def keep_freed_memory() -> bool:
    """Tell glibc to reuse large blocks; returns whether it did.

    Process-wide and harmless: memory that the process has used once stays with it. Does nothing
    on systems without glibc, where another allocator is preloaded, or where the user has set
    malloc's own environment variables.
    """
    if not sys.platform.startswith("linux") or os.environ.get("LD_PRELOAD"):
        return False
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
        mallopt = libc.mallopt
    except (OSError, AttributeError):
        return False
    return bool(
        mallopt(_M_MMAP_THRESHOLD, 32 * _MIB)
        and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        and mallopt(_M_TOP_PAD, 64 * _MIB)
    )
