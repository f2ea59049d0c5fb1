"""Reads the keys of open gaps again and again, oldest first, and resolves those that agree by now.

A gap may end without any event that the stream shows (somebody repaired the target by hand, the sink came back): only
reading tells. Two agreeing reads of one moment are enough to close; a difference needs no second proof, the gap is open already.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import structlog

from gapwatch.core.confirm import Cleared, satisfied
from gapwatch.errors import StoreError
from gapwatch.model.gap import State
from gapwatch.model.pipeline import PipelineSpec
from gapwatch.ports import Clock, GapFilter, Ledger
from gapwatch.roles.repair.asking import Asking
from gapwatch.roles.repair.book import Book
from gapwatch.roles.repair.judging import Case, Decided
from gapwatch.roles.repair.quiet import never_quiet
from gapwatch.roles.repair.reads import read_batch
from gapwatch.roles.stores import StoreProvider

log = structlog.get_logger(__name__)

BATCH = 200
OTHERS_SECONDS = 5.0  # before a gap is seen that another process has stored
PAUSE_SECONDS = 1.0  # between batches: at most 200 keys a second and pipeline are read for this
STATES = (State.OPEN.value, State.ACKNOWLEDGED.value, State.SNOOZED.value)  # one that is repairing is read by its backfill


@dataclass(frozen=True, slots=True, kw_only=True)
class RecheckerDependencies:
    pipelines: Mapping[str, PipelineSpec]
    ledger: Ledger
    book: Book
    stores: StoreProvider
    clock: Clock
    is_quiet: Callable[[str], Awaitable[bool]] = never_quiet


class Rechecker:
    def __init__(self, dependencies: RecheckerDependencies) -> None:
        self._on = dependencies
        self._cursors: dict[str, str | None] = {}
        self._found: dict[str, bool] = {}

    async def run(self, stop: asyncio.Event) -> None:
        asking = {name: Asking(self._on.ledger, self._on.clock, seconds=OTHERS_SECONDS) for name in self._on.pipelines}
        while not stop.is_set():
            for pipeline in self._on.pipelines:
                if not self._begun(pipeline) and not asking[pipeline].due():
                    continue
                try:
                    await self.step(pipeline)
                except StoreError as error:
                    log.warning("stores_unavailable", pipeline=pipeline, purpose="recheck", error=error.message)
            await self._on.clock.sleep(PAUSE_SECONDS)

    def _begun(self, pipeline: str) -> bool:
        """Whether there were open gaps when they were read last: each is read again and again."""
        return self._found.get(pipeline, False)

    async def step(self, pipeline: str) -> int:
        """Read the next batch of one pipeline's open gaps; return how many were resolved."""
        if await self._on.is_quiet(pipeline):
            return 0
        where = GapFilter(pipeline=pipeline, states=STATES)
        cursor = self._cursors.get(pipeline)
        page = await asyncio.to_thread(self._on.ledger.gaps, where, limit=BATCH, cursor=cursor)
        self._cursors[pipeline], self._found[pipeline] = page.next_cursor, bool(page.gaps or cursor)
        if not page.gaps:
            return 0
        stores = await self._on.stores.stores(pipeline)
        batch = await read_batch(stores, [gap.key for gap in page.gaps], self._on.clock)
        agreeing = [
            Decided(case=Case(key=key), judgement=Cleared(reason="in_agreement"), reads=reads)
            for key, reads in batch.by_key.items()
            if not reads.reads.unread and satisfied(reads.reads, stores.spec.match)
        ]
        return len(await self._on.book.close(stores, agreeing))
