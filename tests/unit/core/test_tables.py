"""Several tables into one target: keys that two rows have, rows that move from one to another, tables that say nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from msgspec.structs import replace as changed

from gapwatch.core.confirm import Difference, Presence, Progress, Reading, Reads, WaitAndReadAgain, judge
from gapwatch.core.gaps import opened, tables_of, time_of
from gapwatch.core.mapping import CompiledMapping
from gapwatch.core.resolve import joined, resolve
from gapwatch.errors import ConfigError
from gapwatch.model.gap import Cause, Detector, Kind
from gapwatch.model.pipeline import FeedKind, FeedSpec, FieldType, Match, PipelineSpec, SourceTable
from gapwatch.model.stream import FORMAT, Batch, Control, Operation, Outcome, PipelineTimes, Side
from gapwatch.model.suspect import Said, Suspect
from gapwatch.ports import StoredRecord
from gapwatch.roles.repair.reads import source_reading
from tests.simulation import world
from tests.simulation.bench import KEY, Bench, only
from tests.simulation.world import GRACE_MS, PIPELINE, START
from tests.unit.core.samples import field, pipeline
from tests.unit.core.test_resolve import table as catalogue

LATE = GRACE_MS + 1
TABLES = {"eu": "topic.eu", "us": "topic.us", "asia": "topic.asia"}


def tables() -> tuple[SourceTable, ...]:
    return tuple(SourceTable(table=name, feed=FeedSpec(kind=FeedKind.DEBEZIUM, topic=topic)) for name, topic in TABLES.items())


def of_tables(spec: PipelineSpec) -> PipelineSpec:
    return replace(spec, source=replace(spec.source, table="", feed=FeedSpec(kind=FeedKind.DEBEZIUM), tables=tables()))


class Shards(Bench):
    """A source with three tables, each a feed of one partition. ``silent``: those that were not read yet."""

    def __init__(self, *silent: str) -> None:
        self.silent = set(silent)
        self.epochs = dict.fromkeys(TABLES, 1)
        self.positions = dict.fromkeys(TABLES, 0)
        self.sent = dict.fromkeys(TABLES, 0)
        super().__init__(of_tables(world.pipeline()))

    def write(self, table: str, value: int | None, at: int, place: int, **more: Any) -> list[Said]:
        offset = self.positions[table]
        self.positions[table] += 1
        section = self.section(Side.EXPECTED, value, at, place=place, offset=offset, **more)
        return self.apply(Batch(FORMAT, [changed(section, feed=TABLES[table], epoch=self.epochs[table])], []))

    def streams(self, to: int, **_: Any) -> Any:
        states = [self.state(Side.OBSERVED, to)]
        for table, topic in TABLES.items():
            if table not in self.silent:
                state = changed(self.state(Side.EXPECTED, to), feed=topic, epoch=self.epochs[table])
                states.append(changed(state, offset_from=self.sent[table], offset_to=self.positions[table]))
                self.sent[table] = self.positions[table]
        return self.apply(Control(FORMAT, "one", START + to, states, [PipelineTimes(PIPELINE, 0, GRACE_MS)]))


def test_m24_nothing_is_due_until_every_table_was_read() -> None:
    bench = Shards("asia")
    bench.write("eu", 1, 100, place=1)
    assert bench.streams(10 * LATE) == []
    assert bench.status.source_watermark == 0
    bench.silent.clear()
    assert bench.streams(20 * LATE)[-1:] == bench.suspects
    assert bench.suspects[0].opening.feed == "topic.eu"


def test_a_table_that_is_no_longer_watched_holds_nothing() -> None:
    bench = Shards()
    bench.streams(100)
    bench.spec = replace(bench.spec, source=replace(bench.spec.source, tables=tables()[:2]))
    bench.silent.add("asia")
    bench.restart()
    bench.streams(5_000)
    assert bench.status.source_watermark == START + 5_000
    assert {feed.feed for feed in bench.status.feeds if feed.side == Side.EXPECTED} == {"topic.eu", "topic.us"}


@pytest.mark.parametrize("shown", [1, 2])
def test_m24_a_key_of_two_tables_is_due_for_the_stores_whatever_the_target_shows(shown: int) -> None:
    """Each row's topic alone would be satisfied by its own content: that there are two, only a read can tell."""
    bench = Shards()
    bench.write("eu", 1, 100, place=1)
    bench.observe(1, 150)
    assert bench.unsettled is None
    bench.write("us", 2, 200, place=2)
    bench.observe(shown, 250)
    raised = only(bench.streams(200 + LATE))
    assert (raised.opening.feed, raised.opening.operation, raised.reason) == ("topic.us", Operation.TOUCHED, "touched")
    bench.verdict(raised, Outcome.CLEARED)
    assert bench.unsettled is None
    bench.write("us", 3, 9_000, place=9)  # of the same table as the last one: a write like any other
    bench.observe(3, 9_100)
    assert bench.unsettled is None


def test_a_row_that_moved_and_whose_topics_keep_the_order_settles_by_itself() -> None:
    bench = Shards()
    bench.write("eu", 1, 100, place=1)
    bench.observe(1, 150)
    bench.write("eu", None, 200, place=2)
    bench.write("us", 1, 200, place=3)
    bench.observe(None, 250)
    bench.observe(1, 260)
    assert bench.streams(200 + LATE) == []
    assert bench.unsettled is None


@pytest.mark.parametrize("first", ["delete", "create"])
@pytest.mark.parametrize("delete_at", [2, 4])
def test_a_row_that_was_copied_before_it_was_deleted_is_not_taken_for_gone(first: str, delete_at: int) -> None:
    """Moved to another shard: created there, deleted here, and a sink that saw the delete last leaves no document."""
    bench = Shards()
    bench.write("eu", 1, 100, place=1)
    bench.observe(1, 150)
    steps = [("eu", None, delete_at), ("us", 1, 3)]
    for table, value, place in steps if first == "delete" else reversed(steps):
        bench.write(table, value, 200, place=place)
    bench.observe(None, 250)
    assert [one.key for one in bench.streams(250 + LATE)] == [KEY]


@pytest.mark.parametrize("seen", ["by snapshots", "by the stream, and read since", "not at all"])
def test_the_end_of_one_of_two_rows_is_not_the_end_of_the_key(seen: str) -> None:
    """A sink that follows it deletes the document, and the stream alone would agree: the other row has lost its own."""
    bench = Shards()
    if seen == "by snapshots":
        for table, value in (("eu", 1), ("us", 2)):
            bench.write(table, value, 50, place=1, operation=Operation.SNAPSHOT)
    elif seen == "by the stream, and read since":
        bench.write("eu", 1, 100, place=1)
        bench.observe(1, 110)
        bench.write("us", 2, 120, place=2)
        bench.verdict(only(bench.streams(120 + LATE)), Outcome.CLEARED)
        bench.write("us", 3, 9_000, place=3)
        bench.observe(3, 9_010)
        assert bench.unsettled is None
        bench.restart()
    bench.write("us", None, 20_000, place=9)
    bench.observe(None, 20_010)
    raised = [one for one in bench.streams(20_010 + LATE) if isinstance(one, Suspect)]
    assert [(one.key, one.reason) for one in raised] == [(KEY, "touched")]
    bench.verdict(raised[0], Outcome.GAP)
    assert bench.unsettled is None


def test_tokens_of_two_tables_are_not_compared() -> None:
    """The topic of one table was made anew: its epoch is higher, and says nothing about when the other table was written."""
    bench = Shards()
    bench.epochs["us"] = 5
    bench.streams(10)
    bench.write("us", 1, 100, place=50)
    bench.observe(1, 150)
    bench.write("eu", 2, 5_000, place=60)
    assert bench.unsettled == 5_000, "a lower epoch, and no repetition"
    raised = only([one for one in bench.streams(5_000 + LATE) if isinstance(one, Suspect)])
    bench.write("eu", 3, 20_000, place=61)
    assert bench.unsettled == 5_000
    bench.verdict(raised, Outcome.CLEARED)
    assert bench.unsettled == 20_000


def test_a_verdict_closes_no_write_that_another_table_brought_after_it_was_asked_for() -> None:
    bench = Shards()
    bench.write("eu", 1, 100, place=10)
    raised = only(bench.streams(100 + LATE))
    bench.write("us", 2, 9_000, place=5)  # lower than what was raised, and later
    bench.verdict(raised, Outcome.CLEARED)
    assert bench.unsettled == 100
    counters = bench.status.counters
    assert (counters.expected, counters.superseded, counters.cleared) == (2, 1, 0)
    assert bench.matcher.open_writes(PIPELINE) == 1
    bench.restart()
    assert bench.unsettled == 100


# ── what is read ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def several(revision: str) -> Reading:
    return Reading(presence=Presence.SEVERAL, revision=revision, tables=("eu", "us"))


def reads(before: Reading, after: Reading) -> Reads:
    target = Reading(presence=Presence.PRESENT, identity=b"1" * 16, target_ids=("42",))
    return Reads(before=before, target=target, after=after, differing=(), started_ms=1_000, proven_ms=1_000, ended_ms=1_000)


def test_m24_two_rows_with_one_key_are_a_duplicate_of_both_tables_once_they_stood_still() -> None:
    again = judge(None, reads(several("1 2"), several("1 2")), Progress(), Match.DIGEST)
    assert isinstance(again, WaitAndReadAgain)
    moved = judge(None, reads(several("1 2"), several("1 3")), again.progress, Match.DIGEST, proven_by_wait=True)
    assert isinstance(moved, WaitAndReadAgain)
    found = judge(None, reads(several("1 3"), several("1 3")), moved.progress, Match.DIGEST, proven_by_wait=True)
    assert isinstance(found, Difference)
    assert (found.kind, found.cause, found.fields) == (Kind.DUPLICATE, Cause.UNKNOWN, ())
    gap = opened(
        pipeline="orders",
        key=KEY,
        key_fields={"id": 42},
        difference=found,
        reads=reads(several("1 3"), several("1 3")),
        suspect=None,
        detector=Detector.SWEEP,
        opened_by="run",
        values={},
        now=time_of(START),
    )
    assert tables_of(gap) == ["eu", "us"]


def test_rows_of_several_tables_are_read_as_several() -> None:
    mapping = CompiledMapping(pipeline(field("v")))
    rows = tuple(StoredRecord(key=KEY, fields={"v": "a"}, revision=table, table=table) for table in ("eu", "us"))
    reading, canonical = source_reading(mapping, rows)
    assert (reading.presence, reading.revision, reading.tables, canonical) == (Presence.SEVERAL, "eu us", ("eu", "us"), None)


# ── one mapping ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def resolved(**types: str) -> PipelineSpec:
    spec = of_tables(pipeline(field("total", FieldType.INFERRED, maskable=True), field("note", FieldType.INFERRED)))
    infos = {
        name: catalogue(("id", "bigint", "p"), ("total", types[name], "m"), ("note", "text", "x"), identity=identity)
        for name, identity in (("eu", "f"), ("us", "d"), ("asia", "f"))
    }
    return joined(spec, [resolve(one, infos[one.source.table], None) for one in spec.by_table()])


def test_every_table_keeps_its_encoding_and_all_have_one_mapping() -> None:
    spec = resolved(eu="numeric(10,2)", us="numeric(12,4)", asia="numeric(10,2)")
    assert [one.fields[0].wire_scale for one in spec.by_table()] == [2, 4, 2]
    assert [one.fields[1].maskable for one in spec.by_table()] == [True] * 3, "one of them may lack it: all have its digest"
    assert {CompiledMapping(one).fingerprint for one in spec.by_table()} == {CompiledMapping(spec).fingerprint}
    assert [one.source.feed.full_before for one in spec.by_table()] == [True, False, True]


def test_a_column_that_means_something_else_in_one_table_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Column total has not the same type in eu and asia"):
        resolved(eu="integer", us="bigint", asia="text")
