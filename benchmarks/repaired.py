"""What a repair of very many documents costs ourselves: sweep, plan and backfill over a ledger on disk, stores in memory.

``python -m benchmarks.repaired [DOCUMENTS]`` prints the CPU and wall microseconds a document of each step. No store is started:
what drivers cost, and what a store does, is not in it (row 11 has both).
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from benchmarks.sweep_contestants import Pair, Repair, pipeline
from gapwatch.core.keys import KeyCodec
from gapwatch.core.mapping import CompiledMapping
from gapwatch.model.gap import Kind, RunKind
from gapwatch.model.pipeline import BatchSpec, FeedKind, FeedSpec, FieldSpec, StoreType
from gapwatch.ports import ABSENT, DatasetInfo, Key, KeyChunk, Read, StoredRecord, WriteItem, WriteResult
from gapwatch.roles.collecting import collect_seldom
from gapwatch.roles.repair.plans import plan, request_apply
from gapwatch.roles.stores import PipelineStores
from gapwatch_connectors.mongodb.documents import build
from gapwatch_connectors.mongodb.keys import DocumentKeys

PAIR = Pair(name="repaired", source=StoreType.POSTGRES, source_url="", target=StoreType.MONGODB, target_url="")
BEGINNING = datetime(2026, 1, 1, tzinfo=UTC)
MILLION = 1_000_000


@dataclass
class Records:
    """One side, in memory: a new record object for each read, as a driver makes them."""

    codec: KeyCodec
    by_key: dict[Key, dict[str, Any]] = field(default_factory=dict)
    has_revisions: bool = False
    reads: int = 0

    async def in_key_order(self) -> bool:
        return True

    async def describe(self) -> DatasetInfo:
        return DatasetInfo(identity="one")

    async def fetch(self, keys: Collection[Key]) -> Mapping[Key, Read]:
        self.reads += len(keys)
        found: dict[Key, Read] = {}
        for key in keys:
            fields = self.by_key.get(key)
            if fields is None:
                found[key] = ABSENT
                continue
            revision = f"{fields['id']}/(0,1)" if self.has_revisions else None
            found[key] = StoredRecord(key=key, fields=fields, revision=revision, target_id=str(fields.get("_id", "")) or None)
        return found

    async def scan_keys(
        self, *, lower: Key | None = None, upper: Key | None = None, chunk: int = 50_000
    ) -> AsyncIterator[KeyChunk]:
        keys = sorted(self.by_key)
        for start in range(0, len(keys), chunk):
            yield KeyChunk(identity="one", keys=keys[start : start + chunk])

    async def is_empty(self) -> bool:
        return not self.by_key

    async def estimate(self) -> int:
        return len(self.by_key)

    async def close(self) -> None: ...


class Written:
    """Puts documents into a side in memory; makes them as the MongoDB writer does."""

    def __init__(self, target: Records, keys: DocumentKeys) -> None:
        self._target = target
        self._keys = keys

    async def write(self, items: Sequence[WriteItem]) -> Sequence[WriteResult]:
        for item in items:
            assert item.document is not None
            assert item.key not in self._target.by_key, "nothing is written over"
            self._target.by_key[item.key] = dict(item.document)
        return [WriteResult(key=item.key, outcome="written") for item in items]

    def document(self, key: Key, row: StoredRecord, fields: Sequence[FieldSpec]) -> Mapping[str, Any]:
        return build(self._keys, key, row, fields, FeedSpec(kind=FeedKind.NONE).placeholder, copied_key=())

    def kept(self, document: StoredRecord) -> str:
        raise AssertionError("nothing is written over, so that nothing is kept of it")

    async def close(self) -> None: ...


class Measured:
    """A ledger that knows what CPU each of its methods took, in whichever thread."""

    def __init__(self, ledger: Any) -> None:
        self._ledger = ledger
        self.seconds: dict[str, float] = defaultdict(float)

    def __getattr__(self, name: str) -> Any:
        asked = getattr(self._ledger, name)
        if not callable(asked):
            return asked

        def measured(*args: Any, **more: Any) -> Any:
            began = time.thread_time()
            try:
                return asked(*args, **more)
            finally:
                self.seconds[name] += time.thread_time() - began

        return measured


class InMemory(Repair):
    """A repair between two sides in memory: nothing else differs from that of row 11."""

    def __init__(self, documents: int, directory: str) -> None:
        self._documents = documents
        super().__init__(PAIR, pipeline(PAIR, BatchSpec(documents=2_000, pause_seconds=0.0)), directory)

    def opened(self, directory: str) -> Any:
        return Measured(super().opened(directory))

    def make(self, spec: Any) -> PipelineStores:
        codec = KeyCodec(spec.source.key)
        source, target = Records(codec, has_revisions=True), Records(codec)
        writer = Written(target, DocumentKeys(spec.target.key))
        present = self._documents * 31_084 // 102_349
        for number in range(self._documents + present):
            key = codec.encode([number])
            source.by_key[key] = _row(number)
            if number * present // (self._documents + present) != (number + 1) * present // (self._documents + present):
                row = StoredRecord(key=key, fields=source.by_key[key])
                target.by_key[key] = dict(writer.document(key, row, spec.fields))
        made: Any = {"source": source, "target": target, "writer": writer}
        return PipelineStores(spec=spec, mapping=CompiledMapping(spec), codec=codec, **made)


def _row(number: int) -> dict[str, Any]:
    return {
        "id": number,
        "customer": f"customer {number % 5000}",
        "status": ("new", "paid", "packed", "shipped")[number % 4],
        "amount": Decimal(number % 100_000).scaleb(-2),
        "quantity": 1 + number % 9,
        "placed": BEGINNING + timedelta(seconds=number),
        "paid": number % 2 == 0,
        "weight": number / 8,
        "note": f"note for order {number}",
    }


@dataclass
class Steps:
    """CPU and wall time of what was done so far, a document."""

    documents: int
    _at: tuple[float, float] = field(default_factory=lambda: (time.process_time(), time.monotonic()))
    cpu: float = 0.0
    wall: float = 0.0

    def done(self, name: str) -> None:
        now = time.process_time(), time.monotonic()
        cpu, wall = ((one - before) / self.documents * MILLION for one, before in zip(now, self._at, strict=True))
        self.cpu, self.wall, self._at = self.cpu + cpu, self.wall + wall, now
        print(f"{name:10} {cpu:8.0f} µs CPU {wall:8.0f} µs wall a document", flush=True)

    def all_done(self) -> None:
        print(f"{'all':10} {self.cpu:8.0f} µs CPU {self.wall:8.0f} µs wall a document", flush=True)


async def repair(documents: int, directory: str) -> None:
    """Find, write and verify as many documents as the target lacks; print what each step took."""
    collect_seldom()  # as the role does
    made = InMemory(documents, directory)
    try:
        steps = Steps(documents)
        counts = await made.sweep(content=False)
        steps.done("sweep")
        assert counts["missing"] == documents, counts
        planned = plan(made.ledger, made.spec, frozenset({Kind.MISSING}), limit=MILLION, run_id="plan", clock=made.clock)
        request_apply(made.ledger, planned.id, run_id="apply", clock=made.clock)
        steps.done("plan")
        run = await made.backfiller.run(made._taken(RunKind.BACKFILL), made.made)
        steps.done("backfill")
        steps.all_done()
        reads = [reader.reads / documents for reader in (made.made.source, made.made.target)]  # type: ignore[attr-defined]
        print(f"{reads[0]:.2f} reads by key a document at the source, {reads[1]:.2f} at the target")
        for name, seconds in sorted(made.ledger.seconds.items(), key=lambda one: -one[1])[:9]:  # type: ignore[attr-defined]
            print(f"  {name:20} {seconds / documents * MILLION:8.0f} µs CPU in the ledger")
        assert (run.counts["verified"], run.counts["in_sync"]) == (documents, 1), run
    finally:
        await made.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        asyncio.run(repair(int(sys.argv[1]) if sys.argv[1:] else 20_000, place))
