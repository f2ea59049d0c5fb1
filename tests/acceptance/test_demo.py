"""``gapwatch demo`` as a person runs it: a whole process, its output, its screen on a terminal, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gapwatch.api_client import Api
from gapwatch.embedded.watchdog import descendants
from tests.stack import until

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]

GRACE_SECONDS = 5
CONTRACT = {
    "schema_version": int,
    "pipeline_says": dict,
    "truth_total": int,
    "found_total": int,
    "missed": int,
    "invented": int,
    "by_kind": dict,
    "repaired": int,
    "verified": int,
    "detection_seconds": dict,
    "consistent_through": str,
    "ended_at": str,
}
SAYS = {"connector_state", "task_states", "lag", "dead_letter_records", "source_count", "target_count"}
CONTROL = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07|[=>])")


@dataclass
class Demo:
    """One run: what it wrote so far, and every process that was ever below it (id → when it began)."""

    process: subprocess.Popen[bytes]
    directory: Path  # its temporary directory
    terminal: int | None
    error: bytearray = field(default_factory=bytearray)
    output: bytearray = field(default_factory=bytearray)
    family: dict[int, str] = field(default_factory=dict)

    def text(self) -> str:
        """Return what a terminal got, or standard error, as plain text."""
        raw = self.output if self.terminal is not None else self.error
        return CONTROL.sub("", raw.decode("utf-8", "replace"))

    def wait_for(self, what: str, seconds: float) -> None:
        def shown() -> bool:
            self.look()
            assert self.process.poll() is None or what in self.text(), f"ended with {self.process.returncode}:\n{self.tail()}"
            return what in self.text()

        until(shown, f"{what!r}\n{self.tail()}", seconds)

    def wait(self, seconds: float) -> int:
        """Return the exit code."""

        def ended() -> bool:
            self.look()
            return self.process.poll() is not None

        until(ended, f"the demo to end\n{self.tail()}", seconds)
        return self.process.wait()

    def look(self) -> None:
        self.family |= {pid: began for pid in descendants(self.process.pid) if (began := _began(pid))}

    def left(self) -> list[str]:
        """Return what is still there of it: processes, files."""
        alive = [f"{pid} {_command(pid)}" for pid, began in self.family.items() if _began(pid) == began]
        return alive + [str(path) for path in self.directory.iterdir()]

    def page(self) -> str:
        found = re.search(r"http://127\.0\.0\.1:\d+/", self.text())
        assert found, self.tail()
        return found.group()

    def tail(self) -> str:
        return self.text()[-3_000:]


def _began(pid: int) -> str:
    """Return a process's start time, empty when it is gone or a zombie: a process id alone may be somebody else's by now."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return ""
    return "" if state[0] == "Z" else state[19]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:100]
    except OSError:
        return "?"


# Takes standard input for its controlling terminal, and becomes the command that follows.
OWN_TERMINAL = """
import fcntl, os, struct, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
os.execv(sys.argv[1], sys.argv[1:])
"""


@contextmanager
def demo(*arguments: str, terminal: bool = False) -> Iterator[Demo]:
    """Run the command; end it, if the test did not."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        directory.chmod(0o755)  # Postgres' account must be able to enter
        master, slave = os.openpty() if terminal else (None, None)
        process = subprocess.Popen(
            [
                sys.executable,
                *(() if slave is None else ("-c", OWN_TERMINAL, sys.executable)),
                "-m",
                "gapwatch",
                "demo",
                *arguments,
            ],
            stdin=subprocess.DEVNULL if slave is None else slave,
            stdout=subprocess.PIPE if slave is None else slave,
            stderr=subprocess.PIPE if slave is None else slave,
            start_new_session=True,
            env={**os.environ, "TMPDIR": temporary, "TERM": "xterm-256color"},
        )
        run = Demo(process, directory, master)
        if slave is not None:
            os.close(slave)
        readers = [threading.Thread(target=read, daemon=True) for read in _readers(run)]
        for reader in readers:
            reader.start()
        try:
            yield run
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(60)
            for reader in readers:
                reader.join(10)
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
            if master is not None:
                os.close(master)


def _readers(run: Demo) -> list[Callable[[], None]]:
    def reader(descriptor: int, into: bytearray) -> Callable[[], None]:
        def read() -> None:
            while True:
                try:
                    got = os.read(descriptor, 65_536)
                except OSError:  # the terminal's other side is closed
                    return
                if not got:
                    return
                into.extend(got)

        return read

    if run.terminal is not None:
        return [reader(run.terminal, run.output)]
    assert run.process.stdout is not None
    assert run.process.stderr is not None
    return [reader(run.process.stdout.fileno(), run.output), reader(run.process.stderr.fileno(), run.error)]


def test_m17_everything_looks_healthy_and_is_wrong_found_whole_and_healed() -> None:
    started = datetime.now(UTC)
    with demo("--json", "--seconds", "10") as run:
        assert run.wait(300) == 0, run.tail()
        until(lambda: not run.left(), "everything to be gone", 20)
        assert run.family
    lines = run.output.decode().splitlines()
    assert len(lines) == 1, "one object on standard output, and nothing else"
    record = json.loads(lines[0])
    assert {name: type(record[name]) for name in CONTRACT} == CONTRACT
    assert record["schema_version"] == 1
    says = record["pipeline_says"]
    assert set(says) == SAYS
    assert (says["connector_state"], says["task_states"]) == ("RUNNING", ["RUNNING"])
    assert (says["lag"], says["dead_letter_records"]) == (0, 0)
    assert says["source_count"] == says["target_count"] > 0
    assert record["truth_total"] > 0
    assert record["found_total"] == sum(record["by_kind"].values()) == record["truth_total"]
    assert record["missed"] == record["invented"] == 0
    assert record["repaired"] == record["verified"] == record["truth_total"]
    # Equal counts hide as many lost inserts as lost deletes.
    assert record["by_kind"]["missing"] == sum(record["by_kind"].get(kind, 0) for kind in ("undeleted", "extra")) > 0
    alone = "PYTEST_XDIST_WORKER" not in os.environ  # the promise is one of a machine that does nothing else
    soon = 60 if alone else 150
    assert GRACE_SECONDS <= record["detection_seconds"]["p50"] <= record["detection_seconds"]["p99"] < soon
    assert started < _time(record["consistent_through"]) < _time(record["ended_at"]) < datetime.now(UTC)
    first = re.search(r"^ *([0-9.]+) s  The first gap: order \d+ is (missing|undeleted|stale)", run.text(), re.MULTILINE)
    assert first, run.text()
    assert float(first.group(1)) < soon


def test_m17_on_a_terminal_it_shows_each_lost_order_and_stays_until_ctrl_c() -> None:
    with demo("--seconds", "10", terminal=True) as run:
        run.wait_for("Done; everything stays up until Ctrl-C", 300)
        until(lambda: Api(run.page()).get("/api/v1/pipelines/orders")["status"] == "HEALTHY", "it to be HEALTHY", 20)
        gaps = Api(run.page()).pages("/api/v1/gaps", "gaps", 10_000, pipeline="orders")
        screen = _last_frame(run)
        _scraped_numbers_are_those_of_the_run(run.page(), gaps)
        assert run.terminal is not None
        os.write(run.terminal, b"\x03")
        assert run.wait(60) == 0, run.tail()
        until(lambda: not run.left(), "everything to be gone", 20)
    assert len(gaps) > 0
    for gap in sorted(gaps, key=lambda gap: str(gap["confirmed_at"]))[-5:]:
        (row,) = [line for line in screen if line.split()[:2] == [gap["key_text"], gap["kind"]]]
        topic = next(piece for piece in gap["evidence"] if piece.get("topic"))
        assert gap["cause"] in row
        assert gap["resolution"] in row
        assert f"{topic['topic']} [{topic['partition']}] @ {topic['offset']}" in row
    assert "0 missed, 0 invented" in run.text()
    assert re.search(r"In truth (\d+) orders were wrong\.\s+Gapwatch found \1 ", run.text()), run.tail()


@pytest.mark.parametrize(
    ("how", "code"), [("ctrl-c", 130), pytest.param("SIGTERM", 130, marks=pytest.mark.long), ("SIGKILL", -9)]
)
def test_ended_before_its_end_it_leaves_nothing_behind(how: str, code: int) -> None:
    with demo(terminal=how == "ctrl-c") as run:
        run.wait_for("The page is at", 300)
        run.look()
        assert len(run.family) > 5
        if run.terminal is not None:
            os.write(run.terminal, b"\x03")
        else:
            run.process.send_signal(getattr(signal, how))
        assert run.wait(60) == code, run.tail()
        until(lambda: not run.left(), "everything to be gone", 30)


def _last_frame(run: Demo) -> list[str]:
    """Return the lines of the newest frame of the screen."""
    begun = time.monotonic()
    frames = run.text().split("What the pipeline says")
    until(lambda: len(run.text().split("What the pipeline says")) > len(frames) or time.monotonic() - begun > 10, "a frame", 20)
    return run.text().split("What the pipeline says")[-1].splitlines()


def _scraped_numbers_are_those_of_the_run(page: str, gaps: list[dict[str, Any]]) -> None:
    """What a scrape shows after the story is exactly what the API tells of it (the metrics are two seconds old at most)."""
    backfilled = sum(gap["resolution"] == "backfilled" for gap in gaps)
    wanted = {
        "gapwatch_gaps_detected_total": len(gaps),
        'gapwatch_gaps_resolved_total resolution="backfilled"': backfilled,
        'gapwatch_backfill_documents_total outcome="written"': backfilled,
        'gapwatch_backfill_documents_total outcome="failed"': 0,
        "gapwatch_gaps_open": 0,
        "gapwatch_detection_delay_seconds_count": len(gaps),
        'gapwatch_pipeline_status status="HEALTHY"': 1,
        "gapwatch_coverage_ratio": 1,
        "gapwatch_up": 5,
    }
    until(lambda: _scraped(page, wanted) == wanted, f"{wanted}, not {_scraped(page, wanted)}", 10)


def _scraped(page: str, wanted: dict[str, int]) -> dict[str, float]:
    with urllib.request.urlopen(f"{page}metrics", timeout=30) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    samples = [sample for family in families for sample in family.samples]
    found = {}
    for name in wanted:
        metric, _, label = name.partition(" ")
        chosen = [sample for sample in samples if sample.name == metric and label in _labels(sample.labels)]
        found[name] = sum(sample.value for sample in chosen)
    return found


def _labels(labels: dict[str, str]) -> str:
    return ",".join(f'{name}="{value}"' for name, value in labels.items())


def _time(text: str) -> datetime:
    assert text.endswith("Z")
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
