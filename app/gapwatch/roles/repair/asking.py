"""When it is worth asking the ledger again: at once after this process has written to it, else now and then."""

from __future__ import annotations

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
