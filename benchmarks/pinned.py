"""One contestant in a process of its own, pinned to the last core; the broker has the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

ROOT = Path(__file__).parents[1]
LIMIT_SECONDS = 300.0


class CouldNotRunError(Exception):
    """A contestant ended without its figures; the message is the reason in one line."""


def pin() -> None:
    """Keep this process to the last core that it may use."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def run(
    command: Sequence[str], *, limit_seconds: float = LIMIT_SECONDS, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run to the end and return the figures of its last line. Raises CouldNotRunError."""
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            preexec_fn=pin,
        ) as process:
            try:
                output, _ = process.communicate(timeout=limit_seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                raise CouldNotRunError(f"not done after {limit_seconds:.0f} s") from None
        errors.seek(0)
        return figures_of(output, errors.read(), process.returncode)


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


def logs_to_stderr() -> None:
    """Keep standard output to the report."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
