"""What one backfill run is about, and how each document's fate is counted and audited."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any

import xxhash

from gapwatch.core.backfill import WRITE_ACTION, ItemOutcome, Tally
from gapwatch.core.pace import Pace
from gapwatch.errors import StoreRefused
from gapwatch.model.gap import AuditRow, Kind, Run
from gapwatch.model.pipeline import RepairMode
from gapwatch.ports import Clock, Key, Ledger
from gapwatch.roles.board import Delivered
from gapwatch.roles.repair.beside import Beside
from gapwatch.roles.repair.book import Book
from gapwatch.roles.repair.in_hand import InHand
from gapwatch.roles.repair.resending import Resender
from gapwatch.roles.repair.tenure import Tenure
from gapwatch.roles.repair.undo import UndoFile
from gapwatch.roles.stores import PipelineStores

BESIDE_BYTES = 30  # of a document's field, besides its name: the signs around it, and a time, a UUID or a Decimal128
SHORT = frozenset({bool, float, datetime, type(None)})  # most of what is no text, without a look at what it is like
TEXTS = (str, bytes)
OF_ANY_LENGTH = (int, Decimal, list, tuple, Mapping)


@lru_cache(maxsize=64)  # the rows of one batch share their time
def _microseconds(time: datetime) -> int:
    return int(time.timestamp() * 1_000_000)


def _nobody(stores: PipelineStores, mode: RepairMode) -> Resender:
    raise StoreRefused(f"Nobody here has {stores.spec.id} deliver rows again (mode {mode.value}).")


@dataclass(frozen=True, slots=True, kw_only=True)
class BackfillDependencies:
    """``resender``: what has a pipeline deliver rows again, in a mode other than direct."""

    ledger: Ledger
    book: Book
    clock: Clock
    holder: str
    grace_ms: Callable[[str], int]
    delivered: Callable[[str], Delivered]
    on_document: Callable[[str, str], None]  # pipeline, outcome
    resender: Callable[[PipelineStores, RepairMode], Resender] = _nobody
    lease_seconds: float = 60.0  # what runs are taken for


@dataclass(slots=True, kw_only=True)
class Work:
    """One run as it is worked through: what was planned, which of its gaps are in hand, and what became of the keys so far."""

    run: Run
    stores: PipelineStores
    gaps: Mapping[Key, str | None]
    planned: Mapping[Key, Kind]
    hand: InHand
    tally: Tally
    pace: Pace
    tenure: Tenure
    undo: UndoFile | None = None  # None: what is overwritten is not kept
    ours: frozenset[Key] = frozenset()  # written by an earlier holder of the run
    closing: Beside = field(default_factory=Beside)  # the gaps of the batch before
    came_back: Counter[tuple[Key, str]] = field(default_factory=Counter)  # how often, and why, before its turn

    @property
    def mode(self) -> RepairMode:
        return RepairMode(self.run.request.get("mode", RepairMode.DIRECT.value))


class BackfillBooks:
    """Counts and audits what becomes of each document."""

    def __init__(self, dependencies: BackfillDependencies) -> None:
        self._on = dependencies

    def count(self, work: Work, key: Key, outcome: ItemOutcome, reason: str = "") -> None:
        work.tally.add(outcome, reason, key=key)
        self._on.on_document(work.stores.spec.id, outcome.value)

    def row(
        self,
        work: Work,
        key: Key,
        outcome: ItemOutcome,
        reason: str,
        *,
        before: str | None = None,
        after: str | None = None,
        now: datetime | None = None,
    ) -> AuditRow:
        """Return an audit row; ``now``: where many are made at once, their time."""
        now, run, gap = now or self._on.clock.now(), work.run, work.hand.gaps.get(key)
        # Its time first: an id goes where the last ones went into their index, and not anywhere.
        name = f"{run.id}/{key.hex()}/{outcome.value}"
        return AuditRow(
            id=f"aud_{_microseconds(now):014x}{xxhash.xxh3_128_hexdigest(name.encode())[:18]}",
            at=now,
            actor=run.requested_by or "gapwatch",
            action=WRITE_ACTION,
            pipeline=run.pipeline,
            key=key,
            key_fields=gap.key_fields if gap is not None else work.stores.codec.fields(key),
            run_id=run.id,
            gap_id=work.gaps.get(key),
            outcome=outcome.value,
            before=before,
            after=after,
            reason=reason,
        )

    async def note(self, work: Work, key: Key, outcome: ItemOutcome, reason: str) -> None:
        await asyncio.to_thread(self._on.ledger.audit, [self.row(work, key, outcome, reason)], by=work.run)

    async def conclude(self, work: Work, key: Key, outcome: ItemOutcome, reason: str) -> None:
        self.count(work, key, outcome, reason)
        await self.note(work, key, outcome, reason)


def weight_of(document: Mapping[str, Any] | None) -> int:
    """Return about how many bytes a document has: what is of any length as it is, or as Python writes it; the rest is short."""
    size = 0
    for name, value in (document or {}).items():
        size += len(name) + BESIDE_BYTES
        if type(value) in SHORT:
            continue
        if isinstance(value, TEXTS):
            size += len(value)
        elif isinstance(value, OF_ANY_LENGTH):
            size += len(repr(value))
    return size
