"""Whether the clocks of a pipeline's stores go with this machine's: times of writes are theirs, grace is counted by ours."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from gapwatch.check_ports import Advice
from gapwatch.errors import StoreError
from gapwatch.model.gap import Finding
from gapwatch.model.pipeline import PipelineSpec
from gapwatch.ports import DatasetReader
from gapwatch.roles.stores import PipelineStores, StoreAnswers

TRIES = 3  # a slow answer looks like a wrong clock: the smallest of so many offsets counts
SHARED_SECONDS = 2.5  # how long a store's clock, measured for one pipeline, is measured for all
REMEDY = "Let both machines follow a time server; until then every gap is called by that much later."


class StoreClocks:
    """Implements :class:`gapwatch.ports.Preflight` for the clocks of one pipeline's stores."""

    def __init__(
        self,
        pipeline: PipelineSpec,
        stores: Callable[[], Awaitable[PipelineStores]],
        *,
        answers: StoreAnswers[int] | None = None,  # shared with other pipelines of the same stores
    ) -> None:
        self._pipeline = pipeline
        self._stores = stores
        self._answers = answers

    @property
    def name(self) -> str:
        return "clocks"

    async def check(self) -> Sequence[Advice]:
        spec = self._pipeline
        stores = await self._stores()
        advice = []
        for side, store, reader in (("source", spec.source.store, stores.source), ("target", spec.target.store, stores.target)):
            measure = partial(self._offset_ms, reader)
            try:
                offset = await (measure() if self._answers is None else self._answers.ask(store, measure, seconds=SHARED_SECONDS))
            except StoreError as error:
                advice.append(self._advice("unknown", side, error.message, error.remedy))
                continue
            if abs(offset) > spec.clock_skew_max_seconds * 1000:
                where = "ahead of" if offset > 0 else "behind"
                message = f"The clock of store {store} is {abs(offset) / 1000:.1f} s {where} ours."
                advice.append(self._advice("warning", side, message, REMEDY))
        return advice

    async def watch(self) -> Sequence[Advice]:
        return await self.check()

    async def close(self) -> None: ...

    def _advice(self, level: str, side: str, message: str, remedy: str) -> Advice:
        subject = f"{self._pipeline.id}.{side}"
        return Advice(level=level, subject=subject, message=message, remedy=remedy, finding=Finding.CLOCK_SKEW.value)

    async def _offset_ms(self, reader: DatasetReader) -> int:
        smallest = await reader.clock_offset_ms()
        for _ in range(1, TRIES):
            if abs(smallest) <= self._pipeline.clock_skew_max_seconds * 1000:
                break
            smallest = min(smallest, await reader.clock_offset_ms(), key=abs)
        return smallest
