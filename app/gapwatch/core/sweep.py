"""What a sweep covers, how far it may say that it has come, and when it proves something.

Which keys differ is found by ``core/sweep_sets.py``; nothing of that is a gap yet: every candidate is read again by key, after
grace.
"""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final


class Scope(StrEnum):
    FULL = "full"
    RANGE = "range"  # of keys, half-open
    KEYS = "keys"
    LOOKBACK = "lookback"  # what changed since a time

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> Scope:
        return cls(request.get("range", cls.FULL))

    @property
    def by_key(self) -> bool:
        """Whether keys are read one by one, and no side as a whole."""
        return self in (Scope.KEYS, Scope.LOOKBACK)


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepOutcome:
    """What is known when both scans ended and every candidate was judged."""

    complete: bool  # every page of both sides was read
    undecided: int  # candidates that could not be judged
    emptiness_proved: bool  # where a side showed nothing, a second query said so too
    identity_stable: bool  # the scanned objects are still the ones that were scanned

    @property
    def conclusive(self) -> bool:
        return self.complete and self.undecided == 0 and self.emptiness_proved and self.identity_stable

    def reason(self) -> str:
        """Say in one sentence why the sweep is inconclusive; empty when it is not."""
        if not self.complete:
            return "A page of one side could not be read."
        if not self.identity_stable:
            return "A table or collection was replaced while it was read."
        if not self.emptiness_proved:
            return "A side showed no rows, and a second query did not confirm that it is empty."
        if self.undecided:
            return f"{self.undecided} differing keys could not be judged."
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Both sides were compared below ``key`` (canonical bytes); ``counts`` are those of what lies below it."""

    key: bytes
    counts: tuple[int, int]


class SweepCounts:
    """Counts of a sweep by name, and by which keys: who goes on with it counts again what lies ahead of where he begins.

    ``by_key``: whether anybody can go on with it; else no key is remembered.
    """

    def __init__(self, counts: Mapping[str, int], *, by_key: bool = True) -> None:
        self.by_name = dict(counts)
        self._keeps_keys = by_key
        self._by_key: dict[bytes, tuple[str, ...]] = {}

    def add(self, key: bytes, *names: str) -> None:
        """Count a key under these names; one that is remembered counts under them only, whatever it was before."""
        if self._keeps_keys:
            for name in self._by_key.get(key, ()):
                self.by_name[name] -= 1
            self._by_key[key] = tuple(map(sys.intern, names))
        for name in names:
            self.by_name[name] = self.by_name.get(name, 0) + 1

    def begin_anew(self) -> None:
        """Forget all: every key is found once more."""
        self.by_name = dict.fromkeys(self.by_name, 0)
        self._by_key.clear()

    def take_back(self, key: bytes, *names: str) -> None:
        """Undo what was added for a key that is decided anew."""
        for name in names:
            self.by_name[name] -= 1
        if self._keeps_keys:
            left = Counter(self._by_key.get(key, ()))
            left.subtract(names)
            self._by_key[key] = tuple(left.elements())

    def behind(self, is_ahead: Callable[[bytes], bool]) -> dict[str, int]:
        """Return the counts without keys that are still ahead; the others never will be again."""
        self._by_key = {key: names for key, names in self._by_key.items() if is_ahead(key)}
        ahead = Counter(name for names in self._by_key.values() for name in names)
        return {name: count - ahead[name] for name, count in self.by_name.items()}


PLACE: Final = "place"  # in a run's cursor: from where a scan goes on
# From where an earlier version went on. It knew of no keys that are left: it finds no place of its own, and begins anew.
_EARLIER: Final = frozenset({"from", "counts", "left", "counted"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """From where another worker goes on with a scan.

    ``identities``: which objects were read; ``mapping``: the fingerprint by which everything below the mark was compared.
    ``left``: the keys below it that are not booked, which are judged first. Without them, ``counted``: what was counted, and
    ``differing``: how often each field differed in the keys that count against the mapping.
    """

    mark: Mark
    identities: Mapping[str, str]
    mapping: int
    left: Collection[bytes] = ()
    counted: Mapping[str, int] = field(default_factory=dict)
    differing: Mapping[str, int] = field(default_factory=dict)

    def pack(self) -> dict[str, Any]:
        """Return what a run's cursor holds of it."""
        return {
            PLACE: {
                "key": self.mark.key.hex(),
                "counts": list(self.mark.counts),
                "identities": dict(self.identities),
                "mapping": self.mapping,
                "left": [key.hex() for key in sorted(self.left)],
                "counted": dict(self.counted),
                "differing": dict(self.differing),
            }
        }

    @classmethod
    def unpack(cls, cursor: Mapping[str, Any]) -> Place | None:
        """Return a run's place; None where it begins."""
        packed = cursor.get(PLACE)
        if packed is None:
            return None
        source, target = packed["counts"]
        return cls(
            mark=Mark(key=bytes.fromhex(packed["key"]), counts=(source, target)),
            identities=packed["identities"],
            mapping=packed["mapping"],
            left=[bytes.fromhex(key) for key in packed["left"]],
            counted=packed["counted"],
            differing=packed["differing"],
        )

    @staticmethod
    def forgotten(cursor: Mapping[str, Any]) -> dict[str, Any]:
        """Return a run's cursor without any place to go on from."""
        return {name: value for name, value in cursor.items() if name != PLACE and name not in _EARLIER}


class Resumption:
    """From where another worker may go on: a key moves it only when everything below it was compared, judged and booked.

    Except for the keys that are ``left``, which are judged first by who goes on. Only for keys that both sides show in the order
    of their bytes.
    """

    MARKS_MAX = 1_000

    def __init__(self, start: Mark | None = None) -> None:
        self._marks: deque[Mark] = deque()
        self.reached = start

    def compared(self, mark: Mark) -> None:
        """Remember how far the comparison has come."""
        if len(self._marks) >= self.MARKS_MAX:  # every other one is enough: it only repeats more
            self._marks = deque(list(self._marks)[::2])
        self._marks.append(mark)

    def advance(self, undecided: Collection[bytes]) -> Mark | None:
        """Return the last mark at or below every key that is not decided yet; None: the beginning.

        A key below the mark that is undecided again does not move it back: it has to be among those that are left.
        """
        least = min((key for key in undecided if not self.is_below(key)), default=None)
        while self._marks and (least is None or self._marks[0].key <= least):
            self.reached = self._marks.popleft()
        return self.reached

    def is_below(self, key: bytes) -> bool:
        """Whether a key lies below the mark."""
        return self.reached is not None and key < self.reached.key


def cut_into(parts: int, sample: Collection[bytes]) -> list[tuple[bytes | None, bytes | None]]:
    """Return ranges that hold about as many keys each, by a sample of them: half-open, in order, and together all keys.

    Fewer than `parts` where the sample holds too few different keys.
    """
    keys = sorted(set(sample))
    ends = dict.fromkeys(keys[at * len(keys) // parts] for at in range(1, parts)) if keys else {}
    inner = [key for key in ends if key != keys[0]]
    return list(zip([None, *inner], [*inner, None], strict=True))


class Steps:
    """From where another worker may go on with a sweep by key: behind the steps all of whose keys were judged and booked."""

    def __init__(self, start: Mapping[str, Any] | None = None) -> None:
        self._steps: deque[tuple[Mapping[str, Any], frozenset[bytes]]] = deque()
        self.reached = start

    def fed(self, position: Mapping[str, Any], keys: Collection[bytes]) -> None:
        """Remember the keys of one step and the position behind it."""
        self._steps.append((position, frozenset(keys)))

    def is_ahead(self, key: bytes) -> bool:
        """Whether a key belongs to a step that is not behind the position."""
        return any(key in keys for _, keys in self._steps)

    def advance(self, undecided: Mapping[bytes, Any]) -> Mapping[str, Any] | None:
        """Return the last position before every key that is not decided yet; None: the beginning."""
        while self._steps and not any(key in undecided for key in self._steps[0][1]):
            self.reached = self._steps.popleft()[0]
        return self.reached
