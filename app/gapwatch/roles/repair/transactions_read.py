"""Whether the transactions of a pipeline are counted: ingest does it, and says in the ledger what keeps it from reading."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gapwatch.check_ports import Advice
from gapwatch.model.pipeline import PipelineSpec
from gapwatch.roles.board import Facts


class TransactionsRead:
    """Implements :class:`gapwatch.ports.Preflight`: it could not look for as long as ingest could not read.

    ``recall`` returns a fact of the ledger.
    """

    name = "transactions"

    def __init__(self, pipeline: PipelineSpec, recall: Callable[[str], Mapping[str, Any] | None]) -> None:
        self._pipeline = pipeline
        self._recall = recall

    async def check(self) -> Sequence[Advice]:
        topic = self._pipeline.source.transactions
        unread = await asyncio.to_thread(self._recall, Facts.transactions_unread(topic)) if topic else None
        if unread is None:
            return []
        message = f"The transactions of {topic} are not counted: {unread['why']}"
        return [Advice(level="unknown", subject=f"{self._pipeline.id}.source", message=message, remedy=unread["remedy"])]

    async def watch(self) -> Sequence[Advice]:
        return await self.check()

    async def close(self) -> None: ...
