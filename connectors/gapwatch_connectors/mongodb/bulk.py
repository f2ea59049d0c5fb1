"""Keys in bulk: a page of documents that hold nothing but an ``_id`` is read as the bytes that the server sent, by numpy.

Measured: a million keys cost the client 0.04 s instead of 0.9 s document by document, texts 0.15 s, and the whole read half the
time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from bson import Binary, Int64, ObjectId

from gapwatch.core.keys import TEXT_END
from gapwatch.model.pipeline import KeyType
from gapwatch.ports import Key, KeyChunk

Array = npt.NDArray[Any]
RUNS_MAX: Final = 64  # of documents of one shape in a page; a page that changes shape more often is read one by one
_DOCUMENT, _ARRAY = 0x03, 0x04
_INT32, _INT64, _OBJECTID, _BINARY = 0x10, 0x12, 0x07, 0x05
_UUID: Final = 4  # subtype
_NAME: Final = b"_id\0"
_TEXT: Final = 0x02
_NAME_WORD: Final = int.from_bytes(_NAME, "little")
_DIGITS: Final = 10 ** np.arange(1, 10)  # from these numbers on one has a digit more
_BEFORE_TEXT, _AROUND_TEXT = (
    9,
    14,
)  # bytes of a document {_id: text}: from its type to the text, and all but the text with its zero

# The value of a document {_id: value}, by BSON type: how it lies in the bytes, and for which keys it is taken.
_VALUES: Final[dict[int, tuple[KeyType, list[tuple[str, str]]]]] = {
    _INT32: (KeyType.INT, [("value", "<i4")]),
    _INT64: (KeyType.INT, [("value", "<i8")]),
    _OBJECTID: (KeyType.OBJECTID, [("value", "S12")]),
    _BINARY: (KeyType.UUID, [("size", "<i4"), ("subtype", "u1"), ("value", "S16")]),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Ids of a page in its order, in one of three forms, and the last one as MongoDB compares it."""

    count: int
    last: Any
    block: Array | None = None
    texts: bytes | None = None
    keys: Sequence[Key] = ()

    def chunk(self, identity: str, most: int) -> KeyChunk:
        """Return the first `most` of them, which are all, or all but the last."""
        if self.block is not None:
            return KeyChunk(identity=identity, block=self.block[:most])
        if self.texts is None:
            return KeyChunk(identity=identity, keys=self.keys[:most])
        whole = self.count <= most
        return KeyChunk(identity=identity, texts=self.texts if whole else self.texts[: -len(self.last.encode() + TEXT_END)])


def page_of_texts(batch: bytes) -> Page | None:
    """Return the ids of an array of documents as texts; None where one is of another shape or type, or holds a zero."""
    joined = texts_of(batch)
    if joined is None:
        return None
    last = joined[: -len(TEXT_END)].rpartition(TEXT_END)[2].decode() if joined else None
    return Page(count=joined.count(TEXT_END), last=last, texts=joined)


def page_of_documents(documents: Sequence[Mapping[str, Any]], key_of: Callable[[Mapping[str, Any]], Key]) -> Page:
    """Return the keys of documents one by one."""
    last = documents[-1]["_id"] if documents else None
    return Page(count=len(documents), last=last, keys=[key_of(document) for document in documents])


def page_of_block(batch: bytes, kind: KeyType) -> Page | None:
    """Return the ids of an array of documents as a page of one width; None where one is of another shape or type."""
    block = block_of(batch, kind)
    if block is None:
        return None
    return Page(count=len(block), last=_bson_of(kind, block[-1]) if len(block) else None, block=block)


def _bson_of(kind: KeyType, element: Any) -> Any:
    """Return an element of a block of ids as MongoDB compares it."""
    if kind is KeyType.INT:
        return Int64(int(element))
    raw = bytes(element)
    return ObjectId(raw.ljust(12, b"\0")) if kind is KeyType.OBJECTID else Binary(raw.ljust(16, b"\0"), 4)


def first_batch(cursor: bytes) -> bytes | None:
    """Return the bytes of the array ``firstBatch`` of a reply's cursor; None where it does not come first."""
    name = b"firstBatch\0"
    if len(cursor) < 20 or cursor[4] != _ARRAY or cursor[5 : 5 + len(name)] != name:
        return None
    start = 5 + len(name)
    return cursor[start : start + int.from_bytes(cursor[start : start + 4], "little")]


def block_of(batch: bytes, kind: KeyType) -> Array | None:
    """Return the ids of an array of documents ``{_id: value}`` in its order, None where one is of another shape or type."""
    parts: list[Array] = []
    for run in _runs(batch, kind):
        if run is None or len(parts) >= RUNS_MAX:
            return None
        parts.append(run)
    if not parts:
        return np.empty(0, dtype=np.int64 if kind is KeyType.INT else "S1")
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _runs(batch: bytes, kind: KeyType) -> Iterator[Array | None]:
    """Yield the ids of documents of one shape that follow each other; None where one has a shape that is not known."""
    at, index, end = 4, 0, len(batch) - 1
    while at < end:
        digits = len(str(index))
        form = _form(batch, at, digits, kind)
        if form is None:
            yield None
            return
        count = min(10**digits - index, (end - at) // form.itemsize)
        found = np.frombuffer(batch, dtype=form, count=count, offset=at)
        same = _same(found)
        fits = len(found) if same.all() else int(np.argmin(same))
        if not fits:
            yield None
            return
        value = found["value"][:fits]
        yield value.astype(np.int64) if kind is KeyType.INT else value.copy()
        at += fits * form.itemsize
        index += fits


def _form(batch: bytes, at: int, digits: int, kind: KeyType) -> np.dtype[Any] | None:
    """Return the layout of the array's element at a position: tag, its number as text, and the document."""
    document = at + 1 + digits + 1
    if batch[at] != _DOCUMENT or document + 9 > len(batch):
        return None
    known = _VALUES.get(batch[document + 4])
    if known is None or known[0] is not kind:
        return None
    fields = [("tag", "u1"), ("number", f"V{digits + 1}"), ("length", "<i4"), ("type", "u1"), ("name", "S4")]
    form = np.dtype([*fields, *known[1], ("end", "u1")])
    return form if int.from_bytes(batch[document : document + 4], "little") == form.itemsize - 2 - digits else None


def _same(found: Array) -> Array:
    """Return which elements have the shape of the first."""
    first = found[0]
    same = (found["tag"] == _DOCUMENT) & (found["length"] == first["length"]) & (found["type"] == first["type"])
    same &= (found["name"] == _NAME.rstrip(b"\0")) & (found["end"] == 0)
    if "subtype" in (found.dtype.names or ()):
        same &= (found["size"] == 16) & (found["subtype"] == _UUID)
    return np.asarray(same)


def texts_of(batch: bytes) -> bytes | None:
    """Return the ids of an array of documents ``{_id: text}`` in its order, each ended as its canonical key is.

    None where one is of another shape or type, holds a zero, or is no UTF-8. Where a document begins is not read one after the
    other: what looks like the beginning of an id is one if every length leads from one to the next, from the first to the end.
    """
    if len(batch) <= _BEFORE_TEXT:
        return b""
    data = np.frombuffer(batch, dtype=np.uint8)
    words: Array = np.ndarray(shape=(len(batch) - 3,), dtype="<i4", buffer=batch, strides=(1,))
    at = np.flatnonzero(data[: 1 - _BEFORE_TEXT] == _TEXT)
    at = at[words[at + 1] == _NAME_WORD]
    lengths = words[at + 5].astype(np.int64)  # with the zero that ends a text
    ends = at + _BEFORE_TEXT + lengths  # of the texts; the documents' own follow
    digits = np.searchsorted(_DIGITS, np.arange(len(at) + 1), side="right") + 1
    begins = np.concatenate([[4], ends + 1])
    if not len(at) or bool(np.any(lengths < 1)) or begins[-1] != len(batch) - 1:
        return None
    if bool(np.any(at != begins[:-1] + digits[:-1] + 6)):
        return None
    whole = (data[begins[:-1]] == _DOCUMENT) & (words[at - 4] == lengths + _AROUND_TEXT) & (data[ends - 1] == 0)
    if not bool(whole.all()) or bool(data[ends].any()):
        return None
    bounds = np.zeros(len(data) + 1, dtype=np.int8)
    bounds[at + _BEFORE_TEXT] = 1
    bounds[ends + 1] = -1
    ended = data.copy()
    ended[ends] = TEXT_END[1]  # two zeros follow a text: its own and the document's
    joined = ended[np.cumsum(bounds[:-1], dtype=np.int8).view(bool)].tobytes()
    return joined if joined.count(0) == len(at) and _is_utf8(joined) else None


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
