"""How a partition's keys are cut into records: per bucket a base and what changed since, so that a checkpoint costs what changed.

A bucket's records carry the offset up to which they hold everything. A checkpoint that ended half way leaves some buckets ahead
of the commit marker; they skip what they hold already when the records after the marker are applied again. A new base goes under
the other of two generations' names, so that the one before stays whole until the next base.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from gapwatch.core.keys import bucket_of
from gapwatch.core.keystate import KeyState
from gapwatch.errors import ProtocolError
from gapwatch.model.suspect import Counters

RECORD_BYTES_MAX: Final = 400 * 1024
DELTAS_MAX: Final = 16

_Item = tuple[str, bytes, Any]  # pipeline, key, packed state (None: gone)


class Bucket:
    """Some of a partition's keys: those that are unsettled, those that are settled (bounded), and the counters of both."""

    __slots__ = (
        "_changed",
        "_counters",
        "_limits",
        "_open",
        "_settled",
        "applied",
        "deltas",
        "dirty_counters",
        "generation",
        "parts",
    )

    def __init__(self, limits: Mapping[str, int]) -> None:
        self._limits = limits
        self._open: dict[str, dict[bytes, KeyState]] = {}
        self._settled: dict[str, dict[bytes, KeyState]] = {}
        self._counters: dict[str, Counters] = {}
        self._changed: set[tuple[str, bytes]] = set()
        self.dirty_counters = False
        self.applied = -1  # of the restored records; what is applied later is newer
        self.generation = 0
        self.deltas = DELTAS_MAX  # so that the first record is a base
        self.parts = 0

    def find(self, pipeline: str, key: bytes) -> KeyState | None:
        state = self._open.get(pipeline, {}).get(key)
        return state if state is not None else self._settled.get(pipeline, {}).get(key)

    def put(self, pipeline: str, key: bytes, state: KeyState) -> None:
        """File the state where it belongs now; the settled key that changed least recently makes room."""
        self._changed.add((pipeline, key))
        settled = self._settled.setdefault(pipeline, {})
        opened = self._open.setdefault(pipeline, {})
        settled.pop(key, None)
        if not state.settled:
            opened[key] = state
            return
        opened.pop(key, None)
        settled[key] = state
        if len(settled) > self._limits.get(pipeline, 1):
            oldest = next(iter(settled))
            del settled[oldest]
            self._changed.add((pipeline, oldest))

    def drop(self, pipeline: str, key: bytes) -> None:
        self._changed.add((pipeline, key))
        self._open.get(pipeline, {}).pop(key, None)
        self._settled.get(pipeline, {}).pop(key, None)

    def open_count(self, pipeline: str) -> int:
        return len(self._open.get(pipeline, ()))

    def open_items(self, pipeline: str) -> Iterator[tuple[bytes, KeyState]]:
        return iter(self._open.get(pipeline, {}).items())

    def counters_of(self, pipeline: str) -> Counters:
        self.dirty_counters = True
        found = self._counters.get(pipeline)
        if found is None:
            found = self._counters[pipeline] = Counters()
        return found

    @property
    def counters(self) -> Mapping[str, Counters]:
        return self._counters

    def changes(self) -> list[_Item]:
        """Return what changed since the last call."""
        items: list[_Item] = []
        for pipeline, key in self._changed:
            state = self.find(pipeline, key)
            items.append((pipeline, key, state.packed() if state is not None else None))
        self._changed.clear()
        self.dirty_counters = False
        return items

    @property
    def changed(self) -> bool:
        return bool(self._changed) or self.dirty_counters

    def everything(self) -> Iterator[_Item]:
        for kept in (self._settled, self._open):
            for pipeline, states in kept.items():
                for key, state in states.items():
                    yield pipeline, key, state.packed()

    def load(self, items: Sequence[Any], counters: Mapping[str, Any]) -> None:
        for pipeline, key, fields in items:
            if fields is None:
                self.drop(pipeline, key)
            else:
                self.put(pipeline, key, KeyState.unpacked(fields))
        self._counters = {name: msgspec.convert(value, Counters) for name, value in counters.items()}
        self._changed.clear()
        self.dirty_counters = False


class BucketStore:
    """All buckets of one partition."""

    def __init__(self, partitions: int, buckets: int, limits: Mapping[str, int]) -> None:
        self._partitions = partitions
        self._buckets = [Bucket(limits) for _ in range(buckets)]
        self.delays: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def bucket_of(self, key: bytes) -> Bucket:
        return self._buckets[bucket_of(key, self._partitions, len(self._buckets))]

    def open_items(self, pipeline: str) -> Iterator[tuple[bytes, KeyState]]:
        for bucket in self._buckets:
            yield from bucket.open_items(pipeline)

    def open_states(self, pipeline: str) -> Iterator[KeyState]:
        return (state for _, state in self.open_items(pipeline))

    def delay(self, bound: int) -> None:
        self.delays[bound] = self.delays.get(bound, 0) + 1

    def counters(self, pipeline: str) -> Counters:
        """Return the sums over all buckets."""
        total = Counters()
        for bucket in self._buckets:
            found = bucket.counters.get(pipeline)
            if found is None:
                continue
            for name in Counters.__struct_fields__:
                value = getattr(found, name)
                if isinstance(value, dict):
                    into = getattr(total, name)
                    for label, count in value.items():
                        into[label] = into.get(label, 0) + count
                else:
                    setattr(total, name, getattr(total, name) + value)
        return total

    def records(self, applied: int) -> list[tuple[str, bytes | None]]:
        """Return the records of every bucket that changed; `applied` is the offset that they hold everything up to."""
        records: list[tuple[str, bytes | None]] = []
        for number, bucket in enumerate(self._buckets):
            if bucket.changed:
                records += self._delta(number, bucket, applied) or self._base(number, bucket, applied)
        return records

    def _delta(self, number: int, bucket: Bucket, applied: int) -> list[tuple[str, bytes | None]]:
        """Return the bucket's next delta; empty when it is time for a base."""
        if bucket.deltas >= DELTAS_MAX:
            return []
        payload = _encoded(bucket.generation, applied, 0, bucket.changes(), bucket.counters)
        if len(payload) > RECORD_BYTES_MAX:
            return []
        name = f"{number}/{bucket.generation % 2}/delta{bucket.deltas}"
        bucket.deltas += 1
        return [(name, payload)]

    def _base(self, number: int, bucket: Bucket, applied: int) -> list[tuple[str, bytes | None]]:
        bucket.changes()
        bucket.generation += 1
        bucket.deltas = 0
        parts = list(_cut(bucket.everything()))
        bucket.parts = len(parts)
        return [
            (
                f"{number}/{bucket.generation % 2}/base{part}",
                _encoded(bucket.generation, applied, len(parts), items, bucket.counters),
            )
            for part, items in enumerate(parts)
        ]

    def load(self, records: Mapping[str, bytes]) -> None:
        """Take up restored records: of each bucket the newest generation that is whole, with its deltas."""
        found: dict[int, dict[int, list[tuple[bool, int, list[Any]]]]] = {}
        for name, payload in records.items():
            number, _, kind = name.split("/")
            body = msgspec.msgpack.decode(payload)
            index = int(kind.removeprefix("base").removeprefix("delta"))
            found.setdefault(int(number), {}).setdefault(body[0], []).append((kind.startswith("base"), index, body))
        for place, generations in found.items():
            if place >= len(self._buckets):
                raise ProtocolError(f"The state was cut into more than {len(self._buckets)} buckets.")
            self._load(self._buckets[place], generations)

    def _load(self, bucket: Bucket, generations: Mapping[int, Sequence[tuple[bool, int, list[Any]]]]) -> None:
        for generation in sorted(generations, reverse=True):
            entries = generations[generation]
            bases = [body for is_base, _, body in entries if is_base]
            if not bases or len(bases) < bases[0][2]:
                continue  # the checkpoint that wrote it did not end; the generation before it is whole
            deltas = [(index, body) for is_base, index, body in entries if not is_base]
            in_order = [*bases, *(body for _, body in sorted(deltas))]
            for _, applied, _, items, counters in in_order:
                bucket.load(items, counters)
                bucket.applied = max(bucket.applied, applied)
            bucket.generation, bucket.parts = generation, len(bases)
            bucket.deltas = max((index for index, _ in deltas), default=-1) + 1
            return
        raise ProtocolError("No generation of a bucket's records is whole.")


def _cut(items: Iterator[_Item]) -> Iterator[list[_Item]]:
    """Cut items into lists that fit into a record; at least one, empty where there is none."""
    chunk: list[_Item] = []
    size = 0
    for item in items:
        weight = len(msgspec.msgpack.encode(item))
        if chunk and size + weight > RECORD_BYTES_MAX:
            yield chunk
            chunk, size = [], 0
        chunk.append(item)
        size += weight
    yield chunk


def _encoded(generation: int, applied: int, parts: int, items: Sequence[_Item], counters: Mapping[str, Counters]) -> bytes:
    return msgspec.msgpack.encode((generation, applied, parts, items, dict(counters)))
