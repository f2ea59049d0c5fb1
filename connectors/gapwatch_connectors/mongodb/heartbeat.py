"""Our heartbeat documents: numbered, in a collection of ours that Debezium captures beside the data."""

from __future__ import annotations

from bson import Int64

from gapwatch.core.envelopes import HEARTBEAT_COLLECTION, HEARTBEAT_ID
from gapwatch_connectors.mongodb.connection import Mongo


class MongoHeartbeat:
    """Implements :class:`gapwatch.feed_ports.HeartbeatWriter`. ``sender`` tells several writers' numbers apart.

    One document is replaced again and again: its events have one key, and so one partition and one order, and a replacement
    carries the document of that very write, where an update is looked up later.
    """

    def __init__(self, store: str, url: str, sender: str, database: str) -> None:
        self._mongo = Mongo(store, url)
        self._name = f"{database}.{HEARTBEAT_COLLECTION}"
        self._sender = sender

    async def beat(self, number: int) -> None:
        """Raises StoreRefused where the user may not write there, StoreUnreachable."""
        document = {"_id": HEARTBEAT_ID, "n": Int64(number), "by": self._sender}
        with self._mongo.wrapped():
            await self._mongo.collection(self._name).replace_one({"_id": HEARTBEAT_ID}, document, upsert=True)

    async def close(self) -> None:
        await self._mongo.close()
