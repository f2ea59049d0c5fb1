"""An event loop without a clock, a selector or threads: what runs, and when, is decided by whoever turns it.

Time is one number that the driver moves. A process sleeps on its own clock and goes on when the driver wakes it, not before: so a
process can be slow, frozen or dead at any of its awaits, and the same decisions always give the same run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass
class Time:
    """Milliseconds since the epoch, the same for everybody."""

    now_ms: int


class _NoSelector:
    def select(self, timeout: float | None) -> tuple[()]:
        return ()


class Loop(asyncio.BaseEventLoop):
    """Runs what is ready until nothing is. Calls that would go to a thread are made at once."""

    def __init__(self, time: Time) -> None:
        super().__init__()
        self._now = time
        self._selector = _NoSelector()

    def time(self) -> float:
        return self._now.now_ms / 1000

    def _process_events(self, events: Any) -> None: ...

    def call_soon_threadsafe(  # type: ignore[override]  # the types of its arguments are of no matter here
        self, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def turn(self) -> None:
        """Run everything that is ready, and what that makes ready, until all that is left waits for the driver."""
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            while self._ready:  # type: ignore[attr-defined]
                self._run_once()  # type: ignore[attr-defined]
        finally:
            asyncio._set_running_loop(before)


class ProcessClock:
    """Implements :class:`gapwatch.ports.Clock` for one process."""

    def __init__(self, time: Time, loop: Loop) -> None:
        self._time = time
        self._loop = loop
        self._sleepers: list[tuple[int, asyncio.Future[None]]] = []

    def now(self) -> datetime:
        return EPOCH + timedelta(milliseconds=self._time.now_ms)

    def now_ms(self) -> int:
        return self._time.now_ms

    def monotonic(self) -> float:
        return self._time.now_ms / 1000

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = self._loop.create_future()
        self._sleepers.append((self._time.now_ms + max(1, int(seconds * 1000)), future))
        await future

    def wake(self) -> None:
        """Let everybody go on whose time has come."""
        now = self._time.now_ms
        due = [future for at, future in self._sleepers if at <= now]
        self._sleepers = [entry for entry in self._sleepers if entry[0] > now]
        for future in due:
            if not future.done():
                future.set_result(None)
