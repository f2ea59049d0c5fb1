"""The short way for a section that is in turn: it takes that one alone, and all else goes the way that raises holes."""

from __future__ import annotations

import pytest

from gapwatch.core.watermarks import FeedTimes
from gapwatch.model.stream import PackedSection, Side

KEY = ("orders", int(Side.EXPECTED), "shop.public.orders", 0)
AT = 6_000
STALL = 30_000


def section(epoch: int, first: int, end: int) -> PackedSection:
    nothing = b""
    return PackedSection(*KEY, epoch, 1, first, end, [], nothing, nothing, nothing, nothing, nothing, nothing, nothing, nothing)


def read_to(end: int) -> FeedTimes:
    times = FeedTimes()
    times.admit(KEY, section(1, 0, end), AT, STALL)
    return times


def test_a_section_in_turn_is_followed() -> None:
    times = read_to(10)
    assert times.follow(KEY, section(1, 10, 12))
    assert times.of(KEY).reached == 12


@pytest.mark.parametrize(
    ("epoch", "first", "end"),
    [(2, 10, 12), (0, 10, 12), (1, 11, 12), (1, 9, 12), (1, 10, 10)],
    ids=["another log that happens to be as long", "a log that is no more", "one too far", "one again", "nothing"],
)
def test_what_is_not_in_turn_is_not(epoch: int, first: int, end: int) -> None:
    times = read_to(10)
    assert not times.follow(KEY, section(epoch, first, end))
    assert times.of(KEY).reached == 10


def test_a_topic_made_anew_that_goes_on_where_the_old_one_ended_is_a_hole() -> None:
    times = read_to(10)
    assert not times.follow(KEY, section(2, 10, 12))
    assert [hole.reason for hole in times.admit(KEY, section(2, 10, 12), AT, STALL).holes] == ["topic_recreated"]


def test_nothing_is_followed_while_sections_wait_for_one_that_is_missing() -> None:
    times = read_to(10)
    times.admit(KEY, section(1, 12, 14), AT, STALL)
    assert not times.follow(KEY, section(1, 10, 12))
    assert len(times.admit(KEY, section(1, 10, 12), AT, STALL).items) == 2


def test_a_feed_that_was_never_heard_of_is_not_followed() -> None:
    assert not FeedTimes().follow(KEY, section(1, 0, 5))
