"""Maintenance windows: when one is on, since when, and what is wrong with one that cannot be read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gapwatch.core.maintenance import MaintenanceSpec, Window, window_at

SUNDAY = datetime(2027, 1, 3, tzinfo=UTC)


def at(hours: float) -> datetime:
    return SUNDAY + timedelta(hours=hours)


def test_a_repeated_window_is_on_from_its_start_until_before_its_end() -> None:
    spec = MaintenanceSpec.parse("0 2 * * sun for 2h")
    assert spec.at(at(1.999)) is None
    for hours in (2, 3, 3.999):
        assert spec.at(at(hours)) == Window(start=at(2), end=at(4))
    assert spec.at(at(4)) is None
    assert spec.at(at(26)) is None
    assert spec.at(at(7 * 24 + 2.5)) == Window(start=at(7 * 24 + 2), end=at(7 * 24 + 4))


def test_windows_that_overlap_are_one() -> None:
    spec = MaintenanceSpec.parse("0,30 2 * * * for 45m")
    assert spec.at(at(2.6)) == Window(start=at(2), end=at(3.25))
    assert spec.at(at(3.2)) == Window(start=at(2), end=at(3.25))
    assert spec.at(at(3.25)) is None


def test_one_that_never_ends_is_cut() -> None:
    found = MaintenanceSpec.parse("0 * * * * for 1h").at(at(5.5))
    assert found is not None
    assert found.end == at(6)
    assert timedelta(days=31) <= at(5.5) - found.start <= timedelta(days=32)


def test_a_single_window() -> None:
    spec = MaintenanceSpec.parse("2027-01-03T18:00:00+01:00/2027-01-03T20:00:00Z")
    assert spec.at(at(17)) == Window(start=at(17), end=at(20))
    assert spec.at(at(16.9)) is None
    assert spec.at(at(20)) is None


def test_of_several_the_one_that_began_first_is_named() -> None:
    late, early = MaintenanceSpec.parse("0 3 * * * for 3h"), MaintenanceSpec.parse("0 2 * * * for 2h")
    assert window_at([late, early], at(3.5)) == (early, Window(start=at(2), end=at(4)))
    assert window_at([late, early], at(4.5)) == (late, Window(start=at(3), end=at(6)))
    assert window_at([late, early], at(7)) is None
    assert window_at([], at(7)) is None


@given(st.integers(0, 23), st.integers(1, 40), st.integers(0, 14 * 24 * 60))
def test_now_lies_in_what_is_returned_and_else_nothing_begun_lately(hour: int, hours: int, minute: int) -> None:
    spec, now = MaintenanceSpec.parse(f"0 {hour} * * * for {hours}h"), SUNDAY + timedelta(days=40, minutes=minute)
    found = spec.at(now)
    last = (
        now.replace(hour=hour, minute=0)
        if now >= now.replace(hour=hour, minute=0)
        else now.replace(hour=hour, minute=0) - timedelta(days=1)
    )
    assert (found is not None) == (now < last + timedelta(hours=hours))
    if found is not None:
        assert found.start <= last
        assert found.start <= now < found.end


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("every night", "neither CRON for DURATION nor START/END"),
        ("0 25 * * * for 2h", "no cron expression"),
        ("0 2 * * * for 0h", "from a minute to 31 days"),
        ("0 2 * * * for 90d", "from a minute to 31 days"),
        ("2027-01-03T18:00:00Z/2027-01-03T18:00:00Z", "ends before it begins"),
        ("2027-01-03T18:00:00/2027-01-03T20:00:00Z", "names no offset"),
        ("tomorrow/2027-01-03T20:00:00Z", "no time like"),
    ],
)
def test_what_cannot_be_read_is_said(text: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        MaintenanceSpec.parse(text)
