"""A ledger of a test's own, in a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gapwatch.ledger import SqlLedger, open_ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqlLedger]:
    """Yield an empty ledger (``tmp_path/ledger.db``); it is closed with the test."""
    opened = open_ledger(f"sqlite:///{tmp_path}/ledger.db")
    yield opened
    opened.close()
