from __future__ import annotations

from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from bson import Decimal128, Int64, ObjectId

from gapwatch.core.keys import KeyCodec, partition_of
from gapwatch.core.values import ObjectIdValue
from gapwatch.errors import KeyMisfit
from gapwatch.model.pipeline import KeyColumn, KeyType

UUID_TEXT = "8c1a9f10-0b0e-4c3a-9d52-0a8b8f3f7a11"


def codec(*kinds: KeyType) -> KeyCodec:
    return KeyCodec([KeyColumn(path=f"k{index}", type=kind) for index, kind in enumerate(kinds)])


@pytest.mark.parametrize("value", [42, "42", Int64(42), Decimal(42), Decimal128("42")])
def test_a_declared_int_is_one_key_in_every_store(value: Any) -> None:
    assert codec(KeyType.INT).encode([value]) == codec(KeyType.INT).encode([42])


@pytest.mark.parametrize(
    "value", [42.0, True, "042", "+42", "42.0", " 42", "4٢", "", None, Decimal("42.0"), b"42", [42], 1 << 1000]
)
def test_what_is_no_int_never_becomes_one(value: Any) -> None:
    with pytest.raises(KeyMisfit):
        codec(KeyType.INT).encode([value])


@pytest.mark.parametrize("value", [UUID(UUID_TEXT), UUID_TEXT.upper(), UUID_TEXT.replace("-", ""), UUID(UUID_TEXT).bytes])
def test_trap_26_a_uuid_is_one_key_in_any_spelling(value: Any) -> None:
    assert codec(KeyType.UUID).encode([value]) == UUID(UUID_TEXT).bytes


@pytest.mark.parametrize("value", ["5f" * 12, ObjectId("5f" * 12), ObjectIdValue(bytes.fromhex("5f" * 12))])
def test_an_objectid_is_one_key_from_driver_text_and_extended_json(value: Any) -> None:
    assert codec(KeyType.OBJECTID).encode([value]) == bytes.fromhex("5f" * 12)


def test_trap_26_a_large_numeric_key_keeps_every_digit() -> None:
    big = 12_345_678_901_234_567_890_123
    key = codec(KeyType.INT).encode([Decimal(big)])
    assert codec(KeyType.INT).decode(key) == (big,)
    assert codec(KeyType.INT).encode([big + 1]) != key


def test_decimals_of_one_value_are_one_key() -> None:
    kind = codec(KeyType.DECIMAL)
    assert kind.encode([Decimal("3000.00")]) == kind.encode(["3000.0"]) == kind.encode([3000])
    assert kind.encode([Decimal("1e23")]) != kind.encode([10**23 + 1])
    with pytest.raises(KeyMisfit):
        kind.encode([Decimal("NaN")])
    with pytest.raises(KeyMisfit):
        kind.encode([1.5])


def test_text_is_taken_as_it_is() -> None:
    kind = codec(KeyType.TEXT)
    assert kind.encode(["42"]) != codec(KeyType.INT).encode([42])
    assert kind.encode(["\u00e9"]) != kind.encode(["e\u0301"])
    with pytest.raises(KeyMisfit):
        kind.encode([42])


def test_trap_23_parts_of_a_composite_key_never_run_together() -> None:
    kind = codec(KeyType.TEXT, KeyType.TEXT)
    assert kind.encode(["a", "bc"]) != kind.encode(["ab", "c"])
    assert kind.encode(["a\x00", "b"]) != kind.encode(["a", "\x00b"])
    assert kind.decode(kind.encode(["a\x00\xff\x01", ""])) == ("a\x00\xff\x01", "")


def test_a_key_is_read_by_dotted_paths_and_shown_by_name() -> None:
    target = KeyCodec([KeyColumn(path="_id.order_id", type=KeyType.INT), KeyColumn(path="_id.sku", type=KeyType.TEXT)])
    source = KeyCodec([KeyColumn(path="order_id", type=KeyType.INT), KeyColumn(path="sku", type=KeyType.TEXT)])
    key = source.extract({"order_id": 7, "sku": "x", "other": None})
    assert target.extract({"_id": {"sku": "x", "order_id": "7"}}) == key
    assert source.fields(key) == {"order_id": 7, "sku": "x"}
    with pytest.raises(KeyMisfit, match=r"_id\.sku"):
        target.extract({"_id": {"order_id": 7}})


def test_a_flat_column_with_a_dot_in_its_name_goes_first() -> None:
    kind = KeyCodec([KeyColumn(path="a.b", type=KeyType.INT)])
    assert kind.extract({"a.b": 1, "a": {"b": 2}}) == kind.encode([1])


@pytest.mark.parametrize("text", ["7,x", '{"k0": 7, "k1": "x"}', '[7, "x"]', '["7", "x"]'])
def test_a_person_may_write_a_composite_key_in_three_ways(text: str) -> None:
    kind = codec(KeyType.INT, KeyType.TEXT)
    assert kind.parse(text) == kind.encode([7, "x"])


def test_a_person_writes_a_single_key_plainly() -> None:
    assert codec(KeyType.INT).parse("42") == codec(KeyType.INT).encode([42])
    assert codec(KeyType.TEXT).parse('"42"') == codec(KeyType.TEXT).encode(['"42"'])
    assert codec(KeyType.BYTES).parse("00ff") == codec(KeyType.BYTES).encode([b"\x00\xff"])
    with pytest.raises(KeyMisfit):
        codec(KeyType.INT).parse("forty-two")
    with pytest.raises(KeyMisfit):
        codec(KeyType.INT, KeyType.INT).parse("1")


@pytest.mark.parametrize("key", [b"", b"\x81", b"\x81\x2a\x00", b"\x82\x00\x2a", b"\xff"])
def test_other_bytes_are_no_key(key: bytes) -> None:
    with pytest.raises(KeyMisfit):
        codec(KeyType.INT).decode(key)


def test_a_keys_partition_is_fixed_for_life() -> None:
    """This number is on Kafka: a change would send a key's history to another place."""
    key = codec(KeyType.INT).encode([42])
    assert key == b"\x81\x2a"
    assert partition_of(key, 8) == 7
    assert {partition_of(codec(KeyType.INT).encode([number]), 8) for number in range(200)} == set(range(8))
