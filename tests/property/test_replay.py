"""Replay drives the matcher that role `match` drives: old records say again what they said, whoever asks, however often."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gapwatch.core.envelopes import EventColumns, Marker
from gapwatch.core.envelopes.columns import Shape as ColumnShape
from gapwatch.core.envelopes.records import Event
from gapwatch.core.keys import KeyCodec
from gapwatch.core.matching import KeyMatcher
from gapwatch.core.rawreplay import Place, RawFeed, RawReader, Slot, Slots
from gapwatch.core.replay import EVER, Found, Named, Replay, Stretch, Verdict, as_asked, found_record, joined
from gapwatch.model.pipeline import KeyColumn, KeyType, PipelineSpec
from gapwatch.model.stream import Batch, Control, Operation, Outcome, Side
from gapwatch.model.suspect import Suspect
from tests.property.test_closed_loop import Loop
from tests.property.test_matching import OFTEN as MORE_OFTEN
from tests.property.test_matching import RAGGED, SEEDS
from tests.simulation.worker import Log
from tests.simulation.world import GRACE_MS, MAPPING, PIPELINE, START, TOPICS, Raw, Shape, World, digest, pipeline

CODEC = KeyCodec([KeyColumn(path="id", type=KeyType.BYTES)])
ALL = Stretch()
LEAD_MS = 2 * GRACE_MS
OFTEN = settings(MORE_OFTEN, max_examples=MORE_OFTEN.max_examples // 3)  # each example is several whole runs
ROUGH = dataclasses.replace(RAGGED, swapped=0.3, strange=0.1)


def replayed(
    log: Log,
    spec: PipelineSpec,
    stretch: Stretch = ALL,
    *,
    first: int = 0,
    grace_ms: int | None = None,
    whole: bool = True,
    partition: tuple[int, int] = (0, 2),
) -> Found:
    number, count = partition
    replay = Replay(spec, MAPPING, stretch, partition=number, partitions=count, grace_ms=grace_ms, whole=whole, keys_max=1_000)
    for offset in range(first, len(log)):
        record, append_time = log[offset]
        replay.take(record, offset, append_time)
    return joined([replay.found()])


def lasting(world: World, shuffle: int = 0) -> Log:
    """Return the world's log with time going on after it: each control record judges one more write of a key."""
    log = world.log(shuffle)
    last, append_time = log[-1]
    assert isinstance(last, Control)
    controls = [world.control(last.clock + GRACE_MS * number) for number in range(1, world.shape.writes + 1)]
    return [*log, *((control, append_time + 10 * number) for number, control in enumerate(controls, 1))]


def live(log: Log, spec: PipelineSpec) -> dict[bytes, str]:
    """Return the first suspect of every key that the running service raised."""
    matcher = KeyMatcher(0, 2, {PIPELINE: spec}, fingerprints={PIPELINE: MAPPING}, life="live")
    found: dict[bytes, str] = {}
    for offset, (record, append_time) in enumerate(log):
        for said in matcher.apply(record, offset, append_time):
            if isinstance(said, Suspect):
                found.setdefault(said.key, said.id)
    return found


def first_of(found: Found) -> dict[bytes, str]:
    """Return the suspect of each key that was raised first: what was raised before had an earlier due time."""
    first: dict[bytes, Named] = {}
    for named in found.named:
        known = first.get(named.suspect.key)
        if known is None or named.suspect.target_watermark < known.suspect.target_watermark:
            first[named.suspect.key] = named
    return {key: named.suspect.id for key, named in first.items()}


def keys_of(found: Found, *verdicts: Verdict) -> set[bytes]:
    return {named.suspect.key for named in found.named if named.verdict in (verdicts or tuple(Verdict))}


def text(found: Found) -> bytes:
    return json.dumps(found_record(dataclasses.replace(found, named=decodable(found.named)), CODEC, {})).encode()


def decodable(named: Sequence[Named]) -> list[Named]:
    """Return them with keys of the codec: a world's keys are plain bytes."""
    return [dataclasses.replace(one, suspect=_with_key(one.suspect, CODEC.encode([one.suspect.key]))) for one in named]


def _with_key(suspect: Suspect, key: bytes) -> Suspect:
    fields = {name: getattr(suspect, name) for name in suspect.__struct_fields__}
    return Suspect(**(fields | {"key": key}))


class Recorded(Loop):
    """A matcher and a confirmer that answer each other, and the topic that they leave behind."""

    def __init__(self, world: World, *, delivery: bool) -> None:
        super().__init__(world, delivery=delivery)
        self.log: list[tuple[Batch | Control, int]] = []
        self.outcomes: dict[tuple[bytes, int, tuple[int, int, int]], int] = {}

    def _apply(self, record: Batch | Control, append_time: int) -> None:
        super()._apply(record, append_time)
        self.log.append((record, self._append))
        for section in record.verdicts if isinstance(record, Batch) else ():
            for key, side, token, outcome in zip(section.keys, section.sides, section.tokens, section.outcomes, strict=True):
                self.outcomes[key, side, token] = outcome


@OFTEN
@given(SEEDS, st.booleans())
def test_j1_from_the_first_record_on_a_replay_names_what_the_live_run_raised(seed: int, delivery: bool) -> None:
    world = World(seed, dataclasses.replace(ROUGH, delivery=delivery))
    log, spec = lasting(world), pipeline(delivery=delivery)
    found = replayed(log, spec)
    assert first_of(found) == live(log, spec)
    assert keys_of(found, Verdict.OPEN, Verdict.UNKNOWN) >= world.differing
    assert keys_of(found, Verdict.OPEN) <= world.differing
    assert found.undecided == 0
    counts = found.counts
    assert counts["expected"] == sum(counts[name] for name in ("settled", "superseded", "closed", "waiting"))


@OFTEN
@given(SEEDS, SEEDS, st.booleans())
def test_j1_recorded_verdicts_stand_beside_what_is_named_and_decide_nothing(seed: int, shuffle: int, delivery: bool) -> None:
    loop = Recorded(World(seed, dataclasses.replace(ROUGH, delivery=delivery)), delivery=delivery)
    for _ in loop.run(shuffle):
        pass
    found = replayed(loop.log, loop.spec)
    assert first_of(found) == live(loop.log, loop.spec)
    said = {}
    for named in found.named:
        opening = named.suspect.opening
        said[named.suspect.key, opening.side, (opening.epoch, opening.major, opening.minor)] = named.confirmed
    assert {place: outcome for place, outcome in said.items() if outcome is not None} == {
        place: outcome for place, outcome in loop.outcomes.items() if place in said
    }
    gaps = {key for (key, _, _), outcome in said.items() if outcome is Outcome.GAP}
    assert gaps <= loop.ever
    without = [
        (Batch(record.format, record.sections, []) if isinstance(record, Batch) else record, at) for record, at in loop.log
    ]
    bare = replayed(without, loop.spec)
    assert [(named.suspect, named.shown_at) for named in bare.named] == [(named.suspect, named.shown_at) for named in found.named]


@OFTEN
@given(SEEDS, st.booleans())
def test_m7_twice_the_same_is_the_same_byte_for_byte(seed: int, delivery: bool) -> None:
    log = lasting(World(seed, dataclasses.replace(ROUGH, delivery=delivery)))
    spec = pipeline(delivery=delivery)
    assert text(replayed(log, spec)) == text(replayed(log, spec))


@OFTEN
@given(SEEDS, st.booleans(), st.integers(GRACE_MS // 2, 4 * GRACE_MS))
def test_j3_a_larger_grace_names_a_part_of_the_keys(seed: int, delivery: bool, grace_ms: int) -> None:
    world = World(seed, dataclasses.replace(ROUGH, delivery=delivery, lag=6_000))
    log, spec = lasting(world), pipeline(delivery=delivery)

    def named(grace: int) -> set[bytes]:
        return keys_of(replayed(log, as_asked(spec, grace_ms=grace), grace_ms=grace))

    assert named(2 * grace_ms) <= named(grace_ms)
    assert keys_of(replayed(log, spec)) == named(GRACE_MS), "the grace that was in force"
    longest = replayed(log, as_asked(spec, grace_ms=60_000), grace_ms=60_000)
    assert keys_of(longest, Verdict.LATE) == set(), "longer than the whole story"
    assert keys_of(longest) == world.differing


@OFTEN
@given(SEEDS, st.integers(0, 5_000), st.integers(500, 4_000), st.booleans())
def test_a_stretch_names_what_the_whole_log_says_of_it(seed: int, start: int, length: int, delivery: bool) -> None:
    """Read from the lead-in on, where the sink's lag is shorter than that: the rest of the log changes nothing."""
    world = World(seed, dataclasses.replace(ROUGH, delivery=delivery, strange=0.0, reemitted=0.0, swapped=0.0))
    log, spec = lasting(world), pipeline(delivery=delivery)
    stretch = Stretch(time_from=START + start, time_to=START + start + length)
    part = replayed(log, spec, stretch, first=first_needed(log, stretch.time_from - LEAD_MS), whole=False)
    whole = replayed(log, spec, stretch)
    known = {named.order: named.verdict for named in part.named if named.verdict is not Verdict.UNKNOWN}
    assert known.items() <= {named.order: named.verdict for named in whole.named}.items()
    expected = {named.order for named in whole.named if named.suspect.opening.side == Side.EXPECTED}
    assert {named.order for named in part.named} >= expected
    assert part.keys == whole.keys == set(written(log, stretch))


def first_needed(log: Log, time: int) -> int:
    """Return the first record with an event at or after `time`: where a search by append time begins, or later."""
    for offset, (record, _) in enumerate(log):
        if isinstance(record, Batch) and any(at >= time for section in record.sections for at in section.event_times):
            return offset
    return len(log)


def written(log: Log, stretch: Stretch) -> Iterator[bytes]:
    for record, _ in log:
        for section in record.sections if isinstance(record, Batch) else ():
            yield from (key for key, time in zip(section.keys, section.event_times, strict=True) if stretch.holds(time))


# raw topics


class Message:
    """One raw record, or a marker, as a Kafka client delivers it."""

    def __init__(self, place: Place, offset: int, append_time: int, holds: Raw | Marker) -> None:
        self.place, self.at, self.append_time, self.holds = place, offset, append_time, holds

    def topic(self) -> str:
        return self.place[0]

    def partition(self) -> int:
        return self.place[1]

    def offset(self) -> int:
        return self.at

    def timestamp(self) -> tuple[int, int]:
        return 1, self.append_time

    def key(self) -> bytes | None:
        return None

    def value(self) -> bytes | None:
        return None

    def headers(self) -> None:
        return None


class Decoder:
    """Reads what :class:`Message` holds, as columns."""

    shape = ColumnShape()

    def decode(self, messages: Sequence[Any]) -> EventColumns:
        columns = EventColumns(self.shape)
        for message in messages:
            raw = message.holds
            if isinstance(raw, Marker):
                columns.others.append((message.at, raw))
                continue
            content = b"" if raw.operation in (Operation.DELETE, Operation.TOUCHED) else digest(raw.value % (1 << 64))
            event = Event(raw.key, raw.operation, raw.major, 0, raw.event_time, content, None, None, None, None)
            columns.add(event, message.at, message.append_time)
        return columns


def topics_of(world: World) -> dict[Place, list[Message]]:
    """Return every raw partition with markers every 300 ms, until an hour after the last record."""
    last = max(raw.append_time for feed in world.feeds.values() for raw in feed.records)
    ticks = [*range(START, last + 1, 300), *(last + GRACE_MS * number for number in range(1, world.shape.writes + 4))]
    logs: dict[Place, list[Message]] = {}
    for feed in world.feeds.values():
        place, position = (TOPICS[feed.side], feed.number), 0
        found: list[tuple[int, Raw | Marker]] = []
        for tick in ticks:
            while position < len(feed.records) and feed.records[position].append_time <= tick:
                found.append((feed.records[position].append_time, feed.records[position]))
                position += 1
            found.append((tick, Marker(feed.watermark(position, tick))))
        logs[place] = [Message(place, offset, time, holds) for offset, (time, holds) in enumerate(found)]
    return logs


def slots_of(logs: dict[Place, list[Message]], batches: int) -> Iterator[Slot]:
    """Yield the slots of the logs, handed over in batches that follow from a seed."""
    rng = random.Random(batches)
    slots = Slots(list(logs), 250)
    position = dict.fromkeys(logs, 0)
    while True:
        if (slot := slots.take()) is not None:
            yield slot
            continue
        wanting = sorted(slots.wanting())
        if not wanting:
            return
        place = rng.choice(wanting if rng.random() < 0.8 else [at for at in logs if position[at] < len(logs[at])] or wanting)
        end = position[place] + rng.randrange(1, 30)
        slots.offer(place, logs[place][position[place] : end])
        position[place] = end
        if end >= len(logs[place]):
            slots.end(place)


def reread(world: World, spec: PipelineSpec, stretch: Stretch = ALL, *, batches: int = 0, until: int = EVER) -> Found:
    feeds = [
        RawFeed(
            side=side,
            topic=topic,
            decoder=Decoder(),
            starts={feed.number: 0 for feed in world.feeds.values() if feed.side is side},
            by_markers=True,
        )
        for side, topic in TOPICS.items()
    ]
    reader = RawReader(spec, MAPPING, feeds)
    replay = Replay(spec, MAPPING, stretch, until=until, whole=True, keys_max=1_000)
    number = 0
    for slot in slots_of(topics_of(world), batches):
        for record in reader.read(slot):
            replay.take(record, number, slot.end)
            number += 1
        if replay.finished:
            break
    return joined([replay.found()])


@OFTEN
@given(SEEDS, SEEDS, SEEDS)
def test_raw_topics_say_the_same_in_whatever_batches_they_come(seed: int, one: int, other: int) -> None:
    world = World(seed, ROUGH)
    stretch = Stretch(time_from=START + 500, time_to=START + 3_500)
    for bounds, until in ((ALL, EVER), (stretch, stretch.time_to + LEAD_MS)):
        first = reread(world, pipeline(), bounds, batches=one, until=until)
        assert text(first) == text(reread(world, pipeline(), bounds, batches=other, until=until))
        assert first.complete


@OFTEN
@given(SEEDS, st.sampled_from([400, 5_000]))
def test_raw_topics_name_what_differs_in_the_end(seed: int, lag: int) -> None:
    """Without the sink's position a long lag is late; what never came, and what nobody explains, is open all the same."""
    world = World(seed, dataclasses.replace(ROUGH, partitions=1, lag=lag))
    found = reread(world, pipeline())
    assert keys_of(found, Verdict.OPEN, Verdict.UNKNOWN) >= world.differing
    assert keys_of(found, Verdict.OPEN) <= world.differing
    assert found.holes == []
    assert found.undecided == 0


@OFTEN
@given(SEEDS)
def test_raw_topics_of_a_sink_in_time_name_nothing(seed: int) -> None:
    found = reread(World(seed, Shape(partitions=1, writes=60, lag=1_500, repeats=0.2)), pipeline())
    assert (found.named, found.holes) == ([], [])
    assert found.counts["expected"] == found.counts["settled"] + found.counts["superseded"]


@OFTEN
@given(SEEDS, st.sampled_from(list(Side)), st.integers(0, 40), st.integers(1, 60))
def test_chosen_raw_records_are_named_as_the_whole_log_names_them(seed: int, side: Side, start: int, length: int) -> None:
    world = World(seed, ROUGH)
    place, chosen = (TOPICS[side], 0), range(start, start + length)
    part = reread(world, pipeline(), Stretch(records={place: chosen}))
    whole = reread(world, pipeline())
    openings = {id(one): one.suspect.opening for one in whole.named}
    named = [one for one in whole.named if (openings[id(one)].feed, openings[id(one)].partition) == place]
    named = [one for one in named if openings[id(one)].offset in chosen]
    assert text(part) == text(dataclasses.replace(whole, named=named))
    writes = [message.holds for message in topics_of(world)[place][start : start + length]]
    assert part.keys == {one.key for one in writes if isinstance(one, Raw) and one.operation != Operation.SNAPSHOT}
