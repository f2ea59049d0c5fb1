"""What match says, as records."""

from __future__ import annotations

import msgspec

from gapwatch.model.suspect import Counters, Hole, PartitionStatus, Reason, Said, Seen, Suspect
from gapwatch.roles.match.outlet import status_record, suspect_record

SEEN = Seen(side=0, feed="f", partition=0, offset=5, epoch=1, major=2, minor=3, operation=1, event_time=4, digest=b"\x00\xff")
SUSPECT = Suspect(
    id="s1",
    pipeline="orders",
    partition=2,
    key=b"\x00k\xff",
    reason=Reason.UNSATISFIED,
    opening=SEEN,
    newest_expected=SEEN,
    newest_observed=None,
    older=[b"\x01"],
    due=1,
    source_watermark=2,
    target_watermark=3,
)
HOLE = Hole(id="h1", pipeline="orders", side=1, feed="f", feed_partition=0, time_from=1, time_to=2, reason="ingest_hole")


def test_suspects_of_one_key_share_a_record_key_and_read_back_equal() -> None:
    key, value = suspect_record(SUSPECT)
    assert key == b"orders\x00\x00k\xff"
    assert msgspec.json.decode(value, type=Said) == SUSPECT


def test_a_hole_reads_back_equal_and_is_keyed_by_its_id() -> None:
    key, value = suspect_record(HOLE)
    assert key == b"orders\x00h1"
    assert msgspec.json.decode(value, type=Said) == HOLE


def test_status_is_keyed_by_pipeline_and_partition() -> None:
    status = PartitionStatus(
        pipeline="orders",
        partition=2,
        partitions=4,
        worker="w",
        input_offset=9,
        written_at=1,
        source_watermark=0,
        target_watermark=0,
        source_caught_up=0,
        target_caught_up=0,
        delivered_through=0,
        oldest_unsettled=None,
        oldest_in_transit=None,
        pending=0,
        in_transit=0,
        raised=0,
        counters=Counters(),
        feeds=[],
        holes=[HOLE],
        delays_ms=[(50, 3), (-1, 1)],
    )
    key, value = status_record(status)
    assert key == b"orders/2"
    assert msgspec.json.decode(value, type=PartitionStatus) == status
