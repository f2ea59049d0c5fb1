"""Work that goes on beside its caller, one piece at a time: booking what was proved while the next keys are read and judged."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self


class Beside:
    """What a piece raises is raised by whoever waits for it, or begins the next one; nothing goes on after the block's end."""

    def __init__(self) -> None:
        self._task: asyncio.Task[Any] | None = None

    async def begin(self, work: Coroutine[Any, Any, Any]) -> None:
        """Return as soon as the piece before has ended, and this one has begun."""
        try:
            await self.ended()
        except BaseException:
            work.close()
            raise
        self._task = asyncio.create_task(work)

    async def ended(self) -> None:
        """Return once nothing goes on; raise what the piece raised."""
        task, self._task = self._task, None
        if task is not None:
            await task

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            await self.ended()
        elif self._task is not None:  # what ended the block is told
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
