"""How much of the time a sweep may keep a store busy: as little as lets it end when it has to.

A sweep that somebody waits for takes its share of the time (``sweep.load``). One that is only due has until well before the next
one: it is spread over that, so that whoever else asks the stores hardly notices, and it hurries once somebody does wait for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from gapwatch.core.cron import next_due
from gapwatch.model.gap import Run
from gapwatch.model.pipeline import SweepSpec
from gapwatch.ports import Clock

WITHIN: Final = "within"  # in a run's request: the seconds that it may take, for nobody waits for it
OF_INTERVAL: Final = 0.25  # of the time up to the next scheduled sweep, where the configuration does not say how much …
WITHIN_SECONDS_MAX: Final = 900.0  # … and no longer: a scan holds a snapshot of an index open, and what it proves is of its start
LEAST: Final = 0.001  # share of the time; a chunk that takes milliseconds is followed by a pause of seconds at most
UNMEASURED: Final = 0.05  # share of the time where nobody knows how much there is to read
PAUSE_SECONDS_MAX: Final = 1.0  # without a look at whether somebody waits by now
REST_SECONDS_MAX: Final = (
    60.0  # after one chunk, however long it took: a store closes what nobody reads on (an index after 5 min)
)


def within_seconds(spec: SweepSpec, clock: Clock) -> float:
    """Return how long a sweep that the schedule asks for now may take; 0: as little as its load allows."""
    if spec.within_seconds is not None:
        return spec.within_seconds
    now, interval = clock.now(), spec.every_seconds or 0.0
    if spec.cron:
        interval = (next_due(spec.cron, now) - now).total_seconds()
    return min(interval * OF_INTERVAL, WITHIN_SECONDS_MAX)


class Leisure:
    """The pace of one sweep. ``hurried``: somebody waits for it by now.

    Args:
        most: The share of the time that a side may be kept busy, 0 < most <= 1.
        within: Seconds that the sweep may take; 0: it takes the most all the time.
        since: How many of them have passed, where another worker began it.
    """

    def __init__(self, clock: Clock, *, most: float, within: float, since: float = 0.0) -> None:
        self._clock = clock
        self._ends = clock.monotonic() + within - since
        self.most = most
        self.hurried = within <= 0

    @classmethod
    def of(cls, run: Run, most: float, clock: Clock) -> Leisure:
        """Return the pace that a run asks for."""
        since = (clock.now() - run.started_at).total_seconds() if run.started_at is not None else 0.0
        return cls(clock, most=most, within=float(run.request.get(WITHIN, 0.0)), since=since)

    def seldom(self, seconds: float, times: int = 10) -> float:
        """Return how long to wait between two looks: so many times as long where nobody waits for the sweep."""
        return seconds if self.hurried else seconds * times

    def share(self, busy: float, done: int, total: int) -> float:
        """Return the share of the time that a side may be kept busy now.

        Args:
            busy: Seconds that reading has taken so far.
            done: Rows that it has read.
            total: Rows that there are, as far as the store can say; 0: it cannot.
        """
        left = self._ends - self._clock.monotonic()
        if self.hurried or left <= 0:
            return self.most
        if not 0 < done < total:
            return min(self.most, UNMEASURED)
        return min(self.most, max(LEAST, busy / done * (total - done) / left))


class SidePace:
    """The pace of one side of a sweep. ``total``: rows that it has, as far as the store can say; 0: it cannot."""

    def __init__(self, leisure: Leisure, clock: Clock, total: int = 0) -> None:
        self._leisure = leisure
        self._clock = clock
        self._busy = 0.0
        self._done = 0
        self.total = total

    async def rest(self, took: float, rows: int, *, meanwhile: Callable[[], Awaitable[None]] | None = None) -> None:
        """Leave the store alone, as long as it takes, after reading so many rows in so many seconds.

        ``meanwhile``: called again and again, where nobody else renews the lease or looks who waits.
        """
        self._busy += took
        self._done += rows
        began = self._clock.monotonic()
        while True:
            share = self._leisure.share(self._busy, self._done, self.total)
            left = min(took * (1 - share) / share, REST_SECONDS_MAX) - (self._clock.monotonic() - began)
            if left <= 0:
                return
            await self._clock.sleep(min(left, PAUSE_SECONDS_MAX))
            if meanwhile is not None:
                await meanwhile()
