"""A raw log that lost its end (same topic id, end below the committed offset) is another history: nothing of it is skipped."""

from __future__ import annotations

from typing import Any

from gapwatch.core.batches import read
from gapwatch.core.feeds import HeartbeatRows, Metadata
from gapwatch.core.matching import KeyMatcher
from gapwatch.kafka.clients import Committed
from gapwatch.kafka.topics import TopicFacts
from gapwatch.roles.ingest.ownership import Ownership
from tests.simulation.ledger import ModelLedger
from tests.unit.core.samples import COMMITTED
from tests.unit.core.test_feeds import row
from tests.unit.roles.test_ingest_intake import AT, Rig, message


async def test_a_log_that_ends_below_our_position_begins_a_new_epoch() -> None:
    rig = Rig()
    model = ModelLedger()
    ledger: Any = rig.shared.on.ledger
    ledger.epoch, ledger.newest_epoch = model.epoch, model.newest_epoch
    ownership = Ownership(rig.shared, rig.outlet)
    fact = TopicFacts(topic_id="id", partitions=1)
    said: list[object] = []
    rig.shared.owned[AT] = first = await ownership._own(AT, None, fact, 0, 0)
    await rig.outlet.pulse()
    for offset in range(20):
        await rig.take(message(offset))
    await rig.outlet.pulse()
    assert first.progress.position == 20
    # The broker loses the log's tail (power cut, unclean election): it ends at 10; the sources writes 10 … 14 anew.
    committed = Committed(20, Metadata(topic_id="id", epoch=1, major=19, minor=19, time=COMMITTED).encode())
    rig.shared.owned[AT] = again = await ownership._own(AT, committed, fact, 0, 15)
    await rig.outlet.pulse()
    for offset in range(15):
        await rig.take(
            message(offset, lsn=offset if offset < 10 else 90 + offset, time=COMMITTED + (10_000 if offset >= 10 else 0))
        )
    await rig.outlet.pulse()
    assert [(one.finding, one.message) for one in rig.findings] == [
        ("log_truncated", f"{AT.topic}[0] lost its end: offsets 15 to 20")
    ]

    lost = taken = 0
    for partition in range(rig.shared.on.settings.topics.partitions):
        matcher = KeyMatcher(
            partition,
            rig.shared.on.settings.topics.partitions,
            rig.shared.on.settings.pipelines,
            fingerprints={"orders": rig.shared.bindings[AT.topic][0].fingerprint},
            life="x",
        )
        records = [value for topic, number, value in rig.sent if topic.endswith(".events") and number == partition]
        for place, value in enumerate(records):
            said += matcher.apply(read(value or b""), place, COMMITTED + 250 * place)
        (known,) = [feed for key, feed in matcher._times.feeds.items() if key[2] == AT.topic and key[3] == 0]
        lost += known.repeated
        taken += matcher.status("w", 0)[0].counters.expected
    assert again.progress.epoch > first.progress.epoch
    assert (taken, lost) == (35, 0), "nothing is passed over as a repetition"


async def test_what_was_read_under_an_earlier_ownership_proves_nothing_of_the_next_one() -> None:
    """A partition goes and comes back within one look at the ends of logs: it is read again, from where it was committed."""
    rig = Rig()
    model = ModelLedger()
    ledger: Any = rig.shared.on.ledger
    ledger.epoch, ledger.newest_epoch = model.epoch, model.newest_epoch
    ownership, fact = Ownership(rig.shared, rig.outlet), TopicFacts(topic_id="id", partitions=1)
    first = await ownership._own(AT, None, fact, 0, 0)
    rows = HeartbeatRows(settle_ms=1_000, disorder_ms=200)
    for second in range(1, 9):
        rows.read(row(second, second * 1_000))
    assert first.follower.proven(5_000, rows) == 3_800
    again = await ownership._own(AT, Committed(3, Metadata(topic_id="id", epoch=1).encode()), fact, 0, 9)
    assert again.follower.proven(again.progress.created, rows) == 0
    assert again.end.proven(9, 10_000, 3_800) == 0, "the end has not stood still while it was ours"
