"""Suspect → gap. Takes raised keys from ``gapwatch.suspects``, judges them by reading both stores, stores what was proved.

Order for each decided key, so that a crash anywhere repeats work and loses nothing:

1. the gap (or its resolution) is stored in the ledger, with its outbox row;
2. the verdict is acknowledged on ``gapwatch.events``;
3. the suspect's offset may be committed.

The queue lives in memory only: a suspect that is forgotten here is raised again by ``match`` after ``confirm_again``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog
from msgspec import structs

from gapwatch.core.confirm import Cleared, Difference, Superseded, Unverifiable, last_covered
from gapwatch.core.gaps import time_of, told
from gapwatch.errors import StoreError
from gapwatch.model.gap import Detector
from gapwatch.model.stream import Outcome
from gapwatch.model.suspect import Heard, Hole, Said, Suspect
from gapwatch.ports import Clock, Key, Ledger
from gapwatch.roles.repair.book import NEW, Book
from gapwatch.roles.repair.judging import Decided, KeyJudge
from gapwatch.roles.repair.quiet import never_quiet
from gapwatch.roles.repair.trials import REASON, MappingTrials, is_held
from gapwatch.roles.stores import PipelineStores

log = structlog.get_logger(__name__)

IDLE_SECONDS = 0.1
STILL_SECONDS = 0.5  # for the first suspect, while none comes
SUSPECTS_AT_ONCE = 500
UNREACHABLE_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What goes back to the key's partition of ``gapwatch.events``."""

    pipeline: str
    partition: int
    key: Key
    side: int
    token: tuple[int, int, int]
    outcome: Outcome


class VerdictSink(Protocol):
    async def publish(self, verdicts: Sequence[Verdict]) -> None:
        """Return when Kafka has acknowledged every one of them; raises FeedError otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Raised:
    """One record of ``gapwatch.suspects`` with its place, for the commit."""

    partition: int
    offset: int
    record: Said


class Inbox(Protocol):
    async def take(self, limit: int, seconds: float) -> Sequence[Raised]:
        """Return up to `limit` raised records, waiting at most `seconds` for the first."""

    async def done(self, raised: Sequence[Raised]) -> None:
        """Say that these need not be read again; offsets move once everything before them is done too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmerDependencies:
    ledger: Ledger
    inbox: Inbox
    verdicts: VerdictSink
    judges: Mapping[str, KeyJudge]
    stores: Callable[[str], Awaitable[PipelineStores]]
    book: Book
    clock: Clock
    trials: MappingTrials
    on_hole: Callable[[Hole], Awaitable[None]]
    on_cleared: Callable[[str, str], None]  # pipeline, reason
    on_detected: Callable[[str, float], None]  # pipeline, seconds from the write to the gap
    is_quiet: Callable[[str], Awaitable[bool]] = never_quiet


class Confirmer:
    """Runs the confirm loop for all pipelines; one per process that plays ``repair``."""

    def __init__(self, dependencies: ConfirmerDependencies) -> None:
        self._on = dependencies
        self._waiting: dict[tuple[str, Key], list[Raised]] = {}
        self._heard: dict[str, list[tuple[Raised, Heard]]] = {}  # by pipeline: what is to be known of its gaps
        self._news = {pipeline: asyncio.Event() for pipeline in dependencies.judges}

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set. Raises when Kafka or the ledger cannot be used at all."""
        workers = [asyncio.create_task(self._judge_forever(pipeline, stop)) for pipeline in self._on.judges]
        try:
            while not stop.is_set():
                await self._receive(await self._on.inbox.take(SUSPECTS_AT_ONCE, STILL_SECONDS))
                for worker in workers:
                    if worker.done():
                        worker.result()
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _receive(self, raised: Sequence[Raised]) -> None:
        finished = []
        holes: dict[str, Hole] = {}
        for item in raised:
            record = item.record
            if isinstance(record, Hole):
                holes[record.id] = _joined(holes.get(record.id), record)
                finished.append(item)
            elif record.pipeline not in self._on.judges:
                finished.append(item)  # a pipeline that this configuration does not have (any more)
            elif isinstance(record, Heard):
                self._heard.setdefault(record.pipeline, []).append((item, record))
                self._news[record.pipeline].set()
            else:
                if await self._on.is_quiet(record.pipeline):
                    finished.append(item)  # it waits here for the end of the quiet; forgotten, it is raised again
                else:
                    self._waiting.setdefault((record.pipeline, record.key), []).append(item)
                self._on.judges[record.pipeline].add(record.key, record)  # last: from here on it may be settled
                self._news[record.pipeline].set()
        for hole in holes.values():
            await self._on.on_hole(hole)
        if finished:
            await self._on.inbox.done(finished)

    async def _judge_forever(self, pipeline: str, stop: asyncio.Event) -> None:
        judge = self._on.judges[pipeline]
        while not stop.is_set():
            if heard := self._heard.pop(pipeline, []):
                await self._hear(pipeline, heard)
            if not judge.cases:
                await self._news[pipeline].wait()
                self._news[pipeline].clear()
                continue
            if await self._on.is_quiet(pipeline):
                await self._on.clock.sleep(IDLE_SECONDS)
                continue
            try:
                decided = await judge.step()
            except StoreError as error:
                log.warning("stores_unavailable", pipeline=pipeline, error=error.message)
                await self._on.clock.sleep(UNREACHABLE_SECONDS)
                continue
            if decided:
                await self._settle(pipeline, decided)
            elif not judge.due():
                await self._on.clock.sleep(IDLE_SECONDS)

    async def _hear(self, pipeline: str, heard: Sequence[tuple[Raised, Heard]]) -> None:
        """Tell keys under judgement, and open gaps, what the sink says of their writes: from the task that opens them."""
        judge, others = self._on.judges[pipeline], list[Heard]()
        for _, record in heard:
            case = judge.cases.get(record.key)
            suspect = told(case.suspect, record) if case is not None and case.suspect is not None else None
            if suspect is not None:
                judge.add(record.key, suspect)
            else:
                others.append(record)
        await self._on.book.explain(pipeline, others)
        await self._on.inbox.done([item for item, _ in heard])

    async def _settle(self, pipeline: str, decided: Sequence[Decided]) -> None:
        stores = await self._on.stores(pipeline)
        outcomes = await self._store(stores, decided)
        verdicts: list[Verdict] = []
        finished: list[Raised] = []
        for item in decided:
            key = item.case.key
            outcome = outcomes.get(key)
            if outcome is None:  # somebody else changed the gap at the same moment: judge it anew
                self._on.judges[pipeline].add(key, item.case.suspect)
                continue
            finished.extend(self._waiting.pop((pipeline, key), ()))
            if item.case.suspect is not None:
                verdicts.append(_verdict(item.case.suspect, outcome))
        await self._on.verdicts.publish(verdicts)
        await self._on.inbox.done(finished)

    async def _store(self, stores: PipelineStores, decided: Sequence[Decided]) -> dict[Key, Outcome]:
        """Store every decision; return the outcome of each key whose decision stands."""
        outcomes: dict[Key, Outcome] = {}
        suspected = await self._on.trials.streamed(stores, decided)
        decided = [_unverifiable(item) if is_held(item, suspected) else item for item in decided]
        differing = [item for item in decided if isinstance(item.judgement, Difference)]
        agreeing = [item for item in decided if isinstance(item.judgement, Cleared)]
        events = await self._on.book.open(stores, differing, Detector.STREAM)
        outcomes |= dict.fromkeys(events, Outcome.GAP)
        for key in await self._on.book.close(stores, agreeing):
            outcomes[key] = Outcome.CLEARED
        await self._on.book.skipped(stores, agreeing)
        for item in decided:
            await self._store_other(stores.spec.id, item, outcomes)
        self._report(stores.spec.id, decided, outcomes, {key for key, event in events.items() if event in NEW})
        return outcomes

    async def _store_other(self, pipeline: str, item: Decided, outcomes: dict[Key, Outcome]) -> None:
        if isinstance(item.judgement, Superseded):
            outcomes[item.case.key] = Outcome.SUPERSEDED
        elif isinstance(item.judgement, Unverifiable):
            suspect = item.case.suspect
            since = time_of(suspect.since or suspect.opening.event_time) if suspect else self._on.clock.now()
            await asyncio.to_thread(self._on.ledger.add_unverifiable, pipeline, item.case.key, since, item.judgement.reason)
            outcomes[item.case.key] = Outcome.UNVERIFIABLE

    def _report(self, pipeline: str, decided: Sequence[Decided], outcomes: Mapping[Key, Outcome], new: Collection[Key]) -> None:
        """Count what came of it; how long a gap's detection took is counted once, however often its key is raised again."""
        now = self._on.clock.now_ms()
        for item in decided:
            if item.case.key not in outcomes:
                continue
            if isinstance(item.judgement, Cleared):
                self._on.on_cleared(pipeline, item.judgement.reason)
            elif item.case.key in new and item.case.suspect is not None:
                self._on.on_detected(pipeline, (now - item.case.suspect.opening.event_time) / 1000)


def _joined(known: Hole | None, hole: Hole) -> Hole:
    """Return both as one, as the ledger would: every partition of the events names the same hole."""
    if known is None:
        return hole
    return structs.replace(hole, time_from=min(known.time_from, hole.time_from), time_to=max(known.time_to, hole.time_to))


def _unverifiable(item: Decided) -> Decided:
    """While the mapping is suspect, what it says of a key proves nothing."""
    return structs.replace(item, judgement=Unverifiable(reason=REASON))


def _verdict(suspect: Suspect, outcome: Outcome) -> Verdict:
    last = last_covered(suspect, outcome)
    return Verdict(
        pipeline=suspect.pipeline,
        partition=suspect.partition,
        key=suspect.key,
        side=last.side,
        token=(last.epoch, last.major, last.minor),
        outcome=outcome,
    )
