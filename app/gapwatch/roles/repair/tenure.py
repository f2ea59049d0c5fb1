"""How a run stays its holder's, and how long by the holder's own clock: near the end nothing more is sent to a target."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from typing import Any, Final, TypeVar

from gapwatch.core.backfill import Tally
from gapwatch.errors import ConflictError
from gapwatch.model.gap import Run
from gapwatch.ports import Clock, Ledger

SAFE_SECONDS: Final = 30.0  # what has to be left when a batch is sent: no store is waited for longer by one request


RENEW_SECONDS: Final = 1.0

T = TypeVar("T")


async def renewing(work: Coroutine[Any, Any, T], renew: Callable[[], Awaitable[None]], *, seconds: float = RENEW_SECONDS) -> T:
    """Wait for `work`, which may take longer than a lease; call `renew` so often meanwhile. What that raises ends the work."""
    task = asyncio.ensure_future(work)
    try:
        while True:
            await asyncio.wait({task}, timeout=seconds)
            if task.done():
                return task.result()
            await renew()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Tenure:
    """One holder's hold on a run that it has taken.

    The ledger counts a lease from when a renewal reaches it; the holder from when it was sent, which is never later. A process
    that was frozen in between finds its time over before it writes, whatever the ledger said before.
    """

    def __init__(self, ledger: Ledger, clock: Clock, run: Run, *, holder: str, seconds: float) -> None:
        """``seconds``: what the lease was taken for. Nothing is left before the first renewal: nobody knows when it was taken."""
        self._ledger = ledger
        self._clock = clock
        self._run = run
        self._holder = holder
        self._seconds = seconds
        self._until: float | None = None

    async def renew(self, tally: Tally) -> None:
        """Store progress and renew. Raises ConflictError when the run was cancelled, or taken by another holder."""
        run = self._run
        current = await asyncio.to_thread(self._ledger.run, run.id)
        if current is None or current.cancel_requested:
            raise ConflictError("The backfill was cancelled.", running_id=run.id)
        progress = tally.handled / tally.planned if tally.planned else 1.0
        updated = replace(run, counts=dict(tally.counts), progress=min(1.0, progress))
        sent = self._clock.monotonic()
        await asyncio.to_thread(self._ledger.update_run, updated, holder=self._holder)
        self._until = sent + self._seconds

    async def assure(self, tally: Tally) -> None:
        """Return only while enough is left for what is sent now; renew first where it is not. Raises ConflictError."""
        if not self._is_safe():
            await self.renew(tally)
            if not self._is_safe():
                raise ConflictError("Renewing the lease took too long: nothing is written.", running_id=self._run.id)

    def _is_safe(self) -> bool:
        return self._until is not None and self._until - self._clock.monotonic() >= min(SAFE_SECONDS, self._seconds / 2)
