"""What is asked of brokers that are not ready to answer: played by a broker whose groups have just moved away."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka.protocol.admin import ApiVersionResponse_v0
from aiokafka.protocol.commit import OffsetFetchResponse_v3
from aiokafka.protocol.coordination import FindCoordinatorResponse_v0
from aiokafka.protocol.metadata import MetadataResponse_v1
from aiokafka.protocol.offset import OffsetResponse_v2

from gapwatch.clock import SystemClock
from gapwatch.errors import StoreUnreachable
from gapwatch.kafka.offsets import OffsetReader
from gapwatch.kafka.options import Partition
from gapwatch.model.pipeline import Settings, TopicsSpec

LIST_OFFSETS, METADATA, OFFSET_FETCH, FIND_COORDINATOR, API_VERSIONS = 2, 3, 9, 10, 18
VERSIONS = [(8, 1, 2), (OFFSET_FETCH, 3, 3), (FIND_COORDINATOR, 0, 0), (11, 0, 0), (12, 0, 0), (13, 0, 0), (14, 0, 0)]
VERSIONS += [(LIST_OFFSETS, 2, 2), (METADATA, 1, 1), (API_VERSIONS, 0, 0)]
UNSUPPORTED_VERSION, NOT_COORDINATOR, NOT_LEADER = 35, 16, 6


class MovingBroker:
    """Refuses the first questions because another broker should be asked; then group and log both stand at 7."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.port = 0
        self._connections: set[asyncio.Task[None]] = set()

    def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(asyncio.create_task(self.serve(reader, writer)))

    async def end(self) -> None:
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                (size,) = struct.unpack(">i", await reader.readexactly(4))
                key, version, number = struct.unpack(">hhi", (await reader.readexactly(size))[:8])
                body = struct.pack(">i", number) + self.answer(key, version).encode()
                writer.write(struct.pack(">i", len(body)) + body)
        except (asyncio.IncompleteReadError, ConnectionResetError):
            pass
        finally:
            writer.close()

    def answer(self, key: int, version: int) -> Any:
        if key == API_VERSIONS:
            return ApiVersionResponse_v0(UNSUPPORTED_VERSION if version else 0, VERSIONS)
        if key == METADATA:
            return MetadataResponse_v1([(1, "127.0.0.1", self.port, None)], 1, [(0, "t", False, [(0, 0, 1, [1], [1])])])
        if key == FIND_COORDINATOR:
            return FindCoordinatorResponse_v0(0, 1, "127.0.0.1", self.port)
        refused, self.refusals = self.refusals > 0, max(0, self.refusals - 1)
        if key == LIST_OFFSETS:
            return OffsetResponse_v2(0, [("t", [(0, NOT_LEADER, -1, -1) if refused else (0, 0, -1, 7)])])
        assert key == OFFSET_FETCH, key
        if refused:
            return OffsetFetchResponse_v3(0, [], NOT_COORDINATOR)
        return OffsetFetchResponse_v3(0, [("t", [(0, 7, "", 0)])], 0)


@asynccontextmanager
async def served(broker: MovingBroker) -> AsyncIterator[Settings]:
    server = await asyncio.start_server(broker.connected, "127.0.0.1", 0)
    broker.port = server.sockets[0].getsockname()[1]
    try:
        yield Settings(bootstrap_servers=f"127.0.0.1:{broker.port}", topics=TopicsSpec(prefix="g", partitions=1, replication=1))
    finally:
        await broker.end()
        server.close()


async def test_a_group_that_moves_between_brokers_is_read_later_and_does_not_end_the_process() -> None:
    """librdkafka's admin client would: SIGSEGV in ``rd_kafka_cgrp_op``."""
    broker = MovingBroker(refusals=1)
    async with served(broker) as settings:
        reader = OffsetReader(settings, SystemClock())
        with pytest.raises(StoreUnreachable, match="group sink"):
            await reader.delivery("sink", [Partition("t", 0)])
        found = await reader.delivery("sink", [Partition("t", 0)])
        await reader.close()
    assert found.positions == {Partition("t", 0): 7}


async def test_a_log_whose_leader_was_just_elected_is_asked_again() -> None:
    async with served(MovingBroker(refusals=2)) as settings:
        found = await OffsetReader(settings, SystemClock()).log_ends([Partition("t", 0)])
    assert found.ends == {Partition("t", 0): 7}
