"""Buckets of keys that spill to disk: for sweeps whose two sides do not come in one order.

What was added is held in memory up to a limit, then appended to one file without a name, which nobody else can open and which is
gone with the process, however that ends. A bucket is compared alone, so that memory stays the same whatever the size.
"""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import IO, Any, Final

import msgspec
import numpy as np

from gapwatch.core.sweep_buckets import Block, Bucket, Stretch, compare_bucket, keys_of_block, scatter
from gapwatch.core.sweep_sets import DIGEST, Array, Differing, KeyForm, objects
from gapwatch.errors import StoreRefused
from gapwatch.model.stream import Side

HELD_BYTES_MAX: Final = 48 << 20
STRETCH_BYTES: Final = 500  # of its three arrays themselves
OBJECT_WORDS: Final = 40  # of a content object with its values, eight bytes each
REMEDY: Final = "Make room where role repair keeps temporary files, or name another place for them (TMPDIR)."
_encode: Final = msgspec.msgpack.Encoder().encode

# On disk, per stretch: hashes, keys and their layout, and the contents: none, their digests, or (identity, values) of each.
_Frame = tuple[bytes, bytes, str, bytes | list[tuple[bytes, tuple[str | None, ...]]] | None]
_decode: Final = msgspec.msgpack.Decoder(_Frame).decode


class Spool:
    """Collects both sides' keys, then says which differ.

    Args:
        form: The layout of the keys.
        equal: Compares two content objects, (identity, values) each; only called where contents are objects.
        held_bytes_max: How much is held in memory before it goes to disk.
    """

    def __init__(self, form: KeyForm, equal: Callable[[Any, Any], bool], *, held_bytes_max: int = HELD_BYTES_MAX) -> None:
        self._form = form
        self._equal = equal
        self._held_bytes_max = held_bytes_max
        self._held: dict[tuple[Bucket, int], list[Stretch]] = {}
        self._buckets: set[Bucket] = set()
        self._bytes = 0
        self._file: IO[bytes] | None = None
        self._extents: dict[tuple[Bucket, int], list[tuple[int, int]]] = {}  # in the file: where, and how many bytes
        self._end = 0
        self._closed = False
        self.counts = [0, 0]
        self._lock = threading.Lock()  # either side adds from a thread of its own

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._lock:  # a thread of a sweep that was cancelled may still be adding
            self._closed = True
            if self._file is not None:
                self._file.close()

    def add(self, side: Side, blocks: Iterable[Block], contents: Array | None) -> None:
        """Take keys of a side, in any order; ``contents`` are those of all the blocks' keys, as these came."""
        for block in blocks:
            found = list(scatter(block, contents))
            with self._lock:
                if self._closed:
                    return
                for bucket, stretch in found:
                    self._buckets.add(bucket)
                    self._held.setdefault((bucket, int(side)), []).append(stretch)
                    self._bytes += _size(stretch)
                self.counts[side] += len(block.keys)
                if self._bytes > self._held_bytes_max:
                    self._put_on_disk()

    def _put_on_disk(self) -> None:
        try:
            self._spill()
        except OSError as error:
            self._closed = True  # what is on disk and what is held overlap now: nobody may go on with it
            reason = error.strerror or type(error).__name__
            raise StoreRefused(f"The keys of a sweep cannot be kept on disk: {reason}.", remedy=REMEDY) from error

    def _spill(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="gapwatch-sweep-", buffering=0)  # noqa: SIM115 - closed with the spool
        for place, stretches in self._held.items():
            frames = [_encode(_frame(stretch)) for stretch in stretches]
            payload = b"".join([len(frame).to_bytes(4, "big") + frame for frame in frames])
            written = 0
            while written < len(payload):
                written += os.pwrite(self._file.fileno(), memoryview(payload)[written:], self._end + written)
            self._extents.setdefault(place, []).append((self._end, len(payload)))
            self._end += len(payload)
        self._held.clear()
        self._bytes = 0

    def differences(self) -> Iterator[Differing]:
        """Yield each bucket's differences."""
        for bucket in sorted(self._buckets):
            source, target = self._load(bucket, Side.EXPECTED), self._load(bucket, Side.OBSERVED)
            unlike = compare_bucket(source, target, self._equal)
            yield Differing(
                source_only=keys_of_block(self._form, bucket[0], unlike.source),
                target_only=keys_of_block(self._form, bucket[0], unlike.target),
                differing=keys_of_block(self._form, bucket[0], unlike.differing),
            )

    def _load(self, bucket: Bucket, side: Side) -> Stretch:
        stretches = list(self._read(bucket, side)) + self._held.pop((bucket, int(side)), [])
        if not stretches:
            return Stretch.empty(bucket)
        contents = [stretch.contents for stretch in stretches if stretch.contents is not None]
        return Stretch(
            hashes=np.concatenate([stretch.hashes for stretch in stretches]),
            keys=np.concatenate([stretch.keys for stretch in stretches]),
            contents=np.concatenate(contents) if contents else None,
        )

    def _read(self, bucket: Bucket, side: Side) -> Iterator[Stretch]:
        for start, size in self._extents.get((bucket, int(side)), ()):
            payload = memoryview(self._payload(start, size))
            while payload:
                end = 4 + int.from_bytes(payload[:4], "big")
                yield _stretch(_decode(payload[4:end]))
                payload = payload[end:]

    def _payload(self, start: int, size: int) -> bytes:
        with self._lock:
            if self._closed or self._file is None:
                return b""  # the sweep was cancelled: nobody looks at what comes of it
            payload = os.pread(self._file.fileno(), size, start)
        if len(payload) < size:
            raise OSError(errno.EIO, f"The spool of a sweep holds {len(payload)} of {size} bytes at {start}.")
        return payload


def _size(stretch: Stretch) -> int:
    """Return what a stretch takes in memory, its objects guessed."""
    contents = 0 if stretch.contents is None else stretch.contents.nbytes
    if stretch.contents is not None and stretch.contents.dtype == object:
        contents *= OBJECT_WORDS
    return int(stretch.hashes.nbytes + stretch.keys.nbytes + contents) + STRETCH_BYTES


def _frame(stretch: Stretch) -> _Frame:
    contents = stretch.contents
    packed = None if contents is None else contents.tolist() if contents.dtype == object else contents.tobytes()
    return stretch.hashes.tobytes(), stretch.keys.tobytes(), stretch.keys.dtype.str, packed


def _stretch(frame: _Frame) -> Stretch:
    hashes, keys, layout, packed = frame
    contents = None
    if isinstance(packed, bytes):
        contents = np.frombuffer(packed, dtype=DIGEST)
    elif packed is not None:
        contents = objects(packed)
    return Stretch(hashes=np.frombuffer(hashes, np.uint64), keys=np.frombuffer(keys, layout), contents=contents)
