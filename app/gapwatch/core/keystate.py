"""What is known of one key, in as few bytes as do it: millions of keys are held, and written in each checkpoint.

A **write** is one ``bytes``: a fixed head, the identity (16 bytes of digest, then 16 of each maskable field, zeros where masked;
empty for a delete or an unknown content) and, where the pipeline has tolerances or versions, a msgpack tail. A key that has
seen nothing but one expected write is that write; one that is settled is the expected write with the head of the observed one.
Everything else is a :class:`KeyState`. Measured: 250 bytes a pending key instead of 1,240 with one object per write.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from struct import Struct
from typing import Any, Final

import msgspec

from gapwatch.core.mapping import MASKED_VALUE, within
from gapwatch.core.targetids import TargetIds
from gapwatch.model.pipeline import Match
from gapwatch.model.stream import Operation
from gapwatch.model.suspect import GivenUp, Seen

OLDER_WHEN_SETTLED: Final = 4  # identities of older versions that a settled key remembers, to name a regression
BLANK: Final = bytes(16)
UNKNOWN_MAPPING: Final = 255  # comparable with none, not even itself

# operation, flags, mapping, feed, parts of the identity, -, feed partition, epoch, -, major, minor, offset, event time, due;
# aligned, because `core/keyrows` reads and writes the same bytes as columns
HEAD: Final = Struct("<BBBBBxHI4x5q")
HEAD_BYTES: Final = HEAD.size
pack_head: Final = HEAD.pack
_TOKEN: Final = Struct("<I4xqq")
_TIMES: Final = Struct("<qqq")
_TIME: Final = Struct("<q")
_PARTITION: Final = Struct("<H")
_NO_PLACE: Final = Struct("<qq").pack(-1, -1)
TOKEN_AT: Final = 8
MAJOR_AT: Final = 16
OFFSET_AT: Final = 32
EVENT_TIME_AT: Final = 40
DUE_AT: Final = 48

EXTRA: Final = 1  # flag: a tail with values and version follows the identity
DEAD: Final = 2  # flag: the sink gave it up, so it is due whatever the delivery position says
SHARED: Final = 4  # flag: another table may have a row of this key, too
REFUSED: Final = 8  # flag: the target refused it, as the sink says; it may be sent again

DELETE: Final = int(Operation.DELETE)
TOUCHED: Final = int(Operation.TOUCHED)
UNCHANGED: Final = int(Operation.UNCHANGED)

Token = tuple[int, int, int]
Write = bytes
Tail = tuple[tuple[str | None, ...] | None, int | None]

_PACKED: Final = b"\xff\xff"  # a settled key whose long form is packed: no write begins so, and as flags it has a tail
_pack = msgspec.msgpack.Encoder().encode
_pack_tail = msgspec.msgpack.Encoder().encode
_unpack_tail = msgspec.msgpack.Decoder(tuple[tuple[str | None, ...] | None, int | None]).decode


def token_of(write: Write) -> Token:
    """Return the write's order token: (epoch, major, minor)."""
    return _TOKEN.unpack_from(write, TOKEN_AT)


def partition_of(write: Write) -> int:
    """Return the feed partition that showed it."""
    return int(_PARTITION.unpack_from(write, 6)[0])


def times_of(write: Write) -> tuple[int, int, int]:
    """Return raw offset, event time, and the due time as far as it is the write's own (grace and skew, not delivery)."""
    return _TIMES.unpack_from(write, OFFSET_AT)


def event_time_of(write: Write) -> int:
    return int(_TIME.unpack_from(write, EVENT_TIME_AT)[0])


def due_of(write: Write) -> int:
    return int(_TIME.unpack_from(write, DUE_AT)[0])


def with_due(write: Write, due: int) -> Write:
    return write[:DUE_AT] + _TIME.pack(due) + write[HEAD_BYTES:]


def dead_lettered(write: Write, due: int) -> Write:
    """Return the write as one that the sink gave up: due at `due`, whatever the delivery position says."""
    return write[:1] + bytes([write[1] | DEAD]) + write[2:DUE_AT] + _TIME.pack(min(due, due_of(write))) + write[HEAD_BYTES:]


def refused(write: Write) -> Write:
    """Return the write as one that the target refused: when it is due does not change."""
    return write[:1] + bytes([write[1] | REFUSED]) + write[2:]


def identity_of(write: Write) -> bytes:
    """Return digest and masks, zeros where masked; empty where there is no content or none is known."""
    return write[HEAD_BYTES : HEAD_BYTES + 16 * write[4]]


def tail_of(write: Write) -> Tail:
    """Return the toleranced values and the version."""
    return _unpack_tail(write[HEAD_BYTES + 16 * write[4] :]) if write[1] & EXTRA else (None, None)


def with_tail(values: Sequence[str | None] | None, version: int | None) -> bytes:
    return _pack_tail((values, version))


def renewed(write: Write, token_from: Write) -> Write:
    """Return the write with the other's place in the order, in its feed and in time: nothing of its content changed since."""
    return write[:3] + token_from[3:4] + write[4:6] + token_from[6:HEAD_BYTES] + write[HEAD_BYTES:]


def unplaced(write: Write) -> Write:
    """Return the write before all others of its epoch: what it shows is known, its place among the writes is not."""
    return write[:MAJOR_AT] + _NO_PLACE + write[OFFSET_AT:]


def shared(write: Write) -> Write:
    """Return the write as one of a key of which another table may have a row, too."""
    return write[:1] + bytes([write[1] | SHARED]) + write[2:]


def touched(write: Write, due: int) -> Write:
    """Return the write as one of a shared key of which nothing is known but that there was one, due at `due`."""
    head = bytes([TOUCHED, write[1] & DEAD | SHARED]) + write[2:4] + b"\0" + write[5:DUE_AT]
    return head + _TIME.pack(due)


def is_masked(write: Write) -> bool:
    """Whether a field of it is not known."""
    parts = write[4]
    if parts > 1 and any(write[at : at + 16] == BLANK for at in range(HEAD_BYTES + 16, HEAD_BYTES + 16 * parts, 16)):
        return True
    values = tail_of(write)[0]
    return values is not None and MASKED_VALUE in values


def filled(write: Write, before: Write | None) -> Write:
    """Return a source's write with what it left out, because it did not change, taken from the version before."""
    if before is None or write[2] != before[2] or write[2] == UNKNOWN_MAPPING or write[4] != before[4] or not is_masked(write):
        return write
    parts = [write[at : at + 16] for at in range(HEAD_BYTES, HEAD_BYTES + 16 * write[4], 16)]
    known = [before[at : at + 16] for at in range(HEAD_BYTES, HEAD_BYTES + 16 * write[4], 16)]
    identity = b"".join(old if part == BLANK else part for part, old in zip(parts, known, strict=True))
    values, version = tail_of(write)
    if values is not None and (earlier := tail_of(before)[0]) is not None:
        values = tuple(old if value == MASKED_VALUE else value for value, old in zip(values, earlier, strict=True))
    tail = with_tail(values, version) if write[1] & EXTRA else b""
    return write[:HEAD_BYTES] + identity + tail


def seen_of(write: Write, side: int, feeds: Sequence[str], *, comparable: bool) -> Seen:
    """Return the write as suspects show it; a digest that today's mapping cannot be compared with is left out."""
    operation, _, _, feed, _, partition, epoch, major, minor, offset, event_time, _ = HEAD.unpack_from(write)
    return Seen(
        side=side,
        feed=feeds[feed],
        partition=partition,
        offset=offset,
        epoch=epoch,
        major=major,
        minor=minor,
        operation=operation,
        event_time=event_time,
        digest=identity_of(write) if comparable else b"",
        version=tail_of(write)[1],
    )


class KeyState:
    """One key whose story is longer than one write.

    ``writes``: expected writes that are not settled, oldest first. ``expected``/``observed``: the newest of each side.
    ``odd``: the newest observed write is not what the newest expected one says, and no read excused it. ``older``: identities
    of older expected versions, newest first. ``raised``: the target watermark at which the key was last raised, 0 when it is
    not; ``raised_on``: the token of the newest observed write then. ``overflowed``: versions after the oldest were let go.
    ``floor``: the event time of the first of them, or since when the target shows what nothing explains, whatever was written
    after it (0: neither). ``shown``: what the target showed before ``observed``, unexplained, oldest
    first: where the target's feed runs ahead of the source's, the versions that explain it are yet to come. ``given_up``: what
    the sink said last of writes that are not settled. ``ids``: the target's documents of the key, where they have other ids.
    """

    __slots__ = (
        "expected",
        "floor",
        "given_up",
        "ids",
        "observed",
        "odd",
        "older",
        "overflowed",
        "raised",
        "raised_on",
        "shown",
        "writes",
    )

    def __init__(self) -> None:
        self.writes: list[Write] = []
        self.expected: Write | None = None
        self.observed: Write | None = None
        self.odd = False
        self.older: list[bytes] = []
        self.raised = 0
        self.raised_on: Token | None = None
        self.overflowed = False
        self.floor = 0
        self.shown: list[Write] = []
        self.given_up: GivenUp | None = None
        self.ids: TargetIds | None = None

    @property
    def open(self) -> bool:
        return bool(self.writes) or self.odd or (self.ids is not None and self.ids.twin is not None)

    @property
    def duplicate(self) -> Write | None:
        """Return the write that made a second document of the key, where it is to be judged before all else."""
        if self.ids is None or (twin := self.ids.twin) is None:
            return None
        return None if self.writes and due_of(self.writes[0]) <= due_of(twin) else twin

    @property
    def awaits_expected(self) -> bool:
        """Whether the write that a suspect names is an expected one."""
        return bool(self.writes) and self.duplicate is None

    @property
    def opening(self) -> Write:
        """Return the write that a suspect names: the oldest unsatisfied expected one, a second document's, else the odd one."""
        if (duplicate := self.duplicate) is not None:
            return duplicate
        if self.writes:
            return self.writes[0]
        assert self.observed is not None
        return self.observed

    @property
    def due(self) -> int:
        """Return when the opening write is due, delivery apart; an odd one also leaves the newest expected one its time."""
        due = due_of(self.opening)
        if self.writes or self.expected is None or self.duplicate is not None:
            return due
        return max(due, due_of(self.expected))

    @property
    def unsettled_time(self) -> int:
        """Return the event time of the oldest write that is not settled, as far as it is kept."""
        time = event_time_of(self.writes[0] if self.writes else self.opening)
        twin = self.ids.twin if self.ids is not None else None
        return time if twin is None else min(time, event_time_of(twin))

    @property
    def oldest_time(self) -> int:
        """Return the event time from which on the key is unsettled."""
        time = self.unsettled_time
        return min(time, self.floor) if self.floor else time

    def remember(self, identity: bytes, limit: int) -> None:
        """Keep an older version's identity, newest first, each once."""
        if identity:
            if identity in self.older:
                self.older.remove(identity)
            self.older.insert(0, identity)
            del self.older[limit:]

    def packed(self) -> tuple[Any, ...]:
        rare: tuple[Any, ...] = () if self.given_up is None else (self.given_up,)
        if self.ids is not None:
            rare = (self.given_up, self.ids)
        return (
            self.writes,
            self.expected,
            self.observed,
            self.odd,
            self.older,
            self.raised,
            self.raised_on,
            self.overflowed,
            self.floor,
            self.shown,
            *rare,
        )

    @classmethod
    def unpacked(cls, fields: Sequence[Any]) -> KeyState:
        state = cls()
        state.writes, state.expected, state.observed, state.odd, state.older, state.raised, on, *rest = fields
        state.overflowed, state.floor, state.shown, *rare = rest
        state.given_up = msgspec.convert(rare[0], GivenUp | None) if rare else None
        state.ids = msgspec.convert(rare[1], TargetIds) if len(rare) > 1 else None
        state.raised_on = (on[0], on[1], on[2]) if on is not None else None
        return state


Held = bytes | KeyState


def compact_pending(state: KeyState) -> Held:
    """Return an open key in its smallest form: a single write when there is nothing else to know."""
    plain = len(state.writes) == 1 and state.observed is None and not state.older and not state.raised and not state.overflowed
    plain = plain and not state.floor and state.given_up is None and state.ids is None
    return state.writes[0] if plain and state.expected == state.writes[0] else state


def is_alone(state: KeyState) -> bool:
    """Whether one write of the target is all that is known of an open key, and nothing is expected of it yet."""
    if state.observed is None or not state.odd or state.expected is not None or state.raised:
        return False
    return not (state.older or state.overflowed or state.floor or state.shown) and state.given_up is None and state.ids is None


def alone_state(write: Write) -> KeyState:
    """Return an open key of which one write of the target is all that is known."""
    state = KeyState()
    state.observed, state.odd = write, True
    return state


def is_update(state: KeyState, size: int, older_max: int) -> bool:
    """Whether an open key is a settled one with one newer expected write; identities have so many bytes."""
    if len(state.writes) != 1 or state.expected != state.writes[0] or state.odd or state.raised or state.raised_on is not None:
        return False
    if state.overflowed or state.floor or state.shown or state.given_up is not None or state.ids is not None:
        return False
    if len(state.older) > older_max or any(len(identity) != size for identity in state.older):
        return False
    observed = state.observed
    if observed is None:
        return True
    # what it shows is what was expected before
    return not observed[1] & EXTRA and (not observed[4] or state.older[:1] == [identity_of(observed)])


def update_state(write: Write, head: bytes, older: bytes, size: int) -> KeyState:
    """Return the key of :func:`is_update`: its expected write, the head of what is shown (zeros: nothing), older identities."""
    state = KeyState()
    state.writes, state.expected = [write], write
    state.older = [older[at : at + size] for at in range(0, len(older), size)]
    if head[0]:
        state.observed = head + state.older[0] if head[4] else head
    return state


def pending_state(held: Held) -> KeyState:
    """Return an open key in its long form."""
    if isinstance(held, KeyState):
        return held
    state = KeyState()
    state.writes, state.expected = [held], held
    return state


def compact_settled(state: KeyState) -> Held:
    """Return a settled key in its smallest form: expected write, observed head (zeros: none), older identities."""
    expected, observed = state.expected, state.observed
    if state.ids is not None:
        return _PACKED + _pack(state.packed())
    if expected is None or state.shown or expected[1] & EXTRA or (observed is not None and not _same_content(expected, observed)):
        return state
    size = 16 * expected[4]
    older = [identity for identity in state.older[:OLDER_WHEN_SETTLED] if len(identity) == size]
    return expected + (observed[:HEAD_BYTES] if observed is not None else bytes(HEAD_BYTES)) + b"".join(older)


def _same_content(expected: Write, observed: Write) -> bool:
    return (
        (expected[0] == DELETE) == (observed[0] == DELETE)
        and not observed[1] & EXTRA
        and expected[2] == observed[2]
        and identity_of(expected) == identity_of(observed)
    )


def settled_state(held: Held) -> KeyState:
    """Return a settled key in its long form."""
    if isinstance(held, KeyState):
        return held
    if held.startswith(_PACKED):
        return KeyState.unpacked(msgspec.msgpack.decode(held[len(_PACKED) :]))
    state = KeyState()
    size = 16 * held[4]
    end = HEAD_BYTES + size
    state.expected = held[:end]
    head = held[end : end + HEAD_BYTES]
    if head[0]:
        state.observed = head + held[HEAD_BYTES:end]
    rest = held[end + HEAD_BYTES :]
    state.older = [rest[at : at + size] for at in range(0, len(rest), size)] if size else []
    return state


class Comparison:
    """Whether a state of the target satisfies a version of the source, by the pipeline's match mode."""

    def __init__(self, match: Match, tolerances: Sequence[Decimal]) -> None:
        self.match = match
        self._tolerances = tuple(tolerances)

    @property
    def by_identity(self) -> bool:
        """Whether equal identities, and nothing else, are needed to agree."""
        return self.match is Match.DIGEST and not self._tolerances

    def satisfies(self, expected: Write, observed: Write) -> bool:
        """Whether the observed write shows the expected one, or (``version``) something newer."""
        return self._agree(expected, observed, newer=True)

    def same(self, expected: Write, observed: Write) -> bool:
        """Whether the observed write shows exactly the expected one; ``version``: not something ahead of it."""
        return self._agree(expected, observed, newer=False)

    def _agree(self, expected: Write, observed: Write, *, newer: bool) -> bool:
        one, other = expected[0], observed[0]
        if one in (TOUCHED, UNCHANGED) or other in (TOUCHED, UNCHANGED):
            return False
        if one == DELETE or other == DELETE:
            return one == other
        if self.match is Match.PRESENCE:
            return True
        if self.match is Match.VERSION:
            want, have = tail_of(expected)[1], tail_of(observed)[1]
            return want is not None and have is not None and (have >= want if newer else have == want)
        if expected[2] != observed[2] or expected[2] == UNKNOWN_MAPPING:
            return False
        if not identities_agree(identity_of(expected), identity_of(observed)):
            return False
        if not self._tolerances and not (expected[1] | observed[1]) & EXTRA:
            return True
        return self._values_agree(tail_of(expected)[0], tail_of(observed)[0])

    def _values_agree(self, expected: Sequence[str | None] | None, observed: Sequence[str | None] | None) -> bool:
        known = len(self._tolerances)
        if expected is None or observed is None:
            return not known and expected is observed
        if len(expected) != known or len(observed) != known:  # of a mapping before this one: what it tolerated is not known
            return expected == observed
        pairs = zip(expected, observed, self._tolerances, strict=True)
        return all(within(one, other, tolerance) for one, other, tolerance in pairs)


def identities_agree(one: bytes, other: bytes) -> bool:
    """Compare part by part; a part that either side does not know says nothing."""
    if one == other:
        return True
    if len(one) != len(other) or one[:16] != other[:16]:
        return False
    for at in range(16, len(one), 16):
        part, there = one[at : at + 16], other[at : at + 16]
        if part != there and part != BLANK and there != BLANK:
            return False
    return True
