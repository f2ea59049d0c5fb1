"""Heartbeat rows: what travels through a source's log in commit order without being data.

All as Debezium delivers them: our logical messages (``pg_logical_emit_message(true, 'gapwatch', content)`` with content ``{"n":
7, "by": "…"}``) on ``<prefix>.message``; our document ``{"_id": "gapwatch", "n": 7, "by": "…"}`` of a captured collection
``gapwatch_heartbeats``; and rows of a captured table or collection that somebody else writes.
``__debezium-heartbeat`` records are none of these: they hold the connector's clock and overtake data.
"""

from __future__ import annotations

import base64
import binascii
from typing import Final

import msgspec

from gapwatch.core.envelopes import extjson
from gapwatch.core.envelopes.columns import EARLIEST, LATEST, out_of_range
from gapwatch.core.envelopes.debezium_parts import NULL, Envelope, cluster_position, frame_of, is_snapshot, sequence_of
from gapwatch.core.envelopes.records import UNFORESEEN, HeartbeatRow, RawRecord, refusal
from gapwatch.errors import RecordError

PREFIX: Final = "gapwatch"  # of our logical messages
HEARTBEAT_COLLECTION: Final = "gapwatch_heartbeats"  # in the database that is watched
HEARTBEAT_ID: Final = "gapwatch"  # of its one document
ROWS: Final = frozenset({"c", "u", "d"})
_NAMES: Final = frozenset({"_id", "n", "by"})


class _Content(msgspec.Struct):
    n: int
    by: str = ""


def message_content(number: int, sender: str) -> str:
    """Return the content of our logical message; the heartbeat writer sends it under the prefix ``gapwatch``."""
    return msgspec.json.encode(_Content(n=number, by=sender)).decode()


def heartbeat_row(record: RawRecord) -> HeartbeatRow | None:
    """Return what a record of a heartbeat topic says of time; None where it says nothing (snapshot reads, tombstones, others).

    Raises:
        RecordError: It should be a heartbeat row and cannot be read.
    """
    try:
        return _row(record)
    except UNFORESEEN as error:
        raise refusal(error) from error


def _row(record: RawRecord) -> HeartbeatRow | None:
    if not record.value:
        return None
    frame = frame_of(record.value)
    if frame is None or is_snapshot(frame.op, frame.source.snapshot):
        return None
    number: int | None = None
    sender = ""
    if frame.op == "m":
        message = frame.envelope.message
        if message is None or message.prefix != PREFIX:
            return None  # somebody else's; a non-transactional one would not even be in commit order
        content = _content(message.content)
        number, sender = content.n, content.by
    elif frame.op not in ROWS:
        return None
    source = frame.source
    if source.ts_ms is None:
        raise RecordError("position_missing", "A heartbeat row has no source.ts_ms.")
    if not EARLIEST <= source.ts_ms <= LATEST:  # a watermark that it moved would never come back
        raise out_of_range()
    if source.connector == "mongodb":
        major, minor = cluster_position(source.ts_ms, source.ord or 0), 0
        number, sender = _of_document(frame.envelope)
    else:
        position = sequence_of(source.sequence)
        if position is None:
            raise RecordError("position_missing", "A heartbeat row has no source.sequence.")
        major, minor = position
    return HeartbeatRow(number, sender, source.ts_ms, major, minor, source.lsn, record.timestamp)


def _of_document(envelope: Envelope) -> tuple[int | None, str]:
    """Return number and sender of a document of ours; an update of one may show a later number, so that it says none."""
    if bytes(envelope.after) == NULL or bytes(envelope.update_description) != NULL:
        return None, ""
    text = extjson.decode(bytes(envelope.after))
    if not isinstance(text, str):
        return None, ""
    document = extjson.decode_document(text, _NAMES)
    number, sender = document.get("n"), document.get("by")
    if document.get("_id") != HEARTBEAT_ID or not isinstance(number, int) or not isinstance(sender, str):
        return None, ""
    return number, sender


def _content(text: str) -> _Content:
    try:
        return msgspec.json.decode(base64.b64decode(text, validate=True), type=_Content)
    except (binascii.Error, ValueError, msgspec.DecodeError) as error:
        raise RecordError("unreadable_heartbeat", f"A message with our prefix is not ours: {error}.") from error
