"""The C library takes the options; what it does with them is measured by rows 6 and 15 of the benchmarks."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from gapwatch import arenas


@pytest.mark.parametrize("name", ["share_arenas", "return_large_blocks", "give_back"])
def test_the_allocator_takes_it(name: str) -> None:
    code = f"from gapwatch.arenas import {name}; import sys; sys.exit({name}())"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == hasattr(ctypes.CDLL(None), "mallopt")


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert arenas.share_arenas() is False
    assert arenas.return_large_blocks() is False
    assert arenas.give_back() is False
