"""What many tasks ask of the ledger at about the same time, asked once for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from gapwatch.ports import Clock, Lease, Ledger

T = TypeVar("T")
R = TypeVar("R")

TOGETHER_SECONDS = 0.1


class Together(Generic[T, R]):
    """Collects items for a moment and then gives all of them to one call, in a thread.

    Args:
        work: Takes the items and returns one answer for each, in their order. What it raises is raised to all who wait.
        clock: Tells how long the moment is.
        seconds: For how long the first of them waits for others.
    """

    def __init__(self, work: Callable[[Sequence[T]], Sequence[R]], clock: Clock, *, seconds: float = TOGETHER_SECONDS) -> None:
        self._work = work
        self._clock = clock
        self._seconds = seconds
        self._items: list[T] = []
        self._task: asyncio.Task[Sequence[R]] | None = None

    async def ask(self, item: T) -> R:
        """Return the answer for an item; whoever stops waiting leaves the others alone."""
        if self._task is None:
            self._task = asyncio.create_task(self._ask())
            self._task.add_done_callback(_looked_at)
        task, place = self._task, len(self._items)
        self._items.append(item)
        return (await asyncio.shield(task))[place]

    async def _ask(self) -> Sequence[R]:
        await self._clock.sleep(self._seconds)
        items, self._items, self._task = self._items, [], None
        return await asyncio.to_thread(self._work, items)


def _looked_at(task: asyncio.Task[Any]) -> None:
    """Nobody may be left who waits for it; then its failure is nobody's."""
    if not task.cancelled():
        task.exception()


def facts_together(ledger: Ledger, clock: Clock) -> Together[tuple[str, Any], None]:
    """Return what stores small facts: name and value of each. Of one name, the last value stays."""

    def store(facts: Sequence[tuple[str, Any]]) -> Sequence[None]:
        ledger.set_facts(dict(facts))
        return [None] * len(facts)

    return Together(store, clock)


def tokens_together(ledger: Ledger, clock: Clock) -> Together[tuple[str, Any, Lease], bool]:
    """Return what stores positions: name, value and the lease under which; the answer is False where that was lost."""
    return Together(ledger.set_facts_under, clock)


def renewals_together(ledger: Ledger, clock: Clock, *, seconds: float) -> Together[Lease, Lease | None]:
    """Return what renews leases for so long; the answer is None for one that was lost."""

    def renew(leases: Sequence[Lease]) -> Sequence[Lease | None]:
        renewed = {lease.name: lease for lease in ledger.renew_leases(leases, seconds=seconds)}
        return [renewed.get(lease.name) for lease in leases]

    return Together(renew, clock)
