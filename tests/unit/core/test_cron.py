"""Sweeps by the calendar."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from gapwatch.core.cron import is_cron, last_due, longest_pause_seconds


@pytest.mark.parametrize("text", ["0 3 * * *", "*/30 * * * 1-5", "15 4 1 * *", "0 0 29 2 *"])
def test_five_fields_that_some_time_satisfies(text: str) -> None:
    assert is_cron(text)


@pytest.mark.parametrize("text", ["", "30m", "@daily", "0 3 * *", "0 3 * * * *", "61 * * * *", "0 0 30 2 *", "a b c d e"])
def test_anything_else_is_none(text: str) -> None:
    assert not is_cron(text)


def test_the_last_time_is_the_one_at_or_before_now() -> None:
    three = datetime(2026, 11, 27, 3, tzinfo=UTC)
    assert last_due("0 3 * * *", three) == three
    assert last_due("0 3 * * *", three - timedelta(microseconds=1)) == three - timedelta(days=1)
    assert last_due("0 3 * * *", three + timedelta(hours=23)) == three
    elsewhere = three.astimezone(timezone(timedelta(hours=-5)))
    assert last_due("0 3 * * *", elsewhere) == three, "UTC, whatever zone `now` is given in"


def test_the_longest_pause_is_over_the_weekend() -> None:
    assert longest_pause_seconds("*/30 * * * *") == 1_800
    assert longest_pause_seconds("0 9 * * 1-5") == 3 * 86_400
    assert longest_pause_seconds("0 0 1 * *") == 31 * 86_400
