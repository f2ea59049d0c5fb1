"""What a contestant's process used, as it prints it; and rows of the report."""

from __future__ import annotations

import json
import math
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BEGAN = time.monotonic()


def report(events: int, **more: object) -> None:
    """Print events, CPU seconds (of the whole process, start-up included), wall seconds and peak memory in MiB, as JSON."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    figures = {"events": events, "cpu": used.ru_utime + used.ru_stime, "wall": time.monotonic() - BEGAN}
    print(json.dumps({**figures, "peak_rss_mib": peak_mib(), **more}))


def peak_mib() -> float:
    """Return the peak of this program alone: ``ru_maxrss`` begins with what the parent held when it forked."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status does not tell a peak")


def percentile(values: Sequence[float], share: float) -> float:
    """Return the least value that so large a share of all does not exceed (nearest rank)."""
    if not values:
        raise ValueError("nothing was measured")
    return sorted(values)[max(math.ceil(share * len(values)), 1) - 1]


def row(
    number: int, name: str, value: float, unit: str, reference: float, goal: str, most: float = math.inf, rss_mib: float = 0.0
) -> dict[str, Any]:
    """Return a row of the report; it is met while the ratio to the reference is at most `most`."""
    return {
        "row": number,
        "name": name,
        "value": value,
        "unit": unit,
        "reference": reference,
        "ratio": value / reference,
        "goal": goal,
        "met": value / reference <= most,
        "peak_rss_mib": rss_mib,
    }
