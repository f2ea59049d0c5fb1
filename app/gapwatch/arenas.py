"""What the C library's allocator keeps. With a pool for each of a hundred threads, what is free in one serves no other; and once
it has seen a large block freed, it cuts all that are smaller out of its heaps, which seldom shrink.
"""

from __future__ import annotations

import ctypes
from typing import Final

_ARENA_MAX: Final = -8  # M_ARENA_MAX of glibc's malloc.h
_MMAP_THRESHOLD: Final = -3
ARENAS: Final = 2
LARGE_BYTES: Final = 1024 * 1024


def share_arenas() -> bool:
    """Have all threads that are yet to start share a few pools; False where the C library knows no such thing."""
    return _set(_ARENA_MAX, ARENAS)


def return_large_blocks() -> bool:
    """Have blocks of LARGE_BYTES and more go back to the system when they are freed, whatever size was freed before.

    False as :func:`share_arenas`.
    """
    return _set(_MMAP_THRESHOLD, LARGE_BYTES)


def give_back() -> bool:
    """Give back to the system what is free in between now; False as :func:`share_arenas`. Takes a millisecond or two."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return False
    trim(0)
    return True


def _set(name: int, value: int) -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(name, value))
