"""How many pools the C library's allocator keeps: with one for each of a hundred threads, what is free in one serves no other."""

from __future__ import annotations

import ctypes
from typing import Final

_ARENA_MAX: Final = -8  # M_ARENA_MAX of glibc's malloc.h
ARENAS: Final = 2


def share_arenas() -> bool:
    """Have all threads that are yet to start share a few pools; False where the C library knows no such thing."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(_ARENA_MAX, ARENAS))
