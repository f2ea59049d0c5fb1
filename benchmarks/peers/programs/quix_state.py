"""quixstreams: both topics in one stream, one stateful function with the store and the changelog that are its default."""

from __future__ import annotations

import json
from typing import Any

from quixstreams import Application
from quixstreams.models.serializers import Deserializer

from benchmarks.peers.programs.answer import Answer, Arguments, arguments, as_json, document, row


class KeyText(Deserializer):  # type: ignore[misc]
    """Both key forms as one text: the join needs equal keys."""

    def __call__(self, value: bytes, ctx: object) -> str:
        return str(json.loads(value)["id"])


def run(options: Arguments, answer: Answer) -> None:
    """Join until all is read; fill `answer`."""
    app = Application(
        broker_address=options.servers,
        consumer_group=options.group,
        auto_offset_reset="earliest",
        state_dir=options.directory / "state",
        commit_interval=1.0,
        loglevel="ERROR",
    )
    source = app.topic(options.source, key_deserializer=KeyText(), value_deserializer="json")
    target = app.topic(options.target, key_deserializer=KeyText(), value_deserializer="json")
    expected = app.dataframe(source).apply(
        lambda value: {"side": "missing", "key": value["after"]["id"], "fields": as_json(row(value["after"]))}
    )
    observed = app.dataframe(target).apply(
        lambda value, key, *_: {"side": "extra", "key": int(key), "fields": as_json(document(json.loads(value["after"])))},
        metadata=True,
    )

    def join(value: dict[str, Any], state: Any) -> None:
        answer.read += 1
        if answer.read >= options.total and not options.follow:
            app.stop()
        other = state.get("other")
        if other is None:
            state.set("other", value)
            getattr(answer, value["side"]).add(value["key"])
            return
        state.delete("other")
        getattr(answer, other["side"]).discard(value["key"])
        if other["fields"] != value["fields"]:
            answer.wrong.add(value["key"])

    expected.concat(observed).apply(join, stateful=True)
    app.run()


if __name__ == "__main__":
    given, result = arguments(), Answer()
    if given.follow:
        result.tell()
    run(given, result)
    result.end()
