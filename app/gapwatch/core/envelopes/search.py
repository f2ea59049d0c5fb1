"""The two feeds of an OpenSearch target: what our ``_seq_no`` tail read, and what an indexer acknowledges.

**Tail** (role ``capture`` fills ``gapwatch.feed.<pipeline>.target``). Record key: ``{"_id": "42"}``; record value: the mapped
part of ``_source``, as JSON. Headers, all ASCII: ``gapwatch-op`` is ``index``, or ``update_touched`` where the document is too
large for a record and the value empty; ``gapwatch-time`` our clock at the start of the
round, ``gapwatch-position`` ``<round>:<_seq_no>`` (rounds rise for ever, also over a new index), ``gapwatch-version`` the
document's version, ``gapwatch-shard`` ``<shard>:<primary term>:<_seq_no>``; ``gapwatch-watermark`` on markers only, which have
no key.

**Acks** (``feed: { acks: TOPIC }``; ``gapwatch_connectors.opensearch.acks`` makes them). Record value: JSON, one of

- ``{"op": "index", "id": "42", "time": 1726000000123, "document": {…}}``: the item was accepted; the whole document;
- ``{"op": "update", "id": "42", "time": …}``: accepted, the document is not known; the key is then read;
- ``{"op": "delete", "id": "42", "time": …}``;
- ``{"op": "rejected", "id": "42", "time": …, "status": 400, "error": "mapper_parsing_exception"}``: not done, so nothing was
  observed; ``core/envelopes/letters`` reads it as evidence of why;
- ``{"heartbeat": 1726000000123, "indexer": "a", "of": 2}``: all acks of this indexer for what was written before that time stand
  before this record in this partition. Every indexer sends one to *every* partition; ``of`` says how many indexers there are.
  With ``"delivered": {"shop.public.orders": {"0": 17}}``: it is through with everything below these offsets of what it reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from gapwatch.core.canonical import parse_json
from gapwatch.core.envelopes.change_stream import OP, POSITION, TIME, WATERMARK
from gapwatch.core.envelopes.columns import LATEST, MOST, Shape, out_of_range
from gapwatch.core.envelopes.compiled.loop import Loop
from gapwatch.core.envelopes.documents import DocumentEvents
from gapwatch.core.envelopes.records import Event, Marker, RawRecord, Truncate
from gapwatch.core.mapping import CompiledMapping
from gapwatch.errors import RecordError
from gapwatch.model.stream import Operation, Side

VERSION: Final = "gapwatch-version"
INDEXERS_MAX: Final = 1_000
TOUCHED: Final = b"update_touched"
OPERATIONS: Final = {"index": Operation.UPSERT, "update": Operation.TOUCHED, "delete": Operation.DELETE}


class TailDecoder:
    """Decodes what our ``_seq_no`` tail wrote."""

    def __init__(self, mapping: CompiledMapping, side: Side) -> None:
        self._events = DocumentEvents(mapping, side)

    @property
    def shape(self) -> Shape:
        return self._events.shape

    def loop(self, record: RawRecord) -> Loop | None:
        """Documents of a tail have no compiled loop."""
        return None

    def looped(self) -> None:
        """Nothing to remember."""

    def decode(self, record: RawRecord) -> Sequence[Event | Truncate | Marker]:
        headers = dict(record.headers)
        marker = headers.get(WATERMARK)
        if marker is not None:
            return (Marker(_digits(WATERMARK, marker)),)
        touched = headers.get(OP) == TOUCHED
        if not record.key or not (touched or (headers.get(OP) == b"index" and record.value is not None)):
            raise RecordError("unknown_operation", f"Header {OP} is {headers.get(OP)!r}, or the record is not whole.")
        major, _, minor = headers.get(POSITION, b"").partition(b":")
        version = {"_version": _digits(VERSION, headers[VERSION])} if VERSION in headers else {}
        return self._events.events(
            Operation.TOUCHED if touched else Operation.UPSERT,
            object_of(record.key),
            None if touched else {**object_of(record.value or b""), **version},
            major=_digits(POSITION, major),
            minor=_digits(POSITION, minor),
            event_time=_digits(TIME, headers.get(TIME, b"")),
        )


class AcksDecoder:
    """Decodes an indexer's acknowledgements. The raw offset is the position: one indexer writes a document's acks in order."""

    def __init__(self, mapping: CompiledMapping, side: Side) -> None:
        self._events = DocumentEvents(mapping, side)
        self._heard: dict[int, dict[str, int]] = {}  # partition → indexer → up to when it has told

    @property
    def shape(self) -> Shape:
        return self._events.shape

    def loop(self, record: RawRecord) -> Loop | None:
        """Acks have no compiled loop."""
        return None

    def looped(self) -> None:
        """Nothing to remember."""

    def decode(self, record: RawRecord) -> Sequence[Event | Truncate | Marker]:
        if not record.value:
            raise RecordError("document_missing", "An ack has no value.")
        ack = object_of(record.value)
        if "heartbeat" in ack:
            return self._heartbeat(record.partition, ack)
        op = ack.get("op")
        operation = OPERATIONS.get(op) if isinstance(op, str) else None
        if operation is None:
            if op == "rejected":
                return ()
            raise RecordError("unknown_operation", f"An ack's op is {op!r:.40}: none of {', '.join(OPERATIONS)}, rejected.")
        identifier = ack.get("id")
        if not isinstance(identifier, str):
            raise RecordError("key_missing", "An ack has no text in `id`.")
        document = ack.get("document") if operation is Operation.UPSERT else None
        if operation is Operation.UPSERT and not isinstance(document, Mapping):
            raise RecordError("document_missing", "An ack says index and has no document.")
        if document is not None and "version" in ack:
            document = {**document, "_version": ack["version"]}
        return self._events.events(
            operation, {"_id": identifier}, document, major=record.offset, minor=0, event_time=whole(ack, "time")
        )

    def _heartbeat(self, partition: int, ack: Mapping[str, Any]) -> Sequence[Marker]:
        """All indexers must have told: the time of the one that is furthest behind holds. Of those that are gone, none counts."""
        of, told = whole(ack, "of") if "of" in ack else 1, whole(ack, "heartbeat")
        if not 1 <= of <= INDEXERS_MAX:
            raise RecordError("unreadable_ack", f"A heartbeat speaks of {of} indexers: it must be 1 to {INDEXERS_MAX}.")
        if told > LATEST:  # kept, it would let this indexer count as through with everything for ever
            raise out_of_range()
        heard = self._heard.setdefault(partition, {})
        name = str(ack.get("indexer", ""))
        heard[name] = max(heard.get(name, 0), told)
        newest = sorted(heard.values(), reverse=True)[:of]
        if len(heard) > 2 * INDEXERS_MAX:
            self._heard[partition] = {indexer: time for indexer, time in heard.items() if time >= newest[-1]}
        return (Marker(newest[-1]),) if len(newest) == of else ()


def delivered_of(value: bytes) -> tuple[int, Mapping[tuple[str, int], int]]:
    """Return a heartbeat's time, and by topic and partition the next offset of its indexer. Raises RecordError."""
    said = object_of(value)
    if "heartbeat" not in said:
        return 0, {}
    told = whole(said, "heartbeat")
    if told > LATEST:  # nothing that this indexer says later would count
        raise out_of_range()
    topics = said.get("delivered", {})
    if not isinstance(topics, Mapping) or not all(isinstance(places, Mapping) for places in topics.values()):
        raise RecordError("unreadable_ack", "A heartbeat's `delivered` does not hold offsets by topic and partition.")
    found: dict[tuple[str, int], int] = {}
    for topic, places in topics.items():
        for partition in places:
            found[topic, _digits("delivered", partition.encode())] = whole(places, partition)
    return told, found


def object_of(raw: bytes) -> Mapping[str, Any]:
    """Return the JSON object that a record's key or value is; raises RecordError where it is none."""
    try:
        value = parse_json(raw)
    except ValueError as error:
        raise RecordError("unparsable_json", f"The record is not JSON: {error}.") from error
    if not isinstance(value, Mapping):
        raise RecordError("unparsable_document", "The record is no JSON object.")
    return value


def _digits(header: str, value: bytes) -> int:
    if not value.isdigit() or len(value) > 20:
        raise RecordError("unreadable_header", f"Header {header} holds no number: {value[:40]!r}.")
    return int(value)


def whole(ack: Mapping[str, Any], name: str) -> int:
    """Return a whole number of an ack; raises RecordError where there is none."""
    value = ack.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST:
        raise RecordError("unreadable_ack", f"An ack holds no whole number in `{name}`.")
    return value
