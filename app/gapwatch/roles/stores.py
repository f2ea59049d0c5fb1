"""What a role needs to read and write one pipeline's two stores; ``wiring`` makes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from gapwatch.core.keys import KeyCodec
from gapwatch.core.mapping import CompiledMapping
from gapwatch.model.pipeline import PipelineSpec
from gapwatch.ports import DatasetReader, TargetWriter


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
