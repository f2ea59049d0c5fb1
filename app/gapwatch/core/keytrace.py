"""What the stream told ``match`` of one key: its last raw events with their places, verdicts, and what follows from them.

Pure. Fed with the tail of the key's partition of ``gapwatch.events``, which is all that ``match`` itself goes by.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from gapwatch.core.confirm import equals_identity
from gapwatch.core.digests import identity
from gapwatch.core.gaps import rfc3339, time_of
from gapwatch.model.pipeline import Match
from gapwatch.model.stream import Batch, Control, Operation, Outcome, Section, Side, VerdictSection

KEPT: Final = 20  # events, and verdicts, that are shown
WRITES: Final = frozenset({Operation.UPSERT, Operation.DELETE, Operation.TOUCHED, Operation.LOOKED_UP})


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """One event of the key, and where anyone can read it back. Times in milliseconds."""

    side: Side
    operation: Operation
    topic: str
    partition: int
    offset: int
    token: tuple[int, int, int]
    event_time: int
    append_time: int
    identity: bytes
    values: tuple[str | None, ...] = ()  # of toleranced fields
    version: int | None = None

    def record(self) -> dict[str, Any]:
        return {
            "side": self.side.name.lower(),
            "operation": self.operation.name.lower(),
            "topic": self.topic,
            "partition": self.partition,
            "offset": self.offset,
            "epoch": self.token[0],
            "position": f"{self.token[1]}/{self.token[2]}",
            "time": rfc3339(time_of(self.event_time)),
            "appended": rfc3339(time_of(self.append_time)),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """One verdict on the key."""

    side: Side
    token: tuple[int, int, int]
    outcome: Outcome
    time: int

    def record(self) -> dict[str, Any]:
        return {
            "side": self.side.name.lower(),
            "epoch": self.token[0],
            "position": f"{self.token[1]}/{self.token[2]}",
            "outcome": self.outcome.name.lower(),
            "time": rfc3339(time_of(self.time)),
        }


@dataclass(slots=True)
class KeyTrace:
    """Collects what concerns one key of one pipeline. ``newest`` holds each side's newest write.

    ``values_agree`` says whether toleranced fields agree (expected, observed).
    """

    pipeline: str
    key: bytes
    match: Match
    values_agree: Callable[[Sequence[str | None], Sequence[str | None]], bool]
    events: deque[Told] = field(default_factory=lambda: deque(maxlen=KEPT))
    verdicts: deque[Ruling] = field(default_factory=lambda: deque(maxlen=KEPT))
    newest: dict[Side, Told] = field(default_factory=dict)
    grace_ms: int = 0
    skew_ms: int = 0
    _deliveries: dict[tuple[str, int], int] = field(default_factory=dict)

    def take(self, record: Batch | Control, append_time: int) -> None:
        """Take one record of the partition, in order; ``append_time`` (ms) is when Kafka took it."""
        if isinstance(record, Control):
            self._control(record)
            return
        for section in record.sections:
            if section.pipeline == self.pipeline:
                for at, key in enumerate(section.keys):
                    if key == self.key:
                        self._event(section, at)
        for verdicts in record.verdicts:
            if verdicts.pipeline == self.pipeline:
                self._verdicts(verdicts, append_time)

    def _control(self, control: Control) -> None:
        for times in control.pipelines:
            if times.pipeline == self.pipeline:
                self.grace_ms, self.skew_ms = times.grace, times.skew
        for feed in control.feeds:
            if feed.pipeline == self.pipeline and feed.side == Side.EXPECTED:
                self._deliveries[feed.feed, feed.feed_partition] = feed.delivery

    def _event(self, section: Section, at: int) -> None:
        told = Told(
            side=Side(section.side),
            operation=Operation(section.operations[at]),
            topic=section.feed,
            partition=section.feed_partition,
            offset=section.offsets[at],
            token=(section.epoch, section.majors[at], section.minors[at]),
            event_time=section.event_times[at],
            append_time=section.append_times[at],
            identity=identity(section.digests[at], section.masks[at] if section.masks else ()),
            values=section.values[at] if section.values else (),
            version=section.versions[at] if section.versions else None,
        )
        self.events.append(told)
        known = self.newest.get(told.side)
        follows = known is None or told.topic != known.topic or told.token >= known.token  # tables are in no order
        if told.operation in WRITES and follows:
            self.newest[told.side] = told

    def _verdicts(self, section: VerdictSection, append_time: int) -> None:
        for at, key in enumerate(section.keys):
            if key == self.key:
                ruling = Ruling(
                    side=Side(section.sides[at]),
                    token=section.tokens[at],
                    outcome=Outcome(section.outcomes[at]),
                    time=append_time,
                )
                self.verdicts.append(ruling)

    @property
    def state(self) -> str:
        """How the newest expected write stands: settled, in_transit, pending, closed (by a verdict), or unknown (none seen)."""
        expected, observed = self.newest.get(Side.EXPECTED), self.newest.get(Side.OBSERVED)
        if expected is None:
            return "unknown"
        if observed is not None and self._shows(observed, expected):
            return "settled"
        if any(ruling.side is Side.EXPECTED and ruling.token >= expected.token for ruling in self.verdicts):
            return "closed"
        delivery = self._deliveries.get((expected.topic, expected.partition), -1)
        return "in_transit" if 0 <= delivery <= expected.offset else "pending"

    def _shows(self, observed: Told, expected: Told) -> bool:
        """Whether the newest observed write shows what the newest expected one wrote, as far as its event carries it."""
        if Operation.DELETE in (observed.operation, expected.operation):
            return observed.operation is expected.operation
        if self.match is Match.PRESENCE:
            return True
        if self.match is Match.VERSION:
            return None not in (observed.version, expected.version) and (observed.version or 0) >= (expected.version or 0)
        values = len(expected.values) == len(observed.values) and self.values_agree(expected.values, observed.values)
        return values and equals_identity(expected.identity, observed.identity)

    def due(self) -> int | None:
        """When the newest expected write is due (ms), while it is pending."""
        expected = self.newest.get(Side.EXPECTED)
        if expected is None or self.state != "pending":
            return None
        return max(expected.event_time, expected.append_time) + self.grace_ms + self.skew_ms

    def record(self) -> dict[str, Any]:
        """Return what is shown of the stream; newest first."""
        due = self.due()
        newest = {side: told.record() for side, told in self.newest.items()}
        return {
            "read": "read",
            "state": self.state,
            "due": rfc3339(time_of(due)) if due is not None else None,
            "newest_expected": newest.get(Side.EXPECTED),
            "newest_observed": newest.get(Side.OBSERVED),
            "events": [told.record() for told in reversed(self.events)],
            "verdicts": [ruling.record() for ruling in reversed(self.verdicts)],
        }
