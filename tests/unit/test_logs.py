"""Logs: what a library says again and again is said seldom."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

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


PROGRAM = """
import asyncio, os
from gapwatch.clock import SystemClock
from gapwatch.logs import set_up_logs
from gapwatch.roles.supervisor import Supervised, Supervisor

async def main():
    again, starts = asyncio.Event(), 0
    async def role(stop):
        nonlocal starts
        starts += 1
        if starts == 2:
            again.set()
        raise RuntimeError("the brokers are away")
    tasks = [Supervised(name="ingest", make=lambda: role)]
    supervisor = Supervisor(tasks=tasks, clock=SystemClock(), on_up=lambda *_: None, on_failure=lambda *_: None)
    running = asyncio.create_task(supervisor.run(asyncio.Event()))
    async with asyncio.timeout(60):
        await again.wait()

set_up_logs()
asyncio.run(main())
os._exit(0)
"""


def test_a_log_that_cannot_be_written_keeps_no_role_from_beginning_anew() -> None:
    receiving, sending = os.pipe()
    os.close(receiving)
    try:
        ended = subprocess.run([sys.executable, "-c", PROGRAM], stderr=sending, timeout=120, check=False)
    finally:
        os.close(sending)
    assert ended.returncode == 0
