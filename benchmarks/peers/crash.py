"""Is state kept? Shown by a trial: the source's writes are read, ``kill -9``, the target's follow, and a second process starts.

A contestant that kept what it knew reads the target's records only, and finds exactly the documents that differ.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO

from benchmarks import pending, work
from benchmarks.pinned import ROOT, CouldNotRunError, last_words
from gapwatch.embedded import EmbeddedStack

KEYS = 10_000
WAIT_SECONDS = 90.0
SETTLED_SECONDS = 6.0  # above every commit and checkpoint interval of the programs, and a dead member's session


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """``read_again``: records that the second process read beyond those it had not been given before."""

    wanted: frozenset[int]
    found: frozenset[int]
    read: int
    read_again: int

    @property
    def kept(self) -> bool:
        return self.found == self.wanted and self.read_again < KEYS // 2

    def words(self) -> str:
        """Return what happened, for the table."""
        if self.kept:
            again = f", {self.read_again:,} of {KEYS:,} read again" if self.read_again > 0 else ""
            return f"yes: all {len(self.wanted)} found{again}"
        if self.found == self.wanted:
            return "no: everything read again"
        return f"no: {len(self.found & self.wanted)} of {len(self.wanted)} found, {len(self.found - self.wanted)} invented"


@dataclass(slots=True)
class _Told:
    """What the process has said last."""

    read: int = 0
    wrong: set[int] = field(default_factory=set)
    changed: float = field(default_factory=time.monotonic)

    def follow(self, output: IO[str]) -> None:
        for line in output:
            if line.startswith('{"read"'):
                told = json.loads(line)
                if told["read"] != self.read:
                    self.changed = time.monotonic()
                self.read, self.wrong = told["read"], set(told["wrong"])


@contextmanager
def _running(command: Sequence[str], errors: IO[str]) -> Iterator[tuple[subprocess.Popen[str], _Told]]:
    told = _Told()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    )
    assert process.stdout is not None
    reader = threading.Thread(target=told.follow, args=(process.stdout,))
    reader.start()
    try:
        yield process, told
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()


def _wait(process: subprocess.Popen[str], errors: IO[str], reached: Callable[[], bool]) -> None:
    until = time.monotonic() + WAIT_SECONDS
    while not reached():
        if process.poll() is not None:
            errors.seek(0)
            raise CouldNotRunError(f"it ended by itself with exit code {process.returncode}: {last_words(errors.read())}")
        if time.monotonic() > until:
            raise CouldNotRunError(f"not so far after {WAIT_SECONDS:.0f} s")
        time.sleep(0.05)


def of_program(command: Sequence[str]) -> Trial:
    """Try one program on a broker of its own. Raises CouldNotRunError."""
    with (
        EmbeddedStack(parts=("kafka",)) as stack,
        tempfile.TemporaryDirectory() as directory,
        tempfile.TemporaryFile("w+") as errors,
    ):
        servers = stack.kafka.bootstrap_servers
        work.create_topics(servers)
        given = [servers, work.SOURCE, work.TARGET, "0", directory, "trial", "follow"]
        planted = work.produce_side(servers, KEYS, work.SOURCE)
        with _running([*command, *given], errors) as (process, told):
            _wait(process, errors, lambda: told.read >= KEYS and time.monotonic() - told.changed > SETTLED_SECONDS)
        work.produce_side(servers, KEYS, work.TARGET)
        target = KEYS - len(planted.missing)
        with _running([*command, *given], errors) as (process, told):
            _wait(process, errors, lambda: told.read >= target and time.monotonic() - told.changed > SETTLED_SECONDS)
        return Trial(wanted=planted.wrong, found=frozenset(told.wrong), read=told.read, read_again=told.read - target)


def of_gapwatch() -> str:
    """Try match the same way: every key pending, ``kill -9``, then the answers to some of them."""
    with EmbeddedStack(parts=("kafka",)) as stack:
        found = pending.measure_pending(stack.kafka.bootstrap_servers, KEYS)
    return f"yes: all {KEYS // 100} answers matched, {found.recovery_seconds + pending.SESSION_SECONDS:.0f} s after"
