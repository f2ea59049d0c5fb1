"""What tests of one watched pipeline share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pymongo.collection import Collection

from tests.acceptance.scenery import Scene


@pytest.fixture
def orders(scene: Scene) -> Iterator[Collection[dict[str, Any]]]:
    """The target's collection of the module's own `scene`."""
    client = scene.mongo()
    try:
        yield client[scene.database].orders
    finally:
        client.close()
