"""By what a history is known: an entry that the oplog was seen to hold, and still holds.

A resume token is little more than a time. A server whose files were set back to a snapshot goes on from that time without a word,
although all that was written between the snapshot and the token is gone from its documents, and no change says so. So a position
also names an entry of the oplog, which was there: where it is not any more, and was not cut off by age, this is another history.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from bson import Timestamp
from pymongo.errors import OperationFailure

from gapwatch.errors import HistoryLost
from gapwatch.ports import Clock
from gapwatch_connectors.mongodb.connection import Mongo, u64

# Where nobody shows an oplog: no right, mongos has no database `local`, none there, no such command, not supported, hosted.
NO_OPLOG: Final = frozenset({13, 20, 26, 59, 115, 8000})
ANCHOR_SECONDS: Final = 30.0  # how much older than the position the entry may be
FIRST_SECONDS: Final = 1.0  # while there is none: where a new stream begins, there is no entry yet
FIELD: Final = "anchor"  # beside the resume token's own
NEVER: Final = float("inf")


class Anchor:
    """The entry of one stream. ``time`` is its cluster time, 0: none yet, or none to be had."""

    def __init__(self, mongo: Mongo, name: str, clock: Clock) -> None:
        self._mongo = mongo
        self._name = name
        self._clock = clock
        self._next = 0.0  # look at it
        self.time = 0

    async def hold(self, position: int) -> None:
        """Look now and then whether the entry is there, and take the one at the position instead. Raises HistoryLost."""
        if self._clock.monotonic() < self._next:
            return
        self._next = self._clock.monotonic() + (ANCHOR_SECONDS if self.time else FIRST_SECONDS)
        await self.must_hold(position)
        if await self._entry({"ts": _stamp(position)}) == position:
            self.time = position

    async def must_hold(self, position: int) -> None:
        """Raises HistoryLost where the entry is gone, and it is not age that took it."""
        if not self.time or await self._entry({"ts": _stamp(self.time)}) in (self.time, None):
            return
        oldest = await self._entry({})
        if oldest is None or self.time < oldest <= position:
            return
        store, remedy = self._mongo.store, "A sweep covers what was missed."
        if oldest > position:  # the server says the same, unless its oplog was made anew: then it takes any position
            message = f"The change stream's position lies outside the oplog of store {store} (ChangeStreamHistoryLost)."
        else:
            message = f"The oplog of store {store} is not the one that {self._name} was followed by: it was set back."
        raise HistoryLost(message, remedy=remedy)

    async def _entry(self, condition: Mapping[str, Any]) -> int | None:
        """Return the cluster time of the first entry, 0 for none, None where nobody shows the oplog."""
        with self._mongo.wrapped():
            try:
                found = await self._mongo.database("local")["oplog.rs"].find_one(condition, {"ts": 1}, sort=[("$natural", 1)])
            except OperationFailure as error:
                if error.code not in NO_OPLOG:
                    raise
                self._next = NEVER
                return None
        return u64(found["ts"]) if found else 0


def _stamp(time: int) -> Timestamp:
    return Timestamp(time >> 32, time & 0xFFFFFFFF)
