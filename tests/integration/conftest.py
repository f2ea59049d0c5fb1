"""Fixtures of the tests on real parts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from gapwatch.embedded import EmbeddedStack, OpenSearchPart
from tests.stack import ask


@pytest.fixture(scope="session")
def kafka_bootstrap(stack: EmbeddedStack) -> str:
    """``host:port`` of the broker. Tests use names of their own on it."""
    return stack.kafka.bootstrap_servers


@pytest.fixture(scope="session")
def node() -> Iterator[OpenSearchPart]:
    with EmbeddedStack(parts=("opensearch",)) as running:
        yield running.opensearch


@pytest.fixture
def index(node: OpenSearchPart, unique: Callable[[str], str]) -> str:
    name = unique("orders")
    ask("PUT", f"{node.url}/{name}", {"settings": {"number_of_shards": 3, "number_of_replicas": 0}})
    return name


@pytest.fixture
async def made() -> AsyncIterator[list[Any]]:
    """What is put here is closed at the end."""
    things: list[Any] = []
    yield things
    for thing in things:
        await thing.close()
