"""Taking whole sections together ends where taking every event by itself does, and says the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gapwatch.core import fewevents
from gapwatch.core.compiledrows import RowsModule
from gapwatch.core.keystate import HEAD_BYTES
from gapwatch.core.matching import KeyMatcher
from gapwatch.model.pipeline import FieldSpec, FieldType, Match, PipelineSpec
from gapwatch.model.stream import (
    FORMAT,
    NO_DELIVERY,
    Batch,
    Control,
    FeedState,
    Letter,
    Operation,
    Outcome,
    PipelineTimes,
    Section,
    Side,
    VerdictSection,
)
from gapwatch.model.suspect import Suspect
from gapwatch.roles.match.journal import Journal
from tests.property.test_matching import OFTEN, RAGGED, SEEDS
from tests.simulation.bench import KEY, Bench
from tests.simulation.worker import keys_of, shown
from tests.simulation.world import MAPPING, PIPELINE, START, TOPICS, World, digest, pipeline

KEYS = st.integers(0, 11)
LETTERS = (Operation.DEAD_LETTERED, Operation.REJECTED)
# key, operation, step of the position (0 or less: a repetition), value, which maskable digests the event carries
EVENT = st.tuples(
    KEYS,
    st.sampled_from([Operation.UPSERT] * 20 + [one for one in Operation if one not in LETTERS]),
    st.sampled_from([1, 1, 1, 1, 0, -2]),
    st.sampled_from([0, 0, 0, 1]),
    st.sampled_from([3, 3, 3, 1, 2, 0]),
)
SECTION = st.tuples(st.sampled_from(Side), st.booleans(), st.lists(EVENT, min_size=1, max_size=8))  # in the other mapping?
STEP = st.one_of(
    st.lists(SECTION, min_size=1, max_size=4),  # a batch of sections
    st.integers(0, 5_000),  # a control record, so much later
    st.tuples(KEYS, st.sampled_from(LETTERS), st.integers(-3, 2)),  # what the sink says of a write so far behind
    st.tuples(KEYS, st.sampled_from(Outcome)),  # a verdict on what was last raised of a key
    st.none(),  # a checkpoint, and a restart from it
)
STORIES = st.lists(STEP, min_size=1, max_size=25)
MASKABLE = FieldSpec(target="v", source="v", type=FieldType.INT, maskable=True)
FIXED = dataclasses.replace(MASKABLE, maskable=False)
SPECS = {
    "plain": pipeline(fields=(FIXED,)),
    "masks": pipeline(fields=(MASKABLE, dataclasses.replace(MASKABLE, target="w", source="w"), FIXED)),
    "presence": pipeline(fields=(FIXED,), match=Match.PRESENCE),
    "documents": pipeline(fields=(FIXED,)),  # whose keys are not the target's ids
    "full": pipeline(fields=(FIXED,), pending_keys_max=3, settled_keys_max=2, suspects_max=1),
}


def _upserts(*keys: int) -> list[tuple[int, Operation, int, int, int]]:
    return [(key, Operation.UPSERT, 1, 0, 3) for key in keys]


# A key that was stored as open, and then was settled and made room before the next checkpoint: it came back with a restart.
STORED_OPEN_AND_EVICTED: list[Any] = [
    [(Side.EXPECTED, True, _upserts(0, 1, 2))],
    None,
    [(Side.EXPECTED, False, _upserts(0)), (Side.EXPECTED, True, _upserts(0)), (Side.OBSERVED, True, _upserts(*[0] * 6, 1, 2))],
    None,
]


class Teller:
    """Makes records of a story; knows where each side's feed is."""

    def __init__(self, masks: int, *, named: bool = False) -> None:
        self.masks = masks
        self.named = named
        self.offset = dict.fromkeys(Side, 0)
        self.clock = START
        self.raised: dict[bytes, Suspect] = {}

    def record(self, step: Any) -> Batch | Control:
        if isinstance(step, int):
            self.clock += step
            return Control(FORMAT, "one", self.clock, [self._state(side) for side in Side], [PipelineTimes(PIPELINE, 0, 2_000)])
        if isinstance(step, tuple) and len(step) == 3:
            return Batch(FORMAT, [], [], [self._letter(*step)])
        if isinstance(step, tuple):
            return Batch(FORMAT, [], self._verdicts(b"key%d" % step[0], step[1]))
        return Batch(FORMAT, [self._section(*section) for section in step], [])

    def _letter(self, key: int, operation: Operation, ahead: int) -> Letter:
        position = max(0, self.offset[Side.EXPECTED] + ahead)
        return Letter(PIPELINE, b"key%d" % key, operation, "said", 0, position, position, 0, self.clock + ahead, "why")

    def _verdicts(self, key: bytes, outcome: Outcome) -> list[VerdictSection]:
        suspect = self.raised.get(key)
        if suspect is None:
            return []
        seen = suspect.opening
        token = (seen.epoch, seen.major, seen.minor)
        return [VerdictSection(PIPELINE, [key], bytes([seen.side]), [token], bytes([outcome]))]

    def _section(self, side: Side, other: bool, events: list[tuple[int, Operation, int, int, int]]) -> Section:
        start = self.offset[side]
        self.offset[side] += len(events)
        content = {Operation.UPSERT, Operation.SNAPSHOT, Operation.LOOKED_UP}
        masks = [
            tuple(digest(100 + value) if carried >> at & 1 else b"" for at in range(self.masks)) if operation in content else ()
            for _, operation, _, value, carried in events
        ]
        return Section(
            pipeline=PIPELINE,
            side=int(side),
            feed=TOPICS[side],
            feed_partition=0,
            epoch=1,
            mapping=MAPPING + other,
            offset_from=start,
            offset_to=self.offset[side],
            keys=[b"key%d" % key for key, *_ in events],
            operations=bytes(operation for _, operation, *_ in events),
            offsets=list(range(start, self.offset[side])),
            majors=[start + at + step for at, (_, _, step, _, _) in enumerate(events)],
            minors=[0] * len(events),
            event_times=[self.clock + at for at in range(len(events))],
            append_times=[self.clock + at + 5 for at in range(len(events))],
            digests=[digest(value) if operation in content else b"" for _, operation, _, value, _ in events],
            masks=masks if self.masks and any(masks) else None,
            target_ids=[b"%d" % (carried % 3) for *_, carried in events] if self.named and side is Side.OBSERVED else None,
        )

    def _state(self, side: Side) -> FeedState:
        return FeedState(
            pipeline=PIPELINE,
            side=int(side),
            feed=TOPICS[side],
            feed_partition=0,
            partitions=1,
            epoch=1,
            offset_from=self.offset[side],
            offset_to=self.offset[side],
            watermark=self.clock,
            caught_up=self.clock + 10_000,
            delivery=NO_DELIVERY,
            delivery_clock=0,
            lost=[],
        )


class Life:
    """A matcher that is now and then restored from what it wrote. ``native``: the compiled module, to take together with."""

    native: ClassVar[RowsModule | None] = None

    def __init__(self, spec: PipelineSpec, *, event_by_event: bool) -> None:
        self._spec = spec
        self._event_by_event = event_by_event
        self._log: dict[bytes, bytes] = {}
        self._journal = Journal(0)
        self._lives = 0
        self.matcher = KeyMatcher(
            0,
            1,
            {PIPELINE: spec},
            fingerprints={PIPELINE: MAPPING},
            life="0",
            event_by_event=event_by_event,
            native=None if event_by_event else self.native,
        )

    def restart(self) -> None:
        self._lives += 1
        for name, payload in self.matcher.state_records():
            if payload is None:
                self._log.pop(self._journal.removal(name))
            else:
                self._log.update([self._journal.record(name, self.matcher.applied, payload)])
        self._log.update([self._journal.marker(self.matcher.applied, self.matcher.marker(), topic_id="T")])
        self._journal = Journal(0)
        found = self._journal.restore(self._log.items())
        assert found is not None
        assert not found.leftovers
        self.matcher = KeyMatcher.restore(
            0,
            1,
            {PIPELINE: self._spec},
            fingerprints={PIPELINE: MAPPING},
            records=found.records,
            marker=found.marker,
            life=str(self._lives),
            event_by_event=self._event_by_event,
            native=None if self._event_by_event else self.native,
        )

    def take(self, record: Any, offset: int) -> tuple[Sequence[Any], tuple[Any, ...]]:
        """Take a record (None: begin anew); return what it says, and all that another life has to say and hold alike."""
        if record is None:
            self.restart()
            return (), (told(self.matcher.advance()),)
        said = self.matcher.apply(record, offset, START + offset)
        return said, (told(said), keys_of(self.matcher), shown(self.matcher))


def told(said: Any) -> list[bytes]:
    return sorted(msgspec.json.encode(one) for one in said)


@pytest.fixture(autouse=True, scope="module", params=["columns", "few"])
def the_way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Stories are short: by columns, and as the handfuls that they are."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "columns":
            patch.setattr(fewevents, "FEW", 0)
        yield


@pytest.mark.parametrize("name", sorted(SPECS))
@OFTEN
@given(story=STORIES)
def test_together_and_one_by_one_end_alike_and_say_the_same(name: str, story: list[Any]) -> None:
    spec = SPECS[name]
    if name == "full":  # who is let go first depends on the order of different keys; that everything is counted does not
        spec = dataclasses.replace(spec, pending_keys_max=1_000, settled_keys_max=1_000, suspects_max=1_000)
    teller = Teller(sum(field.maskable for field in spec.fields), named=name == "documents")
    fast, slow = Life(spec, event_by_event=False), Life(spec, event_by_event=True)
    for offset, step in enumerate([0, *story, 60_000, 1]):
        record = None if step is None else teller.record(step)
        said, together = fast.take(record, offset)
        _, one_by_one = slow.take(record, offset)
        assert together == one_by_one
        teller.raised.update({one.key: one for one in said if isinstance(one, Suspect)})


UPDATE = st.tuples(
    KEYS,
    st.sampled_from([Operation.UPSERT] * 6 + [Operation.DELETE]),
    st.sampled_from([1] * 9 + [-25]),  # newer than what was before, or older than that
    st.integers(0, 6),
    st.sampled_from([3] * 6 + [1]),
)
ROUND = st.one_of(
    st.lists(UPDATE, min_size=1, max_size=12, unique_by=lambda event: event[0]), st.lists(UPDATE, min_size=1, max_size=12)
)


@pytest.mark.parametrize(("name", "history"), [("plain", 64), ("plain", 3), ("masks", 64)])
@OFTEN
@given(st.lists(ROUND, min_size=2, max_size=14), st.data())
def test_updates_together_and_one_by_one_end_alike(name: str, history: int, rounds: list[Any], data: st.DataObject) -> None:
    """Whoever was settled is written anew, and the target mostly follows: at once, later, with something else, or not at all."""
    spec = dataclasses.replace(SPECS[name], history=history)
    teller = Teller(sum(field.maskable for field in spec.fields))
    fast, slow = Life(spec, event_by_event=False), Life(spec, event_by_event=True)
    steps: list[Any] = [0]
    for events in rounds:
        shows = data.draw(st.sampled_from(["follows"] * 4 + ["another", "nothing", "twice"]))
        steps.append([(Side.EXPECTED, False, events)])
        answers = [(*event[:3], 5, event[4]) if shows == "another" and not at else event for at, event in enumerate(events)]
        steps += [[(Side.OBSERVED, False, answers)]] * {"nothing": 0, "twice": 2}.get(shows, 1)
        steps += data.draw(st.sampled_from([[], [], [500], [None], [5_000]]))
    for offset, step in enumerate([*steps, None, 60_000, 1]):
        record = None if step is None else teller.record(step)
        _, together = fast.take(record, offset)
        _, one_by_one = slow.take(record, offset)
        assert together == one_by_one


@OFTEN
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from([1, 1, 2, None])), max_size=12), st.randoms(use_true_random=False))
def test_b7_documents_of_one_key_by_several_partitions_end_alike_in_any_order(
    writes: list[tuple[int, int | None]], random: Random
) -> None:
    """Each document's own writes come in their order (its partition's), those of different ones as they like, some twice."""
    placed = [(place, *write) for place, write in enumerate(writes)]
    ends = set()
    for shuffled in (False, True, True):
        bench = Bench()
        bench.expect(1, 0)
        waiting = {document: [one for one in placed if one[1] == document] for document in range(3)}
        order = [one[1] for one in placed]
        if shuffled:
            random.shuffle(order)
        for document in order:
            place, _, value = waiting[document].pop(0)
            for _ in range(random.choice([1, 1, 2]) if shuffled else 1):
                bench.observe(value, place, place=place, target_id=b"%d" % document)
        state = bench.matcher._pipelines[PIPELINE].cell.state(KEY)
        live = {document: value for _, document, value in placed}
        there = {b"%d" % document for document, value in live.items() if value is not None}
        assert {name for name, one in state.ids.known.items() if one.live} == there if state.ids else not there
        assert (len(there) > 1) == (state.ids is not None and state.ids.twin is not None)
        ends.add((state.odd, state.observed[HEAD_BYTES:] if state.observed else None))
    assert len(ends) == 1


@OFTEN
@example(STORED_OPEN_AND_EVICTED)
@given(STORIES)
def test_limits_are_kept_and_every_write_stays_in_one_class(story: list[Any]) -> None:
    spec = SPECS["full"]
    teller, life = Teller(0), Life(spec, event_by_event=False)
    for offset, step in enumerate([0, *story, 60_000, 1]):
        if step is None:
            before = keys_of(life.matcher), shown(life.matcher)
            life.restart()
            assert (keys_of(life.matcher), shown(life.matcher)) == before
            continue
        said = life.matcher.apply(teller.record(step), offset, START + offset)
        teller.raised.update({one.key: one for one in said if isinstance(one, Suspect)})
        status = shown(life.matcher)
        counters = status.counters
        classes = counters.settled + counters.superseded + counters.gap + counters.cleared + sum(counters.unverifiable.values())
        assert counters.expected == classes + life.matcher.open_writes(PIPELINE)
        rows = life.matcher._pipelines[PIPELINE].cell.rows
        assert rows.open <= spec.pending_keys_max
        assert rows.settled <= spec.settled_keys_max
        assert status.raised <= spec.suspects_max


@OFTEN
@given(SEEDS, st.integers(1, 40), st.booleans())
def test_a_whole_world_in_large_records_ends_as_event_by_event(seed: int, together: int, delivery: bool) -> None:
    world = World(seed, dataclasses.replace(RAGGED, delivery=delivery, swapped=0.2, keys=30, writes=120))
    spec = pipeline(delivery=delivery, fields=(FIXED,))
    lives = [Life(spec, event_by_event=event_by_event) for event_by_event in (False, True)]
    offset = 0
    waiting: list[Section] = []
    for record, append_time in [*world.log(), (Batch(FORMAT, [], []), START)]:
        if isinstance(record, Batch) and len(waiting) < together:
            waiting += record.sections
            continue
        for one in (Batch(FORMAT, waiting, []), record):
            fast, slow = (told(life.matcher.apply(one, offset, append_time)) for life in lives)
            assert fast == slow
            offset += 1
        waiting = []
    fast_life, slow_life = lives
    assert keys_of(fast_life.matcher) == keys_of(slow_life.matcher)
    assert shown(fast_life.matcher) == shown(slow_life.matcher)
    assert fast_life.matcher._pipelines[PIPELINE].cell.raised == world.differing
