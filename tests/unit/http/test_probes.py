"""A process of any role answers its orchestrator and Prometheus at ``probes.listen``, and nobody else there."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pytest

from tests.stack import free_port, until

CONFIG = """\
kafka: {{ bootstrap_servers: "127.0.0.1:{nowhere}" }}
database: "sqlite:///{folder}/gapwatch.db"
stores:
  shop: {{ type: postgres, dsn: "postgresql://app@127.0.0.1:{nowhere}/shop" }}
  catalog: {{ type: mongodb, uri: "mongodb://127.0.0.1:{nowhere}" }}
pipelines:
  orders:
    source: {{ store: shop, table: public.orders, key: {{ id: int }}, feed: {{ debezium: shop.public.orders }} }}
    target: {{ store: catalog, collection: shop.orders, key: {{ _id: int }}, feed: {{ change_stream: true }} }}
    fields: {{ customer: customer }}
    delivery: none
"""


@contextmanager
def closed_port() -> Iterator[int]:
    """Yield a port on which nobody listens, and nobody else will."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@contextmanager
def role(name: str, folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    with closed_port() as nowhere:
        file = folder / "gapwatch.yaml"
        file.write_text(CONFIG.format(nowhere=nowhere, folder=folder))
        process = subprocess.Popen(
            [sys.executable, "-m", "gapwatch", "run", "--config", str(file), "--role", name],
            env={
                **os.environ,
                "GAPWATCH_PROBES__LISTEN": f"127.0.0.1:{port}",
                "GAPWATCH_API__LISTEN": f"127.0.0.1:{free_port()}",
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()


def answer(port: int, path: str) -> tuple[int, str]:
    try:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as response:
            return response.status, response.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except (URLError, ConnectionError):
        return 0, ""


@pytest.mark.parametrize("name", ["ingest", "repair"])
def test_a_role_without_an_api_answers_probes_and_only_those(name: str, tmp_path: Path) -> None:
    port = free_port()
    with role(name, tmp_path, port) as process:
        until(lambda: answer(port, "/livez") == (200, "ok\n"), f"role {name} to answer", 30)
        until(lambda: answer(port, "/readyz")[0] == 503, "Kafka, which is away, to make it not ready", 60)
        status, exposition = answer(port, "/metrics")
        assert status == 200
        assert f'gapwatch_up{{role="{name}"}}' in exposition
        assert {answer(port, path)[0] for path in ("/", "/api/v1/pipelines", "/openapi.json")} == {404}
        process.send_signal(signal.SIGTERM)
        assert process.wait(90) == 0


def test_an_address_in_use_is_a_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with role("repair", tmp_path, taken.getsockname()[1]) as process:
            _, said = process.communicate(timeout=90)
            assert process.returncode == 2
    assert b"The probes cannot listen on 127.0.0.1:" in said
    assert b"GAPWATCH_PROBES__LISTEN" in said
