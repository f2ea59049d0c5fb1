"""How a scan of one kind is made of another: keys and contents of whole records, for readers that have no faster way."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing

import numpy as np

from gapwatch.core.mapping import CompiledMapping
from gapwatch.core.sweep_contents import Keys, PageContents
from gapwatch.errors import StoreRefused
from gapwatch.model.stream import Side
from gapwatch.ports import ContentChunk, ContentReader, DatasetReader, Key, KeyChunk, KeySampler, ScanChunk


def key_chunk(identity: str, keys: Keys) -> KeyChunk:
    """Return keys as a chunk: a block of whole numbers, or canonical ones."""
    return KeyChunk(identity=identity, block=keys) if isinstance(keys, np.ndarray) else KeyChunk(identity=identity, keys=keys)


def keys_in(chunk: ScanChunk) -> KeyChunk:
    """Return the keys of a chunk of records."""
    keys = [record.key for record in chunk.records]
    return KeyChunk(identity=chunk.identity, keys=keys, complete=chunk.complete, reason=chunk.reason)


async def keys_of(chunks: AsyncIterator[ScanChunk]) -> AsyncGenerator[KeyChunk]:
    """Turn a scan of records into one of keys."""
    async with aclosing(chunks):  # type: ignore[type-var]
        async for chunk in chunks:
            yield keys_in(chunk)


async def contents_of(chunks: AsyncIterator[ScanChunk], contents: PageContents) -> AsyncGenerator[ContentChunk]:
    """Turn a scan of whole records into one of contents."""
    async with aclosing(chunks):  # type: ignore[type-var]
        async for chunk in chunks:
            columns = contents.columns([record.fields for record in chunk.records])
            yield ContentChunk(keys=keys_in(chunk), contents=contents.contents(columns, len(chunk.records)))


def contents_in(
    reader: DatasetReader, mapping: CompiledMapping, side: Side, *, lower: Key | None, upper: Key | None, chunk: int
) -> AsyncGenerator[ContentChunk]:
    """Scan a dataset's contents, as its reader does it best."""
    if isinstance(reader, ContentReader):
        return reader.scan_contents(mapping, side, lower=lower, upper=upper, chunk=chunk)
    rows = reader.scan(content=True, lower=lower, upper=upper, chunk=chunk)
    return contents_of(rows, PageContents(mapping, side))


async def keys_sampled(reader: DatasetReader, count: int) -> Sequence[Key]:
    """Return some keys from all over a dataset; none where its reader cannot show any without reading them all."""
    return await reader.sample_keys(count) if isinstance(reader, KeySampler) else ()


def no_changed_at(store: str, dataset: str) -> StoreRefused:
    """Return the error for a lookback over a dataset whose configuration names no time of the last write."""
    return StoreRefused(
        f"Nobody says when a record of {dataset} was written last.",
        store=store,
        remedy="Name the column, or the field, in changed_at of the pipeline's source or target.",
    )
