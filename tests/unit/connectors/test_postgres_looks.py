"""The checks of all pipelines of a database look at its catalogue in the same statements, and each sees what is its own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest

from gapwatch.check_ports import Memory
from gapwatch.errors import StoreUnreachable
from gapwatch.model.pipeline import PipelineSpec
from gapwatch_connectors.postgres import PostgresHistory, PostgresPreflight, PostgresSourcePreflight, looks
from gapwatch_connectors.postgres.catalogue import Column, Server, Slot, Table
from gapwatch_connectors.postgres.connection import Connection
from gapwatch_connectors.postgres.history import REMEMBER_SECONDS
from gapwatch_connectors.postgres.looks import Answer, Looks, Published, Question, Tree
from tests.simulation.stores import VirtualClock
from tests.unit.core.samples import field, pipeline

URL = "postgresql://localhost:1/shop"
SERVER = Server(standby=False, system="1", timeline=1, written=1, started="", counted_since=None)
SLOT = Slot(name="debezium", plugin="pgoutput", active=True, wal_status="reserved", confirmed_flush_lsn=1, retained_bytes=1)
MEMORY = Memory(recall=lambda _: None, remember=lambda *_: None, now_ms=lambda: 1, proven_ms=lambda: 1)


class Database:
    """Answers questions; ``locked``: tables about which it says nothing."""

    def __init__(self) -> None:
        self.asked: list[Question] = []
        self.locked: set[str] = set()
        self.opened = 0
        self.file = "1"
        self.generated = False

    async def read(self, _: Connection, asked: Question) -> Answer:
        self.asked.append(asked)
        if self.locked & asked.tables:
            raise StoreUnreachable("Postgres does not answer: canceling statement due to lock timeout.", store="shop")
        tables = {name: table_of(name, generated=self.generated) for name in asked.tables}
        published = {one: [Published(whole=True, filter=None, columns=())] for one in asked.published}
        trees = [
            Tree(
                name=name,
                asked=frozenset({name}),
                published=False,
                leaves=(f"{name}_1",),
                leaves_published=True,
            )
            for name in sorted(asked.trees)
        ]
        files = {name: {"1": self.file} for name in asked.files}
        return Answer(
            tables=tables,
            published=published,
            trees=trees,
            files=files,
            wal_level="logical",
            slots=[SLOT],
            server=SERVER,
        )


def table_of(name: str, *, generated: bool) -> Table:
    column = Column(
        name="id",
        type_name="bigint",
        bare="bigint",
        internal="int8",
        storage="p",
        required=True,
        generated=False,
        precision=None,
        scale=None,
    )
    columns = {"id": column, "note": replace(column, name="note", generated=generated)}
    unique = (frozenset({"id"}),)
    kind = {"replica_identity": "f", "identity_columns": ("id",)}
    return Table(oid=1, identity=name, columns=columns, primary_key=("id",), unique=unique, **kind)  # type: ignore[arg-type]


@pytest.fixture
def database() -> Iterator[Database]:
    one = Database()

    class NoConnection:
        async def __aenter__(self) -> None:
            one.opened += 1

        async def __aexit__(self, *_: Any) -> None: ...

    with (
        mock.patch.object(looks, "read", one.read),
        mock.patch("gapwatch_connectors.postgres.connection.Connections.connection", return_value=NoConnection()),
    ):
        yield one


def pipelines() -> list[PipelineSpec]:
    spec = pipeline(field("note"))
    return [replace(spec, id=f"p{number}", source=replace(spec.source, table=f"public.t{number}")) for number in range(10)]


async def config() -> dict[str, str]:
    return {"slot.name": "debezium"}


async def test_ten_pipelines_look_as_often_as_one(database: Database) -> None:
    checks = [PostgresSourcePreflight(spec, URL, config) for spec in pipelines()]
    said = await asyncio.gather(*(check.watch() for check in checks))
    assert [len(asked.tables) for asked in database.asked] == [10, 0]
    assert len(database.asked[1].trees) == 10
    for spec, of_it in zip(pipelines(), said, strict=True):
        found = [advice.message for advice in of_it if advice.finding == "schema_changed"]
        assert [spec.source.table in message for message in found] == [True], "nothing is said of others' tables"
    histories = [PostgresHistory(spec, URL, config, MEMORY) for spec in pipelines()]
    await asyncio.gather(*(history.watch() for history in histories))
    assert (len(database.asked), len(database.asked[2].files)) == (3, 10)
    assert database.opened == 3
    await asyncio.gather(*(check.close() for check in checks), *(history.close() for history in histories))


async def test_a_table_that_is_locked_keeps_no_other_pipeline_from_looking(database: Database) -> None:
    database.locked = {"public.t3"}
    checks = [PostgresSourcePreflight(spec, URL, config) for spec in pipelines()]
    said = await asyncio.gather(*(check.watch() for check in checks), return_exceptions=True)
    assert [number for number, one in enumerate(said) if isinstance(one, StoreUnreachable)] == [3]
    for check in checks:
        await check.close()


async def test_the_doctor_looks_by_itself(database: Database) -> None:
    one, other = Looks("shop", URL), Looks("shop", URL)
    await asyncio.gather(one.alone(Question(log=True)), other.alone(Question(log=True)))
    assert len(database.asked) == 2
    await asyncio.gather(one.together(Question(log=True)), other.together(Question(slots=True)))
    assert database.asked[2:] == [Question(log=True, slots=True)]
    await one.close()
    await other.together(Question(log=True))
    await other.close()
    assert not looks._SHARED[asyncio.get_running_loop()], "the last one closes what they shared"


async def test_what_is_remembered_is_asked_for_seldom_and_what_another_process_saw_stays(
    database: Database,
) -> None:
    clock, facts, recalled = VirtualClock(), dict[str, Any](), list[str]()

    def recall(name: str) -> Any:
        recalled.append(name)
        return facts.get(name)

    memory = Memory(recall=recall, remember=facts.__setitem__, now_ms=clock.now_ms, proven_ms=lambda: 1)
    spec = pipelines()[0]
    history = PostgresHistory(spec, URL, config, memory)

    async def look() -> list[str]:
        found = [advice.message for advice in await history.watch()]
        await clock.sleep(5)
        return found

    assert await look() == []
    first, name = len(recalled), recalled[0]
    for _ in range(int(REMEMBER_SECONDS / 5) - 1):
        assert await look() == []
    assert len(recalled) == first
    others = {"from": 1, "at": clock.now_ms(), "message": "Another process saw it."}
    facts[name] = {**facts[name], "changes": {"slot_jumped/": others}}
    assert await look() == ["Another process saw it."]
    assert facts[name]["changes"] == {"slot_jumped/": others}
    database.file = "2"
    assert len(await look()) == 2
    assert set(facts[name]["changes"]) == {"slot_jumped/", f"truncated/{spec.source.table}"}
    await history.close()


async def test_a_table_that_is_as_it_was_is_not_judged_again(database: Database) -> None:
    preflight = PostgresPreflight(pipelines()[0], URL, config)
    with mock.patch.object(preflight, "_judge", side_effect=preflight._judge) as judged:
        before = await preflight.watch()
        assert (await preflight.watch(), judged.call_count) == (before, 1)
        database.generated = True
        assert "is generated" in "".join(advice.message for advice in await preflight.watch())
        assert judged.call_count == 2
    await preflight.close()
