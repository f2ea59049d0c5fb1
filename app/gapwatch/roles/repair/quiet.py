"""Which pipelines are to be left alone now, as the roles ask it all the time: the ledger is asked twice a second at most."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from gapwatch.core.maintenance import quiet_at
from gapwatch.model.pipeline import PipelineSpec
from gapwatch.ports import Clock, Ledger
from gapwatch.roles.board import Facts

FRESH_SECONDS: Final = 0.5


async def never_quiet(_: str) -> bool:
    """Say that a pipeline is never left alone."""
    return False


class QuietTimes:
    def __init__(self, pipelines: Mapping[str, PipelineSpec], ledger: Ledger, clock: Clock) -> None:
        self._pipelines = pipelines
        self._ledger = ledger
        self._clock = clock
        self._paused: Mapping[str, Any] = {}
        self._read_at: float | None = None

    async def is_quiet(self, pipeline: str) -> bool:
        """Whether nothing is opened or repaired now: the pipeline is paused, or in a maintenance window."""
        at = self._clock.monotonic()
        if self._read_at is None or at - self._read_at >= FRESH_SECONDS:
            self._paused = await asyncio.to_thread(self._ledger.facts, Facts.paused(""))
            self._read_at = at
        paused = self._paused.get(Facts.paused(pipeline))
        return quiet_at(self._pipelines[pipeline].maintenance, paused, self._clock.now()) is not None
