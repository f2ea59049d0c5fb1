"""Reads the keys of open gaps again and again, oldest first; resolves those that agree by now, and says how others differ.

A gap may end, or change, without any event that is late (somebody repaired the target by hand, the sink came back, an update
put a document without its unchanged fields where there was none): only reading tells. Two agreeing reads of one moment are
enough to close. What differs otherwise than the gap says is judged like any difference before the gap is brought up to date:
what is read at once may be on its way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import structlog

from gapwatch.core.confirm import Cleared, Difference, satisfied
from gapwatch.core.gaps import looks_changed, proof_of
from gapwatch.errors import StoreError
from gapwatch.model.gap import Detector, State
from gapwatch.model.pipeline import PipelineSpec
from gapwatch.ports import Clock, GapFilter, Ledger
from gapwatch.roles.repair.asking import Asking
from gapwatch.roles.repair.book import Book
from gapwatch.roles.repair.judging import Case, Decided, KeyJudge
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
    judges: Mapping[str, KeyJudge]  # its own: it judges gaps, and not suspects
    clock: Clock
    is_quiet: Callable[[str], Awaitable[bool]] = never_quiet


class Rechecker:
    def __init__(self, dependencies: RecheckerDependencies) -> None:
        self._on = dependencies
        self._cursors: dict[str, str | None] = {}
        self._found: dict[str, bool] = {}

    async def run(self, stop: asyncio.Event) -> None:
        asking = Asking(self._on.ledger, self._on.clock, seconds=OTHERS_SECONDS)
        while not stop.is_set():
            asks = asking.due() and await self._any()
            for pipeline in self._on.pipelines:
                if not self._begun(pipeline) and not asks:
                    continue
                try:
                    await self.step(pipeline)
                except StoreError as error:
                    log.warning("stores_unavailable", pipeline=pipeline, purpose="recheck", error=error.message)
            begun = any(self._begun(pipeline) for pipeline in self._on.pipelines)
            await (self._on.clock.sleep(PAUSE_SECONDS) if begun else asking.rest(PAUSE_SECONDS, stop))

    async def _any(self) -> bool:
        """Whether any pipeline has an open gap: where none has, they are not asked for one by one."""
        try:
            page = await asyncio.to_thread(self._on.ledger.gaps, GapFilter(states=STATES), limit=1)
        except StoreError as error:
            log.warning("stores_unavailable", purpose="recheck", error=error.message)
            return True
        return bool(page.gaps)

    def _begun(self, pipeline: str) -> bool:
        """Whether there were open gaps when they were read last: each is read again and again."""
        return self._found.get(pipeline, False) or bool(self._on.judges[pipeline].cases)

    async def step(self, pipeline: str) -> int:
        """Read the next batch of one pipeline's open gaps; return how many were resolved."""
        if await self._on.is_quiet(pipeline):
            return 0
        where = GapFilter(pipeline=pipeline, states=STATES)
        cursor = self._cursors.get(pipeline)
        page = await asyncio.to_thread(self._on.ledger.gaps, where, limit=BATCH, cursor=cursor)
        self._cursors[pipeline], self._found[pipeline] = page.next_cursor, bool(page.gaps or cursor)
        stores = await self._on.stores.stores(pipeline) if self._begun(pipeline) else None
        if stores is None:
            return 0
        keys = [gap.key for gap in page.gaps]
        batch = await read_batch(stores, keys, self._on.clock, once=frozenset(keys))
        judge, agreeing = self._on.judges[pipeline], list[Decided]()
        for gap in page.gaps:
            reads = batch.by_key[gap.key]
            if reads.reads.unread:
                continue
            if satisfied(reads.reads, stores.spec.match):
                agreeing.append(Decided(case=Case(key=gap.key), judgement=Cleared(reason="in_agreement"), reads=reads))
            elif looks_changed(gap, reads.reads, stores.spec.match):
                judge.add(gap.key, proof=proof_of(gap))
        decided = await judge.step()
        differing = [item for item in decided if isinstance(item.judgement, Difference)]
        await self._on.book.open(stores, differing, Detector.SWEEP, only_known=True)  # a gap keeps the detector that it has
        # What was proved since the page was read stays open: another look may have seen what came after ours.
        held = {gap.key: gap for gap in page.gaps}
        return len(await self._on.book.close(stores, agreeing, held=held, newer=False))
