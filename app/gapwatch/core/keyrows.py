"""The keys of one pipeline in one partition, as rows of columns: one dictionary finds a key's row, numpy does the rest.

A row holds the key's expected write in the bytes of ``core/keystate`` and, once settled, the head of the observed one; so a
whole section is opened or settled by a few calls, whatever its length. What does not fit into a row (several versions, odd,
raised, toleranced values) has a long form beside it. One write of the target of which nothing is expected yet has a row as well:
where the target's topic is read first, that is every key for a while. So has a settled key with one newer expected write, and
what is remembered of its older versions, in columns that only updates touch. Rows are only added; dead ones are swept out when
they are half of all.
Measured: 0.2 µs to open or settle a key, and 220 bytes an open key, the key itself included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from mmap import mmap
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from gapwatch.core.compiledrows import RowsModule
from gapwatch.core.keystate import (
    EXTRA,
    HEAD_BYTES,
    OLDER_WHEN_SETTLED,
    Held,
    KeyState,
    alone_state,
    due_of,
    is_alone,
    is_update,
    update_state,
)

FREE: Final = 0
PENDING: Final = 1  # one expected write, in the row; looked at when its due time has come
PARKED: Final = 2  # the same, but the time to look at it is kept elsewhere
SETTLED: Final = 3  # expected write and observed head, in the row
OPEN: Final = 4  # open, in the long form
CLOSED: Final = 5  # settled, in the long form
ALONE: Final = 6  # open: one observed write, in the row, and nothing is expected; looked at when its due time has come
ALONE_PARKED: Final = 7  # the same, but the time to look at it is kept elsewhere
UPDATED: Final = 8 | PENDING  # open: one expected write, in the row, over what was settled; looked at when its due time has come
UPDATED_PARKED: Final = 8 | PARKED  # the same, but the time to look at it is kept elsewhere

UNSAVED: Final = (1 << 32) - 1  # in the column of segments: changed since the last checkpoint
BLOCK_BITS: Final = 12  # rows in a block, of which the earliest due time is known
NEVER: Final = 1 << 62
CAPACITY_MIN: Final = 1 << 16  # memory that was never written costs nothing, copying does
GROWTH: Final = 4
DEAD_ROWS_MIN: Final = 1 << 16  # so many may lie dead before rows are moved together
EVICTED_SHARE: Final = 8  # one in so many settled keys goes at once when there are too many
OLDER_MAX: Final = OLDER_WHEN_SETTLED + 1  # identities of older versions that a row holds: one more while an update is open
_HEAD_WORDS: Final = HEAD_BYTES // 8
_PARKED: Final = {PENDING: PARKED, ALONE: ALONE_PARKED, UPDATED: UPDATED_PARKED}

Rows = npt.NDArray[np.int64]
Columns = npt.NDArray[Any]

LONE: Final = frozenset({ALONE, ALONE_PARKED})
AWAITED: Final = frozenset({PENDING, PARKED, UPDATED, UPDATED_PARKED})
REOPENED: Final = frozenset({UPDATED, UPDATED_PARKED})
_LONG: Final = (OPEN, CLOSED)
Places = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]


def are_awaited(places: Places) -> Flags:
    """Whether each is open, with one expected write in the row. (Calculated: looking places up costs five times as much.)"""
    found: Flags = (places & 7) - np.uint8(PENDING) <= PARKED - PENDING
    return found


def are_lone(places: Places) -> Flags:
    found: Flags = (places | 1) == ALONE_PARKED
    return found


def are_shown(places: Places) -> Flags:
    """Whether each has the head of what the target shows."""
    found: Flags = (places == SETTLED) | (places >= UPDATED)
    return found


def _are_timed(places: Places) -> Flags:
    """Whether each is looked at when the due time in the row has come."""
    found: Flags = ((places & 7) == PENDING) | (places == ALONE)
    return found


def row_type(parts: int) -> np.dtype[Any]:
    """Return the layout of a write with so many parts of its identity; ``first``/``second`` are the head's first 16 bytes."""
    fields: list[tuple[str, Any, int]] = [
        ("operation", "u1", 0),
        ("flags", "u1", 1),
        ("mapping", "u1", 2),
        ("feed", "u1", 3),
        ("parts", "u1", 4),
        ("number", "<u2", 6),
        ("epoch", "<u4", 8),
        ("first", "<u8", 0),
        ("second", "<u8", 8),
        ("major", "<i8", 16),
        ("minor", "<i8", 24),
        ("offset", "<i8", 32),
        ("event_time", "<i8", 40),
        ("due", "<i8", 48),
        ("identity", ("<u8", (2 * parts,)), HEAD_BYTES),
    ]
    return np.dtype(
        {
            "names": [name for name, _, _ in fields],
            "formats": [form for _, form, _ in fields],
            "offsets": [offset for _, _, offset in fields],
            "itemsize": HEAD_BYTES + 16 * parts,
        }
    )


def _column(kind: Any, *shape: int) -> Columns:
    """Return a column of zeros that takes memory only where it is written, and gives all of it back: malloc would keep holes."""
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    return np.frombuffer(mmap(-1, size), kind).reshape(shape)


class KeyRows:
    """All keys of one pipeline in one partition. ``parts``: of a full identity, the digest and one per maskable field.
    ``native``: the compiled module, where there is one; ``compiled`` is its hold on the columns.
    """

    def __init__(self, parts: int, native: RowsModule | None = None) -> None:
        self.parts, self.native = parts, native
        self.type = row_type(parts)
        self.at: dict[bytes, int] = {}
        self.keys: list[bytes | None] = []
        self.long: dict[bytes, Held] = {}
        self.gone: list[bytes] = []  # keys let go since the last checkpoint
        self.open = self.settled = 0
        self.clock = 0  # counts changes; a row's place in line is its last one
        self.evicted_below = 0  # settled keys of an earlier change were let go to make room
        self._allocate(CAPACITY_MIN)

    def _allocate(self, capacity: int) -> None:
        self.capacity = capacity
        self.place = _column(np.uint8, capacity)
        self.words = _column(np.uint64, capacity, self.type.itemsize // 8)
        self.shown = _column(np.uint64, capacity, _HEAD_WORDS)
        self.olders = _column(np.uint8, capacity)  # how many identities of older versions are known …
        self.older = _column(np.uint64, capacity, OLDER_MAX, 2 * self.parts)  # … and which, newest first
        self.order = _column(np.int64, capacity)
        self.segment = _column(np.uint32, capacity)
        self.block_due = np.full((capacity >> BLOCK_BITS) + 1, NEVER, np.int64)
        self._look()

    def _look(self) -> None:
        self.writes: Columns = self.words.view(self.type).ravel()
        self._write_bytes = self.words.data.cast("B")
        self._shown_bytes = self.shown.data.cast("B")
        self._older_bytes = self.older.data.cast("B")
        self._olders_at, self._due_at = self.olders.data, self.block_due.data
        # One at a time, items of a view are Python numbers, at half the cost of an array's.
        self.place_at, self._order_at, self._segment_at = self.place.data, self.order.data, self.segment.data
        columns = (self.place, self.words, self.shown, self.olders, self.older, self.order, self.segment, self.block_due)
        self.compiled = self.native.Rows(self.parts, *columns) if self.native is not None else None

    @property
    def size(self) -> int:
        return len(self.keys)

    def __len__(self) -> int:
        return len(self.at)

    def reserve(self, count: int) -> int:
        """Make room for so many more rows; return the number of the first."""
        size = len(self.keys)
        if size + count > self.capacity:
            self._move(slice(0, size), max(size + count, GROWTH * self.capacity))
        return size

    def _move(self, rows: Rows | slice, capacity: int) -> None:
        """Copy rows to the front of new columns; what was never written, heads of pending keys above all, costs no memory."""
        place, words, order, segment = self.place[rows], self.words[rows], self.order[rows], self.segment[rows]
        shown, olders, older, dues = self.shown, self.olders[rows], self.older, self.block_due
        self._allocate((capacity >> BLOCK_BITS << BLOCK_BITS) + CAPACITY_MIN)
        count = len(place)
        self.place[:count], self.words[:count], self.order[:count], self.segment[:count] = place, words, order, segment
        self.olders[:count] = olders
        for column, before, held in ((self.shown, shown, are_shown(place)), (self.older, older, olders > 0)):
            to = np.flatnonzero(held)
            column[to] = before[to if isinstance(rows, slice) else rows[to]]
        if isinstance(rows, slice):
            self.block_due[: len(dues)] = dues

    def tick(self, count: int) -> int:
        """Take so many places at the end of the line; return the first."""
        first = self.clock
        self.clock += count
        return first

    # many keys at once; the callers have checked what they are

    def added(self, keys: Sequence[bytes], first: int, dues: npt.NDArray[np.int64], *, place: int = PENDING) -> None:
        """Count rows from `first` on as pending, or as alone; their writes are in place, their keys in the dictionary."""
        count = len(keys)
        end = first + count
        self.keys.extend(keys)
        self.place[first:end] = place
        self.segment[first:end] = UNSAVED
        order = self.tick(count)
        self.order[first:end] = np.arange(order, order + count)
        self.open += count
        for block in range(first >> BLOCK_BITS, (end - 1 >> BLOCK_BITS) + 1):
            low, high = max(first, block << BLOCK_BITS), min(end, (block + 1) << BLOCK_BITS)
            least = int(dues[low - first : high - first].min())
            if least < self.block_due[block]:
                self.block_due[block] = least

    def settle(self, rows: Rows, heads: npt.NDArray[np.uint64]) -> None:
        """Turn pending rows into settled ones; `heads` are those of what the target shows."""
        count = len(rows)
        self.place[rows] = SETTLED
        self.shown[rows] = heads
        self.segment[rows] = UNSAVED
        order = self.tick(count)
        self.order[rows] = np.arange(order, order + count)
        self.open -= count
        self.settled += count

    def reopen(self, rows: Rows, words: npt.NDArray[np.uint64], history: int) -> None:
        """Turn settled rows into updated ones; `words` are the new expected writes, whose older identities are not full."""
        count = len(rows)
        before = self.words[rows, _HEAD_WORDS:]
        known = self.writes["parts"][rows] > 0  # what was deleted has no identity
        kept = rows[known]
        self.older[kept, 1:] = self.older[kept, :-1]
        self.older[kept, 0] = before[known]
        self.olders[kept] = np.minimum(self.olders[kept] + 1, history)
        self.words[rows] = words
        self.place[rows] = UPDATED
        self.segment[rows] = UNSAVED
        order = self.tick(count)
        self.order[rows] = np.arange(order, order + count)
        self.open += count
        self.settled -= count
        np.minimum.at(self.block_due, rows >> BLOCK_BITS, self.writes["due"][rows])

    def settle_again(self, rows: Rows) -> None:
        """Let updated rows, before they are settled, remember what settled ones do."""
        known = self.writes["parts"][rows] > 0
        self.olders[rows] = np.where(known, np.minimum(self.olders[rows], OLDER_WHEN_SETTLED), 0)

    def join(self, rows: Rows, words: npt.NDArray[np.uint64]) -> None:
        """Turn rows of observed writes into settled ones; `words` are the expected writes that say the same."""
        heads = self.words[rows, :_HEAD_WORDS]
        self.words[rows] = words
        self.settle(rows, heads)

    # one key

    def held(self, key: bytes) -> tuple[Held | None, bool]:
        """Return what is known of a key, in its smallest form, and whether it is open."""
        row = self.at.get(key)
        if row is None:
            return None, False
        place = self.place_at[row]
        if place in _LONG:
            return self.long[key], place == OPEN
        write = self.write_at(row)
        if place in (PENDING, PARKED):
            return write, True
        if place in LONE:
            return alone_state(write), True
        head = self.head_at(row)
        older = self.older_at(row)
        if place == SETTLED:
            return write + head + older, False
        return update_state(write, head, older, 16 * self.parts), True

    def open_held(self, key: bytes) -> Held | None:
        """Return what is known of an open key, None for any other."""
        held, is_open = self.held(key)
        return held if is_open else None

    def write_at(self, row: int) -> bytes:
        start = row * self.type.itemsize
        return self._write_bytes[start : start + HEAD_BYTES + 16 * self._write_bytes[start + 4]].tobytes()

    def head_at(self, row: int) -> bytes:
        return self._shown_bytes[row * HEAD_BYTES : (row + 1) * HEAD_BYTES].tobytes()

    def older_at(self, row: int) -> bytes:
        start = row * OLDER_MAX * 16 * self.parts
        return self._older_bytes[start : start + 16 * self.parts * self._olders_at[row]].tobytes()

    def put(self, key: bytes, held: Held, *, is_open: bool) -> bool:
        """File a key as the most recently changed one; return whether it has a long form now that it did not have before."""
        row = self.at.get(key)
        if row is None:
            row = self.reserve(1)
            self.at[key] = row
            self.keys.append(key)
        else:
            self._uncount(row)
        lengthened = False
        short = self._short_form(held, is_open=is_open)
        if short is not None:
            self.long.pop(key, None)
            self._place(row, *short)
        else:
            lengthened = key not in self.long
            self.long[key] = held
            self.place_at[row] = OPEN if is_open else CLOSED
        self._changed(row)
        if is_open:
            self.open += 1
        else:
            self.settled += 1
        return lengthened

    def _changed(self, row: int) -> None:
        self._segment_at[row] = UNSAVED
        self._order_at[row] = self.clock
        self.clock += 1

    def enter(self, key: bytes, write: bytes, place: int) -> None:
        """File a key that is not known as pending or alone; the caller has checked that it fits."""
        row = self.at[key] = self.reserve(1)
        self.keys.append(key)
        self._place(row, place, write, b"", b"")
        self._changed(row)
        self.open += 1

    def settle_one(self, row: int, head: bytes) -> None:
        """As :meth:`settle`, and :meth:`settle_again`."""
        if self._olders_at[row]:
            known = self._write_bytes[row * self.type.itemsize + 4]
            self._olders_at[row] = min(self._olders_at[row], OLDER_WHEN_SETTLED) if known else 0
        self.place_at[row] = SETTLED
        self._shown_bytes[row * HEAD_BYTES : (row + 1) * HEAD_BYTES] = head
        self._changed(row)
        self.open -= 1
        self.settled += 1

    def join_one(self, row: int, write: bytes) -> None:
        """As :meth:`join`."""
        head = self.write_at(row)[:HEAD_BYTES]
        self._place(row, SETTLED, write, head, b"")
        self.settle_one(row, head)

    def reopen_one(self, row: int, write: bytes, history: int) -> None:
        """As :meth:`reopen`."""
        identity, size = self.write_at(row)[HEAD_BYTES:], 16 * self.parts
        older = (identity + self.older_at(row))[: size * min(history, OLDER_MAX)]
        self._place(row, UPDATED, write, b"", older)
        self._changed(row)
        self.open += 1
        self.settled -= 1

    def _short_form(self, held: Held, *, is_open: bool) -> tuple[int, bytes, bytes, bytes] | None:
        """Return what a row holds of the key: place, write, head of what is shown, older identities; None: it has to be long."""
        write: Held | None = held
        head, older = b"", b""
        place = PENDING if is_open else SETTLED
        if isinstance(held, KeyState):
            if not is_open:
                return None
            if is_alone(held):
                place, write = ALONE, held.observed
            elif is_update(held, 16 * self.parts, OLDER_MAX):
                place, write, older = UPDATED, held.expected, b"".join(held.older)
                head = held.observed[:HEAD_BYTES] if held.observed is not None else bytes(HEAD_BYTES)
            else:
                return None
        elif not is_open:
            size = HEAD_BYTES + 16 * held[4]
            write, head, older = held[:size], held[size : size + HEAD_BYTES], held[size + HEAD_BYTES :]
        assert isinstance(write, bytes)
        if write[1] & EXTRA or write[4] not in (0, self.parts) or len(write) != HEAD_BYTES + 16 * write[4]:
            return None
        return place, write, head, older

    def _place(self, row: int, place: int, write: bytes, head: bytes, older: bytes) -> None:
        start = row * self.type.itemsize
        self._write_bytes[start : start + self.type.itemsize] = write.ljust(self.type.itemsize, b"\0")
        self.place_at[row] = place
        if place != SETTLED:
            block, due = row >> BLOCK_BITS, due_of(write)
            if due < self._due_at[block]:
                self._due_at[block] = due
        if head:
            self._shown_bytes[row * HEAD_BYTES : (row + 1) * HEAD_BYTES] = head
        self._olders_at[row] = len(older) // (16 * self.parts)
        if older:
            start = row * OLDER_MAX * 16 * self.parts
            self._older_bytes[start : start + len(older)] = older

    def _uncount(self, row: int) -> None:
        if self.place_at[row] in (SETTLED, CLOSED):
            self.settled -= 1
        else:
            self.open -= 1

    def park(self, key: bytes) -> None:
        """Keep a key out of :meth:`due` from now on: the time to look at it is kept elsewhere."""
        row = self.at[key]
        place = self.place_at[row]
        self.place_at[row] = _PARKED.get(place, place)

    def drop(self, key: bytes) -> None:
        """Forget a key."""
        row = self.at.pop(key, None)
        if row is None:
            return
        self._uncount(row)
        self.place[row] = FREE
        self.keys[row] = None
        self.long.pop(key, None)
        self.gone.append(key)

    # what is due, who makes room

    def due(self, now: int) -> list[bytes]:
        """Return the keys, pending, alone or updated, whose own due time has come."""
        found: list[bytes] = []
        for block in np.flatnonzero(self.block_due[: (self.size >> BLOCK_BITS) + 1] <= now).tolist():
            first, end = block << BLOCK_BITS, min((block + 1) << BLOCK_BITS, self.size)
            pending = _are_timed(self.place[first:end])
            dues = self.writes["due"][first:end]
            late = pending & (dues <= now)
            found += [key for row in np.flatnonzero(late).tolist() if (key := self.keys[first + row]) is not None]
            self.block_due[block] = dues[pending & ~late].min(initial=NEVER)
        return found

    def open_rows(self) -> Rows:
        """Return the rows of the open keys with one expected write that have no long form."""
        return np.flatnonzero(are_awaited(self.place[: self.size]))

    def alone_rows(self) -> Rows:
        """Return the rows of the open keys with one observed write, of which nothing is expected."""
        return np.flatnonzero(are_lone(self.place[: self.size]))

    def event_times(self, rows: Rows) -> npt.NDArray[np.int64]:
        """Return the event times of these writes; ``take`` would first copy the whole column, and so touch what holds nothing."""
        times: npt.NDArray[np.int64] = self.writes["event_time"][rows]
        return times

    def open_long(self) -> Iterator[tuple[bytes, Held]]:
        """Yield the open keys in their long form. (There may be very many more that are settled: they are not looked at.)"""
        rows = np.flatnonzero(self.place[: self.size] == OPEN).tolist()
        return ((key, self.long[key]) for row in rows if (key := self.keys[row]) is not None)

    def make_room(self, settled_max: int) -> int:
        """Where too many keys are settled, let those go that have not changed for longest; return how many went.

        Rows are moved together now and then.
        """
        before = self.settled
        if self.settled > settled_max:
            count = self.settled - (settled_max - settled_max // EVICTED_SHARE)
            place = self.place[: self.size]
            rows = np.flatnonzero((place == SETTLED) | (place == CLOSED))
            orders = self.order[rows]
            last = int(np.partition(orders, count - 1)[count - 1])
            self._evict(rows[orders <= last])
            self.evicted_below = last + 1
        if len(self.keys) - len(self.at) > max(DEAD_ROWS_MIN, len(self.at)):
            self.gather()
        return before - self.settled

    def _evict(self, rows: Rows) -> None:
        for row in rows.tolist():
            key = self.keys[row]
            assert key is not None
            if self._segment_at[row] == UNSAVED:  # an earlier checkpoint may hold it as open: nothing of that is true any more
                self.gone.append(key)
            del self.at[key]
            self.long.pop(key, None)
            self.keys[row] = None
        self.place[rows] = FREE
        self.settled -= len(rows)

    def gather(self) -> None:
        """Move the rows that are in use together, in their order."""
        rows = np.sort(np.fromiter(self.at.values(), np.int64, len(self.at)))
        keys = [self.keys[row] for row in rows.tolist()]
        self._move(rows, len(rows) + len(rows) // 4)
        self.keys = keys
        self.at = {key: row for row, key in enumerate(keys) if key is not None}
        self.count()

    def count(self) -> None:
        """Count and schedule what the rows hold, after they were moved or restored. What was parked has to be looked at anew."""
        place = self.place[: self.size]
        for timed, parked in _PARKED.items():
            place[place == parked] = timed
        self.settled = int(np.count_nonzero((place == SETTLED) | (place == CLOSED)))
        self.open = len(self.at) - self.settled
        self.block_due[:] = NEVER
        pending = np.flatnonzero(_are_timed(place))
        np.minimum.at(self.block_due, pending >> BLOCK_BITS, self.writes["due"][pending])
