"""What a matcher restores from, and what it leaves behind."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from gapwatch.core.matching import KeyMatcher
from gapwatch.errors import ProtocolError
from gapwatch.model.pipeline import PipelineSpec
from gapwatch.model.stream import Operation, Side
from tests.property.test_hotpath import SPECS, Teller
from tests.simulation.world import MAPPING, PIPELINE, START

SPEC = SPECS["plain"]
EVENTS = [(key, Operation.UPSERT, 1, 0, 3) for key in range(5)]


def filled() -> KeyMatcher:
    """Return a matcher with five open keys, and a record that waits for what comes before it."""
    teller = Teller(0)
    matcher = KeyMatcher(0, 1, {PIPELINE: SPEC}, fingerprints={PIPELINE: MAPPING}, life="one")
    matcher.apply(teller.record([(Side.EXPECTED, False, EVENTS)]), 0, START)
    teller.offset[Side.EXPECTED] += 10
    matcher.apply(teller.record([(Side.EXPECTED, False, EVENTS)]), 1, START)
    return matcher


def restored(records: dict[str, bytes], marker: bytes, pipelines: dict[str, PipelineSpec]) -> KeyMatcher:
    return KeyMatcher.restore(
        0, 1, pipelines, fingerprints=dict.fromkeys(pipelines, MAPPING), records=records, marker=marker, life="two"
    )


def written(matcher: KeyMatcher) -> dict[str, bytes]:
    return {name: payload for name, payload in matcher.state_records() if payload is not None}


def test_what_waits_and_what_is_open_come_back() -> None:
    matcher = filled()
    records = written(matcher)
    assert {name.split("/")[0] for name in records} == {PIPELINE, "waiting"}
    again = restored(records, matcher.marker(), {PIPELINE: SPEC})
    assert again.open_writes(PIPELINE) == 5
    assert again.state_records() == []
    assert again.marker() == matcher.marker()


def test_the_records_of_a_pipeline_that_is_no_more_are_removed() -> None:
    matcher = filled()
    records = written(matcher)
    gone = restored(records, matcher.marker(), {"other": dataclasses.replace(SPEC, id="other")})
    removed = gone.state_records()
    assert removed == [(name, None) for name in sorted(records) if name.startswith(PIPELINE)]
    assert gone.state_records() == []


def test_no_two_lives_write_under_one_name() -> None:
    matcher = filled()
    records = written(matcher)
    again = restored(records, matcher.marker(), {PIPELINE: SPEC})
    teller = Teller(0)
    teller.offset[Side.EXPECTED] = 5
    again.apply(teller.record([(Side.EXPECTED, False, [(9, Operation.UPSERT, 1, 0, 3)])]), 2, START)
    fresh = written(again)
    assert fresh
    assert not fresh.keys() & records.keys()


def test_state_of_another_format_is_refused_with_what_to_do() -> None:
    marker = msgspec.msgpack.encode({"format": 2, "applied": 1})
    with pytest.raises(ProtocolError, match="format 2") as refused:
        restored({}, marker, {PIPELINE: SPEC})
    assert "Delete the changelog topic" in str(refused.value.remedy)


def test_state_of_the_format_before_this_one_is_read() -> None:
    matcher = filled()
    records = written(matcher)
    older = {**msgspec.msgpack.decode(matcher.marker()), "format": 3}
    again = restored(records, msgspec.msgpack.encode(older), {PIPELINE: SPEC})
    assert again.marker() == matcher.marker()


def test_a_segment_that_cannot_be_read_stops_the_process() -> None:
    matcher = filled()
    records = {name: b"\xc1" if name.startswith(PIPELINE) else payload for name, payload in written(matcher).items()}
    with pytest.raises(ProtocolError, match="cannot be read"):
        restored(records, matcher.marker(), {PIPELINE: SPEC})
