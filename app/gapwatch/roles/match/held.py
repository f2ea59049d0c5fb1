"""What a worker holds of each partition it owns, and how it comes by it."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog

from gapwatch.core.compiledrows import RowsModule
from gapwatch.core.matching import KeyMatcher
from gapwatch.errors import ProtocolError, StoreRefused
from gapwatch.kafka.clients import Partition
from gapwatch.kafka.faults import STORE
from gapwatch.kafka.faust_safety import StateTable
from gapwatch.kafka.offsets import OffsetReader
from gapwatch.kafka.topics import TopicAdmin, state_topic
from gapwatch.model.pipeline import Settings
from gapwatch.model.stream import Control, PackedBatch
from gapwatch.model.suspect import Said
from gapwatch.roles.match.journal import MARKER, Journal, Restored, StateTorn, name_of

log = structlog.get_logger(__name__)

NOTHING_APPLIED = -1


@dataclass(slots=True, kw_only=True)
class Held:
    """One partition's state, and what follows from it that is not durable yet.

    ``expected``: the next offset to apply. ``again``: where reading was taken back to after a jump, and when (monotonic).
    ``probed``: the offset that the probe last saw applied, and when. ``in_hand``: what was taken from here is not durable yet.
    ``shown``: what had been applied when a status was shown last. ``stirred``: since the last marker something else came than
    times alone. ``marked_at``: when that was (monotonic).
    """

    partition: int
    matcher: KeyMatcher
    journal: Journal
    expected: int
    events: list[Any] = field(default_factory=list)
    said: list[Said] = field(default_factory=list)
    again: int | None = None
    again_since: float = 0.0
    probed: int = NOTHING_APPLIED
    probed_at: float = 0.0
    in_hand: bool = False
    shown: int = NOTHING_APPLIED
    stirred: bool = True  # nothing of a new one is known
    marked_at: float = 0.0

    @property
    def applied(self) -> int:
        return self.expected - 1

    def apply(self, record: PackedBatch | Control | None, offset: int, append_time: int, event: Any) -> None:
        """Apply one record; its event is acknowledged by the checkpoint that contains it."""
        said = [*self.matcher.apply(record, offset, append_time), *self.matcher.advance()]
        self.said += said
        self.stirred = self.stirred or bool(said) or not isinstance(record, Control)
        self.events.append(event)
        self.expected = offset + 1

    def crowded(self, records_max: int, suspects_max: int) -> bool:
        """Say whether so much waits for a checkpoint that one is made at once."""
        return len(self.events) >= records_max or len(self.said) >= suspects_max


class Restorer:
    """Builds the matchers of newly owned partitions from the changelog that Faust has just recovered."""

    def __init__(
        self,
        settings: Settings,
        fingerprints: Mapping[str, int],
        table: StateTable,
        offsets: OffsetReader,
        *,
        torn: set[int],
        native: RowsModule | None = None,
    ) -> None:
        self._native = native
        self._settings = settings
        self._fingerprints = fingerprints
        self._table = table
        self._offsets = offsets
        self._torn = torn
        self.topic_id = ""

    async def identify(self, admin: TopicAdmin) -> None:
        """Note which topic `events` is: state of another one (deleted and made anew) must not be used on it."""
        events = self._settings.topics.events
        found = await admin.describe([events, state_topic(self._settings)])
        for name in (events, state_topic(self._settings)):
            if name not in found:
                raise StoreRefused(f"Topic {name} does not exist.", store=STORE, remedy="Start again: it is created at start.")
        self.topic_id = found[events].topic_id

    async def restore(self, partitions: Collection[int]) -> dict[int, Held]:
        """Return the state of each partition. Raises ProtocolError where it was torn for the first time."""
        events = self._settings.topics.events
        ends = (await self._offsets.log_ends([Partition(events, number) for number in partitions])).ends
        held = {}
        for number in sorted(partitions):
            held[number] = await self._one(number, ends[Partition(events, number)])
        return held

    async def _one(self, number: int, end: int) -> Held:
        journal = Journal(number)
        restored = self._read(journal)
        if restored is not None and (restored.topic_id != self.topic_id or restored.applied >= end):
            log.error("match_state_of_another_log", partition=number, applied=restored.applied, end=end)
            restored = None
        if restored is None:
            journal = Journal(number)
            await self._wipe(number)
        else:
            for name in restored.leftovers:
                await self._table.put(number, journal.key(name), None)
        return self._held(number, journal, restored)

    def _read(self, journal: Journal) -> Restored | None:
        try:
            return journal.restore(self._table.records(journal.partition))
        except StateTorn as torn:
            if journal.partition not in self._torn:
                self._torn.add(journal.partition)
                remedy = "It is read once more; if it stays so, matching starts anew there, with a hole."
                raise ProtocolError(f"Partition {journal.partition}: {torn}.", remedy=remedy) from torn
            log.error("match_state_lost", partition=journal.partition, reason=str(torn))
            return None

    async def _wipe(self, number: int) -> None:
        """Remove what is left of a state that is not used: its ranks belong to another story. The marker goes first."""
        names = sorted((name_of(key) for key, _ in self._table.records(number)), key=lambda name: name != MARKER)
        journal = Journal(number)
        for name in names:
            await self._table.put(number, journal.key(name), None)
            if name == MARKER:
                await self._table.barrier()
        await self._table.barrier()

    def _held(self, number: int, journal: Journal, restored: Restored | None) -> Held:
        topics, pipelines = self._settings.topics, self._settings.pipelines
        life = secrets.token_hex(6)
        if restored is None:
            matcher = KeyMatcher(
                number, topics.partitions, pipelines, fingerprints=self._fingerprints, life=life, native=self._native
            )
        else:
            matcher = KeyMatcher.restore(
                number,
                topics.partitions,
                pipelines,
                fingerprints=self._fingerprints,
                life=life,
                native=self._native,
                records=restored.records,
                marker=restored.marker,
            )
        held = Held(partition=number, matcher=matcher, journal=journal, expected=matcher.applied + 1)
        held.said += matcher.advance()  # what was raised is raised again, also where no record follows
        return held
