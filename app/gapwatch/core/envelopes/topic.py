"""A plain topic of JSON documents, without any envelope: the value is the newest state, an empty value is a delete.

Nothing in such a record orders writes or dates them: the raw offset is the position and the append time the event time.
Producers of one topic may wrap their documents: ``{"transaction": {…}}`` is one, ``{"transactions": [{…}, …]}`` several, where
``FeedSpec.wrappers`` names these members. Of several in one record, the place in the list orders them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

from gapwatch.core.canonical import parse_json
from gapwatch.core.envelopes.columns import Shape
from gapwatch.core.envelopes.compiled.loop import Loop
from gapwatch.core.envelopes.debezium_parts import not_json
from gapwatch.core.envelopes.documents import DocumentEvents
from gapwatch.core.envelopes.records import Event, Marker, RawRecord, Truncate
from gapwatch.core.mapping import CompiledMapping
from gapwatch.errors import ConfigError, ConfigProblem, RecordError
from gapwatch.model.pipeline import KeyType
from gapwatch.model.stream import Operation, Side

DOCUMENTS_PER_RECORD_MAX: Final = 1_000  # one record of gapwatch.events can hold them all: one offset is never cut in two


class TopicDecoder:
    """Decodes a topic of documents (``feed: { topic: …, format: json }``); the record key names the key columns as JSON."""

    def __init__(self, mapping: CompiledMapping, side: Side) -> None:
        self._events = DocumentEvents(mapping, side)
        self._columns = self._events.side.codec.columns
        pipeline = mapping.pipeline
        name, feed = ("source", pipeline.source.feed) if side is Side.EXPECTED else ("target", pipeline.target.feed)
        self._wrappers = frozenset(feed.wrappers)
        if clash := sorted(self._wrappers & self._events.names):
            message = f"{', '.join(clash)} is mapped as well: a record could mean either."
            place = f"pipelines.{pipeline.id}.{name}.feed"
            raise ConfigError([ConfigProblem(place, message, remedy="Name only members that wrap documents.")])

    @property
    def shape(self) -> Shape:
        return self._events.shape

    def loop(self, record: RawRecord) -> Loop | None:
        """Plain topics have no compiled loop."""
        return None

    def looped(self) -> None:
        """Nothing to remember."""

    def decode(self, record: RawRecord) -> Sequence[Event | Truncate | Marker]:
        value = None if not record.value else _payload(_json(record.value))
        inner = self._unwrapped(value)
        if isinstance(inner, list):
            return self._several(record, inner)
        if value is not None and not isinstance(inner, Mapping):
            raise RecordError("unparsable_document", "The record's value is no JSON object.")
        return self._told(record, self._identifier(record.key) if record.key else {}, inner, minor=0)

    def _unwrapped(self, value: Any) -> Any:
        """Return what a wrapper holds, or the value as it is; a list is several documents only inside a wrapper."""
        if isinstance(value, Mapping) and len(value) == 1:
            ((name, inner),) = value.items()
            return inner if name in self._wrappers else value
        if isinstance(value, list):
            raise RecordError("unparsable_document", "The record's value is no JSON object.")
        return value

    def _several(self, record: RawRecord, documents: Sequence[Any]) -> Sequence[Event]:
        """Return one event a document. Only documents say which they are: the record's key cannot name several."""
        if not all(isinstance(document, Mapping) for document in documents):
            raise RecordError("unparsable_document", "What the record's list holds is not all JSON objects.")
        if len(documents) > DOCUMENTS_PER_RECORD_MAX:
            raise RecordError("too_many_documents", f"{len(documents)} documents in one record.")
        return [event for place, one in enumerate(documents) for event in self._told(record, one, one, minor=place)]

    def _told(
        self, record: RawRecord, identifier: Mapping[str, Any], document: Mapping[str, Any] | None, *, minor: int
    ) -> tuple[Event, ...]:
        operation = Operation.DELETE if document is None else Operation.UPSERT
        return self._events.events(operation, identifier, document, major=record.offset, minor=minor, event_time=record.timestamp)

    def _identifier(self, key: bytes) -> Mapping[str, Any]:
        """Return what the record's key says of the key columns; nothing where it is no text: two of these would look alike."""
        try:
            text = key.decode()
        except UnicodeDecodeError:
            return {}
        try:
            written = parse_json(text)
        except ValueError:
            written = text  # a text key, written without quotes
        value = _payload(written)
        if isinstance(value, Mapping):
            return value
        if len(self._columns) > 1:
            return {}
        unquoted = isinstance(written, bool | int | Decimal) and self._columns[0].type is KeyType.TEXT
        return {self._columns[0].path: text if unquoted else value}


def _json(value: bytes) -> Any:
    try:
        return parse_json(value)
    except ValueError as error:
        raise not_json(value, error) from error


def _payload(value: Any) -> Any:
    """Return what stands beside its schema, as Connect writes it with ``schemas.enable``; anything else as it is."""
    return value["payload"] if isinstance(value, Mapping) and value.keys() == {"schema", "payload"} else value
