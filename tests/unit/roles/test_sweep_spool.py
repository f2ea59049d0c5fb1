"""Buckets on disk say what buckets in memory say, and leave nothing behind."""

from __future__ import annotations

import tempfile
from pathlib import Path
from random import Random

import pytest

from gapwatch.core.keys import KeyCodec
from gapwatch.core.sweep_buckets import blocks_of
from gapwatch.core.sweep_sets import Array, KeyForm, digests, objects
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
        assert bool(list(tmp_path.iterdir())) == (held == 4_000)
        found = list(spool.differences())
    assert {key for one in found for key in one.source_only} == {b"key 11\0\1"}
    assert {key for one in found for key in one.target_only} == {f"key {n}\0\1".encode() for n in (7, 1_999, 2_000, 2_001, 2_002)}
    assert {key for one in found for key in one.differing} == (set() if kind == "none" else {b"key 3\0\1", b"key 500\0\1"})
    assert spool.counts == [1_998, 2_002]
    assert list(tmp_path.iterdir()) == []
