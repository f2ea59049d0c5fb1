"""How many records an ingester asks for, and how long it collects them.

Each poll makes a section for every raw partition and every partition of ``gapwatch.events``, and a section has its price whatever
it holds. Where traffic is thin, records are collected until the next pulse: nothing is judged before that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

RECORDS_PER_POLL: Final = 5_000  # some 15 ms of work for one turn of the event loop
POLL_SECONDS: Final = 0.08  # a fuller record costs match no more than an empty one
THIN_SECONDS: Final = 0.25
THIN_PER_SECOND: Final = 800  # records of each raw partition that brings any


class Polling:
    """The next poll of one consumer, by what the last one brought."""

    def __init__(self) -> None:
        self._seconds = POLL_SECONDS
        self._idle = self._thin = False

    def next(self, until_pulse: float) -> tuple[int, float]:
        """Return how many records to ask for, and how many seconds to collect them, where the next pulse is due in so many."""
        if self._idle:  # the first one ends the wait
            return 1, until_pulse
        self._seconds = min(max(until_pulse, POLL_SECONDS), THIN_SECONDS) if self._thin else POLL_SECONDS
        return RECORDS_PER_POLL, self._seconds

    def brought(self, records: Sequence[int]) -> None:
        """Say how many records of each partition came, of those that brought any."""
        if records and not self._idle:
            self._thin = sum(records) < min(THIN_PER_SECOND * self._seconds * len(records), RECORDS_PER_POLL)
        self._idle = not records
