"""Our change-stream feed, plain topics, heartbeat rows."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any

import pytest
from bson import Decimal128, ObjectId
from bson.json_util import CANONICAL_JSON_OPTIONS, dumps

from gapwatch.core.envelopes import Decoder, Event, HeartbeatRow, Marker, decoder_for, heartbeat_row, message_content
from gapwatch.core.envelopes.extjson import decode_document
from gapwatch.core.envelopes.topic import DOCUMENTS_PER_RECORD_MAX
from gapwatch.core.keys import KeyCodec
from gapwatch.core.mapping import CompiledMapping
from gapwatch.errors import ConfigError, KeyMisfit, RecordError
from gapwatch.model.pipeline import FeedKind, FeedSpec, FieldSpec, FieldType, KeyColumn, KeyType, PipelineSpec
from gapwatch.model.stream import Operation, Side
from tests.unit.core.samples import APPENDED, COMMITTED, change, field, mongo_change, pipeline, record, with_schema

KEY = KeyCodec([KeyColumn(path="_id", type=KeyType.INT)])
POSITION = 1_726_000_000 << 32 | 7
DOCUMENT = {"_id": 42, "customer": "a", "total": Decimal128("10.00"), "placed": {"at": datetime(2024, 1, 1, tzinfo=UTC)}}


def extended(document: Any) -> bytes:
    return dumps(document, json_options=CANONICAL_JSON_OPTIONS).encode()


def change_stream(path: str = "_id") -> tuple[CompiledMapping, Decoder]:
    spec = pipeline(
        field("customer"),
        field("total", FieldType.DECIMAL),
        field("placed.at", FieldType.TIMESTAMP),
        target_key=[KeyColumn(path=path, type=KeyType.INT)],
    )
    mapping = CompiledMapping(spec)
    return mapping, decoder_for(spec, Side.OBSERVED, mapping)


def ours(op: str, document: Any = None, *, key: Any = None, **headers: str) -> Any:
    return record(
        None if document is None else extended(document),
        key=extended({"_id": 42} if key is None else key),
        headers={"gapwatch-op": op, "gapwatch-time": str(COMMITTED), "gapwatch-position": f"{POSITION}:2", **headers},
    )


@pytest.mark.parametrize(
    ("op", "operation"),
    [
        ("insert", Operation.UPSERT),
        ("replace", Operation.UPSERT),
        ("update", Operation.UPSERT),
        ("update_lookup", Operation.LOOKED_UP),
    ],
)
def test_a2_our_reader_says_what_a_read_of_the_document_would_say(op: str, operation: Operation) -> None:
    mapping, decoder = change_stream()
    read = mapping.canonical_target(DOCUMENT)
    expected = Event(KEY.encode([42]), operation, POSITION, 2, COMMITTED, read.digest, None, None, None, None)
    assert decoder.decode(ours(op, DOCUMENT)) == (expected,)


@pytest.mark.parametrize(
    ("op", "document", "operation"),
    [
        ("update_touched", None, Operation.TOUCHED),
        ("update_lookup", None, Operation.TOUCHED),
        ("delete", None, Operation.DELETE),
    ],
)
def test_changes_without_a_document(op: str, document: Any, operation: Operation) -> None:
    _, decoder = change_stream()
    expected = Event(KEY.encode([42]), operation, POSITION, 2, COMMITTED, b"", None, None, None, None)
    assert decoder.decode(ours(op, document)) == (expected,)


def test_a_marker_is_a_watermark() -> None:
    _, decoder = change_stream()
    assert decoder.decode(record(None, headers={"gapwatch-watermark": str(COMMITTED)})) == (Marker(COMMITTED),)


def test_a_key_inside_the_document_names_the_document_too() -> None:
    _, decoder = change_stream("order_id")
    (event,) = decoder.decode(
        ours("insert", {**DOCUMENT, "_id": ObjectId("5f" * 12), "order_id": 7}, key={"_id": ObjectId("5f" * 12)})
    )
    assert isinstance(event, Event)
    assert (event.key, event.target_id) == (KEY.encode([7]), b"5f" * 12)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (ours("rename", DOCUMENT), "unknown_operation"),
        (record(b"{}", key=b"{}"), "unknown_operation"),
        (ours("insert"), "document_missing"),
        (ours("insert", DOCUMENT)._replace(key=None), "key_missing"),
        (ours("insert", DOCUMENT)._replace(key=b"{broken"), "unparsable_json"),
        (ours("insert", DOCUMENT)._replace(value=b"[]"), "unparsable_document"),
        (ours("insert", DOCUMENT, key={"_id": 42.0}), "key_misfit"),
        (ours("insert", DOCUMENT, **{"gapwatch-position": "x:1"}), "unreadable_header"),
        (ours("insert", DOCUMENT, **{"gapwatch-position": "1"}), "unreadable_header"),
        (ours("insert", DOCUMENT, **{"gapwatch-time": "-1"}), "unreadable_header"),
        (record(None, headers={"gapwatch-watermark": "soon"}), "unreadable_header"),
    ],
)
def test_a6_every_misunderstanding_has_a_reason(raw: Any, reason: str) -> None:
    _, decoder = change_stream()
    with pytest.raises(RecordError) as caught:
        decoder.decode(raw)
    assert caught.value.reason == reason


def test_extended_json_in_its_older_and_relaxed_forms() -> None:
    text = (
        '{"a": {"$date": 1000}, "b": {"$date": "1970-01-01T00:00:01Z"}, "c": {"$date": {"$numberLong": "1000"}},'
        ' "d": 5, "e": 1.5, "f": {"$regex": "^a", "$options": "mi"},'
        ' "g": {"$regularExpression": {"pattern": "^a", "options": "im"}},'
        ' "h": {"$ref": "x", "$id": 1}, "i": {"$undefined": true}, "j": {"$other": 1}}'
    )
    found = decode_document(text)
    assert found["a"] == found["c"]
    assert found["b"].value * 1_000 == found["a"].value * found["b"].per_second
    assert found["f"] == found["g"]
    assert (found["d"], found["e"], found["h"], found["i"], found["j"]) == (5, 1.5, {"$ref": "x", "$id": 1}, None, {"$other": 1})


# ── plain topics ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def plain() -> tuple[CompiledMapping, Decoder]:
    feed = FeedSpec(kind=FeedKind.TOPIC, topic="orders", format="json")
    spec = pipeline(field("customer"), field("total", FieldType.DECIMAL), source_feed=feed)
    mapping = CompiledMapping(spec)
    return mapping, decoder_for(spec, Side.EXPECTED, mapping)


@pytest.mark.parametrize("key", [None, {"id": 1}, b"1", 1])
def test_a_plain_topic_is_ordered_by_offset_and_dated_by_append_time(key: Any) -> None:
    mapping, decoder = plain()
    (event,) = decoder.decode(record({"id": 1, "customer": "a", "total": 1.50}, key=key, offset=33))
    read = mapping.canonical_source({"customer": "a", "total": "1.5"})
    assert event == Event(KEY.encode([1]), Operation.UPSERT, 33, 0, APPENDED, read.digest, None, None, None, None)


def test_an_empty_value_on_a_plain_topic_is_a_delete() -> None:
    _, decoder = plain()
    (event,) = decoder.decode(record(None, key={"id": 1}))
    assert isinstance(event, Event)
    assert (event.operation, event.digest) == (Operation.DELETE, b"")
    with pytest.raises(RecordError):
        decoder.decode(record(None))
    with pytest.raises(RecordError):
        decoder.decode(record(b"[1]", key={"id": 1}))


@pytest.mark.parametrize(
    ("key", "meant"), [(b"a b", "a b"), (b"1001", "1001"), (b"1.50", "1.50"), (b"true", "true"), (b'"7"', "7")]
)
def test_a_text_key_may_be_written_without_quotes(key: bytes, meant: str) -> None:
    """Also one that happens to be JSON: such a delete was refused, and a hole."""
    spec = texts()
    decoder = decoder_for(spec, Side.EXPECTED, CompiledMapping(spec))
    expected = KeyCodec(spec.source.key).encode([meant])
    for raw in (record(None, key=key), record(None, key={"schema": None, "payload": meant})):
        (event,) = decoder.decode(raw)
        assert isinstance(event, Event)
        assert (event.key, event.operation) == (expected, Operation.DELETE)


def test_keys_that_are_no_text_are_never_taken_for_each_other() -> None:
    """Each of them was the same replacement characters: the delete of one row was that of another."""
    spec = texts()
    decoder = decoder_for(spec, Side.EXPECTED, CompiledMapping(spec))
    for key in (b"\xff", b"\xfe"):
        with pytest.raises(KeyMisfit):
            decoder.decode(record(None, key=key))
        (event,) = decoder.decode(record({"id": "a", "customer": "b"}, key=key))
        assert isinstance(event, Event)
        assert event.key == KeyCodec(spec.source.key).encode(["a"])


def texts() -> PipelineSpec:
    key = [KeyColumn(path="id", type=KeyType.TEXT)]
    feed = FeedSpec(kind=FeedKind.TOPIC, topic="orders", format="json")
    return pipeline(field("customer"), source_key=key, target_key=key, source_feed=feed)


PAYMENT = {"id": 1, "customer": "a", "total": 1.50}
WRAPPED = FeedSpec(kind=FeedKind.TOPIC, topic="orders", format="json", wrappers=("transactions", "transaction"))


def wrapped(*fields: FieldSpec) -> Decoder:
    spec = pipeline(*(fields or (field("customer"), field("total", FieldType.DECIMAL))), source_feed=WRAPPED)
    return decoder_for(spec, Side.EXPECTED, CompiledMapping(spec))


@pytest.mark.parametrize("value", [PAYMENT, {"transaction": PAYMENT}, {"transactions": [PAYMENT]}])
def test_a11_every_shape_on_one_topic_yields_the_same_canonical_event(value: Any) -> None:
    _, bare = plain()
    (known,) = bare.decode(record(PAYMENT, offset=33))
    (event,) = wrapped().decode(record(value, offset=33))
    assert event == known


def test_a11_several_documents_of_one_record_are_ordered_by_their_place() -> None:
    first, second, again = PAYMENT, {**PAYMENT, "id": 2}, {**PAYMENT, "customer": "b"}
    events = wrapped().decode(record({"transactions": [first, second, again]}, key={"id": 9}, offset=33))
    ones = [wrapped().decode(record(document, offset=33))[0] for document in (first, second, again)]
    assert list(events) == [one._replace(minor=place) for place, one in enumerate(ones) if isinstance(one, Event)]
    assert len(events) == 3
    assert wrapped().decode(record({"transactions": []})) == []


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"transaction": None}, "unparsable_document"),
        ({"transaction": 1}, "unparsable_document"),
        ({"transactions": [PAYMENT, 1]}, "unparsable_document"),
        ([PAYMENT], "unparsable_document"),
        ({"transactions": [PAYMENT] * (DOCUMENTS_PER_RECORD_MAX + 1)}, "too_many_documents"),
    ],
)
def test_a11_what_wraps_no_documents_is_refused_whole(value: Any, reason: str) -> None:
    with pytest.raises(RecordError) as caught:
        wrapped().decode(record(value, key={"id": 1}))
    assert caught.value.reason == reason


def test_a11_a_list_is_not_keyed_by_its_records_key() -> None:
    nameless = {"customer": "a", "total": 1}
    with pytest.raises(RecordError):
        wrapped().decode(record({"transactions": [PAYMENT, nameless]}, key={"id": 1}))


def test_a11_a_member_that_is_not_named_as_a_wrapper_wraps_nothing() -> None:
    _, bare = plain()
    with pytest.raises(RecordError):
        bare.decode(record({"transaction": PAYMENT}))


def test_a11_a_wrapper_that_is_mapped_as_well_is_refused() -> None:
    with pytest.raises(ConfigError, match="transaction is mapped as well"):
        wrapped(field("amount", source="transaction.amount"))


# ── heartbeat rows ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def message(content: str, *, prefix: str = "gapwatch") -> dict[str, Any]:
    return {**change("m"), "message": {"prefix": prefix, "content": base64.b64encode(content.encode()).decode()}}


@pytest.mark.parametrize("wrapped", [False, True])
def test_our_logical_message_is_a_numbered_heartbeat_row(wrapped: bool) -> None:
    value = message(message_content(7, "capture-1"))
    row = heartbeat_row(record(with_schema(value, []) if wrapped else value))
    assert row == HeartbeatRow(7, "capture-1", COMMITTED, 24_023_119, 24_023_128, 24_023_128, APPENDED)
    assert heartbeat_row(record(message('{"n": 1}'))) == HeartbeatRow(
        1, "", COMMITTED, 24_023_119, 24_023_128, 24_023_128, APPENDED
    )


@pytest.mark.parametrize("op", ["c", "u", "d"])
def test_rows_made_elsewhere_have_no_number(op: str) -> None:
    row = heartbeat_row(record(change(op, after={"id": 1})))
    assert row == HeartbeatRow(None, "", COMMITTED, 24_023_119, 24_023_128, 24_023_128, APPENDED)
    mongo = heartbeat_row(record(mongo_change(op, after={"_id": 1})))
    assert mongo == HeartbeatRow(None, "", 1_726_000_000_000, 1_726_000_000 << 32 | 3, 0, None, APPENDED)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("op", ["c", "u"])
def test_our_document_is_a_numbered_heartbeat_row(op: str, wrapped: bool) -> None:
    """Each is a replacement, which carries its own document; an update might show a later one's number."""
    ours = {"_id": "gapwatch", "n": {"$numberLong": "7"}, "by": "capture-1"}
    value = mongo_change(op, after=ours)
    row = heartbeat_row(record(with_schema(value, []) if wrapped else value))
    assert row == HeartbeatRow(7, "capture-1", 1_726_000_000_000, 1_726_000_000 << 32 | 3, 0, None, APPENDED)
    others = [
        mongo_change("u", after=ours, updated=True),
        mongo_change(op, after=ours | {"_id": "theirs"}),
        mongo_change(op, after=ours | {"n": "7"}),
        mongo_change("d"),
        mongo_change(op) | {"after": {"n": 7}},
    ]
    for other in others:
        read = heartbeat_row(record(other))
        assert read is not None
        assert (read.number, read.sender) == (None, "")


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"ts_ms": COMMITTED},
        change("r", after={"id": 1}),
        change("c", after={"id": 1}, snapshot="true"),
        change("t"),
        message("{}", prefix="app"),
    ],
)
def test_what_proves_no_time_is_no_heartbeat_row(value: Any) -> None:
    assert heartbeat_row(record(value)) is None


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"{broken", "unparsable_json"),
        (message("no json"), "unreadable_heartbeat"),
        ({**message(""), "message": {"prefix": "gapwatch", "content": "%%%"}}, "unreadable_heartbeat"),
        (change("c", after={"id": 1}, sequence=None), "position_missing"),
        (change("c", after={"id": 1}, ts_ms=None), "position_missing"),
    ],
)
def test_a_heartbeat_that_cannot_be_read_is_an_error(value: Any, reason: str) -> None:
    with pytest.raises(RecordError) as caught:
        heartbeat_row(record(value))
    assert caught.value.reason == reason
