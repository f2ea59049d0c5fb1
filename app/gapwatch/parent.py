"""Ties a process to the one that started it: however that one ends, it is ended as well (Linux).

The child asks the kernel for it by itself. A ``preexec_fn`` would do it between fork and exec, where a process with threads can
wait for ever for a lock that another thread held at the fork; the parent then waits for the child as long.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Final

PARENT: Final = "_GAPWATCH_PARENT"
_PR_SET_PDEATHSIG: Final = 1


def tied_to_us() -> dict[str, str]:
    """Return what to add to a child's environment; the thread that starts it has to live as long as the process."""
    return {PARENT: str(os.getpid())}


def end_with_parent() -> None:
    """In the child, as its first step: be sent SIGTERM when the parent ends. Nothing is done where nobody asked for it."""
    parent = os.environ.pop(PARENT, "")
    if parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(parent):  # it ended before we asked
            sys.exit(1)
