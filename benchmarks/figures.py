"""What a contestant's process used, as it prints it."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path

BEGAN = time.monotonic()


def report(events: int, **more: object) -> None:
    """Print events, CPU seconds (of the whole process, start-up included), wall seconds and peak memory in MiB, as JSON."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    figures = {"events": events, "cpu": used.ru_utime + used.ru_stime, "wall": time.monotonic() - BEGAN}
    print(json.dumps({**figures, "peak_rss_mib": _peak_mib(), **more}))


def _peak_mib() -> float:
    """Return the peak of this program alone: ``ru_maxrss`` begins with what the parent held when it forked."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status does not tell a peak")
