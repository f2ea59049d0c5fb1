"""What a sweep may claim, and from where another worker goes on."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gapwatch.core.sweep import Mark, Place, Resumption, Steps, SweepCounts, SweepOutcome, cut_into


@pytest.mark.parametrize(
    "wrong", [{"complete": False}, {"undecided": 1}, {"emptiness_proved": False}, {"identity_stable": False}]
)
def test_what_was_not_read_is_inconclusive(wrong: dict[str, object]) -> None:
    right = {"complete": True, "undecided": 0, "emptiness_proved": True, "identity_stable": True}
    assert SweepOutcome(**right).conclusive  # type: ignore[arg-type]
    outcome = SweepOutcome(**{**right, **wrong})  # type: ignore[arg-type]
    assert not outcome.conclusive
    assert outcome.reason()


@given(marks=st.lists(st.integers(0, 5_000), max_size=3_000, unique=True).map(sorted), undecided=st.sets(st.integers(0, 5_000)))
def test_d13_nothing_undecided_is_left_behind_a_mark(marks: list[int], undecided: set[int]) -> None:
    resumption = Resumption()
    for number in marks:
        resumption.compared(Mark(key=number.to_bytes(2, "big"), counts=(number, number)))
    reached = resumption.advance({number.to_bytes(2, "big") for number in undecided})
    if reached is not None:
        assert all(number >= reached.counts[0] for number in undecided)
    resumption.advance(())
    if marks:
        assert resumption.reached is not None
        assert resumption.reached.counts[0] == max(marks) or len(marks) > Resumption.MARKS_MAX


def test_a_mark_survives_its_run() -> None:
    mark = Mark(key=b"\x81\x07", counts=(6, 5))
    place = Place(
        mark=mark,
        identities={"expected": "1/2"},
        mapping=1 << 63,
        left=[b"a", b"d"],
        counted={"missing": 1},
        differing={"total": 2},
    )
    assert Place.unpack(msgspec.json.decode(msgspec.json.encode(place.pack()))) == place
    assert Place.unpack({}) is None
    assert Place.forgotten({**place.pack(), "masked": 3}) == {"masked": 3}


def test_a_key_below_the_mark_that_is_undecided_again_does_not_hold_it() -> None:
    resumption = Resumption(Mark(key=b"e", counts=(5, 5)))
    resumption.compared(Mark(key=b"k", counts=(9, 9)))
    assert resumption.is_below(b"d")
    assert not resumption.is_below(b"e"), "a mark says nothing of its own key"
    reached = resumption.advance({b"d"})
    assert reached is not None
    assert reached.key == b"k"


def test_a_worker_of_an_earlier_version_begins_anew_and_so_do_we_after_it() -> None:
    """It judged none of the keys that are left below the mark, and called the sweep whole."""
    cursor = Place(mark=Mark(key=b"k", counts=(9, 9)), identities={}, mapping=1, left=[b"a"]).pack()
    assert not cursor.keys() & {"from", "counts", "left", "counted"}, "what it looks for, or takes for its own"
    its_own = {"from": "6b", "counts": [9, 9], "identities": {}}
    assert Place.unpack(its_own) is None
    found = Place.unpack({**cursor, **its_own, "counts": [1, 1]})
    assert found is not None
    assert (found.mark.counts, list(found.left)) == ((9, 9), [b"a"])


def test_what_is_ahead_is_counted_by_who_goes_on() -> None:
    counts = SweepCounts({"source_keys": 9, "differences": 0})
    for key in (b"a", b"b", b"c"):
        counts.add(key, "differences", "missing")
    counts.take_back(b"b", "differences", "missing")
    assert counts.behind(lambda key: key >= b"b") == {"source_keys": 9, "differences": 1, "missing": 1}
    counts.add(b"b", "differences", "stale")
    assert counts.by_name == {"source_keys": 9, "differences": 3, "missing": 2, "stale": 1}
    assert counts.behind(lambda key: False) == counts.by_name


def test_a_sweep_that_nobody_can_go_on_with_remembers_no_keys() -> None:
    counts = SweepCounts({"differences": 0}, by_key=False)
    counts.add(b"a", "differences", "missing")
    counts.take_back(b"a", "differences", "missing")
    counts.add(b"a", "differences", "stale")
    assert counts.by_name == {"differences": 1, "missing": 0, "stale": 1}
    assert not counts._by_key


def test_a_sweep_by_key_goes_on_behind_the_steps_that_were_judged_whole() -> None:
    steps = Steps()
    steps.fed({"at": 2}, [b"a", b"b"])
    steps.fed({"at": 4}, [b"c", b"d"])
    steps.fed({"at": 5}, [b"a"])
    assert steps.advance({b"b": 1, b"c": 1}) is None
    assert steps.advance({b"c": 1}) == {"at": 2}
    assert steps.advance({b"a": 1}) == {"at": 4}
    assert steps.advance({}) == {"at": 5}
    assert Steps({"at": 4}).advance({}) == {"at": 4}, "where an earlier worker stood"


@given(parts=st.integers(2, 9), sample=st.lists(st.binary(max_size=3), max_size=60), key=st.binary(max_size=4))
def test_trap_24_every_key_lies_in_exactly_one_part(parts: int, sample: list[bytes], key: bytes) -> None:
    ranges = cut_into(parts, sample)
    assert 1 <= len(ranges) <= parts
    inside = [
        at for at, (lower, upper) in enumerate(ranges) if (lower is None or key >= lower) and (upper is None or key < upper)
    ]
    assert len(inside) == 1
    assert all(lower is None or upper is None or lower < upper for lower, upper in ranges)


def test_parts_hold_about_as_many_keys_each() -> None:
    sample = [number.to_bytes(2, "big") for number in range(400)]
    ranges = cut_into(4, sample)
    sizes = [sum((lower or b"") <= key and (upper is None or key < upper) for key in sample) for lower, upper in ranges]
    assert sizes == [100, 100, 100, 100]
