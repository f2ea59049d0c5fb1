"""A table as a target, on a real Postgres: every type is written as it was read, and what the table refuses is told apart."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from gapwatch.core.resolve import resolve, resolve_target
from gapwatch.embedded import EmbeddedStack
from gapwatch.errors import RecordError, StoreRefused
from gapwatch.model.pipeline import FeedKind, FeedSpec, FieldSpec, FieldType, KeyColumn, KeyType, PipelineSpec
from gapwatch.ports import ABSENT, DatasetReader, StoredRecord, WriteItem
from gapwatch_connectors.postgres import PostgresReader, PostgresTargetPreflight, PostgresTargetReader, PostgresWriter
from tests.stack import execute
from tests.unit.core.samples import field, pipeline

pytestmark = pytest.mark.integration

# column: type at the source, type at the target, a value
TYPES = {
    "a": ("int", "bigint", "-7"),
    "b": ("numeric(12,2)", "numeric", "'10.50'"),
    "c": ("numeric", "numeric", "'NaN'"),
    "d": ("double precision", "double precision", "'-Infinity'"),
    "e": ("real", "real", "0.1"),
    "f": ("text", "varchar(40)", "E'a \\\\ \" '' {b}, NULL\\n'"),
    "g": ("mood", "mood", "'so so'"),
    "h": ("short", "short", "'abc'"),
    "i": ("uuid", "uuid", "'6f2c0a54-9f0a-4d0e-8a48-2f5d9c1e7b11'"),
    "j": ("bytea", "bytea", "'\\x00ff5c'"),
    "k": ("boolean", "boolean", "true"),
    "l": ("date", "date", "'0044-03-15 BC'"),
    "m": ("date", "date", "'infinity'"),
    "n": ("timestamptz", "timestamptz", "'2026-03-01 10:20:30.123456+02'"),
    "o": ("timestamp", "timestamp", "'20264-03-01 10:20:30'"),
    "p": ("timestamp", "timestamp", "'0001-12-31 23:59:59.5 BC'"),
    "q": ("time", "time", "'24:00:00'"),
    "r": ("jsonb", "jsonb", '\'{"a": [1, null, "x"], "b": 1e400}\''),
    "s": ("text[]", "text[]", "ARRAY ['a', NULL, 'NULL', '', E'q\\\\u\"o,t{e}']"),
    "t": ("int[]", "bigint[]", "'{{1,2},{3,4}}'"),
    "u": ("interval", "interval", "'1 year 2 mons 3 days 04:05:06.7'"),
    "v": ("int4range", "int4range", "'[1,5)'"),
    "w": ("inet", "inet", "'10.0.0.1/8'"),
    "x": ("numeric[]", "numeric[]", "'{1.10,NULL}'"),
    "y": ("text", "text", "NULL"),
}
DECLARED = {"u": FieldType.TEXT, "v": FieldType.TEXT}


@pytest.fixture
def dsn(stack: EmbeddedStack, postgres_database: str) -> str:
    return stack.postgres.dsn(postgres_database)


def spec_of(*fields: FieldSpec) -> PipelineSpec:
    spec = pipeline(*fields)
    key = (KeyColumn(path="id", type=KeyType.INT),)
    target = replace(spec.target, collection="public.copy", key=key, feed=FeedSpec(kind=FeedKind.NONE))
    return replace(spec, target=target)


class Pair:
    """A source table and its copy."""

    def __init__(self, spec: PipelineSpec, dsn: str) -> None:
        self.spec, self.dsn = spec, dsn
        self.source, self.target = PostgresReader(spec, dsn), PostgresTargetReader(spec, dsn)
        self.writer = PostgresWriter(spec, dsn)

    async def read(self, reader: DatasetReader, number: int) -> Any:
        key = self.source._codec.encode([number])
        return (await reader.fetch([key]))[key]

    async def written(self, *numbers: int, over: bool = False) -> list[tuple[str, str]]:
        items = []
        for number in numbers:
            row = await self.read(self.source, number)
            replaces = await self.read(self.target, number) if over else ABSENT
            items.append(WriteItem(key=row.key, document=self.writer.document(row.key, row, self.spec.fields), replaces=replaces))
        return [(result.outcome, result.reason) for result in await self.writer.write(items)]

    async def close(self) -> None:
        for part in (self.source, self.target, self.writer):
            await part.close()


@pytest.fixture
async def opened() -> AsyncIterator[list[Pair]]:
    made: list[Pair] = []
    yield made
    for pair in made:
        await pair.close()


def rows(dsn: str, query: str) -> Sequence[Any]:
    with psycopg.connect(dsn) as connection:
        return connection.execute(query.encode()).fetchall()


async def test_every_type_is_written_as_it_was_read(dsn: str, opened: list[Pair]) -> None:
    execute(
        dsn,
        "CREATE TYPE mood AS ENUM ('so so', 'fine')",
        "CREATE DOMAIN short AS text CHECK (length(VALUE) < 5)",
        f"CREATE TABLE orders (id bigint PRIMARY KEY, {', '.join(f'{name} {one}' for name, (one, _, _) in TYPES.items())})",
        f"CREATE TABLE copy (id bigint PRIMARY KEY, {', '.join(f'{name} {other}' for name, (_, other, _) in TYPES.items())})",
        f"INSERT INTO orders VALUES (1, {', '.join(value for _, _, value in TYPES.values())})",
        "INSERT INTO orders (id) VALUES (2)",
    )
    spec = spec_of(*(FieldSpec(target=name, source=name, type=DECLARED.get(name, FieldType.INFERRED)) for name in TYPES))
    reader = PostgresReader(spec, dsn)
    resolved = resolve(spec, await reader.describe())
    await reader.close()
    pair = Pair(resolved, dsn)
    opened.append(pair)
    assert await pair.written(1, 2) == [("written", "")] * 2
    texts = ", ".join(f"{name}::text" for name in TYPES)
    assert rows(dsn, f"SELECT id, {texts} FROM copy ORDER BY id") == rows(dsn, f"SELECT id, {texts} FROM orders ORDER BY id")
    execute(dsn, "UPDATE orders SET f = 'changed', y = 'there' WHERE id = 1")
    assert await pair.written(1, over=True) == [("written", "")]
    assert rows(dsn, f"SELECT id, {texts} FROM copy ORDER BY id") == rows(dsn, f"SELECT id, {texts} FROM orders ORDER BY id")
    found = await pair.read(pair.target, 1)
    assert (found.target_id, "/" in found.revision) == ("1", True)


async def test_numbers_that_the_server_makes_are_given_and_what_it_computes_is_left_to_it(dsn: str, opened: list[Pair]) -> None:
    execute(
        dsn,
        "CREATE TABLE orders (id bigint PRIMARY KEY, total int, twice int)",
        "CREATE TABLE copy (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, total int,"
        " twice int GENERATED ALWAYS AS (total * 2) STORED, own text DEFAULT 'ours')",
        "INSERT INTO orders VALUES (7, 3, 6)",
    )
    pair = Pair(spec_of(field("total", FieldType.INT), field("twice", FieldType.INT)), dsn)
    opened.append(pair)
    assert await pair.written(7) == [("written", "")]
    execute(dsn, "UPDATE orders SET total = 4, twice = 8", "UPDATE copy SET own = 'theirs'")
    assert await pair.written(7, over=True) == [("written", "")]
    assert rows(dsn, "SELECT * FROM copy") == [(7, 4, 8, "theirs")], "a column that is not mapped is left alone"


async def test_what_the_table_refuses_fails_alone_and_without_its_values(dsn: str, opened: list[Pair]) -> None:
    execute(
        dsn,
        "CREATE TABLE orders (id bigint PRIMARY KEY, customer text, total numeric)",
        "CREATE TABLE copy (id bigint PRIMARY KEY, customer text UNIQUE, total numeric NOT NULL CHECK (total > 0))",
        "INSERT INTO orders VALUES (1, 'secret-a', 1), (2, 'secret-a', 2), (3, 'secret-c', -3), (4, 'secret-d', NULL)",
        "INSERT INTO orders VALUES (5, 'e', 5)",
    )
    pair = Pair(spec_of(field("customer"), field("total", FieldType.DECIMAL)), dsn)
    opened.append(pair)
    results = await pair.written(1, 2, 3, 4, 5)
    assert [outcome for outcome, _ in results] == ["written", "failed", "failed", "failed", "written"]
    assert [reason for _, reason in results[1:4]] == [
        "UniqueViolation: constraint copy_customer_key",
        "CheckViolation: constraint copy_total_check",
        "NotNullViolation: column total",
    ]
    assert rows(dsn, "SELECT id FROM copy ORDER BY id") == [(1,), (5,)]


async def test_a_row_that_somebody_holds_fails_alone(dsn: str, opened: list[Pair]) -> None:
    execute(
        dsn,
        "CREATE TABLE orders (id bigint PRIMARY KEY, total int)",
        "CREATE TABLE copy (id bigint PRIMARY KEY, total int)",
        "INSERT INTO orders VALUES (1, 1), (2, 2), (3, 3)",
        "INSERT INTO copy VALUES (1, 9), (2, 9), (3, 9)",
    )
    pair = Pair(spec_of(field("total", FieldType.INT)), dsn)
    opened.append(pair)
    with psycopg.connect(dsn) as held:
        held.execute("SELECT FROM copy WHERE id = 2 FOR UPDATE")
        assert await pair.written(1, 2, 3, over=True) == [("written", ""), ("failed", "LockNotAvailable"), ("written", "")]
    assert await pair.written(2, over=True) == [("written", "")]


async def test_any_write_since_the_read_makes_the_guard_fail_also_one_of_a_column_that_is_not_mapped(
    dsn: str, opened: list[Pair]
) -> None:
    execute(
        dsn,
        "CREATE TABLE orders (id bigint PRIMARY KEY, total int)",
        "CREATE TABLE copy (id bigint PRIMARY KEY, total int, own text)",
        "INSERT INTO orders VALUES (1, 1)",
        "INSERT INTO copy VALUES (1, 9)",
    )
    pair = Pair(spec_of(field("total", FieldType.INT)), dsn)
    opened.append(pair)
    row, read = await pair.read(pair.source, 1), await pair.read(pair.target, 1)
    assert isinstance(read, StoredRecord)
    execute(dsn, "UPDATE copy SET own = 'x'")
    document = pair.writer.document(row.key, row, pair.spec.fields)
    items = [WriteItem(key=row.key, document=made, replaces=read) for made in (document, None)]
    assert [result.outcome for result in await pair.writer.write(items)] == ["guard_failed"] * 2
    assert rows(dsn, "SELECT * FROM copy") == [(1, 9, "x")]


async def test_nothing_is_written_where_a_second_row_could_come_of_it(dsn: str, opened: list[Pair]) -> None:
    execute(
        dsn,
        "CREATE TABLE orders (id bigint PRIMARY KEY, total int)",
        "CREATE TABLE copy (id bigint NOT NULL, total int)",
        "INSERT INTO orders VALUES (1, 1)",
    )
    pair = Pair(spec_of(field("total", FieldType.INT)), dsn)
    opened.append(pair)
    with pytest.raises(StoreRefused) as refused:
        await pair.written(1)
    assert "CREATE UNIQUE INDEX ON public.copy (id)" in refused.value.remedy
    check = PostgresTargetPreflight(pair.spec, dsn)
    said = [advice for advice in await check.check() if advice.level == "error"]
    await check.close()
    assert [advice.subject for advice in said] == ["orders.target"]
    assert "not unique" in said[0].message


async def test_an_account_that_may_only_read_is_told_that_nothing_can_be_repaired(dsn: str, stack: EmbeddedStack) -> None:
    name = dsn.rsplit("/", 1)[1]
    execute(
        dsn,
        "CREATE TABLE copy (id bigint PRIMARY KEY, total int)",
        f"CREATE ROLE reader_{name} LOGIN",
        f"GRANT SELECT, INSERT ON copy TO reader_{name}",
    )
    check = PostgresTargetPreflight(spec_of(field("total", FieldType.INT)), stack.postgres.dsn(name, f"reader_{name}"))
    said = [advice for advice in await check.check() if advice.level == "warning" and "repaired" in advice.message]
    await check.close()
    assert [advice.message for advice in said] == [
        "The account may not UPDATE, DELETE on public.copy: nothing can be repaired there."
    ]


async def test_the_slots_of_others_are_not_the_target_s(dsn: str) -> None:
    """Its connector's slot is missing, and a stranger's is there: the one is said, and of the other nothing."""
    stranger = "stranger_" + dsn.rsplit("/", 1)[1]
    execute(dsn, "CREATE TABLE copy (id bigint PRIMARY KEY, total int)")
    execute(dsn, f"SELECT pg_create_logical_replication_slot('{stranger}', 'pgoutput')")
    spec = spec_of(field("total", FieldType.INT))
    spec = replace(spec, target=replace(spec.target, feed=FeedSpec(kind=FeedKind.DEBEZIUM, topic="copies")))

    async def configured() -> Mapping[str, str]:
        return {"slot.name": "ours"}

    try:
        check = PostgresTargetPreflight(spec, dsn, configured)
        said = await check.check()
        await check.close()
    finally:
        execute(dsn, f"SELECT pg_drop_replication_slot('{stranger}')")
    (lost,) = [advice for advice in said if advice.finding == "slot_lost"]
    assert (lost.subject, lost.message.split(":")[0]) == ("orders.target", "There is no replication slot ours")
    assert all(stranger not in advice.message for advice in said)


def test_a_fraction_is_not_rounded_into_a_whole_number(dsn: str) -> None:
    spec = spec_of(field("total", FieldType.INT))
    row = StoredRecord(key=b"\x81\x01", fields={"id": 1, "total": Decimal("1.5")})
    with pytest.raises(RecordError, match="no whole number"):
        PostgresWriter(spec, dsn).document(row.key, row, spec.fields)


async def test_the_target_s_own_encodings_are_those_of_its_catalogue_and_connector(dsn: str) -> None:
    execute(dsn, "CREATE TABLE copy (id numeric(9,0) PRIMARY KEY, total numeric(12,3), at timestamp(6))")
    spec = spec_of(field("total", FieldType.DECIMAL), field("at", FieldType.TIMESTAMP))
    reader = PostgresTargetReader(spec, dsn)
    info = await reader.describe()
    await reader.close()
    found = resolve_target(spec, info, {"time.precision.mode": "connect", "unavailable.value.placeholder": "none"}).target
    assert found.wires == (("base64_unscaled", 3), ("epoch_ms", None))
    assert (found.key[0].wire, found.key[0].wire_scale, found.feed.placeholder) == ("base64_unscaled", 0, "none")
