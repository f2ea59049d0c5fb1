"""Coverage: the share of the last hour's closed expected writes that were proven either way."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from gapwatch.model.suspect import Closed, Counters

STEP_MS: Final = 300_000
STEPS: Final = 12  # an hour of them, and the one that is not over


class LastHour:
    """What had been counted whenever five minutes of the stream's time (append times) began, as far back as an hour."""

    def __init__(self) -> None:
        self.marks: list[tuple[int, Closed]] = []

    def pass_to(self, step: int, counted: Callable[[], Closed]) -> None:
        """Say that time is in this step now; what is counted from here on is the step's."""
        if self.marks and step <= self.marks[-1][0]:
            return
        self.marks.append((step, counted()))
        while self.marks[0][0] < step - STEPS:
            del self.marks[0]

    def closed(self, now: Closed) -> Closed:
        """Return what was counted within the hour."""
        return _minus(now, self.marks[0][1]) if self.marks else now

    def pack(self) -> list[tuple[int, Closed]]:
        return self.marks

    def unpack(self, packed: object) -> None:
        self.marks = msgspec.convert(packed, list[tuple[int, Closed]])


def closed_of(counters: Counters) -> Closed:
    """Return the closed writes among everything that is counted."""
    return Closed(
        settled=counters.settled + counters.cleared,
        superseded=counters.superseded,
        gap=counters.gap,
        masked=counters.masked,
        unverifiable=sum(counters.unverifiable.values()),
    )


def together(parts: Iterable[Closed]) -> Closed:
    """Return the sum over partitions."""
    total = Closed()
    for part in parts:
        total = Closed(*(getattr(total, name) + getattr(part, name) for name in Closed.__struct_fields__))
    return total


def ratio(closed: Closed, *, masked: int, accepted: int) -> float | None:
    """Return (settled + superseded + gap) / all closed writes; None when none is closed.

    Args:
        closed: The closed writes.
        masked: How many of the settled ones had a field in no event, and were not read in full since: nobody can verify them.
        accepted: How many of the gaps somebody accepted: they are in neither.
    """
    masked = min(masked, closed.masked)
    gap = max(0, closed.gap - accepted)
    proven = closed.settled - masked + closed.superseded + gap
    total = proven + closed.unverifiable + masked
    return proven / total if total else None


def _minus(one: Closed, other: Closed) -> Closed:
    return Closed(*(getattr(one, name) - getattr(other, name) for name in Closed.__struct_fields__))
