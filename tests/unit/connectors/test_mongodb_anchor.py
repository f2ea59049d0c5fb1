"""By what an oplog is known again: an entry that it held. One that was cut off by age says nothing."""

from __future__ import annotations

from typing import Any

import pytest
from bson import Timestamp
from pymongo.errors import OperationFailure

from gapwatch.errors import HistoryLost
from gapwatch_connectors.mongodb.anchor import ANCHOR_SECONDS, FIRST_SECONDS, Anchor
from gapwatch_connectors.mongodb.connection import Mongo
from tests.simulation.stores import VirtualClock


class Oplog:
    """The database ``local`` and its oplog, of entries at these seconds."""

    def __init__(self, *seconds: int) -> None:
        self.seconds = seconds
        self.asked = 0
        self.code = 0

    def __getitem__(self, _: str) -> Oplog:
        return self

    async def find_one(self, condition: dict[str, Timestamp], *_: Any, **__: Any) -> dict[str, Timestamp] | None:
        self.asked += 1
        if self.code:
            raise OperationFailure("no", self.code)
        wanted = condition.get("ts")
        found = [Timestamp(second, 1) for second in self.seconds if wanted in (None, Timestamp(second, 1))]
        return {"ts": found[0]} if found else None


def at(second: int) -> int:
    return second << 32 | 1


@pytest.fixture
def oplog(monkeypatch: pytest.MonkeyPatch) -> Oplog:
    made = Oplog(1, 2, 3, 5)
    monkeypatch.setattr(Mongo, "database", lambda *_: made)
    return made


@pytest.fixture
def anchor(oplog: Oplog, clock: VirtualClock) -> Anchor:
    return Anchor(Mongo("catalog", "mongodb://127.0.0.1:1/"), "shop.orders", clock)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


async def test_an_entry_is_taken_once_in_a_while_where_the_position_has_one(
    oplog: Oplog, anchor: Anchor, clock: VirtualClock
) -> None:
    await anchor.hold(at(4))
    assert anchor.time == 0, "where a new stream begins, there is none"
    await clock.sleep(FIRST_SECONDS)
    await anchor.hold(at(3))
    asked = oplog.asked
    await anchor.hold(at(5))
    assert (anchor.time, oplog.asked) == (at(3), asked)
    await clock.sleep(ANCHOR_SECONDS)
    await anchor.hold(at(4))
    assert anchor.time == at(3), "a time between two entries names none"
    await clock.sleep(ANCHOR_SECONDS)
    await anchor.hold(at(5))
    assert anchor.time == at(5)


@pytest.mark.parametrize(
    ("seconds", "why"),
    [((1, 2, 3, 5), ""), ((4, 5), ""), ((1, 2, 6), "set back"), ((6, 7), "outside the oplog"), ((), "set back")],
    ids=["it is there", "it was cut off", "set back", "made anew", "empty"],
)
async def test_an_entry_that_is_gone_is_another_history_unless_its_age_took_it(
    oplog: Oplog, anchor: Anchor, clock: VirtualClock, seconds: tuple[int, ...], why: str
) -> None:
    await anchor.hold(at(3))
    oplog.seconds = seconds
    if why:
        with pytest.raises(HistoryLost, match=why):
            await anchor.must_hold(at(5))
        await clock.sleep(ANCHOR_SECONDS)
        with pytest.raises(HistoryLost, match=why):
            await anchor.hold(at(5))
    else:
        await anchor.must_hold(at(5))


@pytest.mark.parametrize("code", [13, 20])
async def test_an_oplog_that_nobody_shows_proves_nothing(oplog: Oplog, anchor: Anchor, clock: VirtualClock, code: int) -> None:
    oplog.code = code
    for _ in range(3):
        await anchor.hold(at(3))
        await clock.sleep(ANCHOR_SECONDS)
    assert (anchor.time, oplog.asked) == (0, 1)
    anchor.time = at(3)  # of a position that was stored when it was shown
    await anchor.must_hold(at(5))
