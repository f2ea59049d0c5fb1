"""Which events are sent again: those that say just what the row says now, and no others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest

from gapwatch.clock import SystemClock
from gapwatch.core.digests import identity
from gapwatch.core.envelopes import REPUBLISHED, BatchDecoder, decoder_for
from gapwatch.core.keys import KeyCodec
from gapwatch.core.mapping import CompiledMapping
from gapwatch.errors import StoreRefused, StoreUnreachable
from gapwatch.kafka.clients import Partition, Polled
from gapwatch.model.gap import Cause, Detector, Gap, Kind, State
from gapwatch.model.pipeline import PipelineSpec, RepairMode, RepairSpec
from gapwatch.model.stream import Side
from gapwatch.ports import StoredRecord
from gapwatch.roles.ingest.bindings import bindings_of, republished_topics
from gapwatch.roles.repair import resending
from gapwatch.roles.repair.resending import Republisher, ResendRequest, Signaller
from tests.unit.core.samples import TOPIC, change, field, pipeline, record

SPEC = pipeline(field("customer"))
MAPPING = CompiledMapping(SPEC)
CODEC = KeyCodec(SPEC.source.key)
KEY = CODEC.encode([1])
ROW = {"id": 1, "customer": "a"}
NOW = SystemClock().now()


class Message:
    def __init__(self, value: Any, offset: int, headers: Sequence[tuple[str, bytes]] = ()) -> None:
        self.raw = record(value, key={"id": 1}, offset=offset, partition=2)
        self._headers = list(headers)

    def topic(self) -> str:
        return self.raw.topic

    def partition(self) -> int:
        return self.raw.partition

    def offset(self) -> int:
        return self.raw.offset

    def timestamp(self) -> tuple[int, int]:
        return 1, self.raw.timestamp

    def key(self) -> bytes | None:
        return self.raw.key

    def value(self) -> bytes | None:
        return self.raw.value

    def headers(self) -> list[tuple[str, bytes]]:
        return self._headers


class Log:
    """A consumer of one partition, and the producer that writes to it."""

    def __init__(self, *messages: Message) -> None:
        self.messages = messages
        self.sent: list[tuple[str, bytes | None, bytes | None, Mapping[str, Any]]] = []
        self.silent = False
        self._at = 0

    async def log_range(self, at: Partition) -> tuple[int, int]:
        assert at == Partition(TOPIC, 2)
        return 5, 8

    async def assign(self, starts: Mapping[Partition, int]) -> None:
        self._at = starts[Partition(TOPIC, 2)]

    async def consume(self, limit: int, *, seconds: float) -> Polled:
        found = [] if self.silent else [message for message in self.messages if message.offset() >= self._at][:limit]
        return Polled(runs={Partition(TOPIC, 2): cast(Any, found)} if found else {})

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def send(self, topic: str, key: bytes | None, value: bytes | None, **where: Any) -> Any:
        self.sent.append((topic, key, value, where))

        async def acknowledged() -> None: ...

        return acknowledged()


def request(offset: int | None, row: dict[str, Any] | None = ROW) -> ResendRequest:
    evidence = {"side": "expected", "topic": TOPIC, "partition": 2, "offset": offset}
    gap = Gap(
        id="gap",
        pipeline=SPEC.id,
        key=KEY,
        key_fields={"id": 1},
        target_id=None,
        kind=Kind.MISSING,
        cause=Cause.UNKNOWN,
        state=State.OPEN,
        detector=Detector.STREAM,
        event_time=None,
        first_seen=NOW,
        confirmed_at=NOW,
        evidence=({**evidence, "offset": 5}, evidence, {"side": "source", "topic": None}) if offset is not None else (),
    )
    content = MAPPING.canonical_source(row) if row else None
    stored = StoredRecord(key=KEY, fields=row) if row else None
    return ResendRequest(key=KEY, gap=gap, row=stored, identity=identity(content.digest, content.masks) if content else b"")


def republisher(log: Log) -> Republisher:
    decoders = {TOPIC: decoder_for(SPEC, Side.EXPECTED, MAPPING)}
    return Republisher(decoders, cast(Any, log), cast(Any, log), lambda message: message, SystemClock())


async def test_the_newest_known_event_goes_to_its_own_partition_marked_and_otherwise_as_it_was() -> None:
    log = Log(Message(change("c", after={**ROW, "customer": "old"}), 5), Message(change("u", after=ROW), 6, [("h", b"1")]))
    assert await republisher(log).ask([request(6)], run_id="run-1") == [""]
    ((topic, key, value, where),) = log.sent
    newest = log.messages[1]
    assert (topic, key, value) == (TOPIC, newest.key(), newest.value())
    assert where == {"partition": 2, "headers": [("h", b"1"), (REPUBLISHED, b"run-1")]}


async def test_a_delete_is_sent_again_only_where_the_row_is_gone() -> None:
    log = Log(Message(change("d", before=ROW), 6))
    assert await republisher(log).ask([request(6, row=None), request(6)], run_id="r") == ["", resending.NOT_THE_ROW]
    assert len(log.sent) == 1


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (request(None), resending.NO_EVENT),
        (replace(request(6), gap=None), resending.NO_EVENT),
        (request(4), resending.GONE),  # below the log
        (request(9), resending.GONE),  # above it: the topic was made anew
        (request(5), resending.GONE),  # compacted away
        (request(7), "The source's event cannot be read: "),
        (request(6, row={**ROW, "customer": "newer"}), resending.NOT_THE_ROW),
        (request(6, row=None), resending.NOT_THE_ROW),
    ],
)
async def test_what_is_not_sent_again_and_why(asked: ResendRequest, said: str) -> None:
    log = Log(Message(change("u", after=ROW), 6), Message(b"junk", 7))
    (refusal,) = await republisher(log).ask([asked], run_id="r")
    assert refusal.startswith(said)
    assert log.sent == []


async def test_a_topic_that_does_not_answer_is_no_word_on_the_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resending, "READ_SECONDS", 0.05)
    log = Log(Message(change("u", after=ROW), 6))
    log.silent = True
    with pytest.raises(StoreUnreachable, match="was not read within"):
        await republisher(log).ask([request(6)], run_id="r")


async def test_one_signal_asks_for_all_rows_that_are_there() -> None:
    log, asked = Log(), []

    async def signal(requests: Sequence[ResendRequest], run_id: str) -> tuple[str, bytes, bytes]:
        asked.append((len(requests), run_id))
        return "signals", b"shop", b"{}"

    signaller = Signaller(signal, cast(Any, log))
    assert await signaller.ask([request(6), request(6, row=None)], run_id="r") == ["", resending.NO_DELETES]
    assert asked == [(1, "r")]
    assert log.sent == [("signals", b"shop", b"{}", {"partition": 0})]
    assert await signaller.ask([request(6, row=None)], run_id="r") == [resending.NO_DELETES]
    assert len(log.sent) == 1, "nothing is asked for where there is nothing to ask for"


async def test_nobody_is_asked_where_there_is_no_way() -> None:
    async def signal(requests: Sequence[ResendRequest], run_id: str) -> tuple[str, bytes, bytes]:
        raise StoreRefused("no way")

    log = Log()
    with pytest.raises(StoreRefused):
        await Signaller(signal, cast(Any, log)).ask([request(6)], run_id="r")
    assert log.sent == []


def test_what_one_pipeline_may_send_again_every_reader_of_its_topic_passes_over() -> None:
    """Else the other one would take it for a step back in its partition: a jumped slot."""
    allowing = replace(SPEC, id="allowing", repair=RepairSpec(modes=(RepairMode.DIRECT, RepairMode.REPUBLISH)))
    messages: list[Any] = [Message(change("u", after=ROW), 6), Message(change("c", after=ROW), 7, [(REPUBLISHED, b"run-1")])]

    def read(pipelines: dict[str, PipelineSpec], **more: Any) -> list[list[int]]:
        bound = bindings_of(pipelines, **more)[TOPIC]
        return [list(binding.decoder.decode(messages).offsets) for binding in bound if binding.side is Side.EXPECTED]

    assert read({SPEC.id: SPEC, allowing.id: allowing}) == [[6], [6]]
    assert read({SPEC.id: SPEC}) == [[6, 7]]
    assert read({SPEC.id: SPEC}, republished=republished_topics({SPEC.id: SPEC, allowing.id: allowing})) == [[6]]


@pytest.mark.parametrize("republished", [False, True])
def test_what_was_sent_again_is_passed_over_where_it_may_have_been(*, republished: bool) -> None:
    ours = [("h", b"1"), (REPUBLISHED, b"run-1")]
    messages = [Message(change("u", after=ROW), 6), Message(change("c", after=ROW), 7, ours)]
    columns = BatchDecoder(decoder_for(SPEC, Side.EXPECTED, MAPPING), republished=republished).decode(messages)
    assert list(columns.offsets) == ([6] if republished else [6, 7])
