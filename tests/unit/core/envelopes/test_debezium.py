"""Debezium Postgres, with an envelope and without. The samples are the JSON converter's, cut down to what matters."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, cast

import pytest

from gapwatch.core.digests import BLANK, identity
from gapwatch.core.envelopes import Decoder, Event, LetterDecoder, LoopDecoder, Truncate, decoder_for, letter_decoders_for
from gapwatch.core.keys import KeyCodec
from gapwatch.core.mapping import MASKED_VALUE, CompiledMapping
from gapwatch.errors import ConfigError, KeyMisfit, RecordError
from gapwatch.model.pipeline import FeedKind, FeedSpec, FieldType, KeyColumn, KeyType, Match, PipelineSpec
from gapwatch.model.stream import Letter, Operation, Side
from tests.unit.core.samples import COMMITTED, TOPIC, change, field, pipeline, record, with_schema

PLACEHOLDER = "__debezium_unavailable_value"
KEY = KeyCodec([KeyColumn(path="id", type=KeyType.INT)])
FIELDS = (field("customer"), field("total", FieldType.DECIMAL, source="amount"))
ROW = {"id": 1, "customer": "a", "amount": "10.00", "unmapped": [1, {"x": 2}]}


def source(*fields: Any, **options: Any) -> tuple[CompiledMapping, Decoder]:
    return build(pipeline(*(fields or FIELDS), **options))


def build(spec: PipelineSpec, side: Side = Side.EXPECTED) -> tuple[CompiledMapping, Decoder]:
    mapping = CompiledMapping(spec)
    return mapping, decoder_for(spec, side, mapping)


def full_before(*fields: Any, **options: Any) -> tuple[CompiledMapping, Decoder]:
    spec = pipeline(*(fields or FIELDS), **options)
    return build(replace(spec, source=replace(spec.source, feed=replace(spec.source.feed, full_before=True))))


def only(decoder: Decoder, value: Any, **options: Any) -> Event:
    events = decoder.decode(record(value, **{"key": {"id": 1}, **options}))
    assert len(events) == 1
    assert isinstance(events[0], Event)
    return events[0]


def reason(decoder: Decoder, value: Any, **options: Any) -> str:
    with pytest.raises(RecordError) as caught:
        decoder.decode(record(value, **{"key": {"id": 1}, **options}))
    return caught.value.reason


@pytest.mark.parametrize(("op", "operation"), [("c", Operation.UPSERT), ("u", Operation.UPSERT), ("r", Operation.SNAPSHOT)])
def test_a1_an_event_says_what_a_read_of_the_row_would_say(op: str, operation: Operation) -> None:
    mapping, decoder = source()
    event = only(decoder, change(op, after=ROW))
    read = mapping.canonical_source({"customer": "a", "amount": Decimal("10")})
    assert event == Event(KEY.encode([1]), operation, 24_023_119, 24_023_128, COMMITTED, read.digest, None, None, None, None)


def test_a1_a_delete_knows_its_key_and_no_content() -> None:
    _, decoder = source()
    event = only(decoder, change("d", before={"id": 1, "customer": None, "amount": None}))
    assert (event.key, event.operation, event.digest) == (KEY.encode([1]), Operation.DELETE, b"")


def test_a5_a_tombstone_after_an_envelope_says_nothing_new() -> None:
    _, decoder = source()
    only(decoder, change("d", before=ROW))
    assert decoder.decode(record(None, key={"id": 1})) == ()
    assert decoder.decode(record({"schema": None, "payload": None}, key={"id": 1})) == ()


@pytest.mark.parametrize("snapshot", ["first", "true", "last", "incremental", True])
def test_a4_snapshot_reads_are_no_writes(snapshot: Any) -> None:
    _, decoder = source()
    assert only(decoder, change("r", after=ROW, snapshot=snapshot)).operation is Operation.SNAPSHOT
    assert only(decoder, change("c", after=ROW, snapshot=snapshot)).operation is Operation.SNAPSHOT
    event = only(decoder, change("r", after=ROW, snapshot=snapshot, sequence=None))
    assert (event.major, event.minor) == (0, 0)


@pytest.mark.parametrize(
    ("sequence", "position"),
    [('["1","2"]', (1, 2)), ('[null,"2"]', (0, 2)), ("[3,4]", (3, 4)), ('["18446744073709551615","2"]', (2**64 - 1, 2))],
)
def test_trap_1_order_is_the_pair_of_last_commit_and_lsn(sequence: str, position: tuple[int, int]) -> None:
    _, decoder = source()
    event = only(decoder, change("c", after=ROW, sequence=sequence, lsn=99))
    assert (event.major, event.minor) == position


def test_trap_1_a_single_lsn_is_never_order() -> None:
    _, decoder = source()
    assert reason(decoder, change("c", after=ROW, sequence=None)) == "position_missing"
    assert reason(decoder, change("c", after=ROW, sequence='["1"]')) == "position_missing"
    assert reason(decoder, change("c", after=ROW, sequence='["x","y"]')) == "position_missing"
    assert reason(decoder, change("c", after=ROW, ts_ms=None)) == "position_missing"


def test_trap_2_a_changed_primary_key_is_a_delete_and_a_create_at_one_position() -> None:
    _, decoder = source()
    gone = only(decoder, change("d", before=ROW), headers={"__debezium.newkey": '{"id":2}'})
    come = only(decoder, change("c", after={**ROW, "id": 2}), key={"id": 2}, headers={"__debezium.oldkey": '{"id":1}'})
    assert (gone.key, gone.operation) == (KEY.encode([1]), Operation.DELETE)
    assert (come.key, come.operation) == (KEY.encode([2]), Operation.UPSERT)
    assert (gone.major, gone.minor) == (come.major, come.minor)


def test_a_truncate_names_no_key() -> None:
    _, decoder = source()
    assert decoder.decode(record(change("t"))) == (Truncate(COMMITTED, 24_023_119, 24_023_128),)


@pytest.mark.parametrize(
    "value",
    [
        {"ts_ms": COMMITTED},
        {"status": "BEGIN", "id": "571:53195829", "event_count": None, "data_collections": None, "ts_ms": COMMITTED},
        {"schema": {"type": "struct", "fields": []}, "payload": {"ts_ms": COMMITTED}},
        {**change("m"), "message": {"prefix": "app", "content": "AAE="}},
    ],
)
def test_trap_4_heartbeats_transactions_and_messages_are_no_rows(value: Any) -> None:
    _, decoder = source()
    assert decoder.decode(record(value)) == ()


# ── nothing changed ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_update_that_leaves_the_mapped_fields_opens_nothing() -> None:
    _, decoder = full_before()
    event = only(decoder, change("u", before={**ROW, "unmapped": 1, "amount": "10.0"}, after=ROW))
    assert (event.operation, event.digest) == (Operation.UNCHANGED, b"")
    event = only(decoder, change("u", before={**ROW, "amount": "10.01"}, after=ROW))
    assert event.operation is Operation.UPSERT


def test_a_partial_before_image_proves_nothing() -> None:
    """REPLICA IDENTITY USING INDEX fills the other columns with nulls: equal nulls are not equal values."""
    _, decoder = source()
    row = {"id": 1, "customer": None, "amount": None}
    assert only(decoder, change("u", before=row, after=row)).operation is Operation.UPSERT


def test_an_update_of_the_version_alone_is_a_write() -> None:
    _, decoder = full_before(field("customer"), version="version", match=Match.VERSION)
    event = only(decoder, change("u", before={**ROW, "version": 1}, after={**ROW, "version": 2}))
    assert (event.operation, event.version) == (Operation.UPSERT, 2)
    assert reason(decoder, change("u", after={**ROW, "version": "one"})) == "version_missing"


# ── masks ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kind", "sent", "read"),
    [
        (FieldType.TEXT, PLACEHOLDER, "long text"),
        (FieldType.JSON, PLACEHOLDER, {"a": 1}),
        (FieldType.BYTES, base64.b64encode(PLACEHOLDER.encode()).decode(), b"\x00"),
        (FieldType.ARRAY, [PLACEHOLDER], ["x", "y"]),
        (FieldType.ARRAY, list(PLACEHOLDER.encode()), [1, 2]),
    ],
)
def test_trap_17_unchanged_toast_masks_its_field_only(kind: FieldType, sent: Any, read: Any) -> None:
    mapping, decoder = source(field("customer"), field("note", kind, maskable=True))
    event = only(decoder, change("u", after={"id": 1, "customer": "a", "note": sent}))
    known = identity(event.digest, event.masks)
    row = mapping.canonical_source({"customer": "a", "note": read})
    assert event.operation is Operation.UPSERT
    assert event.masks == (b"",)
    assert known[:16] == row.digest
    assert known[16:] == BLANK


def test_trap_17_a_placeholder_where_none_can_be_says_that_the_content_is_unknown() -> None:
    _, decoder = source(field("customer"), field("note"))
    event = only(decoder, change("u", after={"id": 1, "customer": "a", "note": PLACEHOLDER}))
    assert (event.operation, event.digest) == (Operation.TOUCHED, b"")


def test_trap_17_a_masked_toleranced_value_agrees_with_any() -> None:
    mapping, decoder = source(field("n", FieldType.DECIMAL, tolerance=Decimal("0.1"), maskable=True), field("customer"))
    event = only(decoder, change("u", after={"id": 1, "customer": "a", "n": PLACEHOLDER}))
    assert event.values == (MASKED_VALUE,)
    assert mapping.values_agree(event.values, ("7",))


def test_trap_17_in_a_table_that_is_the_target_the_placeholder_is_read_once_more() -> None:
    """Its log did not carry the value, or the sink wrote the placeholder: the event does not say which, and the table does."""
    feed = FeedSpec(kind=FeedKind.DEBEZIUM, topic="copy.public.orders")
    for maskable in (True, False):
        spec = pipeline(field("note", maskable=maskable), target_feed=feed, target_key=[KeyColumn(path="id", type=KeyType.INT)])
        mapping, decoder = build(spec, Side.OBSERVED)
        event = only(decoder, change("u", after={"id": 1, "note": PLACEHOLDER}))
        assert event.operation is Operation.TOUCHED
        assert mapping.canonical_target({"note": PLACEHOLDER}).parts == (b"\x02" + PLACEHOLDER.encode(),)


def test_what_a_row_holds_in_its_key_s_column_matters_only_where_the_record_s_key_does_not_name_it() -> None:
    _, decoder = source(field("customer"))
    row = record(change("c", after={"id": 1, "customer": "a"}), key={"id": 1})
    torn = row._replace(value=(row.value or b"").replace(b'"id": 1', b'"id": "\xff"'))
    assert torn.value != row.value
    [event] = decoder.decode(torn)
    assert isinstance(event, Event)
    assert event == decoder.decode(row)[0]
    with pytest.raises(RecordError):
        decoder.decode(torn._replace(key=b'{"other": 1}'))


# ── encodings ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────

COLUMNS: list[dict[str, Any]] = [
    {"type": "int64", "optional": False, "field": "id"},
    {"type": "bytes", "name": "org.apache.kafka.connect.data.Decimal", "parameters": {"scale": "2"}, "field": "fixed"},
    {"type": "struct", "name": "io.debezium.data.VariableScaleDecimal", "field": "free"},
    {"type": "int64", "name": "io.debezium.time.MicroTimestamp", "field": "local"},
    {"type": "string", "name": "io.debezium.time.ZonedTimestamp", "field": "zoned"},
    {"type": "int32", "name": "io.debezium.time.Date", "field": "day"},
    {"type": "int64", "name": "io.debezium.time.MicroTime", "field": "clock"},
    {"type": "string", "name": "io.debezium.data.Uuid", "field": "uuid"},
    {"type": "string", "name": "io.debezium.data.Json", "field": "json"},
    {"type": "bytes", "field": "raw"},
    {"type": "float", "field": "single"},
    {"type": "double", "field": "double"},
    {"type": "boolean", "field": "flag"},
    {"type": "bytes", "name": "io.debezium.data.Bits", "parameters": {"length": "4"}, "field": "bits"},
    {
        "type": "array",
        "items": {"type": "bytes", "name": "org.apache.kafka.connect.data.Decimal", "parameters": {"scale": "2"}},
        "field": "numbers",
    },
]
ENCODED: dict[str, Any] = {
    "id": 1,
    "fixed": "A+g=",
    "free": {"scale": 1, "value": "ZA=="},
    "local": 1_726_000_000_123_456,
    "zoned": "2024-09-10T22:26:40.123456+02:00",
    "day": 19_782,
    "clock": 43_200_005_000,
    "uuid": "8C1A9F10-0B0E-4C3A-9D52-0A8B8F3F7A11",
    "json": '{"b": 1.0, "a": 100000000000000000000001}',
    "raw": "AP8=",
    "single": 0.1,
    "double": 1e23,
    "flag": True,
    "bits": "BQ==",
    "numbers": ["A+g=", None],
}
READ: dict[str, Any] = {
    "fixed": Decimal("10.00"),
    "free": Decimal("10.0"),
    "local": datetime(2024, 9, 10, 20, 26, 40, 123_456),  # noqa: DTZ001 - a column without a zone
    "zoned": datetime(2024, 9, 10, 20, 26, 40, 123_456, tzinfo=UTC),
    "day": datetime(2024, 2, 29).date(),  # noqa: DTZ001
    "clock": "12:00:00.005",
    "uuid": "8c1a9f10-0b0e-4c3a-9d52-0a8b8f3f7a11",
    "json": {"a": 100_000_000_000_000_000_000_001, "b": 1},
    "raw": b"\x00\xff",
    "single": 0.1,
    "double": 1e23,
    "flag": True,
    "bits": "0101",
    "numbers": [Decimal(10), None],
}
KINDS: dict[str, tuple[FieldType, str, int | None]] = {
    "fixed": (FieldType.DECIMAL, "base64_unscaled", 2),
    "free": (FieldType.DECIMAL, "variable_scale", None),
    "local": (FieldType.TIMESTAMP, "epoch_us", None),
    "zoned": (FieldType.TIMESTAMP, "iso", None),
    "day": (FieldType.DATE, "epoch_days", None),
    "clock": (FieldType.TIME, "time_us", None),
    "uuid": (FieldType.UUID, "", None),
    "json": (FieldType.JSON, "json_text", None),
    "raw": (FieldType.BYTES, "base64", None),
    "single": (FieldType.FLOAT, "float32", None),
    "double": (FieldType.FLOAT, "", None),
    "flag": (FieldType.BOOL, "", None),
    "bits": (FieldType.TEXT, "bits", 4),
    "numbers": (FieldType.ARRAY, "items:decimal:base64_unscaled", 2),
}


@pytest.mark.parametrize("name", list(KINDS))
def test_trap_20_schemas_on_schemas_off_and_the_driver_say_the_same(name: str) -> None:
    kind, wire, scale = KINDS[name]
    mapping, resolved = source(field(name, kind, wire=wire, wire_scale=scale, precision="us"))
    _, unresolved = source(field(name, kind, precision="us", wire=wire if wire in ("float32", "bits") else ""))
    event = change("c", after=ENCODED)
    expected = mapping.canonical_source(READ).digest
    assert only(resolved, event).digest == expected
    assert only(resolved, with_schema(event, COLUMNS)).digest == expected
    assert only(unresolved, with_schema(event, COLUMNS)).digest == expected


def test_a_changed_schema_is_read_by_itself() -> None:
    mapping, decoder = source(field("f", FieldType.TIMESTAMP))
    expected = mapping.canonical_source({"f": datetime(2024, 9, 10, 20, 26, 40, tzinfo=UTC)}).digest
    for name, factor in (("Timestamp", 1_000), ("MicroTimestamp", 1_000_000), ("NanoTimestamp", 10**9), ("Timestamp", 1_000)):
        columns = [{"type": "int64", "name": f"io.debezium.time.{name}", "field": "f"}]
        event = with_schema(change("c", after={"id": 1, "f": 1_726_000_000 * factor}), columns)
        assert only(decoder, event).digest == expected


def test_b4_numbers_in_json_lose_no_digit() -> None:
    mapping, decoder = source(field("n", FieldType.DECIMAL))
    for text in ("100000000000000000000001", "0.1000000000000000000001", "1e23", "-0.0"):
        value = json.dumps(change("c", after={"id": 1, "n": 0})).replace('"n": 0', f'"n": {text}').encode()
        assert only(decoder, value).digest == mapping.canonical_source({"n": Decimal(text)}).digest


# ── keys ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "key",
    [
        {"id": 1},
        {"schema": {"type": "struct", "fields": [{"type": "int64", "field": "id"}]}, "payload": {"id": 1}},
        None,
        b"1",
        {"other": 5},
        b"\x00not json",
    ],
)
def test_the_key_comes_from_the_record_key_or_from_the_row(key: Any) -> None:
    _, decoder = source()
    assert only(decoder, change("c", after=ROW), key=key).key == KEY.encode([1])


def test_an_encoded_key_is_read_by_its_schema_or_by_the_catalogue() -> None:
    schema = {"type": "bytes", "name": "org.apache.kafka.connect.data.Decimal", "parameters": {"scale": "0"}, "field": "id"}
    encoded = base64.b64encode((2**70).to_bytes(10, "big")).decode()
    _, decoder = source()
    key = {"schema": {"type": "struct", "fields": [schema]}, "payload": {"id": encoded}}
    assert only(decoder, change("c", after={**ROW, "id": encoded}), key=key).key == KEY.encode([2**70])
    column = KeyColumn(path="id", type=KeyType.INT, wire="base64_unscaled", wire_scale=0)
    _, decoder = source(source_key=[column])
    assert only(decoder, change("c", after={**ROW, "id": encoded}), key={"id": encoded}).key == KEY.encode([2**70])


def test_trap_16_a_delete_whose_identity_lacks_the_key_is_refused_by_name() -> None:
    _, decoder = source()
    with pytest.raises(KeyMisfit, match="replica identity"):
        decoder.decode(record(change("d", before={"id": None, "customer": "a"}), key=None))
    assert reason(decoder, change("d"), key=None) == "key_missing"


def test_a_key_that_does_not_fit_is_never_coerced() -> None:
    _, decoder = source()
    for wrong in (1.5, True, "one", None):
        assert reason(decoder, change("c", after={**ROW, "id": wrong}), key={"id": wrong}) == "key_misfit"


# ── what cannot be understood ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"{broken", "unparsable_json"),
        (b"\xff\xfe", "unparsable_json"),
        (b"5", "unparsable_json"),
        (b"[" * 5_000 + b"]" * 5_000, "unparsable_json"),
        (change("x", after=ROW), "unknown_operation"),
        (change("c"), "document_missing"),
        (change("c", after="text"), "unparsable_document"),
        (change("c", after={"id": 1, "customer": "a"}), "column_missing"),
        ({"id": 1, "customer": "a", "amount": "1"}, "added_fields_missing"),
    ],
)
def test_a6_every_misunderstanding_has_a_reason(value: Any, expected: str) -> None:
    _, decoder = source()
    assert reason(decoder, value) == expected
    assert only(decoder, change("c", after=ROW)).operation is Operation.UPSERT, "the next record is not affected"


ROUTED = "__dbz__physicalTableIdentifier"
DOCUMENT = change("c", after=json.dumps({"_id": 1, "customer": "a"}), connector="mongodb", ord=1)


@pytest.mark.parametrize(
    ("value", "key", "expected", "said"),
    [
        (change("c", after=ROW), {"id": 1, ROUTED: "shop.public.items"}, "other_table", "list them as source.tables"),
        (change("c", after=ROW), {"id": 1, ROUTED: "shop.public.old_orders"}, "other_table", "The record is of shop.public.old_"),
        ({**ROW, "__op": "c"}, {"id": 1, ROUTED: "shop.public.items"}, "other_table", "ByLogicalTableRouter"),
        (
            change("c", after=ROW, connector="mysql", sequence=None),
            {"id": 1},
            "other_connector",
            "connector for mysql; those for",
        ),
        (DOCUMENT, {"id": "1"}, "other_connector", "feed: { change_stream: true }"),
    ],
)
def test_a6_the_first_record_of_a_feed_that_is_not_read_says_what_it_is_and_what_to_do(
    value: Any, key: Any, expected: str, said: str
) -> None:
    _, decoder = source()
    with pytest.raises(RecordError, match=said) as caught:
        decoder.decode(record(value, key=key))
    assert caught.value.reason == expected
    loop = cast("LoopDecoder", decoder).loop(record(value, key=key))
    assert loop is None or "mysql" in said, "one of these lacks its position, over which every loop stumbles"


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("table", ["shop.public.orders", "public.orders", ""])
def test_a6_one_table_that_a_router_renames_is_read_as_before(table: str, wrapped: bool) -> None:
    _, decoder = source()
    key: Any = {"id": 1, ROUTED: table}
    event = only(decoder, change("c", after=ROW), key={"schema": {"type": "struct"}, "payload": key} if wrapped else key)
    assert event.key == KEY.encode([1])


def test_a9_a_dropped_column_is_named() -> None:
    _, decoder = source()
    with pytest.raises(RecordError, match="amount"):
        decoder.decode(record(change("c", after={"id": 1, "customer": "a"}), key={"id": 1}))


# ── unwrapped ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────

ADDED = {"__deleted": "false", "__op": "u", "__source_ts_ms": COMMITTED, "__source_sequence": '["5","6"]', "__lsn": 6}


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_unwrapped_row_says_the_same_as_its_envelope(wrapped: bool) -> None:
    _, decoder = source()
    flat = {**ROW, **ADDED}
    columns = [{"type": "string", "field": "customer"}, {"type": "string", "field": "amount"}]
    value = {"schema": {"type": "struct", "fields": columns}, "payload": flat} if wrapped else flat
    event = only(decoder, value)
    envelope = only(decoder, change("u", after=ROW, sequence='["5","6"]'))
    assert event == envelope
    assert only(decoder, {**flat, "__op": "r"}).operation is Operation.SNAPSHOT
    assert only(decoder, {**flat, "__source_snapshot": "last"}).operation is Operation.SNAPSHOT


def test_an_unwrapped_delete_and_its_tombstone() -> None:
    _, decoder = source()
    event = only(decoder, {**ROW, **ADDED, "__deleted": "true", "__op": "d"})
    assert (event.operation, event.major, event.minor, event.digest) == (Operation.DELETE, 5, 6, b"")
    assert decoder.decode(record(None, key={"id": 1})) == ()
    with pytest.raises(RecordError, match=r"delete\.tombstone\.handling\.mode=rewrite"):
        decoder.decode(record(None, key={"id": 1}))


def test_a_bare_tombstone_of_an_unwrapped_feed_is_never_swallowed() -> None:
    _, decoder = source(source_feed=FeedSpec(kind=FeedKind.DEBEZIUM, topic=TOPIC, format="unwrapped"))
    assert reason(decoder, None) == "delete_without_position"
    only(decoder, {**ROW, **ADDED, "__deleted": "true", "__op": "d"}, partition=1)
    assert reason(decoder, None, partition=0) == "delete_without_position"
    assert decoder.decode(record(None, key={"id": 1}, partition=1)) == ()


@pytest.mark.parametrize("missing", ["__op", "__source_ts_ms", "__source_sequence"])
def test_missing_added_fields_are_named(missing: str) -> None:
    _, decoder = source()
    flat = {name: value for name, value in {**ROW, **ADDED}.items() if name != missing}
    with pytest.raises(RecordError, match=f"lacks {missing}") as caught:
        decoder.decode(record(flat, key={"id": 1}))
    assert caught.value.reason == "added_fields_missing"


# ── dead letters, feeds ───────────────────────────────────────────────────────────────────────────────────────────────────────


LETTERS = "orders.dlq"
ORIGIN = {"__connect.errors.topic": TOPIC, "__connect.errors.partition": "3", "__connect.errors.offset": "41"}


def letters_of(feed: FeedSpec | None = None) -> LetterDecoder:
    spec = pipeline(*FIELDS, source_feed=feed)
    return letter_decoders_for(replace(spec, target=replace(spec.target, dead_letter_topic=LETTERS)))[LETTERS]


def test_a_dead_letter_names_the_write_that_the_sink_gave_up_and_where_it_says_so() -> None:
    decoder = letters_of()
    error = "org.apache.kafka.connect.errors.DataException"
    headers = ORIGIN | {"__connect.errors.stage": "TASK_PUT", "__connect.errors.exception.class.name": error}
    found = decoder.decode(record(change("c", after=ROW), topic=LETTERS, partition=2, offset=7, headers=headers))
    place = (LETTERS, 2, 7, 24_023_119, 24_023_128, COMMITTED)
    assert found == [Letter("orders", KEY.encode([1]), Operation.DEAD_LETTERED, *place, f"TASK_PUT {error}")]
    assert decoder.decode(record(None, key={"id": 1}, topic=LETTERS, headers=headers)) == []


def test_a_dead_letter_without_headers_is_known_by_the_position_in_it() -> None:
    (letter,) = letters_of().decode(record(change("c", after=ROW), topic=LETTERS))
    assert (letter.major, letter.minor, letter.reason) == (24_023_119, 24_023_128, "")


def test_a_dead_letter_of_another_topic_of_the_same_sink_says_nothing() -> None:
    headers = ORIGIN | {"__connect.errors.topic": "shop.public.others"}
    assert letters_of().decode(record(change("c", after=ROW), topic=LETTERS, headers=headers)) == ()


def test_a_dead_letter_of_a_plain_topic_keeps_its_original_position_and_needs_it() -> None:
    decoder = letters_of(FeedSpec(kind=FeedKind.TOPIC, topic=TOPIC, format="json"))
    row = {"id": 1, "customer": "a", "amount": 1}
    assert [letter.major for letter in decoder.decode(record(row, topic=LETTERS, headers=ORIGIN))] == [41]
    with pytest.raises(RecordError, match="does not say where it came from") as caught:
        decoder.decode(record(row, topic=LETTERS, offset=17))
    assert caught.value.reason == "origin_unknown"


@pytest.mark.parametrize("source", [{"ts_ms": 10**16}, {"sequence": '["1","99999999999999999999"]'}])
def test_a_dead_letter_whose_numbers_cannot_be_kept_is_refused(source: Any) -> None:
    with pytest.raises(RecordError) as caught:
        letters_of().decode(record(change("c", after=ROW, **source), topic=LETTERS, headers=ORIGIN))
    assert caught.value.reason == "out_of_range"


def test_a_dead_letter_at_no_possible_offset_does_not_say_where_it_came_from() -> None:
    decoder = letters_of(FeedSpec(kind=FeedKind.TOPIC, topic=TOPIC, format="json"))
    headers = ORIGIN | {"__connect.errors.offset": "9" * 5_000}
    with pytest.raises(RecordError, match="does not say where it came from"):
        decoder.decode(record({"id": 1, "customer": "a", "amount": 1}, topic=LETTERS, headers=headers))


def test_a_feed_without_a_decoder_is_refused() -> None:
    spec = pipeline(*FIELDS, target_feed=FeedSpec(kind=FeedKind.NONE))
    with pytest.raises(ConfigError, match="cannot be decoded"):
        decoder_for(spec, Side.OBSERVED, CompiledMapping(spec))
