"""The parts of Faust that match uses, imported without the HTTP client that they only name in types: a sixth of a worker's start.

Whoever else needs aiohttp in this process still gets it whole: what stands in for it is gone when the import is done.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


class NoHttpClient:
    """What Faust's settings name as the class of its HTTP client, which a matcher never asks for."""

    def __init__(self, *_: object, **__: object) -> None:
        raise RuntimeError("Faust's HTTP client is not loaded here: match speaks to Kafka only.")


@contextmanager
def _without_http_client() -> Iterator[None]:
    if "aiohttp" in sys.modules:
        yield
        return
    package, client = ModuleType("aiohttp"), ModuleType("aiohttp.client")
    client.ClientSession = NoHttpClient  # type: ignore[attr-defined]
    stands_in = {"aiohttp": package, "aiohttp.client": client}
    sys.modules.update(stands_in)
    try:
        yield
    finally:
        for name, module in stands_in.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


with _without_http_client():
    import faust
    from faust.tables.manager import TableManager
    from faust.tables.recovery import RebalanceAgain, Recovery, ServiceStopped
    from faust.transport.drivers import aiokafka as driver
    from faust.types import TP

__all__ = ["TP", "NoHttpClient", "RebalanceAgain", "Recovery", "ServiceStopped", "TableManager", "driver", "faust"]
