"""When a sweep is due by a cron expression (five fields, UTC). Pure; the expressions are croniter's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

from croniter import croniter

EXAMPLE: Final = '"0 3 * * *" (at three o\'clock, UTC), or "*/30 * * * 1-5"'
FIELDS: Final = 5
LOOKED_AT: Final = 400  # times that are looked at for the longest pause between two: a year of days
_REFERENCE: Final = datetime(2024, 1, 1, tzinfo=UTC)  # a leap year begins


def is_cron(text: str) -> bool:
    """Say whether the text is a cron expression of five fields that some time satisfies."""
    if len(text.split()) != FIELDS or not croniter.is_valid(text):
        return False
    try:
        croniter(text, _REFERENCE).get_next(datetime)
    except (ValueError, KeyError, OverflowError):  # croniter's own errors are ValueErrors: 30 February
        return False
    return True


def last_due(text: str, now: datetime) -> datetime:
    """Return the last time before or at ``now`` at which it was due."""
    due: datetime = croniter(text, now.astimezone(UTC) + timedelta(microseconds=1)).get_prev(datetime)
    return due


def next_due(text: str, now: datetime) -> datetime:
    """Return the first time after ``now`` at which it is due."""
    due: datetime = croniter(text, now.astimezone(UTC)).get_next(datetime)
    return due


@lru_cache(maxsize=256)
def longest_pause_seconds(text: str) -> float:
    """Return the longest time between two times at which it is due."""
    times = croniter(text, _REFERENCE)
    before, longest = times.get_next(datetime), 0.0
    for _ in range(LOOKED_AT):
        due = times.get_next(datetime)
        longest, before = max(longest, (due - before).total_seconds()), due
    return longest
