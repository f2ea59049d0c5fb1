"""What the status records say of a pipeline's feeds and its sink: silent, not known how far delivered, lagging.

The status itself is judged from the same records, at once and by whoever reads them (``core/standing``). This is what is kept
of it: a finding that begins and ends. A moment of either is not told: a feed that has not spoken yet, or whose delivery position
is not read yet, gets ``stall_after``; and what was told is over once it has been so for a quarter of its limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from gapwatch.check_ports import Advice
from gapwatch.core.gaps import rfc3339
from gapwatch.core.standing import feeds_of, lagging_since
from gapwatch.errors import StoreUnreachable
from gapwatch.model.gap import Finding
from gapwatch.model.pipeline import PipelineSpec
from gapwatch.model.view import FeedView
from gapwatch.ports import Clock, Ledger
from gapwatch.roles.board import Board

CALM: Final = 0.25  # of its limit: so long nothing of it has to be seen until it is over
KINDS: Final = frozenset({Finding.FEED_STALLED, Finding.DELIVERY_UNKNOWN, Finding.SINK_LAGGING})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    finding: Finding
    side: str  # source | target
    feed: str
    message: str
    remedy: str
    limit_seconds: float
    held_seconds: float = 0.0  # how long it has to be so before it is told

    @property
    def name(self) -> tuple[str, str, str]:
        return self.finding.value, self.side, self.feed


@dataclass(slots=True, kw_only=True)
class _Told:
    seen: _Seen
    since: float
    last: float
    told: bool

    def lasts(self, now: float) -> bool:
        return self.last == now or (self.told and now - self.last < self.seen.limit_seconds * CALM)


class FeedChecks:
    """Implements :class:`gapwatch.ports.Preflight` for the feeds of one pipeline."""

    def __init__(self, pipeline: PipelineSpec, board: Board, ledger: Ledger, clock: Clock) -> None:
        self.name = "the feeds' status"
        self._pipeline = pipeline
        self._board = board
        self._ledger = ledger
        self._clock = clock
        self._told: dict[tuple[str, str, str], _Told] = {}
        self._open: frozenset[tuple[Finding, str]] | None = None  # on record when we started, by finding and side

    async def check(self) -> Sequence[Advice]:
        return await self.watch()

    async def watch(self) -> Sequence[Advice]:
        if not self._board.read_through:
            raise StoreUnreachable("The status records have not been read yet.", store="kafka")
        if self._open is None:
            records = await asyncio.to_thread(self._ledger.findings, self._pipeline.id)
            self._open = frozenset((one.finding, one.side) for one in records if one.finding in KINDS)
        now = self._clock.monotonic()
        for seen in self._seen(self._clock.now()):
            known = self._told.setdefault(seen.name, _Told(seen=seen, since=now, last=now, told=self._is_open(seen)))
            known.seen, known.last = seen, now
            known.told = known.told or now - known.since >= seen.held_seconds
        self._told = {name: one for name, one in self._told.items() if one.lasts(now)}
        return [self._advice(one.seen) for one in self._told.values() if one.told]

    async def close(self) -> None: ...

    def _is_open(self, seen: _Seen) -> bool:
        side = "expected" if seen.side == "source" else "observed"
        return self._open is not None and (seen.finding, side) in self._open

    def _seen(self, now: datetime) -> Iterator[_Seen]:
        pipeline, records = self._pipeline, self._board.records(self._pipeline.id)
        for feed in feeds_of(pipeline, records, (), now):
            side = "source" if feed.side == "expected" else "target"
            if feed.finding == Finding.DELIVERY_UNKNOWN.value:
                message, remedy = _nobody_says(pipeline, feed.topic)
                held = pipeline.stall_after_seconds
                yield _Seen(
                    finding=Finding.DELIVERY_UNKNOWN,
                    side=side,
                    feed=feed.topic,
                    message=message,
                    remedy=remedy,
                    limit_seconds=held,
                    held_seconds=held,
                )
            yield from self._stalled(feed, side, now)
        lagging = lagging_since(records, now, pipeline.lag_limit)
        if lagging is not None:
            message = f"A write has been in transit since {rfc3339(lagging)}, longer than {pipeline.lag_limit:g} s."
            remedy = "Look at the sink: its lag is not loss yet, and nothing is repaired meanwhile."
            yield _Seen(
                finding=Finding.SINK_LAGGING,
                side="target",
                feed="",
                message=message,
                remedy=remedy,
                limit_seconds=pipeline.lag_limit,
            )

    def _stalled(self, feed: FeedView, side: str, now: datetime) -> Iterator[_Seen]:
        limit = timedelta(seconds=self._pipeline.stall_after_seconds)
        if feed.caught_up and feed.watermark is not None and now - feed.watermark <= limit:
            return
        remedy = "Look whether its connector, its heartbeats and roles capture, ingest and match run; silence is not health."
        if feed.watermark is None:
            message = f"Feed {feed.topic} has proven no time yet: nothing says up to when it was read."
        else:
            what = "was not read to its end, and proves no time" if not feed.caught_up else "is silent: it proves no time"
            message = f"Feed {feed.topic} {what} after {rfc3339(feed.watermark)}."
        held = self._pipeline.stall_after_seconds if feed.watermark is None else 0.0
        yield _Seen(
            finding=Finding.FEED_STALLED,
            side=side,
            feed=feed.topic,
            message=message,
            remedy=remedy,
            limit_seconds=self._pipeline.stall_after_seconds,
            held_seconds=held,
        )

    def _advice(self, seen: _Seen) -> Advice:
        tables = self._pipeline.source.table_of if seen.side == "source" else {}
        return Advice(
            level="warning",
            subject=f"{self._pipeline.id}.{seen.side}",
            message=seen.message,
            remedy=seen.remedy,
            finding=seen.finding.value,
            table=tables.get(seen.feed, ""),
        )


def _nobody_says(pipeline: PipelineSpec, topic: str) -> tuple[str, str]:
    """Return message and remedy for a source topic of which no delivery position is known."""
    message, until = f"Nobody says how far the sink has come with {topic}: ", "until then no age can make a write late."
    if pipeline.delivery.acks_topic:
        remedy = f"Correct delivery.acks, or let the indexer's heartbeats name {topic} in `delivered`; {until}"
        return f"{message}no heartbeat in {pipeline.delivery.acks_topic} names it.", remedy
    return f"{message}its group has no committed offset there.", f"Correct delivery.group, or start the sink; {until}"
