"""bytewax: two Kafka sources, its join operator, a filter. Run as its documentation does, without recovery."""

from __future__ import annotations

import json
from typing import Any, Literal

import bytewax.operators as op
from bytewax.connectors.kafka import KafkaSource, KafkaSourceMessage
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink, run_main

from benchmarks.peers.programs.answer import Answer, Arguments, arguments, document, row


def run(options: Arguments, answer: Answer) -> None:
    """Join to the end of both topics; fill `answer`."""

    def expected(message: KafkaSourceMessage[Any, Any]) -> tuple[str, Any]:
        answer.read += 1
        after = json.loads(message.value)["after"]
        return str(after["id"]), row(after)

    def observed(message: KafkaSourceMessage[Any, Any]) -> tuple[str, Any]:
        answer.read += 1
        return json.loads(message.key)["id"], document(json.loads(json.loads(message.value)["after"]))

    def note(found: tuple[str, Any]) -> tuple[str, Any]:
        key, (left, right) = found
        kind = answer.missing if right is None else answer.extra if left is None else answer.wrong
        kind.add(int(key))
        return found

    flow = Dataflow("peers")
    tail = options.follow
    source = op.input("source", flow, KafkaSource([options.servers], [options.source], tail=tail, batch_size=1_000))
    target = op.input("target", flow, KafkaSource([options.servers], [options.target], tail=tail, batch_size=1_000))
    # Without an end to wait for, a pair is given out when it is complete, and what is missing never.
    mode: Literal["complete", "final"] = "complete" if options.follow else "final"
    joined = op.join("join", op.map("expected", source, expected), op.map("observed", target, observed), emit_mode=mode)
    differing = op.map("note", op.filter("differing", joined, lambda found: found[1][0] != found[1][1]), note)
    op.output("answers", differing, TestingSink([]))
    run_main(flow)


if __name__ == "__main__":
    given, result = arguments(), Answer()
    if given.follow:
        result.tell()
    run(given, result)
    result.end()
