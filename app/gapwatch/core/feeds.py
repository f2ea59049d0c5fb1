"""Ingest's side of time: of one raw partition what was read, what was sent on, and how far time has come (``design.md`` 2 and 3).

Pure. The role reads Kafka and asks the clock; what it learnt is handed in here, and what must be sent comes out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import msgspec

from gapwatch.core.envelopes.records import HeartbeatRow
from gapwatch.model.stream import UNKNOWN_DELIVERY, FeedState, Lost, Side

ROWS_KEPT: Final = 256  # heartbeat rows that wait for their successor
CHECKS_KEPT: Final = 64


class Metadata(msgspec.Struct, kw_only=True, rename={"topic_id": "t", "epoch": "e", "major": "m", "minor": "n", "time": "c"}):
    """What stands beside a committed raw offset: which log it belongs to, and the highest position before it."""

    topic_id: str = ""
    epoch: int = 0
    major: int = -1
    minor: int = -1
    time: int = 0

    def encode(self) -> str:
        return msgspec.json.encode(self).decode()

    @classmethod
    def decode(cls, text: str) -> Metadata | None:
        """Return it, None where there is none or somebody else wrote it."""
        try:
            return msgspec.json.decode(text.encode(), type=cls)
        except msgspec.DecodeError:
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """An end of the log, with our clock before it was fetched, and the time that heartbeat rows prove once it is reached."""

    end: int
    clock: int
    proven: int


@dataclass(slots=True, kw_only=True)
class FeedProgress:
    """One owned partition of a raw topic. Times in milliseconds, 0: not known.

    ``position``: the next offset to be read. ``sent``: up to where ranges were sent, the same for all partitions of
    ``gapwatch.events``. ``highest``: the highest position seen, with its commit time.
    """

    topic: str
    partition: int
    partitions: int
    epoch: int
    position: int
    sent: int
    disorder_ms: int
    by_markers: bool = False  # events come in no order of time: markers alone tell how far it has come
    highest: tuple[int, int] = (-1, -1)
    highest_time: int = 0
    watermark: int = 0
    caught_up: int = 0
    lost: list[Lost] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    def jumped(self, major: int, minor: int, event_time: int) -> bool:
        """Take one streamed event's position; True when the history is broken: lower, but committed clearly later."""
        here = (major, minor)
        if here >= self.highest:
            self.highest, self.highest_time = here, max(self.highest_time, event_time)
            return False
        return event_time > self.highest_time + self.disorder_ms

    def begin_epoch(self, epoch: int, offset: int) -> None:
        """Start anew at `offset`: positions before it belong to another history."""
        self.epoch, self.highest, self.highest_time, self.sent = epoch, (-1, -1), 0, offset

    def streamed(self, event_time: int) -> None:
        """A streamed record of this partition proves the time before it."""
        if not self.by_markers:
            self.watermark = max(self.watermark, event_time - self.disorder_ms)

    def marked(self, watermark: int) -> None:
        """A marker in the feed itself: everything before it precedes it here."""
        self.watermark = max(self.watermark, watermark)

    def read_to(self, position: int) -> None:
        """Say up to where the partition was read; what had been asked of that position holds now."""
        self.position = max(self.position, position)
        reached = [check for check in self.checks if check.end <= self.position]
        if reached:
            self.checks = [check for check in self.checks if check.end > self.position]
            self.caught_up = max(self.caught_up, *(check.clock for check in reached))
            self.watermark = max(self.watermark, *(check.proven for check in reached))

    def check(self, check: Check) -> None:
        """Remember an end of the log that was fetched."""
        self.checks.append(check)
        if len(self.checks) > CHECKS_KEPT:
            del self.checks[CHECKS_KEPT // 2]  # the oldest proves soonest, the newest most
        self.read_to(self.position)

    def lose(self, offset_from: int, offset_to: int, time: int, reason: str) -> None:
        """Declare a range that nobody can judge; ``time`` is what is known of when it was written."""
        self.lost.append(Lost(offset_from, offset_to, time, time, reason))

    def state(self, pipeline: str, side: Side, *, delivery: int, delivery_clock: int) -> FeedState:
        """Return what a control record says of this partition now; its range ends at what was read."""
        return FeedState(
            pipeline=pipeline,
            side=int(side),
            feed=self.topic,
            feed_partition=self.partition,
            partitions=self.partitions,
            epoch=self.epoch,
            offset_from=self.sent,
            offset_to=self.position,
            watermark=self.watermark,
            caught_up=self.caught_up,
            delivery=delivery,
            delivery_clock=delivery_clock,
            lost=list(self.lost),
        )


@dataclass(slots=True)
class HeartbeatRows:
    """The heartbeat rows of one source, as one ingester reads them: all of them, in one order, outside the group.

    Args:
        settle_ms: How far behind a row its successor's append time must lie before the row proves anything.
        disorder_ms: Subtracted from a row's commit time.
    """

    settle_ms: int
    disorder_ms: int
    rows: list[tuple[int, int]] = field(default_factory=list)  # append time, commit time
    numbers: dict[str, int] = field(default_factory=dict)
    proven: int = 0

    def read(self, row: HeartbeatRow) -> bool:
        """Take a row; False when a number of its sender was skipped: rows are missing, so the history is broken."""
        complete = True
        if row.number is not None:
            before = self.numbers.get(row.sender)
            complete = before is None or row.number <= before + 1
            self.numbers[row.sender] = max(row.number, before or 0)
        self.rows.append((row.append_time, row.event_time))
        settled = [commit for append, commit in self.rows if row.append_time - append >= self.settle_ms]
        if settled:
            self.proven = max(self.proven, max(settled) - self.disorder_ms)
            self.rows = [(append, commit) for append, commit in self.rows if row.append_time - append < self.settle_ms]
        del self.rows[:-ROWS_KEPT]
        return complete


def delivery_of(position: int | None, end: int) -> int:
    """Return the delivery position of a partition: a group that never committed has one only where there is nothing to commit."""
    if position is not None:
        return position
    return 0 if end == 0 else UNKNOWN_DELIVERY
