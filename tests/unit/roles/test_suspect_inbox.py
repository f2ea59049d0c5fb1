"""What lies on ``gapwatch.suspects`` and is none of ours ends the role with a sentence, and is not passed over."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import pytest
from confluent_kafka import Message

from gapwatch.errors import ProtocolError
from gapwatch.kafka.clients import Committed, Partition, Polled
from gapwatch.model.pipeline import TopicsSpec
from gapwatch.model.suspect import Hole
from gapwatch.roles.repair.kafka_io import SuspectInbox

AT = Partition("gapwatch.suspects", 3)
HOLE = Hole(id="h", pipeline="orders", side=0, feed="orders", feed_partition=0, time_from=0, time_to=1, reason="log_truncated")


class Log:
    """A consumer that brings these values, one poll each, and notes what is committed."""

    def __init__(self, values: list[bytes]) -> None:
        self._values = list(enumerate(values, 7))
        self.committed: dict[Partition, Committed] = {}

    async def consume(self, limit: int, *, seconds: float) -> Polled:
        offset, value = self._values.pop(0)
        return Polled(runs={AT: [Message(topic=AT.topic, partition=AT.partition, offset=offset, value=value)]})

    async def commit(self, positions: dict[Partition, Committed]) -> bool:
        self.committed.update(positions)
        return True


def inbox(log: Log) -> SuspectInbox:
    return SuspectInbox(cast(Any, log), TopicsSpec())


async def test_a_record_of_a_later_version_says_where_it_lies_and_what_to_do() -> None:
    log = Log([msgspec.json.encode(HOLE), b'{"type": "rumour", "id": "r"}'])
    reader = inbox(log)
    hole = await reader.take(10, 0.0)
    await reader.done(hole)
    with pytest.raises(ProtocolError, match=r"offset 8 of gapwatch\.suspects\[3\].*upgrade role repair first"):
        await reader.take(10, 0.0)
    await reader.commit()
    assert log.committed == {AT: Committed(8)}, "it is read again, not passed over"


@pytest.mark.parametrize("value", [b"", b"\xff", b"[]", b'{"type": "hole", "id": 5}'])
async def test_nothing_else_is_taken_for_a_suspect(value: bytes) -> None:
    with pytest.raises(ProtocolError, match="offset 7"):
        await inbox(Log([value])).take(10, 0.0)
