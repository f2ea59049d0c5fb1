"""The C library takes the option; what it does with it is measured by row 15 of the benchmarks."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from gapwatch import arenas


def test_all_threads_share_a_few_pools() -> None:
    code = "from gapwatch.arenas import share_arenas; import sys; sys.exit(share_arenas())"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == hasattr(ctypes.CDLL(None), "mallopt")


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert arenas.share_arenas() is False
