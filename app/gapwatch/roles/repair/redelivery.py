"""Backfill without writing: the pipeline itself delivers rows again, and reading the stores says whether it has.

What is asked for is audited before, and what came of it after. A document counts as written when it was read back right, and as
failed when it is still not right some time after it was asked for. Nothing has to be taken back: nothing was written past the
pipeline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from gapwatch.core.backfill import ItemOutcome
from gapwatch.core.confirm import Cleared, Presence, satisfied
from gapwatch.ports import StoredRecord
from gapwatch.roles.repair.backfill_work import BackfillBooks, BackfillDependencies, Work
from gapwatch.roles.repair.judging import Case, Decided
from gapwatch.roles.repair.reads import KeyReads, read_batch
from gapwatch.roles.repair.resending import ResendRequest

PATIENCE_SECONDS: Final = 60.0  # and twice the grace: how long the pipeline has for what it was asked for
LOOK_SECONDS: Final = 0.5
DELIVERED: Final = "delivered again and read back right"  # the reason of an audit row whose document nobody here has written


class Redelivery:
    def __init__(self, dependencies: BackfillDependencies, books: BackfillBooks) -> None:
        self._on = dependencies
        self._books = books

    async def run(self, work: Work, batch: Sequence[Decided], renew: Callable[[], Awaitable[None]]) -> None:
        """Ask for one batch and wait for it; ``renew`` keeps the run ours meanwhile. Raises StoreError if nobody can be asked."""
        why = f"asked by mode {work.mode.value}"
        rows = [self._books.row(work, item.case.key, ItemOutcome.REQUESTED, why) for item in batch]
        await asyncio.to_thread(self._on.ledger.audit, rows, by=work.run)
        resender = self._on.resender(work.stores, work.mode)
        try:
            await work.tenure.assure(work.tally)
            refusals = await resender.ask([_request(work, item) for item in batch], run_id=work.run.id)
        finally:
            await resender.close()
        work.tally.batch()
        asked: list[Decided] = []
        for item, refusal in zip(batch, refusals, strict=True):
            if refusal:
                await self._books.conclude(work, item.case.key, ItemOutcome.FAILED, refusal)
            else:
                asked.append(item)
        await self._wait(work, asked, renew)

    async def _wait(self, work: Work, asked: Sequence[Decided], renew: Callable[[], Awaitable[None]]) -> None:
        clock = self._on.clock
        patience = PATIENCE_SECONDS + 2 * self._on.grace_ms(work.run.pipeline) / 1000
        until = clock.monotonic() + patience
        left = {item.case.key for item in asked}
        unread: set[bytes] = set()
        while left and clock.monotonic() < until:
            batch = await read_batch(work.stores, left, clock)
            right = {
                key: reads
                for key, reads in batch.by_key.items()
                if satisfied(reads.reads, work.stores.spec.match) and reads.reads.source_stood_still
            }
            unread = {key for key, reads in batch.by_key.items() if reads.reads.unread}
            await self._arrived(work, right)
            left -= right.keys()
            await renew()
            if left:
                await clock.sleep(LOOK_SECONDS)
        for key in sorted(left):
            if key in unread:
                await self._books.conclude(work, key, ItemOutcome.UNREAD, "asked for, but the stores were not read since")
            else:
                reason = f"The pipeline was asked to deliver it again, and the target is not right {patience:.0f} s later."
                await self._books.conclude(work, key, ItemOutcome.FAILED, reason)

    async def _arrived(self, work: Work, right: dict[bytes, KeyReads]) -> None:
        if not right:
            return
        rows = []
        for key, reads in right.items():
            gone = reads.reads.after.presence is Presence.ABSENT
            outcome = ItemOutcome.VANISHED if gone else ItemOutcome.WRITTEN
            self._books.count(work, key, outcome)
            after = None if gone else reads.reads.after.identity.hex()
            rows.append(self._books.row(work, key, outcome, DELIVERED, after=after))
        work.tally.verified(len(right))
        await asyncio.to_thread(self._on.ledger.audit, rows, by=work.run)
        decided = [
            Decided(case=Case(key=key), judgement=Cleared(reason="in_agreement"), reads=reads) for key, reads in right.items()
        ]
        await self._on.book.close(work.stores, decided, backfilled=frozenset(right), held=work.hand.held(right))


def _request(work: Work, item: Decided) -> ResendRequest:
    source = item.reads.source
    return ResendRequest(
        key=item.case.key,
        gap=work.hand.gaps.get(item.case.key),
        row=source if isinstance(source, StoredRecord) else None,
        identity=item.reads.reads.after.identity,
    )
