"""What several ask at about the same time, asked in one question; nobody's answer depends on who else asks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Generic, TypeVar

from gapwatch.errors import StoreError
from gapwatch.ports import Clock

Q = TypeVar("Q")
A = TypeVar("A")

GATHER_SECONDS: Final = 0.01  # for how long the first waits for others
PATIENCE_SECONDS: Final = 2.0  # a common question that takes longer waits for something that is not everybody's
APART_SECONDS: Final = 60.0  # after a common question that was refused, or slow: for so long everybody asks by himself


class Jointly(Generic[Q, A]):
    """Takes the questions that wait at the same time to one call, which begins after all of them were asked.

    So an answer is never older than the question. What refuses or delays one question (a table that is locked, a right that is
    missing) must not do so to the others: then each is asked by itself, at once and for a while.

    Args:
        work: Takes the questions in their order; what it returns holds what each of them asked for.
        clock: Tells when to try again.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Q]], Awaitable[A]],
        clock: Clock,
        *,
        gather: float = GATHER_SECONDS,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self._work = work
        self._clock = clock
        self._gather_seconds = gather
        self._patience_seconds = patience
        self._questions: list[Q] = []
        self._next: asyncio.Task[A] | None = None  # takes questions still
        self._running: set[asyncio.Task[A]] = set()
        self._apart_until = float("-inf")

    async def ask(self, question: Q, alone: Callable[[], Awaitable[A]]) -> A:
        """Return the answer to all, or that of `alone`, with its errors."""
        if self._clock.monotonic() >= self._apart_until:
            try:
                async with asyncio.timeout(self._patience_seconds):
                    return await asyncio.shield(self._join(question))
            except (StoreError, TimeoutError):
                self._apart_until = self._clock.monotonic() + APART_SECONDS
        return await alone()

    def close(self) -> None:
        """End what is under way; who waits for it is cancelled."""
        for task in self._running:
            task.cancel()

    def _join(self, question: Q) -> asyncio.Task[A]:
        if self._next is None:
            self._next = asyncio.create_task(self._answer())
            self._running.add(self._next)
            self._next.add_done_callback(self._ended)
        self._questions.append(question)
        return self._next

    async def _answer(self) -> A:
        await self._clock.sleep(self._gather_seconds)
        questions, self._questions, self._next = self._questions, [], None
        return await self._work(questions)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        """Nobody may be left who waits for it; then its failure is nobody's."""
        self._running.discard(task)
        if task is self._next:  # it was cancelled before it began
            self._questions, self._next = [], None
        if not task.cancelled():
            task.exception()
