"""What stock Faust 0.15.3 needs around it so that nothing is lost. Pinned: private parts of exactly this version are replaced.

1. `SafeRecovery`: stock recovery resumes the source partitions, seeks, then clears all queues; records that arrived in between
   are dropped (faust-streaming #596). Here: seek while paused, clear, and only then resume. Errors of recovery callbacks, which
   the stock code swallows, are raised. Reading goes on after the restored state, whatever offset the group had committed.
2. `StateTable`: changelog records go through our own idempotent producer, and the writer waits for their acknowledgement; the
   stock `producer.flush()` gives up after 0.1 s and ignores failed deliveries. Of two records for one key the one with the
   higher rank wins at recovery, whatever their order: a thawed worker may have written last. The table itself holds records only
   from recovery until they were taken; so each recovery reads all of the changelog, also of partitions that stayed here.
3. `SafeConsumer.getmany`: a fetch asks for the partitions that were active when it began, and what it brings after a seek is put
   back. The stock code hands the fetch a set that others change under it (empty, it means "everything"), throws away what comes
   while a partition is paused or the flow stands, and nobody asks for that again: a recovery waited for ever for the records of
   its changelog, or a partition stood still until its next record came.
4. `SafeConsumer.read_again`: a jump in offsets is answered by seeking back to the offset after the last one applied. What was
   fetched before the seek is passed over, and the bookkeeping that would commit over the jump (#606) is dropped.
5. `SafeConsumerThread`: fetch wait of 50 ms while records come (1.5 s is hard-coded: idle partitions stall hot ones), of 250 ms
   to a second while none do; and the time of the last answered heartbeat: a worker that was frozen must not write any more.
6. `SafeConsumerThread`: the leader of the group waits for topics that the metadata lack before it assigns. A broker that has just
   come back may not name all of them; stock Faust assigns nothing of those and says so once, and where the metadata are refreshed
   every five minutes, all workers stood there idle and content for as long. And an error of the group ends the worker at once:
   aiokafka keeps it for the next poll, and without partitions there is none.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Final

from yarl import URL

from gapwatch.errors import FeedError, ProtocolError, StoreRefused
from gapwatch.kafka.faults import STORE
from gapwatch.kafka.faust_parts import TP, RebalanceAgain, Recovery, ServiceStopped, TableManager, driver, faust
from gapwatch.model.pipeline import Settings
from gapwatch.ports import Clock

FAUST_VERSION: Final = "0.15.3"
FETCH_WAIT_MS: Final = 50  # a fetch may leave out a partition that has records waiting here, and it is not asked for meanwhile
STILL_FETCH_WAIT_MS: Final = 250  # one that asks for all partitions is answered at once when anything comes
STILL_AFTER_SECONDS: Final = 0.3  # without a record
SETTLED_FETCH_WAIT_MS: Final = 1_000  # such a one, where nothing is about to be read from elsewhere, which would wait for it …
SETTLED_AFTER_SECONDS: Final = 30.0  # … without a seek or an assignment
METADATA_PAUSE_SECONDS: Final = 0.2
STUCK_SECONDS: Final = 2.0
NO_GENERATION: Final = -1
NOTHING_READ: Final = -1


def assert_faust_version() -> None:
    """Raise ProtocolError unless Faust is exactly the version that this module was made for."""
    if faust.__version__ != FAUST_VERSION:
        raise ProtocolError(
            f"faust-streaming is {faust.__version__}, but its safety layer was made for {FAUST_VERSION}.",
            remedy=f"Install faust-streaming=={FAUST_VERSION}.",
        )


class _Lasting(asyncio.Event):
    """An event that only its owner takes back, with :meth:`take_back`."""

    def clear(self) -> None:
        """Do nothing."""

    def take_back(self) -> None:
        super().clear()


class SafeRecovery(Recovery):  # type: ignore[misc]
    """Hands over from recovery to the streams without a moment in which records can be dropped.

    And the end of a recovery is not missed: the stock reader of the changelog says it once and takes it back before its next
    record, and where nobody was waiting yet (few records, a busy machine) the recovery then waited for ever.
    """

    _signal_recovery_end: _Lasting | None

    @property
    def signal_recovery_end(self) -> _Lasting:
        if self._signal_recovery_end is None:
            self._signal_recovery_end = _Lasting()
        return self._signal_recovery_end

    def _set_recovery_started(self) -> None:
        super()._set_recovery_started()
        self.signal_recovery_end.take_back()

    async def _wait(self, coro: Any, timeout: float | None = None) -> None:
        """As the stock one; but a time-out, which ends the recovery service there without a word, is an error here."""
        signal = self.signal_recovery_start
        result = await self.wait_first(coro, signal, timeout=timeout)
        if result.stopped:
            if self.should_stop:
                raise ServiceStopped
            raise TimeoutError(f"Faust's recovery waited {timeout:g} s in vain.")
        if signal in result.done:
            raise RebalanceAgain

    async def on_recovery_completed(self, generation_id: int = 0) -> None:
        app, consumer = self.app, self.app.consumer
        await app.on_rebalance_complete.send()
        self._set_recovery_ended()
        for table in self.tables.values():
            await table.on_recovery_completed(self.actives_for_table[table], self.standbys_for_table[table])
        assignment = consumer.assignment()
        if app.consumer_generation_id != generation_id:
            self.log.warning("rebalanced again during recovery")
            return
        if assignment:
            await self._wait(consumer.perform_seek(), timeout=app.conf.broker_request_timeout)
            positions = {tp: offset for tp, offset in app.restored_positions().items() if tp in assignment}
            elsewhere = {tp: at for tp, at in positions.items() if at and consumer._committed_offset.get(tp) != at}
            for tp, offset in positions.items():
                await read_from(consumer, tp, offset)
            if elsewhere:  # nothing else would commit what an ended worker made durable, where no record follows
                await self._wait(consumer._commit(elsewhere), timeout=app.conf.broker_request_timeout)
        self.completed.set()
        app.flow_control.resume()  # clears the queues: nothing of the source is in them yet
        consumer.resume_partitions({tp for tp in assignment if not self._is_changelog_tp(tp)})
        consumer.resume_flow()
        await app._fetcher.maybe_start()
        self.tables.on_actives_ready()
        if not app.assignor.assigned_standbys():
            self.tables.on_standbys_ready()
        app.on_rebalance_end()
        self.log.info("worker ready")


async def read_from(consumer: Any, tp: TP, offset: int) -> None:
    """Make ``offset`` the next one that is read of ``tp``, and forget acknowledgements that belong to another position."""
    await consumer.seek(tp, offset)
    consumer._committed_offset[tp] = offset or None
    consumer._gap.pop(tp, None)
    consumer._acked.pop(tp, None)
    consumer._acked_index.pop(tp, None)


class SafeTableManager(TableManager):  # type: ignore[misc]
    _recovery: Recovery | None

    @property
    def recovery(self) -> Recovery:
        if self._recovery is None:
            self._recovery = SafeRecovery(self.app, self, beacon=self.beacon, loop=self.loop)
        return self._recovery


SendState = Callable[[int, bytes, bytes | None], Awaitable[Awaitable[object]]]
Rank = Callable[[bytes], int]


class StateTable(faust.Table):  # type: ignore[misc]
    """The way into a changelog of bytes, whose acknowledgement is awaited by `barrier`, and what recovery found in it.

    ``send``: hands one record (partition, key, value; None: remove) to our producer and returns the future of its
    acknowledgement. ``rank``: the order of two values of one key.
    """

    send: SendState
    rank: Rank

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unacknowledged: list[Awaitable[object]] = []

    async def put(self, partition: int, key: bytes, value: bytes | None) -> None:
        """Write one record to the changelog's ``partition``. Durable only after :meth:`barrier`."""
        self._unacknowledged.append(await self.send(partition, key, value))

    async def barrier(self) -> int:
        """Return once every record put so far is acknowledged; raise what kept one from it. Returns how many they were."""
        waiting, self._unacknowledged = self._unacknowledged, []
        for future in waiting:
            await future
        return len(waiting)

    def records(self, partition: int) -> Iterator[tuple[bytes, bytes]]:
        """Yield key and value of everything that recovery found of one partition."""
        places = self.data._key_partition
        return ((key, value) for key, value in list(self.data.data.items()) if places.get(key) == partition)

    def forget(self) -> None:
        """Let go what recovery found: its owner has taken it."""
        self.data.data.clear()
        self.data._key_partition.clear()

    def persisted_offset(self, tp: TP) -> int:
        """Return that nothing is held here, so that the next recovery reads everything."""
        return NOTHING_READ

    def apply_changelog_batch(self, batch: Iterable[Any]) -> None:
        """Apply recovered records: the highest rank of a key stays, a removal counts as it comes."""
        store = self.data
        for event in batch:
            key, value = event.message.key, event.message.value
            if value is None:
                store.data.pop(key, None)
                store._key_partition.pop(key, None)
                continue
            known = store.data.get(key)
            if known is None or self.rank(value) >= self.rank(known):
                store.data[key] = value
                store._key_partition[key] = event.message.partition

    def send_changelog(self, *args: Any, **kwargs: Any) -> Any:
        raise ProtocolError("The state table was written past `put`, so nobody would wait for its changelog.")


class SafeConsumerThread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]
    """Knows when the group last answered us, and returns what was fetched across a seek.

    ``moves``: how often the reading position was set from outside, by a seek or an assignment. Counted in this thread only.
    """

    clock: ClassVar[Clock]
    heard_at: float = float("-inf")
    moves: int = 0

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        return consumer

    async def on_start(self) -> None:
        await super().on_start()
        self._pace(self._consumer._fetcher)
        coordinator = self._consumer._coordinator
        beat = coordinator._do_heartbeat

        async def noted() -> bool:
            asked = self.clock.monotonic()
            answered = bool(await beat())
            if answered:
                self.heard_at = asked
            return answered

        coordinator._do_heartbeat = noted
        assign = coordinator._perform_assignment

        async def of_all_topics(response: Any) -> Any:
            await self._know_all_topics(coordinator)
            return await assign(response)

        coordinator._perform_assignment = of_all_topics
        push = coordinator._push_error_to_user

        def told(error: BaseException) -> Any:
            self.parent_loop.call_soon_threadsafe(self.app._crash, error)
            return push(error)

        coordinator._push_error_to_user = told

    def _pace(self, fetcher: Any) -> None:
        """Let the broker keep a fetch for longer once nothing has come for a moment."""
        actions = fetcher._get_actions_per_node
        moved = placed = self.clock.monotonic()
        known, moves = dict[Any, int](), self.moves

        def paced(assignment: Any) -> Any:
            nonlocal moved, known, placed, moves
            now, waiting = self.clock.monotonic(), {tp: id(found) for tp, found in fetcher._records.items()}
            if waiting != known:  # those of a changelog, which is paused, may wait for ever
                moved, known = now, waiting
            if self.moves != moves:
                placed, moves = now, self.moves
            still = SETTLED_FETCH_WAIT_MS if now - placed > SETTLED_AFTER_SECONDS else STILL_FETCH_WAIT_MS
            fetcher._fetch_max_wait_ms = still if now - moved > STILL_AFTER_SECONDS else FETCH_WAIT_MS
            return actions(assignment)

        fetcher._get_actions_per_node = paced

    async def _know_all_topics(self, coordinator: Any) -> None:
        """Return once the metadata name every topic of ours; FeedError after half of the time that the group waits for us."""
        client, topics = coordinator._client, set(coordinator._subscription.topics)
        until = self.clock.monotonic() + coordinator._session_timeout_ms / 2000
        await client.set_topics(topics)
        while missing := sorted(topic for topic in topics if not client.cluster.partitions_for_topic(topic)):
            if self.clock.monotonic() > until:
                raise FeedError(f"The brokers' metadata do not name {', '.join(missing)}: nothing of that could be assigned.")
            await asyncio.sleep(METADATA_PAUSE_SECONDS)
            await client.force_metadata_update()

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        self.heard_at = self.clock.monotonic()
        self.moves += 1
        await super().on_partitions_assigned(assigned, generation_id)

    async def getmany(self, active_partitions: set[TP] | None, timeout: float) -> Any:
        return await super().getmany(set(active_partitions or ()), timeout)

    async def _fetch_records(self, consumer: Any, active_partitions: set[TP], *args: Any, **kwargs: Any) -> Any:
        if not active_partitions:
            return {}
        before = self.moves
        records = await super()._fetch_records(consumer, active_partitions, *args, **kwargs)
        if self.moves == before:
            return records
        for tp, fetched in records.items():
            if fetched and consumer._subscription.is_assigned(tp):
                consumer.seek(tp, fetched[0].offset)
        return {}

    async def _seek_wait(self, consumer: Any, partitions: Mapping[TP, int]) -> None:
        self.moves += 1
        await super()._seek_wait(consumer, partitions)

    async def seek_here(self, partition: TP, offset: int) -> None:
        """Seek; called in this thread."""
        self.moves += 1
        self._ensure_consumer().seek(partition, offset)

    async def seek_to_committed(self) -> Mapping[TP, int]:
        found: Mapping[TP, int] = await self.call_thread(self._seek_to_committed)
        return found

    async def _seek_to_committed(self) -> Mapping[TP, int]:
        try:
            found: Mapping[TP, int] = await self._ensure_consumer().seek_to_committed()
            return found
        finally:
            self.moves += 1

    @property
    def generation(self) -> int:
        """The group generation that this member belongs to; NO_GENERATION once the group went on without it."""
        return int(self._consumer._coordinator.generation)


class SafeConsumer(driver.Consumer):  # type: ignore[misc]
    """Can go back to an offset without mixing what was fetched before with what is fetched after."""

    Thread: ClassVar[type[SafeConsumerThread]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._batch = 0
        self._again: dict[TP, tuple[int, int]] = {}
        self._first_again: dict[TP, tuple[int, int]] = {}

    def _new_consumer_thread(self) -> SafeConsumerThread:
        return self.Thread(self, loop=self.loop, beacon=self.beacon)

    async def _seek(self, partition: TP, offset: int) -> None:
        """Seek in the consumer's own thread: the stock code does it from this one, in the middle of a fetch (a KeyError)."""
        await self._thread.call_thread(self._thread.seek_here, partition, offset)

    async def read_again(self, tp: TP, offset: int) -> None:
        """Seek back to ``offset``; of ``tp``, the next record that is delivered is that one, or the next that the log holds.

        Records that were queued before are still delivered: they lie above ``offset`` and are to be ignored.
        """
        self._first_again.pop(tp, None)
        self._again[tp] = (offset, self._batch)
        await self.seek(tp, offset)
        if tp in self._again:  # fetches that began while the seek was under way may hold either
            self._again[tp] = (offset, self._batch)
        self._gap.pop(tp, None)

    def is_absent(self, tp: TP, wanted: int, found: int) -> bool:
        """Say whether the log was read from ``wanted`` and ``found`` came first: what lies between does not exist."""
        return self._first_again.get(tp) == (wanted, found)

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Any]]:
        """Fetch and yield ``(partition, message)``; what may not be delivered any more is left to the recovery that follows."""
        self._batch += 1
        batch = self._batch
        records, _ = await self._wait_next_records(timeout)
        generation = self.app.consumer_generation_id
        for tp, record in self.scheduler.iterate(records or {}):
            if self.should_stop or not self.flow_active or self.app.consumer_generation_id != generation:
                return
            if tp not in self._active_partitions and tp not in self._buffered_partitions:
                continue
            self.app.monitor.track_tp_end_offset(tp, self.highwater(tp))
            message = self._to_message(tp, record)
            again = self._again.get(tp)
            if again is not None:
                wanted, since = again
                if message.offset < wanted or (message.offset > wanted and batch <= since):
                    continue
                del self._again[tp]
                self._first_again[tp] = (wanted, message.offset)
                self._read_offset[tp] = wanted
            yield tp, message

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        self._again.clear()
        self._first_again.clear()
        await super().on_partitions_revoked(revoked)


def safe_transport(app: Any, clock: Clock) -> Any:
    """Return a transport for ``app`` with a SafeConsumer that tells the time by ``clock``."""
    thread = type("Thread", (SafeConsumerThread,), {"clock": clock})
    consumer = type("Consumer", (SafeConsumer,), {"Thread": thread})
    transport = type("Transport", (driver.Transport,), {"Consumer": consumer})
    return transport(app.conf.broker_consumer, app)


def owns_partitions(app: Any, clock: Clock, *, seconds: float) -> bool:
    """Say whether the group answered within ``seconds`` and still counts this worker as a member of the current generation.

    While it does, no other worker can have been given its partitions.
    """
    thread: SafeConsumerThread = app.consumer._thread
    return thread.generation != NO_GENERATION and clock.monotonic() - thread.heard_at < seconds


class SafeApp(faust.App):  # type: ignore[misc]
    """A Faust app that reads on after its restored state."""

    positions: Callable[[], Mapping[TP, int]]

    def restored_positions(self) -> Mapping[TP, int]:
        """Return the next offset to read per source partition, where state was restored."""
        return self.positions()

    def _create_directories(self) -> None:
        """Make none: all state lies in Kafka, and the working directory may be read-only."""


def broker_urls(settings: Settings) -> list[URL]:
    return [URL(f"kafka://{server.strip()}") for server in settings.bootstrap_servers.split(",")]


_SASL: Final = {"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"}


def broker_credentials(options: Mapping[str, str]) -> Any:
    """Return Faust's credentials for librdkafka's options; StoreRefused for what aiokafka cannot do."""
    protocol = options.get("security.protocol", "plaintext").upper()
    if protocol == "PLAINTEXT":
        return None
    context = _ssl_context(options) if protocol.endswith("SSL") else None
    if protocol == "SSL":
        return faust.SSLCredentials(context=context)
    mechanism = (options.get("sasl.mechanisms") or options.get("sasl.mechanism") or "PLAIN").upper()
    if not protocol.startswith("SASL") or mechanism not in _SASL:
        raise StoreRefused(
            f"Role match cannot use security.protocol={protocol} with sasl.mechanisms={mechanism}.",
            store=STORE,
            remedy=f"Use one of {', '.join(sorted(_SASL))} over SASL_SSL, or SSL with a client certificate.",
        )
    return faust.SASLCredentials(
        username=options.get("sasl.username"), password=options.get("sasl.password"), ssl_context=context, mechanism=mechanism
    )


def _ssl_context(options: Mapping[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=options.get("ssl.ca.location"))
    if options.get("enable.ssl.certificate.verification", "true").lower() == "false":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif options.get("ssl.endpoint.identification.algorithm", "https").lower() == "none":
        context.check_hostname = False
    certificate = options.get("ssl.certificate.location")
    if certificate:
        context.load_cert_chain(certificate, options.get("ssl.key.location"), options.get("ssl.key.password"))
    return context


async def stopped_within(app: Any, seconds: float, give_up: Callable[[], None]) -> bool:
    """Stop the app; False when it hung (known: unacknowledged messages, a blocked thread): the process must then end.

    Where it holds up this very event loop (Faust waits in it, without any time-out, for a thread that does not end) nothing can
    be returned: ``give_up`` is called from another thread instead, STUCK_SECONDS later.
    """
    stuck = threading.Timer(seconds + STUCK_SECONDS, give_up)
    stuck.daemon = True
    stuck.start()
    try:
        await asyncio.wait_for(app.stop(), seconds)
    except TimeoutError:
        return False
    finally:
        stuck.cancel()
    return True
