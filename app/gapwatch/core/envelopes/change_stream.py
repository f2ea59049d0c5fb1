"""The feed that our own change-stream reader fills (role ``capture``).

Record key: canonical extended JSON of the change's ``documentKey`` (``{"_id": {"$numberInt": "42"}}``). Record value: canonical
extended JSON of the document; empty where there is none. Headers, all ASCII:

====================  ==========================================================================================================
``gapwatch-op``       ``insert``, ``replace``, ``update`` (a post-image: the document of this very change), ``update_lookup``
                      (looked up afterwards: may be newer), ``update_touched`` (no document), ``delete``
``gapwatch-time``     commit time, milliseconds since the epoch
``gapwatch-position`` ``<cluster time>:<minor>``: seconds << 32 | increment of the cluster time; the ordinal of the operation
                      within one transaction (0 outside of transactions)
``gapwatch-watermark`` only on markers, which have no key and no value: milliseconds since the epoch
====================  ==========================================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Final

from gapwatch.core.envelopes import extjson
from gapwatch.core.envelopes.columns import Shape
from gapwatch.core.envelopes.compiled.documents import change_stream_loop
from gapwatch.core.envelopes.compiled.loop import Loop
from gapwatch.core.envelopes.documents import DocumentEvents
from gapwatch.core.envelopes.records import Event, Marker, RawRecord, Truncate
from gapwatch.core.mapping import CompiledMapping
from gapwatch.errors import RecordError
from gapwatch.model.stream import Operation, Side

OP: Final = "gapwatch-op"
TIME: Final = "gapwatch-time"
POSITION: Final = "gapwatch-position"
WATERMARK: Final = "gapwatch-watermark"
INSERT: Final = b"insert"
OPERATIONS: Final = {
    INSERT: Operation.UPSERT,
    b"replace": Operation.UPSERT,
    b"update": Operation.UPSERT,
    b"update_lookup": Operation.LOOKED_UP,
    b"update_touched": Operation.TOUCHED,
    b"delete": Operation.DELETE,
}


class ChangeStreamDecoder:
    """Decodes the records of ``gapwatch.feed.<pipeline>.<side>``."""

    def __init__(self, mapping: CompiledMapping, side: Side) -> None:
        self._events = DocumentEvents(mapping, side)

    @property
    def shape(self) -> Shape:
        return self._events.shape

    def loop(self, record: RawRecord) -> Loop | None:
        """Return the compiled loop; all records are written alike."""
        return None if self._events.filtered else self._loop

    @cached_property
    def _loop(self) -> Loop | None:
        events = self._events
        return change_stream_loop(events.mapping, events.side.side, names=(OP, TIME, POSITION), operations=OPERATIONS)

    def looped(self) -> None:
        """Nothing to remember."""

    def decode(self, record: RawRecord) -> Sequence[Event | Truncate | Marker]:
        headers = dict(record.headers)
        marker = headers.get(WATERMARK)
        if marker is not None:
            return (Marker(_number(WATERMARK, marker)),)
        operation = OPERATIONS.get(headers.get(OP, b""))
        if operation is None:
            raise RecordError("unknown_operation", f"Header {OP} is {headers.get(OP)!r}, which our reader never writes.")
        if not record.key:
            raise RecordError("key_missing", "A change of our reader has no key.")
        major, _, minor = headers.get(POSITION, b"").partition(b":")
        has_document = record.value and operation is not Operation.DELETE
        document = extjson.decode_document(record.value or b"", self._events.names) if has_document else None
        if document is None and operation in (Operation.UPSERT, Operation.LOOKED_UP):
            if operation is Operation.UPSERT:
                raise RecordError("document_missing", f"A change of our reader says {headers[OP]!r} and has no document.")
            operation = Operation.TOUCHED  # looked up, and deleted meanwhile
        return self._events.events(
            operation,
            extjson.decode_document(record.key),
            document,
            major=_number(POSITION, major),
            minor=_number(POSITION, minor),
            event_time=_number(TIME, headers.get(TIME, b"")),
            created=headers[OP] == INSERT,
        )


def _number(header: str, value: bytes) -> int:
    if not value.isdigit() or len(value) > 20:
        raise RecordError("unreadable_header", f"Header {header} of a change-stream record holds no number: {value[:40]!r}.")
    return int(value)
