"""Our heartbeat messages: numbered, transactional, in the write-ahead log like any write; they need no table and no right."""

from __future__ import annotations

from gapwatch.core.envelopes import message_content
from gapwatch_connectors.postgres.connection import Connections


class PostgresHeartbeat:
    """Implements :class:`gapwatch.feed_ports.HeartbeatWriter`. ``sender`` tells several writers' numbers apart."""

    def __init__(self, store: str, url: str, sender: str) -> None:
        self._connections = Connections(store, url, idle_max=1, read_only=False)
        self._sender = sender

    async def beat(self, number: int) -> None:
        async with self._connections.connection() as connection:
            await connection.execute(
                "SELECT pg_logical_emit_message(true, 'gapwatch', %s)", (message_content(number, self._sender),)
            )

    async def close(self) -> None:
        await self._connections.close()
