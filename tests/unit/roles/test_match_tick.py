"""A matcher to which nothing comes checkpoints seldom, and soon after the next record."""

from __future__ import annotations

import asyncio
import itertools
from types import SimpleNamespace
from typing import Any, cast

from gapwatch.roles.match.settings import MatchTuning
from gapwatch.roles.match.worker import MatchWorker, still_seconds
from tests.simulation.stores import VirtualClock

STILL_SECONDS = 4.0
SECONDS = 60.0


class Ended(Exception):  # noqa: N818 - reads as a state
    pass


class Clock(VirtualClock):
    """Ends the task that sleeps after a minute."""

    def __init__(self) -> None:
        super().__init__()
        self.began = self.monotonic()

    async def sleep(self, seconds: float) -> None:
        if self.monotonic() - self.began > SECONDS:
            raise Ended
        await super().sleep(seconds)


def checkpoints(records_at: list[float]) -> list[float]:
    """Return at which second checkpoints were made, where a record is applied at each of the given ones."""
    clock, left, made = Clock(), sorted(records_at), list[float]()
    held = SimpleNamespace(events=[], said=[], applied=0, shown=0)

    class Checkpointer:
        async def run(self) -> bool:
            made.append(round(clock.monotonic() - clock.began, 1))
            held.events.clear()
            held.shown = held.applied
            return True

    class App:
        @property
        def rebalancing(self) -> bool:  # asked at every tick
            while left and left[0] <= clock.monotonic() - clock.began:
                held.events.append(left.pop(0))
                held.applied += 1
            return False

    worker = cast(Any, MatchWorker.__new__(MatchWorker))
    worker._clock, worker._held, worker._app, worker._tuning = clock, {0: held}, App(), MatchTuning()
    worker._checkpointer, worker._still_seconds = Checkpointer(), STILL_SECONDS

    async def run() -> None:
        try:
            await worker._tick()
        except Ended:
            return

    asyncio.run(run())
    return made


def test_while_records_come_there_is_one_a_second() -> None:
    made = checkpoints([second / 10 for second in range(600)])
    assert len(made) >= SECONDS - 3


def test_while_none_come_the_status_is_renewed_all_the_same() -> None:
    made = checkpoints([])
    pauses = [later - earlier for earlier, later in itertools.pairwise(made)]
    assert pauses
    assert all(STILL_SECONDS <= pause <= STILL_SECONDS + 1.1 for pause in pauses)


def test_a_status_is_renewed_several_times_before_it_expires() -> None:
    assert still_seconds([30.0, 8.0, 60.0]) <= 8.0 / 4
    assert still_seconds([]) == 0.0


def test_what_comes_is_durable_within_a_second_of_its_own() -> None:
    made = checkpoints([30.2])
    assert any(30.2 <= at <= 31.4 for at in made)
