"""Rows that hold nothing take no memory, whatever is asked of them: ten pipelines have eighty of them in one process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gapwatch.core.keyrows import CAPACITY_MIN, KeyRows
from gapwatch.core.mapping import CompiledMapping
from gapwatch.core.matching import KeyMatcher
from gapwatch.model.pipeline import FieldSpec, FieldType
from gapwatch.model.stream import Side
from tests.unit.core.samples import pipeline
from tests.unit.core.test_coverage import Story

PIPELINES, STATES_MIB_MAX = 20, 4.0


def shared_mib() -> float:
    """Return what this process holds of memory that it mapped."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssShmem:"))


def test_the_status_of_pipelines_without_keys_takes_no_memory() -> None:
    spec = pipeline(FieldSpec(target="name", source="name", type=FieldType.TEXT))
    pipelines = {name: replace(spec, id=name) for name in (f"orders_{number}" for number in range(PIPELINES))}
    fingerprints = {name: CompiledMapping(one).fingerprint for name, one in pipelines.items()}
    matcher = KeyMatcher(0, 1, pipelines, fingerprints=fingerprints, life="one")
    before = shared_mib()
    assert {status.pending for status in matcher.status("w", 0)} == {0}
    matcher.advance()
    matcher.state_records()
    matcher.marker()
    assert {matcher.waiting(name, 0, 1) for name in pipelines} == {0}
    assert shared_mib() - before < STATES_MIB_MAX < PIPELINES * CAPACITY_MIN * 8 / (1 << 20)


def test_the_status_of_a_pipeline_without_open_keys_looks_at_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of what a status costs is that look, and a service at rest says one for each pipeline and partition all the time."""
    looks: list[str] = []

    def noted(name: str, asked: Callable[[KeyRows], Any]) -> Callable[[KeyRows], Any]:
        def look(rows: KeyRows) -> Any:
            looks.append(name)
            return asked(rows)

        return look

    for name in ("open_rows", "alone_rows", "open_long"):
        monkeypatch.setattr(KeyRows, name, noted(name, getattr(KeyRows, name)))
    story = Story()
    story.write(Side.EXPECTED, [1], 1)
    (status,) = story.matcher.status("w", story.teller.clock)
    assert (status.pending + status.in_transit, bool(looks)) == (1, True)
    story.write(Side.OBSERVED, [1], 1)
    looks.clear()
    (status,) = story.matcher.status("w", story.teller.clock)
    assert (status.pending + status.in_transit, looks, status.oldest_unsettled) == (0, [], None)
