"""Debezium's records: for Postgres with and without envelope (``ExtractNewRecordState``), and the door to those for MongoDB.

An unwrapped feed must carry what orders and dates its writes:
``add.fields=op,source.ts_ms,source.sequence`` and ``delete.tombstone.handling.mode=rewrite`` (or ``rewrite-with-tombstone``).
A single LSN or a clock is never order; a bare tombstone has neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any, Final, NamedTuple

import msgspec

from gapwatch.core.canonical import Form, compile_form
from gapwatch.core.conditions import holds
from gapwatch.core.envelopes import schemas
from gapwatch.core.envelopes.columns import Shape
from gapwatch.core.envelopes.compiled.loop import Loop
from gapwatch.core.envelopes.compiled.native import NativeModule, accelerated, rows_plan
from gapwatch.core.envelopes.compiled.rows import Encoded, rows_loop
from gapwatch.core.envelopes.debezium_mongodb import MongoEvents
from gapwatch.core.envelopes.debezium_parts import (
    NULL,
    ROUTED,
    Frame,
    flat_of,
    frame_of,
    is_other,
    is_snapshot,
    refuse_connector,
    refuse_routed,
    sequence_of,
)
from gapwatch.core.envelopes.records import Event, Marker, RawRecord, Truncate
from gapwatch.core.mapping import CompiledMapping, Part, is_placeholder, placeholder_texts, whole_number
from gapwatch.errors import KeyMisfit, RecordError
from gapwatch.model.pipeline import FieldSpec, Match
from gapwatch.model.stream import Operation, Side

SCHEMAS_MAX: Final = 64  # distinct schemas kept, of one feed
OPERATIONS: Final = {"c": Operation.UPSERT, "u": Operation.UPSERT, "d": Operation.DELETE, "r": Operation.SNAPSHOT}
PRECISIONS: Final = frozenset({"", "float32", "items:float:", "items:float:float32"})  # the pair's, not one side's
_UNDECLARED: Final = FieldSpec(target="", source="")
_Named = tuple[Sequence[Any], tuple[Callable[[Any], Any], ...]]  # a key's values as they came, and how they are read
UNWRAPPED: Final = "unwrapped"  # FeedSpec.format: every tombstone is a delete that must have been announced
REMEDY: Final = (
    "Set add.fields=op,source.ts_ms,source.sequence and delete.tombstone.handling.mode=rewrite in ExtractNewRecordState."
)


class _Columns(NamedTuple):
    """How the mapped columns of one schema are read, in mapping order, and the key's."""

    forms: tuple[Form, ...]
    wires: tuple[tuple[str, int | None], ...]
    key_readers: tuple[Callable[[Any], Any], ...]
    conditions: tuple[Form, ...]  # of the fields that say whether a record counts


class _Added(msgspec.Struct):
    """What ``ExtractNewRecordState`` adds to a row, with its default prefix."""

    op: str | None = msgspec.field(default=None, name="__op")
    deleted: str | bool | None = msgspec.field(default=None, name="__deleted")
    ts_ms: int | None = msgspec.field(default=None, name="__source_ts_ms")
    sequence: str | None = msgspec.field(default=None, name="__source_sequence")
    ordinal: int | None = msgspec.field(default=None, name="__source_ord")
    snapshot: str | bool | None = msgspec.field(default=None, name="__source_snapshot")


class DebeziumDecoder:
    """Decodes one Debezium feed of one side; the record itself says whether it is an envelope and of which connector."""

    def __init__(self, mapping: CompiledMapping, side: Side, native: NativeModule | None = None) -> None:
        pipeline = mapping.pipeline
        self._mapping = mapping
        self._native = native
        self._side = side
        self._observed = side is Side.OBSERVED
        feed = (pipeline.target if self._observed else pipeline.source).feed
        self._table = pipeline.target.collection if self._observed else pipeline.source.table
        self._unwrapped = feed.format == UNWRAPPED
        self._full_before = feed.full_before
        self._rows = _Rows(mapping, side)
        self._mongo = MongoEvents(mapping, side, post_images=feed.post_images, native=native)
        self._added = msgspec.json.Decoder(_Added)
        self._loops: dict[tuple[object, ...], Loop | None] = {}  # by the form of their records
        self._announced: dict[tuple[str, int], bytes | None] = {}

    def decode(self, record: RawRecord) -> Sequence[Event | Truncate | Marker]:
        if not record.value or record.value == NULL:
            return self._tombstone(record)
        refuse_routed(record.key, self._table)
        frame = frame_of(record.value)
        if frame is None:
            return self._flat(record)
        self._unwrapped = False
        refuse_connector(frame.source.connector, source=not self._observed)
        if frame.source.connector == "mongodb":
            return self._mongo.decode(record, frame)
        return self._enveloped(record, frame)

    @property
    def shape(self) -> Shape:
        return self._mongo.shape

    def loop(self, record: RawRecord) -> Loop | None:
        """Return the compiled loop over records like this one; None where there is none."""
        if not record.value or not record.key or (frame := frame_of(record.value)) is None or frame.cloud:
            return None
        mongo, columns = frame.source.connector == "mongodb", self._mapping.side(self._side).codec.columns
        if ROUTED in record.key or (mongo and not self._observed):
            return None  # what is not ours is refused by the general decoder alone
        if not mongo and "schema" in (column.path for column in columns):
            return None  # such a key looks as if its schema stood beside it
        if self._mapping.counting.condition(self._side) is not None:
            return None  # which records count is judged by the general decoder alone
        encoded = None if mongo else self._rows.encoded(frame, record.key)
        form: tuple[object, ...] = (frame.written_schema is not None, _is_wrapped(record.key))
        if encoded is not None:
            form = (encoded.schema, encoded.key_schema)
        if form not in self._loops:
            if len(self._loops) >= SCHEMAS_MAX:
                self._loops.clear()
            self._loops[form] = self._made_loop(encoded, record.key, frame)
        return self._loops[form]

    def _made_loop(self, encoded: Encoded | None, key: bytes, frame: Frame) -> Loop | None:
        if encoded is None:
            return self._mongo.loop(wrapped=frame.written_schema is not None, wrapped_key=_is_wrapped(key))
        around: dict[str, Any] = {
            "masked": self._rows.masked,
            "texts": self._rows.placeholder_texts,
            "full_before": self._full_before,
        }
        pure = rows_loop(self._mapping, self._side, encoded, **around, target_ids=self.shape.target_ids)
        if self._observed:
            return pure  # a target that is a table is rare: its records have no native loop
        return accelerated(self._native, lambda: rows_plan(self._mapping, self._side, encoded, **around), pure, self.shape)

    def looped(self) -> None:
        """Say that a compiled loop has read records since: they had an envelope."""
        self._unwrapped = False

    # ── envelopes ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _enveloped(self, record: RawRecord, frame: Frame) -> Sequence[Event | Truncate]:
        if frame.op == "m":
            return ()
        major, minor, event_time, snapshot = _standing(frame)
        if frame.op == "t":
            return (Truncate(event_time, major, minor),)
        operation = OPERATIONS.get(frame.op)
        if operation is None:
            raise RecordError("unknown_operation", f"Debezium says op {frame.op[:20]!r}, which is none of c, u, d, r, t, m.")
        if snapshot and operation is not Operation.DELETE:
            operation = Operation.SNAPSHOT
        image = frame.envelope.before if operation is Operation.DELETE else frame.envelope.after
        named = self._rows.named(record.key)
        row = self._rows.read(image, keys=named is None)
        if row is None and operation is not Operation.DELETE:
            raise RecordError("document_missing", f"Debezium says op {frame.op} and sends no row after it.")
        columns = self._rows.columns(frame.schema, "after")
        key = self._rows.key(named, row, columns)
        if operation is Operation.DELETE:
            return (_without_content(key, operation, major, minor, event_time),)
        assert row is not None
        before = None
        if operation is Operation.UPSERT and self._full_before and frame.op == "u":
            before = self._rows.read(frame.envelope.before, keys=named is None)
        told = self._told(operation, frame.op, row, before, columns)
        if told is not operation:
            return () if told is None else (_without_content(key, told, major, minor, event_time),)
        parts = self._rows.parts(row, columns)
        if self._observed and None in parts:  # what the target's log did not carry may be anything by now
            return (_without_content(key, Operation.TOUCHED, major, minor, event_time),)
        if before is not None and self._same(before, parts, row, columns):
            return (_without_content(key, Operation.UNCHANGED, major, minor, event_time),)
        return (self._event(key, operation, parts, row, major, minor, event_time),)

    def _told(
        self, operation: Operation, op: str, row: tuple[Any, ...], before: tuple[Any, ...] | None, columns: _Columns
    ) -> Operation | None:
        """Return what the event says of its key, as the record counts or not after it, and did before, where that is known."""
        created = op == "c" or (before is not None and self._rows.counted(before, columns) is False)
        return self._mapping.counting.told(self._side, operation, counted=self._rows.counted(row, columns), created=created)

    def _same(self, before: tuple[Any, ...], parts: Sequence[Part], row: tuple[Any, ...], columns: _Columns) -> bool:
        """Whether an update left every mapped field (and the version) as it was, in a row that counted before."""
        if None in parts or self._rows.counted(before, columns) is not True:
            return False
        return self._rows.version(before) == self._rows.version(row) and self._rows.parts(before, columns) == parts

    def _event(
        self,
        key: bytes,
        operation: Operation,
        parts: Sequence[Part],
        row: tuple[Any, ...],
        major: int,
        minor: int,
        event_time: int,
    ) -> Event:
        content = self._mapping.content(parts)
        if not content.complete:  # a field that the catalogue calls never masked: the content is not known
            return _without_content(key, Operation.TOUCHED, major, minor, event_time)
        version = self._rows.version(row)
        if version is None and self._mapping.pipeline.match is Match.VERSION:
            raise RecordError("version_missing", "The row's version column holds no whole number.")
        return Event(key, operation, major, minor, event_time, content.digest, content.masks, content.values, version, None)

    # ── unwrapped ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _flat(self, record: RawRecord) -> Sequence[Event]:
        assert record.value is not None
        flat = flat_of(record.value)
        if flat is None:
            return self._tombstone(record)
        schema, raw, names = flat
        if is_other(names):
            return ()
        added = self._read_added(raw)
        mongo = added.sequence is None and added.ordinal is not None
        _require(added, mongo=mongo)
        assert added.op is not None
        assert added.ts_ms is not None
        self._unwrapped = True
        operation = OPERATIONS.get(added.op)
        if operation is None:
            raise RecordError("unknown_operation", f"__op is {added.op[:20]!r}, which is none of c, u, d, r.")
        if str(added.deleted).lower() == "true":
            operation = Operation.DELETE
        elif operation is not Operation.DELETE and is_snapshot(added.op, added.snapshot):
            operation = Operation.SNAPSHOT
        self._announced[record.topic, record.partition] = record.key if operation is Operation.DELETE else None
        if mongo:
            assert added.ordinal is not None
            return self._mongo.unwrapped(record, raw, added.op, operation, added.ts_ms, added.ordinal)
        return self._flat_row(record, schema, raw, operation, added)

    def _flat_row(self, record: RawRecord, schema: bytes, raw: bytes, operation: Operation, added: _Added) -> Sequence[Event]:
        position = sequence_of(added.sequence)
        assert position is not None
        assert added.ts_ms is not None
        named = self._rows.named(record.key)
        row = self._rows.read(raw, keys=named is None)
        assert row is not None
        columns = self._rows.columns(schema, None)
        key = self._rows.key(named, row, columns)
        if operation is Operation.DELETE:
            return (_without_content(key, operation, *position, added.ts_ms),)
        told = self._told(operation, added.op or "", row, None, columns)
        if told is not operation:
            return () if told is None else (_without_content(key, told, *position, added.ts_ms),)
        parts = self._rows.parts(row, columns)
        if self._observed and None in parts:
            return (_without_content(key, Operation.TOUCHED, *position, added.ts_ms),)
        return (self._event(key, operation, parts, row, *position, added.ts_ms),)

    def _read_added(self, raw: bytes) -> _Added:
        try:
            return self._added.decode(raw)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise RecordError("added_fields_missing", f"The fields added to the row cannot be read: {error}. {REMEDY}") from error

    def _tombstone(self, record: RawRecord) -> Sequence[Event]:
        """A tombstone follows its delete; in an unwrapped feed one that follows none is a delete without any position."""
        if not self._unwrapped:
            return ()
        place = (record.topic, record.partition)
        if record.key is not None and self._announced.get(place) == record.key:
            self._announced[place] = None
            return ()
        raise RecordError("delete_without_position", f"A bare tombstone says neither when nor in which order. {REMEDY}")


class _Rows:
    """Reads the mapped columns of Debezium's rows."""

    def __init__(self, mapping: CompiledMapping, side: Side) -> None:
        self._observed = side is Side.OBSERVED
        pipeline = mapping.pipeline
        self._specs = specs_of(mapping, side)
        self._side = side
        self._counting = mapping.counting
        self._condition = mapping.counting.condition(side)
        self._codec = mapping.side(side).codec
        version = pipeline.target.version if self._observed else pipeline.source.version
        paths = mapping.side(side).paths
        keys = [column.path for column in self._codec.columns]
        beside = self._condition.paths if self._condition is not None else ()
        names = list(dict.fromkeys([*paths, *keys, *([version] if version else []), *beside]))
        self._names = names
        needed = {*paths, *([version] if version else []), *beside}
        self._decoder = msgspec.json.Decoder(_struct("Row", names), float_hook=Decimal)
        lean = [name if name in needed else f"\uffff{number}" for number, name in enumerate(names)]  # a name that nobody asks for
        self._lean = msgspec.json.Decoder(_struct("Row", lean), float_hook=Decimal)
        self._key_decoder = msgspec.json.Decoder(_struct("Key", keys), float_hook=Decimal)
        self._field_at = tuple(names.index(path) for path in paths)
        self._key_at = tuple(names.index(path) for path in keys)
        self._beside_at = tuple(names.index(path) for path in beside)
        self._version_at = names.index(version) if version else None
        self._placeholder = (pipeline.target if self._observed else pipeline.source).feed.placeholder
        self.placeholder_texts = placeholder_texts(self._placeholder)
        self._known: dict[tuple[bytes, str | None], _Columns] = {}
        self._known_keys: dict[bytes, tuple[Callable[[Any], Any], ...]] = {}

    def read(self, raw: bytes | msgspec.Raw, *, keys: bool) -> tuple[Any, ...] | None:
        """Return the mapped columns' JSON values (UNSET where there is none); None for null.

        ``keys``: whether those of the key are needed, too; else nothing depends on what they hold.
        """
        try:
            if bytes(raw) == NULL:
                return None
            return msgspec.structs.astuple((self._decoder if keys else self._lean).decode(raw))
        except (msgspec.DecodeError, UnicodeError, RecursionError, ArithmeticError) as error:
            raise RecordError("unparsable_document", f"The row is no JSON object: {error}.") from error

    def columns(self, schema: bytes, image: str | None) -> _Columns:
        """Return how columns are read under a schema (b"": by the catalogue), compiled once per distinct schema."""
        known = self._known.get((schema, image))
        if known is None:
            if len(self._known) >= SCHEMAS_MAX:
                self._known.clear()
            known = self._known[schema, image] = self._compile(schema, image)
        return known

    def _compile(self, schema: bytes, image: str | None) -> _Columns:
        described = schemas.columns(schemas.parse(schema), image) if schema else {}
        wires = []
        forms = []
        for spec, at in zip(self._specs, self._field_at, strict=True):
            wire, scale = schemas.wire_of(described.get(self._names[at]), spec)
            wires.append((wire, scale))
            forms.append(compile_form(replace(spec, wire_scale=scale), wire=wire, event=True))
        return _Columns(tuple(forms), tuple(wires), self._compile_key(described), self._compile_condition(described))

    def _compile_condition(self, described: Mapping[str, Any]) -> tuple[Form, ...]:
        forms = []
        for spec in self._condition.specs if self._condition is not None else ():
            wire, scale = schemas.wire_of(described.get(spec.source), spec)
            forms.append(compile_form(replace(spec, wire_scale=scale), wire=wire, event=True))
        return tuple(forms)

    def _compile_key(self, described: Mapping[str, Any]) -> tuple[Callable[[Any], Any], ...]:
        readers = []
        for column in self._codec.columns:
            wire, scale = column.wire, column.wire_scale
            if (schema := described.get(column.path)) is not None:
                named, size = schemas.wire_of(schema, _UNDECLARED)
                wire, scale = (named, size) if named else (wire, scale)
            readers.append(schemas.key_reader(column.type, wire, scale))
        return tuple(readers)

    def named(self, raw: bytes | None) -> _Named | None:
        """Return what the record's own key says, where it names all key columns."""
        values, readers = self._record_key(raw) if raw else (None, ())
        return None if values is None else (values, readers)

    def key(self, named: _Named | None, row: tuple[Any, ...] | None, columns: _Columns) -> bytes:
        """Return the key: the record's own, where it names all key columns, else the row's."""
        if named is None:
            if row is None:
                raise RecordError("key_missing", "The record's key does not name the key columns, and there is no row.")
            named = [row[at] for at in self._key_at], columns.key_readers
        values, readers = named
        for column, value in zip(self._codec.columns, values, strict=True):
            if value is None or value is msgspec.UNSET:
                raise KeyMisfit(f"Key column {column.path} is not in the record: the replica identity does not hold it.")
        return self._codec.encode(schemas.read_keys(readers, values))

    def _record_key(self, raw: bytes) -> tuple[Sequence[Any] | None, tuple[Callable[[Any], Any], ...]]:
        schema = b""
        try:
            if _is_wrapped(raw):
                wrapped = _WRAPPED_KEY.decode(raw)
                schema, raw = bytes(wrapped.schema), bytes(wrapped.payload)
            values = msgspec.structs.astuple(self._key_decoder.decode(raw))
        except (msgspec.DecodeError, UnicodeError, RecursionError, ArithmeticError):
            return None, ()  # a key that is no JSON object: the row names the columns
        if msgspec.UNSET in values:
            return None, ()
        return values, self._record_key_readers(schema)

    def _record_key_readers(self, schema: bytes) -> tuple[Callable[[Any], Any], ...]:
        readers = self._known_keys.get(schema)
        if readers is None:
            if len(self._known_keys) >= SCHEMAS_MAX:
                self._known_keys.clear()
            described = schemas.columns(schemas.parse(schema)) if schema and schema != NULL else {}
            readers = self._known_keys[schema] = self._compile_key(described)
        return readers

    def encoded(self, frame: Frame, key: bytes) -> Encoded:
        """Return how records like this one are written."""
        columns = self.columns(frame.schema, "after")
        key_schema = bytes(_WRAPPED_KEY.decode(key).schema) if _is_wrapped(key) else None
        readers = self._record_key_readers(key_schema or b"")
        return Encoded(
            forms=columns.forms,
            wires=columns.wires,
            key_readers=None if all(reader is schemas.as_is for reader in readers) else readers,
            schema=frame.written_schema,
            key_schema=key_schema,
        )

    def counted(self, row: tuple[Any, ...], columns: _Columns) -> bool | None:
        """Say whether a row counts; None where the event does not carry the column that decides."""
        if self._condition is None:
            return True
        parts: list[Part] = []
        for form, at in zip(columns.conditions, self._beside_at, strict=True):
            value = row[at]
            if value is msgspec.UNSET:
                raise RecordError("column_missing", f"Column {self._names[at]} says whether the row counts, and is not there.")
            parts.append(None if self.masked(value) else form(value))
        return self._counting.counted(self._side, holds(self._condition.tests, parts))

    def parts(self, row: tuple[Any, ...], columns: _Columns) -> list[Part]:
        """Return the canonical bytes per field; None where the event says that the log did not carry the value."""
        parts: list[Part] = []
        texts = self.placeholder_texts
        for form, at in zip(columns.forms, self._field_at, strict=True):
            value = row[at]
            if value is msgspec.UNSET:
                raise RecordError("column_missing", f"Mapped column {self._names[at]} is not in the event.")
            if value in texts if type(value) is str else self._is_masked(value):
                parts.append(None)
            else:
                parts.append(form(value))
        return parts

    def masked(self, value: Any) -> bool:
        """Whether an event's value says that the log did not carry the column."""
        return value in self.placeholder_texts if type(value) is str else self._is_masked(value)

    def _is_masked(self, value: Any) -> bool:
        return isinstance(value, list | dict) and is_placeholder(value, self._placeholder)

    def version(self, row: tuple[Any, ...]) -> int | None:
        if self._version_at is None or (value := row[self._version_at]) is msgspec.UNSET:
            return None
        return whole_number(value)


def specs_of(mapping: CompiledMapping, side: Side) -> tuple[FieldSpec, ...]:
    """Return the fields as the side's own feed encodes them where it carries no schemas."""
    wires = mapping.pipeline.target.wires
    if side is Side.EXPECTED or not wires:
        return mapping.fields
    return tuple(
        spec if PRECISIONS.issuperset((spec.wire, wire)) else replace(spec, wire=wire, wire_scale=scale)
        for spec, (wire, scale) in zip(mapping.fields, wires, strict=True)
    )


def _is_wrapped(key: bytes) -> bool:
    return key.lstrip()[:10].startswith(b'{"schema"')


class _WrappedKey(msgspec.Struct):
    schema: msgspec.Raw
    payload: msgspec.Raw


_WRAPPED_KEY: Final = msgspec.json.Decoder(_WrappedKey)


def _struct(name: str, columns: Sequence[str]) -> type[msgspec.Struct]:
    """Make the struct that takes just these columns out of a row, whatever else it has."""
    fields = [(f"c{index}", Any, msgspec.UNSET) for index in range(len(columns))]
    return msgspec.defstruct(name, fields, rename={f"c{index}": column for index, column in enumerate(columns)})


def _standing(frame: Frame) -> tuple[int, int, int, bool]:
    """Return (major, minor, event time, snapshot) of an envelope; a snapshot read may have no position."""
    snapshot = is_snapshot(frame.op, frame.source.snapshot)
    position = sequence_of(frame.source.sequence)
    if frame.source.ts_ms is None or (position is None and not snapshot):
        raise RecordError("position_missing", "The event has no source.ts_ms or no source.sequence; it cannot be ordered.")
    major, minor = position or (0, 0)
    return major, minor, frame.source.ts_ms, snapshot


def _without_content(key: bytes, operation: Operation, major: int, minor: int, event_time: int) -> Event:
    return Event(key, operation, major, minor, event_time, b"", None, None, None, None)


def _require(added: _Added, *, mongo: bool) -> None:
    missing = [
        name
        for name, value in (("__op", added.op), ("__source_ts_ms", added.ts_ms), ("__source_sequence", mongo or added.sequence))
        if value is None
    ]
    if missing:
        raise RecordError("added_fields_missing", f"The record has no envelope and lacks {', '.join(missing)}. {REMEDY}")
