"""Probes and metrics are open, and say the truth."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import aiohttp

from tests.http_harness import Service

Client = aiohttp.ClientSession


async def text(client: Client, path: str) -> tuple[int, str]:
    async with client.get(path) as response:
        return response.status, await response.text()


async def test_livez_asks_nobody(client: Client, served: Service) -> None:
    served.parts["kafka"] = "no broker answers"
    assert await text(client, "/livez") == (200, "ok\n")
    assert (await text(client, "/livez?verbose"))[0] == 200


async def test_k4_readyz_names_what_is_missing(client: Client, served: Service) -> None:
    assert await text(client, "/readyz") == (200, "ok\n")
    assert await text(client, "/readyz?verbose") == (200, "[+]kafka ok\n[+]ledger ok\nok\n")
    served.parts["kafka"] = "no broker answers"
    assert await text(client, "/readyz") == (503, "[-]kafka no broker answers\nnot ready\n")
    assert await text(client, "/readyz?verbose") == (503, "[-]kafka no broker answers\n[+]ledger ok\nnot ready\n")


async def test_lesson_1_nothing_checked_is_not_ready(client: Client, served: Service) -> None:
    served.parts.clear()
    status, body = await text(client, "/readyz")
    assert status == 503
    assert "nothing was checked" in body


async def test_metrics(client: Client) -> None:
    async with client.get("/metrics") as response:
        assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert await response.read() == b"gapwatch_up 1\n"


async def test_metrics_are_shown_while_a_ledger_that_is_frozen_keeps_all_threads_waiting(client: Client) -> None:
    thaws = threading.Event()
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(max_workers=1))
    waiting = asyncio.create_task(asyncio.to_thread(thaws.wait))
    try:
        async with asyncio.timeout(60), client.get("/metrics") as response:
            assert await response.read() == b"gapwatch_up 1\n"
        assert not waiting.done()
    finally:
        thaws.set()
        await waiting
