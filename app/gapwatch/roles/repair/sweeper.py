"""Sweep: both sides read once, at the same time; every difference read again by key until it is proved or gone.

Scanning and judging run side by side. A candidate's outcome is booked as soon as it is decided, and the run's cursor moves only
behind keys that are: a worker that takes the run over repeats some work and misses nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

import structlog

from gapwatch.core.confirm import Cleared, Difference, Unverifiable
from gapwatch.core.gaps import proof_of
from gapwatch.core.sweep import Mark, Place, Resumption, Scope, Steps, SweepCounts, SweepOutcome
from gapwatch.errors import StoreError
from gapwatch.model.gap import Detector, Run, RunState, State, SweepPart
from gapwatch.model.stream import Side
from gapwatch.model.suspect import Suspect
from gapwatch.ports import DatasetReader, Key
from gapwatch.roles.board import Facts
from gapwatch.roles.repair.beside import Beside
from gapwatch.roles.repair.judging import Asked, Decided, KeyJudge, counted_as
from gapwatch.roles.repair.keyfeed import changing, feed
from gapwatch.roles.repair.leisure import Leisure, SidePace
from gapwatch.roles.repair.scanning import Scanning, estimate_of, in_one_order
from gapwatch.roles.repair.sweep_work import SweeperDependencies
from gapwatch.roles.repair.sweeps import refuse_cancelled
from gapwatch.roles.repair.tenure import renewing
from gapwatch.roles.repair.trials import MappingSuspectError, SweepTrial
from gapwatch.roles.stores import PipelineStores

log = structlog.get_logger(__name__)

COUNTED: Final = ("source_keys", "target_keys", "differences", "agreed_on_second_read", "superseded")  # from the beginning
PATIENCE_SECONDS: Final = 600.0  # without any decision, or twelve times grace if that is longer: then the sweep is inconclusive
CANDIDATES_MAX: Final = 200_000  # keys under judgement; the scan waits while there are more
FED_MAX: Final = 20_000  # of a sweep by key: most agree at the first look
KEYS_PER_READ: Final = 2_000
BOOKED_AT_ONCE: Final = 2_000
BOOKINGS_MAX: Final = 5  # attempts at a gap that somebody else keeps changing
IDLE_SECONDS: Final = 0.05


class Sweeper:
    """Carries out one sweep run that the caller has taken from the ledger."""

    def __init__(self, dependencies: SweeperDependencies) -> None:
        self._on = dependencies

    async def run(
        self, run: Run, stores: PipelineStores, *, last_full_started: datetime | None, asked: Asked | None = None
    ) -> Run:
        """Sweep, judge, book; return the run as it ended (it is stored as well).

        Args:
            run: A running run; ``request`` holds ``content`` (bool) and ``range``: full; range, with ``from`` and ``to`` (hex or
                None); keys, with ``keys`` (hex); lookback, with ``since`` (ISO 8601). ``cursor`` says from where it goes on;
                what else it holds is kept.
            stores: The pipeline's stores.
            last_full_started: Start of the last full content sweep that completed: what gaps without a commit time hold.
            asked: What is judged instead of what ``request`` says.
        """
        in_order = asked is None and not Scope.of(run.request).by_key and await in_one_order(stores)
        return await _Sweep(self._on, run, stores, last_full_started, asked, in_order=in_order).carry_out()

    async def part(self, run: Run, part: SweepPart, stores: PipelineStores, *, last_full_started: datetime | None) -> None:
        """Do as :meth:`run` with one part of a sweep that workers share; the part is stored, the run is its owner's."""
        ends = {"from": part.lower, "to": part.upper}
        request = {
            **run.request,
            "range": Scope.RANGE,
            **{name: None if end is None else end.hex() for name, end in ends.items()},
        }
        ours = replace(run, request=request, counts=part.counts, cursor=part.cursor)
        in_order = await in_one_order(stores)
        await _Sweep(self._on, ours, stores, last_full_started, None, part, in_order=in_order).carry_out()


class _Sweep:
    """One run."""

    def __init__(
        self,
        on: SweeperDependencies,
        run: Run,
        stores: PipelineStores,
        last_full_started: datetime | None,
        asked: Asked | None,
        part: SweepPart | None = None,
        *,
        in_order: bool,
    ) -> None:
        self._on = on
        place = Place.unpack(run.cursor)
        if place is not None and not (in_order and place.mapping == stores.mapping.fingerprint):
            place = None  # who swept before us saw keys in an order that they are not in any more, or compared something else
        if place is None and asked is None and not Scope.of(run.request).by_key:
            run = replace(run, cursor=Place.forgotten(run.cursor))
        self._run = run
        self._asked = asked
        self._part = part
        self._stores = stores
        self._last_full_started = last_full_started
        self._started = run.started_at or on.clock.now()
        pipeline = stores.spec.id
        mark = place.mark if place is not None else None
        self._place = place
        self._resumption = Resumption(mark)
        request = run.request if asked is None else {"range": Scope.KEYS}
        self._scope = Scope.of(request)
        self._steps = Steps(run.cursor.get("step"))
        self._leisure = Leisure.of(run, stores.spec.sweep.load, on.clock)
        self._pace = SidePace(self._leisure, on.clock)  # of reading by key
        lower, upper = (bytes.fromhex(end) if (end := request.get(name)) else None for name in ("from", "to"))
        self._scanning = Scanning(
            stores,
            content=bool(run.request.get("content")),
            clock=on.clock,
            leisure=self._leisure,
            on_compared=lambda side, keys: on.on_compared(pipeline, side, keys),
            in_order=in_order,
            start=mark,
            identities=dict(place.identities) if place is not None else {},
            lower=lower,
            upper=upper,
        )
        self._lower, self._upper = lower, upper
        self._judge = KeyJudge(
            self._same_stores,
            grace_ms=lambda: on.grace_ms(pipeline),
            delivered=lambda: on.delivered(pipeline),
            clock=on.clock,
            batch=KEYS_PER_READ,
            digests=False,
        )
        self._trial = SweepTrial(
            on.trials, stores, takes_part=bool(run.request.get("content")) and self._scope is Scope.FULL, place=place
        )
        resumable = asked is None and (self._scope.by_key or in_order)
        self._counting = SweepCounts(dict.fromkeys(COUNTED, 0) | self._counted_before(), by_key=resumable)
        self._decided = self._estimate = 0
        self._undecided = 0  # judged, but neither way
        self._next_report = 0.0
        self._storing = asyncio.Lock()
        self._booking = Beside()  # of what was judged last, while the next keys are read

    def _counted_before(self) -> dict[str, int]:
        """Return what is not counted again: what was found before keys were handed over, or behind the place to go on from."""
        if self._asked is not None:
            return dict(self._run.counts)
        if self._place is not None:
            return {**self._place.counted, **dict(zip(COUNTED, self._place.mark.counts, strict=False))}
        return dict(self._run.cursor.get("counted", self._run.counts)) if self._steps.reached is not None else {}

    @property
    def _counts(self) -> dict[str, int]:
        return self._counting.by_name

    async def _same_stores(self) -> PipelineStores:
        return self._stores

    async def carry_out(self) -> Run:
        if self._resumption.reached is not None or self._steps.reached is not None:
            self._log("resumed", source_keys=self._counts["source_keys"])
        for key in self._place.left if self._place is not None else ():  # before anybody reports how far this sweep has come
            self._judge.add(key)
        try:
            await self._look_who_waits()
            if self._scope is Scope.FULL or self._part is not None:
                await self._estimate_sides()
            undecided = await self._judge_all(asyncio.create_task(self._reading()))
            undecided += await self._end_trial()
            undecided += self._undecided
            outcome = SweepOutcome(
                complete=all(scan.complete for scan in self._scanning.sides.values()),
                undecided=undecided,
                emptiness_proved=await self._emptiness_is_proved(),
                identity_stable=await self._identities_are_stable(),
            )
        except StoreError as error:
            return await self._end(RunState.INCONCLUSIVE, error=error.message)
        except MappingSuspectError as error:
            return await self._end(RunState.INCONCLUSIVE, error=str(error))
        self._counts["undecided"] = undecided
        reasons = [scan.reason for scan in self._scanning.sides.values() if scan.reason]
        unread = self._asked.unread if self._asked is not None else ""
        said = " ".join(filter(None, [outcome.reason(), unread, *reasons[:1]]))
        if self._asked is not None:
            self._run = await self._asked.conclude(replace(self._run, counts=dict(self._counts)))
            self._counts.update(self._run.counts)
        conclusive = outcome.conclusive and not unread
        ended = await self._end(RunState.SUCCEEDED if conclusive else RunState.INCONCLUSIVE, error=said or None)
        self._log("ended", state=ended.state.value, **self._counts)
        return ended

    def _log(self, what: str, **more: object) -> None:
        if self._part is None:
            log.info(f"{self._run.kind.value}_{what}", pipeline=self._run.pipeline, run=self._run.id, **more)
        else:
            log.info(f"sweep_part_{what}", pipeline=self._run.pipeline, run=self._run.id, part=self._part.number, **more)

    # reading

    async def _look_who_waits(self) -> None:
        if not self._leisure.hurried:
            asked = await asyncio.to_thread(self._on.ledger.fact, Facts.hurry(self._run.pipeline))
            self._leisure.hurried = asked == self._run.id

    async def _estimate_sides(self) -> None:
        """Ask both stores about how many rows there are: of a part, as if all parts were alike.

        A part's pace is that of the whole: one worker may have to carry out all of them, one after the other.
        """
        parts = 1 if self._part is None else max(1, self._stores.spec.sweep.parts)
        for side, reader in self._readers():
            self._scanning.paces[side].total = rows = await estimate_of(reader)
            self._estimate += rows // parts

    def _reading(self) -> Coroutine[None, None, None]:
        if self._asked is not None:
            return self._hand_over(self._asked.keys)
        return self._feed() if self._scope.by_key else self._scan()

    async def _hand_over(self, keys: Mapping[Key, Suspect | None]) -> None:
        """Put every key under judgement that somebody found; wait while there are too many."""
        for key, suspect in keys.items():
            self._judge.add(key, suspect)
            while len(self._judge) > FED_MAX:
                await self._on.clock.sleep(IDLE_SECONDS)

    async def _scan(self) -> None:
        """Put every key that differs under judgement; wait while there are too many."""
        async for found in self._scanning.steps():
            if found.anew:
                await self._begin_anew()
            self._counts["source_keys"], self._counts["target_keys"] = found.rows
            await self._examine(list(found.differing.all()))
            if found.mark is not None:
                self._resumption.compared(found.mark)
            while len(self._judge) > CANDIDATES_MAX:
                await self._on.clock.sleep(IDLE_SECONDS)

    async def _begin_anew(self) -> None:
        """Keys do not come in order after all: forget from where somebody else could go on, before anything is read anew."""
        self._log("out_of_order")
        self._resumption, self._undecided = Resumption(), 0
        self._counting.begin_anew()
        self._trial.begin_anew()
        self._run = replace(self._run, cursor=Place.forgotten(self._run.cursor))
        await self._store()

    async def _examine(self, keys: Sequence[Key]) -> None:
        """Put keys that differ under judgement.

        Of an open gap it is proved already that they do: while its row is the same, one look is enough. What a backfill has in
        hand it reads itself, and whoever ends it reads what it left.
        """
        for start in range(0, len(keys), KEYS_PER_READ):
            some = keys[start : start + KEYS_PER_READ]
            known = await asyncio.to_thread(self._on.ledger.open_gaps_for, self._stores.spec.id, some)
            for key in some:
                gap = known.get(key)
                if gap is not None and gap.state is State.REPAIRING:
                    self._counting.add(key, "in_hand")
                else:
                    self._judge.add(key, proof=proof_of(gap) if gap is not None else None)

    async def _feed(self) -> None:
        """Put every key under judgement that is asked for; wait while there are too many."""
        async for fed in feed(self._stores, self._run.request, self._steps.reached):
            if fed.side is not None:
                scan = self._scanning.sides[fed.side]
                scan.rows += len(fed.keys)
                scan.identities.add(fed.identity)
                if not fed.complete:
                    scan.complete, scan.reason = False, fed.reason
            for key in fed.keys:
                self._judge.add(key)
            if fed.complete:
                self._steps.fed(fed.position, fed.keys)
            while len(self._judge) > FED_MAX:
                await self._on.clock.sleep(IDLE_SECONDS)

    async def _judge_all(self, scan: asyncio.Task[None]) -> int:
        """Judge and book until the scan has ended and nothing is left; return how many keys stayed undecided."""
        clock = self._on.clock
        patience = max(PATIENCE_SECONDS, 12 * self._on.grace_ms(self._stores.spec.id) / 1000)
        last = clock.monotonic()
        try:
            async with self._booking:
                while True:
                    scanned = scan.done()
                    if scanned:
                        scan.result()
                    began = clock.monotonic()
                    decided = await renewing(self._judge.step(), self._renew)
                    took = clock.monotonic() - began
                    await self._take(decided)
                    if self._scope.by_key:
                        await self._pace.rest(took, len(decided), meanwhile=self._report)
                    await self._report()
                    if decided or not scanned:
                        last = clock.monotonic()
                    if scanned and not len(self._judge):
                        return 0
                    if clock.monotonic() - last > patience:
                        return len(self._judge)
                    if not decided:
                        await clock.sleep(IDLE_SECONDS if scanned or len(self._judge) else self._leisure.seldom(IDLE_SECONDS))
        finally:
            scan.cancel()
            await asyncio.gather(scan, return_exceptions=True)

    async def _take(self, decided: Sequence[Decided]) -> None:
        """Book what was judged, except for what the trial of the mapping holds back."""
        if not decided:
            return
        self._count(decided)
        now, again = await self._trial.take(decided, compared=self._compared, pending=len(self._judge))
        self._judge_again(again)
        await self._booking.begin(self._book(now))
        self._trial.check()

    async def _end_trial(self) -> int:
        """End the trial of the mapping, and judge what it held back; return how many keys stayed undecided."""
        whole = all(scan.complete for scan in self._scanning.sides.values())
        again = await self._trial.finish(compared=self._compared, whole=whole)
        self._judge_again(again)
        self._trial.check()
        return await self._judge_all(asyncio.create_task(self._hand_over({}))) if again else 0

    def _judge_again(self, released: Sequence[Decided]) -> None:
        """What the trial held back was read a while ago: it is read once more before it is booked."""
        self._decided -= len(released)
        for item in released:
            assert isinstance(item.judgement, Difference)
            self._counting.take_back(item.case.key, "differences", item.judgement.kind.value)
            self._judge.again(item)

    @property
    def _compared(self) -> int:
        return min(self._counts["source_keys"], self._counts["target_keys"])

    async def _book(self, decided: Sequence[Decided]) -> None:
        """Store differences and agreements; a difference that cannot be stored is undecided."""
        differing = [item for item in decided if isinstance(item.judgement, Difference)]
        agreeing = [item for item in decided if isinstance(item.judgement, Cleared)]
        for start in range(0, len(differing), BOOKED_AT_ONCE):
            failed = await self._open(differing[start : start + BOOKED_AT_ONCE])
            self._undecided += failed  # not in one: the sum may be another one by then
        for start in range(0, len(agreeing), BOOKED_AT_ONCE):
            await self._on.book.close(self._stores, agreeing[start : start + BOOKED_AT_ONCE])

    async def _open(self, differing: Sequence[Decided]) -> int:
        """Store differences; return how many do not stand in the end. What the stream found at the same moment is there."""
        left = list(differing)
        detector = Detector.SWEEP if self._asked is None else self._asked.detector
        for _ in range(BOOKINGS_MAX):
            if not left:
                break
            stored = await self._on.book.open(
                self._stores, left, detector, opened_by=self._run.id, held_since=self._last_full_started
            )
            left = [item for item in left if item.case.key not in stored]
        return len(left)

    def _count(self, decided: Sequence[Decided]) -> None:
        self._decided += len(decided)
        if self._scope.by_key:
            for side in Side:
                self._on.on_compared(self._stores.spec.id, side.name.lower(), len(decided))
        for item in decided:
            self._counting.add(item.case.key, *counted_as(item, by_key=self._scope.by_key))
            self._undecided += isinstance(item.judgement, Unverifiable)

    # what proves something

    async def _emptiness_is_proved(self) -> bool:
        if self._scope is Scope.KEYS:
            return True
        sides = changing(self._stores) if self._scope is Scope.LOOKBACK else self._readers()
        for side, reader in sides:
            if self._scanning.sides[side].rows == 0 and self._steps.reached is None and not await self._is_empty(reader):
                return False
        return True

    async def _is_empty(self, reader: DatasetReader) -> bool:
        """Ask once more whether there is nothing in what was read."""
        if self._scope is Scope.FULL:
            return await reader.is_empty()
        if self._scope is Scope.LOOKBACK:
            async for chunk in reader.scan_changed(datetime.fromisoformat(self._run.request["since"]), chunk=1):
                return chunk.complete and not chunk.records
            return True
        async for keys in reader.scan_keys(lower=self._lower, upper=self._upper):
            if len(keys) or not keys.complete:
                return False
        return True

    async def _identities_are_stable(self) -> bool:
        for side, reader in self._readers():
            identities = self._scanning.sides[side].identities
            if identities and identities != {(await reader.describe()).identity}:
                return False
        return True

    def _readers(self) -> tuple[tuple[Side, DatasetReader], ...]:
        return (Side.EXPECTED, self._stores.source), (Side.OBSERVED, self._stores.target)

    # what is shown, and from where another worker goes on

    async def _report(self) -> None:
        """Store progress and cursor now and then, and renew the lease. Raises ConflictError when it was cancelled."""
        now = self._on.clock.monotonic()
        if now < self._next_report:
            return
        self._next_report = now + self._leisure.seldom(1.0, times=2)
        await self._booking.ended()
        # Once something was not read the mark stays: who takes over reads it again, and cannot call the sweep whole without it.
        whole = not self._undecided and all(scan.complete for scan in self._scanning.sides.values())
        mark = self._resumption.advance(self._judge.cases) if whole else None
        if whole and self._scope.by_key:
            self._steps.advance(self._judge.cases)
        self._run = replace(
            self._run,
            counts=dict(self._counts),
            progress=self._progress(),
            cursor=self._cursor(mark),
        )
        await self._renew()

    async def _renew(self) -> None:
        """Store what was last reported: the lease is renewed by it."""
        if self._part is None:
            await refuse_cancelled(self._on.ledger, self._run.id)
        await self._look_who_waits()
        await self._store()

    async def _store(self) -> None:
        """Store the run, or the part of it that this is. Raises ConflictError when another worker has it, or it was cancelled."""
        async with self._storing:  # scan and judgement store, and what is newer must come last
            on, run = self._on, self._run
            if self._part is None:
                await asyncio.to_thread(on.ledger.update_run, run, holder=on.holder)
                return
            self._part = replace(self._part, state=run.state, counts=run.counts, error=run.error, cursor=run.cursor)
            await asyncio.to_thread(on.ledger.update_part, self._part, holder=on.holder)

    def _cursor(self, mark: Mark | None) -> dict[str, object]:
        if mark is not None:
            left = {key for key in (*self._judge.cases, *self._trial.held) if key < mark.key}

            def is_ahead(key: Key) -> bool:
                return key >= mark.key or key in left

            place = Place(
                mark=mark,
                identities=self._scanning.identities,
                mapping=self._stores.mapping.fingerprint,
                left=left,
                counted=self._counting.behind(is_ahead),
                differing=self._trial.behind(is_ahead),
            )
            return self._run.cursor | place.pack()
        if self._steps.reached is not None:
            counted = self._counting.behind(self._steps.is_ahead)
            return self._run.cursor | {"step": dict(self._steps.reached), "counted": counted}
        return self._run.cursor

    def _progress(self) -> float | None:
        """Return the share that is done, by the stores' own estimates of their size; judging what differs is a part of it."""
        if self._asked is not None:
            return self._asked.share + (0.999 - self._asked.share) * self._decided / max(1, len(self._asked.keys))
        if self._scope is Scope.KEYS:
            return min(0.999, self._counts.get("keys", 0) / max(1, len(self._run.request.get("keys", ()))))
        if self._scope is not Scope.FULL:
            return None  # nobody knows beforehand how much it is
        read = self._counts["source_keys"] + self._counts["target_keys"]
        total = max(read, self._estimate) + len(self._judge) + self._decided
        return min(0.999, (read + self._decided) / total) if total else None

    async def _end(self, state: RunState, *, error: str | None = None) -> Run:
        self._run = replace(
            self._run,
            state=state,
            error=error,
            counts=dict(self._counts),
            ended_at=self._on.clock.now(),
            started_at=self._started,
            progress=1.0 if state is RunState.SUCCEEDED else self._progress(),
        )
        if self._part is not None:
            self._run = replace(self._run, cursor={**self._run.cursor, "identities": self._scanning.identities})
        await self._store()
        return self._run
