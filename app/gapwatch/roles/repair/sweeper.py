"""Sweep: both sides read once, at the same time; every difference read again by key until it is proved or gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import datetime

import structlog

from gapwatch.core.confirm import Cleared, Difference, Superseded, Unverifiable
from gapwatch.core.mapping import Canonical
from gapwatch.core.sweep import Candidates, Entry, Scope, SetDifference, SweepOutcome
from gapwatch.errors import ConflictError, StoreError
from gapwatch.model.gap import Detector, Run, RunState
from gapwatch.model.stream import Side
from gapwatch.ports import Clock, DatasetReader, Key, Ledger, ScanChunk
from gapwatch.roles.board import Delivered
from gapwatch.roles.repair.book import Book
from gapwatch.roles.repair.judging import Decided, KeyJudge
from gapwatch.roles.stores import PipelineStores

log = structlog.get_logger(__name__)

CHUNK = 5_000
AHEAD_MAX = 50_000  # keys that the faster side may wait with before it pauses
PATIENCE_SECONDS = 600.0  # how long unread candidates are retried before the sweep is inconclusive
LEASE_SECONDS = 60.0


@dataclass(slots=True)
class _Scan:
    """What one side's scan has shown so far."""

    identities: set[str]
    rows: int = 0
    complete: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class SweeperDependencies:
    ledger: Ledger
    book: Book
    clock: Clock
    holder: str
    grace_ms: Callable[[str], int]
    delivered: Callable[[str], Delivered]
    on_compared: Callable[[str, str, int], None]  # pipeline, side, keys


class Sweeper:
    """Carries out one sweep run that the caller has taken from the ledger."""

    def __init__(self, dependencies: SweeperDependencies) -> None:
        self._on = dependencies

    async def run(self, run: Run, stores: PipelineStores, *, last_full_started: datetime | None) -> Run:
        """Sweep, judge, book; return the run as it ended (it is stored as well).

        Args:
            run: A running run; ``request`` holds ``content`` (bool), ``range`` (full | keys) and ``keys`` (hex) for the latter.
            stores: The pipeline's stores.
            last_full_started: Start of the last completed full content sweep: what gaps without a commit time hold.
        """
        content = bool(run.request.get("content"))
        started = self._on.clock.now()
        progress = _Progress(self._on, run)
        try:
            if run.request.get("range", Scope.FULL) == Scope.KEYS:
                candidates = [bytes.fromhex(key) for key in run.request.get("keys", ())]
                source, target = _Scan(set()), _Scan(set())
            else:
                found, source, target = await self._scan(stores, progress, content=content)
                candidates = found.all()
            decided, undecided = await self._judge(stores, candidates, progress)
            undecided += await self._book(stores, decided, run, last_full_started)
            outcome = SweepOutcome(
                complete=source.complete and target.complete,
                undecided=undecided,
                emptiness_proved=await self._emptiness(stores, run, source, target),
                identity_stable=await self._identities(stores, source, target),
            )
        except StoreError as error:
            return await progress.end(RunState.INCONCLUSIVE, error=error.message)
        counts = _counts(progress.counts, decided, undecided)
        state = RunState.SUCCEEDED if outcome.conclusive else RunState.INCONCLUSIVE
        ended = await progress.end(state, error=outcome.reason() or None, counts=counts, started=started)
        log.info("sweep_ended", pipeline=run.pipeline, run=run.id, state=state.value, **counts)
        return ended

    async def _scan(self, stores: PipelineStores, progress: _Progress, *, content: bool) -> tuple[Candidates, _Scan, _Scan]:
        difference = SetDifference(_agree(stores))
        sides = {
            Side.EXPECTED: (_Scan(set()), stores.source.scan(content=content, chunk=CHUNK)),
            Side.OBSERVED: (_Scan(set()), stores.target.scan(content=content, chunk=CHUNK)),
        }
        running = dict.fromkeys(sides, True)
        async with aclosing(sides[Side.EXPECTED][1]) as first, aclosing(sides[Side.OBSERVED][1]) as second:  # type: ignore[type-var]
            iterators = {Side.EXPECTED: first, Side.OBSERVED: second}
            while any(running.values()):
                turns = self._turns(running, difference)
                chunks = await asyncio.gather(*(anext(iterators[side], None) for side in turns))
                for side, chunk in zip(turns, chunks, strict=True):
                    if chunk is None:
                        running[side] = False
                        continue
                    self._take(stores, side, chunk, sides[side][0], difference, content=content)
                    self._on.on_compared(stores.spec.id, side.name.lower(), len(chunk.records))
                await progress.scanned(difference)
        return difference.finish(), sides[Side.EXPECTED][0], sides[Side.OBSERVED][0]

    def _turns(self, running: dict[Side, bool], difference: SetDifference) -> list[Side]:
        """Return the sides that read next: both, or only the one behind when the other is far ahead."""
        active = [side for side, is_running in running.items() if is_running]
        if len(active) == 2 and difference.held > AHEAD_MAX:
            return [side for side in active if side is not difference.lead()]
        return active

    def _take(
        self, stores: PipelineStores, side: Side, chunk: ScanChunk, scan: _Scan, difference: SetDifference, *, content: bool
    ) -> None:
        scan.identities.add(chunk.identity)
        scan.rows += len(chunk.records)
        scan.complete = scan.complete and chunk.complete
        canonical = stores.mapping.canonical_source if side is Side.EXPECTED else stores.mapping.canonical_target
        difference.add(
            side,
            (Entry(key=record.key, content=canonical(record.fields) if content else None) for record in chunk.records),
        )

    async def _judge(self, stores: PipelineStores, candidates: Collection[Key], progress: _Progress) -> tuple[list[Decided], int]:
        """Judge every candidate; return the decided ones and how many stayed undecided when patience ran out."""

        async def same() -> PipelineStores:
            return stores

        pipeline = stores.spec.id
        judge = KeyJudge(
            same,
            grace_ms=lambda: self._on.grace_ms(pipeline),
            delivered=lambda: self._on.delivered(pipeline),
            clock=self._on.clock,
        )
        for key in candidates:
            judge.add(key)
        decided: list[Decided] = []
        deadline = self._on.clock.monotonic() + PATIENCE_SECONDS
        while len(judge) and self._on.clock.monotonic() < deadline:
            step = await judge.step()
            decided.extend(step)
            await progress.judged(len(decided), len(judge))
            if not step:
                await self._on.clock.sleep(0.1)
        unread = sum(isinstance(item.judgement, Unverifiable) for item in decided)
        return decided, len(judge) + unread

    async def _book(
        self, stores: PipelineStores, decided: Sequence[Decided], run: Run, last_full_started: datetime | None
    ) -> int:
        """Store differences and agreements; return how many differences do not stand, as somebody else changed their gaps."""
        differing = [item for item in decided if isinstance(item.judgement, Difference)]
        agreeing = [item for item in decided if isinstance(item.judgement, Cleared)]
        stored: set[Key] = set()
        for start in range(0, len(differing), 200):
            stored |= await self._on.book.open(
                stores, differing[start : start + 200], Detector.SWEEP, opened_by=run.id, held_since=last_full_started
            )
        for start in range(0, len(agreeing), 200):
            await self._on.book.close(stores, agreeing[start : start + 200])
        return len(differing) - len(stored)

    async def _emptiness(self, stores: PipelineStores, run: Run, source: _Scan, target: _Scan) -> bool:
        if run.request.get("range", Scope.FULL) == Scope.KEYS:
            return True
        for scan, reader in ((source, stores.source), (target, stores.target)):
            if scan.rows == 0 and not await reader.is_empty():
                return False
        return True

    async def _identities(self, stores: PipelineStores, source: _Scan, target: _Scan) -> bool:
        for scan, reader in ((source, stores.source), (target, stores.target)):
            if scan.identities and scan.identities != {await _identity(reader)}:
                return False
        return True


async def _identity(reader: DatasetReader) -> str:
    return (await reader.describe()).identity


def _agree(stores: PipelineStores) -> Callable[[object, object], bool]:
    differing = stores.mapping.differing

    def equal(source: object, target: object) -> bool:
        assert isinstance(source, Canonical)
        assert isinstance(target, Canonical)
        return not differing(source, target)

    return equal


def _counts(scanned: dict[str, int], decided: Sequence[Decided], undecided: int) -> dict[str, int]:
    counts = {**scanned, "differences": 0, "agreed_on_second_read": 0, "superseded": 0, "undecided": undecided}
    for item in decided:
        if isinstance(item.judgement, Difference):
            counts["differences"] += 1
            kind = item.judgement.kind.value
            counts[kind] = counts.get(kind, 0) + 1
        elif isinstance(item.judgement, Cleared):
            counts["agreed_on_second_read"] += 1
        elif isinstance(item.judgement, Superseded):
            counts["superseded"] += 1
    return counts


class _Progress:
    """Keeps the run's row up to date, at most once a second, and renews its lease with it."""

    def __init__(self, on: SweeperDependencies, run: Run) -> None:
        self._on = on
        self._run = run
        self._next = 0.0
        self.counts: dict[str, int] = {"source_keys": 0, "target_keys": 0}

    async def scanned(self, difference: SetDifference) -> None:
        self.counts["source_keys"], self.counts["target_keys"] = difference.compared
        await self._store()

    async def judged(self, done: int, left: int) -> None:
        await self._store(progress=done / (done + left) if done + left else None)

    async def _store(self, progress: float | None = None) -> None:
        now = self._on.clock.monotonic()
        if now < self._next:
            return
        self._next = now + 1.0
        current = await asyncio.to_thread(self._on.ledger.run, self._run.id)
        if current is None or current.cancel_requested:
            raise ConflictError("The sweep was cancelled.", running_id=self._run.id)
        self._run = replace(self._run, counts=dict(self.counts), progress=progress)
        await asyncio.to_thread(self._on.ledger.update_run, self._run, holder=self._on.holder)

    async def end(
        self, state: RunState, *, error: str | None = None, counts: dict[str, int] | None = None, started: datetime | None = None
    ) -> Run:
        self._run = replace(
            self._run,
            state=state,
            error=error,
            counts=counts if counts is not None else dict(self.counts),
            ended_at=self._on.clock.now(),
            started_at=started or self._run.started_at,
            progress=1.0 if state is RunState.SUCCEEDED else self._run.progress,
        )
        await asyncio.to_thread(self._on.ledger.update_run, self._run, holder=self._on.holder)
        return self._run
