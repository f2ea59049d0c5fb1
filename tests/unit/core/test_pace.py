"""Batches by what the target can take."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gapwatch.core.pace import LONGEST_SECONDS, SPREAD, Pace
from gapwatch.model.pipeline import BatchSpec

SPEC = BatchSpec(documents=100, pause_seconds=0.2, adaptive=True)


def batches(pace: Pace, count: int, *, each: float = 0.001, failed: int = 0) -> None:
    for _ in range(count):
        pace.took(each * pace.limits.documents, documents=pace.limits.documents, failed=failed)


def test_a_fixed_pace_stays_as_it_was_set() -> None:
    pace = Pace.of(BatchSpec(documents=100, pause_seconds=0.2))
    batches(pace, 5)
    pace.took(100.0, documents=100, failed=50)
    assert pace.limits == pace.spec


def test_while_the_target_keeps_up_batches_grow_and_pauses_go() -> None:
    pace = Pace.of(SPEC)
    batches(pace, 2)
    assert (pace.limits.documents, pace.limits.pause_seconds) == (200, 0.05)
    batches(pace, 100)
    assert (pace.limits.documents, pace.limits.pause_seconds) == (100 * SPREAD, 0.0)
    assert pace.limits.bytes == SPEC.bytes


def test_a_slower_target_is_left_alone_at_once() -> None:
    pace = Pace.of(SPEC)
    batches(pace, 20)
    batches(pace, 1, each=0.0025)
    assert (pace.limits.documents, pace.limits.pause_seconds) == (500, 0.4)
    batches(pace, 20, each=0.1)
    assert pace.limits.documents < 20
    assert pace.limits.pause_seconds > 1


def test_refusals_count_as_too_much_however_fast_they_come() -> None:
    pace = Pace.of(SPEC)
    batches(pace, 20, failed=1)
    assert (pace.limits.documents, pace.limits.pause_seconds) == (100 // SPREAD, LONGEST_SECONDS)
    batches(pace, 50)
    assert pace.limits.documents == 100 * SPREAD, "and it comes back"


def test_a_target_that_stays_slower_is_not_held_against_what_it_was_for_ever() -> None:
    pace = Pace.of(SPEC)
    batches(pace, 5)
    batches(pace, 300, each=0.004)
    assert pace.limits.documents == 100 * SPREAD


@given(
    st.builds(
        BatchSpec,
        documents=st.integers(1, 10_000),
        pause_seconds=st.floats(0, 60),
        adaptive=st.just(True),
    ),
    st.lists(st.tuples(st.floats(0, 100), st.integers(0, 10_000), st.integers(0, 100))),
)
def test_the_pace_stays_within_its_bounds(spec: BatchSpec, taken: list[tuple[float, int, int]]) -> None:
    pace = Pace.of(spec)
    for seconds, documents, failed in taken:
        pace.took(seconds, documents=documents, failed=failed)
        assert 1 <= pace.limits.documents <= spec.documents * SPREAD
        assert 0 <= pace.limits.pause_seconds <= max(spec.pause_seconds * SPREAD, LONGEST_SECONDS)
