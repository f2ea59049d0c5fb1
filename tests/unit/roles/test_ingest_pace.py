"""How long ingest collects before it sends a control record."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gapwatch.roles.ingest.role import IngestRole

PULSE = 0.25
ROUNDS = 20


@pytest.mark.parametrize(("work", "rounds_last"), [(0.01, PULSE), (0.2, PULSE), (0.6, 0.6)])
async def test_it_collects_up_to_the_next_control_record_and_waits_for_nothing_where_its_work_takes_longer(
    work: float, rounds_last: float
) -> None:
    """One that waited beside its work read at most 5,000 messages in the time of both, and was left behind."""
    now, stop = 100.0, asyncio.Event()
    waits, pulses = list[float](), list[float]()

    async def poll(seconds: float) -> None:
        nonlocal now
        waits.append(seconds)
        now += seconds + work

    async def pulse() -> None:
        pulses.append(now)
        if len(pulses) == ROUNDS:
            stop.set()

    async def nothing() -> None: ...

    role = cast("Any", IngestRole.__new__(IngestRole))
    clock, pipeline = SimpleNamespace(monotonic=lambda: now), SimpleNamespace(pulse_seconds=PULSE)
    role._on = SimpleNamespace(pipelines={"orders": pipeline}, clock=clock)
    role._shared = SimpleNamespace(paced=lambda seconds: 1e6 if seconds > PULSE else seconds)
    role._ownership = SimpleNamespace(find_topics=nothing, subscribed=["t"])
    role._outlet = SimpleNamespace(pulse=pulse, commit=nothing, finish=nothing)
    role._poll = poll
    await role._read(stop)
    lasted = [later - earlier for earlier, later in pairwise(pulses[1:])]
    assert lasted == pytest.approx([rounds_last] * len(lasted))
    assert waits[2:] == pytest.approx([max(PULSE - work, 0.0)] * len(waits[2:]))
