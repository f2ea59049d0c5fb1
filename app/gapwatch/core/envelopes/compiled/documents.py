"""The loops over documents in extended JSON: our own change-stream feed, and Debezium's MongoDB connector.

Only pipelines whose key is the document's whole ``_id`` have one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal

import msgspec

from gapwatch.core.canonical import ABSENT, NULL, Form
from gapwatch.core.envelopes import extjson
from gapwatch.core.envelopes.compiled.code import Code
from gapwatch.core.envelopes.compiled.columnwise import append_lines, column_functions, content_lines
from gapwatch.core.envelopes.compiled.content import Content, Member, Version, whole
from gapwatch.core.envelopes.compiled.keys import MEMBERS, column_lines, member_key_lines, struct
from gapwatch.core.envelopes.compiled.loop import KEYS, VALUES, Loop, decoding, each_message, no_content
from gapwatch.core.envelopes.compiled.readings import Odd, reading_of_member
from gapwatch.core.envelopes.compiled.rows import LATER, OPERATIONS, Operations, Snapshot
from gapwatch.core.keys import KeyCodec, dig
from gapwatch.core.mapping import CompiledMapping
from gapwatch.model.pipeline import KeyType
from gapwatch.model.stream import Operation, Side

# How a document, or the object that holds its id, begins when a server wrote it: then it is no wrapped value either.
BEGINNING: Final = '{"_id"'


def change_stream_loop(
    mapping: CompiledMapping, side: Side, *, names: Sequence[str], operations: Mapping[bytes, Operation]
) -> Loop | None:
    """Generate the loop over our reader's records; `names`: its headers of operation, time and position."""
    found = _content(mapping, side)
    if found is None:
        return None
    content, document = found
    code = Code()
    kind = MEMBERS[mapping.side(side).codec.columns[0].type]
    decoded = {"named": decoding(code, struct("Key", {"_id": kind}), KEYS), "row": decoding(code, document, VALUES)}
    with each_message(code, content, decoded):
        code.line("(a, x), (b, y), (c, position) = message.headers()")
        a, b, c = (code.constant(name) for name in names)
        with code.block(f"if a != {a} or b != {b} or c != {c} or not y.isdigit() or len(y) > 20:"):
            code.line(f"raise {code.constant(Odd)}")
        code.line(f"operation = {code.constant({name: int(code) for name, code in operations.items()})}[x]")
        code.line("event_time = int(y)", "x, _, y = position.partition(b':')")
        with code.block("if not x.isdigit() or not y.isdigit() or len(x) > 20 or len(y) > 20:"):
            code.line(f"raise {code.constant(Odd)}")
        code.line("major = int(x)", "minor = int(y)", "offset = message.offset()", "text = message.key()")
        _begins(code, BEGINNING.encode())
        member_key_lines(code, mapping.side(side).codec, "named.c0")
        code.line("text = message.value()")
        with code.block(f"if operation == {int(Operation.DELETE)} or operation == {int(Operation.TOUCHED)} and not text:"):
            no_content(code, content)
        with code.block(f"elif operation == {int(Operation.TOUCHED)}:"):
            code.line(f"raise {code.constant(Odd)}")
        with code.block("else:"):
            _begins(code, BEGINNING.encode())
            content.lines(code, "row")
    return code.function("loop")


class Source(msgspec.Struct, gc=False, kw_only=True):
    """As ``debezium_parts.Source``, with no more than the usual values: what that refuses, this refuses."""

    connector: Literal["mongodb"]
    ts_ms: int
    snapshot: Snapshot | None = None
    sequence: str | None = None
    ord: int
    lsn: int | None = None
    txn_number: int | None = msgspec.field(default=None, name="txnNumber")


class Described(msgspec.Struct, gc=False):
    """An object of which nothing is needed; anything else in its place is unusual."""


class Envelope(msgspec.Struct, gc=False, kw_only=True):
    after: str | None = None
    update_description: Described | None = msgspec.field(default=None, name="updateDescription")
    source: Source
    op: Operations
    message: None = None
    schema: None = None
    payload: None = None


class Wrapped(msgspec.Struct, gc=False):
    schema: msgspec.Raw
    payload: Envelope


class Key(msgspec.Struct, gc=False):
    id: str
    payload: None = None


class WrappedKey(msgspec.Struct, gc=False):
    payload: Key


def debezium_mongodb_loop(
    mapping: CompiledMapping, side: Side, *, wrapped: bool, wrapped_key: bool, post_images: bool
) -> Loop | None:
    """Generate the loop over Debezium's envelopes; their schemas say nothing of a document's members."""
    found = _content(mapping, side)
    if found is None:
        return None
    content, document = found
    code = Code()
    envelopes = decoding(code, Wrapped if wrapped else Envelope, VALUES)
    keys = decoding(code, WrappedKey if wrapped_key else Key, KEYS)
    kind = MEMBERS[mapping.side(side).codec.columns[0].type]
    decoded = {
        "envelope": f"[item and item.payload for item in {envelopes}]" if wrapped else envelopes,
        "named": decoding(code, kind, f"[item and item{'.payload' if wrapped_key else ''}.id for item in {keys}]"),
        "row": decoding(code, document, "[item and item.after for item in all_envelope]"),
    }
    _at_once(code, content, mapping.side(side).codec, post_images=post_images)
    with each_message(code, content, decoded, at_once=True):
        member_key_lines(code, mapping.side(side).codec, "named")
        code.line("source = envelope.source", "event_time = source.ts_ms", "offset = message.offset()")
        code.line("major = (event_time // 1_000) << 32 | source.ord", "minor = 0 if source.txn_number is None else offset")
        code.line("text = envelope.after")
        _operation(code, post_images=post_images)
        with code.block(f"if operation == {int(Operation.DELETE)} or operation == {int(Operation.TOUCHED)}:"):
            no_content(code, content)
        with code.block("else:"):
            _begins(code, BEGINNING)
            content.lines(code, "row")
    return code.function("loop")


def _at_once(code: Code, content: Content, codec: KeyCodec, *, post_images: bool) -> None:
    """Write the function that reads a stretch of writes of Debezium's, each with its document."""
    column_functions(code, content)
    odd = code.constant(Odd)
    with code.block("def at_once(messages, out, all_envelope, all_named, all_row, CONSTANTS):"):
        code.line("texts = [envelope.after for envelope in all_envelope]")
        with code.block(f"if False in [text.startswith({code.constant(BEGINNING)}) for text in texts]:"):
            code.line(f"raise {odd}")
        content_lines(code, content, "all_row")
        code.line("sources = [envelope.source for envelope in all_envelope]")
        code.line("event_times = [source.ts_ms for source in sources]")
        code.line("offsets = [message.offset() for message in messages]")
        code.line("majors = [(source.ts_ms // 1_000) << 32 | source.ord for source in sources]")
        code.line("minors = [0 if source.txn_number is None else offset for source, offset in zip(sources, offsets)]")
        later = f"{code.constant(LATER)}.issuperset([source.snapshot for source in sources])"
        with code.block(f"if {later} and {{envelope.op for envelope in all_envelope}} == {{'c'}}:"):
            code.line(f"operations = [{int(Operation.UPSERT)}] * len(texts)")
        with code.block("else:"):
            code.line("operations = []")
            with code.block("for envelope, source, text in zip(all_envelope, sources, texts):"):
                _operation(code, post_images=post_images)  # odd for deletes, as all have a text
                code.line("operations.append(operation)")
        whole = codec.columns[0].type is KeyType.INT
        code.line(*(["whole_keys = all_named"] if whole else []))
        column_lines(code, codec, whole, lambda: member_key_lines(code, codec, "named"))
        append_lines(code, content)


def _operation(code: Code, *, post_images: bool) -> None:
    upsert, looked_up = int(Operation.UPSERT), int(Operation.LOOKED_UP)
    code.line("x = envelope.op", f"operation = {code.constant(OPERATIONS)}[x]")
    with code.block(f"if text is None and operation != {int(Operation.DELETE)}:"):
        with code.block("if x != 'u':"):
            code.line(f"raise {code.constant(Odd)}")
        code.line(f"operation = {int(Operation.TOUCHED)}")
    with code.block(f"elif operation == {int(Operation.DELETE)}:"), code.block("if text is not None:"):
        code.line(f"raise {code.constant(Odd)}")
    with code.block(f"elif operation == {upsert}:"):
        with code.block(f"if source.snapshot not in {code.constant(LATER)}:"):
            code.line(f"operation = {int(Operation.SNAPSHOT)}")
        if not post_images:
            with code.block("elif x == 'u' and envelope.update_description is not None:"):
                code.line(f"operation = {looked_up}")


def _begins(code: Code, beginning: str | bytes) -> None:
    with code.block(f"if not text.startswith({code.constant(beginning)}):"):
        code.line(f"raise {code.constant(Odd)}")


def _content(mapping: CompiledMapping, side: Side) -> tuple[Content, type[msgspec.Struct]] | None:
    """Return the content of a side's documents, and what they are decoded as; None where there is no loop for them."""
    mapped = mapping.side(side)
    if not _keyed_by_whole_id(mapped.codec):
        return None
    spec = mapping.pipeline
    version = spec.source.version if side is Side.EXPECTED else spec.target.version
    if "." in version:
        return None
    paths = [*mapped.paths, *([version] if version else [])]
    asked = Counter(name for path in paths for name in dict.fromkeys((path, path.split(".")[0])))
    names = list(asked)
    annotations: dict[str, Any] = dict.fromkeys(names, Any)
    members = []
    for field, path, form in zip(mapping.fields, mapped.paths, mapped.forms, strict=True):
        absent = NULL if field.absent_is_null else ABSENT
        attribute = f"c{names.index(path)}"
        if "." in path:
            within = partial(_within, attribute, f"c{names.index(path.split('.')[0])}", tuple(path.split(".")[1:]))
            members.append(Member(attribute=attribute, within=within, form=form, reading=None, absent=absent))
            continue
        reading = reading_of_member(field, form) if asked[path] == 1 else None
        if reading is not None:
            annotations[path] = reading.annotation | None
        members.append(Member(attribute=attribute, form=partial(_unwrapped, form), reading=reading, absent=absent))
    read = Version(attribute=f"c{names.index(version)}", read=_version) if version else None
    return Content(mapping=mapping, members=members, version=read), struct("Document", annotations, absent=True)


def _keyed_by_whole_id(codec: KeyCodec) -> bool:
    return [column.path for column in codec.columns] == ["_id"] and codec.columns[0].type in MEMBERS


def _within(literal: str, root: str, steps: Sequence[str], row: msgspec.Struct) -> Any:
    """Return the value at a dotted path: the member of that very name, else what the path leads to."""
    value = getattr(row, literal)
    if value is not msgspec.UNSET:
        return extjson.unwrap(value)
    value = getattr(row, root)
    return msgspec.UNSET if value is msgspec.UNSET else dig(extjson.unwrap(value), steps)


def _unwrapped(form: Form, value: Any) -> bytes:
    return form(extjson.unwrap(value))


def _version(value: Any) -> int | None:
    return whole(extjson.unwrap(value))
