"""What a Debezium connector is asked for, and when it cannot be."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from gapwatch.errors import StoreRefused
from gapwatch.model.pipeline import KeyColumn, KeyType
from gapwatch_connectors.debezium.signals import condition, signal_topic, snapshot_signal

HEARS = {"topic.prefix": "shop", "signal.enabled.channels": "source, kafka", "read.only": "true", "signal.kafka.topic": "signals"}


def column(name: str, kind: KeyType) -> KeyColumn:
    return KeyColumn(path=name, type=kind)


def test_a_signal_asks_for_these_rows_of_this_table() -> None:
    signal = json.loads(snapshot_signal("run-1", "public.orders", [column("id", KeyType.INT)], [[1], [20]]))
    assert (signal["id"], signal["type"], signal["data"]["type"]) == ("run-1", "execute-snapshot", "incremental")
    assert signal["data"]["data-collections"] == [r"public\.orders"]
    assert signal["data"]["additional-conditions"] == [{"data-collection": "public.orders", "filter": '"id" IN (1, 20)'}]


@pytest.mark.parametrize(
    ("kind", "value", "literal"),
    [
        (KeyType.INT, -5, "-5"),
        (KeyType.TEXT, "a", "'a'"),
        (KeyType.TEXT, "it's", "'it''s'"),
        (KeyType.TEXT, "a\\'b", "E'a\\\\''b'"),
        (KeyType.TEXT, "'; DROP TABLE orders; --", "'''; DROP TABLE orders; --'"),
        (KeyType.UUID, UUID(int=1), "'00000000-0000-0000-0000-000000000001'::uuid"),
        (KeyType.DECIMAL, Decimal("1.50"), "'1.50'::numeric"),
        (KeyType.BYTES, b"\x00\xff", "'\\x00ff'::bytea"),
    ],
)
def test_keys_are_quoted_so_that_nothing_in_them_is_sql(kind: KeyType, value: Any, literal: str) -> None:
    assert condition([column('a"b', kind)], [[value]]) == f'"a""b" IN ({literal})'


def test_a_key_of_several_columns() -> None:
    columns = [column("shop", KeyType.TEXT), column("id", KeyType.INT)]
    assert condition(columns, [["x", 1], ["y", 2]]) == """("shop", "id") IN (('x', 1), ('y', 2))"""


def test_where_a_connector_hears_signals() -> None:
    assert (signal_topic("c", HEARS).topic, signal_topic("c", HEARS).key) == ("signals", "shop")
    unnamed = {name: value for name, value in HEARS.items() if name != "signal.kafka.topic"}
    assert signal_topic("c", unnamed).topic == "shop-signal"


@pytest.mark.parametrize(("name", "value"), [("signal.enabled.channels", "source"), ("read.only", "false")])
def test_a_connector_that_hears_none_or_would_write_is_refused_with_the_remedy(name: str, value: str) -> None:
    with pytest.raises(StoreRefused, match=r"read\.only=true"):
        signal_topic("c", HEARS | {name: value})
