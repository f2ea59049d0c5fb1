from __future__ import annotations

import base64
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from bson import Decimal128
from msgspec import structs

from gapwatch.core.confirm import equals_identity
from gapwatch.core.digests import BLANK, digest, identity
from gapwatch.core.mapping import MASKED_VALUE, CompiledMapping, within
from gapwatch.errors import ConfigError
from gapwatch.model.pipeline import FieldType, KeyColumn, KeyType

from .samples import field, pipeline

PLACEHOLDER = "__debezium_unavailable_value"


def orders(**changes: Any) -> CompiledMapping:
    return CompiledMapping(
        pipeline(
            field("customer"),
            field("total", FieldType.DECIMAL, source="amount", **changes),
            field("placed.at", FieldType.TIMESTAMP, source="placed_at"),
            field("note", maskable=True),
        )
    )


ROW = {"id": 1, "customer": "a", "amount": Decimal("10.00"), "placed_at": datetime(2024, 1, 1, tzinfo=UTC), "note": "n"}
DOCUMENT = {"_id": 1, "customer": "a", "total": Decimal128("10"), "placed": {"at": datetime(2024, 1, 1, tzinfo=UTC)}, "note": "n"}


def test_a_row_and_its_document_agree() -> None:
    mapping = orders()
    source, target = mapping.canonical_source(ROW), mapping.canonical_target(DOCUMENT)
    assert source.identity == target.identity
    assert len(source.identity) == 32
    assert mapping.differing(source, target) == ()
    assert mapping.source_columns == ("id", "customer", "amount", "placed_at", "note")
    assert mapping.target_paths == ("_id", "customer", "total", "placed.at", "note")


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"customer": "b"}, ("customer",)),
        ({"total": Decimal128("10.01"), "note": None}, ("total", "note")),
        ({"placed": {}}, ("placed.at",)),
        ({"note": "x" * 100}, ("note",)),
    ],
)
def test_b4_the_differing_fields_are_named(change: dict[str, Any], names: tuple[str, ...]) -> None:
    mapping = orders()
    source, target = mapping.canonical_source(ROW), mapping.canonical_target({**DOCUMENT, **change})
    assert mapping.differing(source, target) == names
    assert source.identity != target.identity


def test_absent_is_null_only_where_the_policy_says_so() -> None:
    for policy, names in ((False, ("note",)), (True, ())):
        mapping = CompiledMapping(pipeline(field("note", absent_is_null=policy)))
        assert mapping.differing(mapping.canonical_source({"note": None}), mapping.canonical_target({})) == names


def test_trap_23_neighbouring_fields_never_run_together() -> None:
    mapping = CompiledMapping(pipeline(field("a"), field("b")))
    left, right = mapping.canonical_source({"a": "x", "b": "yz"}), mapping.canonical_source({"a": "xy", "b": "z"})
    assert left.digest != right.digest
    assert digest([b"a", b"b"]) != digest([b"ab"])


def test_trap_17_a_masked_field_says_nothing_and_the_others_do() -> None:
    mapping = orders()
    full = mapping.canonical_source(ROW)
    parts = mapping.source.parts(ROW)
    event = mapping.content([*parts[:3], None])
    assert event.complete
    assert event.masks == (b"",)
    known = identity(event.digest, event.masks)
    assert known[16:] == BLANK
    assert equals_identity(known, full.identity)
    other = mapping.canonical_source({**ROW, "customer": "b"})
    assert not equals_identity(known, other.identity)


def test_trap_17_a_masked_field_is_never_named_as_differing() -> None:
    mapping = orders()
    source = mapping.canonical_source(ROW)
    masked = structs.replace(source, parts=(*source.parts[:3], None), masks=(b"",))
    assert mapping.differing(masked, mapping.canonical_target({**DOCUMENT, "note": "other"})) == ()
    assert mapping.differing(masked, mapping.canonical_target({**DOCUMENT, "customer": "b"})) == ("customer",)
    assert "note" not in masked.by_field


def test_a_field_that_can_never_be_masked_makes_the_content_incomplete() -> None:
    mapping = orders()
    assert not mapping.content([None, *mapping.source.parts(ROW)[1:]]).complete


def test_b4_tolerance_is_compared_by_value_and_leaves_the_digest() -> None:
    mapping = orders(tolerance=Decimal("0.01"))
    source = mapping.canonical_source(ROW)
    near = mapping.canonical_target({**DOCUMENT, "total": "10.01"})
    far = mapping.canonical_target({**DOCUMENT, "total": "10.02"})
    assert source.digest == near.digest == far.digest
    assert source.values == ("10",)
    assert mapping.differing(source, near) == ()
    assert mapping.differing(source, far) == ("total",)
    assert mapping.values_agree(source.values, near.values)
    assert not mapping.values_agree(source.values, far.values)
    assert mapping.shown_target({**DOCUMENT, "total": "10.02"}, ["total"]) == {"total": "10.02"}
    odd = mapping.canonical_target({**DOCUMENT, "total": "ten"})
    assert mapping.differing(source, odd) == ("total",)


@pytest.mark.parametrize(
    ("expected", "observed", "agree"),
    [
        ("10", "10.01", True),
        ("10", "9.98", False),
        ("1e23", "100000000000000000000000.01", True),
        ("1e23", "100000000000000000000000.02", False),
        (None, None, True),
        (None, "0", False),
        ("NaN", "NaN", True),
        ("NaN", "1", False),
        ("Infinity", "-Infinity", False),
        (MASKED_VALUE, "7", True),
        ("7", "!00", False),
        ("1E+9999999", "1", False),  # written out, it kept match busy for minutes, with each event of the key
        ("1E+9999999", "1E-9999999", False),
    ],
)
def test_b4_within(expected: str | None, observed: str | None, agree: bool) -> None:
    assert within(expected, observed, Decimal("0.01")) is agree


def test_keys_of_unequal_types_and_tolerances_on_text_are_refused_together() -> None:
    spec = pipeline(field("note", tolerance=Decimal(1)), target_key=[KeyColumn(path="_id", type=KeyType.TEXT)])
    with pytest.raises(ConfigError) as caught:
        CompiledMapping(spec)
    assert [problem.place for problem in caught.value.problems] == [
        "pipelines.orders.target.key",
        "pipelines.orders.fields.note.tolerance",
    ]


def test_the_fingerprint_follows_what_a_digest_depends_on() -> None:
    base = pipeline(field("a"), field("b", FieldType.DECIMAL))
    same = CompiledMapping(base).fingerprint
    assert 0 <= same < 2**63
    assert CompiledMapping(replace(base, grace_seconds=1.0)).fingerprint == same
    changed = [
        pipeline(field("b", FieldType.DECIMAL), field("a")),
        pipeline(field("a"), field("b", FieldType.INT)),
        pipeline(field("a"), field("b", FieldType.DECIMAL, scale=2)),
        pipeline(field("a", maskable=True), field("b", FieldType.DECIMAL)),
        pipeline(field("a", absent_is_null=True), field("b", FieldType.DECIMAL)),
        pipeline(field("a"), field("b", FieldType.DECIMAL, tolerance=Decimal(1))),
        replace(base, source=replace(base.source, key=(KeyColumn(path="id", type=KeyType.TEXT),)),
                target=replace(base.target, key=(KeyColumn(path="_id", type=KeyType.TEXT),))),
    ]  # fmt: skip
    prints = {CompiledMapping(item).fingerprint for item in changed}
    assert len(prints | {same}) == len(changed) + 1


@pytest.mark.parametrize(
    "value",
    [
        PLACEHOLDER,
        PLACEHOLDER.encode(),
        base64.b64encode(PLACEHOLDER.encode()).decode(),
        PLACEHOLDER.encode().hex(),
        [PLACEHOLDER],
        list(PLACEHOLDER.encode()),
    ],
)
def test_trap_17_the_placeholder_in_a_target_is_seen_in_every_form(value: Any) -> None:
    mapping = orders()
    assert mapping.holds_placeholder({**DOCUMENT, "note": value})
    assert not mapping.holds_placeholder({**DOCUMENT, "unmapped": value})
    target = mapping.canonical_target({**DOCUMENT, "note": value})
    assert mapping.differing(mapping.canonical_source(ROW), target) == ("note",)


def test_a_configured_placeholder_in_hexadecimal() -> None:
    spec = pipeline(field("note"))
    feed = replace(spec.source.feed, placeholder="hex:" + b"gone".hex())
    mapping = CompiledMapping(replace(spec, source=replace(spec.source, feed=feed)))
    assert mapping.holds_placeholder({"note": "gone"})
    assert not mapping.holds_placeholder({"note": PLACEHOLDER})


def test_values_are_shown_as_a_person_reads_them() -> None:
    mapping = CompiledMapping(
        pipeline(
            field("number", FieldType.DECIMAL),
            field("when", FieldType.TIMESTAMP),
            field("day", FieldType.DATE),
            field("flag", FieldType.BOOL),
            field("raw", FieldType.BYTES),
            field("data", FieldType.JSON),
            field("text"),
            field("gone"),
        )
    )
    row = {
        "number": Decimal("1500.00"),
        "when": datetime(2024, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC),
        "day": "2024-02-29",
        "flag": True,
        "raw": b"\x00\xff",
        "data": {"b": Decimal("1.5"), "a": None},
        "text": "x" * 3_000,
        "gone": None,
    }
    shown = mapping.shown_source(row, mapping.names)
    assert shown.pop("text") == "x" * 2_000 + "… (3000 characters)"
    assert shown == {
        "number": "1500",
        "when": "2024-01-02T03:04:05.678Z",
        "day": "2024-02-29",
        "flag": "true",
        "raw": "00ff",
        "data": '{"a":null,"b":"1.5"}',
        "gone": None,
    }
    assert mapping.shown_target({"number": "many"}, ["number", "gone"]) == {
        "number": "'many' (not of type decimal)",
        "gone": "(absent)",
    }


def test_versions_are_whole_numbers() -> None:
    mapping = CompiledMapping(pipeline(field("a"), version="v"))
    assert [mapping.version_of_source({"v": value}) for value in (7, "7", Decimal("7.0"), 7.5, None, True, "x", "NaN")] == [
        7, 7, 7, None, None, None, None, None,
    ]  # fmt: skip
    assert mapping.version_of_target({}) is None


def test_long_values_are_kept_as_digests() -> None:
    mapping = CompiledMapping(pipeline(field("text")))
    canonical = mapping.canonical_source({"text": "x" * 100_000})
    assert len(canonical.by_field["text"]) == 17
    assert mapping.differing(canonical, mapping.canonical_target({"text": "x" * 99_999 + "y"})) == ("text",)


def test_trap_22_the_order_of_a_documents_fields_says_nothing_on_any_level() -> None:
    """A verifier failed on field order alone: mapped fields, nested documents and documents inside arrays come in any."""
    mapping = CompiledMapping(
        pipeline(
            field("customer"),
            field("address", FieldType.JSON, source="address"),
            field("lines", FieldType.ARRAY, source="lines"),
        )
    )
    address = {"city": {"name": "x", "zip": 1}, "street": None}
    document: dict[str, Any] = {
        "_id": 1,
        "customer": "a",
        "address": address,
        "lines": [{"n": 1, "sku": "s"}, {"n": 2, "sku": "t"}],
    }

    def turned(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: turned(value[name]) for name in reversed(value)}
        return [turned(item) for item in value] if isinstance(value, list) else value

    one, other = mapping.canonical_target(document), mapping.canonical_target(turned(document))
    assert list(turned(document)) == list(reversed(document))
    assert one.identity == other.identity
    assert mapping.differing(one, other) == ()
    moved = {**document, "lines": list(reversed(document["lines"]))}
    assert mapping.differing(one, mapping.canonical_target(moved)) == ("lines",), "while the order of an array is content"
