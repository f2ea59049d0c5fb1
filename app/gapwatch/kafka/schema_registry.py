"""Records whose schemas lie in a schema registry, made readable: Avro and JSON Schema, as Connect's converters write them.

A key or value begins with a zero byte and the schema's number (four bytes), or a header names the schema, or the JSON names the
number of a Connect schema (Apicurio's). What is handed on is JSON with Connect's schema beside it (``core.connect_schemas``),
so that the decoders need not know. The client is Confluent's (``gapwatch[avro]``); each schema is fetched once.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import msgspec
import structlog
from confluent_kafka import Message

from gapwatch.check_ports import Advice
from gapwatch.core.connect_schemas import AvroSchema, of_json_schema, plain_avro, unreadable
from gapwatch.core.envelopes.records import UNFORESEEN
from gapwatch.errors import EnvironmentLacks, RecordError, StoreError, StoreRefused, StoreUnreachable
from gapwatch.model.pipeline import SchemaRegistrySpec
from gapwatch.ports import Clock

STORE: Final = "schema_registry"
MAGIC: Final = 0
MAGIC_GUID: Final = 1
KEY_HEADER: Final = "__key_schema_id"
VALUE_HEADER: Final = "__value_schema_id"
APICURIO: Final = b'{"schemaId":'  # what ExtJsonConverter writes
_APICURIO: Final = re.compile(rb'\{"schemaId":(\d{1,10}),"payload":(?=.*\}\Z)', re.DOTALL)
NO_SUCH_SCHEMA: Final = 40403  # the registry's own code: another 404 means that no registry is there
ASK_AGAIN_SECONDS: Final = 60.0  # after a schema was not found, or not understood
FAILED_MAX: Final = 1_000  # bytes that are no schema's number name many
REFERENCES_MAX: Final = 50
_DEFAULTS: Final[Mapping[str, Any]] = {"timeout": 5, "max.retries": 1, "retries.wait.ms": 200, "retries.max.wait.ms": 500}
_NUMBERS: Final = {"timeout", "max.retries", "retries.wait.ms", "retries.max.wait.ms", "cache.capacity"}
_DENIED: Final = {401, 403}
_BUSY: Final = {408, 425, 429}

log = structlog.get_logger(__name__)

Name = int | str  # a schema's number, or its GUID
Format = Callable[[bytes], bytes]  # from what follows the schema's number to JSON


class Readable:
    """A message whose key and value are JSON now; everything else is as Kafka delivered it."""

    __slots__ = ("_key", "_message", "_value")

    def __init__(self, message: Message, key: bytes | None, value: bytes | None) -> None:
        self._message = message
        self._key = key
        self._value = value

    def key(self) -> bytes | None:
        return self._key

    def value(self) -> bytes | None:
        return self._value

    def __getattr__(self, name: str) -> Any:
        return getattr(self._message, name)


class SchemaRegistry:
    """Reads messages of one consumer, in its thread."""

    def __init__(self, spec: SchemaRegistrySpec, clock: Clock) -> None:
        """Connect to nothing yet. Raises EnvironmentLacks without the libraries, StoreRefused for options that do not go."""
        self._clock = clock
        self._where = spec.place
        try:
            from confluent_kafka.schema_registry import SchemaRegistryClient  # an extra
            from confluent_kafka.schema_registry.error import SchemaRegistryError
            from fastavro import parse_schema, schemaless_reader
        except ImportError as error:
            raise EnvironmentLacks(f"A schema registry needs {error.name}.", remedy="Install gapwatch[avro].") from error
        self._error: type[Exception] = SchemaRegistryError
        self._parse, self._read_avro = parse_schema, schemaless_reader
        try:
            given = {name: float(value) if name in _NUMBERS else value for name, value in spec.options.items()}
            self._client = SchemaRegistryClient({**_DEFAULTS, **given, "url": spec.url})
        except (ValueError, TypeError, OSError) as error:
            raise StoreRefused(
                f"The schema registry at {self._where} cannot be used: {error}.",
                store=STORE,
                remedy="See schema_registry.options.",
            ) from error
        self._formats: dict[Name, Format] = {}
        self._failed: dict[Name, tuple[RecordError, float]] = {}

    def readable(self, message: Message) -> Message | Readable:
        """Return the message with JSON in it; the message itself where it needs nothing, or where nobody could read it.

        Raises:
            StoreUnreachable, StoreRefused: The registry did not answer, or not to us. Nothing is lost: ask again.
        """
        key, value = message.key(), message.value()
        headers = message.headers() if key or value else None
        new_key = self._translated(key, headers, KEY_HEADER)
        new_value = self._translated(value, headers, VALUE_HEADER)
        if new_key is key and new_value is value:
            return message
        return Readable(message, new_key, new_value)

    def ask(self) -> None:
        """Return once the registry has answered us. Raises StoreUnreachable, StoreRefused."""
        self._ask(self._client.get_schema_types)

    def close(self) -> None:
        self._client.close()

    def _translated(self, raw: bytes | None, headers: Sequence[tuple[str, bytes | None]] | None, header: str) -> bytes | None:
        if not raw:
            return raw
        named = next((content for name, content in headers or () if name == header), None)
        name, rest = (_named(named), raw) if named else _numbered(raw)
        if name is None:
            return raw
        try:
            return self._format(name)(rest)
        except RecordError:
            return raw  # the decoder names it, and the dead letter holds what came

    def _format(self, name: Name) -> Format:
        known = self._formats.get(name)
        if known is not None:
            return known
        failed = self._failed.get(name)
        if failed is not None and self._clock.monotonic() < failed[1]:
            raise failed[0]
        try:
            made = self._formats[name] = self._made(name)
        except RecordError as error:
            log.warning("schema_unreadable", schema=name, registry=self._where, reason=str(error))
            if len(self._failed) >= FAILED_MAX:
                self._failed.clear()
            self._failed[name] = (error, self._clock.monotonic() + ASK_AGAIN_SECONDS)
            raise
        return made

    def _made(self, name: Name) -> Format:
        try:
            return self._make(name)
        except UNFORESEEN as error:  # one schema must not end every reader that comes to it
            raise unreadable(f"Schema {name} is not as converters write it: {type(error).__name__}.") from error

    def _make(self, name: Name) -> Format:
        found = self._ask(
            lambda: self._client.get_schema(name) if isinstance(name, int) else self._client.get_schema_by_guid(name)
        )
        match (found.schema_type or "AVRO").upper():
            case "AVRO":
                return self._avro(_json(found.schema_str), self._references(found.references or ()))
            case "JSON":
                return _json_schema(_json(found.schema_str))
            case "KCONNECT":
                before = _before(_json(found.schema_str))
                return lambda raw: b"%b%b}" % (before, raw)
            case other:
                raise unreadable(f"Schema {name} is of type {other}: Avro and JSON Schema can be read.")

    def _references(self, references: Sequence[Any]) -> list[Any]:
        """Return the schemas that a schema refers to, each after those that it needs itself."""
        found: dict[tuple[str, int], Any] = {}

        def visit(ahead: Sequence[Any]) -> None:
            for one in ahead:
                place = (one.subject, one.version)
                if place in found:
                    continue
                if len(found) >= REFERENCES_MAX:
                    raise unreadable(f"A schema refers to more than {REFERENCES_MAX} others.")
                found[place] = None
                schema = self._ask(partial(self._client.get_version, *place)).schema
                visit(schema.references or ())
                del found[place]
                found[place] = _json(schema.schema_str)

        visit(references)
        return list(found.values())

    def _avro(self, schema: Any, references: Sequence[Any]) -> Format:
        translated = AvroSchema(schema, references)
        named: dict[str, Any] = {}
        try:
            for reference in references:
                self._parse(plain_avro(reference), named_schemas=named)
            parsed = self._parse(plain_avro(schema), named_schemas=named)
        except Exception as error:  # the library raises what it meets; all of it says that the schema is none
            raise unreadable(f"The Avro schema cannot be used: {error}.") from error
        before, change, read = _before(translated.connect), translated.change, self._read_avro

        def format_(raw: bytes) -> bytes:
            stream = io.BytesIO(raw)
            try:
                value = read(stream, parsed, None)
                said = msgspec.json.encode(value if change is None else change(value))
            except Exception as error:  # noqa: BLE001 - as above; and its text may hold some of the record
                raise unreadable(f"The record was not written with its schema: {type(error).__name__}.") from None
            if stream.tell() != len(raw):
                raise unreadable("The record goes on behind what its schema describes.")
            return b"%b%b}" % (before, said)

        return format_

    def _ask(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except self._error as error:
            status, code = getattr(error, "http_status_code", 0), getattr(error, "error_code", 0)
            raise self._refusal(status, code) from error
        except Exception as error:  # whatever the transport raises: there was no answer
            raise StoreUnreachable(
                f"The schema registry at {self._where} did not answer: {type(error).__name__}.",
                store=STORE,
                remedy="Check that it runs and that schema_registry.url is its address.",
            ) from error

    def _refusal(self, status: int, code: int) -> RecordError | StoreError:
        if code == NO_SUCH_SCHEMA:
            return unreadable(f"The schema registry at {self._where} does not have it.")
        if status in _BUSY or status >= 500:
            return StoreUnreachable(f"The schema registry at {self._where} answers {status}.", store=STORE)
        remedy = "Check schema_registry.options." if status in _DENIED else "Check schema_registry.url, its path included."
        return StoreRefused(f"The schema registry at {self._where} answers {status}.", store=STORE, remedy=remedy)


class RegistryPreflight:
    """Implements :class:`gapwatch.ports.Preflight`: whether the registry answers us."""

    def __init__(self, pipeline: str, spec: SchemaRegistrySpec, clock: Clock) -> None:
        self._pipeline = pipeline
        self._spec = spec
        self._clock = clock
        self._registry: SchemaRegistry | None = None

    @property
    def name(self) -> str:
        return "schema_registry"

    async def check(self) -> Sequence[Advice]:
        if self._registry is None:
            self._registry = SchemaRegistry(self._spec, self._clock)
        await asyncio.to_thread(self._registry.ask)
        return [
            Advice(level="ok", subject=f"{self._pipeline}.source", message=f"The schema registry at {self._spec.place} answers.")
        ]

    async def watch(self) -> Sequence[Advice]:
        return []

    async def close(self) -> None:
        if self._registry is not None:
            self._registry.close()


def _named(header: bytes) -> Name | None:
    """Return the schema that a header names; None where it is not written so."""
    if header[0] == MAGIC and len(header) == 5:
        return int.from_bytes(header[1:], "big")
    if header[0] == MAGIC_GUID and len(header) == 17:
        return str(uuid.UUID(bytes=header[1:]))
    return None


def _numbered(raw: bytes) -> tuple[Name | None, bytes]:
    """Return the number of the schema that a key or value begins with, and what follows it."""
    if raw[0] == MAGIC and len(raw) > 5:
        return int.from_bytes(raw[1:5], "big"), raw[5:]
    if raw[:12] == APICURIO and (found := _APICURIO.match(raw)) is not None:
        return int(found[1]), raw[found.end() : -1]
    return None, raw


def _json(text: str | None) -> Any:
    try:
        return json.loads(text or "")
    except (ValueError, RecursionError):
        if text and text.isidentifier():
            return text  # a primitive type, without quotes
        raise unreadable("The schema is no JSON.") from None


def _before(connect: Any) -> bytes:
    return b'{"schema":%b,"payload":' % msgspec.json.encode(connect)


def _json_schema(schema: Any) -> Format:
    """Return what puts Connect's schema before the JSON; nothing where a schema says what Connect cannot say."""
    try:
        before = _before(of_json_schema(schema))
    except RecordError:
        return lambda raw: raw
    return lambda raw: b"%b%b}" % (before, raw)
