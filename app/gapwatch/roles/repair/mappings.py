"""Notices that a pipeline's mapping is not the one it was: digests made before cannot be compared with those made now.

Matching needs no help: a key with digests of both waits for a newer event, or is confirmed. But what is settled was proved by the
old mapping, so that a content sweep is asked for, and the finding stands until one has succeeded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import structlog

from gapwatch.core.gaps import gap_id
from gapwatch.core.upgrade import changes, shortened
from gapwatch.errors import GapwatchError
from gapwatch.model.gap import Finding, FindingRecord
from gapwatch.model.pipeline import PipelineSpec
from gapwatch.ports import Clock, Ledger
from gapwatch.roles.board import Facts
from gapwatch.roles.repair.watcher import FindingBook
from gapwatch.roles.stores import StoreProvider

log = structlog.get_logger(__name__)

AGAIN_SECONDS: Final = 2.0


class MappingWatch:
    def __init__(
        self, pipelines: Mapping[str, PipelineSpec], ledger: Ledger, stores: StoreProvider, clock: Clock, findings: FindingBook
    ) -> None:
        self._waiting = {name for name, spec in pipelines.items() if spec.enabled}
        self._ledger = ledger
        self._stores = stores
        self._clock = clock
        self._findings = findings

    async def run(self, stop: asyncio.Event) -> None:
        """Compare every pipeline's mapping once, as soon as its source can be described."""
        while self._waiting and not stop.is_set():
            for pipeline in sorted(self._waiting):
                try:
                    await self.compare(pipeline)
                except GapwatchError as error:
                    log.warning("mapping_not_compared", pipeline=pipeline, reason=str(error))
                    continue
                self._waiting.discard(pipeline)
            if self._waiting:
                await self._clock.sleep(AGAIN_SECONDS)

    async def compare(self, pipeline: str) -> None:
        """Raise the finding where the mapping changed, and only then remember the new one. The first one is none."""
        mapping = (await self._stores.stores(pipeline)).mapping
        now = {"fingerprint": str(mapping.fingerprint), "layout": mapping.layout}
        before: Mapping[str, Any] | None = await asyncio.to_thread(self._ledger.fact, Facts.mapping(pipeline))
        if before is not None and before["fingerprint"] != now["fingerprint"]:
            said = shortened(changes(before["layout"], mapping.layout))
            await self._findings.raise_(
                _finding(pipeline, said, f"{before['fingerprint']}/{now['fingerprint']}", self._clock.now())
            )
        if before is None or before["fingerprint"] != now["fingerprint"]:
            await asyncio.to_thread(self._ledger.set_fact, Facts.mapping(pipeline), now)


def _finding(pipeline: str, said: str, identity: str, now: datetime) -> FindingRecord:
    return FindingRecord(
        id="changed_" + gap_id(pipeline, identity.encode(), Finding.MAPPING_CHANGED.value).removeprefix("gap_"),
        pipeline=pipeline,
        finding=Finding.MAPPING_CHANGED,
        side="expected",
        feed="",
        first_seen=now,
        last_seen=now,
        message=f"The mapping changed: {said}. What was proved before was proved by the old one.",
        remedy="A content sweep compares everything by the new one; it starts by itself.",
    )
