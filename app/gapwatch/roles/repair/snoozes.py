"""Ends what was silenced for a while: a snoozed gap whose time is up is open again, and alerts again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, Final

from gapwatch.core import gaps
from gapwatch.model.gap import Gap, State
from gapwatch.model.pipeline import PipelineSpec
from gapwatch.ports import Clock, GapChange, GapFilter, Ledger
from gapwatch.roles.board import Facts
from gapwatch.roles.repair.asking import Asking
from gapwatch.roles.repair.quiet import never_quiet

LOOK_SECONDS: Final = 1.0
OTHERS_SECONDS: Final = 5.0  # how late a snooze may end
BATCH: Final = 200


class SnoozeWatch:
    """Any number of processes may run one: a gap's revision lets one of them end a snooze."""

    def __init__(
        self,
        pipelines: Mapping[str, PipelineSpec],
        ledger: Ledger,
        clock: Clock,
        is_quiet: Callable[[str], Awaitable[bool]] = never_quiet,
    ) -> None:
        self._pipelines = pipelines
        self._ledger = ledger
        self._clock = clock
        self._is_quiet = is_quiet

    async def run(self, stop: asyncio.Event) -> None:
        asking = Asking(self._ledger, self._clock, seconds=OTHERS_SECONDS)
        while not stop.is_set():
            if asking.due():
                await self.step()
            await asking.rest(LOOK_SECONDS, stop)

    async def step(self) -> None:
        """Open what was snoozed until now.

        1. Read the snoozed gaps. 2. Read until when: whoever snoozes writes that first, so that a gap without it has none.
        3. Open, where nobody changed the gap since. 4. Forget the times that are over.
        """
        snoozed = [gap async for gap in self._snoozed()]
        until: Mapping[str, Any] = await asyncio.to_thread(self._ledger.facts, Facts.snoozed(""))
        now = self._clock.now()
        over = {name for name, fact in until.items() if datetime.fromisoformat(fact["until"]) <= now}
        due = [gap for gap in snoozed if Facts.snoozed(gap.id) in over or Facts.snoozed(gap.id) not in until]
        changes = [
            GapChange(gap=gaps.awakened(gap), against=gap.revision, event="reopened")
            for gap in due
            if gap.pipeline in self._pipelines and not await self._is_quiet(gap.pipeline)
        ]
        await asyncio.to_thread(self._ledger.store_gaps, changes)
        kept = {Facts.snoozed(gap.id) for gap in snoozed}  # looked at once more before its time is forgotten
        for name in over - kept:
            await asyncio.to_thread(self._ledger.set_fact, name, None)

    async def _snoozed(self) -> AsyncIterator[Gap]:
        where, cursor = GapFilter(states=(State.SNOOZED.value,)), None
        while True:
            page = await asyncio.to_thread(self._ledger.gaps, where, limit=BATCH, cursor=cursor)
            for gap in page.gaps:
                yield gap
            cursor = page.next_cursor
            if cursor is None:
                return
