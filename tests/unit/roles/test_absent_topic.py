"""Of a topic that was missing when it was looked for, no time is claimed that was proven later."""

from __future__ import annotations

from gapwatch.core.batches import unpack
from gapwatch.model.stream import NO_TOPIC, Control, FeedState
from tests.unit.core.samples import COMMITTED, TOPIC
from tests.unit.core.test_feeds import row
from tests.unit.roles.test_ingest_intake import Rig


def _feeds(rig: Rig) -> list[FeedState]:
    record = unpack(rig.sent[0][2] or b"")
    assert isinstance(record, Control)
    return record.feeds


async def test_a_missing_topic_is_vouched_for_only_up_to_when_it_was_missed() -> None:
    rig = Rig()
    rig.shared.owned.clear()
    rig.shared.missing, rig.shared.missing_seen = {TOPIC}, COMMITTED  # describe() was asked then; its answer took 3 s to be used
    (rows,) = rig.shared.rows.values()
    for second in range(4):  # meanwhile the topic came to be (its first change: COMMITTED + 500), and rows behind that change
        rows.read(row(second, COMMITTED + 1_000 * second))
    await rig.outlet.pulse()
    (state,) = [one for one in _feeds(rig) if one.feed_partition == NO_TOPIC and one.feed == TOPIC]
    assert state.watermark <= COMMITTED + 500, state.watermark - COMMITTED
