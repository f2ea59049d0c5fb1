"""What one partition holds of one pipeline's keys: the keys themselves, what was counted of them, and how many there may be.

Counters and limits are the partition's own: what happens in it is a function of its records alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from gapwatch.core.compiledrows import RowsModule
from gapwatch.core.keyrows import KeyRows
from gapwatch.core.keystate import KeyState, compact_pending, compact_settled, pending_state, settled_state
from gapwatch.core.segments import SegmentLog
from gapwatch.model.suspect import Counters, Hole

DELAY_BOUNDS_MS: Final = (50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 120_000, 300_000, 600_000, 3_600_000)


class Limits:
    """A pipeline's limits in one partition: its share, as the keys are spread by their hash."""

    __slots__ = ("pending", "raised", "settled")

    def __init__(self, *, pending: int, raised: int, settled: int, shares: int) -> None:
        self.pending = max(1, pending // shares)
        self.raised = max(1, raised // shares)
        self.settled = max(1, settled // shares)


class Cell:
    """Args:
    limits: How many keys there may be.
    parts: Of a full identity, as :class:`KeyRows`.
    prefix: Of the names of the segments, as :class:`SegmentLog`.
    native: The compiled module, as :class:`KeyRows`.
    """

    def __init__(self, limits: Limits, *, parts: int, prefix: str, native: RowsModule | None = None) -> None:
        self.limits = limits
        self.rows = KeyRows(parts, native)
        self.segments = SegmentLog(self.rows, prefix)
        self.raised: set[bytes] = set()
        self.counters = Counters()
        self.delays = [0] * (len(DELAY_BOUNDS_MS) + 1)
        self.hole: Hole | None = None  # what overflowed

    def state(self, key: bytes) -> KeyState:
        """Return what is known of a key, in its long form; a blank one of an unknown key."""
        held, is_open = self.rows.held(key)
        if held is None:
            return KeyState()
        return pending_state(held) if is_open else settled_state(held)

    def file(self, key: bytes, state: KeyState, *, is_open: bool) -> bool:
        """File a key's state as the most recently changed; return whether it is open and out of reach of the rows' due times."""
        if is_open and state.raised:
            self.raised.add(key)
        elif self.raised:
            self.raised.discard(key)
        return self.rows.put(key, compact_pending(state) if is_open else compact_settled(state), is_open=is_open) and is_open

    def drop(self, key: bytes) -> None:
        self.rows.drop(key)
        self.raised.discard(key)

    def pack(self) -> dict[str, Any]:
        """Return what the commit marker holds of the keys: which segments are theirs, and what was counted."""
        return {
            "segments": self.segments.listed,
            "clock": self.rows.clock,
            "evicted_below": self.rows.evicted_below,
            "counters": self.counters,
            "delays": self.delays,
            "overflow": self.hole,
        }

    def unpack(self, packed: Mapping[str, Any], records: Mapping[str, bytes]) -> None:
        self.rows.clock, self.rows.evicted_below = packed["clock"], packed["evicted_below"]
        self.segments.restore(packed["segments"], records)
        self.counters = msgspec.convert(packed["counters"], Counters)
        self.delays = list(packed["delays"])
        self.hole = msgspec.convert(packed["overflow"], Hole) if packed["overflow"] is not None else None
        self.raised = {key for key, held in self.rows.open_long() if isinstance(held, KeyState) and held.raised}
