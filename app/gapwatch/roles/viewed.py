"""A dataset as a pipeline's rules see it (decision 0025): what does not count is absent, whoever reads and however.

The store hands over every record; which of them count is said here, by ``core/counting``, from the fields alone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from msgspec import structs

from gapwatch.core.counting import Age, Counting
from gapwatch.model.stream import Side
from gapwatch.ports import Absent, Clock, DatasetInfo, DatasetReader, Key, KeyChunk, Read, ScanChunk, StoredRecord
from gapwatch.scans import keys_of, keys_sampled

OUTSIDE: Final = Absent("its row does not satisfy source.where")
SOFT_DELETED: Final = Absent("its document is marked as deleted (target.deleted_when)")
LEFT: Final = "its row does not satisfy source.where, and on_leave is ignore"
KEYS_MAX: Final = 10_000  # of one chunk of a scan that reads more than keys


def viewed(reader: DatasetReader, counting: Counting, side: Side, clock: Clock) -> DatasetReader:
    """Return the reader as the rules see its dataset; the reader itself where there are none for its side."""
    return ViewedReader(reader, counting, side, clock) if counting.filters(side) else reader


class ViewedReader:
    """Implements :class:`gapwatch.ports.DatasetReader`.

    A look-up shows what is expired: whoever judges the key decides. Scans leave it out on both sides, so that a source that
    keeps its rows is not read anew, row by row, for what its target has long let go.
    """

    def __init__(self, reader: DatasetReader, counting: Counting, side: Side, clock: Clock) -> None:
        self._reader = reader
        self._counting = counting
        self._side = side
        self._clock = clock
        self._absent = OUTSIDE if side is Side.EXPECTED else SOFT_DELETED
        self._ignores = side is Side.EXPECTED and counting.ignores_leavers

    async def in_key_order(self) -> bool:
        return await self._reader.in_key_order()

    async def ping(self) -> None:
        await self._reader.ping()

    async def clock_offset_ms(self) -> int:
        return await self._reader.clock_offset_ms()

    async def close(self) -> None:
        await self._reader.close()

    async def describe(self) -> DatasetInfo:
        return await self._reader.describe()

    async def fetch(self, keys: Collection[Key]) -> Mapping[Key, Read | tuple[StoredRecord, ...]]:
        found = await self._reader.fetch(keys)
        return {key: self._seen(read) for key, read in found.items()}

    def _seen(self, read: Read | tuple[StoredRecord, ...]) -> Read | tuple[StoredRecord, ...]:
        if isinstance(read, StoredRecord):
            return read if self._counts(read) else self._uncounted(read)
        if not isinstance(read, tuple):
            return read
        counted = tuple(record for record in read if self._counts(record))
        if not counted:
            return self._uncounted(read[0])
        return counted if len(counted) > 1 else counted[0]

    def _uncounted(self, record: StoredRecord) -> Read:
        return structs.replace(record, ignored=LEFT) if self._ignores else self._absent

    def _counts(self, record: StoredRecord) -> bool:
        return self._counting.counts(self._side, record.fields)

    async def scan(
        self, *, content: bool, cursor: Any = None, lower: Key | None = None, upper: Key | None = None, chunk: int = 10_000
    ) -> AsyncIterator[ScanChunk]:
        chunks = self._reader.scan(content=content, cursor=cursor, lower=lower, upper=upper, chunk=chunk)
        async with aclosing(chunks):  # type: ignore[type-var]
            async for found in chunks:
                now = self._clock.now_ms()
                yield replace(found, records=[record for record in found.records if self._compared(record, now)])

    def _compared(self, record: StoredRecord, now_ms: int) -> bool:
        expired = self._counting.age(self._side, record.fields, now_ms) is Age.EXPIRED
        return not expired and self._counts(record)

    def scan_keys(self, *, lower: Key | None = None, upper: Key | None = None, chunk: int = 50_000) -> AsyncIterator[KeyChunk]:
        return keys_of(self.scan(content=False, lower=lower, upper=upper, chunk=min(chunk, KEYS_MAX)))

    def scan_changed(self, since: datetime, *, cursor: Any = None, chunk: int = 2_000) -> AsyncIterator[ScanChunk]:
        """Read all that changed: also what left the filter did, and its document has to be looked for."""
        return self._reader.scan_changed(since, cursor=cursor, chunk=chunk)

    async def sample_keys(self, count: int) -> Sequence[Key]:
        """Return keys of the whole dataset: what a sample is for does not ask whether they count."""
        return await keys_sampled(self._reader, count)

    async def is_empty(self) -> bool:
        """Prove that nothing counts: the dataset is empty, or a whole scan of it shows nothing that does."""
        if await self._reader.is_empty():
            return True
        chunks = self.scan(content=False)
        async with aclosing(chunks):  # type: ignore[type-var]
            async for found in chunks:
                if found.records or not found.complete:
                    return False
        return True

    async def estimate(self) -> int:
        return await self._reader.estimate()
