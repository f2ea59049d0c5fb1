"""What every client is built with: an admin client ends where it may, and says what went wrong."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import pytest
from confluent_kafka import KafkaException
from structlog.testing import capture_logs

from gapwatch.kafka.options import admin_client, all_answered
from gapwatch.model.pipeline import Settings

PROGRAM = """
import gc, os, threading
from gapwatch.kafka.options import admin_client, all_answered
from gapwatch.model.pipeline import Settings

class Cycle: pass

collected = threading.Event()

def begin():
    cycle = Cycle()
    cycle.me, cycle.admin = cycle, admin_client(Settings(bootstrap_servers="127.0.0.1:1"))
    asked = cycle.admin.describe_cluster(request_timeout=0.2)
    asked.add_done_callback(lambda future: (gc.collect(), collected.set()))  # in the client's own thread

gc.disable()
begin()
os._exit(0 if collected.wait(60) else 77)
"""


def test_a_client_that_the_collector_finds_in_its_own_thread_does_not_end_the_process() -> None:
    """librdkafka would abort it: "rd_kafka_destroy() called from librdkafka owned thread"."""
    ended = subprocess.run([sys.executable, "-c", PROGRAM], stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr


async def test_errors_of_an_admin_client_are_told_and_not_kept() -> None:
    admin = admin_client(Settings(bootstrap_servers="127.0.0.1:1"))

    def told(logs: Sequence[Mapping[str, Any]]) -> set[str]:
        return {line["client"] for line in logs if line["event"] == "kafka_client_error"}

    with capture_logs() as logs:
        for asked in range(200):  # its own thread tries to connect, when it gets its turn
            with pytest.raises(KafkaException):
                await asyncio.wrap_future(admin.describe_cluster(request_timeout=0.3))
            if asked and told(logs):
                break
    assert told(logs) == {"admin"}


async def test_all_answers_are_waited_for_and_the_loop_is_woken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that woke it by itself cost four hundred turns a second where eighty partitions are asked for their ends."""
    loop, woken = asyncio.get_running_loop(), list[Any]()
    wake = loop.call_soon_threadsafe

    def waking(*call: Any) -> asyncio.Handle:
        woken.append(call)
        return wake(*call)

    monkeypatch.setattr(loop, "call_soon_threadsafe", waking)
    await all_answered([])
    futures = [Future[int]() for _ in range(80)]
    futures[7].set_result(0)  # answered before it was waited for
    waiting = asyncio.create_task(all_answered(futures))
    await asyncio.sleep(0)
    for future in futures[8:] + futures[:6]:
        future.set_result(1)
    await asyncio.sleep(0)
    assert (waiting.done(), woken) == (False, [])
    futures[6].set_exception(ValueError("refused"))
    async with asyncio.timeout(5):
        await waiting
    assert len(woken) == 1
    gone = asyncio.create_task(all_answered([late := Future[int]()]))
    await asyncio.sleep(0)
    gone.cancel()
    late.set_result(1)
    await asyncio.gather(gone, return_exceptions=True)
    assert late.result() == 1
