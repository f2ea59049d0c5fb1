"""What every part of the ledger shares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Final, TypeVar

from gapwatch.ledger.bulk import Bulk
from gapwatch.ledger.database import Database

PIPELINES_AT_ONCE: Final = 100  # SQLite joins no more than 500 SELECTs
STATEMENTS_KEPT: Final = 32  # that take a millisecond to make, and are asked for the same pipelines again and again
T = TypeVar("T")


class LedgerPart:
    """A group of queries over one database; :class:`~gapwatch.ledger.SqlLedger` is made of them."""

    def __init__(self, database: Database) -> None:
        self._db = database

    @cached_property
    def _bulk(self) -> Bulk:  # its statements take a while to compile, and most processes never use them
        return Bulk(self._db)


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
