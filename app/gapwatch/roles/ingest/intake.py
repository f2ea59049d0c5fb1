"""From polled messages to events in section builders: one run of messages per raw partition at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog
from confluent_kafka import TIMESTAMP_CREATE_TIME, Message

from gapwatch.core.batches import SectionBuilder
from gapwatch.core.envelopes import Columns, Marker, RawRecord, Refused, Truncate
from gapwatch.errors import RecordError
from gapwatch.kafka.clients import Partition
from gapwatch.model.gap import Finding
from gapwatch.roles.ingest.bindings import Binding, LetterBinding
from gapwatch.roles.ingest.letters import dead_letter
from gapwatch.roles.ingest.outlet import Outlet
from gapwatch.roles.ingest.parts import Owned, Shared

log = structlog.get_logger(__name__)

Read = list[tuple[Binding, Columns]]


class Intake:
    """Reads runs of messages. Nothing here is done per event but by the decoders' loops."""

    def __init__(self, shared: Shared, outlet: Outlet) -> None:
        self._shared = shared
        self._outlet = outlet
        self._partitions = shared.on.settings.topics.partitions

    async def take(self, at: Partition, messages: Sequence[Message]) -> None:
        """Take the next messages of one raw partition; those below its position are repetitions."""
        owned = self._shared.owned.get(at)
        if owned is None:
            return
        position = owned.progress.position
        if (messages[0].offset() or 0) < position:
            messages = [message for message in messages if (message.offset() or 0) >= position]
            if not messages:
                return
        owned.progress.arrived(message.offset() or 0 for message in messages)
        read = [(binding, binding.decoder.decode(messages)) for binding in self._shared.bindings.get(at.topic, ())]
        for binding, columns in read:
            if len(columns):
                self._shared.stir(binding.pipeline.id)
            for _, item in columns.others:
                await self._other(binding, owned, item)
        await self._follow(owned, read, messages[0].offset() or 0)
        for letters in self._shared.letters.get(at.topic, ()):
            self._hear(letters, owned, messages)
        owned.progress.read_to((messages[-1].offset() or 0) + 1)
        kind, time = messages[-1].timestamp()
        if kind == TIMESTAMP_CREATE_TIME:
            owned.progress.created = max(owned.progress.created, time)

    def _hear(self, binding: LetterBinding, owned: Owned, messages: Sequence[Message]) -> None:
        """Take what the sink says. What nobody can read of it is no hole: the write itself is in the source's topic."""
        for message in messages:
            record = RawRecord.of(message)
            try:
                owned.letters += binding.decoder.decode(record)
            except RecordError as error:
                self._shared.on.on_unparsable(error.reason)
                where = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
                log.warning("letter_unparsable", pipeline=binding.pipeline.id, reason=error.reason, **where)

    async def _follow(self, owned: Owned, read: Read, offset: int) -> None:
        """Hand all events from `offset` on to the builders, beginning a new epoch wherever the history is broken."""
        batches = [columns for _, columns in read]
        while (broken := owned.progress.follow(batches, offset)) is not None:
            self._collect(owned, read, offset, broken)
            owned.progress.read_to(broken)
            await self._jump(read[0][0], owned, broken)
            offset = broken
        self._collect(owned, read, offset, None)

    def _collect(self, owned: Owned, read: Read, offset_from: int, offset_to: int | None) -> None:
        for binding, columns in read:
            start, end = columns.place(offset_from), len(columns) if offset_to is None else columns.place(offset_to)
            for partition, part in enumerate(columns.dealt(self._partitions, start, end)):
                if part is not None:
                    self._builder(binding, owned, partition).take(part)

    def _builder(self, binding: Binding, owned: Owned, partition: int) -> SectionBuilder:
        name = (binding.pipeline.id, int(binding.side), partition)
        builder = owned.builders.get(name)
        if builder is None:
            builder = owned.builders[name] = SectionBuilder(
                pipeline=binding.pipeline.id,
                side=binding.side,
                feed=owned.progress.topic,
                feed_partition=owned.progress.partition,
                epoch=owned.progress.epoch,
                mapping=binding.fingerprint,
                shape=binding.decoder.shape,
            )
        return builder

    async def _jump(self, binding: Binding, owned: Owned, offset: int) -> None:
        """The order of the feed is broken: finish the old epoch up to here and begin a new one."""
        await self._outlet.send_sections([owned])
        progress = owned.progress
        where = f"{progress.topic}[{progress.partition}]"
        ledger = self._shared.on.ledger
        epoch = await asyncio.to_thread(
            ledger.epoch, progress.topic, progress.partition, owned.topic_id, offset, after=progress.epoch
        )
        if epoch <= progress.epoch:  # read once more, from before a break that is known: all of it is repetition
            progress.highest = (-1, -1)
            return
        progress.begin_epoch(epoch, offset)
        owned.builders.clear()
        owned.ahead.clear()
        await self._shared.find(binding, Finding.SLOT_JUMPED, f"{where} went back at offset {offset}")

    async def _other(self, binding: Binding, owned: Owned, item: Marker | Truncate | Refused) -> None:
        if isinstance(item, Refused):
            await self._bury(binding, item)
            offset, time = item.record.offset, item.record.timestamp
            owned.progress.lose(offset, offset + 1, "unparsable", time_from=time, time_to=time)
        elif isinstance(item, Marker):
            owned.progress.marked(item.watermark)
        else:
            await self._shared.find(binding, Finding.TRUNCATED, "the source table was truncated", at_ms=item.event_time)

    async def _bury(self, binding: Binding, refused: Refused) -> None:
        record, error = refused
        key, value, headers = dead_letter(record, error, binding.pipeline.id)
        await self._outlet.send_dead_letter(key, value, headers)
        self._shared.on.on_unparsable(error.reason)
        log.warning(
            "record_unparsable", topic=record.topic, partition=record.partition, offset=record.offset, reason=error.reason
        )
