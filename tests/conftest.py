"""Fixtures of the whole suite: one stack of real parts for a session, fresh names for each test."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator

import psycopg
import pytest
from hypothesis import HealthCheck, settings

from gapwatch.embedded import EmbeddedStack

os.environ.setdefault("GAPWATCH_NATIVE", "0")  # the twin in Python, whatever is installed; `make native` tests the module
# Two busy cores say nothing about a property.
settings.register_profile("ours", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ours")
if (
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN
):  # a shell starts so what runs in its background, and our programs inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="run stories for their full length, and those marked as long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave what is marked as long to ``make soak`` and ``make more``; the run says how many those are."""
    if config.getoption("--soak"):
        return
    long = [item for item in items if item.get_closest_marker("long")]
    if long:
        items[:] = [item for item in items if not item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)


@pytest.fixture(scope="session")
def stack() -> Iterator[EmbeddedStack]:
    """Kafka, Connect, Postgres and MongoDB, started once. Tests leave it running, or restart what they killed."""
    with EmbeddedStack(converters=True) as running:
        yield running


_NUMBERS = itertools.count(1)


@pytest.fixture
def unique() -> Callable[[str], str]:
    """Return a function that makes a name nobody else uses on this stack."""
    return lambda prefix: f"{prefix}_{os.getpid()}_{next(_NUMBERS)}"


@pytest.fixture
def postgres_database(stack: EmbeddedStack, unique: Callable[[str], str]) -> str:
    """A fresh, empty Postgres database; returns its name."""
    name = unique("db")
    with psycopg.connect(stack.postgres.dsn(), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return name
