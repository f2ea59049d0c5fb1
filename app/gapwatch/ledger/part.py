"""What every part of the ledger shares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from gapwatch.ledger.bulk import Bulk
from gapwatch.ledger.database import Database

T = TypeVar("T")


class LedgerPart:
    """A group of queries over one database; :class:`~gapwatch.ledger.SqlLedger` is made of them."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._bulk = Bulk(database)


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
