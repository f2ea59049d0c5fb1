"""What a role needs to read and write one pipeline's two stores; ``wiring`` makes them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from gapwatch.core.keys import KeyCodec
from gapwatch.core.mapping import CompiledMapping
from gapwatch.model.pipeline import PipelineSpec
from gapwatch.ports import Clock, DatasetReader, TargetWriter

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineStores:
    """``spec`` is resolved: every field has a type. ``mapping`` and ``codec`` are compiled from it."""

    spec: PipelineSpec
    mapping: CompiledMapping
    codec: KeyCodec
    source: DatasetReader
    target: DatasetReader
    writer: TargetWriter


class StoreProvider(Protocol):
    """Hands out the stores of a pipeline, made and resolved at first use."""

    async def stores(self, pipeline: str) -> PipelineStores:
        """Return them; raises StoreUnreachable while a store does not answer, StoreRefused when it says no."""


class StoreAnswers(Generic[T]):
    """What a store says to all of its pipelines alike, asked once for those that want it at about the same time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._answers: dict[str, tuple[float, asyncio.Task[T]]] = {}  # by store: when it was asked

    async def ask(self, store: str, ask: Callable[[], Awaitable[T]], *, seconds: float) -> T:
        """Return what was asked at most so long ago, by whichever pipeline; its failure is that of all who wait for it."""
        now = self._clock.monotonic()
        asked, task = self._answers.get(store, (float("-inf"), None))
        if task is None or now - asked > seconds or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = asyncio.create_task(_answer(ask))
            task.add_done_callback(_looked_at)
            self._answers[store] = (now, task)
        return await asyncio.shield(task)

    def forget_but(self, store: str) -> None:
        """Forget all answers but one's."""
        self._answers = {name: answer for name, answer in self._answers.items() if name == store}


async def _answer(ask: Callable[[], Awaitable[T]]) -> T:
    return await ask()


def _looked_at(task: asyncio.Task[T]) -> None:
    """Nobody may be left who waits for it; then its failure is nobody's."""
    if not task.cancelled():
        task.exception()
