"""The ways in which a pipeline delivers rows again: its source's events once more, or a snapshot of its connector."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from confluent_kafka import Message

from gapwatch.core.digests import identity
from gapwatch.core.envelopes import REPUBLISHED, Event, LoopDecoder, RawRecord
from gapwatch.errors import RecordError, StoreUnreachable
from gapwatch.kafka.clients import AckedProducer, Partition, RawConsumer
from gapwatch.model.gap import Gap
from gapwatch.model.stream import Operation
from gapwatch.ports import Clock, Key, StoredRecord

READ_SECONDS: Final = 10.0
NO_EVENT: Final = "No event of the source is known for it: a sweep found it. Use another mode."
GONE: Final = "The source's event is not in its topic any more. Use another mode."
NOT_THE_ROW: Final = (
    "The event that is known is not the row as it is now: a newer one is under way, or was lost. Use another mode."
)
NO_DELETES: Final = "The row is gone, and a snapshot delivers rows only. Use another mode."


@dataclass(frozen=True, slots=True, kw_only=True)
class ResendRequest:
    """A key that the pipeline shall deliver again: its open gap, and the source's row as read a moment ago (None: gone).

    ``identity``: that row's canonical form, as an event that carries the whole row has it.
    """

    key: Key
    gap: Gap | None
    row: StoredRecord | None
    identity: bytes


class Resender(Protocol):
    """Has a pipeline deliver rows again by its own means; writes to no store."""

    async def ask(self, requests: Sequence[ResendRequest], *, run_id: str) -> Sequence[str]:
        """Return, per request, why it cannot be delivered again; "" where it was asked for.

        Raises:
            StoreError: Nobody could be asked: what the mode needs is missing, or does not answer.
        """

    async def close(self) -> None: ...


class Republisher:
    """Implements :class:`Resender`: sends the source's own event again, to its topic and partition, marked.

    Only an event that says just what the row says now: an older one would take the target back.
    """

    def __init__(
        self,
        decoders: Mapping[str, LoopDecoder],
        consumer: RawConsumer,
        producer: AckedProducer,
        readable: Callable[[Message], Any],
        clock: Clock,
    ) -> None:
        """``decoders``: by topic. ``readable``: translates a message for its decoder, may raise StoreError."""
        self._decoders = decoders
        self._consumer = consumer
        self._producer = producer
        self._readable = readable
        self._clock = clock

    async def ask(self, requests: Sequence[ResendRequest], *, run_id: str) -> Sequence[str]:
        await self._producer.start()
        refusals, futures = [], []
        for request in requests:
            message, refusal = await self._event(request)
            refusals.append(refusal)
            if message is not None:
                headers = [*((name, value or b"") for name, value in message.headers() or ()), (REPUBLISHED, run_id.encode())]
                where: dict[str, Any] = {"partition": message.partition(), "headers": headers}
                futures.append(await self._producer.send(message.topic() or "", message.key(), message.value(), **where))
        await asyncio.gather(*futures)
        return refusals

    async def close(self) -> None:
        await self._producer.close()
        await self._consumer.close()

    async def _event(self, request: ResendRequest) -> tuple[Message | None, str]:
        """Return the event to send again, as it was received; or why there is none."""
        found = _newest(request.gap)
        if found is None or found[0].topic not in self._decoders:
            return None, NO_EVENT
        at, offset = found
        first, end = await self._consumer.log_range(at)
        message = await self._read(at, offset) if first <= offset < end else None
        if message is None:
            return None, GONE
        try:
            said = self._decoders[at.topic].decode(RawRecord.of(self._readable(message)))
        except RecordError as error:
            return None, f"The source's event cannot be read: {error}"
        event = next((one for one in said if isinstance(one, Event) and one.key == request.key), None)
        if event is None or not _says(event, request):
            return None, NOT_THE_ROW
        return message, ""

    async def _read(self, at: Partition, offset: int) -> Message | None:
        await self._consumer.assign({at: offset})
        until = self._clock.monotonic() + READ_SECONDS
        while self._clock.monotonic() < until:
            polled = await self._consumer.consume(1, seconds=0.5)
            for _, fault in polled.faults:
                if not fault.retriable:
                    raise fault
            for message in polled.messages:
                return message if message.offset() == offset else None  # compacted, or a transaction's marker
        raise StoreUnreachable(f"{at.topic}[{at.partition}] was not read within {READ_SECONDS:g} s.", store="kafka")


def _says(event: Event, request: ResendRequest) -> bool:
    if request.row is None:
        return event.operation == Operation.DELETE
    return event.operation != Operation.DELETE and identity(event.digest, event.masks) == request.identity


def _newest(gap: Gap | None) -> tuple[Partition, int] | None:
    """Return where the newest event of the source lies that the gap's evidence names."""
    rows = [row for row in (gap.evidence if gap else ()) if row.get("side") == "expected" and row.get("topic")]
    return (Partition(rows[-1]["topic"], int(rows[-1]["partition"])), int(rows[-1]["offset"])) if rows else None


Signal = Callable[[Sequence[ResendRequest], str], Awaitable[tuple[str, bytes, bytes]]]


class Signaller:
    """Implements :class:`Resender`: asks a connector for an incremental snapshot of just these rows.

    ``signal``: returns topic, key and value of the signal for requests and a run's id; raises StoreError where there is no way.
    """

    def __init__(self, signal: Signal, producer: AckedProducer) -> None:
        self._signal = signal
        self._producer = producer

    async def ask(self, requests: Sequence[ResendRequest], *, run_id: str) -> Sequence[str]:
        there = [request for request in requests if request.row is not None]
        if there:
            topic, key, value = await self._signal(there, run_id)
            await self._producer.start()
            await (await self._producer.send(topic, key, value, partition=0))
        return ["" if request.row is not None else NO_DELETES for request in requests]

    async def close(self) -> None:
        await self._producer.close()
