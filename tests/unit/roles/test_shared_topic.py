"""PROOF (review r2): two pipelines read one topic under different keys; `Owned.ahead` knows partitions, not pipelines."""

from __future__ import annotations

import asyncio
import dataclasses
from types import SimpleNamespace

import pytest

from gapwatch.core.batches import read
from gapwatch.core.feeds import StandingEnd
from gapwatch.core.matching import KeyMatcher
from gapwatch.model.pipeline import FieldSpec, FieldType, KeyColumn, KeyType, PipelineSpec, Settings
from gapwatch.model.suspect import Hole
from gapwatch.roles.ingest.intake import Intake
from gapwatch.roles.ingest.outlet import Outlet
from gapwatch.roles.ingest.parts import Owned, Shared
from tests.unit.core.samples import COMMITTED, pipeline
from tests.unit.roles.test_ingest_intake import AT, Rig, message


def spec_by(name: str, path: str, kind: KeyType) -> PipelineSpec:
    one = pipeline(
        FieldSpec(target="name", source="name", type=FieldType.TEXT),
        source_key=(KeyColumn(path=path, type=kind),),
        target_key=(KeyColumn(path="_id", type=kind),),
    )
    return dataclasses.replace(one, id=name)


@pytest.mark.parametrize("second_key", [("id", KeyType.INT), ("name", KeyType.TEXT)], ids=["same key", "another key"])
async def test_two_pipelines_of_one_topic_reach_what_was_sent(second_key: tuple[str, KeyType]) -> None:
    rig = Rig()
    specs = {"orders": spec_by("orders", "id", KeyType.INT), "names": spec_by("names", *second_key)}
    settings = Settings(bootstrap_servers="", pipelines=specs)

    async def send(topic: str, key: object, value: bytes | None, *, partition: int = -1, **_: object) -> asyncio.Future[None]:
        rig.sent.append((topic, partition, value))
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    producer = SimpleNamespace(send=send)
    on = SimpleNamespace(**{**vars(rig.shared.on), "settings": settings, "pipelines": specs, "producer": producer})
    rig.shared = Shared(on)  # type: ignore[arg-type]
    rig.outlet = Outlet(rig.shared)
    rig.intake = Intake(rig.shared, rig.outlet)
    rig.shared.owned[AT] = Owned(progress=rig.progress, topic_id="id", end=StandingEnd(500))
    prints = {name: rig.shared.bindings[AT.topic][number].fingerprint for number, name in enumerate(specs)}

    await rig.outlet.pulse()  # the start: ranges begin at 5 everywhere
    for offset in range(5, 400):
        await rig.take(message(offset, time=COMMITTED + 100 * offset))
        if offset % 3 == 0:
            await rig.outlet.pulse()
    await rig.outlet.pulse()

    partitions = settings.topics.partitions
    holes, stuck = [], {}
    for partition in range(partitions):
        matcher = KeyMatcher(partition, partitions, specs, fingerprints=prints, life="x")
        records = [value for topic, number, value in rig.sent if topic.endswith(".events") and number == partition]
        for place, value in enumerate(records):
            # one pulse of 250 ms each: time goes on slowly enough for nobody to give up, then quickly
            said = matcher.apply(read(value or b""), place, COMMITTED + 250 * place)
            holes += [(one.pipeline, one.reason, one.time_from) for one in said if isinstance(one, Hole) and one.time_from]
        for (name, _, feed, number), known in matcher._times.feeds.items():
            if feed == AT.topic and number == 0:
                stuck[name, partition] = (known.reached, len(known.waiting))
    assert set(stuck.values()) == {(400, 0)}, stuck
    assert not holes, holes
