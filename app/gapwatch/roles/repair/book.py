"""Books what was judged: opens, changes and resolves gaps in the ledger, each against the revision that was read."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any

import structlog
from msgspec.structs import replace

from gapwatch.core import gaps
from gapwatch.core.backfill import WRITE_ACTION, ItemOutcome
from gapwatch.core.confirm import SKIPPED, Cleared, Difference, Presence
from gapwatch.core.standing import BEGINNING
from gapwatch.model.gap import Cause, Detector, Gap, Kind, Resolution, State
from gapwatch.model.stream import Side
from gapwatch.model.suspect import Heard
from gapwatch.ports import Clock, GapChange, GapFilter, Key, Ledger, StoredRecord
from gapwatch.roles.repair.judging import Decided
from gapwatch.roles.repair.reads import EXPIRED, KeyReads
from gapwatch.roles.stores import PipelineStores

log = structlog.get_logger(__name__)


ATTEMPTS = 5
UNCHANGED = "unchanged"
NOTHING: Mapping[Key, Gap] = MappingProxyType({})
ROWS_PER_KEY = 20  # of the audit
TOLD_MAX = 50  # gaps of one batch that are logged one by one; the ledger names them all
BROUGHT_ABOUT = frozenset({ItemOutcome.REQUESTED.value, ItemOutcome.WRITTEN.value})
HELD_AT_ONCE = 500
# What was read up to so long ago closes a gap that was looked up after it: nothing breaks and is confirmed in less. A worker that
# stood still for longer may hold an agreement from before the gap.
FRESH_MILLISECONDS = 1_000
UNRESOLVED = tuple(state.value for state in State if state is not State.RESOLVED)
NEW = frozenset({"opened", "reopened"})  # of the events of :meth:`Book.open`


class Book:
    """Stores differences and agreements of one ledger. Every method returns the keys whose change stands."""

    def __init__(self, ledger: Ledger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock

    async def open(
        self,
        stores: PipelineStores,
        decided: Sequence[Decided],
        detector: Detector,
        *,
        opened_by: str = "",
        held_since: datetime | None = None,
        only_known: bool = False,
    ) -> dict[Key, str]:
        """Open a gap for each difference, or bring the key's open gap up to date; return what happened, by key.

        Args:
            stores: The pipeline.
            decided: Judgements, all of them :class:`Difference`.
            detector: Who found them.
            opened_by: What names them besides the key where there is no suspect: the run's id.
            held_since: The time from which a gap without a commit time holds consistent-through.
            only_known: Open nothing: what somebody has resolved meanwhile is not this one's business.
        """
        if not decided:
            return {}
        known = await asyncio.to_thread(self._ledger.open_gaps_for, stores.spec.id, [item.case.key for item in decided])
        if only_known:
            decided = [item for item in decided if item.case.key in known]
        now = self._clock.now()
        made = {item.case.key: self._gap(stores, item, detector, opened_by, held_since, now) for item in decided}
        ids = [gap.id for key, gap in made.items() if key not in known and gap.opened_by is not None]  # the others' are new
        before = await asyncio.to_thread(self._ledger.gaps_by_id, ids) if ids else {}
        changes: list[GapChange] = []
        keys: list[Key] = []
        events: dict[Key, str] = {}
        for item in decided:
            gap = made[item.case.key]
            change = _change(known.get(item.case.key) or before.get(gap.id), gap)
            if change is None:
                events[item.case.key] = UNCHANGED
                continue
            changes.append(change)
            keys.append(item.case.key)
        stored = await self._store(keys, changes)
        return events | {key: change.event for key, change in zip(keys, changes, strict=True) if key in stored}

    async def skipped(self, stores: PipelineStores, decided: Sequence[Decided]) -> None:
        """Put on record what the target need not keep: a document that is missing, of a write of the source that it never showed.

        It is there once, as accepted, with its cause and its evidence; it asks for nothing, and no total counts it as detected.
        A document that was there and went when its time was over is as it should be, and on no record.
        """
        now, changes = self._clock.now(), []
        for item in decided:
            explained = isinstance(item.judgement, Cleared) and item.judgement.reason == SKIPPED
            lost = item.case.suspect is not None and item.case.suspect.opening.side == Side.EXPECTED
            if not explained or not lost or item.reads.reads.target.presence is not Presence.ABSENT:
                continue
            lacking = replace(item, judgement=Difference(kind=Kind.MISSING, cause=Cause.SKIPPED_BY_POLICY, fields=()))
            gap = gaps.resolved(
                self._gap(stores, lacking, Detector.STREAM, "", None, now), Resolution.ACCEPTED, now, note=EXPIRED
            )
            changes.append(GapChange(gap=gap, against=None, event="resolved"))
        await self._store([change.gap.key for change in changes], changes)

    async def close(
        self,
        stores: PipelineStores,
        decided: Sequence[Decided],
        *,
        backfilled: Container[Key] = frozenset(),
        held: Mapping[Key, Gap] = NOTHING,
        newer: bool = True,
    ) -> set[Key]:
        """Resolve the open gap, where there is one, of every key that was judged to agree.

        Args:
            stores: The pipeline.
            decided: Judgements, of which those of agreement count.
            backfilled: The keys that a backfill wrote.
            held: Gaps as they were read before their keys were: they are not read again unless somebody has changed them.
            newer: Whether gaps that are not held, or were changed since, are resolved too, where the reads are fresh; else what
                was proved since stays open.
        """
        if not decided:
            return set()
        known = {item.case.key: held[item.case.key] for item in decided if item.case.key in held}
        unknown = [item.case.key for item in decided if item.case.key not in known]
        others, stale = unknown if newer else [], set[Key]()
        if others:
            found = await asyncio.to_thread(self._ledger.open_gaps_for, stores.spec.id, others)
            fresh = self._clock.now_ms() - FRESH_MILLISECONDS
            stale = {item.case.key for item in decided if item.case.key in found and item.reads.reads.started_ms < fresh}
            known |= {key: gap for key, gap in found.items() if key not in stale}
        now = self._clock.now()
        changes, keys = [], []
        for item in decided:
            gap = known.get(item.case.key)
            if gap is None or not isinstance(item.judgement, Cleared):
                continue
            ours = item.case.key in backfilled or (gap.state is State.REPAIRING and await self._in_hand(gap))
            resolution = gaps.resolution_of(gap, item.reads.reads, written_by_backfill=ours)
            changes.append(_resolve(gap, resolution, now))
            keys.append(item.case.key)
        stored = await self._store(keys, changes)
        changed = {key for key in keys if key in held and key not in stored} if newer else set()
        if changed:
            stored |= await self.close(stores, [item for item in decided if item.case.key in changed], backfilled=backfilled)
        return stored | ({key for key in unknown if key not in known and key not in stale} if newer else set())

    async def explain(self, pipeline: str, heard: Sequence[Heard]) -> None:
        """Bring open gaps up to date of whose writes the sink says only now that it gave them up."""
        left = {record.key: [one for one in heard if one.key == record.key] for record in heard}
        for _ in range(ATTEMPTS):
            if not left:
                return
            known = await asyncio.to_thread(self._ledger.open_gaps_for, pipeline, list(left))
            changed: dict[Key, Gap] = {}
            for key, gap in known.items():
                explained = next((said for one in left[key] if (said := gaps.explained(gap, one)) is not None), None)
                if explained is not None:
                    changed[key] = explained
            changes = [GapChange(gap=gap, against=known[key].revision, event="updated") for key, gap in changed.items()]
            stored = await self._store(list(changed), changes)
            left = {key: left[key] for key in changed if key not in stored}  # somebody changed the gap at the same moment
        if left:
            log.warning("cause_not_stored", pipeline=pipeline, gaps=len(left), attempts=ATTEMPTS)

    async def _in_hand(self, gap: Gap) -> bool:
        """Whether a backfill wrote the document, or has it delivered again, and somebody else was the first to read that."""
        rows = await asyncio.to_thread(lambda: self._ledger.audit_rows(pipeline=gap.pipeline, key=gap.key, limit=ROWS_PER_KEY))
        last = next((row for row in rows if row.gap_id == gap.id and row.action == WRITE_ACTION), None)
        return last is not None and last.outcome in BROUGHT_ABOUT

    async def _store(self, keys: Sequence[Key], changes: Sequence[GapChange]) -> set[Key]:
        if not changes:
            return set()
        results = await asyncio.to_thread(self._ledger.store_gaps, changes)
        _tell([change for change, stood in zip(changes, results, strict=True) if stood])
        return {key for key, stood in zip(keys, results, strict=True) if stood}

    def _gap(
        self,
        stores: PipelineStores,
        item: Decided,
        detector: Detector,
        opened_by: str,
        held_since: datetime | None,
        now: datetime,
    ) -> Gap:
        assert isinstance(item.judgement, Difference)
        suspect = item.case.suspect
        return gaps.opened(
            pipeline=stores.spec.id,
            key=item.case.key,
            key_fields=stores.codec.fields(item.case.key),
            difference=item.judgement,
            reads=item.reads.reads,
            suspect=suspect,
            detector=detector,
            opened_by=suspect.id if suspect else opened_by,
            values=_values(stores, item.reads, item.judgement.fields),
            now=now,
            held_since=held_since,
            tables=stores.spec.source.table_of,
        )


def hold_from(ledger: Ledger, pipeline: str, since: datetime) -> bool:
    """Have open gaps hold consistent-through from a time on; False where some could not be stored.

    For the moment at which a sweep covers a hole: a key that differs may have lost an earlier write in it than the one its gap
    is of, and when the hole is covered nothing else holds that one's time.
    """
    where, cursor, again = GapFilter(pipeline=pipeline, states=UNRESOLVED), None, list[str]()
    while True:
        page = ledger.gaps(where, limit=HELD_AT_ONCE, cursor=cursor)
        again += _hold(ledger, page.gaps, since)
        cursor = page.next_cursor
        if cursor is None:
            break
    for _ in range(ATTEMPTS):
        if again:
            again = _hold(ledger, list(ledger.gaps_by_id(again).values()), since)
    return not again


def held_since(lost: Iterable[datetime], proved: datetime | None) -> datetime | None:
    """Return from when on gaps have to hold what was lost since these times; None: nothing was.

    Of a loss whose beginning nobody knows, `proved` stands for it: all that came before it was judged. One that began is held
    from there, also where a sweep has come in between: that one may have passed over a key that changed all the time.
    """
    return min((proved if proved is not None and since == BEGINNING else since for since in lost), default=None)


def _hold(ledger: Ledger, found: Sequence[Gap], since: datetime) -> list[str]:
    """Return the gaps that somebody else changed at the same moment."""
    held = [(gap, made) for gap in found if gap.state is not State.RESOLVED and (made := gaps.held_from(gap, since)) is not None]
    stood = ledger.store_gaps([GapChange(gap=made, against=gap.revision, event="updated") for gap, made in held])
    return [gap.id for (gap, _), stands in zip(held, stood, strict=True) if not stands]


def _tell(changes: Sequence[GapChange]) -> None:
    """Log what became of each gap; of very many at once, how many of a kind."""
    if len(changes) <= TOLD_MAX:
        for change in changes:
            gap = change.gap
            log.info(f"gap_{change.event}", pipeline=gap.pipeline, gap=gap.id, kind=gap.kind.value, cause=gap.cause.value)
        return
    kinds = Counter((one.event, one.gap.pipeline, one.gap.kind.value, one.gap.cause.value) for one in changes)
    for (event, pipeline, kind, cause), count in kinds.items():
        log.info(f"gaps_{event}", pipeline=pipeline, kind=kind, cause=cause, count=count)


def _change(known: Gap | None, gap: Gap) -> GapChange | None:
    if known is None:
        return GapChange(gap=gap, against=None, event="opened")
    if known.state is State.RESOLVED:
        return GapChange(gap=gaps.reopened(known, gap), against=known.revision, event="reopened")
    if not gaps.changed(known, gap):
        return None
    return GapChange(gap=gaps.found_again(known, gap), against=known.revision, event="updated")


def _resolve(gap: Gap, resolution: Resolution, now: datetime) -> GapChange:
    done = gaps.resolved(gap, resolution, now)
    return GapChange(gap=done, against=gap.revision, event="resolved", state_only=True)


def _values(stores: PipelineStores, reads: KeyReads, fields: Sequence[str]) -> Mapping[str, Mapping[str, Any]]:
    """Return the differing fields' canonical values per side, only where ``evidence: values`` asks for row data."""
    if stores.spec.evidence != "values":
        return {}
    shown: dict[str, Mapping[str, Any]] = {}
    if isinstance(reads.source, StoredRecord):
        shown["source"] = stores.mapping.shown_source(reads.source.fields, fields)
    if isinstance(reads.target, StoredRecord):
        shown["target"] = stores.mapping.shown_target(reads.target.fields, fields)
    return shown
