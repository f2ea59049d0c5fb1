"""Importing a role's modules in as little time as that takes: it is most of what the start of a process costs."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import what the block imports without looking for garbage, which it makes none of, and without what no role uses."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy starts a thread for every core, for algebra that nobody does here
    collected = gc.isenabled()
    gc.disable()  # looking for it took a sixth of the time
    without: dict[str, Any] = {} if "rich" in sys.modules else {"rich": None}
    sys.modules.update(without)  # structlog would import it for tracebacks in colours, which no log line has
    try:
        yield
    finally:
        for name in without:
            del sys.modules[name]
        if collected:
            gc.enable()
