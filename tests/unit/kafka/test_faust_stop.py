"""Faust's stop waits in the event loop for its threads, without any time-out: whoever gives it up does so from outside."""

from __future__ import annotations

import asyncio
import threading

import pytest
from mode.threads import ServiceThread

from gapwatch.kafka import faust_safety
from gapwatch.kafka.faust_safety import stopped_within


class Thread(ServiceThread):  # type: ignore[misc]
    """Has work that does not end before somebody gives it up."""

    given_up: threading.Event

    @ServiceThread.task  # type: ignore[untyped-decorator]
    async def work(self) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.to_thread(self.given_up.wait)


async def test_a_stop_that_holds_up_the_loop_is_given_up_by_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faust_safety, "STUCK_SECONDS", 0.1)
    thread, by = Thread(), list[str]()
    thread.given_up = threading.Event()

    def give_up() -> None:
        by.append(threading.current_thread().name)
        thread.given_up.set()

    await thread.start()
    await asyncio.sleep(0)
    await stopped_within(thread, 0.1, give_up)
    assert len(by) == 1
    assert by[0] != threading.main_thread().name


async def test_a_stop_in_time_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faust_safety, "STUCK_SECONDS", 0.0)
    thread, gave_up = Thread(), threading.Event()
    thread.given_up = threading.Event()
    thread.given_up.set()
    await thread.start()
    before = set(threading.enumerate())
    assert await stopped_within(thread, 30.0, gave_up.set)
    assert not [
        one for one in set(threading.enumerate()) - before if isinstance(one, threading.Timer) and not one.finished.is_set()
    ]
    assert not gave_up.is_set()
