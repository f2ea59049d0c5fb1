"""Both sides of a sweep, read once and at the same time: keys to read again come out as they are found.

Where keys have one order on both engines, blocks are compared as they come, and a sweep may go on from a mark. Where they do not
(or a side turns out not to keep to it), keys are spread over hash buckets and compared at the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Final

from gapwatch.core.sweep import Mark
from gapwatch.core.sweep_buckets import block_of_bulk, blocks_of, blocks_of_texts
from gapwatch.core.sweep_sets import Array, Differing, KeyForm, OrderedDifference, OutOfOrderError
from gapwatch.errors import StoreError, UsageError
from gapwatch.model.stream import Side
from gapwatch.ports import Clock, ContentChunk, DatasetReader, Key, KeyChunk
from gapwatch.roles.repair.leisure import Leisure, SidePace
from gapwatch.roles.repair.spool import Spool
from gapwatch.roles.stores import PipelineStores
from gapwatch.scans import contents_in

KEYS_PER_CHUNK: Final = 50_000
RECORDS_PER_CHUNK: Final = 5_000
GIVING_WAY: Final = 50  # a sweep with a load reads so many times less at once: a store's others wait for one chunk at most
AT_LEISURE: Final = 5  # one that takes its time reads so many times more again: each read costs a store what some 200 records do
SHOWN_SECONDS: Final = 0.5  # between two looks at how far both sides have come
AHEAD_MAX: Final = 200_000  # keys that the faster side may wait with before it pauses


@dataclass(slots=True)
class SideScan:
    """What one side's scan has shown so far. ``identities``: of the objects that were read."""

    identities: set[str] = field(default_factory=set)
    rows: int = 0
    complete: bool = True
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a step of the scan found, how far both sides were compared (None: that cannot be said yet), and rows read so far."""

    differing: Differing
    mark: Mark | None
    rows: tuple[int, int]
    anew: bool = False  # a side did not keep to the order of keys: what was found so far is found once more


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """A chunk in the layout of the comparison."""

    block: Array | None
    keys: tuple[Key, ...] | list[Key]
    contents: Array | None
    texts: bytes | None = None


class Scanning:
    """One scan of both sides.

    Args:
        stores: The pipeline's stores.
        content: Whether fields are compared too.
        clock: Measures what a chunk took, for its pace.
        leisure: How much of the time a side may be kept busy.
        on_compared: Told of every chunk: side, keys.
        in_order: Whether both sides show their keys in the order of their bytes: only then may ``start`` be given.
        start: The mark to go on from; its counts and identities were those of an earlier worker.
        lower: Where the range begins; None: at the first key.
        upper: The first key behind the range; None: there is none.
    """

    def __init__(
        self,
        stores: PipelineStores,
        *,
        content: bool,
        clock: Clock,
        leisure: Leisure,
        on_compared: Callable[[str, int], None],
        in_order: bool,
        start: Mark | None = None,
        identities: Mapping[str, str] | None = None,
        lower: Key | None = None,
        upper: Key | None = None,
    ) -> None:
        self._stores = stores
        self._content = content
        self._clock = clock
        self.paces = {side: SidePace(leisure, clock) for side in Side}
        self._leisure = leisure
        self._on_compared = on_compared
        self._in_order = in_order
        self._start = start
        self._lower = lower
        self._upper = upper
        self._form = KeyForm(stores.codec)
        self._before = identities or {}
        self.sides = self._fresh(start)

    def _fresh(self, start: Mark | None) -> dict[Side, SideScan]:
        sides = {side: SideScan() for side in Side}
        for side, scan in sides.items():
            if start is not None:
                scan.rows = start.counts[side]
                scan.identities |= {self._before[side.name.lower()]} if side.name.lower() in self._before else set()
        return sides

    @property
    def identities(self) -> dict[str, str]:
        """The object that each side's scan read, where it was one."""
        return {side.name.lower(): next(iter(scan.identities)) for side, scan in self.sides.items() if len(scan.identities) == 1}

    async def steps(self) -> AsyncIterator[Found]:
        """Read to the end. Raises StoreError where a store cannot even be opened; failed pages are in ``sides``."""
        if self._in_order:
            try:
                async for found in self._ordered():
                    yield found
            except OutOfOrderError:
                self._start = None
                self.sides = self._fresh(None)
                yield Found(differing=Differing(), mark=None, rows=self._rows, anew=True)
            else:
                return
        async for found in self._bucketed():
            yield found

    async def _ordered(self) -> AsyncIterator[Found]:
        difference = OrderedDifference(self._form, self._equal)
        base = self._start.counts if self._start is not None else (0, 0)
        running = {side: self._chunks(side, ordered=True) for side in Side}
        try:
            while running:
                turns = list(running)
                if len(turns) == 2 and difference.held > AHEAD_MAX:
                    turns = [difference.behind()]
                pieces = await asyncio.gather(*(anext(running[side], None) for side in turns))
                for side, piece in zip(turns, pieces, strict=True):
                    if piece is None:
                        if not self.sides[side].complete:
                            return  # nothing is left to compare the rest of the other side with
                        del running[side]
                        differing = difference.end(side)
                    else:
                        block = piece.block if piece.block is not None else self._form.block(piece.keys)
                        differing = difference.add(side, block, piece.contents)
                    mark = difference.mark()
                    if mark is not None:
                        mark = Mark(key=mark.key, counts=(base[0] + mark.counts[0], base[1] + mark.counts[1]))
                    yield Found(differing=differing, mark=mark, rows=self._rows)
        finally:
            for iterator in running.values():
                await iterator.aclose()

    async def _bucketed(self) -> AsyncIterator[Found]:
        with Spool(self._form, self._equal) as spool:
            reading = {asyncio.create_task(self._collect(side, spool)) for side in Side}
            try:
                while reading:
                    done, reading = await asyncio.wait(reading, timeout=SHOWN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()
                    yield Found(differing=Differing(), mark=None, rows=self._rows)
            finally:
                for task in reading:
                    task.cancel()
                await asyncio.gather(*reading, return_exceptions=True)
            buckets = spool.differences()
            while (differing := await asyncio.to_thread(next, buckets, None)) is not None:
                yield Found(differing=self._founded(differing), mark=None, rows=self._rows)

    def _founded(self, differing: Differing) -> Differing:
        """Return it without the keys that one side seems to lack because it was not read to its end."""
        source, target = (self.sides[side].complete for side in (Side.EXPECTED, Side.OBSERVED))
        return replace(
            differing,
            source_only=differing.source_only if target else [],
            target_only=differing.target_only if source else [],
        )

    async def _collect(self, side: Side, spool: Spool) -> None:
        """Put one side's keys into the buckets, at the side's own pace."""
        async with aclosing(self._chunks(side, ordered=False)) as pieces:
            async for piece in pieces:
                await asyncio.to_thread(self._put, spool, side, piece)

    def _put(self, spool: Spool, side: Side, piece: _Piece) -> None:
        if piece.block is not None:
            blocks = [block_of_bulk(piece.block)]
        elif piece.texts is not None:
            blocks = blocks_of_texts(piece.texts)
        else:
            blocks = blocks_of(self._form, piece.keys)
        spool.add(side, blocks, piece.contents)

    @property
    def _rows(self) -> tuple[int, int]:
        return self.sides[Side.EXPECTED].rows, self.sides[Side.OBSERVED].rows

    async def _chunks(self, side: Side, *, ordered: bool) -> AsyncGenerator[_Piece]:
        """Read one side, chunk by chunk, with a pause after each as long as its load asks for."""
        reader = self._stores.source if side is Side.EXPECTED else self._stores.target
        lower = self._start.key if ordered and self._start is not None else self._lower
        scan = self.sides[side]
        part = 1 if self._leisure.most >= 1 else GIVING_WAY if self._leisure.hurried else GIVING_WAY // AT_LEISURE
        source: AsyncIterator[ContentChunk] | AsyncIterator[KeyChunk]
        if self._content:
            mapping = self._stores.mapping
            source = contents_in(reader, mapping, side, lower=lower, upper=self._upper, chunk=RECORDS_PER_CHUNK // part)
        else:
            source = reader.scan_keys(lower=lower, upper=self._upper, chunk=KEYS_PER_CHUNK // part)
        iterator = aiter(source)
        try:
            while True:
                began = self._clock.monotonic()
                found: KeyChunk | ContentChunk | None = await anext(iterator, None)  # type: ignore[arg-type]
                if found is None:
                    return
                chunk, contents = (found, None) if isinstance(found, KeyChunk) else (found.keys, found.contents)
                piece = _Piece(block=chunk.block, texts=chunk.texts, keys=list(chunk.keys), contents=contents)
                rows = len(chunk)
                scan.identities.add(chunk.identity)
                scan.rows += rows
                if not chunk.complete:
                    scan.complete, scan.reason = False, chunk.reason
                self._on_compared(side.name.lower(), rows)
                took = self._clock.monotonic() - began  # what comes between two chunks is not the store's work
                yield piece
                await self.paces[side].rest(took, rows)
        finally:
            await iterator.aclose()  # type: ignore[attr-defined]

    def _equal(self, source: tuple[bytes, tuple[str | None, ...]], target: tuple[bytes, tuple[str | None, ...]]) -> bool:
        return source[0] == target[0] and self._stores.mapping.values_agree(source[1], target[1])


async def in_one_order(stores: PipelineStores) -> bool:
    """Whether both stores hand keys over in the order of their bytes: then a range is the same keys on both.

    Raises StoreError.
    """
    if not KeyForm(stores.codec).ordered:
        return False
    return await stores.source.in_key_order() and await stores.target.in_key_order()


async def refuse_keyless(stores: PipelineStores) -> None:
    """Raise UsageError where nothing keeps a second row with a key out of the source: one row would hide the other.

    Raises StoreError.
    """
    if (await stores.source.describe()).unique == ():
        raise UsageError(
            f"{stores.spec.source.table} has no primary key and no unique index: several rows could be one key.",
            remedy="Add a primary key, or a unique index on the pipeline's key.",
        )


async def estimate_of(reader: DatasetReader) -> int:
    try:
        return await reader.estimate()
    except StoreError:
        return 0  # of no consequence: a bar without a measure
