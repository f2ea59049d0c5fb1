"""When to look at the keys that ``core/keyrows`` has no due time of; rebuilt from the keys, so that nothing here is stored."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Final

SLOT_BITS: Final = 8  # 256 ms


class DueTimes:
    """One pipeline's keys by due time, in slots; by raw offset while in transit; by the time when to be raised again.

    An entry is a hint: the key's state says whether, and when, it is really due. A key that is settled leaves its entry behind.
    """

    def __init__(self) -> None:
        self.slots: dict[int, list[bytes]] = {}
        self.entries = 0
        self._order: list[int] = []
        self._transit: dict[tuple[int, int], list[tuple[int, bytes]]] = {}
        self._again: list[tuple[int, bytes]] = []

    def add(self, key: bytes, due: int) -> None:
        number = due >> SLOT_BITS
        found = self.slots.get(number)
        if found is None:
            found = self.slots[number] = []
            heapq.heappush(self._order, number)
        found.append(key)
        self.entries += 1

    def due(self, now: int) -> list[bytes]:
        """Take out the keys of every slot that began by `now`."""
        last = now >> SLOT_BITS
        found: list[bytes] = []
        while self._order and self._order[0] <= last:
            found += self.slots.pop(heapq.heappop(self._order))
        self.entries -= len(found)
        return found

    def wait_for_delivery(self, feed: tuple[int, int], offset: int, key: bytes) -> None:
        heapq.heappush(self._transit.setdefault(feed, []), (offset, key))

    def delivered(self, feed: tuple[int, int], position: int) -> Iterator[bytes]:
        """Yield the keys whose writes lay in transit below `position`; they are taken out."""
        waiting = self._transit.get(feed)
        while waiting and waiting[0][0] < position:
            yield heapq.heappop(waiting)[1]

    def raise_again(self, key: bytes, at: int) -> None:
        heapq.heappush(self._again, (at, key))

    def again(self, now: int) -> Iterator[tuple[int, bytes]]:
        while self._again and self._again[0][0] <= now:
            yield heapq.heappop(self._again)

    def clear(self) -> None:
        """Forget the due times and what is in transit."""
        self.slots.clear()
        self._order.clear()
        self._transit.clear()
        self.entries = 0
