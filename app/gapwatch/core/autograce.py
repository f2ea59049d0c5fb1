"""``grace: auto``: three times the delay that all but one in a thousand writes stay below, within bounds. Pure.

Delays are known as counts of buckets since the matcher's state began, so that a window is a difference of two readings, and what
is taken for the percentile is its bucket's upper bound: never too little. A suspect that turned out to have arrived late was
cleared before its delay was measured; it counts as slower than every bucket, or a short grace would hide what proves it so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

FACTOR: Final = 3
SHARE_BELOW: Final = (999, 1_000)  # p99.9, as a fraction: exact
WRITES_MIN: Final = 1_000  # fewer say nothing of one in a thousand
FALL_MAX: Final = (3, 4)  # it rises at once and falls by a quarter at a time
WINDOW_MS: Final = 3_600_000
READING_MS: Final = 60_000  # between readings that are kept
READINGS_MAX: Final = WINDOW_MS // READING_MS + 1
ABOVE: Final = -1  # the bucket above all


@dataclass(frozen=True, slots=True, kw_only=True)
class GraceBounds:
    """Milliseconds; the grace is never outside of them."""

    least: int
    most: int

    def hold(self, grace: int) -> int:
        return min(self.most, max(self.least, grace))


@dataclass(frozen=True, slots=True, kw_only=True)
class DelayReading:
    """What was counted since the beginning: delays by bucket (upper bound in ms, -1: above all), and late arrivals."""

    at_ms: int
    delays: Mapping[int, int] = field(default_factory=dict)
    late: int = 0


class DelayWindow:
    """Readings of the last hour, one a minute. A count that went back (state lost, another worker) begins it anew."""

    def __init__(self) -> None:
        self._kept: deque[DelayReading] = deque(maxlen=READINGS_MAX)

    def add(self, reading: DelayReading) -> DelayReading:
        """Take a reading; return what was counted between the oldest one of the window and this one."""
        kept = self._kept
        if kept and _went_back(kept[-1], reading):
            kept.clear()
        while len(kept) > 1 and reading.at_ms - kept[1].at_ms >= WINDOW_MS:
            kept.popleft()
        if not kept or reading.at_ms - kept[-1].at_ms >= READING_MS:
            kept.append(reading)
        first = kept[0]
        delays = {bound: count - first.delays.get(bound, 0) for bound, count in reading.delays.items()}
        return DelayReading(at_ms=reading.at_ms, delays=delays, late=reading.late - first.late)


def percentile(counted: DelayReading) -> int | None:
    """Return the upper bound of the bucket that p99.9 lies in, -1 above all; None: too few writes to say."""
    total = sum(counted.delays.values()) + counted.late
    if total < WRITES_MIN:
        return None
    share, whole = SHARE_BELOW
    below = 0
    for bound in sorted(bound for bound in counted.delays if bound != ABOVE):
        below += counted.delays[bound]
        if below * whole >= total * share:
            return bound
    return ABOVE


def settled(grace: int, counted: DelayReading, bounds: GraceBounds) -> int:
    """Return the grace that follows `grace` (all in ms), given what was counted in the window."""
    slowest = percentile(counted)
    if slowest is None:
        return bounds.hold(grace)
    wanted = bounds.hold(2 * grace if slowest == ABOVE else FACTOR * slowest)
    if wanted >= grace:
        return wanted
    share, whole = FALL_MAX
    return bounds.hold(max(wanted, grace * share // whole))


def _went_back(before: DelayReading, after: DelayReading) -> bool:
    return after.late < before.late or any(after.delays.get(bound, 0) < count for bound, count in before.delays.items())
