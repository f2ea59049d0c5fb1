"""Other forms of Debezium's envelope: CloudEvents, schemas in a registry, and what is none of them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from gapwatch.core.envelopes import Event, Truncate, decoder_for, heartbeat_row
from gapwatch.core.mapping import CompiledMapping
from gapwatch.errors import RecordError
from gapwatch.model.pipeline import FeedKind, FeedSpec, FieldType
from gapwatch.model.stream import Side
from tests.unit.core.samples import change, field, pipeline, record, with_schema

FIELDS = (field("customer"), field("total", FieldType.DECIMAL, source="amount"))
ROW = {"id": 1, "customer": "a", "amount": "10.00"}
SPEC = pipeline(*FIELDS)
MAPPING = CompiledMapping(SPEC)
COLUMNS = [
    {"type": "int64", "optional": False, "field": "id"},
    {"type": "string", "optional": True, "field": "customer"},
    {"type": "string", "optional": True, "field": "amount"},
]


def cloud(event: dict[str, Any]) -> dict[str, Any]:
    """Return what Debezium's CloudEvents converter makes of an event: every attribute is a text."""
    described, inner = "schema" in event, event.get("payload", event)
    source, data = inner["source"], {"before": inner["before"], "after": inner["after"]}
    made = {
        "id": f"name:{source['name']};lsn:{source['lsn']}",
        "source": f"/debezium/postgresql/{source['name']}",
        "specversion": "1.0",
        "type": "io.debezium.connector.postgresql.DataChangeEvent",
        "datacontenttype": "application/json",
        "iodebeziumop": inner["op"],
        "iodebeziumconnector": source["connector"],
        "iodebeziumtsms": str(source["ts_ms"]),
        "iodebeziumsnapshot": source["snapshot"],
        "iodebeziumsequence": source["sequence"],
        "iodebeziumlsn": str(source["lsn"]),
        "iodebeziumtxid": None,
    }
    if not described:
        return {**made, "data": data}
    fields = [one for one in event["schema"]["fields"] if one["field"] in data]
    return {**made, "data": {"schema": {"type": "struct", "fields": fields}, "payload": data}}


def decoded(value: Any) -> list[Any]:
    return list(decoder_for(SPEC, Side.EXPECTED, MAPPING).decode(record(value, key={"id": 1})))


@pytest.mark.parametrize("schemas", [False, True], ids=["schemas off", "schemas on"])
@pytest.mark.parametrize("op", ["c", "u", "d", "r"])
def test_a_cloud_event_is_the_envelope_that_it_was_made_of(op: str, *, schemas: bool) -> None:
    images = {"before": ROW, "after": None} if op == "d" else {"after": ROW}
    event = change(op, **images)
    event = with_schema(event, COLUMNS) if schemas else event
    (made,), (meant,) = decoded(cloud(event)), decoded(event)
    assert isinstance(made, Event)
    assert made == meant


def test_a_truncate_and_a_heartbeat_row_may_be_cloud_events() -> None:
    assert [type(one) for one in decoded(cloud(change("t")))] == [Truncate]
    event = change("u", after={"id": 1})
    assert heartbeat_row(record(cloud(event))) == heartbeat_row(record(event))
    assert heartbeat_row(record(event)) is not None


def test_no_compiled_loop_reads_cloud_events() -> None:
    decoder = decoder_for(SPEC, Side.EXPECTED, MAPPING)
    event = change("c", after=ROW)
    assert decoder.loop(record(event, key={"id": 1})) is not None
    assert decoder.loop(record(cloud(event), key={"id": 1})) is None


def test_somebody_elses_cloud_event_is_no_envelope() -> None:
    foreign = {"specversion": "1.0", "id": "1", "source": "/shop", "type": "order.placed", "data": ROW}
    with pytest.raises(RecordError) as raised:
        decoded(foreign)
    assert raised.value.reason == "added_fields_missing"


def test_a_record_whose_schema_was_not_read_says_so() -> None:
    with pytest.raises(RecordError, match="needs schema 66049") as raised:
        decoded(b"\0\x00\x01\x02\x01\x08abc")
    assert raised.value.reason == "schema_unread"
    with pytest.raises(RecordError) as other:
        decoded(b"nothing")
    assert other.value.reason == "unparsable_json"


def test_plain_topics_may_have_their_schema_beside_them() -> None:
    spec = replace(SPEC, source=replace(SPEC.source, feed=FeedSpec(kind=FeedKind.TOPIC, topic="plain", format="json")))
    decoder = decoder_for(spec, Side.EXPECTED, CompiledMapping(spec))

    def said(value: Any, key: Any) -> list[Any]:
        return list(decoder.decode(record(value, key=key)))

    wrapped = said({"schema": {}, "payload": ROW}, {"schema": {}, "payload": {"id": 1}})
    assert wrapped == said(ROW, {"id": 1})
    assert wrapped == said(json.dumps(ROW).encode(), {"schema": {}, "payload": 1})
