"""Which keys of two sets differ, in numpy columns, block by block: for two sides that come in one order.

A block of keys is one array: ``int64`` for whole numbers, else fixed-width bytes (``S``), which numpy compares as memcmp does.
Canonical keys are self-delimiting, so the zeros that pad them make no two of them equal. Content is one 16-byte digest a key, or,
where a pipeline tolerates differences, one Python object a key that is compared by the caller's function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xxhash

from gapwatch.core.keys import KeyCodec
from gapwatch.core.sweep import Mark
from gapwatch.errors import KeyMisfit
from gapwatch.model.pipeline import KeyType
from gapwatch.model.stream import Side

Array = npt.NDArray[Any]
INT64_MIN: Final = -(1 << 63)
INT64_MAX: Final = (1 << 63) - 1
DIGEST: Final = np.dtype("S16")


class OutOfOrderError(ValueError):
    """A side did not come in the order of its keys' bytes: blocks cannot be compared, buckets can."""


class KeyForm:
    """How the keys of a pipeline are laid out in arrays, and read out of them again."""

    def __init__(self, codec: KeyCodec) -> None:
        self._codec = codec
        self.whole_numbers = len(codec.columns) == 1 and codec.columns[0].type is KeyType.INT
        self.ordered = codec.ordered

    def block(self, keys: Sequence[bytes]) -> Array:
        """Return canonical keys as an array; raises OutOfOrderError where a whole number does not fit 64 bits."""
        if not self.whole_numbers:
            return np.array(keys, dtype=np.bytes_) if len(keys) else np.empty(0, dtype="S1")
        numbers = self.numbers(keys)
        if any(not INT64_MIN <= number <= INT64_MAX for number in numbers):
            raise OutOfOrderError("a key does not fit 64 bits")
        return np.array(numbers, dtype=np.int64)

    def numbers(self, keys: Sequence[bytes]) -> list[int]:
        """Return the whole numbers that canonical keys stand for."""
        return [self._codec.decode(key)[0] for key in keys]

    def keys(self, block: Array) -> list[bytes]:
        """Return canonical keys of an array's elements."""
        if self.whole_numbers:
            return [self._codec.encode([number]) for number in block.tolist()]
        return self.padded(block)

    def padded(self, block: Array) -> list[bytes]:
        """Return canonical keys of an array of their bytes."""
        return [self._whole(key) for key in block.tolist()]

    def _whole(self, key: bytes) -> bytes:
        """Give a key the zeros back that numpy cut off its end; it says itself how long it is."""
        for zeros in range(_ZEROS_MAX):
            candidate = key + bytes(zeros)
            try:
                self._codec.decode(candidate)
            except KeyMisfit:
                continue
            return candidate
        raise ValueError(f"{key.hex()} is no key of this codec, whatever zeros follow it.")


_ZEROS_MAX: Final = 256


def digests(identities: Sequence[bytes]) -> Array:
    """Return one 16-byte digest a content identity (which may be longer: digest and masks)."""
    digest = xxhash.xxh3_128_digest
    return np.array([one if len(one) == 16 else digest(one) for one in identities], dtype=DIGEST)


def objects(contents: Sequence[Any]) -> Array:
    """Return contents as an array of the objects themselves."""
    found = np.empty(len(contents), dtype=object)
    found[:] = contents
    return found


@dataclass(slots=True)
class _Pending:
    """One side's blocks that wait for the other side to come as far."""

    keys: list[Array] = field(default_factory=list)
    contents: list[Array] = field(default_factory=list)
    count: int = 0
    last: Any = None
    ended: bool = False

    def take(self, bound: Any) -> tuple[Array, Array | None]:
        """Take everything up to and with the bound (None: everything)."""
        if not self.keys:
            return np.empty(0, dtype=np.int64), None
        keys = self.keys[0] if len(self.keys) == 1 else np.concatenate(self.keys)
        contents = None
        if self.contents:
            contents = self.contents[0] if len(self.contents) == 1 else np.concatenate(self.contents)
        cut = len(keys) if bound is None else int(np.searchsorted(keys, bound, side="right"))
        self.keys = [keys[cut:]] if cut < len(keys) else []
        self.contents = [contents[cut:]] if contents is not None and cut < len(keys) else []
        self.count = len(keys) - cut
        return keys[:cut], None if contents is None else contents[:cut]


@dataclass(frozen=True, slots=True, kw_only=True)
class Differing:
    """Keys to read again, as canonical bytes."""

    source_only: Sequence[bytes] = ()
    target_only: Sequence[bytes] = ()
    differing: Sequence[bytes] = ()

    def __len__(self) -> int:
        return len(self.source_only) + len(self.target_only) + len(self.differing)

    def all(self) -> list[bytes]:
        return list(dict.fromkeys((*self.source_only, *self.target_only, *self.differing)))


class OrderedDifference:
    """The symmetric difference of two sorted streams of blocks. Memory: what the faster side is ahead.

    Args:
        form: The layout of the keys.
        equal: Compares two content objects; only called where contents are objects.
    """

    def __init__(self, form: KeyForm, equal: Callable[[Any, Any], bool]) -> None:
        self._form = form
        self._equal = equal
        self._sides = (_Pending(), _Pending())
        self.counts = [0, 0]
        self._settled = [0, 0]
        self._below = (0, 0)
        self._bound: Any = None

    def mark(self) -> Mark | None:
        """Return below which key both sides have been compared; None: below none."""
        if self._bound is None:
            return None
        return Mark(key=self._form.keys(np.array([self._bound]))[0], counts=self._below)

    @property
    def held(self) -> int:
        return self._sides[0].count + self._sides[1].count

    def behind(self) -> Side:
        """Return the side whose keys are smaller: it should read next."""
        source, target = self._sides
        if source.last is None or target.last is None:
            return Side.EXPECTED if source.last is None else Side.OBSERVED
        return Side.EXPECTED if source.last <= target.last else Side.OBSERVED

    def add(self, side: Side, keys: Array, contents: Array | None = None) -> Differing:
        """Take the next block of a side; return what is decided by it. Raises OutOfOrderError."""
        mine = self._sides[side]
        if len(keys):
            _check_order(keys, mine.last)
            mine.keys.append(keys)
            if contents is not None:
                mine.contents.append(contents)
            mine.count += len(keys)
            mine.last = keys[-1]
            self.counts[side] += len(keys)
        return self._settle()

    def end(self, side: Side) -> Differing:
        """Say that a side has no more blocks."""
        self._sides[side].ended = True
        return self._settle()

    def _settle(self) -> Differing:
        source, target = self._sides
        ends = [one.last for one in (source, target) if not one.ended]
        if any(end is None for end in ends):
            return Differing()
        bound = min(ends) if ends else None
        left, left_contents = source.take(bound)
        right, right_contents = target.take(bound)
        self._settled = [self._settled[0] + len(left), self._settled[1] + len(right)]
        if bound is not None and (self._bound is None or bound > self._bound):
            self._bound = bound
            last = [int(len(one) > 0 and one[-1] == bound) for one in (left, right)]
            self._below = (self._settled[0] - last[0], self._settled[1] - last[1])
        return _compare(self._form, left, right, left_contents, right_contents, self._equal)


def _check_order(keys: Array, last: Any) -> None:
    if (last is not None and keys[0] <= last) or bool(np.any(keys[1:] <= keys[:-1])):
        raise OutOfOrderError("keys did not come in rising order, each once")


def _compare(
    form: KeyForm,
    left: Array,
    right: Array,
    left_contents: Array | None,
    right_contents: Array | None,
    equal: Callable[[Any, Any], bool],
) -> Differing:
    """Compare two sorted arrays of keys, each once, with their contents."""
    if len(left) == len(right) and np.array_equal(left, right):
        at_left = at_right = np.arange(len(left))
        left_only, right_only = left[:0], right[:0]
    elif not len(left) or not len(right):
        return Differing(source_only=form.keys(left), target_only=form.keys(right))
    else:
        place = np.searchsorted(right, left)
        inside = place < len(right)
        found = np.zeros(len(left), dtype=bool)
        found[inside] = right[place[inside]] == left[inside]
        at_left, at_right = np.flatnonzero(found), place[found]
        left_only = left[~found]
        unmatched = np.ones(len(right), dtype=bool)
        unmatched[at_right] = False
        right_only = right[unmatched]
    differing = left[:0]
    if left_contents is not None and right_contents is not None:
        differing = left[at_left[unequal(left_contents[at_left], right_contents[at_right], equal)]]
    return Differing(
        source_only=form.keys(left_only) if len(left_only) else (),
        target_only=form.keys(right_only) if len(right_only) else (),
        differing=form.keys(differing) if len(differing) else (),
    )


def unequal(left: Array, right: Array, equal: Callable[[Any, Any], bool]) -> Array:
    """Return at which positions two columns of contents differ."""
    if left.dtype != object:
        return np.asarray(left != right)
    return np.array([not equal(one, other) for one, other in zip(left, right, strict=True)], dtype=bool)
