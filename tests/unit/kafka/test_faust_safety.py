"""Each replaced behaviour of Faust 0.15.3: that ours holds, and that the stock one still needs replacing."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import faust
import pytest
from faust.tables.recovery import Recovery, ServiceStopped
from faust.transport.consumer import IntervalTree
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from mode.services import WaitResults

from gapwatch.errors import ProtocolError, StoreRefused
from gapwatch.kafka import faust_safety
from gapwatch.kafka.faust_safety import (
    SafeConsumer,
    SafeConsumerThread,
    SafeRecovery,
    StateTable,
    assert_faust_version,
    broker_credentials,
    broker_urls,
    owns_partitions,
    read_from,
)
from gapwatch.model.pipeline import Settings

SOURCE = TP("g.events", 0)
CHANGELOG = TP("g.match-state-changelog", 0)


def test_only_the_pinned_version_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_faust_version()
    monkeypatch.setattr(faust, "__version__", "0.16.0")
    with pytest.raises(ProtocolError, match=r"0\.16\.0.*Install faust-streaming==0\.15\.3"):
        assert_faust_version()


# recovery order


class StubTable:
    def __init__(self, recovered: Any) -> None:
        self.on_recovery_completed = recovered


class World:
    """An app and a consumer that note what is asked of them, in order."""

    def __init__(self, generation: int = 7, callback: BaseException | None = None) -> None:
        self.calls: list[str] = []
        self.callback = callback
        self.positions = {SOURCE: 42}
        self.consumer = SimpleNamespace(
            assignment=lambda: {SOURCE, CHANGELOG},
            perform_seek=self.awaited("perform_seek"),
            seek=self.seek,
            resume_partitions=lambda tps: self.calls.append(f"resume {sorted(tp.topic for tp in tps)}"),
            resume_flow=self.noted("resume_flow"),
            _commit=self.commit,
            _committed_offset={SOURCE: 40},
            _gap={},
            _acked={},
            _acked_index={},
        )
        self.app: Any = SimpleNamespace(
            consumer=self.consumer,
            consumer_generation_id=generation,
            on_rebalance_complete=SimpleNamespace(send=self.awaited("signal")),
            conf=SimpleNamespace(broker_request_timeout=5, stream_recovery_delay=0),
            flow_control=SimpleNamespace(resume=self.noted("clear_queues")),
            _fetcher=SimpleNamespace(maybe_start=self.awaited("fetch")),
            assignor=SimpleNamespace(assigned_standbys=lambda: set()),
            on_rebalance_end=self.noted("end"),
            restored_positions=lambda: self.positions,
            in_recovery=False,
        )
        self.table = StubTable(self.recovered)
        self.tables: Any = SimpleNamespace(
            values=lambda: [self.table],
            changelog_topics={CHANGELOG.topic},
            on_actives_ready=self.noted("ready"),
            on_standbys_ready=self.noted("standbys"),
        )

    def noted(self, name: str) -> Any:
        return lambda *args: self.calls.append(name)

    def awaited(self, name: str) -> Any:
        async def call(*args: Any) -> None:
            self.calls.append(name)

        return call

    async def seek(self, tp: TP, offset: int) -> None:
        self.calls.append(f"seek {offset}")

    async def commit(self, offsets: dict[TP, int]) -> bool:
        self.calls.append(f"commit {offsets[SOURCE]}")
        return True

    async def recovered(self, active: Any, standby: Any) -> None:
        self.calls.append("load")
        if self.callback is not None:
            raise self.callback

    def recovery(self, kind: type[Recovery]) -> Any:
        made: Any = object.__new__(kind)
        made.app, made.tables = self.app, self.tables
        made.log = SimpleNamespace(info=print, warning=print, dev=print)
        made.actives_for_table, made.standbys_for_table = {self.table: set()}, {self.table: set()}
        made.completed = asyncio.Event()
        made._is_changelog_tp = lambda tp: tp.topic in self.tables.changelog_topics
        made._set_recovery_ended = lambda: None

        async def wait(coroutine: Any, timeout: float | None = None) -> None:
            await coroutine

        made._wait = wait
        return made


async def test_trap_39_sources_resume_only_after_the_seek_and_the_clearing() -> None:
    world = World()
    await world.recovery(SafeRecovery).on_recovery_completed(7)
    resumed = world.calls.index(f"resume ['{SOURCE.topic}']")
    for earlier in ("load", "perform_seek", "seek 42", "commit 42", "clear_queues"):
        assert world.calls.index(earlier) < resumed
    assert world.calls.index("ready") > resumed
    assert world.consumer._committed_offset == {SOURCE: 42}


async def test_stock_recovery_resumes_first_which_is_why_it_is_replaced() -> None:
    world = World()
    await world.recovery(Recovery).on_recovery_completed(7)
    assert world.calls.index(f"resume ['{SOURCE.topic}']") < world.calls.index("perform_seek") < world.calls.index("clear_queues")


async def a_recovery_whose_end_comes_early(kind: type[Recovery]) -> bool:
    """The last record is read before anybody waits for the end, and one more is looked for; return whether the end is seen."""
    recovery = World().recovery(kind)
    recovery._processing_times, recovery._active_events_received_at, recovery._standby_events_received_at = [], {}, {}
    for _ in range(2):  # the second recovery of this worker, too
        recovery._set_recovery_started()
        assert not recovery.signal_recovery_end.is_set()
        recovery.signal_recovery_end.set()
        recovery.signal_recovery_end.clear()
    try:
        await asyncio.wait_for(recovery.signal_recovery_end.wait(), 0.1)
    except TimeoutError:
        return False
    return True


async def test_the_end_of_a_recovery_is_seen_however_early_it_comes() -> None:
    assert await a_recovery_whose_end_comes_early(SafeRecovery)


async def test_stock_recovery_misses_an_early_end_which_is_why_it_is_replaced() -> None:
    assert not await a_recovery_whose_end_comes_early(Recovery)


async def test_an_error_while_loading_is_raised() -> None:
    world = World(callback=ProtocolError("torn"))
    with pytest.raises(ProtocolError, match="torn"):
        await world.recovery(SafeRecovery).on_recovery_completed(7)
    assert "clear_queues" not in world.calls


async def test_a_rebalance_during_recovery_resumes_nothing() -> None:
    world = World(generation=8)
    await world.recovery(SafeRecovery).on_recovery_completed(7)
    assert not [call for call in world.calls if call.startswith(("resume", "seek"))]


async def test_reading_starts_where_the_state_ends_whatever_was_committed() -> None:
    world = World()
    consumer: Any = world.consumer
    consumer._committed_offset[SOURCE] = 999
    consumer._acked[SOURCE] = [999]
    await read_from(consumer, SOURCE, 0)
    assert world.calls == ["seek 0"]
    assert consumer._committed_offset == {SOURCE: None}
    assert consumer._acked == {}


# the state table


class Row:
    """A changelog event as recovery hands it over."""

    def __init__(self, key: bytes, value: bytes | None, partition: int = 0) -> None:
        self.message = SimpleNamespace(key=key, value=value, partition=partition)


def table(sent: list[tuple[int, bytes, bytes | None, asyncio.Future[None]]]) -> StateTable:
    app = faust.App("unit", broker="kafka://127.0.0.1:1", store="memory://", autodiscover=False, Table=StateTable)
    made: StateTable = app.Table("state", key_type=bytes, value_type=bytes, partitions=1)

    async def send(partition: int, key: bytes, value: bytes | None) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        sent.append((partition, key, value, future))
        return future

    made.send = send
    made.rank = lambda value: value[0]
    return made


async def test_the_barrier_waits_for_every_acknowledgement() -> None:
    sent: list[Any] = []
    state = table(sent)
    await state.put(0, b"0/a", b"\x01")
    await state.put(0, b"0/b", b"\x02")
    barrier = asyncio.create_task(state.barrier())
    sent[0][3].set_result(None)
    done, _ = await asyncio.wait({barrier}, timeout=0.05)
    assert not done
    sent[1][3].set_result(None)
    assert await barrier == 2
    assert await state.barrier() == 0


async def test_a_failed_delivery_raises_at_the_barrier() -> None:
    sent: list[Any] = []
    state = table(sent)
    await state.put(0, b"0/a", b"\x01")
    sent[0][3].set_exception(ProtocolError("fenced"))
    with pytest.raises(ProtocolError, match="fenced"):
        await state.barrier()


async def test_a_removal_is_written_to_the_changelog() -> None:
    sent: list[Any] = []
    state = table(sent)
    await state.put(0, b"0/a", b"\x01")
    await state.put(0, b"0/a", None)
    assert [row[:3] for row in sent] == [(0, b"0/a", b"\x01"), (0, b"0/a", None)]


async def test_what_was_taken_is_forgotten_and_read_anew_by_the_next_recovery() -> None:
    state = table([])
    state.apply_changelog_batch([Row(b"0/a", b"\x05")])
    state.forget()
    assert dict(state.records(0)) == {}
    assert state.persisted_offset(SOURCE) == -1
    state.apply_changelog_batch([Row(b"0/a", b"\x05")])
    assert dict(state.records(0)) == {b"0/a": b"\x05"}


async def test_a_thawed_workers_late_record_does_not_win() -> None:
    state = table([])
    state.apply_changelog_batch([Row(b"0/a", b"\x05new"), Row(b"0/a", b"\x03old")])
    assert dict(state.records(0)) == {b"0/a": b"\x05new"}
    state.apply_changelog_batch([Row(b"0/a", b"\x06newer"), Row(b"1/a", b"\x01", partition=1)])
    assert dict(state.records(0)) == {b"0/a": b"\x06newer"}
    assert dict(state.records(1)) == {b"1/a": b"\x01"}


async def test_a_removal_counts_as_it_comes() -> None:
    state = table([])
    state.apply_changelog_batch([Row(b"0/a", b"\x05"), Row(b"0/a", None), Row(b"0/a", b"\x01")])
    assert dict(state.records(0)) == {b"0/a": b"\x01"}
    state.apply_changelog_batch([Row(b"0/a", None)])
    assert dict(state.records(0)) == {}


async def test_writing_past_put_is_refused() -> None:
    state = table([])
    with pytest.raises(ProtocolError):
        state.send_changelog(0, b"0/a", b"\x01")


# going back after a jump


def consumer_of(batches: list[list[int]]) -> Any:
    """Return a consumer whose fetches bring these offsets, one list a call."""

    async def next_records(timeout: float) -> tuple[dict[TP, list[Any]], set[TP]]:
        return {SOURCE: [SimpleNamespace(offset=offset) for offset in batches.pop(0)]}, {SOURCE}

    made: Any = object.__new__(SafeConsumer)
    made._wait_next_records = next_records
    made.scheduler = SimpleNamespace(iterate=lambda records: [(tp, row) for tp, rows in records.items() for row in rows])
    made.app = SimpleNamespace(consumer_generation_id=1, monitor=SimpleNamespace(track_tp_end_offset=lambda *_: None))
    made.flow_active, made._active_partitions, made._buffered_partitions = True, {SOURCE}, set()
    made.highwater, made._to_message = (lambda tp: 0), (lambda tp, row: row)
    made._stopped, made._crashed = asyncio.Event(), asyncio.Event()
    made._batch, made._again, made._first_again = 0, {}, {}
    made._gap, made._read_offset, made._acked = defaultdict(IntervalTree), {}, defaultdict(list)
    made._acked_index, made._committed_offset = defaultdict(set), defaultdict(lambda: None)
    made.sought = []

    async def seek(tp: TP, offset: int) -> None:
        made.sought.append(offset)
        made._read_offset[tp] = offset

    made.seek = seek
    return made


async def fetched(consumer: Any) -> list[int]:
    return [message.offset async for _, message in consumer.getmany(1.0)]


async def test_what_was_fetched_before_the_seek_is_passed_over() -> None:
    consumer = consumer_of([[1011, 1012, 1013], [994, 995, 996]])
    seen: list[int] = []
    async for tp, message in consumer.getmany(1.0):
        seen.append(message.offset)
        if message.offset == 1011:
            await consumer.read_again(tp, 994)
        consumer._read_offset[tp] = message.offset  # what Faust does after each delivery
    assert seen == [1011]
    assert await fetched(consumer) == [994, 995, 996]
    assert consumer._read_offset[SOURCE] == 994  # else Faust would drop what it reads again
    assert not consumer.is_absent(SOURCE, 994, 1012)


async def test_an_offset_that_the_log_does_not_hold_is_told_from_one_that_was_skipped() -> None:
    consumer = consumer_of([[1011], [1011, 1012]])
    assert await fetched(consumer) == [1011]
    await consumer.read_again(SOURCE, 994)
    assert not consumer.is_absent(SOURCE, 994, 1011)
    assert await fetched(consumer) == [1011, 1012]
    assert consumer.is_absent(SOURCE, 994, 1011)


async def test_trap_39_what_is_fetched_across_a_seek_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    sought: list[tuple[TP, int]] = []
    gone = TP("events", 9)
    consumer: Any = SimpleNamespace(
        seek=lambda tp, offset: sought.append((tp, offset)), _subscription=SimpleNamespace(is_assigned=lambda tp: tp != gone)
    )
    thread: Any = object.__new__(SafeConsumerThread)
    meanwhile: list[bool] = [False, True]

    async def fetch(self: Any, consumer: Any, active: set[TP], timeout: float) -> dict[TP, list[Any]]:
        if meanwhile.pop(0):
            await thread.seek_here(SOURCE, 5)
        return {tp: [SimpleNamespace(offset=5), SimpleNamespace(offset=6)] for tp in active}

    monkeypatch.setattr(driver.AIOKafkaConsumerThread, "_fetch_records", fetch)
    thread._ensure_consumer = lambda: consumer
    assert [row.offset for row in (await thread._fetch_records(consumer, {SOURCE}, timeout=1.0))[SOURCE]] == [5, 6]
    assert sought == []
    assert await thread._fetch_records(consumer, {SOURCE, gone}, timeout=1.0) == {}
    assert sought == [(SOURCE, 5), (SOURCE, 5)]  # the seek, and the first record put back; what is not ours any more is left
    assert await thread._fetch_records(consumer, set(), timeout=1.0) == {}  # stock aiokafka: of nothing, everything


async def test_nothing_is_delivered_while_a_partition_is_paused_or_the_generation_changes() -> None:
    consumer = consumer_of([[1, 2], [3, 4], [5, 6]])
    consumer._active_partitions = set()
    assert await fetched(consumer) == []
    consumer._active_partitions = {SOURCE}
    seen = []
    async for _, message in consumer.getmany(1.0):
        seen.append(message.offset)
        consumer.app.consumer_generation_id += 1
    assert seen == [3]
    consumer.flow_active = False
    assert await fetched(consumer) == []


async def test_a_recovery_that_waits_too_long_is_an_error_and_not_the_end_of_all_recoveries() -> None:
    recovery: Any = object.__new__(SafeRecovery)
    recovery._signal_recovery_start = None

    async def in_vain(*awaited: Any, timeout: float) -> Any:
        for one in awaited:
            if asyncio.iscoroutine(one):
                one.close()
        return WaitResults([], [], True)  # what mode says of a time-out, and of a stop

    recovery.wait_first = in_vain
    recovery._stopped, recovery._crashed = asyncio.Event(), asyncio.Event()
    with pytest.raises(TimeoutError):
        await recovery._wait(asyncio.sleep(1), timeout=0.01)
    recovery._stopped.set()
    with pytest.raises(ServiceStopped):
        await recovery._wait(asyncio.sleep(1), timeout=0.01)


async def test_trap_39_after_going_back_no_commit_passes_the_jump() -> None:
    """Faust enters a jump as a compaction gap and then commits over it (#606)."""

    def commits(consumer: Any) -> list[tuple[int, int]]:
        """Return (last acknowledged, committed) of each commit: one after every acknowledgement, then two more."""
        found: list[tuple[int, int]] = []
        for offset in (*range(994, 1000), 999, 999):
            if not found or found[-1][0] < offset:
                consumer._acked[SOURCE].append(offset)
                consumer._acked_index[SOURCE].add(offset)
            position = driver.Consumer._new_offset(consumer, SOURCE)
            if position is not None:
                consumer._committed_offset[SOURCE] = position
                found.append((offset, position))
        return found

    stock, ours = consumer_of([]), consumer_of([])
    for consumer in (stock, ours):
        consumer._committed_offset[SOURCE] = 993
        await driver.Consumer._add_gap(consumer, SOURCE, 994, 1011)
    await ours.read_again(SOURCE, 994)
    assert any(position > offset + 1 for offset, position in commits(stock))  # why the gap has to be forgotten
    assert commits(ours) == [(offset, offset + 1) for offset in range(994, 1000)]


# ownership


class Tick:
    def __init__(self) -> None:
        self.at = 100.0

    def monotonic(self) -> float:
        return self.at


@pytest.mark.parametrize(
    ("generation", "heard_at", "owns"),
    [(4, 97.0, True), (4, 94.9, False), (faust_safety.NO_GENERATION, 99.9, False), (4, float("-inf"), False)],
)
def test_a_worker_that_the_group_did_not_answer_owns_nothing(generation: int, heard_at: float, owns: bool) -> None:
    app = SimpleNamespace(consumer=SimpleNamespace(_thread=SimpleNamespace(generation=generation, heard_at=heard_at)))
    assert owns_partitions(app, Tick(), seconds=5.0) is owns  # type: ignore[arg-type]


# options


def test_brokers_are_named_one_by_one() -> None:
    urls = broker_urls(Settings(bootstrap_servers="a:9092, b:9093"))
    assert [(url.host, url.port) for url in urls] == [("a", 9092), ("b", 9093)]


def test_plaintext_needs_no_credentials() -> None:
    assert broker_credentials({}) is None


def test_sasl_options_become_fausts() -> None:
    found = broker_credentials(
        {
            "security.protocol": "SASL_SSL",
            "sasl.mechanisms": "SCRAM-SHA-512",
            "sasl.username": "u",
            "sasl.password": "secret",
        }
    )
    assert (found.protocol.value, found.mechanism.value, found.username, found.password) == (
        "SASL_SSL",
        "SCRAM-SHA-512",
        "u",
        "secret",
    )
    assert found.ssl_context.check_hostname
    assert "secret" not in repr(found)


def test_certificate_checks_are_left_out_only_when_asked() -> None:
    found = broker_credentials({"security.protocol": "ssl", "enable.ssl.certificate.verification": "false"})
    assert not found.context.check_hostname


def test_a_mechanism_that_aiokafka_cannot_do_is_refused_by_name() -> None:
    with pytest.raises(StoreRefused, match="OAUTHBEARER"):
        broker_credentials({"security.protocol": "SASL_SSL", "sasl.mechanisms": "OAUTHBEARER"})


def test_the_broker_keeps_a_fetch_for_longer_only_while_nothing_comes() -> None:
    class Fetcher:
        def __init__(self) -> None:
            self._records: dict[str, int] = {}
            self._fetch_max_wait_ms = 0

        def _get_actions_per_node(self, assignment: object) -> object:
            return self._fetch_max_wait_ms

    now = [100.0]
    thread = faust_safety.SafeConsumerThread.__new__(faust_safety.SafeConsumerThread)
    thread.clock = SimpleNamespace(monotonic=lambda: now[0])  # type: ignore[misc]
    fetcher = Fetcher()
    thread._pace(fetcher)
    asked = [fetcher._get_actions_per_node(None)]
    now[0] += faust_safety.STILL_AFTER_SECONDS + 0.1
    asked.append(fetcher._get_actions_per_node(None))
    fetcher._records = {"p0": 1}  # p0 waits here: the next fetch leaves it out
    asked.append(fetcher._get_actions_per_node(None))
    now[0] += 0.1
    asked.append(fetcher._get_actions_per_node(None))
    now[0] += faust_safety.STILL_AFTER_SECONDS  # nobody takes them: their partition is paused
    asked.append(fetcher._get_actions_per_node(None))
    fetcher._records = {}
    asked.append(fetcher._get_actions_per_node(None))
    short, long = faust_safety.FETCH_WAIT_MS, faust_safety.STILL_FETCH_WAIT_MS
    assert asked == [short, long, short, short, long, short]
    now[0] += faust_safety.SETTLED_AFTER_SECONDS
    asked = [fetcher._get_actions_per_node(None)]
    thread.moves += 1  # it is read from elsewhere, which may happen again soon
    asked.append(fetcher._get_actions_per_node(None))
    fetcher._records = {"p0": 2}
    asked.append(fetcher._get_actions_per_node(None))
    assert asked == [faust_safety.SETTLED_FETCH_WAIT_MS, long, short]
