"""Debezium's records of its MongoDB connector: documents are extended JSON inside a JSON string, and so are keys.

Position: cluster time (``source.ts_ms`` in seconds, ``source.ord``). Writes of one transaction share it, and no field tells
their order within; the raw offset does: Debezium keeps it, and a repetition repeats all of them in order.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import msgspec

from gapwatch.core.envelopes import extjson
from gapwatch.core.envelopes.columns import Shape
from gapwatch.core.envelopes.compiled.documents import debezium_mongodb_loop
from gapwatch.core.envelopes.compiled.loop import Loop
from gapwatch.core.envelopes.compiled.native import NativeModule, accelerated, documents_plan
from gapwatch.core.envelopes.debezium_parts import NULL, Frame, cluster_position, is_snapshot
from gapwatch.core.envelopes.documents import DocumentEvents
from gapwatch.core.envelopes.records import Event, RawRecord
from gapwatch.core.mapping import CompiledMapping
from gapwatch.errors import RecordError
from gapwatch.model.stream import Operation, Side


class MongoEvents:
    """Builds events from the envelopes of the MongoDB connector, and from its rows without envelope.

    Args:
        mapping: The pipeline's mapping.
        side: Which side the feed belongs to.
        post_images: Updates carry the document of that very change (``capture.mode.full.update.type=post_image``) rather than
            one looked up afterwards.
        native: The compiled module, where there is one.
    """

    def __init__(self, mapping: CompiledMapping, side: Side, *, post_images: bool, native: NativeModule | None = None) -> None:
        self._native = native
        self._events = DocumentEvents(mapping, side)
        self._post_images = post_images

    @property
    def shape(self) -> Shape:
        return self._events.shape

    def loop(self, *, wrapped: bool, wrapped_key: bool) -> Loop | None:
        """Return the compiled loop over envelopes with schemas or without; None where there is none."""
        events = self._events
        if events.filtered:
            return None
        mapping, side = events.mapping, events.side.side
        form = {"wrapped": wrapped, "wrapped_key": wrapped_key, "post_images": self._post_images}
        pure = debezium_mongodb_loop(mapping, side, **form)
        if pure is None:
            return None
        return accelerated(self._native, lambda: documents_plan(mapping, side, **form), pure, self.shape)

    def decode(self, record: RawRecord, frame: Frame) -> Sequence[Event]:
        source = frame.source
        if frame.op == "m":
            return ()
        if source.ts_ms is None or source.ord is None:
            raise RecordError("position_missing", "The event has no source.ts_ms or no source.ord; it cannot be ordered.")
        document = _document(frame.envelope.after, self._events.names)
        operation = self._operation(frame, document)
        return self._events.events(
            operation,
            _identifier(record.key),
            document,
            major=cluster_position(source.ts_ms, source.ord),
            minor=0 if source.txn_number is None else record.offset,
            event_time=source.ts_ms,
            created=frame.op == "c",
        )

    def _operation(self, frame: Frame, document: Mapping[str, Any] | None) -> Operation:
        if frame.op == "d":
            return Operation.DELETE
        if frame.op not in ("c", "u", "r"):
            raise RecordError("unknown_operation", f"Debezium says op {frame.op[:20]!r}, which is none of c, u, d, r.")
        if document is None:
            if frame.op == "u":
                return Operation.TOUCHED
            raise RecordError("document_missing", f"Debezium says op {frame.op} and sends no document.")
        if is_snapshot(frame.op, frame.source.snapshot):
            return Operation.SNAPSHOT
        looked_up = frame.op == "u" and not self._post_images and bytes(frame.envelope.update_description) != NULL
        return Operation.LOOKED_UP if looked_up else Operation.UPSERT  # a replacement carries its own document

    def unwrapped(
        self, record: RawRecord, raw: bytes, op: str, operation: Operation, ts_ms: int, ordinal: int
    ) -> Sequence[Event]:
        """Return the event of a record of ``ExtractNewDocumentState``: a flat document with added fields."""
        document = extjson.decode_document(raw, self._events.names)
        if op == "u" and operation is Operation.UPSERT and not self._post_images:
            operation = Operation.LOOKED_UP
        identifier = _identifier(record.key)
        return self._events.events(
            operation,
            identifier,
            None if operation is Operation.DELETE else {**identifier, **document},
            major=cluster_position(ts_ms, ordinal),
            minor=record.offset,
            event_time=ts_ms,
            created=op == "c",
        )


class _Key(msgspec.Struct):
    id: Any = msgspec.UNSET
    payload: Any = msgspec.UNSET


_KEY: Final = msgspec.json.Decoder(_Key)


def _identifier(key: bytes | None) -> Mapping[str, Any]:
    """Return ``{"_id": …}`` from a record key ``{"id": "<extended JSON>"}``, with its schema or without."""
    if not key:
        raise RecordError("key_missing", "A record of the MongoDB connector has no key.")
    try:
        found = _KEY.decode(key)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise RecordError("key_missing", f"The record's key is no JSON object: {error}.") from error
    text = found.payload.get("id", msgspec.UNSET) if isinstance(found.payload, dict) else found.id
    if not isinstance(text, str):
        raise RecordError("key_missing", "The record's key has no text field id, as Debezium's MongoDB connector writes it.")
    return {"_id": extjson.unwrap(extjson.decode(text))}


def _document(raw: msgspec.Raw, names: Collection[str]) -> Mapping[str, Any] | None:
    if bytes(raw) == NULL:
        return None
    text = extjson.decode(bytes(raw))
    if not isinstance(text, str):
        raise RecordError("unparsable_document", "after is no JSON text, as Debezium's MongoDB connector writes it.")
    return extjson.decode_document(text, names)
