"""Sends the ledger's outbox to ``gapwatch.gaps``: in order, at least once, and nothing before it is stored."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from gapwatch.ports import Clock, Ledger, OutboxRow
from gapwatch.roles.repair.asking import Asking

BATCH = 500
IDLE_SECONDS = 0.1
OTHERS_SECONDS = 2.0  # before rows are seen that another process has left


class OutboxSink(Protocol):
    async def publish(self, rows: Sequence[OutboxRow]) -> None:
        """Return when Kafka has acknowledged every row; raises FeedError otherwise."""


class OutboxPublisher:
    """Rows are marked as sent only after the acknowledgement, so a crash repeats some: readers go by gap id and revision."""

    def __init__(self, ledger: Ledger, sink: OutboxSink, clock: Clock) -> None:
        self._ledger = ledger
        self._sink = sink
        self._clock = clock

    async def run(self, stop: asyncio.Event) -> None:
        asking = Asking(self._ledger, self._clock, seconds=OTHERS_SECONDS)
        while not stop.is_set():
            if not asking.due():
                await asking.rest(IDLE_SECONDS, stop)
            elif await self.step():
                asking.again()

    async def step(self) -> int:
        """Send one batch; return how many rows it had."""
        rows = await asyncio.to_thread(self._ledger.outbox, BATCH)
        if rows:
            await self._sink.publish(rows)
            await asyncio.to_thread(self._ledger.outbox_done, [row.id for row in rows])
        return len(rows)
