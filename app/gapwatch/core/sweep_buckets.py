"""Keys in hash buckets, in numpy columns: for two sides that do not come in one order.

Keys of one width lie in one array: ``int64`` for whole numbers, else their bytes, padded with zeros to a power of two. A key is
of one width on both sides, so widths never mix. The hash only says where to look: equal are keys whose bytes are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from gapwatch.core.sweep_sets import INT64_MAX, INT64_MIN, Array, KeyForm, unequal

BUCKETS: Final = 256
WHOLE: Final = 0  # the width class of whole numbers; that of bytes is the power of two
LEAST: Final = 4
_MULTIPLIERS: Final = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS: Final = (np.uint64(32), np.uint64(29), np.uint64(31))

Bucket = tuple[int, int]  # width class and number


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Keys of one width, and where they stood among those that they came with; ``places`` None: they are all of them."""

    width: int
    keys: Array
    places: Array | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Keys of one side and one bucket, their 64-bit hashes, and their contents."""

    hashes: Array
    keys: Array
    contents: Array | None

    @classmethod
    def empty(cls, bucket: Bucket) -> Stretch:
        layout = np.int64 if bucket[0] == WHOLE else f"S{1 << bucket[0]}"
        return cls(hashes=np.empty(0, dtype=np.uint64), keys=np.empty(0, dtype=layout), contents=None)


def blocks_of(form: KeyForm, keys: Sequence[bytes]) -> list[Block]:
    """Lay canonical keys out by width."""
    if not len(keys):
        return []
    if not form.whole_numbers:
        return _laid_out(keys)
    numbers = form.numbers(keys)
    fits = [INT64_MIN <= number <= INT64_MAX for number in numbers]
    if all(fits):
        return [Block(width=WHOLE, keys=np.array(numbers, dtype=np.int64))]
    inside, outside = np.flatnonzero(fits), np.flatnonzero(~np.array(fits))
    small = np.array([numbers[place] for place in inside.tolist()], dtype=np.int64)
    large = _laid_out([keys[place] for place in outside.tolist()])
    found = [
        Block(width=one.width, keys=one.keys, places=outside if one.places is None else outside[one.places]) for one in large
    ]
    return [Block(width=WHOLE, keys=small, places=inside), *found]


def _laid_out(keys: Sequence[bytes]) -> list[Block]:
    lengths = np.fromiter(map(len, keys), dtype=np.int64, count=len(keys))
    return _padded(b"".join(keys), np.cumsum(lengths))


def blocks_of_texts(joined: bytes) -> list[Block]:
    """Lay canonical keys of one text column out, which follow each other: 00 01 ends each, and stands nowhere else in them."""
    if not joined:
        return []
    data = np.frombuffer(joined, dtype=np.uint8)
    return _padded(joined, np.flatnonzero((data[:-1] == 0) & (data[1:] == 1)) + 2)


def block_of_bulk(block: Array) -> Block:
    """Take keys of one width as a store handed them over."""
    if block.dtype == np.int64:
        return Block(width=WHOLE, keys=block)
    width = _class(block.dtype.itemsize)
    return Block(width=width, keys=np.ascontiguousarray(block, dtype=f"S{1 << width}"))


def keys_of_block(form: KeyForm, width: int, keys: Array) -> list[bytes]:
    """Return the canonical bytes of keys that lie in an array."""
    return form.keys(keys) if width == WHOLE else form.padded(keys)


def _class(length: int) -> int:
    return max(LEAST, (length - 1).bit_length())


def _padded(joined: bytes, ends: Array) -> list[Block]:
    """Cut bytes at `ends` and lay the pieces out by width."""
    data = np.frombuffer(joined, dtype=np.uint8)
    lengths = np.diff(ends, prepend=0)
    longest = 1 << _class(int(lengths.max()))
    limits = np.array([1 << power for power in range(LEAST, longest.bit_length())])
    classes = LEAST + np.searchsorted(limits, lengths)
    found = []
    for width in np.unique(classes).tolist():
        chosen = classes == width
        alone = bool(chosen.all())
        sizes = lengths if alone else lengths[chosen]
        rows = np.zeros((len(sizes), 1 << width), dtype=np.uint8)
        rows[np.arange(1 << width) < sizes[:, None]] = data if alone else data[np.repeat(chosen, lengths)]
        places = None if alone else np.flatnonzero(chosen)
        found.append(Block(width=width, keys=rows.view(f"S{1 << width}").ravel(), places=places))
    return found


def hashes(keys: Array) -> Array:
    """Return a 64-bit hash a key. Two keys with one hash cost a second read, no more."""
    lanes = _lanes(keys)
    mixed = np.zeros(len(keys), dtype=np.uint64)
    for lane in lanes.T:
        mixed ^= lane
        for multiplier, shift in zip(_MULTIPLIERS, _SHIFTS, strict=True):
            mixed *= multiplier
            mixed ^= mixed >> shift
    return mixed


def scatter(block: Block, contents: Array | None) -> Iterator[tuple[Bucket, Stretch]]:
    """Spread a block's keys over the buckets; ``contents`` are those of all keys that it came with."""
    hashed = hashes(block.keys)
    numbers = (hashed & np.uint64(BUCKETS - 1)).astype(np.uint8)
    order = np.argsort(numbers, kind="stable")
    keys, hashed = block.keys[order], hashed[order]
    if contents is not None:
        contents = contents[order if block.places is None else block.places[order]]
    counts = np.bincount(numbers, minlength=BUCKETS)
    ends = np.cumsum(counts)
    for bucket in np.flatnonzero(counts).tolist():
        here = slice(int(ends[bucket] - counts[bucket]), int(ends[bucket]))
        found = Stretch(hashes=hashed[here], keys=keys[here], contents=None if contents is None else contents[here])
        yield (block.width, bucket), found


@dataclass(frozen=True, slots=True, kw_only=True)
class Unlike:
    """The keys of a bucket that one side lacks, that a side holds twice, or whose contents differ."""

    source: Array
    target: Array
    differing: Array


def compare_bucket(source: Stretch, target: Stretch, equal: Callable[[Any, Any], bool]) -> Unlike:
    """Compare the two sides of a bucket, each in any order; ``equal`` compares content objects."""
    left_order, right_order = np.argsort(source.hashes), np.argsort(target.hashes)
    left, right = source.hashes[left_order], target.hashes[right_order]
    left_keys, right_keys = source.keys[left_order], target.keys[right_order]
    at_left, at_right = _met(left, left_keys, right, right_keys)
    left_only, right_only = _repeated(left), _repeated(right)  # a duplicate, or a key that moved while it was read
    for only, met in ((left_only, at_left), (right_only, at_right)):
        alone = np.ones(len(only), dtype=bool)
        alone[met] = False
        only |= alone
    differing = left_keys[:0]
    if source.contents is not None and target.contents is not None:
        one, other = source.contents[left_order[at_left]], target.contents[right_order[at_right]]
        differing = left_keys[at_left[unequal(one, other, equal)]]
    return Unlike(source=left_keys[left_only], target=right_keys[right_only], differing=differing)


def _met(left: Array, left_keys: Array, right: Array, right_keys: Array) -> tuple[Array, Array]:
    """Return where keys are that both sides hold, as positions in either."""
    place = np.searchsorted(right, left)
    inside = np.flatnonzero(place < len(right))
    place = place[inside]
    same = right[place] == left[inside]
    at_left, at_right = inside[same], place[same]
    agreeing = (_lanes(left_keys[at_left]) == _lanes(right_keys[at_right])).all(axis=1)
    return at_left[agreeing], at_right[agreeing]


def _lanes(keys: Array) -> Array:
    """Return keys as rows of 64-bit words."""
    return np.ascontiguousarray(keys).view(np.uint64).reshape(len(keys), keys.dtype.itemsize // 8)


def _repeated(ordered: Array) -> Array:
    """Return which elements of a sorted array stand there twice."""
    again = np.zeros(len(ordered), dtype=bool)
    if len(ordered) > 1:
        same = ordered[1:] == ordered[:-1]
        again[1:] |= same
        again[:-1] |= same
    return again
