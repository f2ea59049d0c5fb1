"""How a partition's keys are cut into records: per bucket a base and what changed since; a checkpoint costs what changed.

A bucket's records carry the offset up to which they hold everything: events, verdicts, what was judged. A checkpoint that
ended half way leaves some buckets ahead of the commit marker; they sleep until the records after the marker have come so far.
A new base goes under the other of two generations' names, so that the one before stays whole until the next base. All counters
and limits are the bucket's own: what happens in it is a function of its keys and of the streams' times, of no other bucket.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
import xxhash

from gapwatch.core.keystate import Held, KeyState
from gapwatch.errors import ProtocolError
from gapwatch.model.suspect import Counters, Hole

RECORD_BYTES_MAX: Final = 400 * 1024
DELTAS_MIN: Final = 16  # so many before a new base,
DELTAS_MAX: Final = 128  # and at most so many, while they are small beside the base
DELAY_BOUNDS_MS: Final = (50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 120_000, 300_000, 600_000, 3_600_000)

PENDING: Final = 0
SETTLED: Final = 1
GONE: Final = 2

_encode: Final = msgspec.msgpack.Encoder().encode
_Item = tuple[bytes, int, Any]  # key, where it is, what is known


class Cell:
    """The keys of one pipeline in one bucket: those that are open, and those that are settled (least recently changed first)."""

    __slots__ = ("changed", "counters", "delays", "hole", "limits", "pending", "raised", "settled", "touched")

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.pending: dict[bytes, Held] = {}
        self.settled: dict[bytes, Held] = {}
        self.raised: set[bytes] = set()
        self.changed: set[bytes] = set()
        self.touched = False  # something besides the keys changed
        self.counters = Counters()
        self.delays = [0] * (len(DELAY_BOUNDS_MS) + 1)
        self.hole: Hole | None = None  # what overflowed

    def settle(self, key: bytes, held: Held) -> None:
        """File a settled key as the most recently changed; the least recent one makes room."""
        settled = self.settled
        settled.pop(key, None)
        settled[key] = held
        self.changed.add(key)
        if len(settled) > self.limits.settled:
            oldest = next(iter(settled))
            del settled[oldest]
            self.changed.add(oldest)
            self.counters.forgotten += 1

    def drop(self, key: bytes) -> None:
        self.pending.pop(key, None)
        self.settled.pop(key, None)
        self.raised.discard(key)
        self.changed.add(key)

    def changes(self) -> list[_Item]:
        """Return what changed since the last call; settled keys in the order of their change, which is their place in line."""
        changed, pending, settled = self.changed, self.pending, self.settled
        items: list[_Item] = []
        lined: list[_Item] = []
        for key in reversed(settled):  # what changed stands at the end of the line
            if key not in changed:
                break
            lined.append((key, SETTLED, _packed(settled[key])))
        for key in changed:
            if key in pending:
                items.append((key, PENDING, _packed(pending[key])))
            elif key not in settled:
                items.append((key, GONE, None))
        lined.reverse()
        self.forget_changes()
        return items + lined

    def everything(self) -> Iterator[_Item]:
        for key, held in self.pending.items():
            yield key, PENDING, _packed(held)
        for key, held in self.settled.items():
            yield key, SETTLED, _packed(held)

    def forget_changes(self) -> None:
        self.changed = set()
        self.touched = False

    def load(self, items: Iterable[_Item]) -> None:
        for key, place, packed in items:
            self.pending.pop(key, None)
            self.settled.pop(key, None)
            self.raised.discard(key)
            if place == PENDING:
                held = _unpacked(packed)
                self.pending[key] = held
                if isinstance(held, KeyState) and held.raised:
                    self.raised.add(key)
            elif place == SETTLED:
                self.settled[key] = _unpacked(packed)

    def extras(self) -> tuple[Any, ...]:
        return self.counters, self.delays, self.hole

    def load_extras(self, extras: Sequence[Any]) -> None:
        counters, delays, hole = extras
        self.counters = msgspec.convert(counters, Counters)
        self.delays = list(delays)
        self.hole = msgspec.convert(hole, Hole) if hole is not None else None


class Limits:
    """A pipeline's limits in one bucket of one partition: its share, as the keys are spread by their hash."""

    __slots__ = ("pending", "raised", "settled")

    def __init__(self, *, pending: int, raised: int, settled: int, shares: int) -> None:
        self.pending = max(1, pending // shares)
        self.raised = max(1, raised // shares)
        self.settled = max(1, settled // shares)


class Bucket:
    """One bucket's cells, by pipeline, and where its records stand."""

    __slots__ = ("applied", "base_bytes", "cells", "delta_bytes", "deltas", "deltas_min", "generation", "stamp")

    def __init__(self, number: int, limits: Mapping[str, Limits]) -> None:
        self.cells = {name: Cell(limit) for name, limit in limits.items()}
        self.applied = -1  # of the restored records; what is applied later is newer
        self.generation = 0
        self.deltas = DELTAS_MAX  # so that the first record is a base
        self.deltas_min = DELTAS_MIN + number % DELTAS_MIN  # so that not all buckets are written anew at once
        self.base_bytes = self.delta_bytes = 0
        self.stamp = 0

    @property
    def changed(self) -> bool:
        return any(cell.changed or cell.touched for cell in self.cells.values())


class BucketStore:
    """All buckets of one partition."""

    def __init__(self, buckets: int, limits: Mapping[str, Limits]) -> None:
        self.buckets = [Bucket(number, limits) for number in range(buckets)]

    def cells(self, pipeline: str) -> list[Cell]:
        """Return a pipeline's cells, by bucket."""
        return [bucket.cells[pipeline] for bucket in self.buckets]

    def records(self, applied: int, names: Any) -> list[tuple[str, bytes | None]]:
        """Return the records of every bucket that changed.

        Args:
            applied: The offset of ``gapwatch.events`` that they hold everything up to.
            names: What the writes' numbers of feeds and mappings mean; goes into each record.
        """
        records: list[tuple[str, bytes | None]] = []
        for number, bucket in enumerate(self.buckets):
            if bucket.changed:
                records += self._delta(number, bucket, applied, names) or self._base(number, bucket, applied, names)
        return records

    def _delta(self, number: int, bucket: Bucket, applied: int, names: Any) -> list[tuple[str, bytes | None]]:
        """Return the bucket's next delta; empty when it is time for a base."""
        small = bucket.delta_bytes < bucket.base_bytes // 4
        if bucket.deltas >= (DELTAS_MAX if small else bucket.deltas_min):
            return []
        changes = {name: (cell.extras(), cell.changes()) for name, cell in bucket.cells.items() if cell.changed or cell.touched}
        payload = _encode((bucket.generation, applied, bucket.stamp, 0, names, changes))
        if len(payload) > RECORD_BYTES_MAX:
            return []
        name = f"{number}/{bucket.generation % 2}/delta{bucket.deltas}"
        bucket.deltas += 1
        bucket.delta_bytes += len(payload)
        return [(name, payload)]

    def _base(self, number: int, bucket: Bucket, applied: int, names: Any) -> list[tuple[str, bytes | None]]:
        bucket.generation += 1
        if bucket.generation > 1:
            bucket.deltas_min = DELTAS_MIN
        bucket.deltas = bucket.base_bytes = bucket.delta_bytes = 0
        parts = list(_cut(bucket.cells))
        stamp = xxhash.xxh3_64()
        bodies = []
        for part in parts:
            bodies.append(_encode(part))
            stamp.update(bodies[-1])
        bucket.stamp = stamp.intdigest()
        for cell in bucket.cells.values():
            cell.forget_changes()
        records: list[tuple[str, bytes | None]] = []
        for index, body in enumerate(bodies):
            head = (bucket.generation, applied, bucket.stamp, len(parts), names, msgspec.Raw(body))
            payload = _encode(head)
            bucket.base_bytes += len(payload)
            records.append((f"{number}/{bucket.generation % 2}/base{index}", payload))
        return records

    def load(self, records: Mapping[str, bytes]) -> list[Any]:
        """Take up restored records: of each bucket the newest base that is whole, with its deltas. Return the names found."""
        found: dict[int, dict[tuple[int, int], _Generation]] = {}
        for name, payload in records.items():
            number, _, kind = name.split("/")
            generation, applied, stamp, parts, names, body = msgspec.msgpack.decode(payload)
            one = found.setdefault(int(number), {}).setdefault((generation, stamp), _Generation())
            if kind.startswith("base"):
                one.parts = parts
                one.size += len(payload)
                one.base[int(kind[4:])] = (applied, names, body)
            else:
                one.deltas[int(kind[5:])] = (applied, names, body)
        every: list[Any] = []
        for place, generations in found.items():
            if place >= len(self.buckets):
                raise ProtocolError(f"The state was cut into more than {len(self.buckets)} buckets.")
            every += self._load(self.buckets[place], generations)
        return every

    def _load(self, bucket: Bucket, generations: Mapping[tuple[int, int], _Generation]) -> list[Any]:
        for (generation, stamp), found in sorted(generations.items(), reverse=True):
            if not found.parts or len(found.base) < found.parts:
                continue  # the checkpoint that wrote it did not end; the generation before it is whole
            every = []
            deltas = found.in_order()
            for applied, names, body in [*(found.base[index] for index in range(found.parts)), *deltas]:
                _load_cells(bucket.cells, body)
                bucket.applied = max(bucket.applied, applied)
                every.append(names)
            bucket.generation, bucket.stamp = generation, stamp
            bucket.deltas, bucket.base_bytes = len(deltas), found.size
            for cell in bucket.cells.values():
                cell.forget_changes()
            return every
        raise ProtocolError("No generation of a bucket's records is whole.")


class _Generation:
    """A base and its deltas, as found: by index (applied, names, cells)."""

    def __init__(self) -> None:
        self.size = 0
        self.parts = 0
        self.base: dict[int, tuple[int, Any, Any]] = {}
        self.deltas: dict[int, tuple[int, Any, Any]] = {}

    def in_order(self) -> list[tuple[int, Any, Any]]:
        """Return the deltas from the first one on without gaps."""
        found: list[tuple[int, Any, Any]] = []
        while len(found) in self.deltas:
            found.append(self.deltas[len(found)])
        return found


def _load_cells(cells: Mapping[str, Cell], body: Mapping[str, Any]) -> None:
    for name, (extras, items) in body.items():
        cell = cells.get(name)
        if cell is not None:  # else of a pipeline that is no more
            cell.load(items)
            cell.load_extras(extras)


def _cut(cells: Mapping[str, Cell]) -> Iterator[dict[str, Any]]:
    """Cut everything into parts that fit into a record; at least one."""
    part: dict[str, Any] = {}
    size = 0
    for name, cell in cells.items():
        items: list[_Item] = []
        part[name] = (cell.extras(), items)
        for item in cell.everything():
            weight = _weight(item)
            if size + weight > RECORD_BYTES_MAX and size:
                yield part
                items = []
                part, size = {name: (cell.extras(), items)}, 0
            items.append(item)
            size += weight
    yield part


def _weight(item: _Item) -> int:
    """Return an upper bound of an item's bytes in a record."""
    key, _, packed = item
    return len(key) + 16 + (len(packed) if isinstance(packed, bytes) else len(_encode(packed)))


def _packed(held: Held) -> Any:
    return held if isinstance(held, bytes) else held.packed()


def _unpacked(packed: Any) -> Held:
    return packed if isinstance(packed, bytes) else KeyState.unpacked(packed)
