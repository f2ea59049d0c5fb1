"""Keeps every pipeline's mapping on trial over its first keys: a wrong field is one finding, and neither gaps nor repair."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from datetime import datetime

import msgspec
import structlog

from gapwatch.core.confirm import Cleared, Difference, Presence
from gapwatch.core.gaps import gap_id, resolved
from gapwatch.core.sweep import Place
from gapwatch.core.trial import KEYS, REMEDY, Trial, sentence
from gapwatch.errors import StoreError
from gapwatch.model.gap import Cause, Finding, FindingRecord, Gap, Kind, Resolution, State
from gapwatch.model.stream import Side
from gapwatch.ports import Clock, GapChange, GapFilter, Key, Ledger, StoredRecord
from gapwatch.roles.board import Board
from gapwatch.roles.repair.judging import Decided
from gapwatch.roles.repair.watcher import FindingBook
from gapwatch.roles.stores import PipelineStores, StoreProvider

log = structlog.get_logger(__name__)

REASON = "mapping_suspect"  # of keys that nobody can verify while the mapping is suspect
BEGIN_SECONDS = 1.0
OPEN = (State.OPEN.value, State.ACKNOWLEDGED.value, State.SNOOZED.value)


class MappingTrials:
    """One per process that plays ``repair``. What is known is a fact in the ledger per pipeline: all of them go on from it.

    By itself, each would pass a mapping with the keys that happened to agree, and end the suspicion of another one.
    """

    def __init__(self, ledger: Ledger, board: Board, book: FindingBook, stores: StoreProvider, clock: Clock) -> None:
        self._ledger = ledger
        self._board = board
        self._book = book
        self._stores = stores
        self._clock = clock
        self._trials: dict[str, Trial] = {}
        self._one = asyncio.Lock()  # what one has read is stored before another one reads

    async def begin(self, pipelines: Collection[str]) -> None:
        """Take every mapping up as it is now: a suspicion of another one, which somebody has corrected, is over."""
        left = list(pipelines)
        while left:
            for name in list(left):
                try:
                    await self.is_over(await self._stores.stores(name))
                except StoreError as error:
                    log.warning("stores_unavailable", pipeline=name, purpose="mapping", error=error.message)
                else:
                    left.remove(name)
            await self._clock.sleep(BEGIN_SECONDS)

    async def streamed(self, stores: PipelineStores, decided: Sequence[Decided]) -> frozenset[str]:
        """Take what was judged key by key; return the fields whose mapping is suspect."""
        against = [item for item in decided if counts_against(item) and _was_expected(item)]
        agreed = sum(1 for item in decided if isinstance(item.judgement, Cleared) and _on_both_sides(item))
        fields = [_fields(item) for item in against]
        async with self._one:
            trial = await self._trial(stores)
            if trial.passed:
                return frozenset()
            return await self._keep(stores, trial.streamed(fields, agreed=agreed, settled=self._settled(stores.spec.id)), against)

    async def swept(
        self,
        stores: PipelineStores,
        differing: Counter[str],
        examples: Sequence[Decided],
        *,
        compared: int,
        ended: bool,
        whole: bool,
    ) -> tuple[Trial, str]:
        """Take what a content sweep proved so far; return the trial as it stands, and the sentence about a suspect mapping."""
        async with self._one:
            before = await self._trial(stores)
            trial = before.swept(differing, compared=compared, ended=ended, whole=whole)
            suspected = await self._keep(stores, trial, examples)
        return trial, _said(stores, trial, examples) if suspected else ""

    async def is_over(self, stores: PipelineStores) -> bool:
        """Whether the mapping has passed, here or as another worker has put on record."""
        async with self._one:
            return (await self._trial(stores)).passed

    async def _trial(self, stores: PipelineStores) -> Trial:
        """Return the trial of the mapping as it is now, as the ledger has it; findings of another one are over."""
        name, fingerprint = stores.spec.id, stores.mapping.fingerprint
        mine = self._trials.get(name)
        if mine is not None and mine.fingerprint == fingerprint and mine.passed:
            return mine
        known = await asyncio.to_thread(self._ledger.fact, _fact(name))
        stored = msgspec.convert(known, Trial) if known else None
        if stored is not None and stored.fingerprint == fingerprint:
            if stored.passed:  # whoever stored that may have ended before he cleared its finding
                await self._clear(name, but=None)
            mine = stored
        elif mine is None or mine.fingerprint != fingerprint:
            mine = Trial(fingerprint=fingerprint, settled=self._settled(name))
            await self._clear(name, but=fingerprint)
        self._trials[name] = mine
        return mine

    async def _keep(self, stores: PipelineStores, trial: Trial, against: Sequence[Decided]) -> frozenset[str]:
        name = stores.spec.id
        if trial == self._trials[name]:
            return frozenset(trial.suspected)
        self._trials[name] = trial
        await asyncio.to_thread(self._ledger.set_fact, _fact(name), msgspec.to_builtins(trial))
        if trial.suspected:
            await self._suspect(stores, trial, against)
        elif trial.passed:
            log.info("mapping_passed", pipeline=name, compared=trial.compared)
            await self._clear(name, but=None)
        return frozenset(trial.suspected)

    async def _suspect(self, stores: PipelineStores, trial: Trial, against: Sequence[Decided]) -> None:
        """Raise the one finding, and withdraw the gaps that were opened before the mapping was suspected."""
        now, name = self._clock.now(), stores.spec.id
        record = FindingRecord(
            id=_finding_id(name, trial.fingerprint),
            pipeline=name,
            finding=Finding.MAPPING_SUSPECT,
            side="observed",
            feed=stores.spec.target.feed.topic,
            first_seen=now,
            last_seen=now,
            message=_said(stores, trial, against),
            remedy=REMEDY,
        )
        await self._book.raise_(record)
        await asyncio.to_thread(self._withdraw, name, frozenset(trial.suspected))

    def _withdraw(self, pipeline: str, fields: frozenset[str]) -> None:
        where, cursor, now = GapFilter(pipeline=pipeline, kinds=(Kind.MISMATCH.value,), states=OPEN), None, self._clock.now()
        while True:
            page = self._ledger.gaps(where, limit=KEYS, cursor=cursor)
            changes = []
            for gap in page.gaps:
                if set(gap.fields) <= fields:
                    self._ledger.add_unverifiable(pipeline, gap.key, _since(gap), REASON)
                    over = resolved(gap, Resolution.SUPERSEDED, now, note=f"{REASON}: {', '.join(gap.fields)}")
                    changes.append(GapChange(gap=over, against=gap.revision, event="resolved"))
            self._ledger.store_gaps(changes)
            cursor = page.next_cursor
            if cursor is None:
                return

    async def _clear(self, pipeline: str, *, but: int | None) -> None:
        for record in await asyncio.to_thread(self._ledger.findings, pipeline):
            if record.finding is Finding.MAPPING_SUSPECT and (but is None or record.id != _finding_id(pipeline, but)):
                await self._book.clear(record)

    def _settled(self, pipeline: str) -> int:
        return sum(record.counters.settled for record in self._board.records(pipeline))


class MappingSuspectError(Exception):
    """The sweep ends early: a field is mapped wrongly."""


class SweepTrial:
    """One sweep's part in the trial: while that goes on, mismatches are held back, so that a wrong field opens no gap at all.

    ``takes_part``: only a sweep of the whole content does. ``place``: from where it goes on; what was compared before counts
    with what differed in it, and keys that were left are of that. ``said`` is the sentence about a suspect mapping, or empty.
    """

    def __init__(self, trials: MappingTrials, stores: PipelineStores, *, takes_part: bool, place: Place | None = None) -> None:
        self._trials = trials
        self._stores = stores
        self._takes_part = takes_part
        self._held: list[Decided] = []
        self._counted: dict[Key, tuple[str, ...]] = {}  # the fields of each key that counted, while it may be judged again
        self._left = frozenset(place.left) if place is not None else frozenset()
        self._before = Counter(place.differing if place is not None else {})  # in keys that an earlier worker had compared
        self._behind = Counter(self._before)  # in keys that nobody will judge again
        self._differing: Counter[str] = Counter()  # in the others
        self._decided = 0  # of those others
        self._begun = 0  # how often all was forgotten
        self.said = ""

    @property
    def held(self) -> list[Key]:
        """The keys that were judged and are not booked yet."""
        return [item.case.key for item in self._held]

    async def goes_on(self) -> bool:
        return self._takes_part and not await self._trials.is_over(self._stores)

    def check(self) -> None:
        """Raise where the mapping is suspect: what is left to judge would be judged by it."""
        if self.said:
            raise MappingSuspectError(self.said)

    def begin_anew(self) -> None:
        """Forget what was judged: every key is found once more."""
        self._held.clear()
        self._counted.clear()
        for counter in (self._before, self._behind, self._differing):
            counter.clear()
        self._left, self._decided = frozenset(), 0
        self._begun += 1

    async def take(
        self, decided: Sequence[Decided], *, compared: int, pending: int
    ) -> tuple[Sequence[Decided], Sequence[Decided]]:
        """Return what may be booked now, and what was held back and is to be judged again before it may be.

        Args:
            decided: What was judged since the last call.
            compared: How many keys both sides had so far.
            pending: How many of the keys that were found are still to be judged.
        """
        begun = self._begun
        if not await self.goes_on():
            return decided, self._release()
        if begun != self._begun:  # meanwhile: what would be held back is found once more
            return [item for item in decided if not counts_against(item)], ()
        self._decided += sum(item.case.key not in self._left for item in decided)
        against = [item for item in decided if counts_against(item) and item.case.key not in self._counted]
        for item in against:
            self._counted[item.case.key] = _fields(item)
            (self._before if item.case.key in self._left else self._differing).update(_fields(item))
        self._held += against
        held = set(self.held)
        now = [item for item in decided if item.case.key not in held]
        if len(self._held) < KEYS:
            return now, ()
        scale = (self._decided + pending) / max(1, self._decided)  # those that wait are like those that were judged
        expected = self._before + Counter({name: int(count * scale) for name, count in self._differing.items()})
        return now, await self._decide(expected, compared, ended=False, whole=False)

    async def finish(self, *, compared: int, whole: bool) -> Sequence[Decided]:
        """Everything was judged: return what was held back and is to be judged again, as it may be booked after all."""
        if not await self.goes_on():
            return self._release()
        return await self._decide(self._before + self._differing, compared, ended=True, whole=whole)

    def behind(self, is_ahead: Callable[[Key], bool]) -> dict[str, int]:
        """Return how often each field differed in keys that nobody will judge again: they are not ahead, and never will be."""
        for key in [key for key in self._counted if not is_ahead(key)]:
            self._behind.update(self._counted.pop(key))
        return dict(self._behind)

    async def _decide(self, differing: Counter[str], compared: int, *, ended: bool, whole: bool) -> list[Decided]:
        trial, self.said = await self._trials.swept(
            self._stores, differing, self._held[:1], compared=compared, ended=ended, whole=whole
        )
        suspected = frozenset(trial.suspected)
        return [item for item in self._release() if not is_held(item, suspected)]

    def _release(self) -> list[Decided]:
        released, self._held = self._held, []
        return released


def counts_against(item: Decided) -> bool:
    """Whether a judgement may be the mapping's fault: other values, which no older state and no placeholder explains."""
    judgement = item.judgement
    return (
        isinstance(judgement, Difference)
        and judgement.kind is Kind.MISMATCH
        and judgement.cause is not Cause.OVERWRITTEN
        and bool(judgement.fields)
    )


def is_held(item: Decided, suspected: frozenset[str]) -> bool:
    """Whether a difference lies in suspected fields only: then it is no gap."""
    return bool(suspected) and counts_against(item) and set(_fields(item)) <= suspected


def _was_expected(item: Decided) -> bool:
    """Whether the pipeline's own write differs: what somebody else wrote to the target says nothing of the mapping."""
    return item.case.suspect is not None and item.case.suspect.opening.side == Side.EXPECTED


def _on_both_sides(item: Decided) -> bool:
    return item.reads.reads.after.presence is Presence.PRESENT and item.reads.reads.target.presence is Presence.PRESENT


def _fields(item: Decided) -> tuple[str, ...]:
    return item.judgement.fields if isinstance(item.judgement, Difference) else ()


def _said(stores: PipelineStores, trial: Trial, against: Sequence[Decided]) -> str:
    return sentence(trial.differing, trial.suspected, trial.compared, _examples(stores, trial.suspected, against))


def _examples(stores: PipelineStores, fields: Sequence[str], against: Sequence[Decided]) -> dict[str, str]:
    """Return, per field, both sides of one key; only where ``evidence: values`` allows row data."""
    shown: dict[str, str] = {}
    if stores.spec.evidence != "values":
        return shown
    for item in against:
        source, target = item.reads.source, item.reads.target
        if isinstance(source, StoredRecord) and isinstance(target, StoredRecord):
            left = stores.mapping.shown_source(source.fields, fields)
            right = stores.mapping.shown_target(target.fields, fields)
            for name in set(fields) & set(_fields(item)):
                shown.setdefault(name, f"source {left[name]!r}, target {right[name]!r}")
    return shown


def _since(gap: Gap) -> datetime:
    return gap.event_time or gap.held_since or gap.first_seen


def has_passed(ledger: Ledger, pipeline: str) -> bool:
    """Whether the pipeline's mapping has passed its trial, as the ledger has it."""
    known = ledger.fact(_fact(pipeline))
    return bool(known) and msgspec.convert(known, Trial).passed


def _fact(pipeline: str) -> str:
    return f"mapping/{pipeline}"


def _finding_id(pipeline: str, fingerprint: int) -> str:
    return "mapping_" + gap_id(pipeline, str(fingerprint).encode(), Finding.MAPPING_SUSPECT.value).removeprefix("gap_")
