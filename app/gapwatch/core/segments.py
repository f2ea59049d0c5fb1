"""How a pipeline's keys become records: a log of segments, each holding the keys that changed between two checkpoints.

A checkpoint costs what changed, not what is known. A segment is written once, under a name that nobody used before, and the
commit marker lists those that belong to it; so a restore is exactly the marker's state, whatever a torn checkpoint or a worker
that was thawed left behind. The newest segment that holds a key is right, so segments may only be given up oldest first: what is
still true of the oldest is written anew with the next checkpoint, a few thousand keys at a time, while there is more on disk than
twice what is known. Settled keys that made room for others are named by one number, the place in line below which all are gone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from gapwatch.core.keyrows import CLOSED, FREE, LONE, OLDER_MAX, OPEN, REOPENED, SETTLED, UNSAVED, KeyRows, Rows, are_shown
from gapwatch.core.keystate import HEAD_BYTES, KeyState, alone_state, update_state
from gapwatch.errors import ProtocolError

RECORD_BYTES_MAX: Final = 400 * 1024
SLACK_KEYS: Final = 4_096  # on disk beside twice what is known
SEGMENTS_MIN: Final = 256  # fewer are never too many,
KEYS_A_SEGMENT: Final = 1_024  # and one per so many known keys
CLEANED_MIN: Final = 8_192  # keys that one checkpoint may write anew, or twice those that changed
_DELTA_FROM, _DELTA_TO = 2, 7  # words of a write that hold position, offset and times: written as steps
_ROW_BYTES: Final = 8 + 8 + 1 + HEAD_BYTES  # order, key length, place, head of the observed write

_encode: Final = msgspec.msgpack.Encoder().encode
Matrix = npt.NDArray[np.uint64]
LongItem = tuple[bytes, bool, int, Any]  # key, open, place in line, what is known


class Segment(NamedTuple):
    number: int
    keys: int


class _Body(msgspec.Struct, array_like=True, gc=False):
    """``words``: writes with the place in line as last word; ``shown``: heads of what the target shows. Both by byte plane.

    ``olders``: how many identities of older versions each key has, empty: none has any; ``older``: these, one after the other.
    """

    number: int
    parts: int
    places: bytes = b""
    lengths: bytes = b""
    keys: bytes = b""
    words: bytes = b""
    shown: bytes = b""
    long: list[LongItem] = []
    gone: list[bytes] = []
    olders: bytes = b""
    older: bytes = b""


_decode: Final = msgspec.msgpack.Decoder(_Body).decode


class SegmentLog:
    """The segments of one pipeline's keys. ``prefix``: what their names begin with, used by no other life of any worker."""

    def __init__(self, rows: KeyRows, prefix: str) -> None:
        self._rows = rows
        self._prefix = prefix
        self._next = 0
        self._segments: deque[tuple[str, Segment]] = deque()

    @property
    def listed(self) -> list[tuple[str, int, int]]:
        """Return name, number and size of each segment, oldest first, for the commit marker."""
        return [(name, segment.number, segment.keys) for name, segment in self._segments]

    def cut(self) -> list[tuple[str, bytes | None]]:
        """Return the records of what changed since the last call; None: not part of the state any more."""
        rows = self._rows
        changed = self._changed()
        removed: list[tuple[str, bytes | None]] = []
        if not len(changed) and not rows.gone:
            return removed
        removed = [(name, None) for name in self._clean(len(changed))]
        if removed:
            changed = self._changed()
        records = [*removed]
        for body, held in self._bodies(changed):
            name = f"{self._prefix}/{body.number}"
            rows.segment[held] = body.number
            self._segments.append((name, Segment(body.number, len(held))))
            records.append((name, _encode(body)))
        rows.gone = []
        return records

    def _changed(self) -> Rows:
        rows = self._rows
        found = np.flatnonzero(rows.segment[: rows.size] == UNSAVED)
        changed: Rows = found[rows.place[found] != FREE]
        return changed

    def _clean(self, changed: int) -> list[str]:
        """Mark what is still true of the oldest segments as changed; return the names of those segments."""
        rows, removed = self._rows, list[str]()
        on_disk = sum(segment.keys for _, segment in self._segments) + changed
        cleaned, most = 0, max(CLEANED_MIN, 2 * changed)
        many = SEGMENTS_MIN + len(rows) // KEYS_A_SEGMENT
        while self._segments and cleaned < most and (on_disk > 2 * len(rows) + SLACK_KEYS or len(self._segments) > many):
            name, oldest = self._segments.popleft()
            moved = np.flatnonzero(rows.segment[: rows.size] == oldest.number)
            rows.segment[moved] = UNSAVED
            cleaned += len(moved)
            on_disk += len(moved) - oldest.keys
            removed.append(name)
        return removed

    def _bodies(self, changed: Rows) -> Iterator[tuple[_Body, Rows]]:
        """Cut the changed rows into records; the keys that are gone go into the first, before what may have come back."""
        rows = self._rows
        places = rows.place[changed]
        gone, is_long = rows.gone, (places == OPEN) | (places == CLOSED)
        long, plain = changed[is_long], changed[~is_long]
        for part in _cut(_lengths(gone) + 5):
            yield _Body(self._number(), rows.parts, gone=gone[part]), long[:0]
        keys = _picked(rows.keys, plain)
        lengths = _lengths(keys)
        weights = lengths + (rows.type.itemsize + _ROW_BYTES)
        olders = rows.olders[plain]
        if olders.any():
            weights += 1 + 16 * rows.parts * olders.astype(np.int64)
        for part in _cut(weights):
            yield self._plain(plain[part], keys[part], lengths[part]), plain[part]
        items = [self._long_item(int(row)) for row in long]
        for part in _cut(np.array([_weight(item) for item in items], np.int64)):
            yield _Body(self._number(), rows.parts, long=items[part]), long[part]

    def _number(self) -> int:
        self._next += 1
        return self._next

    def _plain(self, at: Rows, keys: Sequence[bytes], lengths: Rows) -> _Body:
        rows = self._rows
        places = rows.place[at]
        words = np.empty((len(at), rows.words.shape[1] + 1), np.uint64)
        words[:, :-1] = rows.words.take(at, axis=0)
        words[:, -1] = rows.order[at].view(np.uint64)
        olders = rows.olders[at]
        with_older = np.flatnonzero(olders)
        return _Body(
            number=self._number(),
            parts=rows.parts,
            places=places.tobytes(),
            lengths=lengths.astype("<u4").tobytes(),
            keys=b"".join(keys),
            words=self._planes(words),
            shown=self._planes(rows.shown.take(at[are_shown(places)], axis=0)),
            olders=olders.tobytes() if len(with_older) else b"",
            older=rows.older[at[with_older]][_taken(olders[with_older])].tobytes() if len(with_older) else b"",
        )

    def _planes(self, words: Matrix) -> bytes:
        native = self._rows.native
        return native.planes(words, words.shape[1], (_DELTA_FROM, _DELTA_TO)) if native is not None else planes(words)

    def _long_item(self, row: int) -> LongItem:
        rows = self._rows
        key = rows.keys[row]
        assert key is not None
        held = rows.long[key]
        return key, bool(rows.place[row] == OPEN), int(rows.order[row]), held if isinstance(held, bytes) else held.packed()

    # after a restart

    def restore(self, listed: Iterable[Sequence[Any]], records: Mapping[str, bytes]) -> None:
        """Take up the segments that a marker lists. Raises ProtocolError when one cannot be read."""
        rows = self._rows
        for name, number, keys in listed:
            try:
                self._take(_decode(records[name]))
            except msgspec.DecodeError as error:
                raise ProtocolError(f"Segment {name} of the state cannot be read: {error}.") from error
            self._segments.append((name, Segment(number, keys)))
            self._next = max(self._next, number)
        rows.long = {
            key: held for key, held in rows.long.items() if key in rows.at and rows.place[rows.at[key]] in (OPEN, CLOSED)
        }
        self._forget_evicted()
        rows.gather()

    def _take(self, body: _Body) -> None:
        for key in body.gone:
            self._rows.at.pop(key, None)
        if body.places:
            keys = _split(body.keys, np.frombuffer(body.lengths, "<u4").tolist())
            if body.parts == self._rows.parts:
                self._take_plain(body, keys)
            else:
                self._take_long(body.number, _lengthened(body, keys))
        self._take_long(body.number, body.long)

    def _take_plain(self, body: _Body, keys: Sequence[bytes]) -> None:
        rows = self._rows
        first = rows.reserve(len(keys))
        end = first + len(keys)
        rows.at.update(zip(keys, range(first, end), strict=True))
        rows.keys.extend(keys)
        words = _unplaned(body.words, rows.words.shape[1] + 1)
        rows.place[first:end] = np.frombuffer(body.places, np.uint8)
        rows.words[first:end] = words[:, :-1]
        rows.order[first:end] = words[:, -1].view(np.int64)
        rows.segment[first:end] = body.number
        shown = first + np.flatnonzero(are_shown(rows.place[first:end]))
        rows.shown[shown] = _unplaned(body.shown, rows.shown.shape[1])
        if body.olders:
            rows.olders[first:end] = np.frombuffer(body.olders, np.uint8)
            with_older = first + np.flatnonzero(rows.olders[first:end])
            older = np.zeros((len(with_older), *rows.older.shape[1:]), np.uint64)
            older[_taken(rows.olders[with_older])] = np.frombuffer(body.older, np.uint64).reshape(-1, older.shape[2])
            rows.older[with_older] = older

    def _take_long(self, number: int, items: Sequence[LongItem]) -> None:
        rows = self._rows
        row = rows.reserve(len(items))
        for key, is_open, order, packed in items:
            rows.at[key] = row
            rows.keys.append(key)
            rows.long[key] = packed if isinstance(packed, bytes) else KeyState.unpacked(packed)
            rows.place[row], rows.order[row], rows.segment[row] = (OPEN if is_open else CLOSED), order, number
            row += 1

    def _forget_evicted(self) -> None:
        rows = self._rows
        place = rows.place[: rows.size]
        settled = (place == SETTLED) | (place == CLOSED)
        for row in np.flatnonzero(settled & (rows.order[: rows.size] < rows.evicted_below)).tolist():
            key = rows.keys[row]
            if key is not None and rows.at.get(key) == row:
                del rows.at[key]
                rows.long.pop(key, None)


def _taken(counts: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Return which of the places for older identities are taken."""
    taken: npt.NDArray[np.bool_] = np.arange(OLDER_MAX) < counts[:, None]
    return taken


def _picked(keys: Sequence[bytes | None], rows: Rows) -> list[Any]:
    numbers = rows.tolist()
    if len(numbers) < 2:
        return [keys[number] for number in numbers]
    return list(itemgetter(*numbers)(keys))


def _split(joined: bytes, lengths: Sequence[int]) -> list[bytes]:
    keys, at = [], 0
    for length in lengths:
        keys.append(joined[at : at + length])
        at += length
    return keys


def _lengths(keys: Sequence[bytes]) -> Rows:
    return np.fromiter(map(len, keys), np.int64, len(keys))


def _cut(weights: Rows) -> list[slice]:
    """Return stretches of items whose weights stay below a record's; a single one may be heavier."""
    found: list[slice] = []
    sums = np.cumsum(weights)
    start, before = 0, 0
    while start < len(sums):
        end = max(start + 1, int(np.searchsorted(sums, before + RECORD_BYTES_MAX, side="right")))
        found.append(slice(start, end))
        start, before = end, int(sums[end - 1])
    return found


def _weight(item: LongItem) -> int:
    """Return an upper bound of an item's bytes in a record."""
    key, _, _, packed = item
    return len(key) + 24 + (len(packed) if isinstance(packed, bytes) else len(_encode(packed)))


def planes(words: Matrix) -> bytes:
    """Return words byte plane by byte plane, positions and times as steps: mostly zeros, which compression makes nothing of."""
    steps = words.copy()
    steps[1:, _DELTA_FROM:_DELTA_TO] -= words[:-1, _DELTA_FROM:_DELTA_TO]
    return steps.view(np.uint8).T.tobytes()


def _lengthened(body: _Body, keys: Sequence[bytes]) -> list[LongItem]:
    """Return the keys of a segment that was made when the pipeline's writes had another number of digests."""
    width = HEAD_BYTES // 8 + 2 * body.parts
    words = _unplaned(body.words, width + 1)
    shown = iter(_unplaned(body.shown, HEAD_BYTES // 8))
    items: list[LongItem] = []
    size, at = 16 * body.parts, 0
    for key, place, row, olders in zip(keys, body.places, words, body.olders or bytes(len(keys)), strict=True):
        write = row[:width].tobytes()
        write = write[: HEAD_BYTES + 16 * write[4]]
        held: Any = write
        older, at = body.older[at : at + size * olders], at + size * olders
        if place == SETTLED:
            held += next(shown).tobytes() + older
        elif place in REOPENED:
            held = update_state(write, next(shown).tobytes(), older, size).packed()
        elif place in LONE:
            held = alone_state(write).packed()
        items.append((key, place != SETTLED, int(row[width]), held))
    return items


def _unplaned(planes: bytes, width: int) -> Matrix:
    bytes_ = np.frombuffer(planes, np.uint8).reshape(8 * width, -1)
    words: Matrix = np.array(bytes_.T, order="C").view(np.uint64)
    words[:, _DELTA_FROM:_DELTA_TO] = np.cumsum(words[:, _DELTA_FROM:_DELTA_TO], axis=0, dtype=np.uint64)
    return words
