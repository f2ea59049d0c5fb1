"""The ledger in memory: the transactions that ingest and confirm make, with the same refusals as the SQL one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from gapwatch.model.gap import FindingRecord, Gap, State
from gapwatch.ports import GapChange, GapFilter, Key, Lease, Page


class ModelLedger:
    """Implements the part of :class:`gapwatch.ports.Ledger` that the simulation's processes call.

    ``on_gap`` is told of every change of a gap that stands, at that moment.
    """

    def __init__(self) -> None:
        self.known: dict[str, Gap] = {}
        self.found: dict[str, FindingRecord] = {}
        self.unverifiable: dict[Key, datetime] = {}
        self.on_gap: list[Callable[[GapChange], None]] = []
        self._facts: dict[str, Any] = {}
        self._epochs: dict[tuple[str, int], dict[tuple[str, int], int]] = {}
        self._stored = 0

    # gaps

    def store_gaps(self, changes: Sequence[GapChange]) -> Sequence[bool]:
        self._stored += 1
        return [self._store(change) for change in changes]

    def _store(self, change: GapChange) -> bool:
        gap, known = change.gap, self.known.get(change.gap.id)
        if (known.revision if known is not None else None) != change.against:
            return False
        other = self.open_gaps_for(gap.pipeline, [gap.key]).get(gap.key)
        if gap.state is not State.RESOLVED and other is not None and other.id != gap.id:
            return False  # at most one open gap per key
        self.known[gap.id] = gap
        for tell in self.on_gap:
            tell(change)
        return True

    def writes(self) -> int:
        return self._stored

    def on_write(self, _: Callable[[], None]) -> Callable[[], None]:
        return lambda: None  # nobody rests who asks this one

    def gap(self, gap_id: str) -> Gap | None:
        return self.known.get(gap_id)

    def gaps_by_id(self, ids: Collection[str]) -> Mapping[str, Gap]:
        return {one: self.known[one] for one in ids if one in self.known}

    def open_gaps_for(self, pipeline: str, keys: Collection[Key]) -> Mapping[Key, Gap]:
        return {gap.key: gap for gap in self.open if gap.pipeline == pipeline and gap.key in keys}

    def gaps(self, where: GapFilter, *, limit: int = 100, cursor: str | None = None) -> Page:
        found = [gap for gap in self.known.values() if gap.state.value in where.states]
        return Page(gaps=found[:limit], next_cursor=None)

    @property
    def open(self) -> list[Gap]:
        return [gap for gap in self.known.values() if gap.state is not State.RESOLVED]

    # findings, keys that nobody can verify, facts

    def raise_finding(self, record: FindingRecord) -> bool:
        is_new = record.id not in self.found
        self.found.setdefault(record.id, record)
        return is_new

    def findings(self, pipeline: str | None = None, *, open_only: bool = True) -> Sequence[FindingRecord]:
        return list(self.found.values())

    def add_unverifiable(self, pipeline: str, key: Key, event_time: datetime, reason: str) -> None:
        self.unverifiable[key] = min(event_time, self.unverifiable.get(key, event_time))

    def epoch(self, feed: str, partition: int, topic_id: str, offset: int, *, after: int = 0) -> int:
        begun = self._epochs.setdefault((feed, partition), {})
        return begun.setdefault((topic_id, offset), max(after, *begun.values(), 0) + 1)

    def newest_epoch(self, feed: str, partition: int, topic_id: str) -> int:
        begun = self._epochs.get((feed, partition), {})
        mine = [number for (topic, _), number in begun.items() if topic == topic_id]
        return max(mine, default=0) or self.epoch(feed, partition, topic_id, 0)

    def fact(self, name: str) -> Any | None:
        return self._facts.get(name)

    def set_fact(self, name: str, value: Any, *, under: Lease | None = None) -> None:
        self._facts[name] = value
