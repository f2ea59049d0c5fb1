"""What the check of a Postgres source says of what it could not look at: a refusal is an answer to the doctor, and no look."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import pytest

from gapwatch.check_ports import Advice
from gapwatch.errors import StoreRefused, StoreUnreachable
from gapwatch.model.pipeline import SourceTable
from gapwatch_connectors.postgres import PostgresSourcePreflight
from gapwatch_connectors.postgres.catalogue import Slot
from gapwatch_connectors.postgres.looks import Answer, Published
from gapwatch_connectors.postgres.preflight import PostgresPreflight
from tests.unit.core.samples import pipeline

URL = "postgresql://localhost:1/shop"


class Connect:
    """Kafka Connect: says the connector's configuration, or raises."""

    def __init__(self, says: Mapping[str, str] | Exception | None) -> None:
        self.says = says

    async def __call__(self) -> Mapping[str, str] | None:
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


async def slots_of(preflight: PostgresPreflight, *names: str) -> list[Advice]:
    found = [
        Slot(name=name, plugin="pgoutput", active=True, wal_status="reserved", confirmed_flush_lsn=1, retained_bytes=1)
        for name in names
    ]
    published = {("dbz_publication", "public.orders"): [Published(whole=True, filter=None, columns=())]}
    answer = Answer(wal_level="logical", slots=found, published=published)
    config, unknown = await preflight._configured()
    return preflight._log(answer, SimpleNamespace(oid=1, columns={}), config, unknown)  # type: ignore[arg-type]


async def test_while_kafka_connect_is_away_nobody_knows_which_slot_is_the_connectors() -> None:
    """A slot that had been lost was found no more, as others are there; and others' slots are not this pipeline's."""
    connect = Connect(StoreUnreachable("Kafka Connect does not answer.", store="connect"))
    preflight = PostgresPreflight(pipeline(), URL, connect)
    (said,) = await slots_of(preflight, "somebody_elses")
    assert (said.level, said.finding) == ("unknown", "slot_lost")
    connect.says = {"slot.name": "ours"}
    lost, *_ = await slots_of(preflight, "somebody_elses")
    assert (lost.level, lost.finding) == ("error", "slot_lost")
    connect.says = StoreRefused("No.", store="connect")
    assert [one.level for one in await slots_of(preflight, "ours")] == ["ok"], "it is known by then"
    await preflight.close()


@pytest.mark.parametrize("tables", [1, 2])
async def test_a_refusal_is_said_by_the_doctor_and_no_look_of_the_watchers(tables: int) -> None:
    spec = pipeline()
    several = tuple(SourceTable(table=name, feed=spec.source.feed) for name in ("public.orders", "public.more"))
    spec = replace(spec, source=replace(spec.source, tables=several if tables > 1 else ()))
    preflight = PostgresSourcePreflight(spec, URL)
    refused = StoreRefused("Postgres refused: password authentication failed.", store="shop", remedy="Correct it.")

    with ExitStack() as away:
        for looks in (preflight._looks, *(one._looks for one in preflight._tables.values())):
            away.enter_context(mock.patch.object(looks, "alone", side_effect=refused))
        assert [(one.level, one.finding) for one in await preflight.check()] == [("error", "")]
        assert [(one.level, one.finding) for one in await preflight.watch()] == [("unknown", "")]
    await preflight.close()


async def test_a_table_that_is_refused_hides_nothing_of_another() -> None:
    preflight = PostgresSourcePreflight(pipeline(), URL)
    changed = Advice(level="error", subject="orders.source", message="It changed.", finding="schema_changed")
    said = iter([StoreRefused("No such table.", store="shop"), [changed]])
    with mock.patch.object(PostgresPreflight, "watch", side_effect=said):
        preflight._tables = {"a": PostgresPreflight(pipeline(), URL), "b": PostgresPreflight(pipeline(), URL)}
        with mock.patch.object(preflight._looks, "together", return_value=Answer()):
            found = await preflight.watch()
    assert [(one.level, one.finding) for one in found] == [("unknown", ""), ("error", "schema_changed")]
