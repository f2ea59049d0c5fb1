"""Every request to a store is counted, by store and purpose, and answered as if nobody counted."""

from __future__ import annotations

import asyncio
from collections import Counter

from gapwatch.roles.repair.counted import CountedStores
from gapwatch.roles.stores import PipelineStores
from tests.simulation.stores import Rig


class Provider:
    def __init__(self, made: PipelineStores) -> None:
        self.made = made

    async def stores(self, pipeline: str) -> PipelineStores:
        return self.made


async def ask(rig: Rig, counts: Counter[tuple[str, str, str]]) -> None:
    counted = CountedStores(Provider(rig.stores), "sweep", lambda *asked: counts.update([asked]))
    stores = await counted.stores(rig.spec.id)
    assert await counted.stores(rig.spec.id) is stores
    key = rig.key(1)
    assert set(await stores.source.fetch([key])) == {key}
    assert [len(chunk.records) async for chunk in stores.source.scan(content=True)] == [1]
    assert [len(chunk) async for chunk in stores.target.scan_keys()] == [1]
    assert not await stores.target.is_empty()
    assert await stores.source.in_key_order() == await rig.stores.source.in_key_order()
    assert await stores.writer.write([]) == []


def test_every_request_is_counted_by_store_and_purpose() -> None:
    rig, counts = Rig(), Counter[tuple[str, str, str]]()
    rig.source_writes(1)
    rig.sink_delivers(1)
    asyncio.run(ask(rig, counts))
    assert counts == {(rig.spec.source.store, "sweep", rig.spec.id): 3, (rig.spec.target.store, "sweep", rig.spec.id): 3}
