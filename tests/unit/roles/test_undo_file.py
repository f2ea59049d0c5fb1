"""The undo file survives whoever writes it."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gapwatch.model.gap import Run, RunKind, RunState
from gapwatch.roles.repair.undo import UndoFile
from tests.simulation.stores import Rig, VirtualClock, spec_of_rig


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    spec = spec_of_rig()
    return Rig(spec=replace(spec, repair=replace(spec.repair, undo=str(tmp_path / "undo"))))


def undo_of(rig: Rig) -> UndoFile:
    """Return what a process has that took the run."""
    run = Run(
        id="run",
        pipeline=rig.spec.id,
        kind=RunKind.BACKFILL,
        state=RunState.RUNNING,
        requested_at=datetime(2026, 11, 24, tzinfo=UTC),
    )
    return UndoFile(rig.stores, run, VirtualClock())


async def test_a_line_that_somebody_was_killed_in_takes_no_other_one_with_it(rig: Rig, tmp_path: Path) -> None:
    await undo_of(rig).note([(rig.key(1), None, False)])
    file = tmp_path / "undo" / rig.spec.id / "run.jsonl"
    file.write_bytes(file.read_bytes() + b'{"at": "2026-11-24T10:00:00Z", "pipeline": "ord')
    await undo_of(rig).note([(rig.key(2), None, False), (rig.key(3), None, False)])
    lines = file.read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines if line.endswith("}")] == [{"id": 1}, {"id": 2}, {"id": 3}]
    assert len(lines) == 4


async def test_the_name_of_the_file_is_on_disk_as_well(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        synced.append(os.fstat(handle).st_ino)
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    await undo_of(rig).note([(rig.key(1), None, False)])
    folder = tmp_path / "undo" / rig.spec.id
    assert [path.stat().st_ino for path in (folder / "run.jsonl", folder, folder.parent)] == synced
    await undo_of(rig).note([(rig.key(2), None, False)])
    assert len(synced) == 4, "once is enough"
