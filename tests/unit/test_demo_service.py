"""The demo's own process: its page's port is claimed, so that no part of another stack takes it before it is listened on."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gapwatch.demo.service import Service


def is_claimed(port: int) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as claim:
        try:
            claim.bind(f"\0gapwatch-port-{port}")
        except OSError:
            return True
    return False


def test_the_page_s_port_is_claimed_until_the_demo_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = SimpleNamespace(terminate=lambda: None, wait=lambda _: 0)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: process)
    stack: Any = SimpleNamespace(
        directory=tmp_path,
        kafka=SimpleNamespace(bootstrap_servers="127.0.0.1:1"),
        connect=SimpleNamespace(url="http://127.0.0.1:1"),
        mark=dict[str, str],
    )
    pipeline: Any = SimpleNamespace(dsn="postgresql://127.0.0.1:1/shop", uri="mongodb://127.0.0.1:1")
    service = Service(stack, pipeline)
    port = int(service.api.url.rpartition(":")[2])
    assert is_claimed(port)
    service.stop()
    assert not is_claimed(port)
