"""Fixtures of the tests on real parts."""

from __future__ import annotations

import pytest

from gapwatch.embedded import EmbeddedStack


@pytest.fixture(scope="session")
def kafka_bootstrap(stack: EmbeddedStack) -> str:
    """``host:port`` of the broker. Tests use names of their own on it."""
    return stack.kafka.bootstrap_servers
