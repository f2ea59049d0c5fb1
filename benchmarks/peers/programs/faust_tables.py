"""Plain Faust as its documentation shows it: two agents, two tables, one access for each event."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import faust

from benchmarks.peers.programs.answer import Answer, Arguments, arguments, as_json, document, row

PARTITIONS = 4


def application(options: Arguments) -> Any:
    return faust.App(
        options.group,
        broker=f"kafka://{options.servers}",
        store="memory://",
        datadir=options.directory,
        topic_partitions=PARTITIONS,
        topic_disable_leader=True,
        table_standby_replicas=0,
        consumer_auto_offset_reset="earliest",
        broker_commit_interval=1.0,
        broker_session_timeout=6,
        broker_heartbeat_interval=1,
        web_enabled=False,
        key_serializer="json",
        value_serializer="json",
    )


async def run(options: Arguments, answer: Answer) -> None:
    """Join until all is read; then print what was found and what is left over in the tables."""
    app, finished = application(options), asyncio.Event()
    expected = app.Table("expected", partitions=PARTITIONS)
    observed = app.Table("observed", partitions=PARTITIONS)

    def count() -> None:
        answer.read += 1
        if answer.read >= options.total and not options.follow:
            finished.set()

    @app.agent(app.topic(options.source))  # type: ignore[untyped-decorator]
    async def on_source(stream: Any) -> None:
        async for event in stream.events():
            after = event.value["after"]
            join(str(after["id"]), as_json(row(after)), expected, observed)
            count()

    @app.agent(app.topic(options.target))  # type: ignore[untyped-decorator]
    async def on_target(stream: Any) -> None:
        async for event in stream.events():
            join(event.key["id"], as_json(document(json.loads(event.value["after"]))), observed, expected)
            count()

    def join(key: str, found: list[Any], mine: Any, theirs: Any) -> None:
        other = theirs.get(key)
        if other is None:
            mine[key] = found
            return
        theirs.pop(key)
        if other != found:
            answer.wrong.add(int(key))

    app.finalize()
    await app.start()
    await finished.wait()
    await app.producer.flush()
    answer.missing, answer.extra = {int(key) for key in expected}, {int(key) for key in observed}
    answer.end()  # here: the loop's own end would wait for the app


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    given, result = arguments(), Answer()
    if given.follow:
        result.tell()
    asyncio.run(run(given, result))
