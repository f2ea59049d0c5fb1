"""A worker without Kafka: a matcher, what it made durable, and a crash at any point of a checkpoint."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from gapwatch.core.checkpoint import Checkpoint, Stage
from gapwatch.core.keystate import KeyState, pending_state, settled_state
from gapwatch.core.matching import KeyMatcher
from gapwatch.model.pipeline import PipelineSpec
from gapwatch.model.stream import Batch, Control
from gapwatch.model.suspect import PartitionStatus, Said, Suspect
from gapwatch.roles.match.journal import Journal
from tests.simulation.world import MAPPING, PIPELINE

Log = Sequence[tuple[Batch | Control, int]]


class Crash(Exception):  # noqa: N818 - the worker's end, not an error
    pass


class Durable:
    """What survives a worker: the suspects topic, the status topic, the changelog, the acknowledged offset."""

    def __init__(self) -> None:
        self.said: dict[str, Said] = {}
        self.statuses: list[PartitionStatus] = []
        self.changelog: dict[bytes, bytes] = {}
        self.acknowledged = 0
        self.lives = 0


class Worker:
    """One life of a worker. ``crash_at``: the stage after which it ends; at STATE only some of its records are durable."""

    def __init__(
        self, spec: PipelineSpec, durable: Durable, *, partitions: int, seed: int = 0, event_by_event: bool = False
    ) -> None:
        self._durable = durable
        self._journal = Journal(0)
        self._random = random.Random(seed)
        life = str(durable.lives)
        durable.lives += 1
        found = self._journal.restore(durable.changelog.items())
        if found is None:
            self.matcher = KeyMatcher(
                0, partitions, {PIPELINE: spec}, fingerprints={PIPELINE: MAPPING}, life=life, event_by_event=event_by_event
            )
        else:
            self.matcher = KeyMatcher.restore(
                0,
                partitions,
                {PIPELINE: spec},
                fingerprints={PIPELINE: MAPPING},
                life=life,
                event_by_event=event_by_event,
                records=found.records,
                marker=found.marker,
            )
        self.pending: list[Said] = []

    def run(self, log: Log, *, every: int = 0, crash_after: int = -1, crash_at: Stage | None = None) -> None:
        """Apply the log's records from where the state ends; checkpoint after each `every`; end in checkpoint `crash_after`."""
        self.pending += self.matcher.advance()
        done = 0
        for offset in range(self.matcher.applied + 1, len(log)):
            record, append_time = log[offset]
            self.pending += self.matcher.apply(record, offset, append_time)
            self.pending += self.matcher.advance()
            if every and offset % every == every - 1:
                self.checkpoint(crash_at if done == crash_after else None)
                done += 1
        self.checkpoint(None)

    def checkpoint(self, crash_at: Stage | None) -> None:
        protocol = Checkpoint()
        said, self.pending = self.pending, []
        statuses = self.matcher.status("worker", 0)
        records, marker, applied = self.matcher.state_records(), self.matcher.marker(), self.matcher.applied
        stage: Stage | None = protocol.begin()
        while stage is not None:
            torn = stage is crash_at and stage is Stage.STATE
            self._make_durable(stage, said, statuses, self._some(records) if torn else records, marker, applied)
            if stage is crash_at:
                raise Crash
            stage = protocol.durable(stage)

    def _some(self, records: list[tuple[str, bytes | None]]) -> list[tuple[str, bytes | None]]:
        return [record for record in records if self._random.random() < 0.5]

    def _make_durable(self, stage: Stage, said: Any, statuses: Any, records: Any, marker: bytes, applied: int) -> None:
        durable, journal = self._durable, self._journal
        if stage is Stage.SAID:
            durable.said.update({one.id: one for one in said})
        elif stage is Stage.STATUS:
            durable.statuses += statuses
        elif stage is Stage.STATE:
            durable.changelog.update([journal.record(name, applied, payload) for name, payload in records if payload is not None])
        elif stage is Stage.MARKER:
            removed = [journal.removal(name) for name, payload in records if payload is None]
            durable.changelog.update([journal.marker(applied, marker, topic_id="T")])
            for key in removed:
                durable.changelog.pop(key, None)
        else:
            durable.acknowledged = applied + 1


def keys_of(matcher: KeyMatcher) -> dict[bytes, tuple[Any, ...]]:
    """Return everything that is known of every key, in one form."""
    found: dict[bytes, tuple[Any, ...]] = {}
    rows = matcher._pipelines[PIPELINE].cell.rows
    for key in rows.at:
        held, is_open = rows.held(key)
        assert held is not None
        state: KeyState = pending_state(held) if is_open else settled_state(held)
        found[key] = ("open" if is_open else "settled", *state.packed())
    return found


def shown(matcher: KeyMatcher) -> PartitionStatus:
    (status,) = matcher.status("worker", 0)
    return status


def undisturbed(spec: PipelineSpec, log: Log, *, partitions: int, event_by_event: bool = False) -> tuple[KeyMatcher, Durable]:
    durable = Durable()
    worker = Worker(spec, durable, partitions=partitions, event_by_event=event_by_event)
    worker.run(log)
    return worker.matcher, durable


def suspects(durable: Durable) -> dict[str, bytes]:
    return {one.id: one.key for one in durable.said.values() if isinstance(one, Suspect)}
