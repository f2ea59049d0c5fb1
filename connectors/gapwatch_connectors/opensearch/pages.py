"""A page of a search, as far as a scan looks at it: whole, or the little that a scan of ids alone needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from gapwatch.core.keys import TEXT_END
from gapwatch.model.pipeline import KeyType
from gapwatch.ports import Key, KeyChunk

ID_FIELDS: Final = (
    "timed_out,_shards.total,_shards.successful,_shards.failed,hits.total.value,hits.hits._id,hits.hits.sort,hits.hits._routing"
)
_TEXT_END: Final = TEXT_END.decode()


class IdHit(msgspec.Struct, frozen=True, gc=False):
    id: str = msgspec.field(name="_id")
    sort: list[int]
    routing: str | None = msgspec.field(name="_routing", default=None)


class _Total(msgspec.Struct, frozen=True):
    value: int


class _Hits(msgspec.Struct, frozen=True):
    hits: list[IdHit] = []
    total: _Total | None = None


class _Shards(msgspec.Struct, frozen=True):
    total: int
    successful: int
    failed: int


class IdPage(msgspec.Struct, frozen=True):
    """The answer to a search of which ``filter_path`` left :data:`ID_FIELDS`; what is empty, it leaves out."""

    timed_out: bool
    shards: _Shards = msgspec.field(name="_shards")
    hits: _Hits = _Hits()


class Answer(msgspec.Struct, frozen=True):
    """``whole``: all of one shard's answer is there. ``total``: where it was asked for. ``last``: where the next page begins."""

    whole: bool
    total: int | None
    hits: Sequence[Any]
    last: int


IDS: Final = msgspec.json.Decoder(IdPage)


def of_ids(page: IdPage) -> Answer:
    shards, found = page.shards, page.hits
    return Answer(
        whole=not (page.timed_out or shards.failed) and shards.successful == shards.total == 1,
        total=found.total.value if found.total is not None else None,
        hits=found.hits,
        last=found.hits[-1].sort[0] if found.hits else -1,
    )


def of_hits(answer: Mapping[str, Any]) -> Answer:
    shards, hits = answer["_shards"], answer["hits"]["hits"]
    return Answer(
        whole=not (answer["timed_out"] or shards["failed"]) and shards["successful"] == shards["total"] == 1,
        total=answer["hits"].get("total", {}).get("value"),
        hits=hits,
        last=hits[-1]["sort"][0] if hits else -1,
    )


def chunk_of_ids(kind: KeyType, ids: Sequence[str], identity: str, key_of: Callable[[str], Key]) -> KeyChunk:
    """Return ids as keys: in bulk where each is of the usual form of its type, else one by one, which raises KeyMisfit."""
    if kind is KeyType.INT:
        try:
            numbers = list(map(int, ids))
            if list(map(str, numbers)) == ids:
                return KeyChunk(identity=identity, block=np.array(numbers, dtype=np.int64))
        except (ValueError, OverflowError):
            pass
    if kind is KeyType.TEXT and "\0" not in "".join(ids):
        try:
            return KeyChunk(identity=identity, texts="".join([one for text in ids for one in (text, _TEXT_END)]).encode())
        except UnicodeEncodeError:  # half of a surrogate pair
            pass
    return KeyChunk(identity=identity, keys=[key_of(text) for text in ids])
