"""How Postgres' values come out of the driver: exactly, or as text where Python has no such value.

Timestamps, dates and times that Python cannot hold (infinities, years before 1 or after 9999, 24:00:00) come as ISO text, which
the core reads; JSON as :class:`JsonText`; intervals, ranges and network addresses as Postgres writes them, and so
Debezium: Python spells ``::ffff:10.0.0.1`` otherwise.
"""

from __future__ import annotations

import re
from typing import Any, Final

import psycopg
from psycopg import postgres
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.types.datetime import DateLoader, TimeLoader, TimestampLoader, TimestamptzLoader, TimetzLoader
from psycopg.types.json import set_json_loads
from psycopg.types.string import TextLoader

from gapwatch.core.values import JsonText

AS_TEXT: Final = (
    *("interval", "money", "inet", "cidr"),
    *("int4range", "int8range", "numrange", "tsrange", "tstzrange", "daterange"),
    *("int4multirange", "int8multirange", "nummultirange", "tsmultirange", "tstzmultirange", "datemultirange"),
)
# Types whose binary form the driver reads exactly, and faster than the text.
BINARY: Final = frozenset({"int2", "int4", "int8", "oid", "uuid", "text", "varchar", "bpchar", "name", "bytea", "bool", "float8"})
_BEFORE_CHRIST: Final = re.compile(r"(\d+)(-.*) BC")


def iso(text: str) -> str:
    """Return Postgres' ISO text with an astronomical year: 44 BC is the year -43."""
    found = _BEFORE_CHRIST.fullmatch(text)
    return text if found is None else f"{_year(1 - int(found[1]))}{found[2]}"


def _year(year: int) -> str:
    return f"-{-year:04d}" if year < 0 else f"{year:04d}"


def _exact(base: type[Loader]) -> type[Loader]:
    class ExactLoader(base):  # type: ignore[valid-type,misc]
        def load(self, data: Buffer) -> Any:
            try:
                return super().load(data)
            except psycopg.DataError:
                return iso(bytes(data).decode())

    return ExactLoader


_LOADERS: Final[dict[str, type[Loader]]] = {
    "date": _exact(DateLoader),
    "time": _exact(TimeLoader),
    "timetz": _exact(TimetzLoader),
    "timestamp": _exact(TimestampLoader),
    "timestamptz": _exact(TimestamptzLoader),
    **dict.fromkeys(AS_TEXT, TextLoader),
}


def register(connection: psycopg.AsyncConnection[Any]) -> None:
    """Make a connection return exact values."""
    set_json_loads(lambda text: JsonText(text if isinstance(text, str) else bytes(text).decode()), connection)
    for name, loader in _LOADERS.items():
        connection.adapters.register_loader(postgres.types[name].oid, loader)
