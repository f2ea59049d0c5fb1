"""Look-ups by key, and documents that no key can be read of: they say nothing of the other keys that were asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import bson
import pytest
from bson.raw_bson import RawBSONDocument

from gapwatch.model.pipeline import FieldType
from gapwatch.ports import ABSENT, Key, StoredRecord, Unread
from gapwatch_connectors.mongodb import MongoReader
from tests.unit.core.samples import field, pipeline

ROWS = 40
HERE = 7
ODD = 23


class Collection:
    """Documents by ``_id``, found as MongoDB finds them: 23.0 is 23."""

    def __init__(self, *documents: bytes) -> None:
        self.documents = [RawBSONDocument(document) for document in documents]
        self.asked = 0

    async def read(self, condition: dict[str, Any]) -> list[RawBSONDocument]:
        self.asked += 1
        wanted = condition["_id"]["$in"]
        return [one for one in self.documents if bson.decode(_readable(bytes(one.raw)))["_id"] in wanted]


def _readable(raw: bytes) -> bytes:
    return raw.replace(b"\xff", b"?")


def document(identifier: Any, text: str = "a") -> bytes:
    return bson.encode({"_id": identifier, "v": text})


def broken(identifier: int) -> bytes:
    """A text that is no UTF-8: MongoDB keeps what a driver sends."""
    return document(identifier, "not text").replace(b"not", b"n\xfft")


@pytest.fixture
async def reader() -> AsyncIterator[MongoReader]:
    made = MongoReader(pipeline(field("v", FieldType.TEXT)), "mongodb://127.0.0.1:1")
    yield made
    await made.close()


def keys(reader: MongoReader) -> dict[int, Key]:
    return {number: reader._keys.codec.encode([number]) for number in range(ROWS)}


@pytest.mark.parametrize(
    ("odd", "why"),
    [(document(float(ODD)), "does not fit"), (broken(ODD), "cannot be decoded: InvalidBSON")],
    ids=["another type", "no UTF-8"],
)
async def test_one_odd_document_makes_no_other_key_unread(
    reader: MongoReader, monkeypatch: pytest.MonkeyPatch, odd: bytes, why: str
) -> None:
    """All that were missing beside it were unread with it, in every attempt: none of them became a gap."""
    collection = Collection(document(HERE), odd)
    monkeypatch.setattr(reader, "_read_now", collection.read)
    found = dict(await reader.fetch(keys(reader).values()))
    here, there = found.pop(keys(reader)[HERE]), found.pop(keys(reader)[ODD])
    assert isinstance(here, StoredRecord)
    assert isinstance(there, Unread)
    assert why in there.reason
    assert len(found) == ROWS - 2
    assert all(read is ABSENT for read in found.values())
    assert collection.asked < 2 * ROWS.bit_length() + 2


async def test_a_collection_of_another_type_is_not_asked_key_by_key(reader: MongoReader, monkeypatch: pytest.MonkeyPatch) -> None:
    collection = Collection(*[document(float(number)) for number in range(ROWS)])
    monkeypatch.setattr(reader, "_read_now", collection.read)
    found = await reader.fetch(keys(reader).values())
    assert all(isinstance(read, Unread) for read in found.values())
    assert collection.asked == 1
