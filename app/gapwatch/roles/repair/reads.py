"""Source, target, source: the three reads that every judgement of a key rests on (the first one may have been made before)."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from gapwatch.core.canonical_records import canonical_records
from gapwatch.core.confirm import Presence, Reading, Reads
from gapwatch.core.counting import Age
from gapwatch.core.mapping import Canonical, CompiledMapping
from gapwatch.errors import RecordError, StoreError
from gapwatch.model.stream import Side
from gapwatch.ports import Absent, Clock, DatasetReader, Key, Read, StoredRecord, Unread
from gapwatch.roles.stores import PipelineStores

EXPIRED: Final = "its time at the target is over (target.keep)"

Fetched = Mapping[Key, Read | tuple[StoredRecord, ...]]
Forms = Mapping[int, Canonical | RecordError]
NO_FORMS: Final[Forms] = MappingProxyType({})


class KeyReads(Struct, frozen=True, kw_only=True):
    """The reads of one key in canonical form, and what the stores returned (for repair and evidence)."""

    reads: Reads
    source: Read
    target: Read | tuple[StoredRecord, ...]

    def stands_as(self, before: KeyReads) -> bool:
        """Whether both sides were read again just as they were read `before`."""
        now, then = self.reads, before.reads
        return not now.unread and now.before == now.after == then.after and now.target == then.target


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchReads:
    """``others_were_read``: whether at least one key was read on both sides, so that an unread one counts as its own failure."""

    by_key: Mapping[Key, KeyReads]
    others_were_read: bool


async def read_batch(
    stores: PipelineStores,
    keys: Collection[Key],
    clock: Clock,
    *,
    digested: Container[Key] | None = None,
    once: Collection[Key] = frozenset(),
) -> BatchReads:
    """Read every key at the source, at the target and at the source again; an unanswered store makes all its keys unread.

    ``once``: keys whose source is read after the target alone, as nobody asks whether it stood still meanwhile, or the caller
    compares what is read with an earlier read that has a revision.

    ``digested``: the only keys whose row is wanted in canonical form though there is no document beside it (None: all). For the
    others it says nothing: their row has a revision, and nobody compares it. It is a quarter of the cost of a missing document.
    """
    started = clock.now_ms()
    twice = [key for key in keys if key not in once]
    before = await _fetch(stores.source, twice) if twice else {}
    target = await _fetch(stores.target, keys)
    proven = clock.now_ms()
    after = await _fetch(stores.source, keys)
    before = {key: before.get(key, after[key]) for key in keys}
    times = (started, proven, clock.now_ms())
    mapping = stores.mapping
    alone = set[Key]() if digested is None else {k for k in keys if k not in digested and not isinstance(target[k], StoredRecord)}
    rows = [read for key in keys if key not in alone for read in _distinct(before[key], after[key])]
    forms = {**_forms(mapping, Side.EXPECTED, rows), **_forms(mapping, Side.OBSERVED, target.values())}
    by_key = {key: _key_reads(mapping, before[key], target[key], after[key], times, key not in alone, forms) for key in keys}
    return BatchReads(by_key=by_key, others_were_read=any(not item.reads.unread for item in by_key.values()))


def _distinct(before: Read | tuple[StoredRecord, ...], after: Read | tuple[StoredRecord, ...]) -> tuple[Any, ...]:
    return (before,) if same_row(before, after) else (before, after)


def _forms(mapping: CompiledMapping, side: Side, reads: Iterable[Read | tuple[StoredRecord, ...]]) -> Forms:
    """Return canonical forms of the records among these reads that count, by the record's identity in memory."""
    records = [read for read in reads if isinstance(read, StoredRecord) and not read.ignored]
    made = canonical_records(mapping, side)([record.fields for record in records])
    return dict(zip(map(id, records), made, strict=True))


async def _fetch(reader: DatasetReader, keys: Collection[Key]) -> Fetched:
    try:
        found = await reader.fetch(keys)
    except StoreError as error:
        return dict.fromkeys(keys, Unread(error.message))
    return {key: found.get(key, Unread("the store returned no entry")) for key in keys}


def _key_reads(
    mapping: CompiledMapping,
    before: Read | tuple[StoredRecord, ...],
    target: Read | tuple[StoredRecord, ...],
    after: Read | tuple[StoredRecord, ...],
    times: tuple[int, int, int],
    digested: bool,
    forms: Forms,
) -> KeyReads:
    started_ms, proven_ms, ended_ms = times
    first, first_canonical = source_reading(mapping, before, digested=digested, forms=forms)
    seen, seen_canonical = target_reading(mapping, target, forms=forms)
    last, last_canonical = first, first_canonical
    if not same_row(before, after):
        last, last_canonical = source_reading(mapping, after, digested=digested, forms=forms)
    age = _age(mapping, target, after, started_ms)
    if age is Age.EXPIRED:
        first, last, last_canonical = _exempt(first), _exempt(last), None
    differing: tuple[str, ...] = ()
    if seen_canonical is not None and last_canonical is not None:
        differing = tuple(mapping.differing(last_canonical, seen_canonical))
    return KeyReads(
        reads=Reads(
            before=first,
            target=seen,
            after=last,
            differing=differing,
            started_ms=started_ms,
            proven_ms=proven_ms,
            ended_ms=ended_ms,
            closing=age is Age.CLOSE,
        ),
        source=_single(after),
        target=target,
    )


def same_row(before: Read | tuple[StoredRecord, ...], after: Read | tuple[StoredRecord, ...]) -> bool:
    """Whether both reads show one write of a row, as its store tells writes apart: then it need not be looked at twice."""
    if not isinstance(before, StoredRecord) or not isinstance(after, StoredRecord):
        return False
    return before.revision is not None and before.revision == after.revision and before.ignored == after.ignored


def _age(
    mapping: CompiledMapping, target: Read | tuple[StoredRecord, ...], source: Read | tuple[StoredRecord, ...], now_ms: int
) -> Age:
    """Return how the time that the target keeps a document stands: by the row, and where there is none by the document itself."""
    if isinstance(source, StoredRecord):
        return mapping.counting.age(Side.EXPECTED, source.fields, now_ms)
    if isinstance(source, Absent) and isinstance(target, StoredRecord):
        return mapping.counting.age(Side.OBSERVED, target.fields, now_ms)
    return Age.LIVE


def _exempt(reading: Reading) -> Reading:
    return reading if reading.presence is Presence.UNREAD else replace(reading, presence=Presence.EXEMPT, reason=EXPIRED)


def _single(read: Read | tuple[StoredRecord, ...]) -> Read:
    return Unread("the source holds the key several times") if isinstance(read, tuple) else read


def source_reading(
    mapping: CompiledMapping, read: Read | tuple[StoredRecord, ...], *, digested: bool = True, forms: Forms = NO_FORMS
) -> tuple[Reading, Canonical | None]:
    single = _single(read)
    if isinstance(single, StoredRecord) and single.ignored:
        return Reading(presence=Presence.EXEMPT, revision=single.revision, reason=single.ignored), None
    if isinstance(single, StoredRecord):
        canonical = forms.get(id(single))
        if canonical is None and (digested or single.revision is None):
            (canonical,) = canonical_records(mapping, Side.EXPECTED)([single.fields])
        if isinstance(canonical, RecordError):
            return _not_present(Unread(canonical.message)), None
        version = mapping.version_of_source(single.fields)
        return _present(single, canonical, version, placeholder=False), canonical
    if isinstance(read, tuple):
        return _several(read), None
    return _not_present(single), None


def _several(rows: Sequence[StoredRecord]) -> Reading:
    """Rows of several tables have one key, and the target only one document for it."""
    revisions = [row.revision for row in rows if row.revision is not None]
    return Reading(presence=Presence.SEVERAL, revision=" ".join(revisions) or None, tables=_tables(rows))


def target_reading(
    mapping: CompiledMapping, read: Read | tuple[StoredRecord, ...], *, forms: Forms = NO_FORMS
) -> tuple[Reading, Canonical | None]:
    if isinstance(read, tuple):
        return Reading(presence=Presence.SEVERAL, target_ids=_ids(read)), None
    if isinstance(read, StoredRecord):
        canonical = forms.get(id(read))
        if canonical is None:
            (canonical,) = canonical_records(mapping, Side.OBSERVED)([read.fields])
        if isinstance(canonical, RecordError):
            return _not_present(Unread(canonical.message)), None
        version = mapping.version_of_target(read.fields)
        return _present(read, canonical, version, placeholder=mapping.holds_placeholder(read.fields)), canonical
    return _not_present(read), None


def _present(record: StoredRecord, canonical: Canonical | None, version: int | None, *, placeholder: bool) -> Reading:
    return Reading(
        presence=Presence.PRESENT,
        identity=canonical.identity if canonical is not None else b"",
        revision=record.revision,
        version=version,
        placeholder=placeholder,
        target_ids=() if record.target_id is None else (record.target_id,),
        tables=(record.table,) if record.table else (),
    )


def _not_present(read: Absent | Unread) -> Reading:
    if isinstance(read, Absent):
        return Reading(presence=Presence.ABSENT, reason=read.why)
    return Reading(presence=Presence.UNREAD, reason=read.reason)


def _tables(records: Sequence[StoredRecord]) -> tuple[str, ...]:
    return tuple(record.table for record in records if record.table)


def _ids(records: Sequence[StoredRecord]) -> tuple[str, ...]:
    return tuple(record.target_id for record in records if record.target_id is not None)
