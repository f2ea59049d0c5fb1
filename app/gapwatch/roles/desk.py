"""What a person may ask of a running Gapwatch: the one place behind HTTP API and command line."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from gapwatch.core import gaps, reports
from gapwatch.core.confirm import Presence, satisfied
from gapwatch.core.keytrace import KeyTrace
from gapwatch.core.maintenance import quiet_at
from gapwatch.core.mapping import CompiledMapping
from gapwatch.errors import FeedError, KeyMisfit, NotFoundError, StoreError, UsageError
from gapwatch.model.gap import AuditRow, Gap, Kind, RepairRecord, Resolution, Run, State
from gapwatch.model.pipeline import PipelineSpec, RepairMode, Settings
from gapwatch.model.stream import Side
from gapwatch.model.view import PipelineView
from gapwatch.ports import Clock, GapChange, GapFilter, Key, Ledger
from gapwatch.roles.board import Board, Facts
from gapwatch.roles.repair.leisure import WITHIN
from gapwatch.roles.repair.plans import plan, request_apply, requeue
from gapwatch.roles.repair.questions import check, question_of
from gapwatch.roles.repair.reads import KeyReads, read_batch
from gapwatch.roles.repair.replayer import request_replay
from gapwatch.roles.repair.sweeps import (
    cancel_active,
    refuse_quiet,
    refuse_suspect_mapping,
    remember_quiet,
    request_sweep,
    sweep_after_quiet,
)
from gapwatch.roles.stores import PipelineStores, StoreProvider

LOOKBACK_SECONDS = 48 * 3600.0
LOOKBACK_SECONDS_MAX = 3650 * 86_400.0
WITHIN_SECONDS_MAX = 7 * 86_400.0
SNOOZE_SECONDS_MAX = 365 * 86_400.0
SWEEP_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "full": (),
    "range": ("from", "to"),
    "keys": ("keys",),
    "lookback": ("lookback_seconds",),
}
DEFAULT_KINDS = (Kind.MISSING, Kind.STALE, Kind.MISMATCH)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeskDependencies:
    settings: Settings
    ledger: Ledger
    board: Board
    stores: StoreProvider
    stream: KeyStream
    clock: Clock
    new_id: Callable[[], str]


class KeyStream(Protocol):
    async def trace(self, mapping: CompiledMapping, key: Key) -> KeyTrace:
        """Return what the stream told of a key; raises StoreError, FeedError or TimeoutError where it cannot be read."""


class Desk:
    """Every method checks what it is given, and audits what it changes. ``actor`` is the token's name, or the local user."""

    def __init__(self, dependencies: DeskDependencies) -> None:
        self._on = dependencies

    def pipeline(self, name: str) -> PipelineSpec:
        spec = self._on.settings.pipelines.get(name)
        if spec is None:
            known = ", ".join(sorted(self._on.settings.pipelines)) or "none"
            raise NotFoundError(f"There is no pipeline {name!r}.", remedy=f"Configured: {known}.")
        return spec

    async def views(self) -> Sequence[PipelineView]:
        return await self._on.board.views()

    async def view(self, pipeline: str) -> PipelineView:
        return await self._on.board.view(pipeline)

    async def pause(self, pipeline: str, *, actor: str, reason: str = "") -> None:
        """Leave the pipeline alone: SKIPPED, nothing opens or is repaired. The streams are read on, so that nothing is missed."""
        self.pipeline(pipeline)
        paused = await asyncio.to_thread(self._on.ledger.fact, Facts.paused(pipeline)) or {}
        fact = {"reason": reason or f"paused by {actor}", "at": paused.get("at") or gaps.rfc3339(self._on.clock.now())}
        await asyncio.to_thread(self._on.ledger.set_fact, Facts.paused(pipeline), fact)
        await asyncio.to_thread(cancel_active, self._on.ledger, pipeline)
        await self._audit(actor, "pipeline_pause", pipeline, reason=reason)

    async def resume(self, pipeline: str, *, actor: str) -> None:
        """Go on; a sweep looks at what changed since the pause, or, where nobody knows when rows were written, at everything.

        It comes at once, or as soon as what runs, or a maintenance window that is on, has ended.
        """
        spec, ledger = self.pipeline(pipeline), self._on.ledger
        paused = await asyncio.to_thread(ledger.fact, Facts.paused(pipeline))
        if paused:
            since = datetime.fromisoformat(paused["at"])
            await asyncio.to_thread(remember_quiet, ledger, pipeline, since)  # first: whoever dies here has promised a sweep
        await asyncio.to_thread(ledger.set_fact, Facts.paused(pipeline), None)
        await self._audit(actor, "pipeline_resume", pipeline)
        if paused and quiet_at(spec.maintenance, None, self._on.clock.now()) is None:
            await asyncio.to_thread(sweep_after_quiet, ledger, spec, self._on.clock, self._on.new_id(), actor)

    async def start_sweep(self, pipeline: str, request: Mapping[str, Any], *, actor: str) -> Run:
        """Queue a sweep. Raises ConflictError with the running id when one is queued or running."""
        spec = self.pipeline(pipeline)
        asked = await self._sweep_request(spec, request)
        await self._refuse_quiet(spec)
        run = await asyncio.to_thread(
            request_sweep, self._on.ledger, spec, self._on.clock, self._on.new_id(), {"reason": "asked", **asked}, actor
        )
        await self._audit(actor, "sweep_start", pipeline, run_id=run.id)
        return run

    async def start_replay(self, pipeline: str, time_from: str, time_to: str, of: str, *, actor: str) -> Run:
        """Queue a reconciliation of a range. Raises ConflictError with the running id when one is queued or running."""
        self.pipeline(pipeline)
        check(question_of(time_from, time_to, of), self._on.clock.now_ms())
        await asyncio.to_thread(refuse_suspect_mapping, self._on.ledger, pipeline)
        await self._refuse_quiet(self.pipeline(pipeline))
        request = {"from": time_from, "to": time_to, "of": of}
        run = await asyncio.to_thread(
            lambda: request_replay(
                self._on.ledger, pipeline, request, run_id=self._on.new_id(), clock=self._on.clock, actor=actor
            )
        )
        await self._audit(actor, "replay_start", pipeline, run_id=run.id)
        return run

    async def _refuse_quiet(self, spec: PipelineSpec) -> None:
        await asyncio.to_thread(refuse_quiet, self._on.ledger, spec, self._on.clock.now())

    async def _sweep_request(self, spec: PipelineSpec, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return a sweep's request as a run holds it: keys as bytes, times as such. Raises UsageError."""
        asked = dict(request)
        scope = asked.get("range", "full")
        needed = SWEEP_OPTIONS.get(scope)
        if needed is None:
            raise UsageError(f"The range {scope!r} is not known.", remedy=f"Ranges: {', '.join(SWEEP_OPTIONS)}.")
        within = asked.get(WITHIN, 0.0)
        if not 0 <= within <= WITHIN_SECONDS_MAX:
            raise UsageError(f"A sweep cannot take {within:g} s.", remedy=f"Give between 0 and {WITHIN_SECONDS_MAX:.0f} s.")
        unknown = sorted(set(asked) - {"content", "range", WITHIN, *needed})
        if unknown:
            raise UsageError(
                f"A sweep of range {scope} has no option {unknown[0]!r}.",
                remedy=f"Its options: {', '.join(('content', WITHIN, *needed))}.",
            )
        if scope == "lookback":
            return asked | {"since": self._since(spec, asked.pop("lookback_seconds", None)).isoformat()}
        if scope == "full":
            return asked
        if scope == "keys" and not asked.get("keys"):
            raise UsageError("A sweep of keys needs a key: of none, nothing is proved.", remedy="Name the keys, one or more.")
        stores = await self._on.stores.stores(spec.id)
        if scope == "keys":
            return asked | {"keys": [self._key(stores, text).hex() for text in asked.get("keys", ())]}
        if not stores.codec.ordered:
            columns = ", ".join(column.type.value for column in spec.source.key)
            raise UsageError(
                f"Keys of {spec.id} ({columns}) have no order that all stores share.",
                remedy="Name the keys themselves (range keys), or sweep everything.",
            )
        ends = {name: self._key(stores, asked[name]) if asked.get(name) else None for name in needed}
        lower, upper = ends["from"], ends["to"]
        if lower is None and upper is None:
            raise UsageError("A range needs an end.", remedy="Give from, to, or both; for everything, the range full.")
        if lower is not None and upper is not None and lower >= upper:
            raise UsageError("The range is empty: it ends before it begins.", remedy="`to` is the first key that is left out.")
        return asked | {name: end.hex() if end is not None else None for name, end in ends.items()}

    def _since(self, spec: PipelineSpec, seconds: float | None) -> datetime:
        if not spec.source.changed_at:
            raise UsageError(
                f"Pipeline {spec.id} does not say when a row was written last.",
                remedy="Name the column in source.changed_at, like changed_at: updated_at.",
            )
        asked = seconds if seconds is not None else spec.sweep.lookback_seconds or LOOKBACK_SECONDS
        if not 0 < asked <= LOOKBACK_SECONDS_MAX:
            raise UsageError("A lookback reaches ten years into the past at most.", remedy="Give a duration like 48h.")
        return self._on.clock.now() - timedelta(seconds=asked)

    async def cancel(self, run_id: str, *, actor: str) -> Run:
        run = await asyncio.to_thread(self._on.ledger.cancel_run, run_id)
        await self._audit(actor, f"{run.kind.value}_cancel", run.pipeline, run_id=run.id)
        return run

    async def plan_backfill(self, pipeline: str, kinds: Sequence[str], *, actor: str, mode: str = "") -> Run:
        """Store a plan (a dry run): which open gaps an apply would write. Writes nothing to the target."""
        spec = self.pipeline(pipeline)
        chosen = frozenset(_kind(name) for name in kinds) or frozenset(DEFAULT_KINDS)
        await asyncio.to_thread(refuse_suspect_mapping, self._on.ledger, pipeline)
        return await asyncio.to_thread(
            lambda: plan(
                self._on.ledger,
                spec,
                chosen,
                limit=spec.repair.max_documents_per_run,
                run_id=self._on.new_id(),
                clock=self._on.clock,
                requested_by=actor,
                mode=_mode(mode) if mode else None,
            )
        )

    async def apply_backfill(self, plan_id: str, *, actor: str) -> Run:
        """Queue a plan's application. Raises NotFoundError, or ConflictError while another backfill of the pipeline runs."""
        planned = await asyncio.to_thread(self._on.ledger.run, plan_id)
        if planned is not None:
            await self._refuse_quiet(self.pipeline(planned.pipeline))
        run = await asyncio.to_thread(
            lambda: request_apply(self._on.ledger, plan_id, run_id=self._on.new_id(), clock=self._on.clock, requested_by=actor)
        )
        await self._audit(actor, "backfill_apply", run.pipeline, run_id=run.id)
        return run

    async def requeue_repairs(self, pipeline: str, keys: Sequence[str], *, actor: str) -> Run:
        """Queue a backfill of gaps whose repair did not come off: of these keys, or (none) of all that are given up."""
        spec = self.pipeline(pipeline)
        await asyncio.to_thread(refuse_suspect_mapping, self._on.ledger, pipeline)
        await self._refuse_quiet(spec)
        limit = spec.repair.max_documents_per_run
        if keys:
            records = await self._repairs_of(pipeline, keys, limit)
        else:
            records = await asyncio.to_thread(lambda: self._on.ledger.repairs(pipeline, given_up=True, limit=limit))
        run = await asyncio.to_thread(
            lambda: requeue(self._on.ledger, spec, records, new_id=self._on.new_id, clock=self._on.clock, requested_by=actor)
        )
        await self._audit(actor, "repair_requeue", pipeline, run_id=run.id)
        return run

    async def _repairs_of(self, pipeline: str, keys: Sequence[str], limit: int) -> Sequence[RepairRecord]:
        ledger = self._on.ledger
        stores = await self._on.stores.stores(pipeline)
        wanted = {self._key(stores, text): text for text in keys}
        if len(wanted) > limit:
            raise UsageError(f"{len(wanted)} keys are more than max_documents_per_run ({limit}).", remedy="Give fewer at once.")
        gaps = await asyncio.to_thread(ledger.open_gaps_for, pipeline, list(wanted))
        ids = {gap.id: key for key, gap in gaps.items()}
        records = await asyncio.to_thread(lambda: ledger.repairs(pipeline, gap_ids=list(ids), limit=limit))
        unknown = wanted.keys() - {ids[record.gap_id] for record in records}
        if unknown:
            raise NotFoundError(
                f"There is no failed repair of key {wanted[min(unknown)]!r}.",
                remedy=f"See `gapwatch backfill failed {pipeline}`.",
            )
        return records

    async def resume_repair(self, pipeline: str, *, actor: str) -> None:
        """Let automatic repair go on; its brakes count from now. Raises UsageError where it has not stopped."""
        self.pipeline(pipeline)
        ledger = self._on.ledger
        if not await asyncio.to_thread(ledger.fact, Facts.repair_stopped(pipeline)):
            raise UsageError(f"Automatic repair of {pipeline} has not stopped.", remedy="There is nothing to resume.")
        fact = {"at": self._on.clock.now().isoformat(), "by": actor}
        await asyncio.to_thread(ledger.set_fact, Facts.repair_resumed(pipeline), fact)
        await asyncio.to_thread(ledger.set_fact, Facts.repair_stopped(pipeline), None)
        await self._audit(actor, "repair_resume", pipeline)

    async def change_gap(
        self, gap_id: str, action: str, *, actor: str, note: str = "", resolution: str = "manual", seconds: float = 3600.0
    ) -> Gap:
        """Acknowledge, snooze or resolve a gap by hand; ``accepted`` gaps no longer hold consistent-through."""
        gap = await asyncio.to_thread(self._on.ledger.gap, gap_id)
        if gap is None:
            raise NotFoundError(f"There is no gap {gap_id!r}.")
        if gap.state is State.RESOLVED:
            raise UsageError("The gap is resolved already.")
        if action == "snooze":
            await self._remember_until(gap, seconds)
        changed = gaps.by_hand(gap, action, note=note, resolution=_resolution(resolution), now=self._on.clock.now())
        event = {"ack": "acknowledged", "snooze": "snoozed", "resolve": "resolved"}[action]
        change = GapChange(gap=changed, against=gap.revision, event=event, actor=actor)
        stood = await asyncio.to_thread(self._on.ledger.store_gaps, [change])
        if not stood[0]:
            raise UsageError("The gap changed at the same moment.", remedy="Look at it again, then repeat.")
        await self._audit(actor, f"gap_{action}", gap.pipeline, gap=gap, reason=note)
        return changed

    async def _remember_until(self, gap: Gap, seconds: float) -> None:
        """Store when a snooze is over, before it begins: whoever dies here has silenced nothing for ever."""
        if not 0 < seconds <= SNOOZE_SECONDS_MAX:
            raise UsageError(
                f"A gap cannot be snoozed for {seconds:g} s.",
                remedy=f"Give at most {SNOOZE_SECONDS_MAX:.0f} s; acknowledge it where it is to stay silent.",
            )
        until = self._on.clock.now() + timedelta(seconds=seconds)
        await asyncio.to_thread(self._on.ledger.set_fact, Facts.snoozed(gap.id), {"until": until.isoformat()})

    async def key_story(self, pipeline: str, text: str) -> dict[str, Any]:
        """Return all that is known about one key, and in one sentence why it is or is not a gap."""
        self.pipeline(pipeline)
        stores = await self._on.stores.stores(pipeline)
        key = self._key(stores, text)
        where = GapFilter(pipeline=pipeline, key=key)
        page = await asyncio.to_thread(self._on.ledger.gaps, where, limit=20)
        audit = await asyncio.to_thread(lambda: self._on.ledger.audit_rows(pipeline=pipeline, key=key, limit=50))
        try:
            reads: KeyReads | None = (await read_batch(stores, [key], self._on.clock)).by_key[key]
        except StoreError:
            reads = None
        newest = max(page.gaps, key=lambda gap: gap.first_seen, default=None)
        trace = await self._trace(stores.mapping, key)
        return {
            "schema_version": 1,
            "pipeline": pipeline,
            "key": stores.codec.fields(key),
            "stores": _stores_now(stores, reads),
            "stream": {"read": "unread", "reason": trace} if isinstance(trace, str) else {**trace.record(), "reason": None},
            "gaps": [reports.gap_record(gap) for gap in page.gaps],
            "audit": [reports.audit_record(row) for row in audit],
            "verdict": _verdict_sentence(stores, reads, newest, None if isinstance(trace, str) else trace),
        }

    async def _trace(self, mapping: CompiledMapping, key: Key) -> KeyTrace | str:
        """Return what the stream told of a key, or why it could not be read."""
        try:
            return await self._on.stream.trace(mapping, key)
        except TimeoutError:
            return "Kafka did not answer in time."
        except (StoreError, FeedError) as error:
            return error.message

    def _key(self, stores: PipelineStores, text: str) -> Key:
        """Read a key as a person writes it: parts in order, separated by commas."""
        columns = stores.spec.source.key
        parts = [text] if len(columns) == 1 else [part.strip() for part in text.split(",")]
        names = ", ".join(f"{column.path} ({column.type.value})" for column in columns)
        if len(parts) != len(columns):
            raise UsageError(
                f"The key has {len(columns)} parts: {names}.", remedy="Write them in this order, with commas between."
            )
        try:
            return stores.codec.encode(parts)
        except KeyMisfit as error:
            raise UsageError(
                f"{text!r} is not a key of this pipeline: {error.message}", remedy=f"The key is: {names}."
            ) from error

    async def _audit(
        self, actor: str, action: str, pipeline: str, *, run_id: str | None = None, gap: Gap | None = None, reason: str = ""
    ) -> None:
        row = AuditRow(
            id=f"aud_{self._on.new_id()}",
            at=self._on.clock.now(),
            actor=actor,
            action=action,
            pipeline=pipeline,
            key=gap.key if gap else None,
            key_fields=gap.key_fields if gap else None,
            run_id=run_id,
            gap_id=gap.id if gap else None,
            outcome="done",
            reason=reason,
        )
        await asyncio.to_thread(self._on.ledger.audit, [row])


def _kind(name: str) -> Kind:
    try:
        return Kind(name)
    except ValueError:
        raise UsageError(f"There is no gap kind {name!r}.", remedy=f"Kinds: {', '.join(kind.value for kind in Kind)}.") from None


def _mode(name: str) -> RepairMode:
    try:
        return RepairMode(name)
    except ValueError:
        raise UsageError(f"There is no mode {name!r}.", remedy=f"Modes: {', '.join(RepairMode)}.") from None


def _resolution(name: str) -> Resolution:
    allowed = (Resolution.ACCEPTED, Resolution.MANUAL)
    if name not in allowed:
        raise UsageError(f"A person cannot resolve a gap as {name!r}.", remedy="Choose accepted or manual.")
    return Resolution(name)


def _stores_now(stores: PipelineStores, reads: KeyReads | None) -> dict[str, Any]:
    if reads is None:
        return {"source": {"read": "unread"}, "target": {"read": "unread"}, "differing_fields": []}
    source, target = reads.reads.after, reads.reads.target
    return {
        "source": {
            "store": stores.spec.source.store,
            "read": source.presence.value,
            "reason": source.reason or None,
            "tables": list(source.tables),
        },
        "target": {
            "store": stores.spec.target.store,
            "read": target.presence.value,
            "reason": target.reason or None,
            "ids": list(target.target_ids),
        },
        "differing_fields": list(reads.reads.differing),
    }


def _verdict_sentence(stores: PipelineStores, reads: KeyReads | None, gap: Gap | None, trace: KeyTrace | None) -> str:
    if reads is None or reads.reads.unread:
        return "Unknown: " + ("the stores did not answer." if reads is None else f"{reads.reads.unread}.")
    agree = satisfied(reads.reads, stores.spec.match)
    if gap is not None and gap.state is not State.RESOLVED:
        if agree:
            return f"A gap ({gap.kind.value}) is open, but both stores agree now: it will be resolved at the next re-reading."
        since = gaps.rfc3339(gap.event_time or gap.first_seen)
        return f"A gap: {gap.kind.value}, cause {gap.cause.value}, since {since}{_by_rule(reads)}."
    if agree:
        if Presence.EXEMPT in (reads.reads.after.presence, reads.reads.target.presence):
            return f"No gap: {reads.reads.after.reason or reads.reads.target.reason}; the target may hold it or not."
        if reads.reads.after.presence is Presence.ABSENT:
            return f"No gap: neither store has this key{_by_rule(reads)}."
        return "No gap: the target holds what the source holds."
    if reads.reads.closing:
        return "Not a gap: the stores differ, but the document's time at the target (target.keep) is about to end."
    return f"Not a gap yet: the stores differ now{_by_rule(reads)}, but {_why_not_yet(trace)}."


def _by_rule(reads: KeyReads) -> str:
    """Say in brackets why a side counts as absent that has the key."""
    said = [side.reason for side in (reads.reads.after, reads.reads.target) if side.presence is Presence.ABSENT and side.reason]
    return f" ({'; '.join(said)})" if said else ""


def _why_not_yet(trace: KeyTrace | None) -> str:
    expected = trace.newest.get(Side.EXPECTED) if trace is not None else None
    if trace is None or expected is None:
        return "nothing has proved that the write is not merely on its way"
    place = f"{expected.topic}[{expected.partition}] offset {expected.offset}"
    if trace.state == "in_transit":
        return f"the write is in transit: the sink has not reached {place} yet"
    due = trace.due()
    if due is not None:
        return f"the write in {place} is given until {gaps.rfc3339(gaps.time_of(due))}, and is then confirmed by reading"
    return f"nothing has proved that the write in {place} is not merely on its way"
