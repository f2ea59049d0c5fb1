"""Ingest's hot path without a broker: ``python -m benchmarks.hot_ingest``; microseconds of CPU per event and stage.

Messages come from memory, in batches as a busy consumer gets them; medians of several rounds. The typed decode of the limit
``R`` is measured beside it, in the same rounds.
"""

from __future__ import annotations

import argparse
import gc
import os
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import msgspec
from confluent_kafka import Message

from benchmarks import limits, work
from gapwatch import native
from gapwatch.core.batches import SectionBuilder, packed_batches
from gapwatch.core.compiledcolumns import CompiledSection
from gapwatch.core.envelopes import BatchDecoder, Columns, decoder_for
from gapwatch.core.feeds import FeedProgress
from gapwatch.core.mapping import CompiledMapping
from gapwatch.model.stream import Section, Side

BATCH = 2_000


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hot_ingest", description=__doc__)
    parser.add_argument("--events", type=int, default=40_000, help="of each side")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--native", action="store_true", help="with the module that `make native` builds")
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    for side in Side:
        stages = Stages(side, options.events, native.find({native.SWITCH: "1" if options.native else "0"}))
        taken: dict[str, list[float]] = {}
        for _ in range(options.rounds):
            for name, seconds in stages.run().items():
                taken.setdefault(name, []).append(seconds / options.events * 1e6)
        whole = sum(median(times) for name, times in taken.items() if name != "R: typed decode")
        for name, times in taken.items():
            print(f"{side.name.lower():9} {name:16} {median(times):6.2f} µs")
        print(f"{side.name.lower():9} {'all but R':16} {whole:6.2f} µs")


class Stages:
    """One side of the work of reference, in memory."""

    def __init__(self, side: Side, events: int, hot_path: native.HotPath) -> None:
        spec = work.settings("", "").pipelines["orders"]
        mapping = CompiledMapping(spec)
        self._side, self._fingerprint = side, mapping.fingerprint
        self._topic = (work.SOURCE, work.TARGET)[side]
        self._messages = [self._message(number + 100_000) for number in range(events)]
        self._decoder = BatchDecoder(decoder_for(spec, side, mapping, native=hot_path.module))

    def _message(self, number: int) -> Message:
        key, value = work.source_record(number) if self._side is Side.EXPECTED else work.target_record(number, wrong=False)
        return Message(
            topic=self._topic, partition=0, offset=number, key=key, value=value, timestamp=(1, work.written_ms(number))
        )

    def run(self) -> dict[str, float]:
        """Return seconds of CPU by stage, for all events."""
        taken: dict[str, float] = {}

        def measured(name: str, work: Callable[..., Any], *arguments: Any) -> Any:
            begun = time.process_time()
            result = work(*arguments)
            taken[name] = taken.get(name, 0.0) + time.process_time() - begun
            return result

        progress = FeedProgress(topic=self._topic, partition=0, partitions=4, epoch=1, position=0, sent=0, disorder_ms=200)
        for start in range(0, len(self._messages), BATCH):
            messages = self._messages[start : start + BATCH]
            measured("R: typed decode", self._limit, messages)
            measured("accessors", _grouped, messages)
            columns = measured("decode", self._decoder.decode, messages)
            measured("positions", progress.follow, [columns], 0)
            sections = measured("sections", self._sections, columns)
            measured("pack", _packed, sections)
        return taken

    def _limit(self, messages: Sequence[Message]) -> None:
        change, document_change = msgspec.json.Decoder(limits.Change).decode, msgspec.json.Decoder(limits.DocumentChange).decode
        document, key = msgspec.json.Decoder(limits.Document).decode, msgspec.json.Decoder(limits.Key).decode
        if self._side is Side.EXPECTED:
            for message in messages:
                change(message.value())
            return
        for message in messages:
            key(message.key())
            document(document_change(message.value()).after or "")

    def _sections(self, columns: Columns) -> list[Section | CompiledSection]:
        made = []
        for part in columns.dealt(work.EVENTS_PARTITIONS, 0, len(columns)):
            if part is None:
                continue
            builder = SectionBuilder(
                pipeline="orders",
                side=self._side,
                feed=self._topic,
                feed_partition=0,
                epoch=1,
                mapping=self._fingerprint,
                shape=self._decoder.shape,
            )
            builder.take(part)
            made.append(builder.close(columns.offsets[0], columns.offsets[-1] + 1))
        return made


def _packed(sections: Sequence[Section | CompiledSection]) -> list[bytes]:
    return list(packed_batches(sections))


def _grouped(messages: Sequence[Message]) -> int:
    """What the consumer asks of each message before anybody decodes it."""
    run, at = 0, (None, None)
    for message in messages:
        if message.error() is None:
            here = (message.topic(), message.partition())
            if here != at:
                at = here
            run += 1
    return run


if __name__ == "__main__":
    gc.disable()  # its rounds are no stage's own
    main()
