"""Few holes in the place of many: what they hold is never less, and only what is old holds for longer than it has to.

A reader asks of the holes of a partition: which of them ended no earlier than the last sweep began, and where do these begin? Two
that are joined answer as one would that reaches from the first one's beginning to the second one's end, so the answer differs
only where a sweep began between their ends, and then time is held too early, never too late. The matcher knows no sweeps. But
there is one after each hole, as a rule: what is old is covered. So those are joined that together are the shortest beside their
age. Of what is young, nothing is joined that lies apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import msgspec
import xxhash

from gapwatch.model.suspect import Hole


def bounded(holes: Sequence[Hole], most: int) -> list[Hole]:
    """Return `most` holes or fewer that hold whatever these hold, whenever a sweep may have begun.

    One without a beginning is held from the sweep before it on, so it is joined with none that has one: that would
    hide when the other one began.
    """
    if len(holes) <= most:
        return list(holes)
    begun = _outermost([hole for hole in holes if hole.time_from > 0])
    never = sorted((hole for hole in holes if hole.time_from <= 0), key=lambda hole: hole.time_to)
    latest = max(hole.time_to for hole in holes)
    while len(begun) + len(never) > most:
        _, among, at = min(_prices(begun, never, latest))
        row = (begun, never)[among]
        row[at : at + 2] = [_joined(row[at], row[at + 1])]
    return never + begun


def _outermost(holes: Sequence[Hole]) -> list[Hole]:
    """Leave out holes within others: those hold from earlier, and for longer. Beginnings and ends then come in one order."""
    kept: list[Hole] = []
    for hole in sorted(holes, key=lambda hole: (hole.time_from, -hole.time_to)):
        if not kept or hole.time_to > kept[-1].time_to:
            kept.append(hole)
    return kept


def _prices(begun: Sequence[Hole], never: Sequence[Hole], latest: int) -> Iterator[tuple[float, int, int]]:
    """Yield, for each two neighbours, how long they would be beside their age; then which row they are in, and where."""
    for among, row in enumerate((begun, never)):
        for at, (first, second) in enumerate(pairwise(row)):
            since = first.time_from if first.time_from > 0 else first_end(first)
            yield (second.time_to - since) / (latest - second.time_to + 1), among, at


def _joined(first: Hole, second: Hole) -> Hole:
    """Join neighbours; the name is a new one, as the same hole may be said once more, and takes its own place then."""
    return msgspec.structs.replace(
        second,
        id="hole_" + xxhash.xxh3_128_hexdigest(f"{first.id}\0{second.id}".encode()),
        time_from=first.time_from,
        first_to=first_end(first) if first.time_from <= 0 else 0,
    )


def first_end(hole: Hole) -> int:
    """Return where the first of the holes ended that were joined to this one."""
    return hole.first_to or hole.time_to
