"""One life of a match worker: a Faust app, the state of the partitions it owns, and the checkpoint once a second.

The worker decides nothing about keys: ``core/matching`` does. It guarantees what that needs: every record once, in order, from
the offset after the restored state; nothing acknowledged before what follows from it is durable. Whatever goes wrong ends the
worker; its successor, here or elsewhere, starts from the last commit marker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, Final

import structlog

from gapwatch.core.batches import read
from gapwatch.core.compiledrows import RowsModule
from gapwatch.errors import FeedError, ProtocolError, RecordError
from gapwatch.kafka.clients import AckedProducer, Delivered, Partition
from gapwatch.kafka.faust_parts import TP
from gapwatch.kafka.faust_safety import owns_partitions, stopped_within
from gapwatch.kafka.offsets import OffsetReader
from gapwatch.kafka.topics import TopicAdmin, state_topic
from gapwatch.model.pipeline import Settings
from gapwatch.model.stream import Control, PackedBatch
from gapwatch.ports import Clock
from gapwatch.roles.match.checkpointer import Checkpointer
from gapwatch.roles.match.held import Held, Restorer
from gapwatch.roles.match.outlet import Outlet
from gapwatch.roles.match.settings import MatchTuning, build_app

log = structlog.get_logger(__name__)

EAGER_SECONDS: Final = 0.1
EAGER_TICKS: Final = 10  # with partitions in hand, before the checkpoints come at their own pace
SPEAK_SECONDS: Final = 0.05  # what one control record makes due comes partition by partition
SAID_PER_STALL: Final = 8  # status records within the shortest ``stall_after``, where nothing comes: a slow one is no silence
POSTPONED_SECONDS: Final = 0.2  # before a checkpoint that had to wait is tried again while the agent is held up


def still_seconds(stalls: Iterable[float]) -> float:
    """Return how long a status serves while nothing comes, by what each pipeline takes for silence."""
    return min(stalls, default=0.0) / SAID_PER_STALL


class MatchWorker:
    """``torn``: partitions whose state was found torn before; found so again, it counts as lost.

    ``give_up`` ends the process: called from another thread where stopping holds up the event loop.
    """

    def __init__(
        self,
        settings: Settings,
        fingerprints: Mapping[str, int],
        clock: Clock,
        *,
        tuning: MatchTuning,
        name: str,
        torn: set[int],
        give_up: Callable[[], None],
        native: RowsModule | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._tuning = tuning
        self._name = name
        self._give_up = give_up
        self._events = settings.topics.events
        self._producer = AckedProducer(settings, client_id=name, delivery_seconds=tuning.session_seconds / 2)
        self._offsets = OffsetReader(settings, clock)
        self._app, self._table = build_app(settings, tuning, clock, self._send_state)
        self._held: dict[int, Held] = {}
        self._restorer = Restorer(settings, fingerprints, self._table, self._offsets, torn=torn, native=native)
        outlet = Outlet(self._producer, settings.topics)
        self._checkpointer = Checkpointer(
            self._held, self._table, outlet, clock, worker=name, topic_id=lambda: self._restorer.topic_id, owns=self._owns
        )
        self._still_seconds = still_seconds(spec.stall_after_seconds for spec in settings.pipelines.values())
        self._failure: asyncio.Future[BaseException]
        self._spoken = asyncio.Event()
        self.hung = False
        self._wire()

    async def run(self, stop: asyncio.Event) -> None:
        """Match until ``stop`` is set, then drain; raise what went wrong."""
        self._failure = asyncio.get_running_loop().create_future()
        await self._producer.start()
        tasks: list[asyncio.Task[Any]] = []
        try:
            await self._restorer.identify(TopicAdmin(self._settings))
            self._app.finalize()
            lives = (self._app.start(), self._crash(), self._tick(), self._speak(), self._probe())
            tasks = [asyncio.create_task(self._guard(life)) for life in lives]
            stopping = asyncio.create_task(stop.wait())
            tasks.append(stopping)
            ends: set[asyncio.Future[Any]] = {stopping, self._failure}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if self._failure.done():
                raise self._failure.result()
            await self._drain()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.hung = not await stopped_within(self._app, self._tuning.stop_seconds, self._give_up)
            await self._producer.close()

    @property
    def partitions(self) -> tuple[int, ...]:
        """The partitions whose state this worker holds now."""
        return tuple(sorted(self._held))

    def _wire(self) -> None:
        app = self._app
        app.positions = self._positions
        self._table.on_recover(self._load)
        app.on_partitions_revoked.connect(self._revoked, weak=False)
        topic = app.topic(self._events, key_type=bytes, value_type=bytes)
        app.agent(topic, name="match")(self._match)

    # records

    async def _match(self, stream: Any) -> None:
        try:
            async for event in stream.noack().events():
                await self._take(event)
        except Exception as error:
            self._fail(error)
            raise

    async def _take(self, event: Any) -> None:
        message = event.message
        partition, offset = message.partition, message.offset
        held = self._held.get(partition)
        if held is None:  # revoked, or not loaded yet: whoever loads it reads this record again
            return
        if offset <= held.applied:
            event.ack()
            return
        if offset != held.expected and not await self._admit(held, TP(self._events, partition), offset):
            return
        held.apply(self._record(message), offset, round(message.timestamp * 1000), event)
        message.value = event.value = None  # it waits here for its checkpoint's acknowledgement, and thousands with it
        if held.said:
            self._spoken.set()
        if held.crowded(self._tuning.unacknowledged_records_max, self._tuning.suspects_max):
            await self._make_room(held)

    def _record(self, message: Any) -> PackedBatch | Control | None:
        """Return the record; None where it cannot be read, which the matcher turns into a hole."""
        try:
            return read(message.value or b"")
        except RecordError as error:
            if error.reason == "unknown_format":
                raise ProtocolError(str(error), remedy="Upgrade this worker to the version of the ingesters.") from error
            log.error("events_record_unreadable", partition=message.partition, offset=message.offset, reason=str(error))
            return None

    async def _admit(self, held: Held, tp: TP, offset: int) -> bool:
        """Say whether a record beyond the expected one may be applied; if not, see to it that the expected one comes."""
        if held.expected == held.again:
            consumer = self._app.consumer
            if not consumer.is_absent(tp, held.expected, offset):
                return False  # queued before we went back
            log.error("events_offsets_absent", partition=tp.partition, first=held.expected, last=offset - 1)
            return True
        start = (await self._offsets.log_starts([Partition(*tp)]))[Partition(*tp)]
        if self._held.get(tp.partition) is not held:
            return False
        if start > held.expected:
            log.error("events_log_truncated", partition=tp.partition, applied=held.applied, start=start)
            held.expected = start
        if offset == held.expected:
            return True
        log.warning("match_jump_healed", partition=tp.partition, expected=held.expected, found=offset)
        held.again = held.expected
        held.again_since = self._clock.monotonic()
        await self._app.consumer.read_again(tp, held.expected)
        return False

    async def _make_room(self, held: Held) -> None:
        while self._held.get(held.partition) is held and not await self._checkpointer.run(everything=True):
            await self._clock.sleep(POSTPONED_SECONDS)

    # partitions come and go

    async def _load(self) -> None:
        try:
            mine = {tp.partition for tp in self._app.consumer.assignment() if tp.topic == self._events}
            self._held.clear()
            held = await self._restorer.restore(mine)
            self._table.forget()
            self._held.update(held)
            log.info("match_partitions_taken", worker=self._name, partitions={n: one.applied for n, one in sorted(held.items())})
        except Exception as error:
            self._fail(error)
            raise

    async def _revoked(self, app: Any, partitions: set[TP], **kwargs: Any) -> None:
        if self._held:
            try:
                async with asyncio.timeout(self._tuning.final_checkpoint_seconds):
                    if await self._checkpointer.run(everything=True):
                        await app.consumer.commit()
                log.info("match_partitions_left", worker=self._name, partitions=sorted(self._held))
            except Exception as error:  # noqa: BLE001 - what was not made durable is read again by the next owner
                log.warning("match_final_checkpoint_failed", worker=self._name, reason=repr(error))
        self._held.clear()

    def _positions(self) -> Mapping[TP, int]:
        return {TP(self._events, number): held.expected for number, held in self._held.items()}

    def _owns(self) -> bool:
        return owns_partitions(self._app, self._clock, seconds=self._tuning.session_seconds / 2)

    async def _send_state(self, partition: int, key: bytes, value: bytes | None) -> asyncio.Future[Delivered]:
        return await self._producer.send(state_topic(self._settings), key, value, partition=partition)

    # what runs beside

    async def _tick(self) -> None:
        pause, eager, checkpointed = EAGER_SECONDS, EAGER_TICKS, float("-inf")
        while True:
            await self._clock.sleep(pause)
            if not self._held or self._app.rebalancing:
                continue
            if self._still() and self._clock.monotonic() - checkpointed < self._still_seconds:
                continue  # it would say the same once more
            if eager:  # what a new owner has applied first is shown at once
                eager = 0 if any(one.events for one in self._held.values()) else eager - 1
                if eager:
                    continue
                pause = self._tuning.checkpoint_seconds
            checkpointed = self._clock.monotonic()
            await self._checkpointer.run()

    def _still(self) -> bool:
        """Whether nothing was applied since the last status."""
        return not any(held.applied != held.shown or held.said for held in self._held.values())

    async def _speak(self) -> None:
        """Raise suspects as they come, a few at a time: whoever waits for a gap should not wait for a checkpoint."""
        while True:
            await self._spoken.wait()
            await self._clock.sleep(SPEAK_SECONDS)
            self._spoken.clear()
            if self._held and not self._app.rebalancing:
                await self._checkpointer.say()

    async def _probe(self) -> None:
        """End a worker that hangs: known of Faust after broker outages and in recovery, without any error of its own."""
        ready_at = self._clock.monotonic()
        while True:
            await self._clock.sleep(self._tuning.probe_seconds)
            now = self._clock.monotonic()
            if self._app.tables.actives_ready and not self._app.rebalancing:
                ready_at = now
            elif now - ready_at > self._tuning.recovery_seconds:
                raise FeedError(f"Match did not get ready within {self._tuning.recovery_seconds:g} s.")
            await self._probe_progress(now)

    async def _probe_progress(self, now: float) -> None:
        before = {number: held.applied for number, held in self._held.items()}
        ends = (await self._offsets.log_ends([Partition(self._events, number) for number in before])).ends
        for number, applied in before.items():
            held = self._held.get(number)
            if held is None:
                continue
            if held.again is not None and held.again > held.applied and now - held.again_since > self._tuning.stalled_seconds:
                raise FeedError(f"Match waits in vain for offset {held.again} of {self._events}[{number}].")
            if ends[Partition(self._events, number)] <= applied + 1 or held.applied != held.probed:
                held.probed, held.probed_at = held.applied, now
            elif now - held.probed_at > self._tuning.stalled_seconds:
                raise FeedError(f"Match applied nothing of {self._events}[{number}] for {self._tuning.stalled_seconds:g} s.")

    async def _crash(self) -> None:
        await self._app._crashed.wait()
        raise self._app.crash_reason or FeedError("Faust crashed without saying why.")

    async def _guard(self, life: Coroutine[Any, Any, Any]) -> None:
        try:
            await life
        except Exception as error:  # noqa: BLE001 - run() raises it
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if not self._failure.done():
            self._failure.set_result(error)

    async def _drain(self) -> None:
        log.info("match_draining", worker=self._name, partitions=sorted(self._held))
        if self._held and await self._checkpointer.run(everything=True):
            await self._app.consumer.commit()
