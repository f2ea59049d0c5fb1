"""The judge of the demo: a full comparison of both stores with plain queries. Shares no code with what it judges."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import psycopg
import pymongo
from bson import Decimal128

FIELDS = ("customer", "status", "amount", "quantity")


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """Every difference by order id: rows without a document, documents without a row, both but unequal."""

    missing: frozenset[int]
    extra: frozenset[int]
    different: frozenset[int]
    source_count: int
    target_count: int

    @property
    def total(self) -> int:
        return len(self.missing) + len(self.extra) + len(self.different)

    def as_pairs(self) -> set[tuple[int, str]]:
        """Return (order id, what is wrong) for every difference."""
        named = (("missing", self.missing), ("extra", self.extra), ("different", self.different))
        return {(number, name) for name, numbers in named for number in numbers}


def compare(dsn: str, uri: str, database: str, collection: str) -> Truth:
    """Read every row and every document, and compare them; both stores must be at rest."""
    with psycopg.connect(dsn) as connection:
        rows = {
            int(number): (customer, status, Decimal(amount).normalize(), int(quantity))
            for number, customer, status, amount, quantity in connection.execute(
                "SELECT id, customer, status, amount, quantity FROM public.orders"
            )
        }
    client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(uri)
    try:
        found = client[database].get_collection(collection, read_concern=pymongo.read_concern.ReadConcern("majority")).find()
        documents = {_number(document["_id"]): _values(document) for document in found}
    finally:
        client.close()
    both = rows.keys() & documents.keys()
    return Truth(
        missing=frozenset(rows.keys() - documents.keys()),
        extra=frozenset(documents.keys() - rows.keys()),
        different=frozenset(number for number in both if rows[number] != documents[number]),
        source_count=len(rows),
        target_count=len(documents),
    )


def _number(identifier: Any) -> int:
    return int(identifier["id"] if isinstance(identifier, dict) else identifier)


def _values(document: dict[str, Any]) -> tuple[Any, ...]:
    amount = document.get("amount")
    if isinstance(amount, Decimal128):
        amount = amount.to_decimal()
    return (
        document.get("customer"),
        document.get("status"),
        Decimal(str(amount)).normalize() if amount is not None else None,
        document.get("quantity"),
    )
