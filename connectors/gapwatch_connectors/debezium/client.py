"""Kafka Connect's REST interface, read only."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from gapwatch.errors import StoreRefused, StoreUnreachable

TIMEOUT_SECONDS = 5
STORE = "connect"


@dataclass(frozen=True, slots=True, kw_only=True)
class Connector:
    """One connector: its configuration, its state, its tasks' states, and its own or the first failed task's reason."""

    name: str
    config: Mapping[str, str]
    state: str
    task_states: tuple[str, ...]
    trace: str = ""

    @property
    def captures(self) -> str:
        return self.config.get("topic.prefix", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    at: float
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Task[list[Connector]]

    def holds(self, loop: asyncio.AbstractEventLoop, seconds: float) -> bool:
        failed = self.answer.done() and (self.answer.cancelled() or self.answer.exception() is not None)
        return self.loop is loop and loop.time() - self.at <= seconds and not failed


_asked: dict[str, _Asked] = {}  # by URL: what was asked of it last


class ConnectRest:
    """Raises StoreUnreachable when the worker does not answer, StoreRefused when it says no.

    ``shared_seconds``: how old the answer to a question of another one in this process may be, instead of asking again.
    """

    def __init__(self, url: str, *, shared_seconds: float = 0.0) -> None:
        self._url = url.rstrip("/")
        self._shared_seconds = shared_seconds

    async def connectors(self) -> list[Connector]:
        """Return all connectors with state and configuration, in one request."""
        if not self._shared_seconds:
            return await self._connectors()
        loop, asked = asyncio.get_running_loop(), _asked.get(self._url)
        if asked is None or not asked.holds(loop, self._shared_seconds):
            asked = _asked[self._url] = _Asked(at=loop.time(), loop=loop, answer=loop.create_task(self._connectors()))
        return await asyncio.shield(asked.answer)

    async def _connectors(self) -> list[Connector]:
        answer = await self._get("/connectors?expand=status&expand=info")
        found = []
        for name, body in answer.items():
            status, info = body.get("status", {}), body.get("info", {})
            tasks, own = status.get("tasks", []), status.get("connector", {})
            trace = next((part.get("trace", "") for part in (own, *tasks) if part.get("state") == "FAILED"), "")
            found.append(
                Connector(
                    name=name,
                    config=info.get("config", {}),
                    state=own.get("state", "UNKNOWN"),
                    task_states=tuple(task.get("state", "UNKNOWN") for task in tasks),
                    trace=trace.splitlines()[0][:300] if trace else "",
                )
            )
        return found

    async def source_of(self, topic: str) -> Connector | None:
        """Return the Debezium connector that writes the topic.

        It is the one whose topic prefix the topic begins with (the longest, where several do); else, as a transform may have
        renamed it, the one of which Kafka Connect has seen it write there.
        """
        sources = [connector for connector in await self.connectors() if connector.captures]
        named = [connector for connector in sources if topic.startswith(f"{connector.captures}.")]
        if named:
            return max(named, key=lambda connector: len(connector.captures))
        for connector in sources:
            if topic in await self._topics(connector.name):
                return connector
        return None

    find_connector_for_topic = source_of

    async def _topics(self, name: str) -> list[str]:
        """Return the topics that a connector was seen to use; none where Connect does not keep count of them (403)."""
        try:
            answer = await self._get(f"/connectors/{quote(name, safe='')}/topics")
        except StoreRefused:
            return []
        return list(answer.get(name, {}).get("topics", []))

    async def sink_of(self, group: str) -> Connector | None:
        """Return the sink connector behind a consumer group (Connect calls it ``connect-<name>``)."""
        name = group.removeprefix("connect-")
        return next((connector for connector in await self.connectors() if connector.name == name), None)

    async def _get(self, path: str) -> Any:
        import aiohttp  # ten megabytes, which a process without a connector to ask does not need

        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        try:
            async with aiohttp.ClientSession(timeout=timeout) as session, session.get(self._url + path) as response:
                if response.status >= 500 or response.status == 409:
                    raise StoreUnreachable("Kafka Connect cannot answer now.", store=STORE, remedy="It may be rebalancing.")
                if response.status >= 400:
                    raise StoreRefused(
                        f"Kafka Connect refused with status {response.status}.", store=STORE, remedy="Check connect.url."
                    )
                return await response.json()
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise StoreUnreachable(
                "Kafka Connect does not answer.", store=STORE, remedy="Check connect.url, and that it runs."
            ) from error
