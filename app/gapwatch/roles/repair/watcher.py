"""Polls what no event tells: do the stores answer, does the connector run, is its slot alive, was a table replaced.

The stores are asked several times in ``stall_after``, the rest every five seconds. What a check finds becomes a stream
finding; what it no longer finds is cleared, whatever became of the other checks. A check that could not look clears nothing,
and where it cannot for ``stall_after``, or has not looked at all since the role began, the pipeline is UNKNOWN: what an
earlier process saw is not known any more. So the first report waits a moment for the first looks. Findings that can mean loss
are holes: they keep a time range and only a sweep covers them. One that lasts (a slot that is still gone) is one finding
whose hole grows with every check; it can be covered once it is over. Any number of processes may watch; what one of them
still finds, none of the others ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import structlog

from gapwatch.check_ports import Advice, Measure, Preflight
from gapwatch.core.gaps import gap_id, time_of
from gapwatch.core.standing import BEGINNING
from gapwatch.core.watermarks import REORDER_EVENTS_MAX
from gapwatch.errors import GapwatchError
from gapwatch.model.gap import Finding, FindingRecord
from gapwatch.model.pipeline import FeedSpec, PipelineSpec
from gapwatch.model.stream import Side
from gapwatch.model.suspect import Hole, Limit
from gapwatch.ports import Clock, Ledger
from gapwatch.roles.board import Board, Facts
from gapwatch.roles.stores import StoreAnswers, StoreProvider
from gapwatch.roles.together import facts_together

log = structlog.get_logger(__name__)

POLL_SECONDS = 5.0
FIRST_SECONDS = 0.5  # between looks while some check has not looked at all, in the first five seconds: it may wait for Kafka
CHECKS = "checks"  # in a finding's details: who found it
# … and which processes did lately, each with its own clock then. Of two that write at once one is written again next time.
FOUND_BY = "found_by"
FOUND_SECONDS_MIN = 3 * POLL_SECONDS  # how long a process that found it is believed, or as long as a status lives
FINDINGS_SECONDS = 2.0  # how long what another process has raised or cleared may be overlooked
PING_SECONDS = 1.0  # how long a store's answer to one pipeline is one to all
PREFIX = "watch_"  # of the ids of findings that the watcher raised, and may clear
CHECK_SECONDS_MAX = 10.0
REPORTS_PER_STALL = 4  # reports within ``stall_after``: a slow one must not look like silence
SILENT_SECONDS = 600.0  # after that what a process said of its stores is forgotten: each process says it under its own name
NEVER = float("-inf")
LOSS = frozenset({Finding.SLOT_LOST, Finding.SLOT_JUMPED, Finding.HISTORY_LOST, Finding.LOG_TRUNCATED, Finding.TOPIC_RECREATED})
ENDED = frozenset({Finding.SLOT_LOST, Finding.HISTORY_LOST})


@dataclass(frozen=True, slots=True, kw_only=True)
class WatcherDependencies:
    pipelines: Mapping[str, PipelineSpec]
    ledger: Ledger
    board: Board
    stores: StoreProvider
    checks: Callable[[str], Sequence[Preflight]]
    undecided: Callable[[str], int]
    clock: Clock
    process: str  # a name that no other process has
    on_finding: Callable[[str, str], None]  # pipeline, finding
    on_measure: Callable[[str, str, float | None], None] = lambda metric, of, value: None  # None: it is not known any more


class FindingBook:
    """Raises and clears stream findings in the ledger."""

    def __init__(self, ledger: Ledger, clock: Clock, on_finding: Callable[[str, str], None]) -> None:
        self._ledger = ledger
        self._clock = clock
        self._on_finding = on_finding

    async def hole(self, hole: Hole) -> None:
        """Store a stretch of the stream that nobody can judge; returns once it is durable."""
        known = {finding.value for finding in Finding}
        now = self._clock.now()
        record = FindingRecord(
            id=hole.id,
            pipeline=hole.pipeline,
            finding=Finding(hole.reason) if hole.reason in known else Finding.INGEST_HOLE,
            side=Side(hole.side).name.lower(),
            feed=hole.feed,
            first_seen=now,
            last_seen=now,
            message=_of_hole(hole),
            remedy="A sweep covers them; it starts by itself.",
            time_from=time_of(hole.time_from),
            time_to=time_of(hole.time_to),
            is_hole=True,
        )
        await self.raise_(record)

    async def raise_(self, record: FindingRecord) -> None:
        if await asyncio.to_thread(self._ledger.raise_finding, record):
            say = log.info if record.time_from == BEGINNING else log.warning  # what the baseline covers at every first start
            say("finding_raised", pipeline=record.pipeline, finding=record.finding.value, message=record.message)
            self._on_finding(record.pipeline, record.finding.value)

    async def clear(self, record: FindingRecord) -> None:
        await asyncio.to_thread(self._ledger.clear_finding, record.id, at=self._clock.now())
        log.info("finding_cleared", pipeline=record.pipeline, finding=record.finding.value)


_LIMITS = {
    Limit.PENDING_KEYS.value: "more keys were unsettled at once than pending_keys_max allows",
    Limit.SUSPECTS.value: "more keys were under judgement at once than suspects_max allows",
    Limit.REORDER.value: f"more than {REORDER_EVENTS_MAX} events of one partition waited for what came before them: reorder_max",
}


def _of_hole(hole: Hole) -> str:
    partition = f" partition {hole.feed_partition}" if hole.feed_partition >= 0 else ""
    if hole.time_from == 0:
        return f"writes of {hole.feed}{partition} from before it was watched cannot be judged one by one"
    because = _LIMITS.get(hole.reason, hole.reason)
    return f"writes of {hole.feed}{partition} cannot be judged one by one ({because})"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """What came of one check. ``why`` it could not look: at anything (``blind``), or at the findings of some ids (``unseen``)."""

    check: str
    found: tuple[FindingRecord, ...] = ()
    measures: tuple[Measure, ...] = ()
    why: str = ""
    blind: bool = False
    unseen: frozenset[str] = frozenset()

    def looked(self, identity: str) -> bool:
        return not self.blind and identity not in self.unseen


class Watcher:
    def __init__(self, dependencies: WatcherDependencies, book: FindingBook) -> None:
        self._on = dependencies
        self._book = book
        self._measured: dict[str, dict[tuple[str, str], str]] = {}  # by pipeline: metrics, and of what, with who measured it last
        self._blind: dict[str, dict[str, tuple[float, str]]] = {}  # by pipeline and check: since when it cannot look, and why
        self._looked: set[tuple[str, str]] = set()  # pipeline and check: what has looked since we began
        self._facts = facts_together(dependencies.ledger, dependencies.clock)
        self._known = StoreAnswers[Sequence[FindingRecord]](dependencies.clock)
        self._pings = StoreAnswers[None](dependencies.clock)
        self._tidied: dict[str, float] = {}  # by pipeline: when what other processes said was looked through
        self._finders: dict[tuple[str, str], tuple[str, float]] = {}  # finding and process: its last word, and when it was heard

    async def run(self, stop: asyncio.Event) -> None:
        """Report and check every pipeline on its own: a store that hangs delays nothing of the others."""
        async with asyncio.TaskGroup() as tasks:
            for pipeline in self._on.pipelines.values():
                report_seconds, looked = min(POLL_SECONDS, pipeline.stall_after_seconds / REPORTS_PER_STALL), asyncio.Event()
                tasks.create_task(self._report_on(stop, pipeline, report_seconds, looked))
                tasks.create_task(self._check_on(stop, pipeline, looked))

    async def _report_on(self, stop: asyncio.Event, pipeline: PipelineSpec, seconds: float, looked: asyncio.Event) -> None:
        """Report again and again, and at once when all checks have looked for the first time."""
        await _become(looked, seconds)
        while not stop.is_set():
            told = looked.is_set()
            await self.report(pipeline)
            if told:  # all pipelines at once: they ask the same stores
                await self._on.clock.sleep(seconds - self._on.clock.monotonic() % seconds)
            else:
                await _become(looked, seconds)

    async def _check_on(self, stop: asyncio.Event, pipeline: PipelineSpec, looked: asyncio.Event) -> None:
        begun = self._on.clock.monotonic()
        while not stop.is_set():
            await self.check(pipeline)
            if all((pipeline.id, check.name) in self._looked for check in self._on.checks(pipeline.id)):
                looked.set()
            now = self._on.clock.monotonic()
            begins = not looked.is_set() and now - begun < POLL_SECONDS
            await self._on.clock.sleep(FIRST_SECONDS if begins else POLL_SECONDS - now % POLL_SECONDS)  # all at once here, too

    async def report(self, pipeline: PipelineSpec) -> None:
        """Say what of one pipeline's stores could not be read; that somebody said so expires after ``stall_after``."""
        unreadable = await self._unreadable(pipeline)
        fact = {
            "at": self._on.clock.now().isoformat(),
            "undecided": self._on.undecided(pipeline.id),
            "unreadable": unreadable,
            "unlooked": [] if unreadable else self._unlooked(pipeline),  # which says it already
        }
        await self._facts.ask((Facts.repair(pipeline.id, self._on.process), fact))
        await self._tidy(pipeline)

    async def _tidy(self, pipeline: PipelineSpec) -> None:
        """Forget now and then what processes said that are gone."""
        on, now = self._on, self._on.clock.monotonic()
        if now - self._tidied.get(pipeline.id, NEVER) < SILENT_SECONDS:
            return
        self._tidied[pipeline.id] = now
        before = on.clock.now() - timedelta(seconds=max(SILENT_SECONDS, 2 * pipeline.stall_after_seconds))
        for name, fact in (await asyncio.to_thread(on.ledger.facts, Facts.repair(pipeline.id))).items():
            if datetime.fromisoformat(fact["at"]) < before:
                await asyncio.to_thread(on.ledger.set_fact, name, None)

    def _unlooked(self, pipeline: PipelineSpec) -> list[str]:
        """Return why checks have not looked for as long as a status lives, or at all: what they would find is not known."""
        until, blind = self._on.clock.monotonic() - pipeline.stall_after_seconds, self._blind.get(pipeline.id, {})
        found = set()
        for name in (check.name for check in self._on.checks(pipeline.id)):
            if name in blind:
                since, why = blind[name]
                found |= {why} if since <= until else set()
            elif (pipeline.id, name) not in self._looked:
                found.add(f"{name}: nobody has looked since role repair began.")
        return sorted(found)

    async def check(self, pipeline: PipelineSpec) -> None:
        """Make every check of one pipeline and store what was found."""
        looks = []
        for check in self._on.checks(pipeline.id):
            begun = self._on.clock.monotonic()
            look = await self._look(pipeline, check)
            self._note(pipeline, look, begun)
            looks.append(look)
        self._show(pipeline, looks)
        await self._store(pipeline, looks)

    def _note(self, pipeline: PipelineSpec, look: _Look, begun: float) -> None:
        """Remember since when a check cannot look; one that never could since we began may not have for long before."""
        blind, name = self._blind.setdefault(pipeline.id, {}), (pipeline.id, look.check)
        if not look.why:
            blind.pop(look.check, None)
            self._looked.add(name)
            return
        since, _ = blind.get(look.check, (begun if name in self._looked else NEVER, ""))
        blind[look.check] = since, look.why

    async def _look(self, pipeline: PipelineSpec, check: Preflight) -> _Look:
        try:
            async with asyncio.timeout(CHECK_SECONDS_MAX):
                said = await check.watch()
            return self._seen(pipeline, check, said)
        except (GapwatchError, TimeoutError) as error:
            why = getattr(error, "message", "") or f"{check.name} gave no answer in time."
            log.warning("check_failed", pipeline=pipeline.id, check=check.name, error=str(error) or why)
        except Exception as error:  # a bug of one check: the others go on, and what this one would find is not known
            why = f"{check.name} failed ({type(error).__name__}); the log says where."
            log.error("check_failed", pipeline=pipeline.id, check=check.name, exc_info=error)
        return _Look(check=check.name, why=why, blind=True)

    def _seen(self, pipeline: PipelineSpec, check: Preflight, said: Sequence[Advice]) -> _Look:
        unknown = [advice for advice in said if advice.level == "unknown"]
        for advice in unknown:
            log.warning("check_failed", pipeline=pipeline.id, check=check.name, error=advice.message)
        return _Look(
            check=check.name,
            found=tuple(record for advice in said if (record := self._finding(pipeline, advice))),
            measures=tuple(advice.measure for advice in said if advice.measure is not None),
            why=unknown[0].message if unknown else "",
            blind=any(not advice.finding for advice in unknown),
            unseen=frozenset(_identity(pipeline, advice) for advice in unknown if advice.finding),
        )

    def _show(self, pipeline: PipelineSpec, looks: Sequence[_Look]) -> None:
        """Show what was measured, of several the largest; what a check that could look measures no more is shown no more."""
        values: dict[tuple[str, str], float] = {}
        shown = self._measured.setdefault(pipeline.id, {})
        for look in looks:
            for one in look.measures:
                values[one.metric, one.of] = max(one.value, values.get((one.metric, one.of), 0))
                shown[one.metric, one.of] = look.check
        blind = {look.check for look in looks if look.why}
        for metric, of in [known for known, check in shown.items() if known not in values and check not in blind]:
            del shown[metric, of]
            self._on.on_measure(metric, of, None)
        for (metric, of), value in values.items():
            self._on.on_measure(metric, of, value)

    async def _unreadable(self, pipeline: PipelineSpec) -> list[str]:
        try:
            async with asyncio.timeout(CHECK_SECONDS_MAX):
                stores = await self._on.stores.stores(pipeline.id)
        except (GapwatchError, TimeoutError) as error:
            log.warning("stores_unavailable", pipeline=pipeline.id, purpose="watch", error=str(error))
            return [getattr(error, "store", "") or f"of pipeline {pipeline.id}"]
        unreadable = []
        for name, reader in ((pipeline.source.store, stores.source), (pipeline.target.store, stores.target)):
            try:
                async with asyncio.timeout(CHECK_SECONDS_MAX):
                    await self._pings.ask(name, reader.ping, seconds=PING_SECONDS)
            except (GapwatchError, TimeoutError) as error:
                unreadable.append(name)
                log.warning("store_unreachable", pipeline=pipeline.id, store=name, error=str(error))
        return unreadable

    async def _findings(self, pipeline: str, *, fresh: bool) -> Sequence[FindingRecord]:
        """Return a pipeline's open findings; read for all of them together, unless one is to be written anew by what it says."""
        if fresh:
            return await asyncio.to_thread(self._on.ledger.findings, pipeline)

        async def read() -> Sequence[FindingRecord]:
            return await asyncio.to_thread(self._on.ledger.findings)

        name = str(self._on.ledger.writes())  # what was written here since is read again
        found = await self._known.ask(name, read, seconds=FINDINGS_SECONDS)
        self._known.forget_but(name)
        return [record for record in found if record.pipeline == pipeline]

    def _finding(self, pipeline: PipelineSpec, advice: Advice) -> FindingRecord | None:
        """Turn a piece of advice that names a finding into one; advice on style is for ``doctor`` only."""
        if not advice.finding or advice.level in ("ok", "unknown"):
            return None
        finding = Finding(advice.finding)
        now = self._on.clock.now()
        side, feeds = _side(advice), _feeds(pipeline, advice)
        topics = {table: topic for topic, table in pipeline.source.table_of.items()}
        feed = topics.get(advice.table, feeds[0].topic)
        is_hole = finding in LOSS or advice.hole_to_ms > 0
        return FindingRecord(
            id=_identity(pipeline, advice),
            pipeline=pipeline.id,
            finding=finding,
            side=side,
            feed=feed,
            first_seen=now,
            last_seen=now,
            message=advice.message,
            remedy=advice.remedy,
            time_from=None if not is_hole else self._begun(pipeline, side, advice),
            time_to=None if not is_hole else time_of(advice.hole_to_ms) if advice.hole_to_ms else now,
            is_hole=is_hole,
            details={"ongoing": True} if is_hole and not advice.hole_to_ms else {},
        )

    def _begun(self, pipeline: PipelineSpec, side: str, advice: Advice) -> datetime | None:
        return time_of(advice.hole_from_ms) if advice.hole_from_ms else self._read_through(pipeline, side)

    def _read_through(self, pipeline: PipelineSpec, side: str) -> datetime | None:
        """Return the side's watermark: where a loss that is noticed now can have begun at the earliest."""
        records = self._on.board.records(pipeline.id)
        marks: list[int] = [record.source_watermark if side == "expected" else record.target_watermark for record in records]
        earliest = min(marks, default=0)
        return time_of(earliest) if earliest else None

    async def _store(self, pipeline: PipelineSpec, looks: Sequence[_Look]) -> None:
        """Store what was found; what those that had found it find no more is over, whatever became of the other checks."""
        found = {record.id: record for look in looks for record in look.found}
        known = {record.id: record for record in await self._findings(pipeline.id, fresh=bool(found))}
        for record in found.values():
            before = known.get(record.id)
            finders = {**self._other_finders(pipeline, before), self._on.process: record.last_seen.isoformat()}
            details = {**record.details, CHECKS: _holders(before, record.id, looks), FOUND_BY: finders}
            since = before.time_from if before and before.time_from else record.time_from
            await self._book.raise_(replace(record, time_from=since, details=details))
        for record in known.values():
            if record.id.startswith(PREFIX) and record.id not in found:
                await self._end(pipeline, record, looks)
        self._finders = {at: heard for at, heard in self._finders.items() if at[0] in known or not self._is_old(pipeline, heard)}
        ended = any(record.finding in ENDED and record.side == "expected" for record in found.values())  # else sweeps read on
        self._on.board.feed_ended(pipeline.id, ended=ended)

    def _other_finders(self, pipeline: PipelineSpec, record: FindingRecord | None) -> dict[str, str]:
        """Return the other processes that find it, with what they said last.

        Their clocks may be wrong, and that may be what they found: a new word counts from when it is heard.
        """
        if record is None:
            return {}
        found = {}
        for process, said in record.details.get(FOUND_BY, {}).items():
            if process == self._on.process:
                continue
            known = self._finders.get((record.id, process))
            if known is None or known[0] != said:
                age = 0.0 if known else max(0.0, (self._on.clock.now() - datetime.fromisoformat(said)).total_seconds())
                known = self._finders[record.id, process] = said, self._on.clock.monotonic() - age
            if not self._is_old(pipeline, known):
                found[process] = said
        return found

    def _is_old(self, pipeline: PipelineSpec, heard: tuple[str, float]) -> bool:
        return self._on.clock.monotonic() - heard[1] > max(FOUND_SECONDS_MIN, pipeline.stall_after_seconds)

    async def _end(self, pipeline: PipelineSpec, record: FindingRecord, looks: Sequence[_Look]) -> None:
        """End what nobody finds any more, unless one of those that had found it could not look, or another process finds it."""
        if self._other_finders(pipeline, record):
            return
        if CHECKS not in record.details:  # of an earlier version: nobody knows whose it is
            if not all(look.looked(record.id) for look in looks):
                return
        elif holders := _holders(record, record.id, looks):
            if holders != record.details[CHECKS]:
                await self._book.raise_(replace(record, details={**record.details, CHECKS: holders}))
            return
        if not record.is_hole:
            await self._book.clear(record)
        elif record.ongoing:  # it is over: what was written until now may be lost, and a sweep can cover it
            now = self._on.clock.now()
            await self._book.raise_(replace(record, last_seen=now, time_to=now, details={"ongoing": False}))


async def _become(event: asyncio.Event, seconds: float) -> None:
    """Return once it is set, or after so long."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


def _holders(record: FindingRecord | None, identity: str, looks: Sequence[_Look]) -> list[str]:
    """Return the checks that find it, and those that had found it and could not look: it is not over before they have."""
    finders = {look.check for look in looks if any(one.id == identity for one in look.found)}
    had = record.details.get(CHECKS, ()) if record is not None else ()
    current = {look.check for look in looks}
    blind = {look.check for look in looks if not look.looked(identity)}
    gone = set(had) - current  # its configuration went: nobody will look again, and the others have to be sure
    return sorted(finders | (set(had) & blind) | (gone if blind else set()))


def _identity(pipeline: PipelineSpec, advice: Advice) -> str:
    """Return the id of the finding that a piece of advice names."""
    several = advice.table and len(_feeds(pipeline, advice)) > 1
    identity = f"{_side(advice)}/{advice.subject}" + (f"/{advice.table}" if several else "")
    return PREFIX + gap_id(pipeline.id, advice.finding.encode(), identity).removeprefix("gap_")


def _side(advice: Advice) -> str:
    return "expected" if advice.subject.endswith("source") else "observed"


def _feeds(pipeline: PipelineSpec, advice: Advice) -> Sequence[FeedSpec]:
    return pipeline.source.feeds if _side(advice) == "expected" else (pipeline.target.feed,)
