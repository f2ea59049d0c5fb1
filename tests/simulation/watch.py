"""The invariants of ``design.md`` section 0, looked at whenever something becomes durable, and at the end.

What is compared with is never what the code says of itself: it is the truth of the shop, or what lies in the logs. Each method
says which invariant it stands for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec

from gapwatch.core.batches import read, unpack
from gapwatch.core.keystate import token_of
from gapwatch.core.matching import KeyMatcher
from gapwatch.kafka.clients import Committed, Partition
from gapwatch.kafka.topics import match_app_id, state_topic
from gapwatch.model.gap import Gap, State
from gapwatch.model.stream import Batch, Control, FeedState, Outcome, Section, Side, VerdictSection
from gapwatch.model.suspect import Heard, Hole, PartitionStatus, Said, Suspect
from gapwatch.ports import GapChange
from gapwatch.roles.match.journal import rank_of
from tests.simulation.kafka import Record
from tests.simulation.processes import Ingester, Matcher, Process, Surroundings
from tests.simulation.shop import GRACE_MS, PARTITIONS, PIPELINE, RAW, SHOWN, START, Change, Row, Shown, document_of
from tests.simulation.worker import keys_of

TOPIC_OF = {Side.EXPECTED: RAW, Side.OBSERVED: SHOWN}
_said = msgspec.json.Decoder(Said)
_status = msgspec.json.Decoder(PartitionStatus)


class Violation(Exception):  # noqa: N818 - what was found, not an error of the code that found it
    """An invariant does not hold."""


class Times(NamedTuple):
    """What the control records of a log say up to a record: the least of all partitions, 0 while one has not spoken."""

    source: int = 0
    source_caught_up: int = 0
    target: int = 0
    target_caught_up: int = 0


class Ear:
    """One partition of ``gapwatch.events``, read without the code under test."""

    def __init__(self) -> None:
        self.landed: dict[Partition, set[int]] = {Partition(topic, n): set() for topic in (RAW, SHOWN) for n in range(PARTITIONS)}
        self.reach: dict[Partition, int] = dict.fromkeys(self.landed, 0)  # up to where ranges follow each other
        self._spans: dict[Partition, list[tuple[int, int]]] = {at: [] for at in self.landed}
        self.watermark: dict[Partition, int] = dict.fromkeys(self.landed, 0)
        self.caught_up: dict[Partition, int] = dict.fromkeys(self.landed, 0)
        self.times: list[Times] = []  # by offset
        self.newest: dict[tuple[int, bytes], int] = {}
        self.gone: set[bytes] = set()  # keys that a verdict gave to the ledger: what is known of their order went with them
        self.forgotten = [0, 0]  # by side: redeliveries of such keys, which look like writes
        self.proven: dict[Partition, int] = dict.fromkeys(self.landed, 0)  # writes that a watermark was compared with

    def take_events(self, section: Section) -> None:
        self.landed[Partition(section.feed, section.feed_partition)].update(section.offsets)
        for key, major in zip(section.keys, section.majors, strict=True):
            known = self.newest.get((section.side, key), -1)
            self.newest[section.side, key] = max(known, major)
            self.forgotten[section.side] += major <= known and key in self.gone

    def cover(self, at: Partition, offset_from: int, offset_to: int) -> None:
        spans = self._spans[at]
        spans.append((offset_from, offset_to))
        while following := [end for start, end in spans if start <= self.reach[at] < end]:
            self.reach[at] = max(following)

    def take(self, state: FeedState, at: Partition) -> None:
        self.watermark[at] = max(self.watermark[at], state.watermark)
        self.caught_up[at] = max(self.caught_up[at], state.caught_up)

    def note(self) -> None:
        least = [
            min(times[Partition(topic, n)] for n in range(PARTITIONS))
            for topic in (RAW, SHOWN)
            for times in (self.watermark, self.caught_up)
        ]
        self.times.append(Times(*least))


class Watch:
    """Raises :class:`Violation`. ``processes``: all that there ever were, by name."""

    def __init__(self, around: Surroundings, processes: dict[str, Process]) -> None:
        self._around = around
        self._shop = around.shop
        self._topics = around.settings.topics
        self._state = state_topic(around.settings)
        self._processes = processes
        self.ears = [Ear() for _ in range(PARTITIONS)]
        self.heard: dict[str, Said] = {}  # what lies on the suspects topic, by id
        self.suspects: list[Said] = []
        self.statuses: dict[int, PartitionStatus] = {}
        self._marked: dict[int, int] = {}
        self._booked: set[tuple[bytes, int, int, int, int]] = set()
        self._verdicts: dict[bytes, int] = {}  # how many were given on a key
        self._before: list[int] = []  # of each suspect: how many had been given on its key when it was said
        self.violation: Violation | None = None
        self.seen: Counter[str] = Counter()  # what happened, so that one can tell what was tried at all
        around.cluster.on_append.append(self.appended)
        around.cluster.on_commit.append(self.committed)
        around.ledger.on_gap.append(self.booked)

    def leave(self) -> None:
        """Look no more."""
        for told in (self._around.cluster.on_append, self._around.cluster.on_commit, self._around.ledger.on_gap):
            told.clear()

    def _broken(self, text: str) -> Violation:
        """Keep the first one: whoever runs the code that broke it may not let it through."""
        self.violation = self.violation or Violation(text)
        return self.violation

    # what becomes durable

    def appended(self, record: Record, author: str) -> None:
        topic = record.at.topic
        if topic == self._topics.events:
            process = self._processes.get(author)
            if isinstance(process, Ingester) and not process.members[0].owns:
                self.seen["records of zombies"] += 1
            self._event(record)
        elif topic == self._topics.suspects:
            said = _said.decode(record.record_value or b"")
            self.suspects.append(said)
            self.heard[said.id] = said
            self._before.append(self._verdicts.get(said.key, 0) if isinstance(said, Suspect) else 0)
        elif topic == self._topics.status:
            self._status(_status.decode(record.record_value or b""))
        elif topic == self._state and (record.record_key or b"").endswith(b"/marker") and record.record_value is not None:
            self._marker(record.at.partition, rank_of(record.record_value), author)

    def _event(self, record: Record) -> None:
        ear, partition = self.ears[record.at.partition], record.at.partition
        content = unpack(record.record_value or b"")
        if isinstance(content, Batch):
            for section in content.sections:
                at = Partition(section.feed, section.feed_partition)
                ear.take_events(section)
                self._claim(ear, partition, at, section.offset_from, section.offset_to)
            for verdicts in content.verdicts:
                self._verdict(ear, verdicts)
        else:
            self._control(ear, partition, content)
        ear.note()

    def _control(self, ear: Ear, partition: int, control: Control) -> None:
        for state in control.feeds:
            at = Partition(state.feed, state.feed_partition)
            self._claim(ear, partition, at, state.offset_from, state.offset_to)
            self._time(ear, at, state)
            ear.take(state, at)

    def _claim(self, ear: Ear, partition: int, at: Partition, start: int, end: int) -> None:
        """4: a range is spoken of only after every event of it lies in the log."""
        ear.cover(at, start, end)
        for offset in range(start, end):
            number = self._number(at, offset)
            if number is not None and self._shop.home(number) == partition and offset not in ear.landed[at]:
                raise self._broken(
                    f"4: {at.topic}[{at.partition}] is said to be sent from {start} to {end}, and {offset} is not there"
                )

    def _number(self, at: Partition, offset: int) -> int | None:
        if at.topic == RAW:
            return self._shop.raw[at][offset].id
        shown = self._shop.shown[at][offset]
        return None if shown is None else shown.id

    def _time(self, ear: Ear, at: Partition, state: FeedState) -> None:
        """1: what was committed before a watermark lies below the position that it belongs to."""
        log = self._shop.by_place[at]
        while ear.proven[at] < len(log) and log[ear.proven[at]].time < state.watermark:
            offset = self._shop.place(log[ear.proven[at]])
            if offset is None or offset >= state.offset_to:
                raise self._broken(f"1: the watermark of {at.topic}[{at.partition}] passed a write that was not read")
            ear.proven[at] += 1

    def _verdict(self, ear: Ear, section: VerdictSection) -> None:
        """4: a verdict is given only after the ledger holds what it says."""
        for key, side, token, outcome in zip(section.keys, section.sides, section.tokens, section.outcomes, strict=True):
            self._verdicts[key] = self._verdicts.get(key, 0) + 1
            self.seen[f"verdicts {Outcome(outcome).name.lower()}"] += 1
            if outcome == Outcome.GAP:
                ear.gone.add(key)
            if outcome == Outcome.GAP and not self._is_booked(key, side, tuple(token)):
                raise self._broken(f"4: the verdict on row {self._shop.number(key)} was given before its gap was stored")

    def _is_booked(self, key: bytes, side: int, token: tuple[int, ...]) -> bool:
        """Whether a gap is stored for a suspect that this verdict is of: it closes what the suspect knew of the source."""
        for said in self.suspects:
            if not isinstance(said, Suspect) or said.key != key or said.opening.side != side:
                continue
            opening = (said.opening.epoch, said.opening.major, said.opening.minor)
            newest = said.newest_expected if side == Side.EXPECTED else None
            last = opening if newest is None else max(opening, (newest.epoch, newest.major, newest.minor))
            if last == token and (key, side, *opening) in self._booked:
                return True
        return False

    def _status(self, status: PartitionStatus) -> None:
        """1: a status record claims no time that a partition has not said, whether it has spoken or not."""
        known = self.statuses.get(status.partition)
        if known is None or (status.input_offset, status.written_at) >= (known.input_offset, known.written_at):
            self.statuses[status.partition] = status
        said = self._times(status.partition, status.input_offset)
        claimed = Times(status.source_watermark, status.source_caught_up, status.target_watermark, status.target_caught_up)
        if any(one > other for one, other in zip(claimed, said, strict=True)):
            raise self._broken(f"1: a status record claims {_shown(claimed)}, the feeds have said {_shown(said)}")
        self.look()

    def _times(self, partition: int, offset: int) -> Times:
        return self.ears[partition].times[offset] if offset >= 0 else Times()

    def _marker(self, partition: int, applied: int, author: str) -> None:
        """4: a commit marker is durable only after everything that follows from its records is."""
        self._marked[partition] = max(applied, self._marked.get(partition, -1))
        matcher = self._processes[author]
        assert isinstance(matcher, Matcher)
        for offset, said in matcher.said.get(partition, ()):
            if offset <= applied and said not in self.heard:
                raise self._broken(f"4: the marker of partition {partition} contains offset {applied}, and {said} was not said")
        status = self.statuses.get(partition)
        if status is None or status.input_offset < applied:
            raise self._broken(f"4: the marker of partition {partition} contains offset {applied}, and its status was not shown")

    def committed(self, group: str, at: Partition, position: Committed) -> None:
        """4: positions follow effects."""
        if group == "gapwatch.ingest":
            sent = min(ear.reach[at] for ear in self.ears)
            if position.offset > sent:
                raise self._broken(f"4: {at.topic}[{at.partition}] is committed at {position.offset}, and {sent} were sent on")
        elif group == match_app_id(self._around.settings):
            if position.offset > self._marked.get(at.partition, -1) + 1:
                raise self._broken(f"4: events[{at.partition}] is committed at {position.offset}, beyond its marker")
        elif group == "gapwatch.repair":
            for said, before in zip(self.suspects[: position.offset], self._before, strict=False):
                self._is_decided(said, before)

    def _is_decided(self, said: Said, before: int) -> None:
        if isinstance(said, Hole):
            if said.id not in self._around.ledger.found:
                raise self._broken("4: a hole is committed, and the ledger does not hold it")
        elif isinstance(said, Suspect) and self._verdicts.get(said.key, 0) <= before:
            raise self._broken(f"4: a suspect of row {self._shop.number(said.key)} is committed without a verdict")

    def booked(self, change: GapChange) -> None:
        """2: a difference is a gap only where the sink has passed what stood at the source when it was read."""
        gap = change.gap
        self.seen[f"gaps {change.event}"] += 1
        if gap.opened_by is not None:
            self._booked.add((gap.key, *gap.opened_by))
        if gap.state is State.RESOLVED:
            return
        read = max(datetime.fromisoformat(row["time"]) for row in gap.evidence if row["side"] == "source").timestamp() * 1000
        versions = [version for version in self._shop.versions(self._shop.number(gap.key)) if version.time <= read]
        if not self._shop.spec.delivery.known or not versions or self._was_left_over(versions, read):
            return
        if not self._passed(versions[-1]):
            raise self._broken(f"2: row {versions[-1].id} is in transit, and a gap {gap.kind.value} is open")

    def _was_left_over(self, versions: Sequence[Change], read: float) -> bool:
        """Whether the row was gone a grace before it was read, or longer, for the sink as well, beside the document of now.

        Then it stands wrongly, although the row may have come back and gone once more since: no read tells that.
        """
        shown = self._shop.shown_of(versions[-1].id)
        if not shown or shown[-1].document is None:
            return False
        before = read - GRACE_MS
        if shown[-1].time < min(versions[0].time, before):
            return True  # there was no row at all
        ends = [*(version.time for version in versions[1:]), read]
        for version, end in zip(versions, ends, strict=True):
            both = max(version.time, shown[-1].time) < min(end, before)
            if version.row is None and both and self._passed(version):
                return True
        return False

    def _passed(self, version: Change) -> bool:
        place = self._shop.first.get(version.number)
        return place is not None and place in self._shop.passed

    # what a matcher says

    def raised(self, partition: int, offset: int, said: Said) -> None:
        """2: a suspect has waited for the grace of what raised it, for the target, for the whole source and for the sink."""
        if isinstance(said, Hole):
            if said.time_from:
                raise self._broken(f"3: a hole {said.reason} was said from {_since(said.time_from)} on, and nothing was lost")
            return
        if isinstance(said, Heard) or said.raised_again:
            return
        opening = said.opening
        at = Partition(opening.feed, opening.partition)
        record = self._around.cluster.logs[at][opening.offset]
        due = max(opening.event_time, record.time) + GRACE_MS
        if opening.side == Side.EXPECTED and self._shop.spec.delivery.known:
            passed = self._shop.passed.get((at, opening.offset))
            if passed is None:
                raise self._broken(f"2: row {self._shop.number(said.key)} was raised while it was in transit")
            due = max(due, passed)
        times = self._times(partition, offset)
        if times.target <= due or times.source_caught_up < due:
            number, side = self._shop.number(said.key), Side(opening.side).name.lower()
            passed_by = f"the target was read to {_since(times.target)}, the source to {_since(times.source_caught_up)}"
            raise self._broken(f"2: row {number} was raised by an {side} write that is due at {_since(due)}; {passed_by}")

    @property
    def begun(self) -> bool:
        """Whether every feed partition has been heard of with a time, everywhere: what was lost before is the baseline's."""
        return all(all(ear.watermark.values()) for ear in self.ears)

    # at any look

    def look(self) -> None:
        """1: consistent-through claims nothing that the target has not shown."""
        through = self.consistent_through
        if through is None:
            return
        for number in range(self._shop.keys + 1):
            self._look_at(number, through)

    @property
    def consistent_through(self) -> int | None:
        """Return the claim as it stands; the holes of the first start are the baseline's, and nothing was before it."""
        if len(self.statuses) < PARTITIONS:
            return None
        bounds = [_holding(gap) for gap in self._around.ledger.open]
        bounds += [int(time.timestamp() * 1000) for time in self._around.ledger.unverifiable.values()]
        for status in self.statuses.values():
            bounds += [status.source_watermark, *(hole.time_from for hole in status.holes if hole.time_from)]
            bounds += [] if status.oldest_unsettled is None else [status.oldest_unsettled]
        return min(bounds)

    def _look_at(self, number: int, through: int) -> None:
        versions = self._shop.versions(number)
        due = [version for version in versions if version.time < through]
        if not due:
            return
        wanted: list[Row | None] = [document_of(version.row) for version in versions[len(due) - 1 :]]
        shown = self._shop.shown_of(number)
        if not any(self._shows(number, document, wanted) for document in [None, *(one.document for one in shown)]):
            raise self._broken(
                f"1: consistent through {_since(through)}, and row {number} of {_since(due[-1].time)} was never shown"
            )
        if (
            shown
            and self._was_read(shown[-1])
            and shown[-1].time < through
            and not self._shows(number, shown[-1].document, wanted)
        ):
            raise self._broken(
                f"1: consistent through {_since(through)}, and row {number} is wrong since {_since(shown[-1].time)}"
            )

    def _shows(self, number: int, document: Row | None, wanted: Sequence[Row | None]) -> bool:
        """Whether a document is one of those; what no event carried is not proven by the stream, and coverage says so."""
        if document in wanted:
            return True
        if document is None or not self.statuses[self._shop.home(number)].counters.masked:
            return False
        return any(one is not None and one["total"] == document["total"] for one in wanted)

    def _was_read(self, shown: Shown) -> bool:
        place = self._shop.first_shown.get(shown.number)
        feeds = self.statuses[self._shop.home(shown.id)].feeds
        return place is not None and any(
            feed.side == Side.OBSERVED and feed.feed_partition == place[0].partition and feed.reached > place[1] for feed in feeds
        )

    # at the end

    def end(self) -> None:
        """1, 2, 3, 5, 8: each difference is a gap, nothing else is, nothing is left open, and no crash has changed anything."""
        for text in self.unfinished():
            raise self._broken(text)
        said: set[str] = set()
        self.seen["acknowledgements lost"] = self._around.cluster.unheard
        for partition, matcher in self._matchers():
            self._newest(matcher)
            said |= self._same_as_undisturbed(partition, matcher)
        if said != self.heard.keys():
            raise self._broken(
                f"8: {len(said ^ self.heard.keys())} suspects depend on who applied the log, and in how many lives"
            )

    def unfinished(self) -> Iterator[str]:
        """Say what has not come to its end."""
        shop = self._shop
        open_gaps = {shop.number(gap.key) for gap in self._around.ledger.open}
        if len(self.statuses) < PARTITIONS:
            yield "3: a partition has no status"
            return
        for number in sorted(shop.differing - open_gaps):
            if not self._shows(number, shop.target.get(number), [document_of(shop.source.get(number))]):
                yield f"1: row {number} differs, and no gap is open"
        for number in sorted(open_gaps - shop.differing):
            yield f"2: a gap of row {number} is open, and it agrees"
        applied = {partition: matcher.applied for partition, matcher in self._matchers()}
        for partition, status in sorted(self.statuses.items()):
            if status.pending or status.in_transit or status.raised or status.delivery_unknown:
                yield f"3: partition {partition} is not done"
            if applied.get(partition, -1) < status.input_offset:
                yield f"3: partition {partition} is being read again"
            yield from self._counted(partition, status)
        newest = max((entry.time for entry in shop.wal if isinstance(entry, Change)), default=0)
        through = self.consistent_through
        if not open_gaps and (through is None or through <= newest):
            yield f"1: everything agrees, and consistent-through stands at {_since(through or 0)}"

    def _counted(self, partition: int, status: PartitionStatus) -> Iterator[str]:
        shop, counters = self._shop, status.counters
        written = sum(isinstance(entry, Change) and shop.home(entry.id) == partition for entry in shop.wal)
        shown = sum(shop.home(entry.id) == partition for entry in shop.oplog)
        most = self.ears[partition].forgotten
        for side, counted, number in (("source", counters.expected, written), ("target", counters.observed, shown)):
            if not number <= counted <= number + most[side == "target"]:
                yield f"3: partition {partition} counts {counted} writes of the {side} of {number}"
        classes = counters.settled + counters.superseded + counters.gap + counters.cleared + sum(counters.unverifiable.values())
        if counters.expected != classes + status.pending + status.in_transit + status.raised:
            yield f"3: partition {partition} has writes in no class"

    def _matchers(self) -> Iterator[tuple[int, KeyMatcher]]:
        for process in self._processes.values():
            if isinstance(process, Matcher) and process.alive:
                for partition, held in process.held.items():
                    yield partition, held.matcher

    def _newest(self, matcher: KeyMatcher) -> None:
        """5: the newest of each side is what the stores wrote last, in whatever order it came, and how often."""
        for key, (_, _, expected, observed, *_) in keys_of(matcher).items():
            number = self._shop.number(key)
            for write, log in ((expected, self._shop.versions(number)), (observed, self._shop.shown_of(number))):
                if write is not None and token_of(write)[1] != log[-1].number + 1:
                    raise self._broken(f"5: write {token_of(write)[1]} of row {number} is newest, not {log[-1].number + 1}")

    def _same_as_undisturbed(self, partition: int, matcher: KeyMatcher) -> set[str]:
        """8: state, status and suspects are a function of the log alone. Return the ids of what was to be said."""
        spec = self._shop.spec
        fingerprints = {PIPELINE: self._shop.mapping.fingerprint}
        calm = KeyMatcher(partition, PARTITIONS, {PIPELINE: spec}, fingerprints=fingerprints, life="calm")
        said: set[str] = set()
        for record in self._around.cluster.logs[Partition(self._topics.events, partition)][: matcher.applied + 1]:
            said |= {one.id for one in calm.apply(read(record.record_value or b""), record.number, record.time)}
        if keys_of(calm) != keys_of(matcher):
            raise self._broken(f"8: the state of partition {partition} is not what its log says")
        (one,), (other,) = calm.status("", 0), matcher.status("", 0)
        if one != other:
            raise self._broken(f"8: the status of partition {partition} is not what its log says")
        return said


def _since(time: int) -> str:
    """Return a time as the story tells it."""
    return f"{time - START} ms" if time else "nowhere"


def _shown(times: Times) -> str:
    return ", ".join(f"{name} {_since(time)}" for name, time in times._asdict().items())


def _holding(gap: Gap) -> int:
    return min(int(time.timestamp() * 1000) for time in (gap.event_time, gap.held_since) if time is not None)
