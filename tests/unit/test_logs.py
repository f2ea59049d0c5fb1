"""Logs: what a library says again and again is said seldom."""

from __future__ import annotations

import logging

from gapwatch.logs import QUIET_SECONDS, Seldom


def record(message: str, *values: object, at: float = 0.0, level: int = logging.ERROR) -> logging.LogRecord:
    made = logging.LogRecord("aiokafka", level, __file__, 1, message, values, None)
    made.created = at
    return made


def test_of_a_repeated_message_the_first_the_tenth_and_the_hundredth_are_shown() -> None:
    seldom = Seldom()
    shown = [seen.getMessage() for n in range(150) if seldom.filter(seen := record("Unable to connect to %s", n, at=n / 10))]
    assert shown == ["Unable to connect to 0", "Unable to connect to 9 (10 times)", "Unable to connect to 99 (100 times)"]


def test_another_message_is_shown_at_once() -> None:
    seldom = Seldom()
    assert seldom.filter(record("one"))
    assert not seldom.filter(record("one"))
    assert seldom.filter(record("two"))


def test_after_a_quiet_minute_a_message_is_new_again() -> None:
    seldom = Seldom()
    assert seldom.filter(record("away", at=1.0))
    assert not seldom.filter(record("away", at=QUIET_SECONDS))
    assert seldom.filter(record("away", at=2 * QUIET_SECONDS + 1))


def test_what_is_critical_is_always_shown() -> None:
    seldom = Seldom()
    assert all(seldom.filter(record("end", level=logging.CRITICAL)) for _ in range(3))
