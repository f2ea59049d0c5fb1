"""Buckets on disk say what buckets in memory say, and leave nothing behind, however the process ends."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from random import Random

import pytest

from gapwatch.core.keys import KeyCodec
from gapwatch.core.sweep_buckets import blocks_of
from gapwatch.core.sweep_sets import Array, KeyForm, digests, objects
from gapwatch.errors import StoreRefused
from gapwatch.model.pipeline import KeyColumn, KeyType
from gapwatch.model.stream import Side
from gapwatch.roles.repair.spool import Spool

Rows = dict[bytes, bytes]
FORM = KeyForm(KeyCodec([KeyColumn(path="id", type=KeyType.TEXT)]))


def equal(one: object, other: object) -> bool:
    return one == other


def rows(count: int, *, wrong: frozenset[int] = frozenset(), missing: frozenset[int] = frozenset()) -> Rows:
    return {
        f"key {number}\0\1".encode(): (b"wrong" if number in wrong else b"right").ljust(16, b"\0")
        for number in range(count)
        if number not in missing
    }


def contents(values: list[bytes], kind: str) -> Array | None:
    if kind == "none":
        return None
    return digests(values) if kind == "digests" else objects([(value, ("1.5", None)) for value in values])


@pytest.mark.parametrize("kind", ["none", "digests", "objects"])
@pytest.mark.parametrize("held", [1 << 30, 4_000])
def test_d2_every_difference_and_nothing_else_whatever_is_on_disk(
    kind: str, held: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    sides = {
        Side.EXPECTED: rows(2_000, missing=frozenset({7, 1_999})),
        Side.OBSERVED: rows(2_003, wrong=frozenset({3, 500}), missing=frozenset({11})),
    }
    with Spool(FORM, equal, held_bytes_max=held) as spool:
        for side, side_rows in sides.items():
            keys = list(side_rows)
            Random(int(side)).shuffle(keys)
            for start in range(0, len(keys), 111):
                part = keys[start : start + 111]
                spool.add(side, blocks_of(FORM, part), contents([side_rows[key] for key in part], kind))
        assert bool(_open_below(tmp_path)) == (held == 4_000)
        assert list(tmp_path.iterdir()) == [], "whoever is killed now leaves nothing behind"
        found = list(spool.differences())
    assert {key for one in found for key in one.source_only} == {b"key 11\0\1"}
    assert {key for one in found for key in one.target_only} == {f"key {n}\0\1".encode() for n in (7, 1_999, 2_000, 2_001, 2_002)}
    assert {key for one in found for key in one.differing} == (set() if kind == "none" else {b"key 3\0\1", b"key 500\0\1"})
    assert spool.counts == [1_998, 2_002]
    assert _open_below(tmp_path) == []


def _open_below(folder: Path) -> list[str]:
    """Return the files of a folder that this process has open, those without a name too."""
    found = []
    for handle in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(handle.readlink()))
        except FileNotFoundError:  # that of the listing itself
            continue
    return [name for name in found if name.startswith(str(folder))]


def test_a_full_disk_is_said_and_nobody_goes_on_with_the_half_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    room = [1, 1, 1]

    def pwrite(handle: int, data: bytes, at: int) -> int:
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room.pop()
        return len(data)

    monkeypatch.setattr(os, "pwrite", pwrite)
    blocks = blocks_of(FORM, list(rows(500)))
    with Spool(FORM, equal, held_bytes_max=4_000) as spool:
        with pytest.raises(StoreRefused, match="cannot be kept on disk: No space left on device"):
            spool.add(Side.EXPECTED, blocks, None)
        before = list(spool.counts)
        spool.add(Side.OBSERVED, blocks, None)
        assert spool.counts == before


def test_a_file_that_was_cut_short_is_no_set_of_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pread
    with Spool(FORM, equal, held_bytes_max=4_000) as spool:
        spool.add(Side.EXPECTED, blocks_of(FORM, list(rows(500))), None)
        monkeypatch.setattr(os, "pread", lambda handle, size, at: real(handle, size, at)[:-1])
        with pytest.raises(OSError, match="The spool of a sweep holds"):
            list(spool.differences())
