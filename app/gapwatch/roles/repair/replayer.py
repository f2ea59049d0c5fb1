"""Reconcile: the keys that were written in a range are read in both stores, whatever the stream said of them then.

1. the range is read again; every key that was written in it, on either side, is collected;
2. each is judged as a sweep judges what it found: source, target, source, with grace and deliveries waited for. A write that the
   events name as open is a suspect as any other, and needs no wait while the source still holds just that write;
3. what differs is booked as a gap, what agrees ends its gap, and a plan names those of them that a backfill would write;
4. where stretches of the streams are missing, not every key is known that was written: then it is inconclusive all the same.

Whoever takes the run over begins anew: nothing is done twice by that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

import structlog

from gapwatch.core.backfill import permitted
from gapwatch.core.gaps import time_of
from gapwatch.core.replay import KEYS_MAX, Found, Verdict
from gapwatch.errors import ConflictError, FeedError
from gapwatch.model.gap import Detector, Kind, Run, RunKind, RunState
from gapwatch.model.pipeline import PipelineSpec
from gapwatch.model.suspect import Suspect
from gapwatch.ports import Clock, Key, Ledger
from gapwatch.roles.repair.judging import Asked
from gapwatch.roles.repair.plans import plan
from gapwatch.roles.repair.questions import EVENTS, Question, question_of
from gapwatch.roles.repair.rereading import OnProgress
from gapwatch.roles.repair.sweeper import Sweeper
from gapwatch.roles.stores import PipelineStores

log = structlog.get_logger(__name__)

REPORT_SECONDS: Final = 1.0
READING_SHARE: Final = 0.5  # of the whole work, as progress shows it
PLANNED: Final = frozenset({Kind.MISSING, Kind.STALE, Kind.MISMATCH})

Answer = Callable[[Question, PipelineSpec, OnProgress], Awaitable[Found]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayerDependencies:
    """``answer`` reads the topics; ``sweeper`` judges and books."""

    ledger: Ledger
    answer: Answer
    sweeper: Sweeper
    clock: Clock
    holder: str
    new_id: Callable[[], str]


def request_replay(ledger: Ledger, pipeline: str, request: Mapping[str, Any], *, run_id: str, clock: Clock, actor: str) -> Run:
    """Queue a reconciliation. Raises ConflictError, with the running id, when one of the pipeline is queued or running."""
    return ledger.create_run(
        Run(
            id=run_id,
            pipeline=pipeline,
            kind=RunKind.REPLAY,
            state=RunState.QUEUED,
            requested_at=clock.now(),
            request=dict(request),
            requested_by=actor,
        )
    )


class Replayer:
    """Carries out one reconciliation that the caller has taken from the ledger."""

    def __init__(self, dependencies: ReplayerDependencies) -> None:
        self._on = dependencies

    async def run(self, run: Run, stores: PipelineStores, *, last_full_started: datetime | None) -> Run:
        """Read, judge, book, plan; return the run as it ended (it is stored as well).

        A gap of which no write is known may have been there since the range began, or (of offsets) since the last full sweep.

        Raises UsageError, NotFoundError, StoreError or FeedError where the range cannot be read, ConflictError when it was
        cancelled.
        """
        question = replace(question_of(run.request["from"], run.request["to"], run.request["of"]), keys_max=KEYS_MAX)
        found, run = await self._read(run, question, stores.spec)
        if not found.complete:
            raise FeedError(
                "The logs end before the range was read through: the pipeline stands still, or the range ends just now.",
                remedy="Reconcile again in a moment.",
            )
        proofs = _proofs(found) if question.of == EVENTS else {}
        verdicts = [named.verdict for named in found.named]
        counts = {f"events_{verdict.value}": verdicts.count(verdict) for verdict in Verdict}
        asked = Asked(
            keys={key: proofs.get(key) for key in sorted(found.keys)},
            detector=Detector.REPLAY,
            share=READING_SHARE,
            conclude=lambda ending: self._conclude(ending, stores.spec, found.keys),
            unread=_unread(found),
        )
        run = replace(run, counts=counts)
        since = last_full_started if question.by_offsets else time_of(question.time_from)
        return await self._on.sweeper.run(run, stores, last_full_started=since, asked=asked)

    async def _read(self, run: Run, question: Question, spec: PipelineSpec) -> tuple[Found, Run]:
        """Read the range, and store how far it has come once a second; ConflictError when somebody cancelled it."""
        shown: dict[str, Any] = {"progress": 0.0, "counts": {}}

        def note(share: float, counts: Mapping[str, int]) -> None:
            shown.update(progress=READING_SHARE * share, counts=dict(counts))

        reading = asyncio.ensure_future(self._on.answer(question, spec, note))
        try:
            while not reading.done():
                await asyncio.wait([reading], timeout=REPORT_SECONDS)
                run = replace(run, **shown)
                await self._report(run)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        return reading.result(), run

    async def _report(self, run: Run) -> None:
        current = await asyncio.to_thread(self._on.ledger.run, run.id)
        if current is None or current.cancel_requested:
            raise ConflictError("The replay was cancelled.", running_id=run.id)
        await asyncio.to_thread(self._on.ledger.update_run, run, holder=self._on.holder)

    async def _conclude(self, run: Run, spec: PipelineSpec, keys: set[Key]) -> Run:
        """Make the plan; a range without an open gap needs none."""
        known = await asyncio.to_thread(self._on.ledger.open_gaps_for, spec.id, keys)
        counts = dict(run.counts) | {"planned": 0, "open_gaps_left": len(known)}
        if not any(gap.kind in PLANNED for gap in known.values()):
            return replace(run, counts=counts)
        made = await asyncio.to_thread(
            lambda: plan(
                self._on.ledger,
                spec,
                PLANNED & permitted(spec.repair),
                limit=spec.repair.max_documents_per_run,
                run_id=self._on.new_id(),
                clock=self._on.clock,
                requested_by=run.requested_by,
                keys=keys,
            )
        )
        log.info("backfill_planned", pipeline=spec.id, run=run.id, plan=made.id, planned=made.counts["planned"])
        counts["planned"] = made.counts["planned"]
        return replace(run, request=dict(run.request) | {"plan": made.id}, counts=counts)


def _unread(found: Found) -> str:
    """Say what is missing of the streams: of the keys that were written in it nobody knows which they are."""
    missing = len(found.holes) + found.unread
    if not missing:
        return ""
    return f"{missing} stretches of the streams are missing: a sweep finds what was written in them."


def _proofs(found: Found) -> dict[Key, Suspect]:
    """Return the newest open write of each key that has one."""
    return {named.suspect.key: named.suspect for named in found.named if named.verdict is Verdict.OPEN}
