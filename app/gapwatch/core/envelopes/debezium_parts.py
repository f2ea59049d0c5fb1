"""The frame of a Debezium event, with Connect's JSON schemas or without: what every connector of it has in common."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec

from gapwatch.errors import RecordError

NULL: Final = b"null"
_RAW_NULL: Final = msgspec.Raw(NULL)
_RAW_NONE: Final = msgspec.Raw(b"")


class Source(msgspec.Struct, gc=False):
    """``source`` of an event, as far as it is needed."""

    connector: str = ""
    ts_ms: int | None = None
    snapshot: str | bool | None = None
    sequence: str | None = None
    lsn: int | None = None
    ord: int | None = None
    txn_number: int | None = msgspec.field(default=None, name="txnNumber")


class LogicalMessage(msgspec.Struct):
    prefix: str = ""
    content: str = ""


class Envelope(msgspec.Struct):
    op: str | None = None
    source: Source | None = None
    before: msgspec.Raw = _RAW_NULL
    after: msgspec.Raw = _RAW_NULL
    update_description: msgspec.Raw = msgspec.field(default=_RAW_NULL, name="updateDescription")
    message: LogicalMessage | None = None


class _Message(Envelope):
    """An envelope by itself, or inside ``payload`` beside its schema."""

    schema: msgspec.Raw = _RAW_NONE
    payload: Envelope | None = None


class Frame(NamedTuple):
    """A record's envelope and the bytes of its schema (b"" where it has none; ``written_schema``: None, or what stands there)."""

    envelope: Envelope
    source: Source
    op: str
    schema: bytes
    written_schema: bytes | None


_MESSAGE: Final = msgspec.json.Decoder(_Message)
_FLAT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
# JSON inside a text, and its numbers are texts again: this decoder takes those for numbers.
SEQUENCE: Final = msgspec.json.Decoder(tuple[int | None, int | None], strict=False)
_LATER: Final = frozenset({"none", "false"})


def frame_of(value: bytes) -> Frame | None:
    """Return the envelope; None where the record is JSON and no envelope (unwrapped, a heartbeat, transaction metadata)."""
    try:
        message = _MESSAGE.decode(value)
    except msgspec.ValidationError:
        return None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise RecordError("unparsable_json", f"The record's value is not JSON: {error}.") from error
    envelope = message.payload or message
    if envelope.op is None or envelope.source is None:
        return None
    schema = bytes(message.schema)
    return Frame(envelope, envelope.source, envelope.op, b"" if schema == NULL else schema, schema or None)


def flat_of(value: bytes) -> tuple[bytes, bytes, dict[str, msgspec.Raw]] | None:
    """Return (schema, row, the row's columns) of a record without an envelope; None where its payload is null."""
    try:
        flat = _FLAT.decode(value)
        if flat.keys() != {"schema", "payload"}:
            return b"", value, flat
        schema, row = bytes(flat["schema"]), bytes(flat["payload"])
        if row == NULL:
            return None
        return b"" if schema == NULL else schema, row, _FLAT.decode(row)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise RecordError("unparsable_json", f"The record's value is no JSON object: {error}.") from error


def is_snapshot(op: str, snapshot: str | bool | None) -> bool:
    """Whether a record is a read of what was there already, rather than a write."""
    if op == "r":
        return True
    return bool(snapshot) and str(snapshot).lower() not in _LATER


def sequence_of(text: str | None) -> tuple[int, int] | None:
    """Return Postgres' position, (last commit LSN, LSN), a null being lowest; None where there is none."""
    if not text:
        return None
    try:
        commit, lsn = SEQUENCE.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise RecordError("position_missing", f"source.sequence is no pair of LSNs: {text[:80]!r}.") from error
    return commit or 0, lsn or 0


def cluster_position(ts_ms: int, ordinal: int) -> int:
    """Return MongoDB's cluster time as 64 bits: seconds and increment."""
    return (ts_ms // 1_000) << 32 | ordinal


def is_other(columns: dict[str, Any]) -> bool:
    """Whether a record without an envelope is a Debezium heartbeat or transaction metadata: no row at all."""
    names = columns.keys()
    if names == {"ts_ms"} or names == {"ts_ms", "ts_us", "ts_ns"}:
        return True
    return "status" in names and "id" in names and bytes(columns["status"]) in (b'"BEGIN"', b'"END"') and "event_count" in names
