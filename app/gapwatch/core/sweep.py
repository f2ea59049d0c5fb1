"""Which keys of two sets differ: the decision of a sweep, fed chunk by chunk from both sides (``design.md`` 8).

Each side hands in its keys in whatever order it reads them. A key that both sides have shown is settled and forgotten, so what is
kept is the distance between the two readers (small where both read in key order) and the differences. Nothing here is a gap yet:
every candidate is read again by key, after grace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from gapwatch.model.stream import Side


class Scope(StrEnum):
    FULL = "full"
    KEYS = "keys"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One key as a scan saw it. ``content`` is None in an id sweep; it is compared by the `equal` function of the sweep."""

    key: bytes
    content: object | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """Keys to read again: at the source only, at the target only, on both with other content, several times on one side."""

    source_only: Sequence[bytes]
    target_only: Sequence[bytes]
    differing: Sequence[bytes]

    def all(self) -> list[bytes]:
        return list(dict.fromkeys((*self.source_only, *self.target_only, *self.differing)))


class SetDifference:
    """The symmetric difference of two streams of entries.

    Args:
        equal: Says whether the contents of a source and a target entry agree; not called in an id sweep.
    """

    def __init__(self, equal: Callable[[object, object], bool]) -> None:
        self._equal = equal
        self._open: tuple[dict[bytes, object | None], dict[bytes, object | None]] = ({}, {})
        self._differing: dict[bytes, None] = {}
        self.compared = [0, 0]

    @property
    def held(self) -> int:
        """How many keys wait for their counterpart: the memory in use."""
        return len(self._open[0]) + len(self._open[1])

    def lead(self) -> Side:
        """Return the side that is ahead, i.e. has more keys waiting: the other one should read next."""
        return Side.EXPECTED if len(self._open[0]) >= len(self._open[1]) else Side.OBSERVED

    def add(self, side: Side, entries: Iterable[Entry]) -> None:
        mine, other = self._open[side], self._open[1 - side]
        count = 0
        for entry in entries:
            count += 1
            if entry.key not in other:
                if entry.key in mine:
                    self._differing[entry.key] = None  # twice on one side: a duplicate, or a key that moved while we read
                mine[entry.key] = entry.content
                continue
            counterpart = other.pop(entry.key)
            if entry.content is None or counterpart is None:
                continue
            pair = (entry.content, counterpart) if side is Side.EXPECTED else (counterpart, entry.content)
            if not self._equal(*pair):
                self._differing[entry.key] = None
        self.compared[side] += count

    def finish(self) -> Candidates:
        return Candidates(source_only=list(self._open[0]), target_only=list(self._open[1]), differing=list(self._differing))


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepOutcome:
    """What is known when both scans ended and every candidate was judged."""

    complete: bool  # every page of both sides was read
    undecided: int  # candidates that could not be judged
    emptiness_proved: bool  # where a side showed nothing, a second query said so too
    identity_stable: bool  # the scanned objects are still the ones that were scanned

    @property
    def conclusive(self) -> bool:
        return self.complete and self.undecided == 0 and self.emptiness_proved and self.identity_stable

    def reason(self) -> str:
        """Say in one sentence why the sweep is inconclusive; empty when it is not."""
        if not self.complete:
            return "A page of one side could not be read."
        if not self.identity_stable:
            return "A table or collection was replaced while it was read."
        if not self.emptiness_proved:
            return "A side showed no rows, and a second query did not confirm that it is empty."
        if self.undecided:
            return f"{self.undecided} differing keys could not be judged."
        return ""
