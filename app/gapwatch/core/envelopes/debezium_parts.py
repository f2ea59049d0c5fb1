"""The frame of a Debezium event, with Connect's JSON schemas or without: what every connector of it has in common."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec

from gapwatch.errors import RecordError

NULL: Final = b"null"
ROUTED: Final = b"__dbz__physicalTableIdentifier"  # what ByLogicalTableRouter adds to a key: the topic that the record was for
UNORDERED: Final = frozenset(  # connectors whose records do not say in which order they are, as those for Postgres and MongoDB do
    {"mysql", "mariadb", "sqlserver", "oracle", "db2", "informix", "vitess", "spanner", "cassandra"}
)
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


class _CloudEvent(msgspec.Struct):
    """What Debezium's CloudEvents converter makes of an envelope: ``source`` lies in attributes, all of them texts."""

    op: str = msgspec.field(name="iodebeziumop")
    connector: str = msgspec.field(name="iodebeziumconnector")
    data: msgspec.Raw
    ts_ms: int | None = msgspec.field(default=None, name="iodebeziumtsms")
    snapshot: str | bool | None = msgspec.field(default=None, name="iodebeziumsnapshot")
    sequence: str | None = msgspec.field(default=None, name="iodebeziumsequence")
    lsn: int | None = msgspec.field(default=None, name="iodebeziumlsn")
    ord: int | None = msgspec.field(default=None, name="iodebeziumord")
    txn_number: int | None = msgspec.field(default=None, name="iodebeziumtxnNumber")


class _RoutedKey(msgspec.Struct):
    """What ByLogicalTableRouter adds to a key, by itself or inside ``payload`` beside its schema."""

    table: str = msgspec.field(default="", name=ROUTED.decode())
    payload: _RoutedKey | None = None


class Frame(NamedTuple):
    """A record's envelope and the bytes of its schema (b"" where it has none; ``written_schema``: None, or what stands there).

    ``cloud``: it is a CloudEvent, which is laid out differently.
    """

    envelope: Envelope
    source: Source
    op: str
    schema: bytes
    written_schema: bytes | None
    cloud: bool = False


_MESSAGE: Final = msgspec.json.Decoder(_Message)
_CLOUD_EVENT: Final = msgspec.json.Decoder(_CloudEvent, strict=False)
_MARK: Final = b'"specversion"'
_ROUTED_KEY: Final = msgspec.json.Decoder(_RoutedKey)
_FLAT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
# JSON inside a text, and its numbers are texts again: this decoder takes those for numbers.
SEQUENCE: Final = msgspec.json.Decoder(tuple[int | None, int | None], strict=False)
_LATER: Final = frozenset({"none", "false"})
_TRANSACTION: Final = frozenset({"status", "id", "event_count", "data_collections", "ts_ms", "ts_us", "ts_ns"})


def frame_of(value: bytes) -> Frame | None:
    """Return the envelope; None where the record is JSON and no envelope (unwrapped, a heartbeat, transaction metadata)."""
    try:
        message = _MESSAGE.decode(value)
    except msgspec.ValidationError:  # as of a CloudEvent, whose source is a text
        return _cloud_event(value) if _MARK in value else None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise not_json(value, error) from error
    envelope = message.payload or message
    if envelope.op is None or envelope.source is None:
        return None
    schema = bytes(message.schema)
    return Frame(envelope, envelope.source, envelope.op, b"" if schema == NULL else schema, schema or None)


def _cloud_event(value: bytes) -> Frame | None:
    """Return the envelope that a CloudEvent of Debezium's was made of; None where it is another one's."""
    try:
        event = _CLOUD_EVENT.decode(value)
        data = _MESSAGE.decode(event.data)
    except msgspec.ValidationError:
        return None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:  # behind the member at which the first reader stopped
        raise not_json(value, error) from error
    names = ("connector", "ts_ms", "snapshot", "sequence", "lsn", "ord", "txn_number")
    source = Source(**{name: getattr(event, name) for name in names})
    schema = bytes(data.schema)
    return Frame(data.payload or data, source, event.op, b"" if schema == NULL else schema, schema or None, cloud=True)


def not_json(value: bytes, error: Exception) -> RecordError:
    """Return the error for a record that is no JSON object; one that begins with a zero byte names a schema instead."""
    if value[:1] == b"\0" and len(value) > 5:
        number = int.from_bytes(value[1:5], "big")
        return RecordError(
            "schema_unread", f"The record needs schema {number}, which was not read. Is schema_registry.url right?"
        )
    return RecordError("unparsable_json", f"The record's value is no JSON object: {error}.")


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
        raise not_json(value, error) from error


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


def refuse_connector(connector: str, *, source: bool) -> None:
    """Raise RecordError for a record of a connector that is not read: at all, or as a source."""
    if connector == "mongodb" and source:
        raise RecordError(
            "other_connector",
            "The record is of Debezium's connector for mongodb, which is not read as a source."
            " Write source: { collection: …, feed: { change_stream: true } }: Gapwatch follows a collection by itself.",
        )
    if connector in UNORDERED:
        raise RecordError(
            "other_connector",
            f"The record is of Debezium's connector for {connector}; those for postgresql and mongodb are read."
            " Name a topic of one of these as the feed.",
        )


def refuse_routed(key: bytes | None, table: str) -> None:
    """Raise RecordError where ByLogicalTableRouter put a record of another table than `table` into our topic."""
    if key is None or ROUTED not in key:
        return
    try:
        named = _ROUTED_KEY.decode(key)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return  # it is judged as a key like any other
    identifier = (named.payload or named).table
    if identifier and identifier != table and not identifier.endswith(f".{table}"):
        raise RecordError(
            "other_table",
            f"The record is of {identifier[:80]}, and ByLogicalTableRouter put it into the topic of {table}: one topic for"
            " several tables is not read. Leave each table its own topic, and list them as source.tables.",
        )


def is_other(columns: dict[str, Any]) -> bool:
    """Whether a record without an envelope is a Debezium heartbeat or transaction metadata: no row at all."""
    names = columns.keys()
    if names == {"ts_ms"} or names == {"ts_ms", "ts_us", "ts_ns"}:
        return True
    return names <= _TRANSACTION and "event_count" in names and bytes(columns.get("status", b"")) in (b'"BEGIN"', b'"END"')
