"""Gapwatch beside the demo's pipeline: the configuration that a user would write, and ``gapwatch run`` with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from gapwatch.api_client import Api
from gapwatch.demo.load import TABLE
from gapwatch.demo.pipeline import COLLECTION, DATABASE, SINK_GROUP, TOPIC, Pipeline
from gapwatch.embedded import EmbeddedStack
from gapwatch.embedded.ports import Port
from gapwatch.errors import GapwatchError

GRACE_SECONDS = 5
STOP_SECONDS = 15.0
LOG_CHARACTERS = 3_000
STATES_OPEN = "open,repairing,acknowledged"


class Service:
    """One process of ``gapwatch run``; it ends with the stack."""

    def __init__(self, stack: EmbeddedStack, pipeline: Pipeline) -> None:
        assert stack.directory is not None
        self._directory = stack.directory / "gapwatch"
        self._directory.mkdir()
        self._log = self._directory / "gapwatch.log"
        self._port = Port()  # claimed: what is only found free, another stack may take before it is listened on
        port = self._port.number
        file = self._directory / "gapwatch.yaml"
        file.write_text(yaml.safe_dump(_configuration(stack, pipeline, self._directory, port), sort_keys=False))
        self.api = Api(f"http://127.0.0.1:{port}")
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gapwatch", "--config", str(file), "run"],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is the demo's: it ends its parts in order
                env={**os.environ, **stack.mark()},
            )

    @property
    def page(self) -> str:
        return f"{self.api.url}/"

    def answers(self) -> bool:
        self.check()
        return self.api.alive()

    def check(self) -> None:
        """Raise GapwatchError, with the end of its log, when the process has ended."""
        if self._process.poll() is not None:
            said = self._log.read_text(errors="replace")[-LOG_CHARACTERS:]
            raise GapwatchError(f"Gapwatch ended with code {self._process.returncode}:\n{said}")

    def view(self) -> dict[str, Any]:
        return dict(self.api.get("/api/v1/pipelines/orders"))

    def gaps(self, states: str = "") -> list[dict[str, Any]]:
        """Return gaps in these states, else all that ever were."""
        return self.api.pages("/api/v1/gaps", "gaps", 100_000, pipeline="orders", state=states)

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._port.close()


def _configuration(stack: EmbeddedStack, pipeline: Pipeline, directory: Path, port: int) -> dict[str, Any]:
    return {
        "kafka": {"bootstrap_servers": stack.kafka.bootstrap_servers},
        "connect": {"url": stack.connect.url},
        "api": {"listen": f"127.0.0.1:{port}"},
        "topics": {"partitions": 4, "replication": 1},
        "database": f"sqlite:///{directory / 'gapwatch.db'}",
        "stores": {
            "shop": {"type": "postgres", "dsn": pipeline.dsn, "heartbeat": {"auto": True, "every": "250ms"}},
            "catalog": {"type": "mongodb", "uri": pipeline.uri},
        },
        "pipelines": {
            "orders": {
                "source": {"store": "shop", "table": TABLE, "key": {"id": "int"}, "feed": {"debezium": TOPIC}},
                "target": {
                    "store": "catalog",
                    "collection": f"{DATABASE}.{COLLECTION}",
                    "key": {"_id.id": "int"},
                    "feed": {"change_stream": True},
                },
                "fields": {
                    "customer": "customer",
                    "status": "status",
                    "amount": {"from": "amount", "type": "decimal", "scale": 2},
                    "quantity": "quantity",
                },
                "grace": f"{GRACE_SECONDS}s",
                "delivery": {"group": SINK_GROUP},
                "repair": {"extra": "delete", "undeleted": "delete"},
            }
        },
    }
