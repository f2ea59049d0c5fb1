"""Gapwatch's processes beside a benchmark, started as its users start them; what they use, as the kernel counts it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from gapwatch.api_client import Api
from gapwatch.embedded import EmbeddedStack

FIRST_SECONDS = 30.0  # a first start raises what was before it as holes, and sweeps for them: that is over by then
STOP_SECONDS = 30.0
SHOWN_CHARACTERS = 3_000


class Service:
    """The processes of one configuration, which lacks `api` and `database`; they end with the stack."""

    def __init__(self, stack: EmbeddedStack, directory: Path, config: dict[str, Any]) -> None:
        port = _free_port()
        self.database = f"sqlite:///{directory / 'gapwatch.db'}"
        self.file = directory / "gapwatch.yaml"
        self.file.write_text(
            yaml.safe_dump({**config, "api": {"listen": f"127.0.0.1:{port}"}, "database": self.database}, sort_keys=False)
        )
        self.api = Api(f"http://127.0.0.1:{port}")
        self._environment = {**os.environ, **stack.mark(), "NO_COLOR": "1"}
        self._directory = directory
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, roles: Sequence[str] = ("all",)) -> None:
        """Start a process for each role."""
        for role in roles:
            with self._log(role).open("ab") as output:
                self._processes[role] = subprocess.Popen(
                    [sys.executable, "-m", "gapwatch", "--config", str(self.file), "run", "--role", role],
                    stdout=output,
                    stderr=output,
                    stdin=subprocess.DEVNULL,
                    env=self._environment,
                )

    def check(self) -> None:
        """Exit, with the end of its log, when a process has ended."""
        for role, process in self._processes.items():
            if process.poll() is not None:
                sys.exit(f"role {role} ended with code {process.returncode}:\n{self.said(role)}")

    def said(self, role: str) -> str:
        return self._log(role).read_text(errors="replace")[-SHOWN_CHARACTERS:]

    def pids(self) -> list[int]:
        """Return all processes, children included."""
        self.check()
        return [pid for process in self._processes.values() for pid in tree(process.pid)]

    def stop(self) -> None:
        for process in self._processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self._processes.values():
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    def _log(self, role: str) -> Path:
        return self._directory / f"{role}.log"


def tree(pid: int) -> list[int]:
    """Return a process and all that it started, and they did."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += tree(int(child))
    return found


def cpu_seconds(pids: Sequence[int]) -> float:
    """Return what these processes have used so far."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def resident_mib(pids: Sequence[int]) -> float:
    """Return what these processes hold now, shared libraries counted in each."""
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
