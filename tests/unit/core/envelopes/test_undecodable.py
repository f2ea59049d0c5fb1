"""Records at which a reader could stumble: each is refused by name and alone; none ends its reader, again and again."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gapwatch.core.canonical import ODD, compile_form
from gapwatch.core.envelopes import BatchDecoder, Event, EventColumns, Refused, decoder_for, heartbeat_row
from gapwatch.core.envelopes.extjson import decode_document
from gapwatch.core.envelopes.records import RawRecord
from gapwatch.core.mapping import CompiledMapping
from gapwatch.errors import RecordError
from gapwatch.model.pipeline import FeedKind, FeedSpec, FieldType, PipelineSpec
from gapwatch.model.stream import Side
from tests.property.test_compiled import Told
from tests.unit.core.samples import COMMITTED, change, field, mongo_change, pipeline, record, with_schema

TOPIC = FeedSpec(kind=FeedKind.TOPIC, topic="t", format="json")
ADDED = {"__op": "c", "__source_ts_ms": COMMITTED, "__source_sequence": '["5","6"]'}
BEYOND = "1e99999999999999999999"
DEEP = 400  # levels: the JSON reader takes them


def said(spec: PipelineSpec, raw: RawRecord, side: Side = Side.EXPECTED) -> list[Any]:
    """Return what a batch of this one record says: events, and why it is refused."""
    decoder = BatchDecoder(decoder_for(spec, side, CompiledMapping(spec)))
    columns = decoder.decode([Told(raw)])
    assert isinstance(columns, EventColumns)
    found: list[Any] = [event for event, _, _ in columns.events()]
    return found + [other.error.reason for _, other in columns.others if isinstance(other, Refused)]


def reason(spec: PipelineSpec, raw: RawRecord, side: Side = Side.EXPECTED) -> str:
    [found] = said(spec, raw, side)
    assert isinstance(found, str), "it was read"
    return found


def test_a_number_beyond_all_decimals_is_read_wherever_it_stands() -> None:
    value = json.dumps(change("c", after={"id": 1, "f": f'{{"a": {BEYOND}}}'})).encode()
    [event] = said(pipeline(field("f", FieldType.JSON, wire="json_text")), record(value, key={"id": 1}))
    assert isinstance(event, Event)
    plain = pipeline(field("f", FieldType.INFERRED), source_feed=TOPIC)
    [event] = said(plain, record(f'{{"id": 1, "f": {BEYOND}}}'.encode(), key={"id": 1}))
    assert isinstance(event, Event)
    assert reason(plain, record(f'{{"id": {BEYOND}}}'.encode())) == "key_misfit"


SCHEMA = {"type": "bytes", "name": "org.apache.kafka.connect.data.Decimal", "field": "f"}


@pytest.mark.parametrize(
    "column",
    [
        {**SCHEMA, "parameters": {"scale": "two"}},
        {**SCHEMA, "parameters": 5},
        {"type": "array", "items": "string", "field": "f"},
        {"type": "string", "name": ["x"], "field": "f"},
        7,
    ],
)
def test_a6_a_schema_that_is_none_of_connects_is_named(column: Any) -> None:
    value = with_schema(change("c", after={"id": 1, "f": "AA=="}), [column])
    assert reason(pipeline(field("f", FieldType.DECIMAL)), record(value, key={"id": 1})) == "unparsable_schema"


@pytest.mark.parametrize("broken", [b'"\xff"', b'"\\q"', b'"\\ud800"'])
def test_a6_added_fields_that_are_no_text_are_named(broken: bytes) -> None:
    row = json.dumps({"id": 1, "f": "a", **ADDED}).encode().replace(b'"c"', broken)
    assert reason(pipeline(field("f")), record(row, key={"id": 1})) in ("added_fields_missing", "unparsable_json")


@pytest.mark.parametrize("end", [b"", b'"', b"\xff", b"[[["])
def test_a6_a_cloud_event_that_breaks_off_is_named(end: bytes) -> None:
    value = b'{"source": "/debezium", "specversion": "1.0", "iodebeziumop": "c", "data": ' + end
    assert reason(pipeline(field("f")), record(value, key={"id": 1})) == "unparsable_json"


def nested(levels: int) -> str:
    return "[" * levels + "1" + "]" * levels


def test_a6_a_document_that_is_nested_too_deep_is_named() -> None:
    spec = pipeline(field("f", FieldType.INFERRED), target_feed=FeedSpec(kind=FeedKind.DEBEZIUM, topic="t"))
    value = mongo_change("c")
    value["after"] = f'{{"_id": 1, "f": {nested(DEEP)}}}'
    assert reason(spec, record(value, key={"id": "1"}), Side.OBSERVED) == "too_deep"
    value["after"] = '{"_id": 1, "f": 1}'
    assert reason(spec, record(value, key={"id": nested(DEEP)}), Side.OBSERVED) == "too_deep"


def test_a6_what_nobody_foresaw_is_refused_and_ends_nothing() -> None:
    """A number of so many digits that Python does not write it."""
    spec = pipeline(field("f", FieldType.TIME, wire="time_ms", precision="us"), source_feed=TOPIC)
    assert reason(spec, record(f'{{"id": 1, "f": {"9" * 4_299}}}'.encode(), key={"id": 1})) == "undecodable"


def test_a6_a_heartbeat_that_is_nested_too_deep_is_refused() -> None:
    value = change("c", after={"id": 1})
    value["message"] = {"prefix": "gapwatch", "content": "e30="}
    deep = json.dumps(value).replace('"transaction": null', f'"transaction": {nested(5_000)}').encode()
    with pytest.raises(RecordError):
        heartbeat_row(record(deep))


@pytest.mark.parametrize("op", [["index"], {"op": "index"}, 1, None, True])
def test_a6_an_ack_whose_operation_is_no_text_is_refused(op: Any) -> None:
    spec = pipeline(field("f"), target_feed=FeedSpec(kind=FeedKind.ACKS, topic="t"))
    assert reason(spec, record({"op": op, "id": "1", "time": 5}), Side.OBSERVED) == "unknown_operation"


def test_a_row_that_looks_like_the_end_of_a_transaction_is_a_row() -> None:
    """Columns status, id and event_count, and somebody's status is END: such writes were passed over without a word."""
    spec = pipeline(field("status"), field("event_count", FieldType.INT))
    [event] = said(spec, record({"id": 1, "status": "END", "event_count": 5, **ADDED}, key={"id": 1}))
    assert isinstance(event, Event)
    assert event.digest == CompiledMapping(spec).canonical_source({"status": "END", "event_count": 5}).digest
    assert said(spec, record({"id": "571:1", "status": "END", "event_count": 5, "ts_ms": 1, "data_collections": []})) == []


@pytest.mark.parametrize(
    "text",
    ['{"$oid": "5f5f5f5f5f5f5f5f5f5f5f5f", "x": 1}', '{"$numberLong": "5", "x": 1}', '{"$date": 1000, "$type": "00"}'],
)
def test_a_document_whose_names_begin_with_a_dollar_is_no_wrapped_value(text: str) -> None:
    """What stood beside the wrapper was not looked at: two documents that differ there were one."""
    form = compile_form(field("f", FieldType.INFERRED))
    read = decode_document(f'{{"f": {text}}}')["f"]
    assert form(read) == form(json.loads(text))
    for kind in (FieldType.INT, FieldType.OBJECTID, FieldType.TIMESTAMP):
        assert compile_form(field("f", kind))(read)[:1] == ODD
