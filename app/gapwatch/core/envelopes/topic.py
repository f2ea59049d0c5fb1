"""A plain topic of JSON documents, without any envelope: the value is the newest state, an empty value is a delete.

Nothing in such a record orders writes or dates them: the raw offset is the position and the append time the event time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gapwatch.core.canonical import parse_json
from gapwatch.core.envelopes.columns import Shape
from gapwatch.core.envelopes.compiled.loop import Loop
from gapwatch.core.envelopes.documents import DocumentEvents
from gapwatch.core.envelopes.records import Event, Marker, RawRecord, Truncate
from gapwatch.core.mapping import CompiledMapping
from gapwatch.errors import RecordError
from gapwatch.model.stream import Operation, Side


class TopicDecoder:
    """Decodes a topic of documents (``feed: { topic: …, format: json }``); the record key names the key columns as JSON."""

    def __init__(self, mapping: CompiledMapping, side: Side) -> None:
        self._events = DocumentEvents(mapping, side)
        self._columns = self._events.side.codec.columns

    @property
    def shape(self) -> Shape:
        return self._events.shape

    def loop(self, record: RawRecord) -> Loop | None:
        """Plain topics have no compiled loop."""
        return None

    def looped(self) -> None:
        """Nothing to remember."""

    def decode(self, record: RawRecord) -> Sequence[Event | Truncate | Marker]:
        document = None if not record.value else _json(record.value)
        if document is not None and not isinstance(document, Mapping):
            raise RecordError("unparsable_document", "The record's value is no JSON object.")
        operation = Operation.DELETE if document is None else Operation.UPSERT
        event = self._events.event(
            operation,
            self._identifier(record.key) if record.key else {},
            document,
            major=record.offset,
            minor=0,
            event_time=record.timestamp,
        )
        return (event,)

    def _identifier(self, key: bytes) -> Mapping[str, Any]:
        try:
            value = parse_json(key)
        except ValueError:
            value = key.decode("utf-8", "replace")  # a text key, written without quotes
        if isinstance(value, Mapping):
            return value
        return {self._columns[0].path: value} if len(self._columns) == 1 else {}


def _json(value: bytes) -> Any:
    try:
        return parse_json(value)
    except ValueError as error:
        raise RecordError("unparsable_json", f"The record's value is not JSON: {error}.") from error
