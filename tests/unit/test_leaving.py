"""A process that was asked to stop ends in time, whatever still waits in its threads, and whoever reads what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, time
from gapwatch.logs import set_up_logs
from gapwatch.wiring import service

class Stop:
    def __init__(self): self.asked = False
    def is_set(self): return self.asked
    def set(self): self.asked = True

set_up_logs()
service.DRAIN_SECONDS = service.CLOSE_SECONDS = 0.2
service._begin_to_end(Stop())
time.sleep(100)  # something waits for a store
os._exit(77)
"""


@pytest.mark.parametrize("reader", ["reads", "is gone", "has stopped reading"])
def test_it_ends_whoever_reads_what_it_says(reader: str, tmp_path: Path) -> None:
    receiving, sending = os.pipe()
    if reader == "has stopped reading":
        os.set_blocking(sending, False)
        try:
            while True:
                os.write(sending, b"x" * 4096)
        except BlockingIOError:
            os.set_blocking(sending, True)
    if reader == "is gone":
        os.close(receiving)
    try:
        running = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=sending, stderr=sending, cwd=tmp_path)
        try:
            assert running.wait(90) == 0
        finally:
            running.kill()
            running.wait()
    finally:
        os.close(sending)
        if reader != "is gone":
            os.close(receiving)
