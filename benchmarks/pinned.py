"""Contestants in processes of their own, each pinned to a core: one to the last, and the broker has the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

ROOT = Path(__file__).parents[1]
LIMIT_SECONDS = 300.0
LOOK_SECONDS = 0.1


class CouldNotRunError(Exception):
    """A contestant ended without its figures; the message is the reason in one line."""


class Running:
    """A contestant under way, kept to one core: the last one, or as many before it as `place` says.

    What it prints goes to files, so that several can run at once. It ends with the context.
    """

    def __init__(self, command: Sequence[str], *, place: int = 0, environment: Mapping[str, str] | None = None) -> None:
        self._output, self._errors = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed at exit
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._errors,
            text=True,
            preexec_fn=lambda: pin(place),
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._output.close()
        self._errors.close()

    def goes_on(self) -> bool:
        """Say whether it still runs. Raises CouldNotRunError where it ended without its figures."""
        if self._process.poll() is None:
            return True
        self.figures()
        return False

    def cpu_seconds(self) -> float:
        """Return what it has used so far."""
        used = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return sum(map(int, used)) / os.sysconf("SC_CLK_TCK")

    def figures(self) -> dict[str, Any]:
        """Return the figures of the last line, once it has ended. Raises CouldNotRunError."""
        for file in (self._output, self._errors):
            file.seek(0)
        return figures_of(self._output.read(), self._errors.read(), self._process.wait())


def pin(place: int = 0) -> None:
    """Keep this process to the last core that it may use, or to one before it."""
    cores = sorted(os.sched_getaffinity(0), reverse=True)
    os.sched_setaffinity(0, {cores[place % len(cores)]})


def run(
    command: Sequence[str], *, limit_seconds: float = LIMIT_SECONDS, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run to the end and return the figures of its last line. Raises CouldNotRunError."""
    with Running(command, environment=environment) as one:
        return wait([one], limit_seconds=limit_seconds)[0]


def wait(running: Sequence[Running], *, limit_seconds: float = LIMIT_SECONDS) -> list[dict[str, Any]]:
    """Return the figures of all of them when the last has ended. Raises CouldNotRunError as soon as one has none."""
    until = time.monotonic() + limit_seconds
    while [one for one in running if one.goes_on()]:
        if time.monotonic() > until:
            raise CouldNotRunError(f"not done after {limit_seconds:.0f} s")
        time.sleep(LOOK_SECONDS)
    return [one.figures() for one in running]


def figures_of(output: str, errors: str, code: int) -> dict[str, Any]:
    """Return the figures of the last line of `output`. Raises CouldNotRunError where there are none."""
    lines = output.strip().splitlines()
    try:
        if code:
            raise ValueError
        figures: dict[str, Any] = json.loads(lines[-1])
        return figures
    except (ValueError, IndexError):
        raise CouldNotRunError(f"exit code {code}: {last_words(errors) or last_words(output) or 'it said nothing'}") from None


def last_words(text: str) -> str:
    """Return the last line that is not a place in a Java stack, shortened."""
    said = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith(("at ", "... "))]
    return said[-1][:200] if said else ""


def begin() -> None:
    """Keep standard output to the report, and let the broker run at its full speed: it is part of what is measured."""
    os.environ.setdefault("EMBEDDED_JAVA", "full")
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
