"""What is known of one key: the writes that the source made and the target has not shown yet, and what the target showed last."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final

from gapwatch.core.mapping import within
from gapwatch.model.pipeline import Match
from gapwatch.model.stream import Operation
from gapwatch.model.suspect import Seen

OLDER_WHEN_SETTLED: Final = 4  # digests of older versions that a settled key remembers, to name a regression
BLANK: Final = bytes(16)

Token = tuple[int, int, int]


class Write:
    """One write as a feed showed it. Slots and tuples instead of a dataclass: millions of them are held."""

    __slots__ = (
        "append_time",
        "digest",
        "epoch",
        "event_time",
        "feed",
        "major",
        "mapping",
        "masks",
        "minor",
        "offset",
        "operation",
        "partition",
        "side",
        "values",
        "version",
    )

    def __init__(
        self,
        side: int,
        feed: str,
        partition: int,
        offset: int,
        epoch: int,
        major: int,
        minor: int,
        operation: int,
        event_time: int,
        append_time: int,
        digest: bytes,
        masks: tuple[bytes, ...] | None,
        values: tuple[str | None, ...] | None,
        version: int | None,
        mapping: int,
    ) -> None:
        self.side = side
        self.feed = feed
        self.partition = partition
        self.offset = offset
        self.epoch = epoch
        self.major = major
        self.minor = minor
        self.operation = operation
        self.event_time = event_time
        self.append_time = append_time
        self.digest = digest
        self.masks = masks
        self.values = values
        self.version = version
        self.mapping = mapping

    @property
    def token(self) -> Token:
        return (self.epoch, self.major, self.minor)

    @property
    def absent(self) -> bool:
        return self.operation == Operation.DELETE

    @property
    def unknown(self) -> bool:
        """Whether the write's content is not known."""
        return self.operation == Operation.TOUCHED

    @property
    def identity(self) -> bytes:
        """Return digest and masks together, zeros where masked; empty for a delete or an unknown content."""
        if not self.digest:
            return b""
        return self.digest + b"".join(mask or BLANK for mask in self.masks or ())

    def seen(self) -> Seen:
        return Seen(
            side=self.side,
            feed=self.feed,
            partition=self.partition,
            offset=self.offset,
            epoch=self.epoch,
            major=self.major,
            minor=self.minor,
            operation=self.operation,
            event_time=self.event_time,
            digest=self.identity,
        )

    def packed(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in FIELDS)

    @classmethod
    def unpacked(cls, fields: Sequence[Any]) -> Write:
        values = list(fields)
        for number in (11, 12):
            if values[number] is not None:
                values[number] = tuple(values[number])
        return cls(*values)


FIELDS: Final = (
    "side",
    "feed",
    "partition",
    "offset",
    "epoch",
    "major",
    "minor",
    "operation",
    "event_time",
    "append_time",
    "digest",
    "masks",
    "values",
    "version",
    "mapping",
)


class KeyState:
    """One key.

    ``pending``: expected writes that are not settled, oldest first. ``expected``/``observed``: the newest of each side.
    ``odd``: the observed write that nothing expected explains, with why. ``older``: identities of older expected versions,
    newest first. ``raised``: target watermark at which the key was last raised, 0 when it is not. ``overflowed``: versions
    between the oldest and the newest were let go.
    """

    __slots__ = ("expected", "observed", "odd", "odd_reason", "older", "overflowed", "pending", "raised")

    def __init__(self) -> None:
        self.pending: list[Write] = []
        self.expected: Write | None = None
        self.observed: Write | None = None
        self.odd: Write | None = None
        self.odd_reason = ""
        self.older: list[bytes] = []
        self.raised = 0
        self.overflowed = False

    @property
    def settled(self) -> bool:
        return not self.pending and self.odd is None

    @property
    def oldest_time(self) -> int:
        """Return the event time since which the key is unsettled."""
        times: list[int] = [write.event_time for write in self.pending[:1]]
        if self.odd is not None:
            times.append(self.odd.event_time)
        return min(times)

    def opening(self) -> Write:
        """Return the write that a suspect names: the oldest unsatisfied expected one, else the odd observed one."""
        if self.pending:
            return self.pending[0]
        assert self.odd is not None
        return self.odd

    def remember(self, identity: bytes, limit: int) -> None:
        if identity:
            self.older.insert(0, identity)
            del self.older[limit:]

    def packed(self) -> tuple[Any, ...]:
        return (
            [write.packed() for write in self.pending],
            self.expected.packed() if self.expected else None,
            self.observed.packed() if self.observed else None,
            self.odd.packed() if self.odd else None,
            self.odd_reason,
            self.older,
            self.raised,
            self.overflowed,
        )

    @classmethod
    def unpacked(cls, fields: Sequence[Any]) -> KeyState:
        state = cls()
        pending, expected, observed, odd, state.odd_reason, state.older, state.raised, state.overflowed = fields
        state.pending = [Write.unpacked(write) for write in pending]
        state.expected = Write.unpacked(expected) if expected else None
        state.observed = Write.unpacked(observed) if observed else None
        state.odd = Write.unpacked(odd) if odd else None
        return state


class Comparison:
    """Whether an observed state satisfies an expected version, in one pipeline's match mode."""

    def __init__(self, match: Match, tolerances: Sequence[Decimal]) -> None:
        self._match = match
        self._tolerances = tolerances

    def satisfies(self, expected: Write, observed: Write | None) -> bool:
        """Say whether `observed` shows what `expected` wrote. Different mappings are not comparable: never satisfied."""
        if observed is None or observed.unknown or expected.unknown:
            return False
        if expected.absent or observed.absent:
            return expected.absent and observed.absent
        if self._match is Match.PRESENCE:
            return True
        if self._match is Match.VERSION:
            return expected.version is not None and observed.version is not None and observed.version >= expected.version
        if expected.mapping != observed.mapping or expected.digest != observed.digest:
            return False
        return _masks_agree(expected.masks, observed.masks) and self._values_agree(expected.values, observed.values)

    def _values_agree(self, expected: Sequence[str | None] | None, observed: Sequence[str | None] | None) -> bool:
        if not self._tolerances:
            return True
        if expected is None or observed is None:
            return False
        return all(
            within(one, other, tolerance) for one, other, tolerance in zip(expected, observed, self._tolerances, strict=True)
        )


def _masks_agree(expected: Sequence[bytes] | None, observed: Sequence[bytes] | None) -> bool:
    """A field that one side does not carry says nothing."""
    if not expected or not observed:
        return True
    return all(not one or not other or one == other for one, other in zip(expected, observed, strict=True))


def is_masked(write: Write) -> bool:
    return bool(write.masks) and any(not mask for mask in write.masks or ())
