"""A real service falls silent: the page and the API say UNKNOWN in time, and never go on showing the last green."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import pytest
from playwright.async_api import Browser, Page, expect

from gapwatch.embedded import EmbeddedStack
from tests.acceptance.scenery import TABLE, Scene, watched
from tests.acceptance.service import EVERY_ROLE, wait_for
from tests.acceptance.shared import create_database, number
from tests.acceptance.silence import is_stale, no_heartbeats, unread_partitions

pytestmark = [pytest.mark.page, pytest.mark.integration, pytest.mark.timeout(600)]

STALL_AFTER = 5.0
PROMPT = 5.0  # one refresh of the page, a status record that was a second old, and what a machine takes that is not alone
HELD = 3.0  # how long it must stay so
Silence = Callable[[Scene], AbstractContextManager[object]]


@pytest.fixture(scope="module")
def scene(stack: EmbeddedStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    database = create_database(stack, f"silence_{number()}")
    before = [f"INSERT INTO {TABLE} (id, seq, v, amount) VALUES (1, 1, 'first', 1)"]  # makes the topic
    directory = tmp_path_factory.mktemp("silence")
    reader, stall_after = f"reader_{database}", f"{STALL_AFTER:.0f}s"
    with watched(stack, database, directory, before=before, roles=EVERY_ROLE, reader=reader, stall_after=stall_after) as scene:
        yield scene


@contextmanager
def dead(role: str, scene: Scene) -> Iterator[None]:
    scene.service.kill(role, signal.SIGKILL)
    try:
        yield
    finally:
        scene.service.start([role])


SILENCES: dict[str, Silence] = {
    "matcher dead": partial(dead, "match"),
    "all ingesters dead": partial(dead, "ingest"),
    "one raw partition unowned": unread_partitions,
    "heartbeat rows stopped": no_heartbeats,
}


@pytest.mark.parametrize("silence", SILENCES.values(), ids=SILENCES)
async def test_b16_page_and_api_are_unknown_within_stall_after(scene: Scene, browser: Browser, silence: Silence) -> None:
    await asyncio.to_thread(scene.service.wait_healthy)
    page = await browser.new_page(base_url=scene.service.api.url)
    await page.goto("/")
    await expect(page.locator("#verdict h1")).to_have_text("HEALTHY")
    with silence(scene):
        began = time.monotonic()
        await asyncio.to_thread(wait_for, lambda: is_stale(scene), "UNKNOWN", STALL_AFTER + PROMPT)
        await page_is_unknown(page, PROMPT * 1000)
        assert time.monotonic() - began <= STALL_AFTER + PROMPT
        until = time.monotonic() + HELD
        while time.monotonic() < until:
            assert scene.service.view()["status"] == "UNKNOWN"
            assert await page.locator("#verdict h1").text_content() == "UNKNOWN"
            assert await page.locator('[data-status="HEALTHY"]').count() == 0, "nothing green is left"
    await asyncio.to_thread(scene.service.wait_healthy)
    await expect(page.locator("#verdict h1")).to_have_text("HEALTHY")
    assert scene.service.gaps(state="") == []
    await page.close()


async def page_is_unknown(page: Page, milliseconds: float) -> None:
    await expect(page.locator("#verdict h1")).to_have_text("UNKNOWN", timeout=milliseconds)
    await expect(page.locator(".card .pill")).to_contain_text("UNKNOWN")
