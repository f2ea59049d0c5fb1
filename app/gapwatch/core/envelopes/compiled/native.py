"""The loops that a compiled module runs: what it is told of a side's records, and who reads what it declines.

The module reads only what it is sure of, as the loops beside it do; a run of messages that it declines goes to the generated loop
in its place, and from there to the general decoder. It never asks for anything but the functions in its plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, Protocol

import msgspec

from gapwatch.core.canonical import ABSENT, NULL, Form
from gapwatch.core.compiledrows import RowsModule
from gapwatch.core.envelopes import extjson
from gapwatch.core.envelopes.columns import Columns, EventColumns, Shape, fits
from gapwatch.core.envelopes.compiled.loop import UNUSUAL, Loop
from gapwatch.core.envelopes.compiled.readings import EPOCHS, TIMES, UTC
from gapwatch.core.envelopes.compiled.rows import Encoded
from gapwatch.core.envelopes.records import Message
from gapwatch.core.keys import dig
from gapwatch.core.mapping import CompiledMapping, value_text
from gapwatch.core.temporal import INFINITE_FROM, INFINITE_TO, PER_SECOND
from gapwatch.model.pipeline import FieldSpec, FieldType, KeyType, Match, Rounding
from gapwatch.model.stream import Side

INTERFACE: Final = 3  # of plan, columns, canonical form, sections and rows; a module of another one is not used

MEMBERS_MAX: Final = 60  # mapped members of an object that a module can look for
PLAIN_KEYS: Final = frozenset({KeyType.INT, KeyType.TEXT, KeyType.UUID, KeyType.OBJECTID})
DOCUMENT_KEYS: Final = frozenset({KeyType.INT, KeyType.TEXT, KeyType.OBJECTID})

Plan = dict[str, Any]
Foreign = Callable[[bytes], bytes | None]  # a value's JSON → its part; None: the event does not carry it


class NativeLoop(Protocol):
    def read(
        self,
        messages: list[Message],
        values: list[bytes | None],
        keys: list[bytes | None],
        offsets: list[int],
        stamps: list[int],
        out: Columns,
        declined: Callable[[Sequence[Message]], None],
        /,
    ) -> int:
        """Append what the messages say to `out`; hand runs of those that it does not read to `declined`, in their place."""

    def read_run(self, messages: Sequence[Message], out: Columns, declined: Callable[[Sequence[Message]], None], /) -> int:
        """As ``read``, of a ``Run``: messages that the module has fetched."""


class NativeModule(RowsModule, Protocol):
    """What ``native/`` builds."""

    INTERFACE: int
    Run: type[Sequence[Message]]

    def Loop(self, plan: Plan, /) -> NativeLoop: ...  # noqa: N802 - a class of the module

    def Columns(self, masks: bool, values: bool, versions: bool, target_ids: bool, /) -> Columns: ...  # noqa: N802


class NativeReading:
    """Lets the module read what it can, and `pure` the rest. The columns that it fills are the module's own."""

    def __init__(self, module: NativeModule, plan: Plan, pure: Loop, shape: Shape) -> None:
        self._module = module
        self._loop = module.Loop(plan)
        self._pure = pure
        self._shape = shape

    def columns(self) -> Columns:
        """Return columns to append to."""
        shape = self._shape
        return self._module.Columns(shape.masks, shape.values, shape.versions, shape.target_ids)

    def _read_beside(self, run: Sequence[Message], out: Columns, unusual: Callable[[Message], None]) -> None:
        """Let `pure` read a run; what it hands on is added to `out` when its turn comes."""
        read = EventColumns(self._shape)

        def hand_over() -> None:
            refused = set[int]()
            for event, offset, append_time in read.events():
                if fits(event):
                    out.add(event, offset, append_time)
                elif offset not in refused:  # the general decoder says so
                    refused.add(offset)
                    unusual(next(message for message in run if message.offset() == offset))
            for column in read.all():
                column.clear()

        def odd(message: Message) -> None:
            hand_over()
            unusual(message)

        self._pure(run, read, odd)
        hand_over()

    def __call__(self, messages: Sequence[Message], out: Columns, unusual: Callable[[Message], None]) -> None:
        def declined(run: Sequence[Message]) -> None:
            self._read_beside(run, out, unusual)

        if isinstance(messages, self._module.Run):
            self._loop.read_run(messages, out, declined)
            return
        self._loop.read(
            list(messages),
            [message.value() for message in messages],
            [message.key() for message in messages],
            [message.offset() or 0 for message in messages],
            [message.timestamp()[1] for message in messages],
            out,
            declined,
        )


def accelerated(module: NativeModule | None, plan: Callable[[], Plan | None], pure: Loop, shape: Shape) -> Loop | NativeReading:
    """Return the loop that lets the module read what it can, and `pure` the rest; `pure` itself where it can read nothing."""
    if module is None or (made := plan()) is None:
        return pure
    return NativeReading(module, made, pure, shape)


def rows_plan(
    mapping: CompiledMapping,
    side: Side,
    encoded: Encoded,
    *,
    masked: Callable[[Any], bool],
    texts: frozenset[str],
    full_before: bool,
) -> Plan | None:
    """Say what ``rows_loop`` reads, for a module; None where it has nothing to read."""
    spec = mapping.pipeline
    path = spec.source.version if side is Side.EXPECTED else spec.target.version
    if not path and spec.match is Match.VERSION:
        return None
    paths = mapping.side(side).paths
    names = list(dict.fromkeys([*paths, *([path] if path else [])]))
    decode = msgspec.json.Decoder(float_hook=Decimal).decode
    source = side is Side.EXPECTED

    def foreign(form: Form) -> Foreign:
        def part(raw: bytes) -> bytes | None:
            value = decode(raw)
            return None if source and masked(value) else form(value)

        return part

    codec = mapping.side(side).codec
    if max(len(names), len(codec.columns)) > MEMBERS_MAX:
        return None
    plain = encoded.key_readers is None and all(column.type in PLAIN_KEYS for column in codec.columns)
    readers = encoded.key_readers or [_itself] * len(codec.columns)

    def key_of(raws: Sequence[bytes]) -> bytes | bool:
        try:
            values = [decode(raw) for raw in raws]
            return None not in values and codec.encode([reader(value) for reader, value in zip(readers, values, strict=True)])
        except UNUSUAL:
            return False

    fields = [
        {**_column(field, wire, scale), "slot": names.index(at), "absent": None}
        for field, at, (wire, scale) in zip(mapping.fields, paths, encoded.wires, strict=True)
    ]
    return {
        **_plan(mapping, fields, [foreign(form) for form in encoded.forms]),
        "documents": False,
        "names": [name.encode() for name in names],
        "refused": [],
        "placeholders": [text.encode() for text in sorted(texts)] if source else [],
        "key_names": [column.path.encode() for column in codec.columns],
        "key_kinds": [column.type.value for column in codec.columns] if plain else [],
        "key_of": key_of,
        "version": names.index(path) if path else None,
        "full_before": full_before,
        "post_images": False,
        "wrapped": encoded.schema is not None,
        "wrapped_key": encoded.key_schema is not None,
        "schema": encoded.schema,
        "key_schema": encoded.key_schema,
    }


def documents_plan(mapping: CompiledMapping, side: Side, *, wrapped: bool, wrapped_key: bool, post_images: bool) -> Plan | None:
    """Say what ``debezium_mongodb_loop`` reads, for a module; None where it has nothing to read."""
    spec = mapping.pipeline
    mapped = mapping.side(side)
    version = spec.source.version if side is Side.EXPECTED else spec.target.version
    kind = mapped.codec.columns[0].type
    if kind not in DOCUMENT_KEYS or (not version and spec.match is Match.VERSION):
        return None
    deep = [path for path in mapped.paths if "." in path]
    roots = [path.split(".")[0] for path in mapped.paths]
    names = list(dict.fromkeys([*roots, *deep, *([version] if version else [])]))
    if len(names) > MEMBERS_MAX:
        return None
    fields = [
        {
            **(_member(field) if path not in deep else {**_UNUSED, "kind": "deep"}),
            "slot": names.index(root),
            "absent": NULL if field.absent_is_null else ABSENT,
        }
        for field, path, root in zip(mapping.fields, mapped.paths, roots, strict=True)
    ]
    foreign = [_document_part(form, path.split(".")[1:]) for form, path in zip(mapped.forms, mapped.paths, strict=True)]
    return {
        **_plan(mapping, fields, foreign),
        "documents": True,
        "names": [name.encode() for name in names],
        "refused": [names.index(path) for path in deep],  # a member of that very name goes first
        "placeholders": [],
        "key_names": [],
        "key_kinds": [kind.value],
        "key_of": _itself,
        "version": names.index(version) if version else None,
        "full_before": False,
        "post_images": post_images,
        "wrapped": wrapped,
        "wrapped_key": wrapped_key,
        "schema": None,
        "key_schema": None,
    }


def _plan(mapping: CompiledMapping, fields: Sequence[Plan], foreign: Sequence[Foreign]) -> Plan:
    roles = ["mask" if at in mapping.mask_at else "value" if at in mapping.value_at else "fixed" for at in range(len(fields))]

    def part(at: int, raw: bytes) -> bytes | bool | None:
        try:
            return foreign[at](raw)
        except UNUSUAL:
            return False

    return {
        "fields": [{**field, "role": role} for field, role in zip(fields, roles, strict=True)],
        "foreign": part,
        "value_text": value_text,
        "needs_version": mapping.pipeline.match is Match.VERSION,
    }


def _document_part(form: Form, steps: Sequence[str]) -> Foreign:
    if not steps:
        return lambda raw: form(extjson.unwrap(extjson.decode(raw)))
    return lambda raw: form(dig(extjson.unwrap(extjson.decode(raw)), steps))


def _itself(value: Any) -> Any:
    return value


# ── one field ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────

_UNUSED: Final[Mapping[str, Any]] = {
    "scale": None,
    "per_second": 1,
    "wanted": 1,
    "round": False,
    "nfc": False,
    "fractions": False,
    "low": 0,
    "high": 0,
}


def _kind(name: str, **options: Any) -> Plan:
    return {**_UNUSED, "kind": name, **options}


def _unit(name: str, spec: FieldSpec, per_second: int, **options: Any) -> Plan:
    rounds = spec.rounding is Rounding.ROUND
    return _kind(name, per_second=per_second, wanted=PER_SECOND[spec.precision], round=rounds, **options)


def _column(spec: FieldSpec, wire: str, wire_scale: int | None) -> Plan:
    """Return how a column of Debezium's rows is read. "foreign": only its general form can."""
    match spec.type:
        case FieldType.INT | FieldType.DECIMAL if wire in ("", "text") and (spec.scale or 0) >= 0:
            return _kind("decimal", scale=spec.scale, fractions=True)
        case FieldType.INT | FieldType.DECIMAL if wire == "base64_unscaled" and (
            spec.scale is None or (wire_scale or 0) <= spec.scale
        ):
            return _kind("unscaled", scale=wire_scale or 0)
        case FieldType.TIMESTAMP if wire in EPOCHS and spec.timezone in UTC:
            per_second = PER_SECOND[wire.removeprefix("epoch_")]
            return _unit("epoch", spec, per_second, low=INFINITE_TO[per_second], high=INFINITE_FROM[per_second])
        case FieldType.TIMESTAMP if wire == "iso":
            return _unit("iso", spec, 1_000)
        case FieldType.DATE if wire == "epoch_days":
            return _kind("days")
        case FieldType.TIME if wire in TIMES:
            return _unit("time", spec, PER_SECOND[wire.removeprefix("time_")])
        case _:
            return _plain(spec, wire)


def _member(spec: FieldSpec) -> Plan:
    """Return how a member of a document is read from extended JSON, canonical or relaxed."""
    match spec.type:
        case FieldType.INT | FieldType.DECIMAL if (spec.scale or 0) >= 0:
            return _kind("decimal", scale=spec.scale)
        case FieldType.TIMESTAMP:
            return _unit("iso", spec, 1_000)
        case _:
            return _plain(spec, spec.wire)


def _plain(spec: FieldSpec, wire: str) -> Plan:
    match spec.type:
        case FieldType.TEXT if wire != "bits":
            return _kind("text", nfc=spec.nfc)
        case FieldType.FLOAT if wire != "float32" and spec.digits is None:
            return _kind("float")
        case FieldType.BOOL | FieldType.UUID | FieldType.OBJECTID:
            return _kind(spec.type.value)
        case _:
            return _kind("foreign")
