"""What a contestant's process used, as it prints it."""

from __future__ import annotations

import json
import resource
import time

BEGAN = time.monotonic()


def report(events: int, **more: float) -> None:
    """Print events, CPU seconds (of the whole process, start-up included), wall seconds and peak memory in MiB, as JSON."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    figures = {"events": events, "cpu": used.ru_utime + used.ru_stime, "wall": time.monotonic() - BEGAN}
    print(json.dumps({**figures, "peak_rss_mib": used.ru_maxrss / 1024, **more}))
