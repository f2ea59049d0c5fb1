"""What a matcher's end costs, from what came and what was applied."""

from __future__ import annotations

import pytest
from benchmarks.handover import ROW, HandOver, Partition, judge, rows

TENTHS = 600


def partition(still_from: float = 0.0, still_to: float = 0.0, speed: float = 3.0) -> Partition:
    """Return one to which ten records a second come; they are applied at once, but not in that time, and then so much faster."""
    made, reached = Partition(), -1.0
    for tenth in range(TENTHS):
        now = tenth / 10
        made.came.append((now, tenth))
        if still_from <= now < still_to:
            continue
        reached = min(float(tenth), reached + (speed if reached < tenth - 1 else 1))
        made.applied.append((now, int(reached)))
    return made


def test_what_stands_still_for_a_while_is_behind_until_it_has_caught_up() -> None:
    found = judge([partition(), partition(20.0, 30.0)], fault=20.0, end=55.0)
    assert found.pause == pytest.approx(10.1, abs=0.2)
    assert 13.0 < found.catch_up < 15.1, "ten seconds of records, at three times their rate, but for the last two seconds"


def test_without_a_pause_nothing_is_behind() -> None:
    found = judge([partition()], fault=20.0, end=55.0)
    assert found.pause == pytest.approx(0.1, abs=0.01)
    assert found.catch_up == 0.0


def test_what_never_goes_on_is_no_figure() -> None:
    with pytest.raises(ValueError, match="behind to the end"):
        judge([partition(), partition(20.0, 60.0)], fault=20.0, end=55.0)


def test_row_17_shows_medians_beside_a_session() -> None:
    found = rows(
        {"killed": [HandOver(pause=1.0, catch_up=2.0), HandOver(pause=3.0, catch_up=9.0), HandOver(pause=2.0, catch_up=3.0)]}
    )
    assert [(one["row"], one["value"], one["goal"]) for one in found] == [(ROW, 2.0, "no goal"), (ROW, 3.0, "no goal")]
