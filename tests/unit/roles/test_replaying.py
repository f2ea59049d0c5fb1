"""Which records a question reads, what it cannot be asked, and that nothing but reading happens."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal
from typing import Any, cast

import pytest

from gapwatch.cli.exits import UNDECIDED
from gapwatch.cli.replay import exit_code
from gapwatch.core.batches import pack
from gapwatch.core.replay import Found, Stretch
from gapwatch.errors import GapwatchError, HistoryLost, NotFoundError, UsageError
from gapwatch.kafka.clients import Partition
from gapwatch.kafka.topics import TopicAdmin
from gapwatch.model.pipeline import FeedKind, FeedSpec, PipelineSpec, Settings, TopicsSpec
from gapwatch.model.stream import FORMAT, Control
from gapwatch.roles.repair.questions import Question, check, chosen_by, question_of
from gapwatch.roles.repair.replaying import ReplayReader
from tests.property.test_replay import LEAD_MS, ROUGH, lasting, replayed, text
from tests.simulation import kafka
from tests.simulation.stores import VirtualClock
from tests.simulation.world import START, World, pipeline
from tests.unit.core.samples import COMMITTED, change

NOW = START + 10 * 3_600_000
EVENTS = Partition("gapwatch.events", 0)
SHAPE = dataclasses.replace(ROUGH, partitions=1)


class Consumer(kafka.Consumer):
    """Reads logs whose beginnings may be gone; what is paused brings nothing."""

    def __init__(self, broker: kafka.Broker, begins: Mapping[Partition, int]) -> None:
        super().__init__(broker, asyncio.Event())
        self._begins = begins
        self._paused: dict[Partition, int] = {}

    async def log_range(self, at: Partition) -> tuple[int, int]:
        return self._begins.get(at, 0), len(self._broker.logs[at])

    async def offsets_at(self, partitions: Collection[Partition], timestamp: int) -> Mapping[Partition, int | None]:
        found: dict[Partition, int | None] = {}
        for at in partitions:
            kept = self._broker.logs[at][self._begins.get(at, 0) :]
            found[at] = next((record.offset() for record in kept if record.time >= timestamp), None)
        return found

    async def pause(self, partitions: Collection[Partition]) -> None:
        self._paused |= {at: self._positions.pop(at) for at in partitions}

    async def resume(self, partitions: Collection[Partition]) -> None:
        self._positions |= {at: self._paused.pop(at) for at in partitions}


class Topics:
    """``gapwatch.events`` of one partition, as a world's ingesters left it."""

    def __init__(
        self, world: World, *, begins: int = 0, seed: int = 0, others: Sequence[int] = (), silence: tuple[int, int] = (0, 0)
    ) -> None:
        """``others``: when records were appended that hold nothing of this pipeline. ``silence``: after so many, so long (ms)."""
        self.broker = kafka.Broker({EVENTS.topic: 1}, VirtualClock(), seed=seed)
        self.log = lasting(world)
        for time in others:
            self.broker.append(EVENTS, None, pack(Control(FORMAT, "another", time, [], [])), time=time)
        for number, (record, append_time) in enumerate(self.log):
            self.broker.append(EVENTS, None, pack(record), time=append_time + silence[1] * (number >= silence[0]))
        self._begins = {EVENTS: begins}

    def ask(self, question: Question, consumer: type[Consumer] | None = None, spec: PipelineSpec | None = None) -> Found:
        settings = Settings(bootstrap_servers="nowhere", topics=TopicsSpec(partitions=1))
        clock = VirtualClock()
        clock._ms = NOW
        reader = ReplayReader(
            settings,
            lambda: cast(Any, (consumer or Consumer)(self.broker, self._begins)),
            cast(TopicAdmin, kafka.Admin(self.broker)),
            clock,
        )
        self.shares: list[float] = []
        return asyncio.run(reader.answer(question, spec or pipeline(), lambda share, _: self.shares.append(share)))


@pytest.mark.parametrize("seed", range(5))
def test_a_range_is_read_with_its_lead_in_and_changes_nothing(seed: int) -> None:
    topics = Topics(World(seed, SHAPE), seed=seed)
    begun = topics.log[0][1]
    question = Question(time_from=START + 1_000, time_to=START + 4_000)
    with pytest.raises(HistoryLost):  # what was appended before the topic was there is in no log
        topics.ask(question)
    question = Question(time_from=begun, time_to=begun + 600_000)
    found = topics.ask(question)
    assert found.complete
    assert found.undecided == 0
    assert topics.broker.committed == {}
    assert topics.shares == sorted(topics.shares)
    again = Topics(World(seed, SHAPE), seed=seed + 100)
    assert text(again.ask(question)) == text(found), "whatever batches it came in"


@pytest.mark.parametrize("seed", range(5))
def test_all_offsets_say_what_the_whole_log_says(seed: int) -> None:
    world = World(seed, SHAPE)
    topics = Topics(world)
    found = topics.ask(question_of("0:0", f"0:{len(topics.log)}"))
    whole = replayed(topics.log, pipeline(), Stretch(), partition=(0, 1))
    assert [(named.order, named.verdict) for named in found.named] == [(named.order, named.verdict) for named in whole.named]
    assert {named.suspect.key for named in found.named} >= world.differing
    half = topics.ask(question_of("0:0", f"0:{len(topics.log) // 2}"))
    assert half.counts["expected"] <= found.counts["expected"]


@pytest.mark.parametrize(
    ("asked", "kind", "said"),
    [
        (Question(time_from=NOW - 600_000, time_to=NOW), HistoryLost, "answers for writes from 2023-11-"),
        (question_of("0:0", "0:10"), HistoryLost, "no longer there: the log begins at 7"),
        (question_of("0:7", "0:100000"), UsageError, "ends at offset "),
        (question_of("3:0", "3:1"), UsageError, "has no partition 3"),
    ],
)
def test_a_range_that_is_not_in_the_log_says_from_where_on_it_is(asked: Question, kind: type[GapwatchError], said: str) -> None:
    topics = Topics(World(1, SHAPE), begins=7)
    if not asked.by_offsets:
        asked = dataclasses.replace(asked, time_from=topics.log[7][1], time_to=topics.log[7][1] + 1_000)
    with pytest.raises(kind) as caught:
        topics.ask(asked)
    assert said in str(caught.value)


def test_a_topic_that_is_not_there_is_no_empty_range() -> None:
    topics = Topics(World(1, SHAPE))
    topics.broker.partitions.clear()
    with pytest.raises(NotFoundError, match=r"There is no topic gapwatch\.events"):
        topics.ask(Question(time_from=START, time_to=START + 1))


@pytest.mark.parametrize(
    ("time_from", "time_to", "more", "said"),
    [
        ("2023-11-14T23:00:00Z", "2023-11-14T22:00:00Z", {}, "--from (2023-11-14T23:00:00.000Z) lies after --to"),
        ("2023-11-14T22:00:00Z", "2023-11-14T22:00:00Z", {}, "The range is empty: --from and --to are both 2023-11-14T22:"),
        (
            "2023-11-14T22:00:00Z",
            "2033-11-14T22:00:00Z",
            {},
            "--to (2033-11-14T22:00:00.000Z) lies in the future: it is",
        ),
        ("2023-11-14T22:00:00", "2023-11-14T23:00:00Z", {}, "--from must be a time in RFC 3339 with its zone, or offsets"),
        ("2023-11-14T22:00:00Z", "tomorrow", {}, "--to must be a time"),
        ("0001-01-01T00:00:00+01:00", "2023-11-14T22:00:00Z", {}, "--from must be a time in RFC 3339"),
        ("2023-11-14T22:00:00Z", "9999-12-31T23:59:59-01:00", {}, "--to must be a time in RFC 3339"),
        ("2023-11-14T22:00:00Z", "0:7", {}, "One end of the range is a time, the other offsets."),
        ("0:7,1:3", "0:9", {}, "--from and --to name different partitions."),
        ("0:7,0:3", "0:9", {}, "names a partition twice"),
        ("0:9", "0:7", {}, "--from (0:9) lies after --to (0:7)."),
        ("0:7", "0:7", {}, "The range is empty"),
        ("src/0:7", "src/0:9", {}, "Records of the events topic are chosen without a topic's name, and not of src."),
        ("src/0:7", "0:9", {"of": "raw"}, "--from and --to name different partitions."),
        ("src/0:9", "src/0:7", {"of": "raw"}, "--from (src/0:9) lies after --to (src/0:7)."),
        ("src/0:7,src/0:8", "src/0:9", {"of": "raw"}, "names a partition twice"),
        ("src:7", "src:9", {"of": "raw"}, "--from must be a time in RFC 3339 with its zone, or offsets"),
        ("2023-11-14T22:00:00Z", "2023-11-14T23:00:00Z", {"of": "gaps"}, "'gaps' cannot be replayed."),
        ("2023-11-14T22:00:00Z", "2023-11-14T23:00:00Z", {"grace_ms": 0}, "A grace of zero makes every write late."),
    ],
)
def test_what_has_no_answer_is_refused_with_what_to_do(time_from: str, time_to: str, more: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        check(dataclasses.replace(question_of(time_from, time_to), **more), NOW)
    assert said in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("asked", "kind", "said"),
    [
        (("other/0:0", "other/0:1"), UsageError, "other is no feed of orders. Its feeds: src, dst."),
        (("src/0:0,0:0", "src/0:1,0:1"), UsageError, "src/0 is named twice."),
        (("1:0", "1:1"), UsageError, "src has no partition 1. It has 1, from 0 on."),
        (("dst/0:0", "dst/0:9"), UsageError, "dst[0] ends at offset 2, before 9. Ask up to 0:2."),
        (("0:0", "0:2"), HistoryLost, "Offset 0 of src[0] is no longer there: the log begins at 1."),
    ],
)
def test_raw_records_that_are_not_there_say_which_are(asked: tuple[str, str], kind: type[GapwatchError], said: str) -> None:
    broker = kafka.Broker({"src": 1, "dst": 1}, VirtualClock(), seed=1)
    for topic in ("src", "dst"):
        for number in range(2):
            broker.append(Partition(topic, 0), None, b"{}", time=START + number)
    with pytest.raises(kind) as caught:
        ask_raw(broker, question_of(*asked, of="raw"), begins={Partition("src", 0): 1})
    assert said in str(caught.value)


def ask_raw(broker: kafka.Broker, question: Question, *, begins: Mapping[Partition, int] | None = None, **more: Any) -> Found:
    """Ask of topics src and dst, both in Debezium's format."""
    settings = Settings(bootstrap_servers="nowhere", topics=TopicsSpec(partitions=1))
    clock = VirtualClock()
    clock._ms = NOW
    made = cast(TopicAdmin, kafka.Admin(broker))
    reader = ReplayReader(settings, lambda: cast(Any, Consumer(broker, begins or {})), made, clock)
    feed = FeedSpec(kind=FeedKind.TOPIC, topic="dst", format="debezium")
    spec = pipeline(target=dataclasses.replace(pipeline().target, feed=feed), **more)
    return asyncio.run(reader.answer(question, spec, lambda share, counts: None))


@pytest.mark.parametrize(
    ("value", "reason"),
    [(b"none of ours", "unparsable"), (json.dumps(change("t")).encode(), "truncated")],
    ids=["odd", "truncate"],
)
def test_a_chosen_record_that_nobody_can_judge_is_a_hole_beside_those_that_can(value: bytes, reason: str) -> None:
    """It is a minute older than the write that is chosen with it: that one's time alone would leave it out."""
    broker = kafka.Broker({"src": 1, "dst": 1}, VirtualClock(), seed=1)
    broker.append(Partition("src", 0), b'{"id": 2}', value, time=COMMITTED + 500)
    written = change("c", after={"id": 1, "v": 1}, ts_ms=COMMITTED + 60_000)
    broker.append(Partition("src", 0), b'{"id": 1}', json.dumps(written).encode(), time=COMMITTED + 61_000)
    found = ask_raw(broker, question_of("0:0", "0:2", of="raw"))
    assert found.counts["expected"] == 1
    assert [(hole.feed, hole.reason) for hole in found.holes] == [("src", reason)]
    assert ask_raw(broker, question_of("0:1", "0:2", of="raw")).holes == []


def test_a_source_of_several_topics_wants_a_name() -> None:
    question = question_of("0:0", "0:1", of="raw")
    with pytest.raises(UsageError, match=r"has 2 topics, and 0:0 names none of them\. Write a/0:0\."):
        chosen_by(question, "orders", ["a", "b"], ["a", "b", "dst"])
    named = question_of("b/0:0,dst/3:5", "b/0:1,dst/3:7", of="raw")
    found = chosen_by(named, "orders", ["a", "b"], ["a", "b", "dst"])
    assert found == {Partition("b", 0): range(1), Partition("dst", 3): range(5, 7)}


def test_a_tolerance_is_tried_where_the_events_hold_the_value() -> None:
    topics = Topics(World(1, SHAPE))
    for field, said in (("v", "has no tolerance in the configuration"), ("w", "maps no field 'w'")):
        question = dataclasses.replace(question_of("0:0", "0:5"), tolerances={field: Decimal(1)})
        with pytest.raises(UsageError) as caught:
            topics.ask(question)
        assert said in caught.value.message
        assert caught.value.remedy


def test_what_was_found_is_plain_json() -> None:
    topics = Topics(World(3, SHAPE))
    record = json.loads(text(topics.ask(question_of("0:0", f"0:{len(topics.log)}"))))
    assert record["verdicts"] == {
        verdict: sum(row["verdict"] == verdict for row in record["named"]) for verdict in ("open", "late", "unknown")
    }
    assert sum(record["verdicts"].values()) > 0


def test_a_pipeline_that_was_not_watched_yet_is_not_called_consistent() -> None:
    """Others were, and the log reaches far enough back: what was written before its feeds first spoke nobody has judged."""
    world = World(1, SHAPE)
    begun = lasting(world)[0][1]
    topics = Topics(world, others=range(begun - 3_600_000, begun, 60_000))
    found = topics.ask(Question(time_from=begun - 1_800_000, time_to=begun - 1_200_000))
    record = json.loads(text(found))
    assert (record["complete"], record["named"], record["undecided"]) == (True, [], 0)
    assert {(hole["topic"], hole["reason"]) for hole in record["holes"]} == {("src", "ingest_hole"), ("dst", "ingest_hole")}
    assert exit_code(record) == UNDECIDED


class Retention(Consumer):
    """While the log is searched its first records go."""

    async def offsets_at(self, partitions: Collection[Partition], timestamp: int) -> Mapping[Partition, int | None]:
        self._begins = {EVENTS: 20}
        return await super().offsets_at(partitions, timestamp)


def test_what_retention_removes_while_the_log_is_searched_is_missed() -> None:
    topics = Topics(World(1, SHAPE))
    time_from = topics.log[0][1] + LEAD_MS
    question = Question(time_from=time_from, time_to=time_from + 1_000)
    assert topics.ask(question).counts["expected"] > 0
    with pytest.raises(HistoryLost, match="The range is not in "):
        topics.ask(question, Retention)


def test_raw_topics_that_begin_after_the_range_do_not_answer_for_it() -> None:
    """The table was not captured yet, or its topic was made anew: nothing was read, which is not the same as nothing written."""
    broker = kafka.Broker({"src": 1, "dst": 1}, VirtualClock(), seed=1)
    written = json.dumps(change("c", after={"id": 1, "v": 1}, ts_ms=START + 60_000)).encode()
    for topic in ("src", "dst"):
        broker.append(Partition(topic, 0), b'{"id": 1}', written, time=START + 61_000)
    found = ask_raw(broker, Question(time_from=START, time_to=START + 30_000, of="raw"))
    assert [(hole.feed, hole.time_from, hole.time_to) for hole in found.holes] == [("src", START, START + 30_000)]
    assert (found.complete, exit_code(json.loads(text(found)))) == (True, UNDECIDED)
    since = ask_raw(broker, Question(time_from=START + 61_000, time_to=START + 62_000, of="raw"))
    assert since.holes == []


def test_a_write_that_was_appended_before_it_was_committed_is_in_the_range() -> None:
    """The store's clock is ahead of Kafka's, by less than `clock_skew_max` and by more than two graces."""
    broker = kafka.Broker({"src": 1, "dst": 1}, VirtualClock(), seed=1)
    for number, committed in enumerate((START, START + 60_000, START + 70_000)):
        written = json.dumps(change("c", after={"id": number, "v": 1}, ts_ms=committed)).encode()
        for topic in ("src", "dst"):
            broker.append(Partition(topic, 0), b'{"id": %d}' % number, written, time=committed - 1_500)
    question = Question(time_from=START + 59_900, time_to=START + 61_000, of="raw", keys_max=10)
    found = ask_raw(broker, question, grace_seconds=0.5)
    assert (len(found.keys), found.complete) == (1, True)


def test_raw_topics_do_not_say_which_grace_was_in_force() -> None:
    broker = kafka.Broker({"src": 1, "dst": 1}, VirtualClock(), seed=1)
    broker.append(Partition("src", 0), b'{"id": 1}', json.dumps(change("c", after={"id": 1, "v": 1}, ts_ms=START)).encode())
    question = question_of("0:0", "0:1", of="raw")
    with pytest.raises(UsageError, match="do not say which grace was in force"):
        ask_raw(broker, question, grace_least_seconds=1.0)
    ask_raw(broker, dataclasses.replace(question, grace_ms=1_000), grace_least_seconds=1.0)
    ask_raw(broker, dataclasses.replace(question, keys_max=10), grace_least_seconds=1.0)  # it looks at every key anyway


def test_a_range_within_an_outage_of_the_service_is_answered_by_what_it_caught_up_with() -> None:
    """Nobody spoke in the lead-in: that ranges go on where they had ended is seen in what was said last before it."""
    world = World(1, dataclasses.replace(SHAPE, swapped=0.0, reemitted=0.0))
    topics = Topics(world, silence=(5, 1_800_000))
    fell_silent = topics.log[4][1]
    found = topics.ask(Question(time_from=fell_silent + 600_000, time_to=fell_silent + 1_200_000))
    assert (found.complete, found.holes, found.undecided) == (True, [], 0)


@pytest.mark.parametrize("of", ["events", "raw"])
def test_where_the_target_has_no_feed_the_streams_say_of_no_write_that_it_arrived(of: str) -> None:
    """Each write would be called open: live, each is read in both stores once it is due."""
    topics = Topics(World(1, SHAPE))
    spec = pipeline(target=dataclasses.replace(pipeline().target, feed=FeedSpec(kind=FeedKind.NONE)))
    question = question_of("0:0", "0:5", of=of)
    with pytest.raises(UsageError, match="has no feed: its writes are in no topic"):
        topics.ask(question, spec=spec)
    if of == "events":
        assert topics.ask(dataclasses.replace(question, keys_max=100), spec=spec).complete, "its keys can be reconciled"
