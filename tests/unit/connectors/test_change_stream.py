"""How often a change stream is looked at, and how often a marker is written for it, while nothing happens."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from gapwatch.clock import SystemClock
from gapwatch_connectors.mongodb.feed import (
    LONGER,
    QUIET_AFTER_SECONDS,
    QUIET_SECONDS,
    REST_SECONDS,
    MongoChangeStream,
)
from tests.simulation.stores import VirtualClock
from tests.unit.core.samples import field, pipeline


@pytest.mark.parametrize("woken", [True, False])
@pytest.mark.parametrize("may_mark", [True, False])
async def test_a_stream_at_rest_is_looked_at_every_two_seconds_or_four_where_somebody_wakes_it(
    may_mark: bool, woken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = VirtualClock()
    stream = MongoChangeStream(pipeline(field("v")), "mongodb://localhost:1", clock=clock)
    stream._may_mark = may_mark
    if woken:
        stream.may_rest()
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
    assert set(pauses[-5:]) == {LONGER * QUIET_SECONDS if woken else QUIET_SECONDS}
    assert (len(written) > len(looks) / 2) == may_mark


async def test_a_stream_that_is_woken_is_looked_at_at_once_and_rests_no_more() -> None:
    clock = SystemClock()
    stream = MongoChangeStream(pipeline(field("v")), "mongodb://localhost:1", clock=clock)
    stream.may_rest()
    stream._stirred -= QUIET_AFTER_SECONDS + 1
    stream._next_marker = clock.monotonic() + 3_600
    resting = asyncio.create_task(stream._rest())
    await asyncio.sleep(0)
    stream.wake()
    async with asyncio.timeout(LONGER * QUIET_SECONDS / 2):
        await resting
    assert not stream._quiet()
    assert stream._next_marker - clock.monotonic() <= stream._pulse, "what was proven by an old marker says nothing of now"
    await stream.close()
