"""What events say of rows outside ``source.where`` and of documents that are marked as deleted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gapwatch.core.envelopes import BatchDecoder, Decoder, Event, decoder_for
from gapwatch.core.envelopes.batches import LoopDecoder
from gapwatch.core.mapping import CompiledMapping
from gapwatch.errors import RecordError
from gapwatch.model.pipeline import FeedKind, FeedSpec, FieldType
from gapwatch.model.stream import Operation, Side
from tests.unit.core.envelopes.test_feeds import ours
from tests.unit.core.samples import change, field, pipeline, record

PLACEHOLDER = "__debezium_unavailable_value"
INSIDE = {"id": 1, "customer": "a", "status": "paid", "amount": 5}
OUTSIDE = INSIDE | {"status": "draft"}


def decoder(*, full_before: bool = False, on_leave: str = "delete", where: str = "status = 'paid' and amount > 1") -> LoopDecoder:
    spec = pipeline(field("customer"))
    source = replace(
        spec.source,
        where=where,
        where_fields=(field("status"), field("amount", FieldType.INT)),
        on_leave=on_leave,
        feed=replace(spec.source.feed, full_before=full_before),
    )
    spec = replace(spec, source=source)
    return decoder_for(spec, Side.EXPECTED, CompiledMapping(spec))


def told(decoder: Decoder, value: Any) -> list[Operation]:
    events = decoder.decode(record(value, key={"id": 1}))
    assert all(isinstance(event, Event) for event in events)
    return [Operation(event.operation) for event in events if isinstance(event, Event)]


@pytest.mark.parametrize(
    ("op", "after", "said"),
    [
        ("c", INSIDE, [Operation.UPSERT]),
        ("u", INSIDE, [Operation.UPSERT]),
        ("r", INSIDE, [Operation.SNAPSHOT]),
        ("c", OUTSIDE, [Operation.UNCHANGED]),
        ("u", OUTSIDE, [Operation.DELETE]),
        ("r", OUTSIDE, []),
        ("u", INSIDE | {"status": None}, [Operation.DELETE]),
        ("u", INSIDE | {"status": PLACEHOLDER}, [Operation.TOUCHED]),
        ("u", INSIDE | {"status": PLACEHOLDER, "amount": 1}, [Operation.DELETE]),
    ],
)
def test_m21_a_row_outside_the_filter_is_a_delete_and_one_that_lacks_the_column_a_touch(
    op: str, after: dict[str, Any], said: list[Operation]
) -> None:
    assert told(decoder(), change(op, after=after)) == said


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (OUTSIDE, OUTSIDE | {"customer": "b"}, Operation.UNCHANGED),
        (OUTSIDE, INSIDE, Operation.UPSERT),  # mapped fields alike: it enters all the same
        (INSIDE, OUTSIDE, Operation.DELETE),
        (INSIDE, INSIDE, Operation.UNCHANGED),
        (INSIDE, INSIDE | {"customer": "b"}, Operation.UPSERT),
    ],
)
def test_m21_a_whole_before_image_tells_who_enters_and_who_was_never_in(
    before: dict[str, Any], after: dict[str, Any], said: Operation
) -> None:
    assert told(decoder(full_before=True), change("u", before=before, after=after)) == [said]


def test_m21_a_delete_is_a_delete_whatever_the_key_only_image_holds() -> None:
    assert told(decoder(), change("d", before={"id": 1})) == [Operation.DELETE]


def test_m21_who_ignores_leavers_is_told_nothing_by_one() -> None:
    ignoring = decoder(on_leave="ignore")
    assert told(ignoring, change("u", after=OUTSIDE)) == [Operation.UNCHANGED]
    assert told(ignoring, change("d", before={"id": 1})) == [Operation.DELETE]


def test_m21_an_event_without_the_filters_column_is_refused() -> None:
    with pytest.raises(RecordError, match="Column amount says whether the row counts, and is not there"):
        decoder().decode(record(change("u", after={"id": 1, "customer": "a", "status": "paid"}), key={"id": 1}))


def test_m21_an_unwrapped_row_is_judged_alike() -> None:
    added = {"__op": "u", "__source_ts_ms": 1_726_000_000_123, "__source_sequence": '["1","2"]', "__deleted": "false"}
    assert told(decoder(), OUTSIDE | added) == [Operation.DELETE]
    assert told(decoder(), INSIDE | added) == [Operation.UPSERT]


def test_m21_batches_take_the_same_way() -> None:
    class OfRecord:
        def __init__(self, value: Any, offset: int) -> None:
            self._record = record(value, key={"id": 1}, offset=offset)

        def topic(self) -> str:
            return self._record.topic

        def partition(self) -> int:
            return self._record.partition

        def offset(self) -> int:
            return self._record.offset

        def timestamp(self) -> tuple[int, int]:
            return 1, self._record.timestamp

        def key(self) -> bytes | None:
            return self._record.key

        def value(self) -> bytes | None:
            return self._record.value

        def headers(self) -> list[tuple[str, bytes | None]]:
            return []

    rows = [change("c", after=INSIDE), change("u", after=OUTSIDE), change("r", after=OUTSIDE), change("u", after=INSIDE)]
    columns = BatchDecoder(decoder()).decode([OfRecord(row, offset) for offset, row in enumerate(rows)])
    assert columns.offsets == [0, 1, 3]
    assert columns.operations == [Operation.UPSERT, Operation.DELETE, Operation.UPSERT]
    assert columns.others == []


@pytest.mark.parametrize(
    ("op", "document", "said"),
    [
        ("insert", {"gone": True}, [Operation.DELETE]),
        ("replace", {"gone": True, "customer": "a"}, [Operation.DELETE]),
        ("update", {"gone": False, "customer": "a"}, [Operation.UPSERT]),
        ("update", {"customer": "a"}, [Operation.UPSERT]),
        ("update_lookup", {"gone": True}, [Operation.TOUCHED]),
        ("update_touched", None, [Operation.TOUCHED]),
        ("delete", None, [Operation.DELETE]),
    ],
)
def test_m21_a_document_that_is_marked_as_deleted_is_gone(op: str, document: Any, said: list[Operation]) -> None:
    spec = pipeline(field("customer"))
    spec = replace(spec, target=replace(spec.target, deleted_when="gone = true"))
    made = decoder_for(spec, Side.OBSERVED, CompiledMapping(spec))
    event = ours(op, None if document is None else {"_id": 42, **document})
    assert [Operation(one.operation) for one in made.decode(event) if isinstance(one, Event)] == said
    assert made.loop(event) is None


@pytest.mark.parametrize(
    ("op", "said"),
    [("insert", Operation.UNCHANGED), ("update", Operation.DELETE), ("update_lookup", Operation.TOUCHED)],
)
def test_m21_a_collection_as_source_is_filtered_alike(op: str, said: Operation) -> None:
    spec = pipeline(field("customer"), source_feed=FeedSpec(kind=FeedKind.CHANGE_STREAM, topic="t"))
    key = (replace(spec.source.key[0], path="_id"),)
    spec = replace(spec, source=replace(spec.source, key=key, where="status = 'paid'"))
    made = decoder_for(spec, Side.EXPECTED, CompiledMapping(spec))
    (event,) = made.decode(ours(op, {"_id": 42, "customer": "a", "status": "draft"}))
    assert isinstance(event, Event)
    assert event.operation == said
    (event,) = made.decode(ours("update", {"_id": 42, "customer": "a", "status": "paid"}))
    assert isinstance(event, Event)
    assert event.operation == Operation.UPSERT
