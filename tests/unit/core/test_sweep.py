"""The set difference of a sweep, in whatever order both sides are read."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from gapwatch.core.sweep import Entry, SetDifference, SweepOutcome
from gapwatch.model.stream import Side

Rows = dict[bytes, int]
rows = st.dictionaries(st.binary(min_size=1, max_size=3), st.integers(0, 3), max_size=30)


def swept(source: Rows, target: Rows, seed: int, *, content: bool = True) -> SetDifference:
    """Feed both sides in a random order and interleaving."""
    generator = Random(seed)
    difference = SetDifference(lambda one, other: one == other)
    feed = [(Side.EXPECTED, key, value) for key, value in source.items()]
    feed += [(Side.OBSERVED, key, value) for key, value in target.items()]
    generator.shuffle(feed)
    for side, key, value in feed:
        difference.add(side, [Entry(key=key, content=value if content else None)])
    return difference


@given(source=rows, target=rows, seed=st.integers(0, 1_000))
def test_every_difference_and_nothing_else(source: Rows, target: Rows, seed: int) -> None:
    found = swept(source, target, seed).finish()
    assert set(found.source_only) == source.keys() - target.keys()
    assert set(found.target_only) == target.keys() - source.keys()
    assert set(found.differing) == {key for key in source.keys() & target.keys() if source[key] != target[key]}


@given(source=rows, target=rows, seed=st.integers(0, 1_000))
def test_lesson_12_an_id_sweep_sees_no_content_and_a_content_sweep_does(source: Rows, target: Rows, seed: int) -> None:
    found = swept(source, target, seed, content=False).finish()
    assert found.differing == []
    assert set(found.source_only) | set(found.target_only) == source.keys() ^ target.keys()


def test_lesson_11_equal_counts_hide_nothing() -> None:
    source = {str(number).encode(): 0 for number in range(1_967)}
    target = dict(source)
    del target[b"7"]
    target[b"stranger"] = 0
    assert len(source) == len(target)
    found = swept(source, target, 3).finish()
    assert (found.source_only, found.target_only) == ([b"7"], [b"stranger"])


def test_a_key_twice_on_one_side_is_read_again() -> None:
    difference = SetDifference(lambda one, other: one == other)
    difference.add(Side.OBSERVED, [Entry(key=b"a"), Entry(key=b"a")])
    difference.add(Side.EXPECTED, [Entry(key=b"a")])
    assert difference.finish().differing == [b"a"]


def test_both_sides_in_one_order_hold_little() -> None:
    difference = SetDifference(lambda one, other: one == other)
    for number in range(10_000):
        key = number.to_bytes(4, "big")
        difference.add(Side.EXPECTED, [Entry(key=key)])
        difference.add(Side.OBSERVED, [Entry(key=key)])
        assert difference.held == 0
    assert difference.compared == [10_000, 10_000]


def test_what_was_not_read_is_inconclusive() -> None:
    right = {"complete": True, "undecided": 0, "emptiness_proved": True, "identity_stable": True}
    assert SweepOutcome(**right).conclusive  # type: ignore[arg-type]
    for wrong in ({"complete": False}, {"undecided": 1}, {"emptiness_proved": False}, {"identity_stable": False}):
        outcome = SweepOutcome(**{**right, **wrong})  # type: ignore[arg-type]
        assert not outcome.conclusive
        assert outcome.reason()
