from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gapwatch.core.envelopes import Decoder, Event, decoder_for
from gapwatch.core.keys import KeyCodec
from gapwatch.core.mapping import CompiledMapping
from gapwatch.errors import RecordError
from gapwatch.model.pipeline import FeedKind, FeedSpec, FieldType, KeyColumn, KeyType
from gapwatch.model.stream import Operation, Side
from tests.unit.core.samples import COMMITTED, field, mongo_change, pipeline, record

KEY = KeyCodec([KeyColumn(path="_id", type=KeyType.INT)])
DOCUMENT = {"_id": 9, "customer": "a", "total": {"$numberDecimal": "10.00"}, "count": {"$numberLong": "5"}}
SECONDS = COMMITTED // 1_000


def target(path: str = "_id", kind: KeyType = KeyType.INT, *, post_images: bool = False) -> tuple[CompiledMapping, Decoder]:
    spec = pipeline(
        field("customer"),
        field("total", FieldType.DECIMAL),
        field("count", FieldType.INT),
        source_key=[KeyColumn(path="id", type=kind)],
        target_key=[KeyColumn(path=path, type=kind)],
        target_feed=FeedSpec(kind=FeedKind.DEBEZIUM, topic="target.shop.orders"),
    )
    spec = replace(spec, target=replace(spec.target, feed=replace(spec.target.feed, post_images=post_images)))
    mapping = CompiledMapping(spec)
    return mapping, decoder_for(spec, Side.OBSERVED, mapping)


def only(decoder: Decoder, value: Any, **options: Any) -> Event:
    events = decoder.decode(record(value, **{"key": {"id": "9"}, **options}))
    assert len(events) == 1
    assert isinstance(events[0], Event)
    return events[0]


@pytest.mark.parametrize(
    ("op", "updated", "operation"),
    [
        ("c", False, Operation.UPSERT),
        ("u", True, Operation.LOOKED_UP),
        ("u", False, Operation.UPSERT),
        ("r", False, Operation.SNAPSHOT),
    ],
)
def test_an_event_says_what_a_read_of_the_document_would_say(op: str, updated: bool, operation: Operation) -> None:
    mapping, decoder = target()
    event = only(decoder, mongo_change(op, after=DOCUMENT, updated=updated))
    read = mapping.canonical_target({"_id": 9, "customer": "a", "total": 10, "count": 5})
    assert event == Event(KEY.encode([9]), operation, SECONDS << 32 | 3, 0, SECONDS * 1_000, read.digest, None, None, None, None)


def test_a_post_image_is_exact() -> None:
    _, decoder = target(post_images=True)
    assert only(decoder, mongo_change("u", after=DOCUMENT, updated=True)).operation is Operation.UPSERT


def test_an_update_without_a_document_says_changed_content_unknown() -> None:
    _, decoder = target()
    event = only(decoder, mongo_change("u", updated=True))
    assert (event.operation, event.digest) == (Operation.TOUCHED, b"")


def test_a5_deletes_and_tombstones() -> None:
    _, decoder = target()
    assert only(decoder, mongo_change("d")).operation is Operation.DELETE
    assert decoder.decode(record(None, key={"id": "9"})) == ()


def test_a_snapshot_flag_makes_a_read() -> None:
    _, decoder = target()
    assert only(decoder, mongo_change("r", after=DOCUMENT, snapshot="last")).operation is Operation.SNAPSHOT


def test_writes_of_one_transaction_keep_the_order_of_the_log() -> None:
    _, decoder = target()
    first = only(decoder, mongo_change("c", after=DOCUMENT, lsid="x", txnNumber=4), offset=10)
    second = only(decoder, mongo_change("u", after=DOCUMENT, lsid="x", txnNumber=4), offset=11)
    assert (first.major, first.minor) < (second.major, second.minor)
    later = only(decoder, mongo_change("u", after=DOCUMENT, ord=4), offset=12)
    assert (second.major, second.minor) < (later.major, later.minor)


@pytest.mark.parametrize(
    ("key", "path", "kind", "value"),
    [
        ({"id": '{"id": 9}'}, "_id.id", KeyType.INT, 9),
        ({"id": '{"$oid": "5f5f5f5f5f5f5f5f5f5f5f5f"}'}, "_id", KeyType.OBJECTID, "5f" * 12),
        ({"id": '"ab"'}, "_id", KeyType.TEXT, "ab"),
        ({"id": '{"$numberLong": "9007199254740993"}'}, "_id", KeyType.INT, 2**53 + 1),
        (
            {"id": '{"$binary": "jBqfEAsOTDqdUgqLjz96EQ==", "$type": "04"}'},
            "_id",
            KeyType.UUID,
            "8c1a9f10-0b0e-4c3a-9d52-0a8b8f3f7a11",
        ),
        ({"schema": {"type": "struct"}, "payload": {"id": "9"}}, "_id", KeyType.INT, 9),
    ],
)
def test_keys_are_extended_json_in_text(key: Any, path: str, kind: KeyType, value: Any) -> None:
    _, decoder = target(path, kind)
    expected = KeyCodec([KeyColumn(path="k", type=kind)]).encode([value])
    assert only(decoder, mongo_change("d"), key=key).key == expected


def test_a_key_that_is_not_the_documents_id_names_the_document() -> None:
    _, decoder = target("order_id")
    event = only(
        decoder, mongo_change("c", after={**DOCUMENT, "order_id": 77}), key={"id": '{"$oid": "5f5f5f5f5f5f5f5f5f5f5f5f"}'}
    )
    assert (event.key, event.target_id) == (KEY.encode([77]), b"5f" * 12)
    with pytest.raises(RecordError) as caught:
        decoder.decode(record(mongo_change("d"), key={"id": "9"}))
    assert caught.value.reason == "key_misfit"


@pytest.mark.parametrize(
    ("value", "key", "reason"),
    [
        (mongo_change("c"), {"id": "9"}, "document_missing"),
        (mongo_change("c", after=5), {"id": "9"}, "unparsable_document"),
        (mongo_change("c", after={"_id": 9, "total": {"$numberDecimal": "x"}}), {"id": "9"}, "unparsable_document"),
        ({**mongo_change("c"), "after": {"_id": 9}}, {"id": "9"}, "unparsable_document"),
        (mongo_change("x", after=DOCUMENT), {"id": "9"}, "unknown_operation"),
        (mongo_change("c", after=DOCUMENT, ord=None), {"id": "9"}, "position_missing"),
        (mongo_change("c", after=DOCUMENT), None, "key_missing"),
        (mongo_change("c", after=DOCUMENT), {"id": 9}, "key_missing"),
        (mongo_change("c", after=DOCUMENT), b"text", "key_missing"),
    ],
)
def test_a6_every_misunderstanding_has_a_reason(value: Any, key: Any, reason: str) -> None:
    _, decoder = target()
    with pytest.raises(RecordError) as caught:
        decoder.decode(record(value, key=key))
    assert caught.value.reason == reason


def test_a_row_without_an_envelope() -> None:
    mapping, decoder = target()
    flat = {"customer": "a", "total": 10.5, "count": 5, "__op": "u", "__source_ts_ms": SECONDS * 1_000, "__source_ord": 3}
    event = only(decoder, flat, offset=20)
    assert (event.operation, event.major, event.minor) == (Operation.LOOKED_UP, SECONDS << 32 | 3, 20)
    assert event.digest == mapping.canonical_target({"customer": "a", "total": 10.5, "count": 5}).digest
    assert only(decoder, {**flat, "__op": "d", "__deleted": True}).operation is Operation.DELETE
