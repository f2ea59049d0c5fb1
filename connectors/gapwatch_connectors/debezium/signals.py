"""Debezium's signals: an incremental snapshot of just these rows, asked for through a Kafka topic.

Source: Debezium's documentation, "Sending signals to a Debezium connector" and "Read-only incremental snapshots".
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gapwatch.errors import StoreRefused
from gapwatch.model.pipeline import KeyColumn, KeyType

STORE = "connect"
REMEDY = (
    "Give the connector signal.enabled.channels=source,kafka, signal.kafka.topic, signal.kafka.bootstrap.servers, read.only=true."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalTopic:
    """Where a connector hears signals: its topic, and the key that names the connector there."""

    topic: str
    key: str


def signal_topic(connector: str, config: Mapping[str, str]) -> SignalTopic:
    """Return where a Postgres connector hears signals. Raises StoreRefused where it hears none without writing at the source."""
    channels = {channel.strip() for channel in config.get("signal.enabled.channels", "source").split(",")}
    if "kafka" not in channels:
        raise StoreRefused(f"Connector {connector} hears no signals from Kafka.", store=STORE, remedy=REMEDY)
    if config.get("read.only", "false") != "true":
        message = f"Connector {connector} would write its snapshots' watermarks into the source (read.only is not true)."
        raise StoreRefused(message, store=STORE, remedy=REMEDY)
    prefix = config.get("topic.prefix", "")
    return SignalTopic(topic=config.get("signal.kafka.topic") or f"{prefix}-signal", key=prefix)


def snapshot_signal(signal_id: str, table: str, columns: Sequence[KeyColumn], keys: Sequence[Sequence[Any]]) -> bytes:
    """Return the signal that has rows of ``table`` (``schema.table``) sent again; ``keys``: the values of their key columns."""
    asked = {
        "type": "incremental",
        "data-collections": [re.escape(table)],
        "additional-conditions": [{"data-collection": table, "filter": condition(columns, keys)}],
    }
    return json.dumps({"id": signal_id, "type": "execute-snapshot", "data": asked}).encode()


def condition(columns: Sequence[KeyColumn], keys: Sequence[Sequence[Any]]) -> str:
    """Return the SQL condition that these keys satisfy and no others."""
    if len(columns) == 1:
        (column,) = columns
        return f"{_name(column.path)} IN ({', '.join(_literal(column.type, values[0]) for values in keys)})"
    names = ", ".join(_name(column.path) for column in columns)
    rows = (", ".join(_literal(column.type, value) for column, value in zip(columns, values, strict=True)) for values in keys)
    return f"({names}) IN ({', '.join(f'({row})' for row in rows)})"


def _name(path: str) -> str:
    return '"' + path.replace('"', '""') + '"'


def _literal(kind: KeyType, value: Any) -> str:
    """Return a value as SQL, quoted so that nothing in it is read as anything else."""
    match kind:
        case KeyType.INT:
            return str(int(value))
        case KeyType.DECIMAL:
            return f"'{value}'::numeric"
        case KeyType.UUID:
            return f"'{value}'::uuid"
        case KeyType.BYTES:
            return f"'\\x{bytes(value).hex()}'::bytea"
        case _:
            text = str(value).replace("'", "''")
            escaped = text.replace("\\", "\\\\")
            return f"E'{escaped}'" if escaped != text else f"'{text}'"
