"""Backfill: apply a plan, verify. Writes only what was judged to differ a moment ago, guarded by exactly what was read.

For each batch:

1. judge every key anew (source, target, source; grace and delivered-through have passed); what waited for its batch to fill
   is read once more, and judged again where it is not what it was;
2. write, each item under its guard;
3. read back target and source: a row that went or changed meanwhile is taken back or brought up to date, guarded by our own
   write. Whether it stood still shows by its revision since it was judged; where it has none, or another one by now, the source
   is read before the target as well;
4. audit every item, resolve the gaps whose documents were read back right: beside the reading of the next batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import structlog
from msgspec import Struct, structs

from gapwatch.core.autorepair import automatic
from gapwatch.core.backfill import OVERRUN, WRITE_ACTION, Decision, ItemOutcome, Step, Tally, decide, fits
from gapwatch.core.canonical_records import canonical_records
from gapwatch.core.confirm import Cleared, Presence, Superseded, Unverifiable, satisfied
from gapwatch.core.mapping import CompiledMapping
from gapwatch.core.pace import Pace
from gapwatch.errors import ConflictError, RecordError, StoreError
from gapwatch.model.gap import AuditRow, Gap, Kind, Run, RunState
from gapwatch.model.pipeline import RepairMode
from gapwatch.model.stream import Side
from gapwatch.ports import ABSENT, Absent, Key, Read, StoredRecord, Unread, WriteItem
from gapwatch.roles.repair.backfill_work import BackfillBooks, BackfillDependencies, Work, weight_of
from gapwatch.roles.repair.holding import Holding
from gapwatch.roles.repair.in_hand import InHand
from gapwatch.roles.repair.judging import Case, Decided, KeyJudge
from gapwatch.roles.repair.plans import PLAN_ACTION
from gapwatch.roles.repair.reads import BatchReads, KeyReads, read_batch, same_row
from gapwatch.roles.repair.redelivery import DELIVERED, Redelivery
from gapwatch.roles.repair.tenure import Tenure
from gapwatch.roles.repair.undo import Overwritten, UndoFile
from gapwatch.roles.stores import PipelineStores

log = structlog.get_logger(__name__)

VERIFY_ROUNDS_MAX = 4
PATIENCE_SECONDS = 600.0
GATHER_SECONDS = 3.0  # how long a batch that is not full waits for more keys to be judged …
GATHER_SECONDS_MAX = 10.0  # … and how long while there are more all the time
FRESH_MILLISECONDS = 250  # what was read longer ago is read once more before it is written
ASKED_MAX = 100  # keys that are asked for at once in other modes than direct: the lease is not renewed meanwhile
MOVED = "moved"
CAME_BACK_MAX = 3  # so often a key may have changed, or be unread, between its judgement and its turn
ROWS_PER_KEY = 20
ID = "_id"
SOFT_DELETED = "soft_deleted"


class _Written(Struct, frozen=True, kw_only=True):
    """A document that we wrote, for the verification: what stood there before, what stands there if nobody came after us."""

    item: WriteItem
    row: StoredRecord | None  # None: the document is to go, as its row has gone
    identity: str | None = None  # the row's, as the audit shows it


class Backfiller:
    """Carries out one backfill run that the caller has taken from the ledger."""

    def __init__(self, dependencies: BackfillDependencies) -> None:
        self._on = dependencies
        self._holding = Holding(dependencies.ledger, dependencies.clock)
        self._books = BackfillBooks(dependencies)
        self._redelivery = Redelivery(dependencies, self._books)

    async def run(self, run: Run, stores: PipelineStores) -> Run:
        """Apply the run's plan; return the run as it ended (it is stored as well)."""
        gaps, planned = await self._planned(run)
        tally, pace = Tally(planned=len(gaps)), Pace.of(stores.spec.sweep.batch)
        hand = InHand(self._holding, self._on.ledger, run, gaps)
        undo = UndoFile(stores, run, self._on.clock) if stores.spec.repair.undo else None
        tenure = Tenure(self._on.ledger, self._on.clock, run, holder=self._on.holder, seconds=self._on.lease_seconds)
        work = Work(
            run=run, stores=stores, gaps=gaps, planned=planned, hand=hand, tally=tally, pace=pace, tenure=tenure, undo=undo
        )
        ours, left = True, frozenset[Key]()
        try:
            async with work.closing, hand:
                stopped = await self._apply(work)
        except StoreError as error:
            state, error_text = RunState.INCONCLUSIVE, error.message
        except ConflictError:
            ours = await self._is_ours(run)
            raise
        else:
            state, said = tally.ended(stopped=stopped)
            error_text = said or ""
        finally:
            if ours:  # else another holder has these gaps in hand
                left = await self._holding.set_down(run.pipeline, gaps, tally.outcomes)
                again = set(run.request["kinds"]) <= {kind.value for kind in automatic(stores.spec.repair)}
                tried = {key: tally.outcomes[key] for key in left if key in tally.outcomes}
                await self._holding.remember(run, stores.spec, tried, again=again)
        return await self._end(run, tally, len(left), state, error_text or None)

    async def _planned(self, run: Run) -> tuple[dict[Key, str | None], dict[Key, Kind]]:
        """Return what was planned, by key: the gap's id, and its kind."""
        rows = await asyncio.to_thread(self._on.ledger.audited_keys, run.request["plan"], action=PLAN_ACTION)
        kinds = {kind.value: kind for kind in Kind}
        return {key: gap_id for key, gap_id, _ in rows}, {key: kinds[reason] for key, _, reason in rows}

    async def _written_before(self, run: Run) -> frozenset[Key]:
        """Return the keys that an earlier holder of this run wrote: what agrees by now is its work."""
        rows = await asyncio.to_thread(self._on.ledger.audited_keys, run.id, outcome=ItemOutcome.WRITTEN.value)
        return frozenset(key for key, _, _ in rows)

    async def _apply(self, work: Work) -> bool:
        """Work through the plan; True when the error rate stopped it."""
        run, stores, tally, spec = work.run, work.stores, work.tally, work.stores.spec
        work.ours = await self._written_before(run)

        async def same() -> PipelineStores:
            return stores

        judge = KeyJudge(
            same,
            grace_ms=lambda: self._on.grace_ms(spec.id),
            delivered=lambda: self._on.delivered(spec.id),
            clock=self._on.clock,
            batch=spec.sweep.batch.documents,
            digests=work.mode is not RepairMode.DIRECT,  # else it is asked for by them
        )
        clock, hand = self._on.clock, work.hand
        newest = oldest = clock.monotonic()
        ready: list[Decided] = []  # keys are judged as their deliveries come, and written in batches
        while ready or ((len(judge) or hand) and clock.monotonic() < newest + PATIENCE_SECONDS):
            await hand.take_more(judge)
            if decided := await judge.step():
                newest = clock.monotonic()
                oldest = oldest if ready else newest
                ready += decided
            full = work.pace.limits.documents
            patience = GATHER_SECONDS_MAX if decided else GATHER_SECONDS
            if (len(judge) or hand) and len(ready) < full and (not ready or clock.monotonic() < oldest + patience):
                if not decided and not judge.is_busy and not hand:
                    await clock.sleep(0.1)
                await work.tenure.renew(tally)
                continue
            batch, ready = await self._unmoved(work, ready[:full], judge), ready[full:]
            await hand.judged(item.case.key for item in batch)
            left = await self._handle(work, batch)
            hand.let_go({item.case.key for item in batch} - {item.case.key for item in left})
            ready = [*left, *ready]
            if tally.error_rate_exceeded(spec.repair.brake_ratio):
                return True
            await work.tenure.renew(tally)
        for key in (*judge.cases, *hand.left):
            tally.add(ItemOutcome.UNREAD, "the stores did not answer, or deliveries did not come far enough", key=key)
        return False

    async def _unmoved(self, work: Work, decided: Sequence[Decided], judge: KeyJudge) -> list[Decided]:
        """Return what still stands as it was judged, as read now; what moved on, or was not read, goes back under judgement."""
        clock, came_back = self._on.clock, work.came_back
        old = {item.case.key for item in decided if clock.now_ms() - item.reads.reads.started_ms > FRESH_MILLISECONDS}
        if not old:
            return list(decided)
        batch = await read_batch(work.stores, old, clock, digested=() if work.mode is RepairMode.DIRECT else None)
        standing: list[Decided] = []
        for item in decided:
            key = item.case.key
            if key not in old or (reads := batch.by_key[key]).stands_as(item.reads):
                standing.append(item if key not in old else structs.replace(item, reads=reads))
                continue
            unread = reads.reads.unread
            why = "unread" if unread else MOVED
            came_back[key, why] += 1
            if came_back[key, why] <= CAME_BACK_MAX:
                judge.again(item)
            else:
                standing.append(structs.replace(item, judgement=Unverifiable(reason=unread) if unread else Superseded()))
        return standing

    async def _handle(self, work: Work, decided: Sequence[Decided]) -> Sequence[Decided]:
        """Settle keys in their order, up to one batch that is written; return the others, whose reads are too old by then."""
        run, stores, held, direct = work.run, work.stores, work.hand.gaps, work.mode is RepairMode.DIRECT
        kinds = frozenset(Kind(name) for name in run.request["kinds"])
        to_write: list[_Written] = []
        to_ask: list[Decided] = []
        agreeing: list[Decided] = []
        audit: list[AuditRow] = []
        left: Sequence[Decided] = ()
        size = 0
        for place, item in enumerate(decided):
            key = item.case.key
            decision = decide(item.judgement, kinds, planned=work.planned[key])
            if decision.outcome is ItemOutcome.VANISHED and await self._is_our_insert(stores, item, held.get(key)):
                decision = Decision(step=Step.DELETE, outcome=ItemOutcome.VANISHED)
            outcome, reason = decision.outcome, decision.reason
            if decision.step is not Step.LEAVE and not direct:
                if len(to_ask) >= min(work.pace.limits.documents, ASKED_MAX):
                    left = decided[place:]
                    break
                to_ask.append(item)
                continue
            if decision.step is not Step.LEAVE:
                try:
                    written = _prepare(stores, item.reads, key)
                except RecordError as error:
                    refused = error.reason == SOFT_DELETED
                    outcome, reason = ItemOutcome.REFUSED if refused else ItemOutcome.FAILED, str(error)
                else:
                    weight = weight_of(written.item.document)
                    if not fits(len(to_write), size, weight, work.pace.limits):
                        left = decided[place:]
                        break
                    to_write.append(written)
                    size += weight
                    continue
            elif isinstance(item.judgement, Cleared):
                agreeing.append(item)
                if work.came_back[key, MOVED]:  # it agrees by a write that came while it waited for its turn
                    outcome = ItemOutcome.ALREADY_NEWER
            self._books.count(work, key, outcome, reason)
            audit.append(self._books.row(work, key, outcome, reason))
        await self._on.book.close(stores, agreeing, backfilled=work.ours, held=held, newer=False)
        await asyncio.to_thread(self._on.ledger.audit, audit, by=work.run)
        to_write = await self._identified(work, to_write)
        if work.undo is not None:
            await work.undo.note([_overwritten(item) for item in to_write] + [_asked_over(item) for item in to_ask])
        if to_ask:
            await self._redelivery.run(work, to_ask, lambda: work.tenure.renew(work.tally))
        if to_write:
            await self._write(work, to_write)
        if to_ask or to_write:
            await self._on.clock.sleep(work.pace.limits.pause_seconds)
        return left

    async def _identified(self, work: Work, batch: Sequence[_Written]) -> list[_Written]:
        """Return what is written, with its rows' identities; a row that has none could not be verified: it is not written."""
        rows = [item.row.fields for item in batch if item.row is not None]
        made = iter(canonical_records(work.stores.mapping, Side.EXPECTED)(rows))
        identified = []
        for item in batch:
            form = next(made) if item.row is not None else None
            if isinstance(form, RecordError):
                await self._books.conclude(work, item.item.key, ItemOutcome.FAILED, str(form))
            else:
                identified.append(item if form is None else structs.replace(item, identity=form.identity.hex()))
        return identified

    async def _is_our_insert(self, stores: PipelineStores, item: Decided, gap: Gap | None) -> bool:
        """Whether a document without a row is one that a backfill inserted for this open gap, and nobody changed.

        It is taken back. One that was read back right has closed its gap: if it is too much since, that is the policy's business.
        """
        target = item.reads.target
        if gap is None or not isinstance(target, StoredRecord):
            return False
        rows = await asyncio.to_thread(
            lambda: self._on.ledger.audit_rows(pipeline=stores.spec.id, key=item.case.key, limit=ROWS_PER_KEY)
        )
        last = next((row for row in rows if row.action == WRITE_ACTION and row.outcome == ItemOutcome.WRITTEN.value), None)
        if last is None or last.gap_id != gap.id or last.reason == DELIVERED:
            return False
        return last.before is None and last.after == _identity(stores, target)

    async def _write(self, work: Work, batch: Sequence[_Written]) -> None:
        stores = work.stores
        now = self._on.clock.now()
        intents = [self._books.row(work, item.item.key, ItemOutcome.PLANNED, "about to write", now=now) for item in batch]
        await asyncio.to_thread(self._on.ledger.audit, intents, by=work.run)
        await work.tenure.assure(work.tally)
        work.hand.begin_taking()
        began = self._on.clock.monotonic()
        results = await stores.writer.write([item.item for item in batch])
        failed = sum(result.outcome not in ("written", "guard_failed") for result in results)
        work.pace.took(self._on.clock.monotonic() - began, documents=len(batch), failed=failed)
        work.tally.batch()
        standing: list[_Written] = []
        audit: list[AuditRow] = []
        now = self._on.clock.now()
        for item, result in zip(batch, results, strict=True):
            outcome = {"written": ItemOutcome.WRITTEN, "guard_failed": ItemOutcome.ALREADY_NEWER}.get(
                result.outcome, ItemOutcome.FAILED
            )
            if outcome is ItemOutcome.WRITTEN:
                standing.append(item)
            else:
                self._books.count(work, item.item.key, outcome, result.reason)
            audit.append(
                self._books.row(
                    work,
                    item.item.key,
                    outcome,
                    result.reason,
                    before=_digest_before(stores, item.item.replaces),
                    after=item.identity,
                    now=now,
                )
            )
        noted = asyncio.create_task(asyncio.to_thread(self._on.ledger.audit, audit, by=work.run))  # while it is read back
        try:
            first = await self._read_back(work, standing, once=True) if standing else None
        except BaseException:  # what ends us is told, not that noting failed as well
            await asyncio.gather(noted, return_exceptions=True)
            raise
        await noted
        if first is not None:
            await self._verify(work, standing, first)

    async def _read_back(self, work: Work, written: Sequence[_Written], *, once: bool = False) -> BatchReads:
        """``once``: rows with a revision are read after the target alone."""
        keys = [item.item.key for item in written]
        alone = {item.item.key for item in written if once and _is_dated(item)}
        return await read_batch(work.stores, keys, self._on.clock, once=alone)

    async def _verify(self, work: Work, written: Sequence[_Written], first: BatchReads) -> None:
        """Judge what was read back, with the source; correct what is no longer right, guarded by our own write."""
        left = list(written)
        for turn in range(VERIFY_ROUNDS_MAX):
            if not left:
                return
            batch = await self._read_back(work, left) if turn else first
            right: list[tuple[_Written, KeyReads]] = []
            wrong: list[tuple[_Written, KeyReads]] = []
            unread: list[_Written] = []
            moved: list[_Written] = []
            for item in left:
                reads = batch.by_key[item.item.key]
                agrees, alone = satisfied(reads.reads, work.stores.spec.match), not turn and _is_dated(item)
                if reads.reads.unread:
                    unread.append(item)
                elif agrees and alone and not _is_judged_row(item, reads):
                    moved.append(item)  # it was read once only, and is another one by now
                elif agrees and reads.reads.source_stood_still:
                    right.append((item, reads))
                else:
                    wrong.append((item, reads))
            await self._verified(work, right)
            again = await self._correct(work, wrong)
            left = [*again, *moved, *unread]
            if unread:
                await self._on.clock.sleep(0.5)
        for item in left:
            self._books.count(work, item.item.key, ItemOutcome.UNREAD, "written, but reading it back did not prove it right")
            await self._books.note(work, item.item.key, ItemOutcome.UNREAD, "not read back")

    async def _verified(self, work: Work, right: Sequence[tuple[_Written, KeyReads]]) -> None:
        decided = []
        for item, reads in right:
            vanished = reads.reads.after.presence is Presence.ABSENT and item.row is not None
            self._books.count(work, item.item.key, ItemOutcome.VANISHED if vanished else ItemOutcome.WRITTEN)
            decided.append(_agreed(item.item.key, reads))
        work.tally.verified(len(right))
        backfilled = frozenset(item.item.key for item, _ in right)
        held = work.hand.held(backfilled)  # they are let go before it has ended
        await work.closing.begin(self._on.book.close(work.stores, decided, backfilled=backfilled, held=held))

    async def _correct(self, work: Work, wrong: Sequence[tuple[_Written, KeyReads]]) -> list[_Written]:
        """Take back or renew our own writes whose source moved on; return those to read back once more."""
        again: list[_Written] = []
        for item, reads in wrong:
            ours = _still_ours(work.stores.mapping, item.item, reads.target)
            if ours is None:
                await self._books.conclude(work, item.item.key, ItemOutcome.ALREADY_NEWER, OVERRUN)
                continue
            if isinstance(reads.source, Unread):  # rows of several tables have the key: nobody knows which the document is of
                await self._books.conclude(work, item.item.key, ItemOutcome.UNREAD, reads.source.reason)
                continue
            if isinstance(ours, Absent) and isinstance(reads.source, Absent):  # the row came back and went while it was read
                again.append(item)
                continue
            try:
                renewed = _renewed(work.stores, item, reads, ours)
            except RecordError as error:  # the row as it is now cannot be written
                await self._books.conclude(work, item.item.key, ItemOutcome.FAILED, str(error))
                continue
            again.append(await self._rewrite(work, item, renewed))
        return again

    async def _rewrite(self, work: Work, item: _Written, renewed: _Written) -> _Written:
        """Write over our own write, audited before and after; return what stands now, for all we know: it is read back again."""
        why = "the source changed while we wrote"
        key = item.item.key
        await self._books.note(work, key, ItemOutcome.PLANNED, why)
        await work.tenure.assure(work.tally)
        (result,) = await work.stores.writer.write([renewed.item])
        if result.outcome != "written":
            newer = result.outcome == "guard_failed"
            await self._books.note(work, key, ItemOutcome.ALREADY_NEWER if newer else ItemOutcome.FAILED, result.reason)
            return item
        outcome = ItemOutcome.VANISHED if renewed.item.document is None else ItemOutcome.WRITTEN
        await self._books.note(work, key, outcome, why)
        return renewed

    async def _is_ours(self, run: Run) -> bool:
        """Whether the run's lease is still ours: it was only cancelled."""
        current = await asyncio.to_thread(self._on.ledger.run, run.id)
        if current is None:
            return False
        try:
            await asyncio.to_thread(self._on.ledger.update_run, replace(current, fencing=run.fencing), holder=self._on.holder)
        except ConflictError:
            return False
        return True

    async def _end(self, run: Run, tally: Tally, still_open: int, state: RunState, error: str | None) -> Run:
        counts = tally.as_counts(open_gaps=still_open)
        ended = replace(run, state=state, error=error, counts=counts, progress=1.0, ended_at=self._on.clock.now())
        await asyncio.to_thread(self._on.ledger.update_run, ended, holder=self._on.holder)
        log.info("backfill_ended", pipeline=run.pipeline, run=run.id, state=state.value, **counts)
        return ended


def _prepare(stores: PipelineStores, reads: KeyReads, key: Key) -> _Written:
    """Build the guarded write of one key. Raises RecordError where the row lacks a field: nothing is ever defaulted."""
    if not isinstance(reads.source, StoredRecord):
        assert isinstance(reads.target, StoredRecord), "only a document that is there is deleted"
        return _Written(item=WriteItem(key=key, document=None, replaces=reads.target), row=None)
    document = stores.writer.document(key, reads.source, stores.spec.fields)
    if isinstance(reads.target, Absent) and reads.target.why:
        raise RecordError(SOFT_DELETED, f"Not written over: {reads.target.why}.")
    if not stores.mapping.counting.counts(Side.OBSERVED, document):
        raise RecordError(SOFT_DELETED, "The row makes a document that is marked as deleted (target.deleted_when).")
    replaces = reads.target if isinstance(reads.target, StoredRecord) else ABSENT
    return _Written(item=WriteItem(key=key, document=document, replaces=replaces), row=reads.source)


def _is_dated(written: _Written) -> bool:
    """Whether the row that was written has a revision, by which it is known again."""
    return written.row is not None and written.row.revision is not None


def _is_judged_row(written: _Written, reads: KeyReads) -> bool:
    """Whether the source still holds the write that was judged and written: then it stood still all the time."""
    return written.row is not None and same_row(written.row, reads.source)


def _overwritten(written: _Written) -> Overwritten:
    replaced = written.item.replaces
    return written.item.key, replaced if isinstance(replaced, StoredRecord) else None, written.item.document is None


def _asked_over(item: Decided) -> Overwritten:
    target = item.reads.target
    return item.case.key, target if isinstance(target, StoredRecord) else None, not isinstance(item.reads.source, StoredRecord)


def _still_ours(
    mapping: CompiledMapping, item: WriteItem, target: Read | tuple[StoredRecord, ...]
) -> StoredRecord | Absent | None:
    """Return what stands at the target if it is what we left there (after a delete: nothing); None: somebody came after us."""
    if isinstance(target, Absent):
        return target if item.document is None else None
    if item.document is None or not isinstance(target, StoredRecord):
        return None
    found = dict(target.fields)
    if target.raw is None:  # a table's row: its columns have types of their own, and some are not ours
        return target if _identity_of(mapping, found) == _identity_of(mapping, item.document) else None
    if ID not in item.document:  # the store has given it one
        found.pop(ID, None)
    return target if _alike(found, item.document) else None


def _alike(found: Any, written: Any) -> bool:
    """Whether a value was read back as it was written; NaN, which equals nothing, is what it was."""
    if isinstance(found, Mapping) and isinstance(written, Mapping):
        return found.keys() == written.keys() and all(_alike(value, written[name]) for name, value in found.items())
    if isinstance(found, list) and isinstance(written, list):
        return len(found) == len(written) and all(map(_alike, found, written))
    return bool(found == written or (found != found and written != written))


def _renewed(stores: PipelineStores, item: _Written, reads: KeyReads, ours: StoredRecord | Absent) -> _Written:
    source = reads.source
    document: Mapping[str, Any] | None = None
    row = item.row
    if isinstance(source, StoredRecord):
        document, row = stores.writer.document(item.item.key, source, stores.spec.fields), source
    return _Written(item=WriteItem(key=item.item.key, document=document, replaces=ours), row=row)


def _agreed(key: Key, reads: KeyReads) -> Decided:
    return Decided(case=Case(key=key), judgement=Cleared(reason="in_agreement"), reads=reads)


def _digest_before(stores: PipelineStores, replaced: StoredRecord | Absent) -> str | None:
    return _identity(stores, replaced) if isinstance(replaced, StoredRecord) else None


def _identity(stores: PipelineStores, document: StoredRecord) -> str:
    return _identity_of(stores.mapping, document.fields)


def _identity_of(mapping: CompiledMapping, fields: Mapping[str, Any]) -> str:
    return mapping.canonical_target(fields).identity.hex()
