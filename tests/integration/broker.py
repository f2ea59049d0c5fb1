"""Waiting for conditions in tests with real parts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from tests.stack import PATIENCE_SECONDS


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 30.0) -> None:
    """Return when the condition holds; TimeoutError long after ``seconds``."""
    async with asyncio.timeout(seconds + PATIENCE_SECONDS):
        while not await condition():  # noqa: ASYNC110 - what it waits for is another process
            await asyncio.sleep(0.02)
