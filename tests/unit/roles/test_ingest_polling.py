"""How long ingest collects: until the next pulse where traffic is thin, shortly where it is not."""

from __future__ import annotations

import pytest

from gapwatch.roles.ingest.polling import POLL_SECONDS, RECORDS_PER_POLL, THIN_PER_SECOND, THIN_SECONDS, Polling


def enough(seconds: float) -> int:
    return int(THIN_PER_SECOND * seconds)


def test_the_first_poll_is_short() -> None:
    assert Polling().next(10) == (RECORDS_PER_POLL, POLL_SECONDS)


def test_who_reads_little_collects_until_the_next_pulse() -> None:
    polling = Polling()
    for until_pulse, expected in ((0.2, 0.2), (0.01, POLL_SECONDS), (2.0, THIN_SECONDS)):
        polling.brought([enough(POLL_SECONDS) - 1] * 3)
        assert polling.next(until_pulse) == (RECORDS_PER_POLL, expected)


def test_who_reads_much_does_not_wait_for_the_pulse_whatever_the_number_of_partitions() -> None:
    polling = Polling()
    for runs in ([enough(POLL_SECONDS)], [enough(POLL_SECONDS)] * 80, [RECORDS_PER_POLL - 79, *[1] * 79]):
        polling.next(10)
        polling.brought(runs)
        assert polling.next(10) == (RECORDS_PER_POLL, POLL_SECONDS)


def test_the_same_rate_stays_thin_when_it_was_collected_for_longer() -> None:
    """What comes in a quarter of a second is held against a quarter of a second."""
    polling = Polling()
    polling.next(10)
    polling.brought([20] * 8)
    assert polling.next(0.25) == (RECORDS_PER_POLL, 0.25)
    polling.brought([enough(POLL_SECONDS) + 1] * 8)
    assert polling.next(0.25) == (RECORDS_PER_POLL, 0.25)
    polling.brought([enough(0.25)] * 8)
    assert polling.next(0.25) == (RECORDS_PER_POLL, POLL_SECONDS)


@pytest.mark.parametrize(("before", "seconds"), [([1], 0.2), ([10_000], POLL_SECONDS)])
def test_who_read_nothing_waits_for_the_first_record_and_then_collects_as_before(before: list[int], seconds: float) -> None:
    polling = Polling()
    polling.next(10)
    polling.brought(before)
    assert polling.next(0.2) == (RECORDS_PER_POLL, seconds)
    polling.brought([])
    assert polling.next(0.2) == (1, 0.2)
    polling.brought([1])  # all that was asked for
    assert polling.next(0.2) == (RECORDS_PER_POLL, seconds)
