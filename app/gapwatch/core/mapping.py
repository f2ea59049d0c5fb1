"""A pipeline's mapping, compiled: from rows, documents and events to digests that can be compared (``design.md`` 2).

The digest's layout follows ``PipelineSpec.fields``: one digest over the fields that no event can lack, one per maskable field,
one text per toleranced field. ``fingerprint`` names that layout; digests of different fingerprints are not comparable.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, InvalidOperation
from typing import Any, Final
from uuid import UUID

import msgspec
import xxhash

from gapwatch.core import temporal
from gapwatch.core.canonical import ABSENT, NULL, ODD, VALUE, VERSION, Form, compile_form, number_text, plain_number
from gapwatch.core.counting import Counting, declared, read_beside
from gapwatch.core.digests import digest, identity, mask_digest
from gapwatch.core.keys import KeyCodec, getter
from gapwatch.core.resolve import resolve as resolve
from gapwatch.errors import ConfigError, ConfigProblem
from gapwatch.model.pipeline import FieldSpec, FieldType, PipelineSpec
from gapwatch.model.stream import Side

MASKED_VALUE: Final = "?"  # in a values column: the event did not carry this toleranced field
HOLDS_TEXT: Final = (str, bytes, list, tuple, Mapping)
_DIFFERENCE: Final = Context(prec=1_000_000, Emax=MAX_EMAX, Emin=MIN_EMIN)  # exact for every number that a store holds
KEPT_BYTES_MAX: Final = 64  # longer canonical values are kept as their digest
SHOWN_MAX: Final = 2_000  # characters of a value in evidence
TOLERABLE: Final = frozenset({FieldType.INT, FieldType.DECIMAL, FieldType.FLOAT})

FIELD_LAYOUT: Final = (  # what the layout says of each field, in its order
    "target",
    "source column",
    "type",
    "scale",
    "digits",
    "precision",
    "rounding",
    "timezone",
    "with a tolerance",
    "multiset",
    "absent_is_null",
    "nfc",
    "may be left out by events",
    "single precision",
    "type of items",
)

Part = bytes | None  # one field's canonical bytes; None: masked, the event does not carry it


class Content(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What the columns of a section say of one event. ``complete`` False: a field that should be there was masked."""

    digest: bytes
    masks: tuple[bytes, ...] | None
    values: tuple[str | None, ...] | None
    complete: bool = True


class Canonical(msgspec.Struct, frozen=True, gc=False):
    """One row or document in canonical form.

    ``masks`` holds one digest per maskable field (b"" where masked), ``values`` one text per toleranced field (None: null or
    absent). ``parts`` holds every field's canonical bytes in mapping order (long ones as a digest; None where masked).
    """

    digest: bytes
    masks: tuple[bytes, ...]
    values: tuple[str | None, ...]
    parts: tuple[Part, ...]
    names: tuple[str, ...]

    @property
    def identity(self) -> bytes:
        """Digest and mask digests together (zeros where masked); toleranced fields are not part of it."""
        return identity(self.digest, self.masks)

    @property
    def by_field(self) -> dict[str, bytes]:
        """Canonical bytes by target field name, without the masked ones."""
        return {name: part for name, part in zip(self.names, self.parts, strict=True) if part is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class SideMapping:
    """How one side's records are read. ``forms`` are for driver values and documents, not for Debezium's encodings."""

    side: Side
    codec: KeyCodec
    paths: tuple[str, ...]
    getters: tuple[Callable[[Mapping[str, Any]], Any], ...]
    forms: tuple[Form, ...]
    version: Callable[[Mapping[str, Any]], int | None]

    def parts(self, record: Mapping[str, Any]) -> list[Part]:
        return [form(get(record)) for form, get in zip(self.forms, self.getters, strict=True)]


class CompiledMapping:
    """The mapping of one pipeline, whose field types are resolved.

    Raises:
        ConfigError: The two keys differ in type, or a field has a tolerance and is no number.
    """

    def __init__(self, pipeline: PipelineSpec) -> None:
        _check(pipeline)
        self.pipeline = pipeline
        self.fields = pipeline.fields
        self.names = tuple(spec.target for spec in self.fields)
        self.counting = Counting(pipeline)
        self.source = _side(pipeline, Side.EXPECTED)
        self.target = _side(pipeline, Side.OBSERVED)
        self.source_columns = tuple(
            dict.fromkeys(
                [column.path for column in pipeline.source.key]
                + [spec.source for spec in self.fields]
                + ([pipeline.source.version] if pipeline.source.version else [])
                + list(read_beside(pipeline, Side.EXPECTED))
            )
        )
        self.target_paths = tuple(
            dict.fromkeys(
                [column.path for column in pipeline.target.key]
                + list(self.names)
                + ([pipeline.target.version] if pipeline.target.version else [])
                + list(read_beside(pipeline, Side.OBSERVED))
            )
        )
        toleranced = [index for index, spec in enumerate(self.fields) if spec.tolerance is not None]
        self.tolerances = tuple(spec.tolerance for spec in self.fields if spec.tolerance is not None)
        self.value_at = tuple(toleranced)
        self.mask_at = tuple(i for i, spec in enumerate(self.fields) if spec.maskable and spec.tolerance is None)
        self.fixed_at = tuple(i for i, spec in enumerate(self.fields) if not spec.maskable and spec.tolerance is None)
        self.layout = _layout(pipeline)
        self.fingerprint = xxhash.xxh3_64_intdigest(msgspec.json.encode(self.layout)) >> 1
        self._placeholder = pipeline.source.feed.placeholder

    def side(self, side: Side) -> SideMapping:
        return self.source if side is Side.EXPECTED else self.target

    # ── rows and documents ────────────────────────────────────────────────────────────────────────────────────────────────────

    def canonical_source(self, fields: Mapping[str, Any]) -> Canonical:
        """Return the canonical form of a source row as its driver read it (nothing is masked: a placeholder is a value)."""
        return self.canonical(self.source.parts(fields))

    def canonical_target(self, document: Mapping[str, Any]) -> Canonical:
        """Return the canonical form of a target document."""
        return self.canonical(self.target.parts(document))

    def canonical(self, parts: Sequence[Part]) -> Canonical:
        """Return the canonical form of a record from the canonical bytes of all fields in mapping order."""
        content = self.content(parts)
        return Canonical(
            digest=content.digest,
            masks=content.masks or (),
            values=content.values or (),
            parts=tuple([_kept(part) for part in parts]),
            names=self.names,
        )

    def content(self, parts: Sequence[Part]) -> Content:
        """Return digest, mask digests and values of one record, from the canonical bytes of all fields in mapping order."""
        masks: tuple[bytes, ...] | None = None
        values: tuple[str | None, ...] | None = None
        fixed = [parts[at] for at in self.fixed_at]
        known = [part for part in fixed if part is not None]
        if self.mask_at:
            masks = tuple([b"" if (part := parts[at]) is None else mask_digest(part) for at in self.mask_at])
        if self.value_at:
            values = tuple([value_text(parts[at]) for at in self.value_at])
        return Content(digest(known), masks, values, len(known) == len(fixed))

    def version_of_source(self, fields: Mapping[str, Any]) -> int | None:
        """Return the declared version column's whole number, None where there is none."""
        return self.source.version(fields)

    def version_of_target(self, document: Mapping[str, Any]) -> int | None:
        return self.target.version(document)

    # ── comparing ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def differing(self, source: Canonical, target: Canonical) -> tuple[str, ...]:
        """Return the target names of the fields that differ; a masked one says nothing, a toleranced one may lie within."""
        if source.parts == target.parts:
            return ()
        tolerances = iter(zip(source.values, target.values, self.tolerances, strict=True))
        names = []
        for spec, left, right in zip(self.fields, source.parts, target.parts, strict=True):
            if spec.tolerance is not None:
                if not within(*next(tolerances)):
                    names.append(spec.target)
            elif left != right and left is not None and right is not None:
                names.append(spec.target)
        return tuple(names)

    def values_agree(self, expected: Sequence[str | None], observed: Sequence[str | None]) -> bool:
        """Compare the values columns of two events, each field within its tolerance."""
        return all(within(*item) for item in zip(expected, observed, self.tolerances, strict=True))

    def holds_placeholder(self, document: Mapping[str, Any]) -> bool:
        """Whether a mapped field of a target document holds Debezium's placeholder: an unchanged large value was overwritten."""
        for get in self.target.getters:
            value = get(document)
            if isinstance(value, HOLDS_TEXT) and is_placeholder(value, self._placeholder):
                return True
        return False

    # ── showing ───────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def shown_source(self, fields: Mapping[str, Any], names: Iterable[str]) -> dict[str, str | None]:
        """Return the named target fields' values at the source for people: text, None for null, "(absent)" for absent."""
        return self._shown(self.source, fields, names)

    def shown_target(self, document: Mapping[str, Any], names: Iterable[str]) -> dict[str, str | None]:
        return self._shown(self.target, document, names)

    def _shown(self, side: SideMapping, record: Mapping[str, Any], names: Iterable[str]) -> dict[str, str | None]:
        wanted = set(names)
        return {
            spec.target: shown(spec, form(value := get(record)), value)
            for spec, form, get in zip(self.fields, side.forms, side.getters, strict=True)
            if spec.target in wanted
        }


def within(expected: str | None, observed: str | None, tolerance: Decimal) -> bool:
    """Whether two numbers, as text, lie within an absolute tolerance (included). Null is within null only."""
    if expected == observed or MASKED_VALUE in (expected, observed):
        return True
    if expected is None or observed is None:
        return False
    try:
        one, other = Decimal(expected), Decimal(observed)
    except InvalidOperation:  # no number
        return False
    if not one.is_finite() or not other.is_finite():
        return False
    return _DIFFERENCE.subtract(one, other).copy_abs() <= tolerance  # a fraction would write out every zero of 1e9999999


def is_placeholder(value: Any, placeholder: str) -> bool:
    """Whether a document's value is the placeholder: as text, as bytes (or their base64), or inside an array."""
    if isinstance(value, str):
        return value in placeholder_texts(placeholder)
    if isinstance(value, bytes):
        return value == placeholder_bytes(placeholder)
    if isinstance(value, list | tuple) and value:
        return any(is_placeholder(item, placeholder) for item in value) or _spells(value, placeholder)
    if isinstance(value, Mapping):
        return placeholder in value  # hstore as a map
    return False


def _spells(items: Sequence[Any], placeholder: str) -> bool:
    """Debezium writes an array of numbers that it lacks as the placeholder's bytes."""
    raw = placeholder_bytes(placeholder)
    return len(items) == len(raw) and all(type(item) is int for item in items) and list(items) == list(raw)


def placeholder_bytes(placeholder: str) -> bytes:
    return bytes.fromhex(placeholder[4:]) if placeholder.startswith("hex:") else placeholder.encode()


def placeholder_texts(placeholder: str) -> frozenset[str]:
    """Return every text that stands for the placeholder: itself, and as bytes in base64, URL-safe base64 and hexadecimal."""
    found = _TEXTS.get(placeholder)
    if found is None:
        raw = placeholder_bytes(placeholder)
        encoded = (form(raw).decode() for form in (base64.b64encode, base64.urlsafe_b64encode))
        found = frozenset({placeholder, raw.decode("utf-8", "replace"), raw.hex(), *encoded})
        _TEXTS.clear()
        _TEXTS[placeholder] = found
    return found


_TEXTS: dict[str, frozenset[str]] = {}


def whole_number(value: Any) -> int | None:
    """Return a version as int; None where it is no whole number."""
    if type(value) is int:
        return value
    if value is None or isinstance(value, bool):
        return None
    text = number_text(value)
    if text is None or len(text) > 40 or not text.lstrip("-")[:1].isdigit():
        return None
    number = Decimal(text)
    return int(number) if number == number.to_integral_value() and number.adjusted() < 19 else None


def _side(pipeline: PipelineSpec, side: Side) -> SideMapping:
    source = side is Side.EXPECTED
    columns = pipeline.source.key if source else pipeline.target.key
    version = pipeline.source.version if source else pipeline.target.version
    paths = tuple(spec.source if source else spec.target for spec in pipeline.fields)
    read_version = getter(version) if version else None
    return SideMapping(
        side=side,
        codec=KeyCodec(columns),
        paths=paths,
        getters=tuple(getter(path) for path in paths),
        forms=tuple(compile_form(spec, json_text=not source) for spec in pipeline.fields),
        version=(lambda record: whole_number(read_version(record))) if read_version else (lambda record: None),
    )


def _check(pipeline: PipelineSpec) -> None:
    problems = []
    source, target = ([column.type for column in side.key] for side in (pipeline.source, pipeline.target))
    if source != target:
        problems.append(
            ConfigProblem(
                f"pipelines.{pipeline.id}.target.key",
                f"The target's key is ({', '.join(target)}), the source's ({', '.join(source)}).",
                remedy="Declare the same types in the same order on both sides.",
            )
        )
    problems += [
        ConfigProblem(
            f"pipelines.{pipeline.id}.fields.{spec.target}.tolerance",
            f"A tolerance needs a number, and the field is of type {spec.type.value}.",
            remedy="Remove the tolerance, or declare `type: decimal`.",
        )
        for spec in pipeline.fields
        if spec.tolerance is not None and spec.type not in TOLERABLE
    ]
    if problems:
        raise ConfigError(problems)


def _layout(pipeline: PipelineSpec) -> list[Any]:
    """Return what makes digests comparable: the canonical form's version, the key, the fields, and the rules of what counts."""
    keys = [column.type.value for column in pipeline.source.key]
    fields = [
        (
            spec.target,
            spec.source,
            spec.type.value,
            spec.scale,
            spec.digits,
            spec.precision,
            spec.rounding.value,
            spec.timezone,
            spec.tolerance is not None,
            spec.multiset,
            spec.absent_is_null,
            spec.nfc,
            spec.maskable,
            spec.wire == "float32",
            spec.wire.split(":")[1] if spec.wire.startswith("items:") else "",
        )
        for spec in pipeline.fields
    ]
    rules = declared(pipeline)  # most pipelines have none: their fingerprint is that of a mapping alone
    return [VERSION, keys, [column.path for column in pipeline.source.key], fields, *([rules] if rules else [])]


def value_text(part: Part) -> str | None:
    """Return what the values column says of a toleranced field."""
    if part is None:
        return MASKED_VALUE
    if part in (NULL, ABSENT):
        return None
    if part[:1] == VALUE:
        return plain_number(part[1:].decode())
    return f"!{mask_digest(part).hex()}"  # no number: equal to the same odd value only


def _kept(part: Part) -> Part:
    return part if part is None or len(part) <= KEPT_BYTES_MAX else b"\x04" + mask_digest(part)


def shown(spec: FieldSpec, part: bytes, value: Any) -> str | None:
    """Return one value for people, at the precision at which it is compared."""
    if part == NULL:
        return None if value is None else "(absent)"
    if part == ABSENT:
        return "(absent)"
    text = f"{value!r} (not of type {spec.type.value})" if part[:1] == ODD else _shown_payload(spec, part[1:], value)
    return text if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]}… ({len(text)} characters)"


def _shown_payload(spec: FieldSpec, payload: bytes, value: Any) -> str:
    match spec.type:
        case FieldType.INT | FieldType.DECIMAL | FieldType.FLOAT:
            return plain_number(payload.decode())
        case FieldType.TEXT:
            return payload.decode("utf-8", "backslashreplace")
        case FieldType.BOOL:
            return "true" if payload == b"t" else "false"
        case FieldType.TIMESTAMP | FieldType.TIME | FieldType.DATE:
            return _shown_time(spec, payload.decode())
        case FieldType.UUID:
            return str(UUID(bytes=payload))
        case FieldType.OBJECTID | FieldType.BYTES:
            return payload.hex()
        case _:
            return str(value) if isinstance(value, str) else msgspec.json.encode(value, enc_hook=str, order="sorted").decode()


def _shown_time(spec: FieldSpec, text: str) -> str:
    if text in (temporal.INFINITY, temporal.NEGATIVE_INFINITY):
        return text
    per_second = temporal.PER_SECOND[spec.precision]
    if spec.type is FieldType.DATE:
        return temporal.iso_date(int(text))
    return (temporal.iso_time if spec.type is FieldType.TIME else temporal.iso_moment)(int(text), per_second)
