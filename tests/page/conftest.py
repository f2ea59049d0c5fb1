"""The page in a real Chromium, served by a real API."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

from tests.http_harness import Service, service
from tests.stack import free_port

expect.set_options(timeout=30_000)  # the page asks every two seconds; a machine that is busy answers when it can


def chromium() -> str:
    found = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not found:
        pytest.fail("The page's tests need Chromium: install the package chromium, or set CHROMIUM to its path.")
    return found


@dataclass
class Visit:
    """A page, with what its console said and what it loaded."""

    page: Page
    said: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Service]:
    async with service(tmp_path, port=free_port()) as running:  # one that may be listened on again
        yield running


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    sandbox = ["--no-sandbox"] if os.getuid() == 0 else []
    async with async_playwright() as playwright:
        launched = await playwright.chromium.launch(executable_path=chromium(), args=sandbox)
        yield launched
        await launched.close()


@pytest.fixture
async def visit(browser: Browser, served: Service) -> Visit:
    """An open page that has not gone anywhere yet."""
    page = await browser.new_page(base_url=served.url, viewport={"width": 1280, "height": 900}, color_scheme="light")
    page.set_default_timeout(20_000)
    visited = Visit(page)
    page.on("console", lambda message: visited.said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: visited.said.append(f"error: {error}"))
    page.on("request", lambda request: visited.loaded.append(request.url))
    return visited
