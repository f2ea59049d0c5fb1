"""A ledger of a test's own, in a file."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from gapwatch.ledger import SqlLedger, open_ledger


@pytest.fixture(scope="session")
def empty_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of an empty ledger; migrations take most of the time of a test that makes its own."""
    file = tmp_path_factory.mktemp("ledger") / "empty.db"
    open_ledger(f"sqlite:///{file}").close()
    assert not file.with_name("empty.db-wal").exists(), "all of it is in the one file"
    return file


@pytest.fixture
def ledger(tmp_path: Path, empty_ledger: Path) -> Iterator[SqlLedger]:
    """Yield an empty ledger (``tmp_path/ledger.db``); it is closed with the test."""
    shutil.copy(empty_ledger, tmp_path / "ledger.db")
    opened = open_ledger(f"sqlite:///{tmp_path}/ledger.db")
    yield opened
    opened.close()
