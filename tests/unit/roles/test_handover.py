"""Hand-over between stages: acknowledge after publishing, at every point where a process can die."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from gapwatch.core.batches import unpack
from gapwatch.core.checkpoint import Stage
from gapwatch.core.envelopes import BatchDecoder, Refused, decoder_for
from gapwatch.core.mapping import CompiledMapping
from gapwatch.core.matching import KeyMatcher
from gapwatch.errors import HistoryLost, StoreRefused, StoreUnreachable
from gapwatch.feed_ports import ChangeEvent, StreamBatch
from gapwatch.kafka.clients import Partition
from gapwatch.kafka.producer import CONTENT_BYTES_MAX
from gapwatch.ledger import SqlLedger, open_ledger
from gapwatch.model.gap import Detector, Finding, Kind
from gapwatch.model.pipeline import DeliverySpec, FieldType, PipelineSpec, Settings, TopicsSpec
from gapwatch.model.stream import FORMAT, NO_DELIVERY, Batch, Control, FeedState, Operation, Outcome, PipelineTimes, Side
from gapwatch.model.suspect import Hole, Said, Suspect
from gapwatch.roles.board import Delivered
from gapwatch.roles.capture.role import (
    RENEW_SECONDS,
    TRANSACTION_BYTES,
    CaptureDependencies,
    CaptureRole,
    Stream,
    _outgoing,
)
from gapwatch.roles.ingest.role import IngestDependencies, IngestRole
from gapwatch.roles.repair.book import Book
from gapwatch.roles.repair.confirmer import Confirmer, ConfirmerDependencies, Raised, Verdict
from gapwatch.roles.repair.judging import KeyJudge
from gapwatch.roles.stores import PipelineStores
from gapwatch.roles.supervisor import Supervised, Supervisor, Task
from tests.simulation.bench import Bench
from tests.simulation.kafka import Admin, Broker, Consumer, FeedProducer, Producer, Record
from tests.simulation.stores import Rig, VirtualClock, trials
from tests.simulation.worker import Crash, Durable, Worker
from tests.unit.core.samples import APPENDED, TOPIC, change, field, pipeline

ROWS = 9
LOST = {2, 5}  # rows that the sink drops
EVENTS = "gapwatch.events"
TARGET = "gapwatch.feed.orders.target"


# ── ingest ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def orders() -> PipelineSpec:
    return replace(pipeline(field("total", FieldType.INT)), delivery=DeliverySpec(), grace_seconds=1.0, pulse_seconds=0.05)


def filled(clock: VirtualClock, *, seed: int = 0) -> Broker:
    """Return a broker with raw topics: nine rows at the source, of which seven came to the target."""
    broker = Broker({TOPIC: 2, TARGET: 2, EVENTS: 2, "gapwatch.dlq": 1}, clock, seed=seed)
    for number in range(ROWS):
        value = json.dumps(change("c", after={"id": number, "total": number}, sequence=f'["{number}","{number}"]')).encode()
        broker.append(Partition(TOPIC, number % 2), json.dumps({"id": number}).encode(), value, time=APPENDED)
        if number not in LOST:
            key = b'{"_id": {"$numberInt": "%d"}}' % number
            value = b'{"_id": {"$numberInt": "%d"}, "total": {"$numberInt": "%d"}}' % (number, number)
            headers = [
                ("gapwatch-op", b"insert"),
                ("gapwatch-time", b"%d" % APPENDED),
                ("gapwatch-position", b"%d:0" % number),
            ]
            broker.append(Partition(TARGET, number // 3 % 2), key, value, headers, time=APPENDED)
    return broker


async def ingest(broker: Broker, ledger: SqlLedger) -> None:
    """One life of an ingester: until everything is read and committed, or until it dies."""
    spec, stop, clock, admin = orders(), asyncio.Event(), broker.clock, Admin(broker)
    settings = Settings(bootstrap_servers="none", topics=TopicsSpec(partitions=2), pipelines={spec.id: spec})

    async def skew(_: str) -> int:
        return 0

    role = IngestRole(
        IngestDependencies(
            settings=settings,
            pipelines={spec.id: spec},
            ledger=ledger,
            producer=Producer(broker),  # type: ignore[arg-type]
            consumer=Consumer(broker, stop),  # type: ignore[arg-type]
            heartbeats=Consumer(broker, asyncio.Event()),  # type: ignore[arg-type]
            offsets=admin,  # type: ignore[arg-type]
            topics=admin,  # type: ignore[arg-type]
            clock=clock,
            name="one",
            skew_ms=skew,
            on_unparsable=lambda _: None,
            on_finding=lambda *_: None,
        )
    )
    await role.run(stop)


def matched(broker: Broker) -> list[KeyMatcher]:
    """Apply what the ingesters sent, then let time pass for both feeds."""
    spec = orders()
    fingerprints = {spec.id: CompiledMapping(spec).fingerprint}
    matchers = []
    for partition in range(2):
        matcher = KeyMatcher(partition, 2, {spec.id: spec}, fingerprints=fingerprints, life="0")
        log = broker.logs[Partition(EVENTS, partition)]
        for record in log:
            for said in matcher.apply(unpack(record.record_value or b""), record.number, record.time):
                assert isinstance(said, Hole), "nothing is due yet"
                assert said.time_from == 0, "a hole besides those of the first start"
        matchers.append(matcher)
    return matchers


def later(broker: Broker, partition: int) -> Control:
    states = [
        FeedState(
            pipeline="orders",
            side=int(side),
            feed=topic,
            feed_partition=number,
            partitions=2,
            epoch=1,
            offset_from=len(broker.logs[Partition(topic, number)]),
            offset_to=len(broker.logs[Partition(topic, number)]),
            watermark=APPENDED + 10**12,
            caught_up=APPENDED + 10**12,
            delivery=NO_DELIVERY,
            delivery_clock=0,
            lost=[],
        )
        for side, topic in ((Side.EXPECTED, TOPIC), (Side.OBSERVED, TARGET))
        for number in range(2)
    ]
    return Control(FORMAT, "one", APPENDED, states, [PipelineTimes("orders", 0, 1_000)])


def ended(life: Any) -> bool:
    """Run one life of a process; False when it died."""
    died = False
    try:
        asyncio.run(life)
    except* Crash:
        died = True
    return not died


def all_calls(tmp_path: Path) -> int:
    clock = VirtualClock()
    broker, ledger = filled(clock), open_ledger(f"sqlite:///{tmp_path}/calm.db")
    assert ended(ingest(broker, ledger))
    ledger.close()
    return broker.calls


@pytest.mark.parametrize("seed", range(2))
def test_lesson_30_ingest_dies_at_any_call_and_every_write_comes_through(seed: int, ledger: SqlLedger, tmp_path: Path) -> None:
    """The source message was acknowledged before the next stage's was published: here it may die before, between and after."""
    total = all_calls(tmp_path)
    assert total > 30
    for calls in range(1, total):
        broker = filled(VirtualClock(), seed=seed)
        broker.calls_left = calls
        ended(ingest(broker, ledger))
        for at, committed in broker.committed.items():
            assert committed.offset <= _sent(broker, at), "acknowledged before it was published"
        broker.calls_left = None
        assert ended(ingest(broker, ledger))
        counters = [matcher.status("w", 0)[0].counters for matcher in matched(broker)]
        assert sum(one.expected for one in counters) == ROWS, f"after a crash at call {calls}"
        assert sum(one.settled for one in counters) == ROWS - len(LOST)


def _sent(broker: Broker, at: Partition) -> int:
    """Return up to where every partition of events holds what the raw partition had."""
    reached = []
    for partition in range(2):
        states = [
            state.offset_to
            for record in broker.logs[Partition(EVENTS, partition)]
            if isinstance(control := unpack(record.record_value or b""), Control)
            for state in control.feeds
            if (state.feed, state.feed_partition) == at
        ]
        reached.append(max(states, default=0))
    return min(reached)


# ── match ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stage", list(Stage))
def test_lesson_30_match_dies_at_any_stage_of_any_checkpoint_and_every_lost_write_is_raised(stage: Stage) -> None:
    bench_log = lost_writes_log()
    for crash in range(6):
        durable = Durable()
        worker = Worker(Bench().spec, durable, partitions=1, seed=crash)
        with pytest.raises(Crash):
            worker.run(bench_log, every=3, crash_after=crash, crash_at=stage)
        assert durable.acknowledged <= worker.matcher.applied + 1
        raised_late = {one.key for one in durable.said.values() if isinstance(one, Suspect)}
        successor = Worker(Bench().spec, durable, partitions=1, seed=crash)
        assert successor.matcher.applied + 1 >= durable.acknowledged, "acknowledged, and not part of the state"
        successor.run(bench_log, every=3)
        said = {one.key for one in durable.said.values() if isinstance(one, Suspect)}
        assert said >= raised_late
        assert said == {b"row-%d" % number for number in LOST}


class Recorder(Bench):
    """A bench that keeps what it applied."""

    def __init__(self) -> None:
        self.log: list[tuple[Batch | Control, int]] = []
        super().__init__()

    def apply(self, record: Batch | Control | None, *, skip: int = 0) -> list[Said]:
        assert record is not None
        self.log.append((record, self._append + 10))
        return super().apply(record, skip=skip)


def lost_writes_log() -> list[tuple[Batch | Control, int]]:
    recorder = Recorder()
    for number in range(ROWS):
        recorder.expect(number, number * 100, key=b"row-%d" % number)
        if number not in LOST:
            recorder.observe(number, number * 100 + 50, key=b"row-%d" % number)
    recorder.streams(60_000)
    recorder.streams(61_000)
    return recorder.log


# ── confirm ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Steps:
    """Counts the calls that make something durable; dies before or after one of them."""

    def __init__(self, left: int) -> None:
        self.left = left

    def call(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Crash


class DyingLedger:
    def __init__(self, ledger: SqlLedger, steps: Steps) -> None:
        self._ledger, self._steps = ledger, steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    def store_gaps(self, changes: Sequence[Any]) -> Sequence[bool]:
        self._steps.call()
        stood = self._ledger.store_gaps(changes)
        self._steps.call()
        return stood


class Topic:
    """The suspects topic and its committed suspects; the verdicts that were acknowledged."""

    def __init__(self, suspects: Sequence[Suspect]) -> None:
        self.suspects = list(suspects)
        self.finished: set[int] = set()
        self.verdicts: list[Verdict] = []


class Ends:
    """One process's inbox and verdict sink on a topic."""

    def __init__(self, topic: Topic, steps: Steps, stop: asyncio.Event) -> None:
        self._topic, self._steps, self._stop = topic, steps, stop
        self._taken = False

    async def take(self, limit: int, seconds: float) -> Sequence[Raised]:
        await asyncio.sleep(0.001)
        if self._taken:
            return ()
        self._taken = True
        left = [n for n in range(len(self._topic.suspects)) if n not in self._topic.finished]
        return [Raised(partition=0, offset=n, record=self._topic.suspects[n]) for n in left]

    async def publish(self, verdicts: Sequence[Verdict]) -> None:
        self._steps.call()
        self._topic.verdicts += verdicts
        self._steps.call()

    async def done(self, raised: Sequence[Raised]) -> None:
        self._steps.call()
        self._topic.finished |= {item.offset for item in raised}
        self._steps.call()
        if len(self._topic.finished) == len(self._topic.suspects):
            self._stop.set()


async def confirm(rig: Rig, topic: Topic, ledger: SqlLedger, steps: Steps) -> None:
    clock, stop = VirtualClock(pace=100), asyncio.Event()
    ends, dying, stores = Ends(topic, steps, stop), DyingLedger(ledger, steps), rig.stores

    async def open_stores(_: str = "") -> PipelineStores:
        return stores

    async def on_hole(_: Hole) -> None:
        raise AssertionError("there is none")

    judge = KeyJudge(open_stores, grace_ms=lambda: 100, delivered=lambda: Delivered(through_ms=None, age_alone=True), clock=clock)
    confirmer = Confirmer(
        ConfirmerDependencies(
            ledger=dying,
            inbox=ends,
            verdicts=ends,
            judges={rig.spec.id: judge},
            stores=open_stores,
            book=Book(dying, clock),
            trials=trials(rig, dying, clock),
            clock=clock,
            on_hole=on_hole,
            on_cleared=lambda *_: None,
            on_detected=lambda *_: None,
        )
    )
    await asyncio.wait_for(confirmer.run(stop), 30)


def suspects_of(rig: Rig, numbers: Sequence[int]) -> list[Suspect]:
    bench = Bench()
    for number in numbers:
        rig.source_writes(number)
        bench.expect(number, number * 10, key=rig.key(number))
    bench.streams(100_000)
    return bench.suspects


def test_lesson_30_confirm_dies_before_or_after_any_step_and_no_gap_is_lost(tmp_path: Path) -> None:
    """The order is ledger, verdict, offset; a suspect that was dropped as "done" before its gap was stored would be gone."""
    for left in range(1, 12):
        ledger = open_ledger(f"sqlite:///{tmp_path}/ledger{left}.db")
        rig = Rig()
        topic = Topic(suspects_of(rig, (1, 2, 3)))
        rig.stranger_writes(3, rig.document(rig.source[3]))
        assert len(topic.suspects) == 3
        died = not ended(confirm(rig, topic, ledger, Steps(left)))
        stored = {gap.key for gap in ledger.open_gaps_for("orders", [rig.key(n) for n in (1, 2, 3)]).values()}
        said = {verdict.key for verdict in topic.verdicts if verdict.outcome is Outcome.GAP}
        assert said <= stored, "a verdict before its gap was stored"
        assert {topic.suspects[n].key for n in topic.finished} <= {verdict.key for verdict in topic.verdicts}
        if died and len(topic.finished) < len(topic.suspects):
            assert ended(confirm(rig, topic, ledger, Steps(0)))
        found = ledger.open_gaps_for("orders", [rig.key(n) for n in (1, 2, 3)])
        assert {rig.number(key): (gap.kind, gap.occurrences, gap.detector) for key, gap in found.items()} == {
            1: (Kind.MISSING, 1, Detector.STREAM),
            2: (Kind.MISSING, 1, Detector.STREAM),
        }
        outcomes = {(rig.number(verdict.key), verdict.outcome) for verdict in topic.verdicts}
        assert outcomes == {(1, Outcome.GAP), (2, Outcome.GAP), (3, Outcome.CLEARED)}
        assert topic.finished == {0, 1, 2}
        ledger.close()
        if not died:
            break
    else:
        pytest.fail("it never came to its end")


# ── judging ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_suspect_that_arrives_while_its_key_is_read_is_not_judged_by_those_reads() -> None:
    """A process that was frozen after its reads finds a newer suspect beside them: they are older than what it names."""
    rig, clock = Rig(), VirtualClock(pace=100)
    first, *_ = suspects_of(rig, (1,))
    rig.stranger_writes(1, rig.document(rig.source[1]))
    stores = rig.stores

    async def open_stores() -> PipelineStores:
        return stores

    judge = KeyJudge(open_stores, grace_ms=lambda: 100, delivered=lambda: Delivered(through_ms=None, age_alone=True), clock=clock)
    judge.add(rig.key(1), first)
    bench = Bench()
    bench.expect(7, 500, key=rig.key(1), place=9)
    (second,) = [one for one in bench.streams(100_000) if isinstance(one, Suspect)]
    thawed: list[str] = []

    def between(what: str) -> None:
        if not thawed and what == "fetch OBSERVED":
            thawed.append(what)
            judge.add(rig.key(1), second)

    rig.between = between
    assert await judge.step() == []
    rig.source_writes(1)
    rig.sink_loses(1)
    decided: list[Any] = []
    while not decided:
        decided = list(await judge.step())
        await clock.sleep(1)
    (one,) = decided
    assert one.case.suspect is second
    assert getattr(one.judgement, "kind", None) is Kind.MISMATCH


# ── capture ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Stored:
    """A store's change stream: numbered changes, of which it still knows those from ``oldest`` on."""

    def __init__(self, count: int, *, oldest: int = 0) -> None:
        self.count = count
        self.oldest = oldest
        self.opened: list[int | None] = []
        self.fails: list[int] = []  # after how many batches of each opening the connection breaks

    def open(self) -> Reader:
        return Reader(self)


class Reader:
    """Implements :class:`gapwatch.feed_ports.FeedReader`. "From now" begins at the end: what is before that is never seen."""

    def __init__(self, store: Stored) -> None:
        self._store = store

    async def open(self, token: bytes | None) -> AsyncIterator[StreamBatch]:
        store = self._store
        at = store.count if token is None else int(token)
        store.opened.append(None if token is None else at)
        if at < store.oldest:
            raise HistoryLost("The stored position lies outside the history.")
        left = store.fails.pop(0) if store.fails else 10**9
        while True:
            if left == 0:
                raise StoreUnreachable("The connection broke.", store="catalog")
            left -= 1
            await asyncio.sleep(0)
            events = [_change(at)] if at < store.count else []
            at += len(events)
            yield StreamBatch(events=events, token=str(at).encode(), watermark=APPENDED + at)

    async def close(self) -> None: ...


def _change(number: int) -> ChangeEvent:
    return ChangeEvent(key=b"%d" % number, value=b"{}", headers=[], event_time=APPENDED, token=str(number + 1).encode())


async def become(condition: Callable[[], bool]) -> None:
    """Return once it holds; the loop turns meanwhile."""
    for _ in range(100_000):
        if condition():
            return
        await asyncio.sleep(0.0005)
    pytest.fail("it never became true")


def capturing(
    store: Stored,
    broker: Broker,
    ledger: SqlLedger,
    *,
    producer: type[FeedProducer] = FeedProducer,
    marks: type[Producer] = Producer,
) -> CaptureDependencies:
    spec = orders()
    return CaptureDependencies(
        settings=Settings(bootstrap_servers="none", pipelines={spec.id: spec}),
        ledger=ledger,
        producer=marks(broker),  # type: ignore[arg-type]
        feed_producer=lambda topic: producer(broker, topic),  # type: ignore[arg-type,return-value]
        partitions={TARGET: 2},
        count=lambda: asyncio.sleep(0, {TARGET: 2}),
        streams=[Stream(pipeline=spec, topic=TARGET, open=store.open)],
        beats=[],
        clock=broker.clock,
        holder="here",
        on_finding=lambda *_: None,
        on_requests=lambda *_: None,
    )


async def capture(
    store: Stored, broker: Broker, ledger: SqlLedger, *, until: int, producer: type[FeedProducer] = FeedProducer
) -> None:
    stop = asyncio.Event()
    running = asyncio.create_task(CaptureRole(capturing(store, broker, ledger, producer=producer)).run(stop))
    await become(lambda: running.done() or (len(store.opened) >= until and len(captured(broker)) + store.oldest >= store.count))
    stop.set()
    await running


def captured(broker: Broker) -> set[int]:
    return {int(record.record_key) for record in broker.log(TARGET) if record.record_key is not None}


async def test_lesson_32_a_change_stream_goes_on_at_its_stored_token_after_an_error(ledger: SqlLedger) -> None:
    """It was restarted five seconds after an error without a token: what came in between was lost. Here it breaks six times."""
    broker, store = Broker({TARGET: 2}, VirtualClock()), Stored(0)
    store.fails = [1, 0, 3, 0, 1, 2]
    running = asyncio.create_task(capture(store, broker, ledger, until=7))
    await become(lambda: bool(store.opened))
    store.count = 20  # written while it was down, and after
    await asyncio.wait_for(running, 30)
    assert store.opened[0] is None, "the first time there is none"
    assert None not in store.opened[1:]
    assert captured(broker) == set(range(20))


async def test_lesson_32_a_token_that_the_store_forgot_is_a_hole_up_to_where_reading_began_anew(ledger: SqlLedger) -> None:
    """A library deleted the token and began "from the current moment, silently skipping everything it missed"."""
    broker, store = Broker({TARGET: 2}, VirtualClock()), Stored(30, oldest=10)
    ledger.set_fact(f"resume/{TARGET}", {"token": "4", "watermark": APPENDED + 4})
    running = asyncio.create_task(capture(store, broker, ledger, until=2))
    await become(lambda: len(store.opened) >= 2)
    store.count = 40
    await become(lambda: len(captured(broker)) >= 10)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert store.opened[:2] == [4, None]
    found = ledger.findings("orders")
    assert {one.finding for one in found} == {Finding.HISTORY_LOST}
    assert all(one.is_hole for one in found)
    earliest = min(one.time_from for one in found if one.time_from is not None)
    assert int(earliest.timestamp() * 1000) == APPENDED + 4, "since the last watermark, however long ago that is"
    assert len(found) == 2, "once when it was noticed, once when reading had begun: until then more was missed"


def test_trap_46_a_change_too_large_for_kafka_is_sent_without_its_content() -> None:
    """It was refused, tried again for ever, and everything behind it waited. Its key is read in both stores instead."""
    spec = orders()
    decoder = BatchDecoder(decoder_for(spec, Side.OBSERVED, CompiledMapping(spec)))
    headers = [("gapwatch-op", b"insert"), ("gapwatch-time", b"%d" % APPENDED), ("gapwatch-position", b"7:0")]
    keys = [b'{"_id": {"$numberInt": "1"}}', b'{"_id": {"$numberInt": "2"}}', b'{"_id": "%s"}' % (b"k" * CONTENT_BYTES_MAX)]
    values = [b'{"_id": {"$numberInt": "1"}, "total": {"$numberInt": "5"}}', b"{" + b" " * CONTENT_BYTES_MAX, b"{}"]
    made = [
        _outgoing(TARGET, 2, ChangeEvent(key=key, value=value, headers=headers, event_time=APPENDED, token=b""))
        for key, value in zip(keys, values, strict=True)
    ]
    records = [Record(Partition(TARGET, 0), place, *one[2:], APPENDED) for place, one in enumerate(made)]
    assert [len(record.record_key or b"") + len(record.record_value or b"") < 100 for record in records] == [True] * 3
    columns = decoder.decode(records)
    assert list(columns.operations) == [Operation.UPSERT, Operation.TOUCHED]
    assert list(columns.majors) == [7, 7]
    [(offset, refused)] = columns.others
    assert isinstance(refused, Refused)
    assert (offset, refused.error.reason) == (2, "key_misfit"), "a key that no record holds is a hole"


async def test_lesson_40_whoever_took_a_feed_over_too_late_writes_nothing(ledger: SqlLedger) -> None:
    """Frozen after it took the lease, and thawed when another had it: it shuts that one out of Kafka, sees it, and lets go."""
    broker, store = Broker({TARGET: 2}, VirtualClock()), Stored(3)
    ledger.set_fact(f"resume/{TARGET}", {"token": "0", "watermark": APPENDED})
    others: list[Any] = []

    class Frozen(FeedProducer):
        async def take_over(self, waiting: Any) -> None:
            if not others:
                with ledger._db.engine.begin() as connection:
                    connection.execute(text("UPDATE leases SET expires_us = 1"))
                others.append(ledger.take_lease(f"capture/{TARGET}", "there", seconds=0.2))
            await super().take_over(waiting)

    await asyncio.wait_for(capture(store, broker, ledger, until=1, producer=Frozen), 30)
    assert others != [None]
    assert store.opened == [0], "not before the lease was ours again"
    assert captured(broker) == {0, 1, 2}


async def test_a_producer_of_watermarks_that_failed_for_good_is_replaced(ledger: SqlLedger) -> None:
    """What Kafka refuses once ends an `AckedProducer`: no feed of the process said again that it was quiet."""
    broker, store, stop, made = Broker({TARGET: 2}, VirtualClock()), Stored(0), asyncio.Event(), list[Any]()

    class Marks(Producer):
        def __init__(self, broker: Broker) -> None:
            super().__init__(broker)
            made.append(self)

        async def send(self, *args: Any, **more: Any) -> Any:
            if self is made[0]:
                self.failure = StoreRefused("Topic authorization failed.", store="kafka")
                raise self.failure
            return await super().send(*args, **more)

    def role() -> Task:
        return CaptureRole(capturing(store, broker, ledger, marks=Marks)).run

    supervisor = Supervisor(
        tasks=[Supervised(name="capture", make=role)], clock=broker.clock, on_up=lambda *_: None, on_failure=lambda _: None
    )
    running = asyncio.create_task(supervisor.run(stop))
    await become(lambda: bool(broker.log(TARGET)))
    stop.set()
    await running
    assert len(made) == 2
    assert supervisor.health["capture"].reason == "Topic authorization failed."
    assert {record.record_headers[0][0] for record in broker.log(TARGET)} == {"gapwatch-watermark"}


class Large(Stored):
    """All changes come in one batch, and each is so large."""

    size = 3 * 1024 * 1024

    def open(self) -> Reader:
        return LargeReader(self)


class LargeReader(Reader):
    async def open(self, token: bytes | None) -> AsyncIterator[StreamBatch]:
        at, store = int(token or 0), self._store
        store.opened.append(at)
        while True:
            await asyncio.sleep(0)
            events = [replace(_change(number), value=bytes(Large.size)) for number in range(at, store.count)]
            at = store.count
            yield StreamBatch(events=events, token=str(at).encode(), watermark=APPENDED + at)


@pytest.mark.parametrize("dies_in", [0, 1, 2, 4], ids=["nowhere", "the first", "in between", "the last"])
async def test_a_batch_of_many_bytes_is_several_transactions_of_which_the_last_says_the_time(
    ledger: SqlLedger, dies_in: int
) -> None:
    """Bounded by count alone: 1,000 documents of 300 KB did not get through in time, were read again, and so on for ever."""
    broker, store, stop = Broker({TARGET: 2}, VirtualClock()), Large(7), asyncio.Event()
    written: list[Sequence[Any]] = []

    class Bounded(FeedProducer):
        async def write(self, records: Sequence[Any], waiting: Any) -> None:
            assert sum(len(one.value or b"") for one in records) <= TRANSACTION_BYTES
            written.append(records)
            if len(written) == dies_in:
                raise StoreUnreachable("Nobody answers.", store="kafka")
            assert (ledger.fact(f"resume/{TARGET}") or {}).get("token") != "7", "stored before all was written"
            await super().write(records, waiting)

    ledger.set_fact(f"resume/{TARGET}", {"token": "0", "watermark": APPENDED})
    running = asyncio.create_task(CaptureRole(capturing(store, broker, ledger, producer=Bounded)).run(stop))
    await become(lambda: running.done() or (ledger.fact(f"resume/{TARGET}") or {}).get("token") == "7")
    stop.set()
    await running
    assert captured(broker) == set(range(7))
    marks = [[one.key is None for one in records] for records in written[-4:]]
    assert marks == [[False, False], [False, False], [False, False], [False, True, True]]
    assert len(store.opened) == (2 if dies_in else 1), "from the token again"
    for number in range(2):
        log = broker.logs[Partition(TARGET, number)]
        keys = [record.record_key for record in log]
        assert keys[keys.index(None) :].count(None) == len(keys) - keys.index(None), "an event behind its time"


async def test_a_batch_that_takes_long_keeps_its_lease_between_its_transactions(ledger: SqlLedger) -> None:
    broker, store, stop, clock = Broker({TARGET: 2}, VirtualClock()), Large(7), asyncio.Event(), VirtualClock()
    broker.clock, renewed = clock, list[float]()
    renew = ledger.renew_leases

    def renewing(held: Sequence[Any], *, seconds: float) -> Any:
        renewed.append(clock.monotonic())
        return renew(held, seconds=seconds)

    class Slow(FeedProducer):
        async def write(self, records: Sequence[Any], waiting: Any) -> None:
            await super().write(records, waiting)
            await clock.sleep(2 * RENEW_SECONDS)

    setattr(ledger, "renew_leases", renewing)  # noqa: B010
    ledger.set_fact(f"resume/{TARGET}", {"token": "0", "watermark": APPENDED})
    running = asyncio.create_task(CaptureRole(capturing(store, broker, ledger, producer=Slow)).run(stop))
    await become(lambda: running.done() or (ledger.fact(f"resume/{TARGET}") or {}).get("token") == "7")
    stop.set()
    await running
    assert len(renewed) >= 4, "at the take-over, and after each of the first three"
