"""What match says: suspects and holes to ``<prefix>.suspects``, status records to ``<prefix>.status``."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec

from gapwatch.kafka.clients import AckedProducer
from gapwatch.model.pipeline import TopicsSpec
from gapwatch.model.suspect import Hole, PartitionStatus, Said

_JSON: Final = msgspec.json.Encoder()


def suspect_record(said: Said) -> tuple[bytes, bytes]:
    """Return key and value on ``suspects``: one key's suspects stay in order; a hole has its id in the key's place."""
    name = said.id.encode() if isinstance(said, Hole) else said.key
    return said.pipeline.encode() + b"\0" + name, _JSON.encode(said)


def status_record(status: PartitionStatus) -> tuple[bytes, bytes]:
    """Return key and value on the compacted ``status``."""
    return f"{status.pipeline}/{status.partition}".encode(), _JSON.encode(status)


class Outlet:
    """Sends, and returns only when the brokers have acknowledged; raises what kept them from it."""

    def __init__(self, producer: AckedProducer, topics: TopicsSpec) -> None:
        self._producer = producer
        self._topics = topics

    async def raise_suspects(self, said: Sequence[Said]) -> None:
        await self._send(self._topics.suspects, [suspect_record(item) for item in said])

    async def show_status(self, statuses: Sequence[PartitionStatus]) -> None:
        await self._send(self._topics.status, [status_record(status) for status in statuses])

    async def _send(self, topic: str, records: Sequence[tuple[bytes, bytes]]) -> None:
        if records:
            await asyncio.gather(*[await self._producer.send(topic, key, value) for key, value in records])
