"""What the sink itself says of writes that it did not get into the target: its dead-letter topic, its acks of refused items.

A dead letter is the source's record as the sink read it. Where it came from stand Connect's headers ``__connect.errors.topic``,
``.partition`` and ``.offset``, if the sink writes them (``errors.deadletterqueue.context.headers.enable``); without them, only a
record that holds its own position, as Debezium's do, says which write it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from gapwatch.core.envelopes.columns import LATEST, fits, out_of_range
from gapwatch.core.envelopes.records import UNFORESEEN, Decoder, Event, RawRecord, refusal
from gapwatch.core.envelopes.search import object_of, whole
from gapwatch.core.mapping import CompiledMapping
from gapwatch.errors import RecordError
from gapwatch.model.stream import Letter, Operation, Side

TOPIC: Final = "__connect.errors.topic"
PARTITION: Final = "__connect.errors.partition"
OFFSET: Final = "__connect.errors.offset"
STAGE: Final = "__connect.errors.stage"
EXCEPTION: Final = "__connect.errors.exception.class.name"
REASON_CHARACTERS_MAX: Final = 200
DIGITS_MAX: Final = 19  # fewer are a number of 64 bits


class LetterDecoder(Protocol):
    """Turns raw records into letters of one pipeline. Built once; one owner."""

    def decode(self, record: RawRecord) -> Sequence[Letter]:
        """Return what the record says; empty where it says nothing of this pipeline.

        Raises:
            RecordError: It is a letter, and nobody can say of which write.
        """


class DeadLetterDecoder:
    """Reads ``target.dead_letter_topic`` with the decoders of the source's feeds.

    Args:
        pipeline: Its id.
        sources: By topic, the decoder of each of the source's feeds; none of them is used for anything else.
        by_offset: Topics whose records hold no position of their own.
    """

    def __init__(self, pipeline: str, sources: Mapping[str, Decoder], *, by_offset: frozenset[str] = frozenset()) -> None:
        self._pipeline = pipeline
        self._sources = sources
        self._by_offset = by_offset

    def decode(self, record: RawRecord) -> Sequence[Letter]:
        headers = dict(record.headers)
        source = self._origin(record, headers)
        decoder = self._sources.get(source.topic)
        if decoder is None:
            return ()  # of another topic, which the same sink reads
        return [
            Letter(
                pipeline=self._pipeline,
                key=event.key,
                operation=Operation.DEAD_LETTERED,
                feed=record.topic,
                partition=record.partition,
                offset=record.offset,
                major=event.major,
                minor=event.minor,
                time=event.event_time,
                reason=_reason(headers),
            )
            for event in _events(decoder, source)
        ]

    def _origin(self, record: RawRecord, headers: Mapping[str, bytes]) -> RawRecord:
        """Return the record as it lay in the source's topic."""
        topic = headers.get(TOPIC, b"").decode("utf-8", "replace")
        partition, offset = headers.get(PARTITION, b""), headers.get(OFFSET, b"")
        if topic and _is_place(partition) and _is_place(offset):
            return record._replace(topic=topic, partition=int(partition), offset=int(offset))
        if topic and topic not in self._sources:
            return record._replace(topic=topic)
        topics = [topic] if topic else list(self._sources)
        if len(topics) > 1 or topics[0] in self._by_offset:
            raise RecordError("origin_unknown", f"A dead letter does not say where it came from ({TOPIC} and its like).")
        return record._replace(topic=topics[0])


class RejectedDecoder:
    """Reads an indexer's acks for the items that the target refused; what is wrong with other acks, their own decoder says."""

    def __init__(self, mapping: CompiledMapping) -> None:
        self._pipeline = mapping.pipeline.id
        self._codec = mapping.side(Side.OBSERVED).codec

    def decode(self, record: RawRecord) -> Sequence[Letter]:
        if not record.value or b"rejected" not in record.value:
            return ()
        ack = object_of(record.value)
        identifier = ack.get("id")
        if ack.get("op") != "rejected" or not isinstance(identifier, str):
            return ()
        time = whole(ack, "time")
        if time > LATEST:
            raise out_of_range()
        said = [str(ack[name]) for name in ("status", "error") if ack.get(name) is not None]
        letter = Letter(
            pipeline=self._pipeline,
            key=self._codec.extract({"_id": identifier}),
            operation=Operation.REJECTED,
            feed=record.topic,
            partition=record.partition,
            offset=record.offset,
            major=0,
            minor=0,
            time=time,
            reason=" ".join(said)[:REASON_CHARACTERS_MAX],
        )
        return (letter,)


def _is_place(digits: bytes) -> bool:
    return digits.isdigit() and len(digits) < DIGITS_MAX


def _events(decoder: Decoder, record: RawRecord) -> Sequence[Event]:
    try:
        said = decoder.decode(record)
    except UNFORESEEN as error:
        raise refusal(error) from error
    if not all(map(fits, said)):
        raise out_of_range()
    return [event for event in said if isinstance(event, Event)]


def _reason(headers: Mapping[str, bytes]) -> str:
    """Return the stage and the class of the error; its message may hold values of the row."""
    said = [headers[name].decode("utf-8", "replace") for name in (STAGE, EXCEPTION) if headers.get(name)]
    return " ".join(said)[:REASON_CHARACTERS_MAX]
