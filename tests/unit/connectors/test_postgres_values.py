"""Values as the driver hands them over: a text of Postgres' is the text that Debezium sends."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import psycopg
import pytest
from psycopg import adapt, postgres, pq

from gapwatch_connectors.postgres.values import register


def read(kind: str, text: str, *, array: bool = False) -> Any:
    """Return what a connection of ours makes of a value in text form."""
    context = cast("psycopg.AsyncConnection[Any]", SimpleNamespace(adapters=adapt.AdaptersMap(psycopg.adapters), connection=None))
    register(context)
    info = postgres.types[kind]
    oid = info.array_oid if array else info.oid
    return adapt.Transformer(context).get_loader(oid, pq.Format.TEXT).load(text.encode())


@pytest.mark.parametrize("text", ["::ffff:10.0.0.1", "::10.0.0.1", "::1", "10.0.0.1", "10.0.0.1/8", "fe80::1/64"])
@pytest.mark.parametrize("kind", ["inet", "cidr"])
def test_a_network_address_is_spelt_as_postgres_spells_it(kind: str, text: str) -> None:
    """Python writes ::ffff:a00:1 for ::ffff:10.0.0.1: such a row differed from its own event, and from a right target."""
    assert read(kind, text) == text
    assert read(kind, f"{{{text},NULL}}", array=True) == [text, None]
