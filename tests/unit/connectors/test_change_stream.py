"""How often a change stream is looked at, and how often a marker is written for it, while nothing happens."""

from __future__ import annotations

from itertools import pairwise

import pytest

from gapwatch_connectors.mongodb.feed import QUIET_AFTER_SECONDS, QUIET_SECONDS, REST_SECONDS, MongoChangeStream
from tests.simulation.stores import VirtualClock
from tests.unit.core.samples import field, pipeline


@pytest.mark.parametrize("may_mark", [True, False])
async def test_a_stream_at_rest_is_looked_at_every_two_seconds(may_mark: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = VirtualClock()
    stream = MongoChangeStream(pipeline(field("v")), "mongodb://localhost:1", clock=clock)
    stream._may_mark = may_mark
    written: list[float] = []

    async def mark() -> float:
        written.append(clock.monotonic())
        return written[-1]

    monkeypatch.setattr(stream, "mark", mark)
    looks = [clock.monotonic()]
    while looks[-1] < looks[0] + 2 * QUIET_AFTER_SECONDS:
        await stream._rest()
        await stream._mark()
        looks.append(clock.monotonic())
        await clock.sleep(0.001)
    await stream.close()
    pauses = [round(later - earlier, 2) for earlier, later in pairwise(looks)]
    awake = int(QUIET_AFTER_SECONDS / REST_SECONDS) - 2
    assert set(pauses[1:awake]) == {REST_SECONDS}
    assert set(pauses[-10:]) == {QUIET_SECONDS}
    assert (len(written) > len(looks) / 2) == may_mark
