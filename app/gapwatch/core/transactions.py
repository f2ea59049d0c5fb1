"""Whether all events of a transaction came: Debezium's transaction topic says how many there were of each table.

Pure. Every event carries its transaction and its number there, per table, so that repeated records change nothing. A transaction
is judged when its end is older, by append time, than `settle`, and everything was read that was there then. One whose begin was
not read is not judged: nobody knows what else of it was not.

Shapes, with ``provide.transaction.metadata``: ``{"status": "END", "id": "571:53195829", "ts_ms": …, "data_collections":
[{"data_collection": "public.orders", "event_count": 2}]}`` on the topic, ``"transaction": {"id": …, "data_collection_order": 1}``
in every event. What follows the colon is the log position of that record, not of the transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgspec

TRANSACTIONS_MAX: Final = 10_000  # that were begun and not judged
COMPLETE_KEPT: Final = 10_000
EVENTS_MAX: Final = 64_000_000  # of all of them together; a bit each
NUMBERS_SHOWN_MAX: Final = 5

Place = tuple[str, int]  # topic and partition


class _Count(msgspec.Struct):
    data_collection: str
    event_count: int = 0


class _Ends(msgspec.Struct):
    status: str = ""
    id: str = ""
    ts_ms: int = 0
    data_collections: list[_Count] | None = None
    payload: _Ends | None = None


class _Within(msgspec.Struct):
    id: str
    data_collection_order: int = 0


class _Event(msgspec.Struct):
    transaction: _Within | None = None
    payload: _Event | None = None


_ENDS: Final = msgspec.json.Decoder(_Ends)
_EVENT: Final = msgspec.json.Decoder(_Event)


class Incomplete(NamedTuple):
    """A transaction that lacks events of one table. ``time``: of its commit (ms); ``numbers``: the first that are missing."""

    id: str
    topic: str
    table: str
    expected: int
    missing: int
    numbers: tuple[int, ...]
    time: int

    def sentence(self) -> str:
        numbers = ", ".join(map(str, self.numbers)) + (", …" if self.missing > len(self.numbers) else "")
        return (
            f"transaction {self.id} wrote {self.expected} times to {self.table}; {self.missing} of its events"
            f" (number {numbers}) {'is' if self.missing == 1 else 'are'} not in {self.topic}"
        )


class Judged(NamedTuple):
    complete: int
    unchecked: int
    incomplete: Sequence[Incomplete]


@dataclass(slots=True)
class _Open:
    """``seen``: per topic, one bit per event; ``first``: where its records begin, per place."""

    appended: int
    begun: bool = False
    ended: _Ends | None = None
    end_appended: int = 0
    seen: dict[str, bytearray] = field(default_factory=dict)
    first: dict[Place, int] = field(default_factory=dict)

    @property
    def bits(self) -> int:
        return 8 * sum(map(len, self.seen.values()))


class TransactionCheck:
    """The transactions of one topic.

    Args:
        topic: Debezium's transaction topic.
        tables: The watched tables by their topics: of others nothing is asked.
        settle_ms: How much older, by append time, an end must be than what came last.
    """

    def __init__(self, topic: str, tables: Mapping[str, str], settle_ms: int) -> None:
        self.topic = topic
        self.tables = dict(tables)
        self.clock = 0  # the newest append time
        self.through_ms = 0  # the commit time up to which transactions were judged, 0: not known
        self._settle = settle_ms
        self._open: dict[str, _Open] = {}
        self._bits = 0
        self._positions: dict[Place, int] = {}
        self._read: dict[Place, int] = {}  # what an earlier reader had read …
        self._left: set[str] = set()  # … and left open, so far as we have not judged it
        self._unchecked = 0
        self._complete: dict[str, None] = {}  # the last ones: a connector that starts again may repeat parts of them

    # what comes in

    def take(self, place: Place, offset: int, append_time: int, value: bytes | None) -> None:
        """Take one record, in the order of its partition; of a topic that is no table's only the time is taken."""
        self.clock = max(self.clock, append_time)
        self._positions[place] = offset + 1
        if not value:
            return
        try:
            if place[0] == self.topic:
                self._boundary(place, offset, append_time, value)
            elif place[0] in self.tables:
                self._event(place, offset, append_time, value)
        except msgspec.MsgspecError:
            return  # no record of Debezium's; ingest says so of a table's topic

    def _boundary(self, place: Place, offset: int, append_time: int, value: bytes) -> None:
        said = _ENDS.decode(value)
        said = said.payload or said
        found = self._of(said.id, place, offset, append_time)
        if found is None:
            return
        if said.status == "BEGIN":
            found.begun = True
        elif said.status == "END":
            found.ended, found.end_appended = said, append_time

    def _event(self, place: Place, offset: int, append_time: int, value: bytes) -> None:
        event = _EVENT.decode(value)
        within = (event.payload or event).transaction
        if within is None or within.data_collection_order < 1:
            return
        found = self._of(within.id, place, offset, append_time)
        if found is None or within.data_collection_order > EVENTS_MAX:
            return
        byte, bit = divmod(within.data_collection_order - 1, 8)
        seen = found.seen.setdefault(place[0], bytearray())
        if byte >= len(seen):
            more = byte + 1 - len(seen)
            seen.extend(bytes(more))
            self._bits += 8 * more
        seen[byte] |= 1 << bit
        while self._bits > EVENTS_MAX:
            self._give_up()

    def _of(self, said: str, place: Place, offset: int, append_time: int) -> _Open | None:
        """Return the transaction of a record; None where an earlier reader has judged it."""
        name = said.partition(":")[0]
        if not name or (offset < self._read.get(place, 0) and name not in self._left):
            return None
        found = self._open.get(name)
        if found is None:
            if len(self._open) >= TRANSACTIONS_MAX:
                self._give_up()
            found = self._open[name] = _Open(append_time)
        found.first.setdefault(place, offset)
        return found

    def _give_up(self) -> None:
        """A limit is reached: the oldest one is not judged. What still comes of it has no begin."""
        self._drop(next(iter(self._open)))
        self._unchecked += 1

    def _drop(self, name: str) -> None:
        found = self._open.pop(name)
        self._bits -= found.bits
        self._left.discard(name)

    # what comes out

    def due(self) -> bool:
        """Whether a transaction could be judged, once all that is there now was read."""
        return any(found.end_appended and found.end_appended + self._settle <= self.clock for found in self._open.values())

    def judge(self, clock: int) -> Judged:
        """Judge what had ended by `clock`: an earlier :attr:`clock`, after which all that was there then has been read."""
        complete, incomplete, through = 0, list[Incomplete](), 0
        for name, found in list(self._open.items()):
            if found.ended is None or found.end_appended + self._settle > clock:
                if not found.begun and found.ended is None and found.appended + self._settle <= clock:
                    self._drop(name)  # begins are sent before events: it was begun before we came
                continue
            self._drop(name)
            through = max(through, found.ended.ts_ms)
            if not found.begun:
                self._unchecked += 1
                continue
            if name in self._complete:
                continue
            lacks = self._lacks(name, found, found.ended)
            incomplete += lacks
            complete += not lacks
            if not lacks:
                self._remember(name)
        unchecked, self._unchecked = self._unchecked, 0
        self.through_ms = through or self.through_ms
        return Judged(complete, unchecked, incomplete)

    def _remember(self, name: str) -> None:
        self._complete[name] = None
        if len(self._complete) > COMPLETE_KEPT:
            del self._complete[next(iter(self._complete))]

    def _lacks(self, name: str, found: _Open, ended: _Ends) -> list[Incomplete]:
        counts = {count.data_collection: count.event_count for count in ended.data_collections or ()}
        lacks = []
        for topic, table in self.tables.items():
            expected = counts.get(table, 0)
            seen = found.seen.get(topic, bytearray())
            numbers = [number for number in range(1, expected + 1) if not _has(seen, number)] if _count(seen) < expected else []
            if numbers:
                shown = tuple(numbers[:NUMBERS_SHOWN_MAX])
                lacks.append(Incomplete(name, topic, table, expected, len(numbers), shown, ended.ts_ms))
        return lacks

    # from where another reader goes on

    def position(self) -> dict[str, Any]:
        """Return what another reader needs: from where to read, what of it was judged already, and what was not (JSON)."""
        starts, read = dict(self._positions), {**self._read, **self._positions}
        for place, offset in self._read.items():
            read[place] = max(read[place], offset)
        if all(self._positions.get(place, 0) >= offset for place, offset in self._read.items()):
            self._left &= self._open.keys()  # what is open elsewhere, nothing is there of any more
        for found in self._open.values():
            for place, offset in found.first.items():
                starts[place] = min(starts[place], offset)
        return {
            "topics": sorted((self.topic, *self.tables)),
            "starts": _packed(starts),
            "read": _packed(read),
            "open": sorted(self._open.keys() | self._left),
            "through": self.through_ms,
        }

    def resume(self, position: Mapping[str, Any]) -> dict[Place, int] | None:
        """Take up another reader's position; return from where to read, None where it is of other tables."""
        self.through_ms = int(position.get("through", 0))
        if position["topics"] != sorted((self.topic, *self.tables)):
            return None
        self._read, self._left = _unpacked(position["read"]), set(position["open"])
        return _unpacked(position["starts"])

    def begin(self, starts: Mapping[Place, int]) -> None:
        """Say from where partitions are read: the positions before anything is."""
        for place, offset in starts.items():
            self._positions.setdefault(place, offset)


def _has(seen: bytearray, number: int) -> bool:
    byte, bit = divmod(number - 1, 8)
    return byte < len(seen) and bool(seen[byte] & 1 << bit)


def _count(seen: bytearray) -> int:
    return int.from_bytes(seen, "little").bit_count()


def _packed(places: Mapping[Place, int]) -> dict[str, dict[str, int]]:
    packed: dict[str, dict[str, int]] = {}
    for (topic, number), offset in sorted(places.items()):
        packed.setdefault(topic, {})[str(number)] = offset
    return packed


def _unpacked(packed: Mapping[str, Mapping[str, int]]) -> dict[Place, int]:
    return {(topic, int(number)): offset for topic, numbers in packed.items() for number, offset in numbers.items()}
