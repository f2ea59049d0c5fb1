"""The dead-letter topic of the observed pipeline's own sink: raw source records that it gave up, with Connect's headers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gapwatch.core.envelopes.records import Decoder, Event, Marker, RawRecord, Truncate
from gapwatch.model.stream import Operation

TOPIC: Final = "__connect.errors.topic"
PARTITION: Final = "__connect.errors.partition"
OFFSET: Final = "__connect.errors.offset"


class DeadLetterDecoder:
    """Reads what the sink read, by the source feed's decoder; each key becomes DEAD_LETTERED at the position of its write."""

    def __init__(self, source: Decoder) -> None:
        self._source = source

    def decode(self, record: RawRecord) -> Sequence[Event | Truncate | Marker]:
        events = self._source.decode(original(record))
        return [
            event._replace(operation=Operation.DEAD_LETTERED, digest=b"", masks=None, values=None, version=None)
            for event in events
            if isinstance(event, Event)
        ]


def original(record: RawRecord) -> RawRecord:
    """Return the record under its original topic, partition and offset, where the headers name them."""
    headers = dict(record.headers)
    topic = headers.get(TOPIC, b"").decode("utf-8", "replace") or record.topic
    partition, offset = headers.get(PARTITION, b""), headers.get(OFFSET, b"")
    return record._replace(
        topic=topic,
        partition=int(partition) if partition.isdigit() else record.partition,
        offset=int(offset) if offset.isdigit() else record.offset,
    )
