"""Guarded writes by bulk: create where nothing was, replace or delete exactly what was read. Every item's result is read.

Where a document carries a version from outside (``version_type: external``), a write that counted one up would make the index
refuse the next real one: it is written with the same version, which refuses whatever is newer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from gapwatch.errors import RecordError, StoreUnreachable
from gapwatch.model.pipeline import FieldSpec, PipelineSpec
from gapwatch.ports import Key, StoredRecord, WriteItem, WriteResult
from gapwatch_connectors.opensearch.connection import Json, Search, encode
from gapwatch_connectors.opensearch.documents import build, routing_of
from gapwatch_connectors.opensearch.index import Dataset
from gapwatch_connectors.opensearch.keys import ID, DocumentIds
from gapwatch_connectors.opensearch.reader import VERSION, Place

NEWER: Final = "somebody else's write was there first"
SUCCESS: Final = range(200, 300)
CONFLICT: Final = 409
GONE: Final = 404
REASON_MAX: Final = 300
Action = dict[str, Any]


class OpenSearchWriter:
    """Implements :class:`gapwatch.ports.TargetWriter` for a pipeline's target index."""

    def __init__(self, pipeline: PipelineSpec, url: str) -> None:
        self._pipeline = pipeline
        self._search = Search(pipeline.target.store, url, retries=False)
        self._dataset = Dataset(self._search, pipeline.target.collection)
        self._ids = DocumentIds(pipeline.target.key)

    async def close(self) -> None:
        await self._search.close()

    def document(self, key: Key, row: StoredRecord, fields: Sequence[FieldSpec]) -> Mapping[str, Any]:
        return build(self._pipeline, self._ids, key, row, fields)

    def kept(self, document: StoredRecord) -> str:
        """Return index, id, routing and source of a document, as a bulk item would name them."""
        assert isinstance(document.raw, Place)
        source = {name: value for name, value in document.fields.items() if name not in (ID, VERSION)}
        return encode({**_at(document.raw), "_source": source}).decode()

    async def write(self, items: Sequence[WriteItem]) -> Sequence[WriteResult]:
        """Apply each item under its guard. Raises StoreUnreachable when the store answered for none of them."""
        results: dict[int, WriteResult] = {}
        lines: list[bytes] = []
        sent: list[int] = []
        index = (await self._dataset.resolve()).name
        for number, item in enumerate(items):
            try:
                command = self._commands(item, index)
            except RecordError as error:
                results[number] = _failed(item.key, error.message)
                continue
            lines += [encode(line) for line in command]
            sent.append(number)
        if sent:
            answer = await self._search.request("POST", "/_bulk", body=b"\n".join(lines) + b"\n")
            answers: Sequence[Json] = answer["items"]
            if len(answers) != len(sent):
                raise StoreUnreachable(f"{len(answers)} of {len(sent)} writes were answered.", store=self._search.store)
            for number, said in zip(sent, answers, strict=True):
                results[number] = _result(items[number].key, said)
        return [results[number] for number in range(len(items))]

    def _commands(self, item: WriteItem, index: str) -> list[Any]:
        """Return the lines of one item: the action with its guard, and the document. Raises RecordError."""
        read = item.replaces.raw if isinstance(item.replaces, StoredRecord) else None
        assert read is None or isinstance(read, Place)
        if item.document is None:
            assert read is not None, "what is not there cannot be deleted"
            return [{"delete": {**_at(read), **_guard(read, read.version)}}]
        document = {name: value for name, value in item.document.items() if name not in (ID, VERSION)}
        declared: int | None = item.document.get(VERSION)
        routing = routing_of(document, self._pipeline.target.routing) if self._pipeline.target.routing else None
        if read is None:
            where = _where(index, item.document[ID], routing)
            if declared is not None:  # `create` takes no version; this one refuses what is newer, and a deletion that is
                return [{"index": {**where, "version": declared, "version_type": "external_gte"}}, document]
            return [{"create": where}, document]
        if routing is not None and routing != read.routing:
            raise RecordError(
                "routing_differs",
                f"The document lies under the routing {read.routing}, and belongs under {routing}: a second one.",
            )
        return [{"index": {**_at(read), **_guard(read, declared)}}, document]


def _at(read: Place) -> Action:
    return _where(read.index, read.id, read.routing)


def _where(index: str, identifier: str, routing: str | None) -> Action:
    where = {"_index": index, "_id": identifier}
    return where if routing is None else {**where, "routing": routing}


def _guard(read: Place, declared: int | None) -> Action:
    """Return what makes a write fail unless the document is as it was read, or at least not newer."""
    if read.has_external_version:
        return {"version": max(read.version, declared or 0), "version_type": "external_gte"}
    if declared is not None and declared >= read.version:
        return {"version": declared, "version_type": "external_gte"}
    return {"if_seq_no": read.seq_no, "if_primary_term": read.primary_term}


def _result(key: Key, answer: Json) -> WriteResult:
    [said] = answer.values()
    status = said.get("status")
    if status in SUCCESS and "error" not in said:
        return WriteResult(key=key, outcome="written")
    if status == CONFLICT or (status == GONE and "error" not in said):  # to be deleted, and gone
        return WriteResult(key=key, outcome="guard_failed", reason=NEWER)
    return _failed(key, _reason(said, status))


def _reason(said: Json, status: Any) -> str:
    """Return why the server refused, without the value that it quotes."""
    error = said.get("error")
    if not isinstance(error, Mapping):
        return f"status {status}"
    why = f"{error.get('type')}: {error.get('reason')}"
    cause = error.get("caused_by")
    if isinstance(cause, Mapping) and cause.get("type") != error.get("type"):
        why = f"{why} ({cause.get('type')})"
    return why.partition(" Preview of field's value")[0][:REASON_MAX]


def _failed(key: Key, reason: str) -> WriteResult:
    return WriteResult(key=key, outcome="failed", reason=reason)
