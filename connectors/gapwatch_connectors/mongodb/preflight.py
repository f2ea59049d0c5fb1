"""What of a MongoDB target would lose data or not work."""

from __future__ import annotations

from collections.abc import Sequence

from gapwatch.errors import StoreError, StoreRefused
from gapwatch.model.pipeline import FeedKind, PipelineSpec
from gapwatch.ports import Advice
from gapwatch_connectors.mongodb.connection import client, collection, wrapped
from gapwatch_connectors.mongodb.feed import MongoChangeStream
from gapwatch_connectors.mongodb.reader import MongoReader


class MongoPreflight:
    """Implements :class:`gapwatch.ports.Preflight` for one pipeline's target."""

    def __init__(self, pipeline: PipelineSpec, url: str) -> None:
        self._pipeline = pipeline
        self._url = url
        self._reader = MongoReader(pipeline, url)
        self._client = client(url)
        self._subject = f"{pipeline.id}.target"

    async def check(self) -> Sequence[Advice]:
        advice: list[Advice] = []
        try:
            await self._reader.ping()
            info = await self._reader.describe()
        except StoreRefused as error:
            return [self._advice("error", error.message, error.remedy)]
        if self._pipeline.target.feed.kind is FeedKind.CHANGE_STREAM:
            advice += await self._stream()
            if not info.post_images:
                message = (
                    f"{self._pipeline.target.collection} has no post-images: updates are looked up, and may show a later state."
                )
                remedy = "collMod with changeStreamPreAndPostImages: { enabled: true } makes them exact."
                advice.append(self._advice("warning", message, remedy))
        advice += await self._key()
        return advice or [self._advice("ok", f"{self._pipeline.target.collection} can be read.")]

    async def close(self) -> None:
        await self._reader.close()
        await self._client.close()

    def _advice(self, level: str, message: str, remedy: str = "", finding: str = "") -> Advice:
        return Advice(level=level, subject=self._subject, message=message, remedy=remedy, finding=finding)

    async def _stream(self) -> list[Advice]:
        """Open the stream and write one marker: both rights are needed."""
        store = self._pipeline.target.store
        try:
            with wrapped(store):
                async with await collection(self._client, self._pipeline.target.collection).watch(max_await_time_ms=1):
                    pass
        except StoreError as error:
            remedy = "A change stream needs a replica set, and find and changeStream on the collection."
            return [self._advice("error", error.message, remedy)]
        stream = MongoChangeStream(self._pipeline, self._url)
        try:
            await stream.mark()
        except StoreRefused as error:
            return [self._advice("error", error.message, error.remedy)]
        finally:
            await stream.close()
        return []

    async def _key(self) -> list[Advice]:
        """Read a few documents: their keys must fit the codec."""
        async for chunk in self._reader.scan(content=False, chunk=10):
            if not chunk.complete:
                remedy = "Correct the key of the pipeline's target: path and type; keys are never coerced."
                return [self._advice("error", "The first documents could not be read with the pipeline's key.", remedy)]
            break
        return []
