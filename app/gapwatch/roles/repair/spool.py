"""Buckets of keys that spill to disk: for sweeps whose two sides do not come in one order.

What was added is held in memory up to a limit, then appended to one file a bucket and side in a directory of our own, readable
by nobody else, which goes with the sweep. A bucket is compared alone, so that memory stays the same whatever the size.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import msgspec
import numpy as np

from gapwatch.core.sweep_sets import BUCKETS, DIGEST, Array, Differing, Stretch, compare_bucket, objects, scatter
from gapwatch.model.stream import Side

HELD_BYTES_MAX: Final = 48 << 20
ENTRY_BYTES: Final = 120  # of a key in memory, besides the key itself
_encode: Final = msgspec.msgpack.Encoder().encode

# On disk, per stretch: hashes, keys, and the contents: none, their digests, or (identity, values) of each.
_Frame = tuple[bytes, list[bytes], bytes | list[tuple[bytes, tuple[str | None, ...]]] | None]
_decode: Final = msgspec.msgpack.Decoder(_Frame).decode


class Spool:
    """Collects both sides' keys, then says which differ.

    Args:
        equal: Compares two content objects, (identity, values) each; only called where contents are objects.
        held_bytes_max: How much is held in memory before it goes to disk.
    """

    def __init__(self, equal: Callable[[Any, Any], bool], *, held_bytes_max: int = HELD_BYTES_MAX) -> None:
        self._equal = equal
        self._held_bytes_max = held_bytes_max
        self._held: dict[tuple[int, int], list[Stretch]] = {}
        self._bytes = 0
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self.counts = [0, 0]

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._directory is not None:
            self._directory.cleanup()

    def add(self, side: Side, keys: Sequence[bytes], contents: Array | None) -> None:
        """Take keys of a side, in any order."""
        if not len(keys):
            return
        for bucket, stretch in scatter(keys, contents).items():
            self._held.setdefault((bucket, int(side)), []).append(stretch)
        self.counts[side] += len(keys)
        self._bytes += sum(len(key) for key in keys) + ENTRY_BYTES * len(keys)
        if self._bytes > self._held_bytes_max:
            self._spill()

    def _spill(self) -> None:
        if self._directory is None:
            self._directory = tempfile.TemporaryDirectory(prefix="gapwatch-sweep-")
        for (bucket, side), stretches in self._held.items():
            with self._file(bucket, side).open("ab") as file:
                for stretch in stretches:
                    payload = _encode(_frame(stretch))
                    file.write(len(payload).to_bytes(4, "big") + payload)
        self._held.clear()
        self._bytes = 0

    def _file(self, bucket: int, side: int) -> Path:
        assert self._directory is not None
        return Path(self._directory.name) / f"{bucket}-{side}"

    def differences(self) -> Iterator[Differing]:
        """Yield each bucket's differences."""
        for bucket in range(BUCKETS):
            source, target = self._load(bucket, Side.EXPECTED), self._load(bucket, Side.OBSERVED)
            places = compare_bucket(source.hashes, target.hashes, source.contents, target.contents, self._equal)
            yield Differing(
                source_only=[source.keys[at] for at in places.source.tolist()],
                target_only=[target.keys[at] for at in places.target.tolist()],
                differing=[source.keys[at] for at in places.differing.tolist()],
            )

    def _load(self, bucket: int, side: Side) -> Stretch:
        stretches = list(self._read(bucket, side)) + self._held.pop((bucket, int(side)), [])
        if not stretches:
            return Stretch(hashes=np.empty(0, dtype=DIGEST), keys=(), contents=None)
        contents = [stretch.contents for stretch in stretches if stretch.contents is not None]
        return Stretch(
            hashes=np.concatenate([stretch.hashes for stretch in stretches]),
            keys=[key for stretch in stretches for key in stretch.keys],
            contents=np.concatenate(contents) if contents else None,
        )

    def _read(self, bucket: int, side: Side) -> Iterator[Stretch]:
        if self._directory is None or not self._file(bucket, int(side)).exists():
            return
        with self._file(bucket, int(side)).open("rb") as file:
            while size := file.read(4):
                yield _stretch(_decode(file.read(int.from_bytes(size, "big"))))


def _frame(stretch: Stretch) -> _Frame:
    contents = stretch.contents
    packed = None if contents is None else contents.tolist() if contents.dtype == object else contents.tobytes()
    return stretch.hashes.tobytes(), list(stretch.keys), packed


def _stretch(frame: _Frame) -> Stretch:
    hashes, keys, packed = frame
    contents = None
    if isinstance(packed, bytes):
        contents = np.frombuffer(packed, dtype=DIGEST)
    elif packed is not None:
        contents = objects(packed)
    return Stretch(hashes=np.frombuffer(hashes, dtype=DIGEST), keys=keys, contents=contents)
