"""Gapwatch as its users run it: one process per role, started from a configuration file, spoken to over HTTP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakSet

import yaml
from prometheus_client.parser import text_string_to_metric_families

from gapwatch.api_client import Api
from gapwatch.errors import GapwatchError
from gapwatch.parent import tied_to_us
from tests.stack import BESIDE_SECONDS, PATIENCE_SECONDS, free_port

T = TypeVar("T")
OPEN_STATES = "open,acknowledged,snoozed,repairing"
ANSWER_SECONDS = 30.0
STOP_SECONDS = 20.0  # which the product promises
EVERY_ROLE = ("capture", "ingest", "match", "repair", "api")


_RUNNING: WeakSet[Service] = WeakSet()


def wait_for(condition: Callable[[], T | None], what: str, seconds: float = 60.0) -> T:
    """Return the condition's first true value; fail with `what`, and what runs says of itself, where there is none in time."""
    seconds += PATIENCE_SECONDS
    until = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > until:
            said = "\n".join(service.said() for service in list(_RUNNING) if service.processes)
            raise AssertionError(f"Waited {seconds:.0f} s for {what}, in vain.\n{said}")
        time.sleep(0.2)


@dataclass(eq=False)
class Service:
    """The processes of one configuration. ``config`` lacks `api` and `database`: they are filled in.

    ``environment``: variables of its processes and commands, beside ours.
    """

    directory: Path
    config: dict[str, Any]
    environment: dict[str, str] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.port = free_port()
        self.config.setdefault("api", {"listen": f"127.0.0.1:{self.port}"})
        self.config.setdefault("database", f"sqlite:///{self.directory / 'gapwatch.db'}")
        self.file = self.directory / "gapwatch.yaml"
        self.write()
        self.api = Api(f"http://127.0.0.1:{self.port}")
        _RUNNING.add(self)

    def write(self) -> None:
        """Write the configuration as it is now; a start reads it."""
        self.file.write_text(yaml.safe_dump(self.config, sort_keys=False))

    def start(self, roles: Sequence[str] = ("all",)) -> None:
        """Start a process for each role; several of one role are called ``match#0``, ``match#1`` …"""
        for role in roles:
            with self.log(role).open("ab") as output:
                self.processes[role] = subprocess.Popen(
                    [sys.executable, "-m", "gapwatch", "--config", str(self.file), "run", "--role", role.partition("#")[0]],
                    stdout=output,
                    stderr=output,
                    stdin=subprocess.DEVNULL,
                    env={**os.environ, **tied_to_us(), "NO_COLOR": "1", **self.environment},
                )

    def kill(self, role: str, how: signal.Signals = signal.SIGKILL) -> None:
        process = self.processes.pop(role)
        process.send_signal(how)
        process.wait(STOP_SECONDS + PATIENCE_SECONDS)

    def restart(self, role: str, how: signal.Signals = signal.SIGKILL) -> None:
        self.kill(role, how)
        self.start([role])

    def stop(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for role, process in self.processes.items():
            try:
                process.wait(STOP_SECONDS + BESIDE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                late = f"Role {role} did not end within {STOP_SECONDS:.0f} s of SIGTERM"
                raise AssertionError(f"{late}:\n{self.tail(role)}") from None
        self.processes.clear()

    def log(self, role: str) -> Path:
        return self.directory / f"{role}.log"

    def tail(self, role: str, characters: int = 4_000) -> str:
        return self.log(role).read_text(errors="replace")[-characters:]

    def ready(self) -> tuple[int, str]:
        """Return status and text of ``/readyz?verbose``; status 0 while nothing answers."""
        try:
            with urllib.request.urlopen(f"{self.api.url}/readyz?verbose", timeout=ANSWER_SECONDS) as answer:
                return int(answer.status), answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metric(self, name: str, **labels: str) -> float | None:
        """Return one sample of ``/metrics``, None where there is none."""
        return next((value for found, value in self.samples(name) if labels.items() <= found.items()), None)

    def samples(self, name: str) -> list[tuple[dict[str, str], float]]:
        """Return the labels and values that ``/metrics`` shows of one name."""
        return [(labels, value) for found, labels, value in self.scrape() if found == name]

    def series(self) -> set[tuple[str, ...]]:
        """Return the name and the labels of every series that ``/metrics`` shows."""
        return {(name, *(f"{label}={text}" for label, text in sorted(labels.items()))) for name, labels, _ in self.scrape()}

    def scrape(self) -> list[tuple[str, dict[str, str], float]]:
        """Return name, labels and value of everything that ``/metrics`` shows at one moment."""
        with urllib.request.urlopen(f"{self.api.url}/metrics", timeout=ANSWER_SECONDS) as answer:
            text = answer.read().decode()
        samples = [sample for one in text_string_to_metric_families(text) for sample in one.samples]
        return [(sample.name, dict(sample.labels), float(sample.value)) for sample in samples]

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the command line with this configuration."""
        done = subprocess.run(
            [sys.executable, "-m", "gapwatch", "--config", str(self.file), *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**os.environ, "NO_COLOR": "1", "GAPWATCH_URL": self.api.url, **self.environment},
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def answer(self, *arguments: str) -> tuple[int, Any]:
        """Run a command of the command line; return its exit code and its JSON, or what it said where it printed none."""
        done = self.command(*arguments, "--output", "json")
        return done.returncode, json.loads(done.stdout) if done.stdout.strip() else done.stderr

    def lines(self, role: str, event: str) -> list[dict[str, Any]]:
        """Return the lines of a role's log with this event."""
        written = self.log(role).read_text(errors="replace").split("\n")[:-1]  # the last one is not written to its end
        return [json.loads(line) for line in written if line.startswith("{") and f'"event": "{event}"' in line]

    def view(self, pipeline: str = "orders") -> dict[str, Any]:
        """Return the pipeline's record, or an empty one with status None while the API does not answer."""
        try:
            return dict(self.api.get(f"/api/v1/pipelines/{pipeline}"))
        except GapwatchError:
            return {"status": None, "consistent_through": None, "gaps_open": {}, "pending_keys": None}

    def gaps(self, pipeline: str = "orders", state: str = OPEN_STATES) -> list[dict[str, Any]]:
        return self.api.pages("/api/v1/gaps", "gaps", 100_000, pipeline=pipeline, state=state)

    def wait_healthy(self, pipeline: str = "orders", seconds: float = 150.0) -> dict[str, Any]:
        def healthy() -> dict[str, Any] | None:
            self.check_alive()
            view = self.view(pipeline)
            return view if view["status"] == "HEALTHY" else None

        return wait_for(healthy, f"pipeline {pipeline} to be HEALTHY", seconds)

    def check_alive(self) -> None:
        for role, process in self.processes.items():
            if process.poll() is not None:
                raise AssertionError(f"Role {role} ended with code {process.returncode}:\n{self.tail(role)}")

    def said(self) -> str:
        """Return each pipeline's record and the end of each role's log."""
        views = [json.dumps(self.view(pipeline)) for pipeline in self.config.get("pipelines", {})]
        return "\n".join([*views, *(f"--- {role}\n{self.tail(role)}" for role in self.processes)])
