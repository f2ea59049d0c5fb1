"""What is sent: sections, control records and dead letters; and what their acknowledgements let us commit.

The order, for every raw partition:

1. sections with a range's events are sent to the partitions of ``gapwatch.events`` that the keys live in;
2. a control record that ends at the same offset is sent to *every* partition, and begins where what was sent to it before ended;
3. when all of these are acknowledged, the raw offset is committed, with the highest position beside it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import structlog
from msgspec.structs import replace

from gapwatch.core.batches import emptied, letter_batches, pack, packed_batches, unpack
from gapwatch.core.compiledcolumns import CompiledSection
from gapwatch.core.envelopes import RawRecord
from gapwatch.core.feeds import FeedProgress, Metadata
from gapwatch.core.keys import partition_of
from gapwatch.errors import RecordError
from gapwatch.kafka.clients import Committed, Partition
from gapwatch.kafka.topics import RECORD_BYTES_MAX
from gapwatch.model.stream import (
    BYTES_PER_RECORD_MAX,
    FORMAT,
    NO_DELIVERY,
    NO_TOPIC,
    UNKNOWN_DELIVERY,
    Batch,
    Control,
    FeedState,
    Letter,
    PipelineTimes,
    Section,
    Side,
)
from gapwatch.roles.ingest.bindings import Binding
from gapwatch.roles.ingest.letters import dead_letter
from gapwatch.roles.ingest.parts import Owned, Shared

log = structlog.get_logger(__name__)

PULSES_IN_FLIGHT_MAX: Final = 20
SENT_BYTES_MAX: Final = RECORD_BYTES_MAX - 4 * 1024  # the rest is for Kafka's own frame
OVERSIZED: Final = "oversized"


class Outlet:
    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._on = shared.on
        self._topics = shared.on.settings.topics
        self._committable: dict[Partition, Committed] = {}
        self._pulses: deque[tuple[list[asyncio.Future[Any]], dict[Partition, Committed]]] = deque()
        self._futures: list[asyncio.Future[Any]] = []  # since the last pulse

    async def send_dead_letter(self, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]]) -> None:
        self._futures.append(await self._on.producer.send(self._topics.dead_letters, key, value, headers=headers))

    async def send_sections(self, owned: Collection[Owned]) -> None:
        """Send the collected events of these partitions; every range begins where the one before ended."""
        by_partition: dict[int, list[Section | CompiledSection]] = {}
        for item in owned:
            for place, builder in item.builders.items():
                if len(builder):
                    start = item.ahead.get(place, item.progress.sent)
                    by_partition.setdefault(place[2], []).append(builder.close(start, item.progress.position))
                    item.ahead[place] = item.progress.position
        progress = {Partition(item.progress.topic, item.progress.partition): item.progress for item in owned}
        for partition, sections in by_partition.items():
            for record in packed_batches(sections):
                sent = record if len(record) <= BYTES_PER_RECORD_MAX else await self._fitting(record, progress)
                self._futures.append(await self._on.producer.send(self._topics.events, None, sent, partition=partition))
        await self._send_letters(owned)

    async def _fitting(self, record: bytes, progress: Mapping[Partition, FeedProgress]) -> bytes:
        """Return a record that brokers take, of one above our limit: such a one holds what a single raw record says.

        Where it is larger than the topic takes, or a key larger than a suspect can hold, its events are left out, and the raw
        record is declared lost: a hole, which a sweep covers.
        """
        batch = unpack(record)
        assert isinstance(batch, Batch)
        longest = max(len(key) for section in batch.sections for key in section.keys)
        if len(record) <= SENT_BYTES_MAX and longest <= BYTES_PER_RECORD_MAX:
            return record
        error = RecordError(OVERSIZED, f"Its events take {len(record)} bytes, the longest key {longest}.")
        for section in batch.sections:
            at, start, end = Partition(section.feed, section.feed_partition), section.offsets[0], section.offsets[-1] + 1
            times = section.event_times + section.append_times
            progress[at].lose(start, end, OVERSIZED, time_from=min(times), time_to=max(times))
            log.warning("record_too_large", topic=at.topic, partition=at.partition, offset=start, reason=error.message)
            raw = RawRecord(at.topic, at.partition, start, section.append_times[0], None, None, ())
            await self.send_dead_letter(*dead_letter(raw, error, section.pipeline))
            self._on.on_unparsable(OVERSIZED)
        return pack(replace(batch, sections=[emptied(section) for section in batch.sections]))

    async def _send_letters(self, owned: Collection[Owned]) -> None:
        """Send what sinks say to the partitions of its keys. It has no range: repeating it is harmless."""
        by_partition: dict[int, list[Letter]] = {}
        for item in owned:
            for letter in item.letters:
                by_partition.setdefault(partition_of(letter.key, self._topics.partitions), []).append(letter)
            item.letters.clear()
        for partition, letters in by_partition.items():
            for batch in letter_batches(letters):
                self._futures.append(await self._on.producer.send(self._topics.events, None, pack(batch), partition=partition))

    async def pulse(self) -> None:
        """Send a control record to every partition, and remember what its acknowledgement lets us commit."""
        on = self._on
        now = on.clock.now_ms()
        feeds = [state for owned in self._shared.owned.values() for state in self._states(owned)] + self._absent(now)
        grace = {spec.id: self._shared.grace.get(spec.id, int(spec.grace_seconds * 1000)) for spec in on.pipelines.values()}
        times = [PipelineTimes(name, self._shared.skew.get(name, 0), grace[name]) for name in grace]
        control = Control(format=FORMAT, ingester=on.name, clock=now, feeds=feeds, pipelines=times)
        usual = pack(control)
        for partition in range(self._topics.partitions):
            value = self._follows(control, partition) or usual
            self._futures.append(await on.producer.send(self._topics.events, None, value, partition=partition))
        positions = {at: _sent(owned) for at, owned in self._shared.owned.items()}
        self._pulses.append((self._futures, positions))
        self._futures = []
        if len(self._pulses) > PULSES_IN_FLIGHT_MAX:
            await asyncio.gather(*self._pulses[0][0])

    def _follows(self, control: Control, partition: int) -> bytes | None:
        """Return the control record whose ranges begin where this partition's sections ended; None: it had none since the last.

        A section that is lost, with this record already on its way behind it, is missed like that: what lies before `from` is
        waited for, and the next ingester sends it again.
        """
        ahead = {
            (pipeline, side, at.topic, at.partition): end
            for at, owned in self._shared.owned.items()
            for (pipeline, side, number), end in owned.ahead.items()
            if number == partition
        }
        if not ahead:
            return None
        feeds = [
            replace(
                state,
                offset_from=ahead.get((state.pipeline, state.side, state.feed, state.feed_partition), state.offset_from),
            )
            for state in control.feeds
        ]
        return pack(replace(control, feeds=feeds))

    async def commit(self) -> None:
        """Commit what is acknowledged by all; raises the delivery error, where there was one."""
        newest: dict[Partition, Committed] = {}
        while self._pulses and all(future.done() for future in self._pulses[0][0]):
            futures, positions = self._pulses.popleft()
            for future in futures:
                future.result()
            newest.update(positions)
        if self._on.producer.failure is not None:
            raise self._on.producer.failure
        mine = {
            at: position for at, position in newest.items() if at in self._shared.owned and self._committable.get(at) != position
        }
        if mine:
            self._committable.update(mine)
            await self._on.consumer.commit(mine)

    async def finish(self) -> None:
        """Send a last control record and commit what it covers."""
        await self.pulse()
        while self._pulses:
            await asyncio.gather(*self._pulses[-1][0])
            await self.commit()

    def give_up(self, partitions: Collection[Partition]) -> dict[Partition, Committed]:
        """Forget these partitions; return what is acknowledged by all, so that the next owner repeats only the rest."""
        return {at: self._committable.pop(at) for at in partitions if at in self._committable}

    def _states(self, owned: Owned) -> list[FeedState]:
        states = []
        for binding in self._shared.bindings.get(owned.progress.topic, ()):
            position, clock = _delivery(binding, owned)
            states.append(owned.progress.state(binding.pipeline.id, binding.side, delivery=position, delivery_clock=clock))
        return states

    def _absent(self, now: int) -> list[FeedState]:
        """Speak for feeds whose topic does not exist: nothing was written there up to what heartbeat rows prove."""
        shared = self._shared
        states: list[FeedState] = []
        for topic in sorted(shared.missing):
            watermark = shared.missing_proven.get(shared.heartbeat_topics.get(topic, ""), 0)
            states += [_no_topic(binding, watermark, min(now, shared.missing_seen)) for binding in shared.bindings[topic]]
        return states


def _sent(owned: Owned) -> Committed:
    """Note that everything up to the position was sent; return what may be committed once it is acknowledged."""
    progress = owned.progress
    progress.lost.clear()
    progress.sent = progress.position
    owned.ahead.clear()
    major, minor = progress.highest
    metadata = Metadata(topic_id=owned.topic_id, epoch=progress.epoch, major=major, minor=minor, time=progress.highest_time)
    return Committed(progress.position, metadata.encode())


def _delivery(binding: Binding, owned: Owned) -> tuple[int, int]:
    if binding.side is not Side.EXPECTED or not binding.pipeline.delivery.known:
        return NO_DELIVERY, 0
    return owned.delivery.get(binding.pipeline.id, (UNKNOWN_DELIVERY, 0))


def _no_topic(binding: Binding, watermark: int, caught_up: int) -> FeedState:
    return FeedState(
        pipeline=binding.pipeline.id,
        side=int(binding.side),
        feed=binding.topic,
        feed_partition=NO_TOPIC,
        partitions=0,
        epoch=0,
        offset_from=0,
        offset_to=0,
        watermark=watermark,
        caught_up=caught_up,
        delivery=NO_DELIVERY,
        delivery_clock=0,
        lost=[],
    )
