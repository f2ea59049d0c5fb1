"""Records of the ``_seq_no`` tail, and of an indexer's acks."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gapwatch.core.envelopes import Event, Marker, RawRecord, decoder_for, letter_decoders_for
from gapwatch.core.envelopes.search import delivered_of
from gapwatch.core.mapping import CompiledMapping
from gapwatch.errors import KeyMisfit, RecordError
from gapwatch.model.pipeline import FeedKind, FeedSpec, FieldType
from gapwatch.model.stream import Letter, Operation, Side
from gapwatch_connectors.opensearch.acks import acks_of, heartbeat
from tests.unit.core.samples import APPENDED, field, pipeline

FIELDS = (field("customer"), field("total", FieldType.DECIMAL))
HEADERS = {
    "gapwatch-op": b"index",
    "gapwatch-time": b"1726000000123",
    "gapwatch-position": b"1726000000123:7",
    "gapwatch-version": b"3",
    "gapwatch-shard": b"2:1:7",
}


def decoded(kind: FeedKind, *records: RawRecord) -> list[Any]:
    spec = pipeline(*FIELDS, target_feed=FeedSpec(kind=kind, topic="t"))
    decoder = decoder_for(spec, Side.OBSERVED, CompiledMapping(spec))
    return [item for record in records for item in decoder.decode(record)]


def tail_record(
    value: bytes | None = b'{"customer": "a", "total": 1.50}', key: bytes = b'{"_id":"42"}', **changed: Any
) -> RawRecord:
    headers = {**HEADERS, **{name.replace("_", "-"): item for name, item in changed.items()}}
    return RawRecord("t", 0, 9, APPENDED, key, value, [(name, item) for name, item in headers.items() if item is not None])


def ack(value: Any, *, partition: int = 0, offset: int = 9) -> RawRecord:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return RawRecord("t", partition, offset, APPENDED, b"k", raw, [])


def test_a_document_of_the_tail_is_what_the_source_says_of_it() -> None:
    [event] = decoded(FeedKind.SEQ_NO, tail_record())
    assert isinstance(event, Event)
    spec = pipeline(*FIELDS)
    mapping = CompiledMapping(spec)
    assert event.key == mapping.source.codec.encode([42])
    assert (event.operation, event.major, event.minor) == (Operation.UPSERT, 1726000000123, 7)
    assert event.digest == mapping.canonical_source({"customer": "a", "total": "1.5"}).digest


def test_trap_46_a_document_that_was_too_large_for_a_record_is_touched() -> None:
    [event] = decoded(FeedKind.SEQ_NO, tail_record(value=None, gapwatch_op=b"update_touched"))
    [whole] = decoded(FeedKind.SEQ_NO, tail_record())
    assert (event.key, event.operation, event.digest) == (whole.key, Operation.TOUCHED, b"")
    assert (event.major, event.minor, event.event_time) == (whole.major, whole.minor, whole.event_time)


def test_numbers_of_the_tail_are_exact() -> None:
    one, other = decoded(
        FeedKind.SEQ_NO,
        tail_record(b'{"customer": "a", "total": 100000000000000000000000}'),
        tail_record(b'{"customer": "a", "total": 100000000000000000000001}'),
    )
    assert one.digest != other.digest


def test_a_marker_of_the_tail_is_a_watermark() -> None:
    record = RawRecord("t", 0, 9, APPENDED, None, None, [("gapwatch-watermark", b"1726000000999")])
    assert decoded(FeedKind.SEQ_NO, record) == [Marker(1726000000999)]


@pytest.mark.parametrize(
    "record",
    [
        tail_record(b"["),
        tail_record(b"[]"),
        tail_record(gapwatch_op=b"delete"),
        tail_record(gapwatch_position=b"x:7"),
        tail_record(gapwatch_time=None),
        tail_record(key=b""),
    ],
)
def test_a6_a_malformed_record_of_the_tail_is_refused(record: RawRecord) -> None:
    with pytest.raises(RecordError):
        decoded(FeedKind.SEQ_NO, record)


def test_an_id_that_does_not_fit_is_never_coerced() -> None:
    with pytest.raises(KeyMisfit):
        decoded(FeedKind.SEQ_NO, tail_record(key=b'{"_id":"042"}'))


BODY: list[dict[str, Any]] = [
    {"index": {"_id": "1"}},
    {"customer": "a", "total": 1.5},
    {"create": {"_id": "2"}},
    {"customer": "b", "total": "many"},
    {"update": {"_id": "3"}},
    {"doc": {"customer": "c"}},
    {"delete": {"_id": "4"}},
    {"delete": {"_id": "5"}},
]
ANSWER: dict[str, Any] = {
    "errors": True,
    "items": [
        {"index": {"_id": "1", "status": 201, "_version": 1}},
        {"create": {"_id": "2", "status": 400, "error": {"type": "mapper_parsing_exception"}}},
        {"update": {"_id": "3", "status": 200, "_version": 2}},
        {"delete": {"_id": "4", "status": 200, "_version": 2}},
        {"delete": {"_id": "5", "status": 404, "result": "not_found"}},
    ],
}


def test_a3_trap_29_only_accepted_items_of_a_bulk_count_as_observed() -> None:
    acks = acks_of(BODY, ANSWER, 1726000000123)
    events = decoded(FeedKind.ACKS, *(ack(item.value, offset=n) for n, item in enumerate(acks)))
    codec = CompiledMapping(pipeline(*FIELDS)).target.codec
    assert [(codec.decode(event.key)[0], event.operation) for event in events] == [
        (1, Operation.UPSERT),
        (3, Operation.TOUCHED),
        (4, Operation.DELETE),
        (5, Operation.DELETE),
    ]
    assert json.loads(acks[1].value)["error"] == "mapper_parsing_exception"
    assert len({item.key for item in acks}) == 5


def test_an_answer_that_is_not_the_bulks_is_refused() -> None:
    with pytest.raises(ValueError, match="5 actions"):
        acks_of(BODY, {"items": ANSWER["items"][:2]}, 1)


def test_the_indexer_that_is_furthest_behind_holds_the_watermark() -> None:
    beats = [("a", 100), ("b", 90), ("a", 200), ("b", 150)]
    records = [ack(heartbeat(time, name, of=2)) for name, time in beats]
    assert decoded(FeedKind.ACKS, *records) == [Marker(90), Marker(90), Marker(150)]


def test_partitions_are_told_apart_and_a_lone_indexer_speaks_for_itself() -> None:
    assert decoded(FeedKind.ACKS, ack(heartbeat(100, "a", of=2)), ack(heartbeat(90, "b", of=2), partition=1)) == []
    assert decoded(FeedKind.ACKS, ack(heartbeat(100, "a"))) == [Marker(100)]


def test_an_indexer_that_was_replaced_does_not_hold_the_watermark_for_ever() -> None:
    beats = [("a", 100), ("b", 100), ("c", 200), ("b", 210)]
    assert decoded(FeedKind.ACKS, *(ack(heartbeat(time, name, of=2)) for name, time in beats))[-1] == Marker(200)


def test_a_heartbeat_says_how_far_its_indexer_has_come() -> None:
    said = heartbeat(100, "a", delivered={"shop.public.orders": {0: 17, 12: 3}, "other": {1: 0}})
    assert delivered_of(said) == (100, {("shop.public.orders", 0): 17, ("shop.public.orders", 12): 3, ("other", 1): 0})
    assert decoded(FeedKind.ACKS, ack(said)) == [Marker(100)]
    assert delivered_of(heartbeat(100, "a")) == (100, {})
    assert delivered_of(b'{"op": "delete", "id": "\\"heartbeat\\"", "time": 1}') == (0, {})


@pytest.mark.parametrize("delivered", [[], {"t": 1}, {"t": {"x": 1}}, {"t": {"0": "1"}}, {"t": {"0": -1}}, {"t": {"0": True}}])
def test_a6_a_heartbeat_whose_positions_cannot_be_read_is_refused(delivered: Any) -> None:
    with pytest.raises(RecordError) as refused:
        delivered_of(json.dumps({"heartbeat": 1, "delivered": delivered}).encode())
    assert refused.value.reason in ("unreadable_ack", "unreadable_header")


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"{",
        {"op": "upsert", "id": "1", "time": 1},
        {"op": "index", "id": 1, "time": 1, "document": {}},
        {"op": "index", "id": "1", "time": 1},
        {"op": "delete", "id": "1"},
        {"op": "delete", "id": "1", "time": 1.5},
        {"heartbeat": "now", "indexer": "a"},
        {"heartbeat": 1, "indexer": "a", "of": 0},
    ],
)
def test_a6_a_malformed_ack_is_refused(value: Any) -> None:
    with pytest.raises(RecordError):
        decoded(FeedKind.ACKS, ack(value))


def test_a_refused_item_of_a_bulk_is_a_letter_with_status_and_error_and_no_observed_write() -> None:
    body: list[dict[str, Any]] = [{"index": {"_id": "42"}}, {"customer": "a"}, {"index": {"_id": "43"}}, {"customer": "b"}]
    refusal = {"_id": "42", "status": 400, "error": {"type": "mapper_parsing_exception", "reason": "says the value: a"}}
    taken = {"_id": "43", "status": 201, "_version": 1}
    records = [
        ack(one.value, offset=at) for at, one in enumerate(acks_of(body, {"items": [{"index": refusal}, {"index": taken}]}, 5))
    ]
    spec = pipeline(*FIELDS, target_feed=FeedSpec(kind=FeedKind.ACKS, topic="t"))
    decoder = letter_decoders_for(spec)["t"]
    [letter] = [letter for record in records for letter in decoder.decode(record)]
    assert letter == Letter(
        "orders",
        CompiledMapping(spec).source.codec.encode([42]),
        Operation.REJECTED,
        "t",
        0,
        0,
        0,
        0,
        5,
        "400 mapper_parsing_exception",
    )
    assert [event.key for event in decoded(FeedKind.ACKS, records[0])] == []


@pytest.mark.parametrize("time", [1_726_000_000_123_000, 2**63, 10**30])
def test_a_heartbeat_of_another_unit_is_refused_and_forgotten(time: int) -> None:
    """Kept, its indexer counted as through with everything for ever: the other one alone moved the watermark."""
    spec = pipeline(*FIELDS, target_feed=FeedSpec(kind=FeedKind.ACKS, topic="t"))
    decoder = decoder_for(spec, Side.OBSERVED, CompiledMapping(spec))
    beat = json.dumps({"heartbeat": time, "indexer": "a", "of": 2, "delivered": {"t": {"0": 5}}}).encode()
    for read in (lambda: decoder.decode(ack(beat)), lambda: delivered_of(beat)):
        with pytest.raises(RecordError):
            read()
    assert decoder.decode(ack(heartbeat(200, "b", of=2))) == ()
    assert decoder.decode(ack(heartbeat(100, "a", of=2))) == (Marker(100),)


@pytest.mark.parametrize("time", [1_726_000_000_123_000, 10**30])
def test_a_refused_item_at_a_time_that_there_cannot_be_is_no_letter(time: int) -> None:
    """What cannot be kept of it would end ingest where it is sent, again and again."""
    spec = pipeline(*FIELDS, target_feed=FeedSpec(kind=FeedKind.ACKS, topic="t"))
    with pytest.raises(RecordError):
        letter_decoders_for(spec)["t"].decode(ack({"op": "rejected", "id": "42", "time": time}))
