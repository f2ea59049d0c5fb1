"""A pipeline that is left out of the configuration and comes back: what was open of it is gone with its state, and is a hole."""

from __future__ import annotations

from gapwatch.core.matching import KeyMatcher
from gapwatch.model.suspect import Hole
from tests.simulation.bench import Bench
from tests.simulation.world import MAPPING, PIPELINE


def test_a_pipeline_that_comes_back_where_it_stopped_begins_with_a_hole() -> None:
    bench = Bench()
    bench.expect(1, 100)
    bench.streams(500)
    assert bench.matcher.open_writes(PIPELINE) == 1
    records = {name: payload for name, payload in bench.matcher.state_records() if payload is not None}
    without = KeyMatcher.restore(0, 1, {}, fingerprints={}, records=records, marker=bench.matcher.marker(), life="1")
    bench.matcher = KeyMatcher.restore(
        0, 1, {PIPELINE: bench.spec}, fingerprints={PIPELINE: MAPPING}, records={}, marker=without.marker(), life="2"
    )
    said = bench.streams(9_000)
    assert bench.matcher.open_writes(PIPELINE) == 0
    assert {one.side for one in said if isinstance(one, Hole)} == {0, 1}
