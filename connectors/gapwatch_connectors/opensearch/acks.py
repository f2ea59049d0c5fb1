"""For indexers in Python: what a bulk did, as records of an acks topic (``feed: { acks: TOPIC }``).

After every bulk, send ``acks_of(body, answer, time_ms)`` to the topic, keyed as they are, and wait for the broker; then commit
what was read. Once a second, send ``heartbeat(...)`` to *every* partition, after the acks of all that was written before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

_ENCODER = msgspec.json.Encoder(decimal_format="number")


class Ack(NamedTuple):
    """One record for the acks topic; the key keeps all acks of a document in one partition, in order."""

    key: bytes
    value: bytes


def acks_of(body: Sequence[Mapping[str, Any]], answer: Mapping[str, Any], time_ms: int) -> list[Ack]:
    """Return an ack for each item of a bulk: accepted ones with their document, refused ones as such.

    Args:
        body: The lines of the bulk as they were sent: actions, each followed by its document where it has one.
        answer: What the bulk returned; its items stand in the order of the actions.
        time_ms: The indexer's clock, milliseconds since the epoch, from before the bulk was sent.
    """
    operations = list(_operations(body))
    items = answer["items"]
    if len(items) != len(operations):
        raise ValueError(f"The bulk has {len(operations)} actions, its answer {len(items)} items.")
    return [_ack(kind, document, item[kind], time_ms) for (kind, document), item in zip(operations, items, strict=True)]


def heartbeat(time_ms: int, indexer: str, of: int = 1, *, delivered: Mapping[str, Mapping[int, int]] | None = None) -> bytes:
    """Return a heartbeat's value: all acks of `indexer` for what it wrote before `time_ms` were sent; `of`: how many indexers.

    ``delivered``: by topic and partition that it reads now, the next offset: it is through with everything below, and the acks
    of that stand before this heartbeat. Needed where a pipeline has ``delivery: { acks: TOPIC }``.
    """
    places = {topic: {str(partition): offset for partition, offset in one.items()} for topic, one in (delivered or {}).items()}
    return _ENCODER.encode({"heartbeat": time_ms, "indexer": indexer, "of": of} | ({"delivered": places} if places else {}))


def _operations(body: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Any]]:
    lines = iter(body)
    for line in lines:
        [kind] = line
        yield kind, None if kind == "delete" else next(lines)


def _ack(kind: str, document: Any, item: Mapping[str, Any], time_ms: int) -> Ack:
    identifier = str(item["_id"])
    said: dict[str, Any] = {"op": kind, "id": identifier, "time": time_ms}
    error = item.get("error")
    accepted = 200 <= item["status"] < 300 or (kind == "delete" and item["status"] == 404 and error is None)
    if not accepted:
        said |= {"op": "rejected", "status": item["status"]}
        said |= {"error": error.get("type")} if isinstance(error, Mapping) else {}
    elif kind in ("index", "create"):
        said |= {"op": "index", "document": document, "version": item["_version"]}
    return Ack(_ENCODER.encode({"_id": identifier}), _ENCODER.encode(said))
