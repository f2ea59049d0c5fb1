"""The doors between the roles and the outside: protocols with their contracts.

Who calls: the roles. Who implements: the connectors, the ledger, the system clock; in-memory fakes for the contract suite.
All store methods raise :class:`~gapwatch.errors.StoreUnreachable` or :class:`~gapwatch.errors.StoreRefused`, no driver error.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

from msgspec import Struct

from gapwatch.core.keys import TEXT_END
from gapwatch.core.mapping import CompiledMapping
from gapwatch.model.gap import (
    AuditRow,
    FindingRecord,
    Gap,
    GapBurst,
    Kind,
    RepairPressure,
    RepairRecord,
    Run,
    RunKind,
    RunState,
    SweepPart,
)
from gapwatch.model.gap import GapName as GapName
from gapwatch.model.gap import GapSummary as GapSummary
from gapwatch.model.pipeline import FieldSpec
from gapwatch.model.stream import Side

if TYPE_CHECKING:  # roles that sweep nothing start without numpy
    import numpy.typing as npt

Key = bytes  # canonical bytes, made by core/keys.KeyCodec


class Absent:
    """Proved absent: the store answered, and the key is not there, or by the pipeline's rules counts as if (``why``)."""

    __slots__ = ("why",)

    def __init__(self, why: str = "") -> None:
        self.why = why

    def __repr__(self) -> str:
        return f"Absent({self.why!r})" if self.why else "ABSENT"


class Unread:
    """Not read: says nothing about the key. ``reason`` is for the log and the verdict."""

    __slots__ = ("reason",)

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __repr__(self) -> str:
        return f"Unread({self.reason!r})"


ABSENT: Final = Absent()


class StoredRecord(Struct, frozen=True, kw_only=True):
    """One row or document as the store holds it now.

    ``fields`` are raw driver values by column, or the whole document. ``revision`` changes with every write of the record
    where the store has such a thing (Postgres ``xmin`` and ``ctid``), else None. ``target_id`` is what a person would look up.
    ``raw`` is what a guarded write compares with (MongoDB: the document itself).
    """

    key: Key
    fields: Mapping[str, Any]
    revision: str | None = None
    target_id: str | None = None
    table: str = ""  # where the source has several, the one that holds it
    raw: Any = None
    ignored: str = ""  # why the target may hold it or not


Read = StoredRecord | Absent | Unread


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanChunk:
    """A stretch of a scan. ``complete`` is False when a page failed: the sweep is then inconclusive there.

    ``records`` come in the store's natural order; ``cursor`` resumes after the last one. ``identity`` names the scanned object
    (relation oid and filenode, collection uuid), so that a re-created one is noticed. ``reason`` says why it is not complete.
    """

    records: Sequence[StoredRecord]
    cursor: Any
    identity: str
    complete: bool = True
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyChunk:
    """A stretch of a scan of keys alone; otherwise as :class:`ScanChunk`.

    ``block``: keys as the store could hand them over in bulk, ``int64`` for whole numbers, else their fixed-width bytes.
    ``texts``: canonical keys of one text column, one after the other. Both None: they are in ``keys``, canonical.
    """

    identity: str
    block: npt.NDArray[Any] | None = None
    texts: bytes | None = None
    keys: Sequence[Key] = ()
    complete: bool = True
    reason: str = ""

    def __len__(self) -> int:
        if self.texts is not None:
            return self.texts.count(TEXT_END)
        return len(self.keys) if self.block is None else len(self.block)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentChunk:
    """A stretch of a scan of contents: the keys, and one content each, in the layout of ``core/sweep_contents``."""

    keys: KeyChunk
    contents: npt.NDArray[Any]


class Clock(Protocol):
    def now(self) -> datetime:
        """Return the time, aware, UTC."""

    def now_ms(self) -> int:
        """Return milliseconds since the epoch."""

    def monotonic(self) -> float:
        """Return seconds of a clock that never goes back."""

    async def sleep(self, seconds: float) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnInfo:
    """One column, from the store's catalogue. ``storage`` is Postgres' attstorage letter; ``type_name`` its format_type."""

    name: str
    type_name: str
    storage: str = "p"
    scale: int | None = None
    precision: int | None = None
    nullable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetInfo:
    """What a store says of a table or collection. ``replica_identity``: f(ull), d(efault), n(othing), i(ndex).

    ``unique``: sets of columns of which no two rows have the same values; None: the store keeps its keys unique by itself.
    """

    identity: str
    columns: tuple[ColumnInfo, ...] = ()
    primary_key: tuple[str, ...] = ()
    unique: tuple[frozenset[str], ...] | None = None
    replica_identity: str = ""
    post_images: bool = False


class Store(Protocol):
    async def ping(self) -> None:
        """Return when the store answers a trivial request; raise StoreUnreachable or StoreRefused otherwise."""

    async def clock_offset_ms(self) -> int:
        """Return the store's clock minus ours, in milliseconds, at half of the round trip."""

    async def close(self) -> None: ...


class DatasetReader(Store, Protocol):
    """Reads one pipeline's dataset on one side: current, primary reads, never a search index or a stale replica."""

    async def in_key_order(self) -> bool:
        """Whether a scan shows all keys that are there now in the order of their bytes, where these have one.

        (Whole numbers, UUIDs and ObjectIds have.) Only then may a scan begin behind a key, and leave out what comes before it.
        """

    async def describe(self) -> DatasetInfo:
        """Return the catalogue's view; StoreRefused (with a remedy) when the dataset does not exist."""

    async def fetch(self, keys: Collection[Key]) -> Mapping[Key, Read | tuple[StoredRecord, ...]]:
        """Return exactly one entry per key, read at one moment no older than the call.

        `ABSENT` means proved absent; an unread key is `Unread`, never absent. A tuple (two or more) where several
        documents, or rows of several source tables, carry it. The call itself raises only when nothing at all could be read.
        """

    def scan(
        self,
        *,
        content: bool,
        cursor: Any = None,
        lower: Key | None = None,
        upper: Key | None = None,
        chunk: int = 10_000,
    ) -> AsyncIterator[ScanChunk]:
        """Read the whole dataset (or the half-open key range ``[lower, upper)``) in natural key order, in short reads.

        With ``content`` False only the key columns are read. A failing page ends the scan with a chunk with complete=False.
        """

    def scan_keys(self, *, lower: Key | None = None, upper: Key | None = None, chunk: int = 50_000) -> AsyncIterator[KeyChunk]:
        """Read the keys alone, in the order and with the ends of :meth:`scan`."""

    def scan_changed(self, since: datetime, *, cursor: Any = None, chunk: int = 2_000) -> AsyncIterator[ScanChunk]:
        """Read the keys of records whose ``changed_at`` is at `since` or later, the oldest change first where the store can.

        A record may come twice; one that changes meanwhile is not missed. `cursor` is JSON. Raises StoreRefused where the
        pipeline names no such column, or it holds no times.
        """

    async def is_empty(self) -> bool:
        """Prove by a second, plain query whether the dataset holds nothing."""

    async def estimate(self) -> int:
        """Return about how many records there are, from what the store keeps anyway; for progress only, 0 where unknown."""


@runtime_checkable
class ContentReader(Protocol):
    """What a :class:`DatasetReader` may be besides: it hands over contents without a record for each."""

    def scan_contents(
        self, mapping: CompiledMapping, side: Side, *, lower: Key | None = None, upper: Key | None = None, chunk: int = 5_000
    ) -> AsyncGenerator[ContentChunk]:
        """Read the contents in the order and with the ends of :meth:`DatasetReader.scan`.

        They are those of ``mapping``, whose fields all have a type; ``side`` is the one that the reader reads.
        """


@runtime_checkable
class KeySampler(Protocol):
    """What a :class:`DatasetReader` may be besides: it shows some of its keys without reading them all."""

    async def sample_keys(self, count: int) -> Sequence[Key]:
        """Return some `count` keys from all over the dataset, in no order; how many, and how evenly, is for nobody to rely on."""


class WriteItem(Struct, frozen=True, kw_only=True):
    """One guarded write. ``document`` None: delete. ``replaces`` is what was read: ABSENT → insert, else replace exactly that."""

    key: Key
    document: Mapping[str, Any] | None
    replaces: StoredRecord | Absent


class WriteResult(Struct, frozen=True, kw_only=True):
    """``outcome``: written | guard_failed (someone newer was there) | failed, with the store's reason."""

    key: Key
    outcome: str
    reason: str = ""


class TargetWriter(Protocol):
    async def write(self, items: Sequence[WriteItem]) -> Sequence[WriteResult]:
        """Apply each item under its guard; one result per item, in order. A refused item fails alone."""

    def document(self, key: Key, row: StoredRecord, fields: Sequence[FieldSpec]) -> Mapping[str, Any]:
        """Build the target's document from a complete source row; raise RecordError when a field is missing or masked."""

    def kept(self, document: StoredRecord) -> str:
        """Return a document, as it was read, as JSON from which a person can write it again: for the undo file."""

    async def close(self) -> None: ...


class GapChange(Struct, frozen=True, kw_only=True):
    """A gap as it shall be stored, against the revision that was read (None: it must be new)."""

    gap: Gap
    against: int | None
    event: str  # opened | updated | resolved | acknowledged | snoozed | reopened | repairing | repair_refused
    actor: str = "gapwatch"
    state_only: bool = False  # nothing differs from what was read but state, resolved_at, resolution, note and revision


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    name: str
    holder: str
    fencing: int
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxRow:
    id: int
    key: str
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class GapFilter:
    pipeline: str | None = None
    kinds: tuple[str, ...] = ()
    states: tuple[str, ...] = ()
    causes: tuple[str, ...] = ()
    since: datetime | None = None
    key: Key | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    gaps: Sequence[Gap]
    next_cursor: str | None


class Ledger(Protocol):
    """The SQL ledger. Every method is one transaction; called from threads (``asyncio.to_thread``), so plain and blocking.

    Raises StoreUnreachable when the database does not answer, ConflictError where a revision, index or lease says no.
    """

    def writes(self) -> int:
        """Return a number that grows when this process has written gaps, findings or runs. Asks nobody; from any thread."""

    def on_write(self, tell: Callable[[], None]) -> Callable[[], None]:
        """Have `tell` called whenever :meth:`writes` has grown, by the thread that wrote; return what ends that."""

    # gaps
    def store_gaps(self, changes: Sequence[GapChange]) -> Sequence[bool]:
        """Store gap row, life-cycle row and outbox row in one transaction; per change False where its revision was overtaken."""

    def gap(self, gap_id: str) -> Gap | None: ...
    def gaps_by_id(self, ids: Collection[str]) -> Mapping[str, Gap]: ...
    def open_gaps_for(self, pipeline: str, keys: Collection[Key]) -> Mapping[Key, Gap]: ...
    def gaps(self, where: GapFilter, *, limit: int = 100, cursor: str | None = None) -> Page: ...
    def gap_names(self, where: GapFilter, *, limit: int = 100, cursor: str | None = None) -> tuple[Sequence[GapName], str | None]:
        """Return a page as :meth:`gaps` does, of nothing but names, and the next page's cursor."""

    def gap_summary(self, pipeline: str) -> GapSummary: ...
    def gap_summaries(self, pipelines: Sequence[str]) -> Mapping[str, GapSummary]: ...  # of each of them
    def accepted_gaps(self, pipelines: Sequence[str], since: datetime) -> Mapping[str, int]:
        """Return how many gaps of each pipeline that the stream found since then somebody accepted."""

    def gap_burst(self, pipeline: str, since: datetime, *, samples: int) -> GapBurst: ...
    def gap_counts(self) -> Mapping[tuple[str, str, str], int]:
        """Return totals ever detected by (pipeline, kind, detector)."""

    def resolution_counts(self) -> Mapping[tuple[str, str], int]: ...
    def gap_history(self, gap_id: str) -> Sequence[Mapping[str, Any]]: ...

    # outbox
    def outbox(self, limit: int) -> Sequence[OutboxRow]: ...
    def outbox_done(self, ids: Sequence[int]) -> None: ...

    # findings and holes
    def raise_finding(self, record: FindingRecord) -> bool:
        """Insert, or refresh ``last_seen`` of the same open (pipeline, finding, side, feed, id); True when it is new."""

    def clear_finding(
        self, finding_id: str, *, at: datetime, covered_by: str | None = None, through: datetime | None = None
    ) -> None: ...
    def findings(self, pipeline: str | None = None, *, open_only: bool = True) -> Sequence[FindingRecord]: ...

    # unverifiable keys: hold consistent-through until a sweep has read them
    def add_unverifiable(self, pipeline: str, key: Key, event_time: datetime, reason: str) -> None: ...
    def unverifiable_oldest(self, pipeline: str) -> datetime | None: ...
    def oldest_unverifiable(self, pipelines: Sequence[str]) -> Mapping[str, datetime]: ...  # by pipeline, where there is one
    def clear_unverifiable(self, pipeline: str, *, before: datetime) -> int: ...

    # runs
    def create_run(self, run: Run) -> Run:
        """Insert; ConflictError (with the running id) when one of the same pipeline and kind is queued or running."""

    def run(self, run_id: str) -> Run | None: ...
    def runs(
        self,
        *,
        pipeline: str | None = None,
        kind: RunKind | None = None,
        states: Sequence[RunState] = (),
        limit: int = 50,
    ) -> Sequence[Run]: ...
    def last_runs(self, kind: RunKind, pipelines: Sequence[str]) -> Mapping[str, Run]: ...  # by pipeline, where there is one
    def take_run(self, kind: RunKind, holder: str, *, seconds: float) -> Run | None:
        """Claim the oldest queued run (or one whose lease expired); return it as running, its fencing number one higher."""

    def update_run(self, run: Run, *, holder: str | None = None) -> None:
        """Store state, progress, counts, cursor; renews the holder's lease. ConflictError when holder or number is old."""

    def cancel_run(self, run_id: str) -> Run: ...

    # parts of a sweep that workers share
    def split_run(self, run_id: str, parts: Sequence[SweepPart], *, holder: str) -> None:
        """Store the parts of a run that has none. ConflictError when the holder lost the run."""

    def parts(self, run_id: str) -> Sequence[SweepPart]:
        """Return a run's parts in the order of their keys; none where it was not split."""

    def take_part(self, holder: str, pipelines: Collection[str], *, seconds: float) -> tuple[Run, SweepPart] | None:
        """Claim a queued part (or one whose holder's lease expired) of a sweep that runs and is not to be cancelled."""

    def update_part(self, part: SweepPart, *, holder: str) -> None:
        """Store what became of it; renews the holder's lease. ConflictError when it lost the part, or the sweep is over."""

    # repairs
    def repairable(self, pipeline: str, kinds: Collection[Kind], *, now: datetime, limit: int) -> Sequence[Gap]:
        """Return open gaps of these kinds, the oldest first, without those that wait for another attempt or are given up."""

    def repair_pressure(
        self,
        pipeline: str,
        kinds: Collection[Kind],
        *,
        confirmed_since: datetime | None,
        done_since: datetime,
        action: str,
        actor: str,
    ) -> RepairPressure:
        """Return how many such gaps wait, and what `actor` did to documents in `action` since then, by the audit."""

    def repairs(
        self,
        pipeline: str | None = None,
        *,
        given_up: bool | None = None,
        gap_ids: Collection[str] | None = None,
        limit: int = 100,
    ) -> Sequence[RepairRecord]:
        """Return records of gaps that are still open, with their gaps, the newest failure first."""

    def repair_counts(self) -> Mapping[tuple[str, bool], int]:
        """Return how many open gaps wait for another attempt, and how many are given up, by (pipeline, given up)."""

    def store_repairs(self, records: Sequence[RepairRecord]) -> None: ...
    def forget_repairs(self, gap_ids: Collection[str]) -> None: ...
    def forget_resolved_repairs(self, pipeline: str) -> None:
        """Drop the records of gaps that were resolved, by whomever: one that opens again begins anew."""

    # audit
    def audit(self, rows: Sequence[AuditRow], *, by: Run | None = None) -> None:
        """Append. `by`: the run whose holder says so; ConflictError once the run was taken again since."""

    def audit_rows(
        self, *, pipeline: str | None = None, run_id: str | None = None, key: Key | None = None, limit: int = 100
    ) -> Sequence[AuditRow]: ...

    def audited_keys(
        self, run_id: str, *, action: str | None = None, outcome: str | None = None
    ) -> Sequence[tuple[Key, str | None, str]]:
        """Return key, gap and reason of a run's audit rows that name a key, the last stored first. All of them."""

    # feeds: epochs, positions, baselines, pauses, small facts
    def epoch(self, feed: str, partition: int, topic_id: str, offset: int, *, after: int = 0) -> int:
        """Return the number of the epoch that begins at (topic id, partition, offset); insert-once, so all workers agree.

        An offset below 0 stands for the end of an epoch's log that was lost: minus the number of that epoch. ``after``: the
        number that the caller knows to be in use, which a ledger restored from a backup may not: a new one is higher.
        """

    def newest_epoch(self, feed: str, partition: int, topic_id: str) -> int:
        """Return the number of the last epoch that began in this topic, or of the one that begins with its log."""

    def facts(self, *prefixes: str) -> Mapping[str, Any]: ...  # those whose names begin with one of them; with none, all
    def fact(self, name: str) -> Any | None: ...
    def set_fact(self, name: str, value: Any, *, under: Lease | None = None) -> None:
        """Store a small JSON value by name (a resume token, a baseline). ConflictError once the lease `under` was taken anew."""

    def set_facts(self, values: Mapping[str, Any]) -> None: ...
    def set_facts_under(self, values: Sequence[tuple[str, Any, Lease]]) -> Sequence[bool]:
        """Store each value by name, unless its lease was taken anew: then False in its place."""

    # leases
    def take_lease(self, name: str, holder: str, *, seconds: float) -> Lease | None: ...
    def renew_lease(self, lease: Lease, *, seconds: float) -> Lease | None: ...
    def renew_leases(self, held: Sequence[Lease], *, seconds: float) -> Sequence[Lease]: ...  # those that were still ours
    def release_lease(self, lease: Lease) -> None: ...
    def close(self) -> None: ...
