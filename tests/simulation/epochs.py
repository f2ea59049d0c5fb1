"""New epochs: a feed partition's log ends, some records are lost with it, and a new log goes on from its offset 0.

The log of a :class:`World` is cut once per seed. Ingesters that were overtaken go on speaking of the old log; the matcher's
worker crashes in its checkpoint. Only the matcher is real here; what ingest decides at such a cut is not tried.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from gapwatch.core.checkpoint import Stage
from gapwatch.core.keys import partition_of
from gapwatch.model.stream import Batch, Control, FeedState, Section
from gapwatch.model.suspect import Hole
from tests.simulation.worker import Crash, Durable, Log, Worker, keys_of, shown, undisturbed
from tests.simulation.world import PIPELINE, Feed, Raw, Shape, World, pipeline

PARTITIONS = 2
LOST_MAX = 4
REASON = "topic_recreated"
_columns = ("keys", "operations", "offsets", "majors", "minors", "event_times", "append_times", "digests")


class Cut(NamedTuple):
    """Records ``[at, to)`` of a feed partition are lost; what was offset ``to`` is offset 0 of epoch 2."""

    feed: Feed
    at: int
    to: int

    @property
    def lost(self) -> list[Raw]:
        """Return what was lost and never read: what the connector only repeated had been read before."""
        return [raw for raw in self.feed.records[self.at : self.to] if not raw.again]


def cut_of(world: World, rng: random.Random) -> Cut:
    feed = rng.choice([one for one in world.feeds.values() if len(one.records) > LOST_MAX + 1])
    at = rng.randrange(1, len(feed.records) - LOST_MAX)
    return Cut(feed, at, at + rng.randrange(1, LOST_MAX + 1))


def recreated(log: Log, cut: Cut) -> Log:
    """Return the log as it is where the topic was made anew."""
    found: list[tuple[Batch | Control, int]] = []
    for record, time in log:
        if isinstance(record, Batch):
            sections = [part for section in record.sections for part in _parts(section, cut)]
            if sections:
                found.append((Batch(record.format, sections, []), time))
        else:
            feeds = [state for one in record.feeds for state in _states(one, cut)]
            found.append((msgspec.structs.replace(record, feeds=feeds), time))
    return found


def _is_of(one: Section | FeedState, cut: Cut) -> bool:
    return (one.side, one.feed_partition) == (cut.feed.side, cut.feed.number)


def _states(state: FeedState, cut: Cut) -> Iterator[FeedState]:
    if not _is_of(state, cut) or state.offset_to <= cut.at:
        yield state
    elif state.offset_to >= cut.to:
        start = state.offset_to - cut.to
        yield msgspec.structs.replace(state, epoch=2, offset_from=start, offset_to=start)


def _parts(section: Section, cut: Cut) -> Iterator[Section]:
    if not _is_of(section, cut):
        yield section
        return
    for start, end, epoch, less in ((0, cut.at, 1, 0), (cut.to, len(cut.feed.records), 2, cut.to)):
        first, last = max(start, section.offset_from), min(end, section.offset_to)
        if first >= last:
            continue
        rows = [row for row, offset in enumerate(section.offsets) if first <= offset < last]
        kept: dict[str, Any] = {name: [getattr(section, name)[row] for row in rows] for name in _columns}
        kept |= {"operations": bytes(kept["operations"]), "offsets": [offset - less for offset in kept["offsets"]]}
        yield msgspec.structs.replace(section, epoch=epoch, offset_from=first - less, offset_to=last - less, **kept)


def violation(seed: int) -> str:
    """Return the invariant that a new epoch breaks in this seed's world, empty where all hold."""
    rng = random.Random(f"epoch {seed}")
    shape = Shape(writes=40, lost=rng.choice((0, 0.15)), falsified=rng.choice((0, 0.1)), repeats=0.2, reemitted=0.3)
    world = World(rng.getrandbits(32), shape)
    cut = cut_of(world, rng)
    log = recreated(world.log(seed), cut)
    matcher, calm = undisturbed(pipeline(), log, partitions=PARTITIONS)
    holes = [one for one in calm.said.values() if isinstance(one, Hole) and one.reason == REASON]
    if len(holes) != 1 or (holes[0].side, holes[0].feed_partition) != (cut.feed.side, cut.feed.number):
        return f"3: {len(holes)} holes were said where one topic was made anew"
    (hole,) = holes
    if any(raw.event_time < hole.time_from or raw.append_time > hole.time_to for raw in cut.lost):
        return "1: the hole of a new epoch does not hold all that was lost"
    status = shown(matcher)
    if hole.id not in {one.id for one in status.holes}:
        return "1: the status does not show the hole of a new epoch, so it does not hold consistent-through"
    raised = matcher._pipelines[PIPELINE].cell.raised
    touched = {raw.key for raw in cut.lost if partition_of(raw.key, PARTITIONS) == 0}
    if wrong := raised ^ world.differing:
        if missing := wrong & world.differing - touched:
            return f"3: {sorted(missing)} differ beside the new epoch, and were not raised"
        if invented := wrong - world.differing - touched:
            return f"2: {sorted(invented)} were raised, and no record of them was lost"
    return _crashes(log, rng, keys_of(matcher), calm)


def _crashes(log: Log, rng: random.Random, keys: object, calm: Durable) -> str:
    """8: a worker that crashes around the new epoch says the same, and knows the same."""
    durable = Durable()
    try:
        Worker(pipeline(), durable, partitions=PARTITIONS, seed=rng.getrandbits(16)).run(
            log, every=rng.randrange(1, 6), crash_after=rng.randrange(8), crash_at=rng.choice(list(Stage))
        )
    except Crash:
        pass
    last = Worker(pipeline(), durable, partitions=PARTITIONS)
    last.run(log)
    if keys_of(last.matcher) != keys:
        return "8: a crash around a new epoch changed the state"
    return "" if durable.said.keys() == calm.said.keys() else "8: a crash around a new epoch changed what is said"
