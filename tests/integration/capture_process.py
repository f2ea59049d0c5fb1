"""One holder of a captured feed as a process: ``python -m tests.integration.capture_process FILE NAME [WHEN]``.

WHEN ``before`` or ``after``: it freezes itself right before, or right after, it writes the batch that holds the event of
:data:`FROZEN_AT`.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

from gapwatch.clock import SystemClock
from gapwatch.kafka.clients import AckedProducer
from gapwatch.kafka.fenced import FencedProducer
from gapwatch.ledger import open_ledger
from gapwatch.parent import end_with_parent
from gapwatch.roles.capture import role as capture
from gapwatch_connectors.mongodb.feed import MongoChangeStream

FROZEN_AT = 2  # the document's id
capture.LEASE_SECONDS, capture.RENEW_SECONDS = 5.0, 0.5  # a holder on a busy machine must not lose it by itself


class Freezing(FencedProducer):
    """Freezes its whole process once, beside one write."""

    when = ""

    async def write(self, records: Any, waiting: Any) -> None:
        here = self.when if any(b'"%d"' % FROZEN_AT in (one.key or b"") for one in records) else ""
        if here == "before":
            self._freeze()
        await super().write(records, waiting)
        if here == "after":
            self._freeze()

    def _freeze(self) -> None:
        Freezing.when = ""
        os.kill(os.getpid(), signal.SIGSTOP)


async def main(given: bytes, name: str, when: str) -> None:
    settings, spec, database, uri = pickle.loads(given)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    Freezing.when = when
    topic = spec.target.feed.topic
    dependencies = capture.CaptureDependencies(
        settings=settings,
        ledger=open_ledger(database),
        producer=AckedProducer(settings, client_id=name),
        feed_producer=lambda topic: Freezing(
            settings, transactional_id=settings.topics.transactional_id(topic), client_id=f"{topic}-{name}"
        ),
        partitions={topic: 2},
        count=lambda: asyncio.sleep(0, {topic: 2}),
        streams=[capture.Stream(pipeline=spec, topic=topic, open=partial(MongoChangeStream, spec, uri))],
        beats=[],
        clock=SystemClock(),
        holder=name,
        on_finding=lambda *_: None,
        on_requests=lambda *_: None,
    )
    await capture.CaptureRole(dependencies).run(stop)


if __name__ == "__main__":
    end_with_parent()
    asyncio.run(main(Path(sys.argv[1]).read_bytes(), sys.argv[2], "".join(sys.argv[3:])))
