"""Pipelines and raw records for the tests of the core: messages as the connectors write them, cut down to what matters."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gapwatch.core.envelopes import RawRecord
from gapwatch.model.pipeline import (
    FeedKind,
    FeedSpec,
    FieldSpec,
    FieldType,
    KeyColumn,
    KeyType,
    Match,
    PipelineSpec,
    SourceSpec,
    TargetSpec,
)
from gapwatch.model.stream import Operation, Side
from gapwatch.model.suspect import Reason, Seen, Suspect

COMMITTED = 1_726_000_000_123  # source.ts_ms of the samples
APPENDED = 1_726_000_000_456
TOPIC = "shop.public.orders"


def unsatisfied(key: bytes, *, digest: bytes = b"1" * 16, position: int = 7, event_time: int = COMMITTED, **more: Any) -> Suspect:
    """Return a suspect of one write of the source that the target never showed."""
    seen = Seen(
        side=Side.EXPECTED,
        feed=TOPIC,
        partition=0,
        offset=position,
        epoch=1,
        major=position,
        minor=0,
        operation=Operation.UPSERT,
        event_time=event_time,
        digest=digest,
    )
    fields: dict[str, Any] = {
        "id": "sus_1",
        "pipeline": "orders",
        "partition": 0,
        "key": key,
        "reason": Reason.UNSATISFIED,
        "opening": seen,
        "newest_expected": seen,
        "newest_observed": None,
        "older": [],
        "due": 0,
        "source_watermark": 0,
        "target_watermark": 0,
    }
    return Suspect(**(fields | more))


def field(target: str, kind: FieldType = FieldType.TEXT, *, source: str = "", **options: Any) -> FieldSpec:
    return FieldSpec(**{"target": target, "source": source or target, "type": kind, "maskable": False, **options})


def pipeline(
    *fields: FieldSpec,
    source_key: Sequence[KeyColumn] = (KeyColumn(path="id", type=KeyType.INT),),
    target_key: Sequence[KeyColumn] = (KeyColumn(path="_id", type=KeyType.INT),),
    source_feed: FeedSpec | None = None,
    target_feed: FeedSpec | None = None,
    match: Match = Match.DIGEST,
    version: str = "",
) -> PipelineSpec:
    return PipelineSpec(
        id="orders",
        source=SourceSpec(
            store="shop",
            table="public.orders",
            key=tuple(source_key),
            feed=source_feed or FeedSpec(kind=FeedKind.DEBEZIUM, topic=TOPIC),
            version=version,
        ),
        target=TargetSpec(
            store="catalog",
            collection="shop.orders",
            key=tuple(target_key),
            feed=target_feed or FeedSpec(kind=FeedKind.CHANGE_STREAM, topic="gapwatch.feed.orders.target"),
            version=version,
        ),
        fields=fields,
        match=match,
    )


def record(
    value: Any,
    *,
    key: Any = None,
    topic: str = TOPIC,
    partition: int = 0,
    offset: int = 17,
    headers: Mapping[str, bytes | str] | None = None,
) -> RawRecord:
    """Return a raw record; anything but bytes and None is written as JSON."""
    items = [(name, item if isinstance(item, bytes) else item.encode()) for name, item in (headers or {}).items()]
    return RawRecord(topic, partition, offset, APPENDED, _bytes(key), _bytes(value), items)


def _bytes(value: Any) -> bytes | None:
    if value is None or isinstance(value, bytes):
        return value
    return json.dumps(value).encode()


def source_block(**changes: Any) -> dict[str, Any]:
    return {
        "version": "3.6.3.Final",
        "connector": "postgresql",
        "name": "shop",
        "ts_ms": COMMITTED,
        "ts_us": COMMITTED * 1_000,
        "snapshot": "false",
        "db": "shop",
        "sequence": '["24023119","24023128"]',
        "schema": "public",
        "table": "orders",
        "txId": 555,
        "lsn": 24_023_128,
        "xmin": None,
        **changes,
    }


def change(op: str, *, before: Any = None, after: Any = None, **source: Any) -> dict[str, Any]:
    """Return a Debezium Postgres event as the JSON converter writes it with schemas off."""
    return {
        "before": before,
        "after": after,
        "source": source_block(**source),
        "transaction": None,
        "op": op,
        "ts_ms": COMMITTED + 300,
    }


def with_schema(event: Mapping[str, Any], columns: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the same event with schemas on."""
    row = {"type": "struct", "fields": list(columns), "optional": True, "name": "shop.public.orders.Value"}
    schema = {
        "type": "struct",
        "fields": [
            {**row, "field": "before"},
            {**row, "field": "after"},
            {
                "type": "struct",
                "fields": [],
                "optional": False,
                "name": "io.debezium.connector.postgresql.Source",
                "field": "source",
            },
            {"type": "string", "optional": False, "field": "op"},
        ],
        "optional": False,
        "name": "shop.public.orders.Envelope",
        "version": 2,
    }
    return {"schema": schema, "payload": dict(event)}


def mongo_change(op: str, *, after: Any = None, updated: bool = False, **source: Any) -> dict[str, Any]:
    """Return an event of Debezium's MongoDB connector; `after` is the document's extended JSON as an object."""
    description = {"removedFields": None, "updatedFields": '{"total": 1}', "truncatedArrays": None}
    return {
        "before": None,
        "after": None if after is None else json.dumps(after),
        "updateDescription": description if updated else None,
        "source": {
            "version": "3.6.1.Final",
            "connector": "mongodb",
            "name": "target",
            "ts_ms": COMMITTED // 1_000 * 1_000,
            "snapshot": "false",
            "db": "shop",
            "sequence": None,
            "collection": "orders",
            "ord": 3,
            "lsid": None,
            "txnNumber": None,
            "wallTime": COMMITTED,
            **source,
        },
        "op": op,
        "ts_ms": COMMITTED + 300,
        "transaction": None,
    }
