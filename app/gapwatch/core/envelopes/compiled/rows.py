"""The loop over envelopes of Debezium's Postgres connector, with Connect's JSON schemas or without."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from gapwatch.core.canonical import Form
from gapwatch.core.envelopes.compiled.code import Code
from gapwatch.core.envelopes.compiled.columnwise import append_lines, column_functions, content_lines
from gapwatch.core.envelopes.compiled.content import Content, Member, Version, whole
from gapwatch.core.envelopes.compiled.keys import ANNOTATIONS, column_lines, row_key_lines, struct
from gapwatch.core.envelopes.compiled.loop import KEYS, VALUES, Loop, decoding, each_message, no_content
from gapwatch.core.envelopes.compiled.readings import Odd, Reading, reading_of_column
from gapwatch.core.envelopes.debezium_parts import SEQUENCE, sequence_of
from gapwatch.core.keys import KeyCodec
from gapwatch.core.mapping import MASKED_VALUE, CompiledMapping
from gapwatch.model.pipeline import KeyType
from gapwatch.model.stream import Operation, Side

Operations = Literal["c", "u", "d", "r"]
OPERATIONS: Final = {
    op: int(code)
    for op, code in zip("cudr", (Operation.UPSERT, Operation.UPSERT, Operation.DELETE, Operation.SNAPSHOT), strict=True)
}
Snapshot = Literal["true", "false", "first", "last", "first_in_data_collection", "last_in_data_collection", "incremental"]
LATER: Final = frozenset({None, "false"})  # written after the snapshot


class Source(msgspec.Struct, gc=False, kw_only=True):
    """As ``debezium_parts.Source``, with no more than the usual values: what that refuses, this refuses.

    In the order in which Debezium writes them: so each is found at once.
    """

    connector: Literal["", "postgresql"] = ""
    ts_ms: int
    snapshot: Snapshot | None = None
    sequence: str | None = None
    lsn: int | None = None
    ord: int | None = None
    txn_number: int | None = msgspec.field(default=None, name="txnNumber")


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """How the columns of one schema are written, as the general decoder found out; fields in mapping order.

    ``key_readers``: None where key values stand for themselves. ``schema`` and ``key_schema``: the bytes that a record must
    carry to be read like this; None where records come without schemas.
    """

    forms: Sequence[Form]
    wires: Sequence[tuple[str, int | None]]
    key_readers: Sequence[Callable[[Any], Any]] | None
    schema: bytes | None
    key_schema: bytes | None


def rows_loop(
    mapping: CompiledMapping,
    side: Side,
    encoded: Encoded,
    *,
    masked: Callable[[Any], bool],
    texts: frozenset[str],
    full_before: bool,
    target_ids: bool,
) -> Loop:
    """Generate the loop. `masked` tells the placeholder, `texts` are its spellings: in what a target shows it is unusual."""
    spec = mapping.pipeline
    path = spec.source.version if side is Side.EXPECTED else spec.target.version
    members, columns = _members(mapping, side, encoded, path)
    version = Version(attribute=f"c{list(columns).index(path)}", read=whole) if path else None
    content = Content(
        mapping=mapping,
        members=members,
        version=version,
        masked=masked,
        texts=texts,
        masks=side is Side.EXPECTED,
        target_ids=target_ids,
    )
    codec = mapping.side(side).codec
    code = Code()
    if full_before:
        _before(code, content)
    envelope = _envelope(struct("Row", columns), full_before=full_before, wrapped=encoded.schema is not None)
    plain_keys = encoded.key_readers is None and all(column.type in ANNOTATIONS for column in codec.columns)
    key_columns = {column.path: ANNOTATIONS[column.type] if plain_keys else Any for column in codec.columns}
    named = struct("Key", key_columns, never="schema" if encoded.key_schema is None else "")
    decoded = {
        "envelope": decoding(code, _under_schema(envelope, encoded.schema), VALUES, exact=True),
        "named": decoding(code, _under_schema(named, encoded.key_schema, alone=True), KEYS, exact=True),
    }
    readers = None if plain_keys else encoded.key_readers or [_itself] * len(codec.columns)
    _at_once(code, content, encoded, codec, readers, full_before=full_before)
    with each_message(code, content, decoded, at_once=True):
        _without_schema(code, "envelope", encoded.schema)
        _without_schema(code, "named", encoded.key_schema)
        row_key_lines(code, codec, readers, "named")
        _standing(code)
        with code.block(f"if operation == {int(Operation.DELETE)}:"):
            no_content(code, content)
        with code.block("else:"):
            code.line("row = envelope.after")
            with code.block("if row is None:"):
                code.line(f"raise {code.constant(Odd)}")
            content.lines(code, "row")
            if full_before:
                _unchanged(code, content)
    return code.function("loop")


def _at_once(
    code: Code,
    content: Content,
    encoded: Encoded,
    codec: KeyCodec,
    readers: Sequence[Callable[[Any], Any]] | None,
    *,
    full_before: bool,
) -> None:
    """Write the function that reads a stretch of writes: each has a new row, and none is an update that changed nothing."""
    column_functions(code, content)
    odd = code.constant(Odd)
    with code.block("def at_once(messages, out, all_envelope, all_named, CONSTANTS):"):
        _without_schemas(code, "all_envelope", encoded.schema)
        _without_schemas(code, "all_named", encoded.key_schema)
        code.line(f"operations = [{code.constant(OPERATIONS)}[envelope.op] for envelope in all_envelope]")
        with code.block(f"if {int(Operation.DELETE)} in {{*operations}}:"):
            code.line(f"raise {odd}")
        if full_before:
            with code.block("if 'u' in {envelope.op for envelope in all_envelope}:"):
                code.line(f"raise {odd}")
        code.line("rows = [envelope.after for envelope in all_envelope]")
        content_lines(code, content, "rows")
        code.line("sources = [envelope.source for envelope in all_envelope]")
        code.line("event_times = [source.ts_ms for source in sources]")
        later, upsert, snapshot = code.constant(LATER), int(Operation.UPSERT), int(Operation.SNAPSHOT)
        with code.block(f"if not {later}.issuperset([source.snapshot for source in sources]):"):
            each = f"{snapshot} if x == {upsert} and source.snapshot not in {later} else x"
            code.line(f"operations = [{each} for x, source in zip(operations, sources)]")
        code.line(f"x = [{code.constant(SEQUENCE.decode)}(source.sequence) for source in sources]")
        code.line("majors = [major for major, _ in x]", "minors = [minor for _, minor in x]")
        code.line("sum(majors)", "sum(minors)")  # raises where one is missing
        whole = readers is None and [column.type for column in codec.columns] == [KeyType.INT]
        code.line(*(["whole_keys = [named.c0 for named in all_named]"] if whole else []))
        column_lines(code, codec, whole, lambda: row_key_lines(code, codec, readers, "named"))
        code.line("offsets = [message.offset() for message in messages]")
        append_lines(code, content)


def _without_schemas(code: Code, name: str, schema: bytes | None) -> None:
    if schema is None:
        return
    with code.block(f"if [item for item in {name} if bytes(item.schema) != {code.constant(schema)}]:"):
        code.line(f"raise {code.constant(Odd)}")
    code.line(f"{name} = [item.payload for item in {name}]")


def _members(mapping: CompiledMapping, side: Side, encoded: Encoded, version: str) -> tuple[list[Member], dict[str, Any]]:
    """Return the fields and what their columns are decoded as. A column that several read is decoded as it comes."""
    paths = mapping.side(side).paths
    shared = {path for path, count in Counter(paths).items() if count > 1} | {version}
    readings: list[Reading | None] = []
    columns: dict[str, Any] = {}
    for field, path, form, (wire, scale) in zip(mapping.fields, paths, encoded.forms, encoded.wires, strict=True):
        reading = None if path in shared else reading_of_column(field, form, wire, scale)
        readings.append(reading)
        columns[path] = Any if reading is None else reading.annotation | None
    if version:
        columns.setdefault(version, Any)
    names = list(columns)
    members = [
        Member(attribute=f"c{names.index(path)}", form=form, reading=reading, absent=None)
        for path, form, reading in zip(paths, encoded.forms, readings, strict=True)
    ]
    return members, columns


class Image(msgspec.Struct, gc=False):
    """A row of which nothing is needed; that it is one is looked at all the same."""


def _envelope(row: type[msgspec.Struct], *, full_before: bool, wrapped: bool) -> type[msgspec.Struct]:
    fields: list[Any] = [
        ("before", (row if full_before else Image) | None, None),
        ("after", row | None, None),
        ("source", Source),
        ("op", Operations),
        ("message", None, None),
    ]
    if not wrapped:
        fields += [("schema", None, None), ("payload", None, None)]  # with these it is read otherwise
    return msgspec.defstruct("Envelope", fields, gc=False, kw_only=True)


def _under_schema(kind: type[msgspec.Struct], schema: bytes | None, *, alone: bool = False) -> type[msgspec.Struct]:
    """Return what a record of `kind` is decoded as, with its schema beside it or alone.

    ``alone``: nothing but the two may be there; what else there is decides how the record is read, and not here.
    """
    if schema is None:
        return kind
    return msgspec.defstruct("Wrapped", [("schema", msgspec.Raw), ("payload", kind)], gc=False, forbid_unknown_fields=alone)


def _without_schema(code: Code, name: str, schema: bytes | None) -> None:
    """Write the lines that leave the payload in `name`; under another schema it is read otherwise."""
    if schema is None:
        return
    with code.block(f"if bytes({name}.schema) != {code.constant(schema)}:"):
        code.line(f"raise {code.constant(Odd)}")
    code.line(f"{name} = {name}.payload")


def _itself(value: Any) -> Any:
    return value


def _standing(code: Code) -> None:
    """Write the lines of operation, position and time; the usual ``["commit","lsn"]`` is not worth a JSON decoder."""
    code.line("source = envelope.source", "event_time = source.ts_ms", "offset = message.offset()")
    code.line(f"major, minor = {code.constant(SEQUENCE.decode)}(source.sequence)")
    with code.block("if major is None or minor is None:"):
        code.line(f"major, minor = {code.constant(sequence_of)}(source.sequence)")
    code.line(f"operation = {code.constant(OPERATIONS)}[envelope.op]")
    code.line("x = source.snapshot")
    with code.block(f"if x is not None and x != 'false' and operation == {int(Operation.UPSERT)}:"):
        code.line(f"operation = {int(Operation.SNAPSHOT)}")


def _before(code: Code, content: Content) -> None:
    """Write the function that reads an old row."""
    with code.block("def content_of(row, CONSTANTS):"):
        code.line(*content.setup)
        content.lines(code, "row")
        code.line(f"return {_content(content)}")


def _content(content: Content) -> str:
    shape = content.shape
    parts = (("mask", shape.masks), ("fields", shape.values), ("version", shape.versions))
    return ", ".join(["digest", *(name for name, there in parts if there)])


def _unchanged(code: Code, content: Content) -> None:
    """Write the lines for an update that left every mapped field, and the version, as they were."""
    mapping = content.mapping
    complete = ["operation == 1", "envelope.op == 'u'", "envelope.before is not None"]
    if mapping.mask_at:
        complete.append("b'' not in mask")
    if mapping.value_at:
        complete.append(f"{code.constant(MASKED_VALUE)} not in fields")
    complete.append(f"content_of(envelope.before) == ({_content(content)})")
    with code.block(f"if {' and '.join(complete)}:"):
        code.line(f"operation = {int(Operation.UNCHANGED)}")
        no_content(code, content)
