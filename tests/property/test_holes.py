"""Holes that are joined hold no less, whenever a sweep began, and hold what is young from its own beginning."""

from __future__ import annotations

from datetime import datetime

from hypothesis import example, given
from hypothesis import strategies as st

from gapwatch.core.holes import bounded
from gapwatch.core.standing import BEGINNING, from_ms, uncovered_holes_within
from gapwatch.model.suspect import Hole
from gapwatch.roles.repair.book import held_since
from tests.unit.core.test_standing import record

MOST = 5
MINUTE, DAY = 60_000, 86_400_000


def hole(time_from: int, time_to: int, name: str = "") -> Hole:
    return Hole(
        id=name or f"{time_from}-{time_to}",
        pipeline="p",
        side=0,
        feed="f",
        feed_partition=0,
        time_from=time_from,
        time_to=time_to,
        reason="ingest_hole",
    )


def one_after_the_other(holes: list[Hole], most: int = MOST) -> list[Hole]:
    kept: list[Hole] = []
    for one in holes:
        kept = bounded([*kept, one], most)
        assert len(kept) <= most
        assert len({known.id for known in kept}) == len(kept)
    return kept


def held(holes: list[Hole], sweeps: list[int], now: int) -> tuple[list[datetime], datetime]:
    """Return the beginnings of what is uncovered at the end, and from when on a gap is held that stays open through all sweeps.

    What still counts as a hole holds time itself.
    """
    before: datetime | None = None
    since = from_ms(now)
    status = [record(0, holes=holes)]
    for started in map(from_ms, sorted(sweeps)):
        lost = uncovered_holes_within(status, (), before, ended_before=started)
        since = min([since, *filter(None, [held_since(lost, before)])])
        before = started
    return uncovered_holes_within(status, (), before), since


times = st.integers(1, 60)
stretches = st.one_of(st.tuples(times, times).map(sorted), times.map(lambda end: [0, end]))


@given(st.lists(stretches, max_size=25), st.lists(times, max_size=4, unique=True))
@example([[0, 10], [30, 40], [0, 50]] * 3, [20, 35, 55])
def test_what_is_joined_holds_no_less(spans: list[list[int]], sweeps: list[int]) -> None:
    spans.sort(key=lambda span: span[1])
    holes = [hole(begun, ended, str(number)) for number, (begun, ended) in enumerate(spans)]
    wanted, wanted_since = held(holes, sweeps, 100)
    found, found_since = held(one_after_the_other(holes), sweeps, 100)
    assert min(found, default=from_ms(100)) <= min(wanted, default=from_ms(100))
    assert min([found_since, *found]) <= min([wanted_since, *wanted])


def test_a_hole_is_held_from_its_own_beginning_however_many_were_covered_before_it() -> None:
    """The oldest ones were joined to one that grew with each new hole: what was lost today was held from months ago."""
    holes = [hole(at * DAY // 8 + 1, at * DAY // 8 + MINUTE) for at in range(8 * 365)]
    for count in (51, 60, 500, len(holes)):
        newest = holes[count - 1]
        kept = one_after_the_other(holes[:count], 50)
        for ago in (1, 2, 4):
            swept = from_ms(holes[count - ago].time_from - MINUTE)  # since then there were so many
            assert min(uncovered_holes_within([record(0, holes=kept)], (), swept)) == from_ms(holes[count - ago].time_from)
        for days in (3, 30, 300):
            if days * 8 >= count:
                continue
            swept_ms = newest.time_to - days * DAY
            (since,) = {min(uncovered_holes_within([record(0, holes=kept)], (), from_ms(swept_ms)))}
            assert (from_ms(swept_ms) - since).total_seconds() * 1000 <= days * DAY, "no more than its age once more"


def test_holes_without_a_beginning_hide_none_that_has_one() -> None:
    """In the place of the sweep before it stood that one's beginning, and what was lost before that sweep was held by nothing."""
    started = [hole(0, 1_000 + number) for number in range(60)]
    kept = one_after_the_other([hole(500, 900), *started, hole(3_000, 4_000)], 50)
    known = [(one.time_from, one.time_to) for one in kept if one.time_from]
    assert known == [(500, 900), (3_000, 4_000)]
    assert held(kept, [2_000, 5_000], 6_000)[1] == BEGINNING
    assert min(held(kept, [100, 2_000, 5_000], 6_000)[1], from_ms(500)) == from_ms(100)


def test_of_joined_ones_without_a_beginning_no_sweep_between_them_proves_the_earlier_one() -> None:
    kept = one_after_the_other([hole(0, 1_000), hole(0, 2_000)], 1)
    assert [(one.time_from, one.first_to, one.time_to) for one in kept] == [(0, 1_000, 2_000)]
    assert held(kept, [500, 3_000], 9_000)[1] == from_ms(500)
    assert held(kept, [500, 1_500, 3_000], 9_000)[1] < BEGINNING, "the sweep before the first one is not known any more"


def test_a_hole_that_is_said_again_takes_the_place_of_no_joined_one() -> None:
    holes = [hole(100 * number, 100 * number + 10) for number in range(1, 5)]
    kept = one_after_the_other(holes, 2)
    again = [one for one in kept if one.id not in {known.id for known in holes}]
    assert again, "what is joined has a name of its own"
    assert min(one.time_from for one in kept) == 100
