"""Several tables read as one source: shards, or partitions that publish each for itself."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from msgspec import structs

from gapwatch.core.mapping import CompiledMapping
from gapwatch.model.pipeline import PipelineSpec
from gapwatch.model.stream import Side
from gapwatch.ports import ABSENT, Clock, ContentChunk, DatasetInfo, Key, KeyChunk, Read, ScanChunk, StoredRecord, Unread
from gapwatch_connectors.postgres.connection import Connections
from gapwatch_connectors.postgres.reader import PostgresReader

SNAPSHOT = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"


class PostgresTables:
    """Implements :class:`gapwatch.ports.DatasetReader` for a source with several tables of one store.

    Each has its own key range: a scan reads one after the other, so that its keys do not come in order. A cursor is the number of
    a table and the cursor there.
    """

    def __init__(self, pipeline: PipelineSpec, url: str, *, clock: Clock | None = None) -> None:
        self._connections = Connections(pipeline.source.store, url)
        self._names = tuple(one.table for one in pipeline.source.tables)
        self._readers = tuple(PostgresReader(one, url, clock=clock, connections=self._connections) for one in pipeline.by_table())

    async def in_key_order(self) -> bool:
        return False

    async def ping(self) -> None:
        await self._readers[0].ping()

    async def clock_offset_ms(self) -> int:
        return await self._readers[0].clock_offset_ms()

    async def close(self) -> None:
        await self._connections.close()

    async def describe(self) -> DatasetInfo:
        """Return the identities of all; of columns and keys, what the first one says."""
        found = [await reader.describe() for reader in self._readers]
        return replace(found[0], identity=_joined([info.identity for info in found]))

    async def fetch(self, keys: Collection[Key]) -> Mapping[Key, Read | tuple[StoredRecord, ...]]:
        """Read all tables in one snapshot: a row that moves from one to another is seen once."""
        if not keys:
            return {}
        found = []
        async with self._connections.connection() as connection, connection.transaction():
            await connection.execute(SNAPSHOT)
            for name, reader in zip(self._names, self._readers, strict=True):
                found.append(_named(name, await reader.fetch_on(connection, keys)))
        return {key: _merged([of_table[key] for of_table in found]) for key in keys}

    async def scan(
        self,
        *,
        content: bool,
        cursor: Any = None,
        lower: Key | None = None,
        upper: Key | None = None,
        chunk: int = 10_000,
    ) -> AsyncIterator[ScanChunk]:
        identities = await self._identities()
        first, after = cursor or (0, None)
        for number in range(first, len(self._readers)):
            scan = self._readers[number].scan(content=content, cursor=after, lower=lower, upper=upper, chunk=chunk)
            async for found in scan:
                yield self._placed(found, number, identities)
                if not found.complete:
                    return
            after = None

    async def scan_keys(
        self, *, lower: Key | None = None, upper: Key | None = None, chunk: int = 50_000
    ) -> AsyncIterator[KeyChunk]:
        identities = await self._identities()
        for number, reader in enumerate(self._readers):
            async for found in reader.scan_keys(lower=lower, upper=upper, chunk=chunk):
                yield replace(found, identity=_joined(identities, number, found.identity))
                if not found.complete:
                    return

    async def scan_contents(
        self, mapping: CompiledMapping, side: Side, *, lower: Key | None = None, upper: Key | None = None, chunk: int = 5_000
    ) -> AsyncGenerator[ContentChunk]:
        identities = await self._identities()
        for number, reader in enumerate(self._readers):
            async for found in reader.scan_contents(mapping, side, lower=lower, upper=upper, chunk=chunk):
                yield replace(found, keys=replace(found.keys, identity=_joined(identities, number, found.keys.identity)))
                if not found.keys.complete:
                    return

    async def scan_changed(self, since: datetime, *, cursor: Any = None, chunk: int = 2_000) -> AsyncIterator[ScanChunk]:
        identities = await self._identities()
        first, after = cursor or (0, None)
        for number in range(first, len(self._readers)):
            async for found in self._readers[number].scan_changed(since, cursor=after, chunk=chunk):
                yield self._placed(found, number, identities)
                if not found.complete:
                    return
            after = None

    def _placed(self, found: ScanChunk, number: int, identities: Sequence[str]) -> ScanChunk:
        records = [structs.replace(record, table=self._names[number]) for record in found.records]
        identity = _joined(identities, number, found.identity)
        return replace(found, records=records, cursor=[number, found.cursor], identity=identity)

    async def _identities(self) -> list[str]:
        return [(await reader.describe()).identity for reader in self._readers]

    async def is_empty(self) -> bool:
        for reader in self._readers:
            if not await reader.is_empty():
                return False
        return True

    async def estimate(self) -> int:
        return sum([await reader.estimate() for reader in self._readers])


def _joined(identities: Sequence[str], number: int = -1, now: str = "") -> str:
    """Return the identities as one, with that of table `number` as it was found now: it changes when any of them does."""
    return " ".join(now if place == number else known for place, known in enumerate(identities))


def _named(table: str, found: Mapping[Key, Read | tuple[StoredRecord, ...]]) -> dict[Key, list[StoredRecord] | Unread]:
    named: dict[Key, list[StoredRecord] | Unread] = {}
    for key, read in found.items():
        if isinstance(read, Unread):
            named[key] = read
            continue
        records = read if isinstance(read, tuple) else (read,)
        named[key] = [structs.replace(record, table=table) for record in records if isinstance(record, StoredRecord)]
    return named


def _merged(found: Sequence[list[StoredRecord] | Unread]) -> Read | tuple[StoredRecord, ...]:
    """Return what all tables together hold of a key; what one of them could not say is not known."""
    records: list[StoredRecord] = []
    for read in found:
        if isinstance(read, Unread):
            return read
        records += read
    if not records:
        return ABSENT
    return records[0] if len(records) == 1 else tuple(records)
