"""Automatic repair: right after a gap was confirmed, a backfill of just that key is queued, like a person's.

It stops, and stays stopped until somebody says that it may go on, when more breaks than a repair should hide.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog

from gapwatch.core.autorepair import ACTOR, OVERWRITING, WINDOW, allowed_on_trial, automatic, brake
from gapwatch.core.backfill import DELETABLE, WRITE_ACTION
from gapwatch.core.maintenance import quiet_at
from gapwatch.core.trial import KEYS_MIN
from gapwatch.errors import ConflictError, StoreError
from gapwatch.model.gap import Gap, Kind, Run, RunKind, RunState, State
from gapwatch.model.pipeline import PipelineSpec
from gapwatch.ports import Clock, DatasetReader, GapFilter, Ledger
from gapwatch.roles.board import Facts
from gapwatch.roles.repair.asking import Asking
from gapwatch.roles.repair.holding import Holding
from gapwatch.roles.repair.plans import plan_of, request_apply
from gapwatch.roles.repair.sweeps import ACTIVE, mapping_is_suspect
from gapwatch.roles.repair.trials import has_passed
from gapwatch.roles.stores import StoreProvider

log = structlog.get_logger(__name__)

TICK_SECONDS = 0.25
OTHERS_SECONDS = 1.0  # before a gap is seen that another process has stored, or that has waited long enough
RETRY = timedelta(seconds=10)  # after a run that read nothing, or could not be carried out
SIZE_SECONDS = 60.0  # how long an estimate of a dataset's size serves
TIDY_SECONDS = 5.0
TIDY_OTHERS_SECONDS = 20.0  # … where nothing was written here meanwhile
RUNS = 10
LEFT_OVER = 500  # gaps that a run left behind which nobody ended, at once


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoRepairDependencies:
    pipelines: Mapping[str, PipelineSpec]
    ledger: Ledger
    stores: StoreProvider
    clock: Clock
    new_id: Callable[[], str]


class AutoRepairer:
    """Asks for the backfills that nobody has to ask for. Any number of processes may run one: the ledger admits one run."""

    def __init__(self, dependencies: AutoRepairDependencies) -> None:
        self._on = dependencies
        self._holding = Holding(dependencies.ledger, dependencies.clock)
        self._sizes: dict[str, tuple[float, int]] = {}
        self._rows: dict[str, tuple[float, int]] = {}
        self._waiting: dict[str, bool] = {}  # as this process has said it last
        self._tidied: dict[str, tuple[float, int]] = {}  # when, and how much this process had written by then

    async def run(self, stop: asyncio.Event) -> None:
        asking = Asking(self._on.ledger, self._on.clock, seconds=OTHERS_SECONDS)
        while not stop.is_set():
            for pipeline in self._on.pipelines.values() if asking.due() else ():
                try:
                    await self.step(pipeline)
                except StoreError as error:
                    log.warning("stores_unavailable", pipeline=pipeline.id, purpose="repair", error=error.message)
            await asking.rest(TICK_SECONDS, stop)

    async def step(self, spec: PipelineSpec) -> Run | None:
        """Queue a backfill of what may be repaired now; return it, or None where there is nothing to do."""
        ledger, now = self._on.ledger, self._on.clock.now()
        await self._tidy(spec)
        kinds = automatic(spec.repair)
        if not kinds or not await asyncio.to_thread(lambda: ledger.repairable(spec.id, kinds, now=now, limit=1)):
            await self._say_waiting(spec, False)
            return None
        if not await asyncio.to_thread(self._may, spec, now):
            return None
        if kinds & OVERWRITING and not await asyncio.to_thread(has_passed, ledger, spec.id):
            rows = await self._counted(spec)
            left = kinds - (kinds := allowed_on_trial(kinds, rows=KEYS_MIN if rows is None else rows))
            found = await asyncio.to_thread(lambda: ledger.repairable(spec.id, left, now=now, limit=1)) if left else ()
            if rows is not None:
                await self._say_waiting(spec, bool(found))
        else:
            await self._say_waiting(spec, False)
        limit = spec.repair.max_documents_per_run
        chosen = await asyncio.to_thread(lambda: ledger.repairable(spec.id, kinds, now=now, limit=limit))
        if await self._brake(spec, kinds, now):
            return None
        if not chosen or await self._source_is_empty(spec, chosen, now):
            return None
        return await asyncio.to_thread(self._queue, spec, chosen)

    def _may(self, spec: PipelineSpec, now: datetime) -> bool:
        """Whether anything may be repaired by itself: not while paused or stopped, by a wrong mapping, or before a baseline."""
        ledger = self._on.ledger
        runs = ledger.runs(pipeline=spec.id, kind=RunKind.BACKFILL, limit=RUNS)
        if any(run.state in ACTIVE for run in runs) or _waits(runs, now):
            return False
        if quiet_at(spec.maintenance, ledger.fact(Facts.paused(spec.id)), now) or ledger.fact(Facts.repair_stopped(spec.id)):
            return False
        return ledger.fact(Facts.baseline(spec.id)) is not None and not mapping_is_suspect(ledger, spec.id)

    async def _brake(self, spec: PipelineSpec, kinds: frozenset[Kind], now: datetime) -> bool:
        """Stop automatic repair where too much is wrong; return whether it is stopped.

        It counts after the choice: gaps that are stored between the two would else be repaired before they were counted.
        """
        ledger = self._on.ledger
        resumed = await asyncio.to_thread(ledger.fact, Facts.repair_resumed(spec.id))
        since = datetime.fromisoformat(resumed["at"]) if resumed else None
        done_since = now - WINDOW if since is None else max(since, now - WINDOW)
        pressure = await asyncio.to_thread(
            lambda: ledger.repair_pressure(
                spec.id, kinds, confirmed_since=since, done_since=done_since, action=WRITE_ACTION, actor=ACTOR
            )
        )
        return await self._stop(spec, brake(spec.repair, pressure, size=await self._size(spec)), now)

    async def _source_is_empty(self, spec: PipelineSpec, chosen: Sequence[Gap], now: datetime) -> bool:
        """Stop where documents would be deleted because the source has none at all; return whether that is so."""
        if not any(gap.kind in DELETABLE for gap in chosen):
            return False
        stores = await self._on.stores.stores(spec.id)
        empty = await stores.source.is_empty()
        return await self._stop(spec, "the source is empty: nothing is deleted by itself then" if empty else "", now)

    async def _stop(self, spec: PipelineSpec, reason: str, now: datetime) -> bool:
        if reason:
            fact = {"reason": reason, "at": now.isoformat()}
            await asyncio.to_thread(self._on.ledger.set_fact, Facts.repair_stopped(spec.id), fact)
            log.error("automatic_repair_stopped", pipeline=spec.id, reason=reason)
        return bool(reason)

    async def _say_waiting(self, spec: PipelineSpec, waiting: bool) -> None:
        """Say in the ledger whether gaps wait for the mapping's trial, where that is not what was said last."""
        if self._waiting.get(spec.id) is waiting:
            return
        name = Facts.repair_waits(spec.id)
        if bool(await asyncio.to_thread(self._on.ledger.fact, name)) is not waiting:
            fact = {"at": self._on.clock.now().isoformat()} if waiting else None
            await asyncio.to_thread(self._on.ledger.set_fact, name, fact)
        self._waiting[spec.id] = waiting

    async def _counted(self, spec: PipelineSpec) -> int | None:
        """Return how many keys the source has, :data:`KEYS_MIN` where there are as many or more, None where it was not read.

        They are read: after a crash MongoDB's own count says for good what is not there.
        """
        known = self._rows.get(spec.id)
        if known is not None and self._on.clock.monotonic() - known[0] < SIZE_SECONDS:
            return known[1]
        source, rows = (await self._on.stores.stores(spec.id)).source, 0
        chunks = source.scan_keys(chunk=KEYS_MIN)
        try:
            async with aclosing(chunks):  # type: ignore[type-var]
                async for chunk in chunks:
                    rows += len(chunk)
                    if rows >= KEYS_MIN:
                        break
                    if not chunk.complete:
                        return None
        except StoreError:
            return None  # what it has in hand is tried as ever, and says so itself
        self._rows[spec.id] = (self._on.clock.monotonic(), min(rows, KEYS_MIN))
        return self._rows[spec.id][1]

    async def _size(self, spec: PipelineSpec) -> int:
        """Return about how many records the dataset has: by the stores' estimates, or as the last sweep counted them."""
        known = self._sizes.get(spec.id)
        if known is not None and self._on.clock.monotonic() - known[0] < SIZE_SECONDS:
            return known[1]
        stores = await self._on.stores.stores(spec.id)
        sizes = [await _estimate(stores.source), await _estimate(stores.target)]
        ledger = self._on.ledger
        runs = await asyncio.to_thread(lambda: ledger.runs(pipeline=spec.id, kind=RunKind.SWEEP, states=[RunState.SUCCEEDED]))
        full = next((run for run in runs if run.request.get("range") == "full"), None)
        size = max(*sizes, full.counts.get("source_keys", 0) if full else 0)
        self._sizes[spec.id] = (self._on.clock.monotonic(), size)
        return size

    def _queue(self, spec: PipelineSpec, chosen: Sequence[Gap]) -> Run | None:
        on = self._on
        more: dict[str, Any] = {"automatic": True}
        planned = plan_of(on.ledger, spec, chosen, run_id=on.new_id(), clock=on.clock, requested_by=ACTOR, more=more)
        try:
            run = request_apply(on.ledger, planned.id, run_id=on.new_id(), clock=on.clock, requested_by=ACTOR)
        except ConflictError:
            return None  # somebody asked at the same moment
        log.info("repair_requested", pipeline=spec.id, run=run.id, gaps=len(chosen))
        return run

    async def _tidy(self, spec: PipelineSpec) -> None:
        """Set gaps down whose run was ended by somebody else than its holder; forget attempts at what was resolved."""
        at, writes = self._on.clock.monotonic(), self._on.ledger.writes()
        last, seen = self._tidied.get(spec.id, (float("-inf"), -1))
        if at < last + (TIDY_OTHERS_SECONDS if writes == seen else TIDY_SECONDS):
            return
        self._tidied[spec.id] = (at, writes)
        ledger, where = self._on.ledger, GapFilter(pipeline=spec.id, states=(State.REPAIRING.value,))
        page = await asyncio.to_thread(lambda: ledger.gaps(where, limit=LEFT_OVER))
        if page.gaps:
            runs = await asyncio.to_thread(lambda: ledger.runs(pipeline=spec.id, kind=RunKind.BACKFILL, states=ACTIVE, limit=1))
            if not runs:
                await self._holding.set_down(spec.id, [gap.key for gap in page.gaps], {})
        await asyncio.to_thread(ledger.forget_resolved_repairs, spec.id)


def _waits(runs: Sequence[Run], now: datetime) -> bool:
    """Whether the last automatic run said nothing of its documents: stores that do not answer are not asked all the time."""
    last = next((run for run in runs if run.request.get("automatic") and not run.request.get("dry_run")), None)
    if last is None or last.ended_at is None or last.state in (RunState.SUCCEEDED, RunState.FAILED):
        return False
    return now - last.ended_at < RETRY


async def _estimate(reader: DatasetReader) -> int:
    try:
        return await reader.estimate()
    except StoreError:
        return 0
