"""Kafka Connect's REST interface, and the configurations of ``debezium/`` filled in."""

from __future__ import annotations

import json
import string
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from gapwatch.errors import GapwatchError

if TYPE_CHECKING:
    from gapwatch.embedded.parts import MongoPart, PostgresPart

TIMEOUT_SECONDS = 45.0
REBALANCE_SECONDS, REBALANCE_PAUSE_SECONDS = 60.0, 0.5  # a worker on a busy machine takes its time to join
Config = dict[str, str]


class ConnectClient:
    """Blocking calls to one Connect worker. Raises GapwatchError with Connect's own message when it refuses."""

    def __init__(self, url: str) -> None:
        self.url = url

    def answers(self) -> bool:
        try:
            self.connectors()
        except GapwatchError:
            return False
        return True

    def connectors(self) -> list[str]:
        return list(self._request("GET", "/connectors"))

    def put_connector(self, name: str, config: Mapping[str, str]) -> dict[str, Any]:
        """Create the connector, or change its configuration."""
        return dict(self._request("PUT", f"/connectors/{quote(name, safe='')}/config", dict(config)))

    def status(self, name: str) -> dict[str, Any]:
        return dict(self._request("GET", f"/connectors/{quote(name, safe='')}/status"))

    def offsets(self, name: str) -> dict[str, Any]:
        return dict(self._request("GET", f"/connectors/{quote(name, safe='')}/offsets"))

    def restart(self, name: str) -> None:
        self._request("POST", f"/connectors/{quote(name, safe='')}/restart?includeTasks=true")

    def pause(self, name: str) -> None:
        self._request("PUT", f"/connectors/{quote(name, safe='')}/pause")

    def resume(self, name: str) -> None:
        self._request("PUT", f"/connectors/{quote(name, safe='')}/resume")

    def delete(self, name: str) -> None:
        self._request("DELETE", f"/connectors/{quote(name, safe='')}")

    def wait_running(self, name: str, timeout_seconds: float = 150.0) -> None:
        """Return when the connector and at least one task run. Raises with the trace of a failed task."""
        until = time.monotonic() + timeout_seconds
        last: Any = None
        while time.monotonic() < until:
            try:
                last = self.status(name)
            except GapwatchError as error:
                last = str(error)
                time.sleep(0.2)
                continue
            failed = [task["trace"] for task in last["tasks"] if task["state"] == "FAILED"]
            if failed:
                raise GapwatchError(f"A task of connector {name} failed: {failed[0][:2000]}")
            if last["connector"]["state"] == "RUNNING" and last["tasks"] and all(t["state"] == "RUNNING" for t in last["tasks"]):
                return
            time.sleep(0.2)
        raise GapwatchError(f"Connector {name} did not run within {timeout_seconds:.0f} s: {last}")

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        data = json.dumps(body).encode() if body is not None else None
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        attempts = int(REBALANCE_SECONDS / REBALANCE_PAUSE_SECONDS)
        for attempt in range(attempts):
            request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
            try:
                with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
                    return json.loads(response.read() or b"null")
            except urllib.error.HTTPError as error:
                with error:
                    text = error.read().decode(errors="replace")
                if error.code == 409 and attempt < attempts - 1:  # the worker is rebalancing
                    time.sleep(REBALANCE_PAUSE_SECONDS)
                    continue
                raise GapwatchError(f"Kafka Connect refused {method} {path}: {text}") from error
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                raise GapwatchError(f"Kafka Connect does not answer at {self.url}: {error}") from error
        raise GapwatchError(f"Kafka Connect kept rebalancing at {method} {path}.")


def postgres_source_config(
    postgres: PostgresPart,
    *,
    database: str,
    prefix: str,
    tables: Sequence[str],
    slot: str | None = None,
    schemas: bool = True,
    **overrides: str,
) -> Config:
    """Return the configuration of Debezium's Postgres connector; topics are ``<prefix>.<schema>.<table>``."""
    name = slot or prefix.replace(".", "_").replace("-", "_").lower()
    return _filled(
        "postgres-source",
        host=postgres.host,
        port=postgres.port,
        user="gapwatch",
        password="unused",  # noqa: S106 - the embedded server asks for none
        database=database,
        prefix=prefix,
        tables=",".join(tables),
        slot=name,
        schemas=str(schemas).lower(),
    ) | dict(overrides)


def mongodb_source_config(mongodb: MongoPart, *, prefix: str, collections: Sequence[str], **overrides: str) -> Config:
    """Return the configuration of Debezium's MongoDB connector for ``database.collection`` names."""
    return _filled("mongodb-source", uri=mongodb.uri, prefix=prefix, collections=",".join(collections)) | dict(overrides)


def debezium_mongodb_sink_config(
    mongodb: MongoPart, *, topic: str, database: str, dead_letter_topic: str = "", **overrides: str
) -> Config:
    """Return the configuration of Debezium's own MongoDB sink, which drops every batch that holds a DELETE.

    Its collection is the topic's name with underscores for dots.
    """
    return _filled(
        "debezium-mongodb-sink",
        uri=mongodb.uri,
        topic=topic,
        database=database,
        dead_letter_topic=dead_letter_topic or f"{topic}.dlq",
    ) | dict(overrides)


def mongo_sink_config(
    mongodb: MongoPart, *, topic: str, database: str, collection: str, variant: str = "cdc", **overrides: str
) -> Config:
    """Return the configuration of MongoDB's own sink: ``cdc`` (``_id: {id: 1}``) or ``unwrap`` (``_id: 1``)."""
    return _filled(f"mongo-sink-{variant}", uri=mongodb.uri, topic=topic, database=database, collection=collection) | dict(
        overrides
    )


def filled(text: str, values: Mapping[str, object]) -> Config:
    """Return the configuration of a template's text. Raises KeyError, naming what no value was given for."""
    raw = json.loads(string.Template(text).substitute({name: str(value) for name, value in values.items()}))
    return {str(name): str(value) for name, value in raw.items()}


def _filled(template: str, **values: object) -> Config:
    return filled(_template(f"{template}.json"), values)


def _template(name: str) -> str:
    """Return a template of ``debezium/``: in a checkout from the project's folder, else from the package."""
    packaged = files("gapwatch.embedded") / "debezium" / name
    if packaged.is_file():
        return packaged.read_text()
    return (Path(__file__).parents[3] / "debezium" / name).read_text()
