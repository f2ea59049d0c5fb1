"""Counts what is asked of the stores, by store and purpose: decorators over the ports."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

from gapwatch.core.mapping import CompiledMapping
from gapwatch.model.pipeline import FieldSpec
from gapwatch.model.stream import Side
from gapwatch.ports import (
    ContentChunk,
    DatasetInfo,
    DatasetReader,
    Key,
    KeyChunk,
    Read,
    ScanChunk,
    StoredRecord,
    TargetWriter,
    WriteItem,
    WriteResult,
)
from gapwatch.roles.stores import PipelineStores, StoreProvider
from gapwatch.scans import contents_in, keys_sampled

Count = Callable[[str, str, str], None]  # store, purpose, pipeline


class CountedStores:
    """Implements :class:`gapwatch.roles.stores.StoreProvider` for one purpose: every request to a store is counted once."""

    def __init__(self, stores: StoreProvider, purpose: str, count: Count) -> None:
        self._stores = stores
        self._purpose = purpose
        self._count = count
        self._made: dict[str, tuple[PipelineStores, PipelineStores]] = {}

    async def stores(self, pipeline: str) -> PipelineStores:
        plain = await self._stores.stores(pipeline)
        known = self._made.get(pipeline)
        if known is None or known[0] is not plain:
            source = partial(self._count, plain.spec.source.store, self._purpose, pipeline)
            target = partial(self._count, plain.spec.target.store, self._purpose, pipeline)
            counted = replace(
                plain,
                source=CountedReader(plain.source, source),
                target=CountedReader(plain.target, target),
                writer=CountedWriter(plain.writer, target),
            )
            known = self._made[pipeline] = (plain, counted)
        return known[1]


class CountedReader:
    """Implements :class:`gapwatch.ports.DatasetReader`. A scan counts once a chunk."""

    def __init__(self, reader: DatasetReader, count: Callable[[], None]) -> None:
        self._reader = reader
        self._count = count

    async def in_key_order(self) -> bool:
        self._count()
        return await self._reader.in_key_order()

    async def ping(self) -> None:
        self._count()
        await self._reader.ping()

    async def clock_offset_ms(self) -> int:
        self._count()
        return await self._reader.clock_offset_ms()

    async def close(self) -> None:
        await self._reader.close()

    async def describe(self) -> DatasetInfo:
        self._count()
        return await self._reader.describe()

    async def fetch(self, keys: Collection[Key]) -> Mapping[Key, Read | tuple[StoredRecord, ...]]:
        self._count()
        return await self._reader.fetch(keys)

    async def scan(
        self, *, content: bool, cursor: Any = None, lower: Key | None = None, upper: Key | None = None, chunk: int = 10_000
    ) -> AsyncIterator[ScanChunk]:
        chunks = self._reader.scan(content=content, cursor=cursor, lower=lower, upper=upper, chunk=chunk)
        async with aclosing(chunks):  # type: ignore[type-var]
            async for found in chunks:
                self._count()
                yield found

    async def scan_changed(self, since: datetime, *, cursor: Any = None, chunk: int = 2_000) -> AsyncIterator[ScanChunk]:
        chunks = self._reader.scan_changed(since, cursor=cursor, chunk=chunk)
        async with aclosing(chunks):  # type: ignore[type-var]
            async for found in chunks:
                self._count()
                yield found

    async def scan_keys(
        self, *, lower: Key | None = None, upper: Key | None = None, chunk: int = 50_000
    ) -> AsyncIterator[KeyChunk]:
        chunks = self._reader.scan_keys(lower=lower, upper=upper, chunk=chunk)
        async with aclosing(chunks):  # type: ignore[type-var]
            async for found in chunks:
                self._count()
                yield found

    async def scan_contents(
        self, mapping: CompiledMapping, side: Side, *, lower: Key | None = None, upper: Key | None = None, chunk: int = 5_000
    ) -> AsyncGenerator[ContentChunk]:
        async with aclosing(contents_in(self._reader, mapping, side, lower=lower, upper=upper, chunk=chunk)) as chunks:
            async for found in chunks:
                self._count()
                yield found

    async def sample_keys(self, count: int) -> Sequence[Key]:
        self._count()
        return await keys_sampled(self._reader, count)

    async def is_empty(self) -> bool:
        self._count()
        return await self._reader.is_empty()

    async def estimate(self) -> int:
        self._count()
        return await self._reader.estimate()


class CountedWriter:
    """Implements :class:`gapwatch.ports.TargetWriter`."""

    def __init__(self, writer: TargetWriter, count: Callable[[], None]) -> None:
        self._writer = writer
        self._count = count

    async def write(self, items: Sequence[WriteItem]) -> Sequence[WriteResult]:
        self._count()
        return await self._writer.write(items)

    def document(self, key: Key, row: StoredRecord, fields: Sequence[FieldSpec]) -> Mapping[str, Any]:
        return self._writer.document(key, row, fields)

    def kept(self, document: StoredRecord) -> str:
        return self._writer.kept(document)

    async def close(self) -> None:
        await self._writer.close()
