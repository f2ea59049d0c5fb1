"""When it is worth asking the ledger again: at once after this process has written to it, else now and then."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from gapwatch.ports import Clock, Ledger


class Asking:
    """One for each poller. What other processes write, or what becomes due with time, is seen within `seconds`."""

    def __init__(self, ledger: Ledger, clock: Clock, *, seconds: float) -> None:
        self._ledger = ledger
        self._clock = clock
        self._seconds = seconds
        self._seen = -1
        self._at = 0.0

    def due(self) -> bool:
        """Whether to ask now; whoever is told so asks."""
        writes, now = self._ledger.writes(), self._clock.monotonic()
        if writes == self._seen and now < self._at:
            return False
        self._seen, self._at = writes, now + self._seconds
        return True

    def again(self) -> None:
        """Ask once more at the next opportunity: there may be more of what was found."""
        self._seen = -1

    async def rest(self, seconds: float, stop: asyncio.Event) -> None:
        """Wait for so long, and then until it is due, or `stop` is set; it is not looked at again and again meanwhile."""
        await self._clock.sleep(seconds)
        loop, written = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(written.set)

        left = self._ledger.on_write(tell)  # before it is looked at: what is written from here on is told
        try:
            remaining = self._at - self._clock.monotonic()
            if remaining <= 0 or self._ledger.writes() != self._seen or stop.is_set():
                return
            waits = [asyncio.ensure_future(one) for one in (self._clock.sleep(remaining), written.wait(), stop.wait())]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for one in waits:
                    one.cancel()
        finally:
            left()
