"""Ingest's side of time: of one raw partition what was read, what was sent on, and how far time has come (``design.md`` 2 and 3).

Pure. The role reads Kafka and asks the clock; what it learnt is handed in here, and what must be sent comes out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Final

import msgspec

from gapwatch.core.envelopes.columns import Columns
from gapwatch.core.envelopes.records import HeartbeatRow
from gapwatch.model.stream import UNKNOWN_DELIVERY, FeedState, Lost, Operation, Side

ROWS_KEPT: Final = 256  # heartbeat rows that wait for their successor
CHECKS_KEPT: Final = 64
COMPACTED: Final = "ingest_hole"


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
    ``gapwatch.events``. ``highest``: the highest position seen, with its commit time. ``begun``: where the epoch began, if it
    began here; it begins there once. ``compacted``: offsets may be missing because the broker removed their records; below
    ``history_to`` that is history, which the baseline judges. ``created``: when the last record that was read here was handed
    to its producer, 0 where the topic keeps the broker's time instead.
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
    compacted: bool = False
    history_to: int = 0
    watermark: int = 0
    caught_up: int = 0
    created: int = 0
    begun: int = -1
    lost: list[Lost] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    def jumped(self, major: int, minor: int, event_time: int) -> bool:
        """Take one streamed event's position; True when the history is broken: lower, but committed clearly later."""
        here = (major, minor)
        if here >= self.highest:
            self.highest, self.highest_time = here, max(self.highest_time, event_time)
            return False
        return event_time > self.highest_time + self.disorder_ms

    def follow(self, batches: Sequence[Columns], offset_from: int) -> int | None:
        """Take the positions of all streamed events at and after `offset_from`; each of the batches is of one pipeline.

        Returns the offset of the first event that breaks the history, None when none does; positions behind it are not taken.
        """
        if len(batches) == 1 and self._rise(batches[0], offset_from):
            return None
        entries = [
            (offset, major, minor, time)
            for batch in batches
            for offset, major, minor, time, operation in zip(
                batch.offsets, batch.majors, batch.minors, batch.event_times, batch.operations, strict=True
            )
            if offset >= offset_from and operation != Operation.SNAPSHOT
        ]
        entries.sort(key=itemgetter(0))
        for offset, major, minor, time in entries:
            if self.jumped(major, minor, time) and offset != self.begun:
                return offset
            self.streamed(time)
        return None

    def _rise(self, batch: Columns, offset_from: int) -> bool:
        """Take a whole batch of streamed events whose positions rise, which is usual; False: look at each."""
        if not len(batch):
            return True
        risen = batch.rising(offset_from, self.highest, Operation.SNAPSHOT)
        if risen is None:
            return False
        major, minor, newest = risen
        self.highest, self.highest_time = (major, minor), max(self.highest_time, newest)
        self.streamed(newest)
        return True

    def begin_epoch(self, epoch: int, offset: int) -> None:
        """Start anew at `offset`: positions before it belong to another history."""
        self.epoch, self.highest, self.highest_time, self.sent, self.begun = epoch, (-1, -1), 0, offset, offset

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

    def lose(self, offset_from: int, offset_to: int, reason: str, *, time_from: int = 0, time_to: int = 0) -> None:
        """Declare a range that nobody can judge. The times say between which it was written; 0: up to now, for all we know."""
        self.lost.append(Lost(offset_from, offset_to, time_from, time_to, reason))

    def arrived(self, offsets: Iterable[int]) -> None:
        """Say which records came next. What a compacted log passes over was removed before we came: deletes as well."""
        if not self.compacted:
            return
        position = self.position
        for offset in offsets:
            start = max(position, self.history_to)
            if offset > start:
                if self.lost and self.lost[-1].reason == COMPACTED:  # one stretch a pulse, however many pieces are missing
                    start = self.lost.pop().offset_from
                self.lose(start, offset, COMPACTED)
            position = offset + 1

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
    rows: list[tuple[int, tuple[int, int], int]] = field(default_factory=list)  # append time, position, commit time
    last: dict[str, tuple[int, int]] = field(default_factory=dict)  # by sender: number and commit time
    run: list[tuple[int, tuple[int, int], int]] = field(default_factory=list)  # the last rows, rising since a connector's start
    proven: int = 0

    def proven_before(self, created: int) -> int | None:
        """Return what the rows prove of a partition in which a record of this CreateTime was read; None: not to be said yet.

        A connector sends in the order of the log, and each partition keeps that order: a record that was sent after a row has
        everything before it that the row speaks of. ``settle`` lies between the two, in case the clock was set back. A connector
        that starts again repeats rows; so the next row must have come, and have risen.
        """
        if not self.run or self.run[-1][0] < created:
            return None
        return max([commit - self.disorder_ms for append, _, commit in self.run if append + self.settle_ms <= created], default=0)

    def read(self, row: HeartbeatRow, *, created: bool = True) -> int | None:
        """Take a row. When a number of its sender was skipped, the history is broken: return the time from which on it is.

        ``created``: whether its append time is when it was handed to the producer (CreateTime).

        A row that goes back in the log was sent by a connector that had started again, because not all that it had sent before
        was acknowledged: rows from there on prove nothing until they, too, have come again.
        """
        broken_since = None
        if row.number is not None:
            before, time = self.last.get(row.sender, (row.number, row.event_time))
            if row.number > before + 1:
                broken_since = time - self.disorder_ms
            if row.number >= before:
                self.last[row.sender] = (row.number, row.event_time)
        position = (row.major, row.minor)
        self.rows = [known for known in self.rows if known[1] < position]
        self.rows.append((row.append_time, position, row.event_time))
        if self.run and (self.run[-1][1] >= position or not created):
            self.run.clear()
        if created:
            self.run.append(self.rows[-1])
        settled = [commit for append, _, commit in self.rows if row.append_time - append >= self.settle_ms]
        if settled:
            self.proven = max(self.proven, max(settled) - self.disorder_ms)
            self.rows = [known for known in self.rows if row.append_time - known[0] < self.settle_ms]
        del self.rows[:-ROWS_KEPT], self.run[:-ROWS_KEPT]
        return broken_since


@dataclass(slots=True)
class StandingEnd:
    """The end of one log, as it was fetched again and again.

    After an outage, or behind a large transaction, heartbeat rows overtake the changes that still wait in the connector's
    producer. So what they prove holds of an end only if that stood still for a while after they were read: then nothing waits.
    An end that never does is proved by its records, see :class:`Follower`.
    """

    still_ms: int
    end: int = -1
    seen: list[tuple[int, int]] = field(default_factory=list)  # our clock before it was fetched, and what was proven then

    def proven(self, end: int, clock: int, proven: int) -> int:
        """Take an end; return what heartbeat rows proved of it before it stood still, 0 where nothing yet."""
        if end != self.end:
            self.end, self.seen = end, []
        self.seen.append((clock, proven))
        while len(self.seen) > 1 and self.seen[1][0] <= clock - self.still_ms:
            del self.seen[0]
        since, found = self.seen[0]
        return found if since <= clock - self.still_ms else 0


@dataclass(slots=True)
class Follower:
    """One record of a partition that waits for the next heartbeat row, to prove the time of those before it.

    An incremental snapshot of hours moves the ends of its partitions all the time, and its reads prove nothing themselves.
    """

    created: int = 0

    def proven(self, created: int, rows: HeartbeatRows) -> int:
        """Return what is proven of the partition, 0: nothing new. ``created``: CreateTime of the last record that was read."""
        self.created = self.created or created
        found = rows.proven_before(self.created) if self.created else None
        if found is None:
            return 0
        self.created = created
        return found


def delivery_of(position: int | None, end: int) -> int:
    """Return the delivery position of a partition: a group that never committed has one only where there is nothing to commit."""
    if position is not None:
        return position
    return 0 if end == 0 else UNKNOWN_DELIVERY
