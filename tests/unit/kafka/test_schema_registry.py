"""Records whose schemas lie elsewhere: read once they are known, kept while the registry is away, left alone otherwise."""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Callable, Sequence
from typing import Any, cast

import msgspec
import pytest
from confluent_kafka.schema_registry import RegisteredSchema, Schema, SchemaReference
from confluent_kafka.schema_registry.error import SchemaRegistryError
from fastavro import schemaless_writer

from gapwatch.clock import SystemClock
from gapwatch.errors import StoreRefused, StoreUnreachable
from gapwatch.kafka import clients, schema_registry
from gapwatch.kafka.clients import Partition, RawConsumer
from gapwatch.kafka.schema_registry import KEY_HEADER, VALUE_HEADER, SchemaRegistry
from gapwatch.model.pipeline import SchemaRegistrySpec, Settings

KEY: dict[str, Any] = {"type": "record", "name": "Key", "fields": [{"name": "id", "type": "long"}]}
VALUE: dict[str, Any] = {
    "type": "record",
    "name": "Value",
    "fields": [{"name": "id", "type": "long"}, {"name": "raw", "type": ["null", "bytes"]}, {"name": "share", "type": "double"}],
}
INDEXED = {"type": "object", "properties": {"a": {"type": "string", "connect.index": "first"}}}
NOT_FOUND = SchemaRegistryError(404, 40403, "Schema not found")


class Clock(SystemClock):
    """A monotonic time that is set."""

    at = 0.0

    def monotonic(self) -> float:
        return self.at


class Message:
    """What Kafka delivers, as far as it is read here."""

    def __init__(
        self, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]] = (), offset: int = 0
    ) -> None:
        self._parts = (key, value, list(headers), offset)

    def key(self) -> bytes | None:
        return self._parts[0]

    def value(self) -> bytes | None:
        return self._parts[1]

    def headers(self) -> list[tuple[str, bytes]]:
        return self._parts[2]

    def offset(self) -> int:
        return self._parts[3]

    def topic(self) -> str:
        return "orders"

    def partition(self) -> int:
        return 3

    def error(self) -> None:
        return None


class Client:
    """Confluent's client, answering from memory. ``away``: what it raises instead."""

    def __init__(self, schemas: dict[int | str, Schema], versions: dict[tuple[str, int], Schema] | None = None) -> None:
        self.schemas = schemas
        self.versions = versions or {}
        self.asked: list[int | str] = []
        self.away: Exception | None = None

    def get_schema(self, number: int) -> Schema:
        return self._found(number)

    def get_schema_by_guid(self, guid: str) -> Schema:
        return self._found(guid)

    def get_version(self, subject: str, version: int) -> RegisteredSchema:
        schema = self.versions[subject, version]
        return RegisteredSchema(guid="", schema_id=0, subject=subject, version=version, schema=schema)

    def _found(self, name: int | str) -> Schema:
        self.asked.append(name)
        if self.away is not None:
            raise self.away
        if name not in self.schemas:
            raise NOT_FOUND
        return self.schemas[name]


def registry_with(client: Client, clock: Clock | None = None) -> SchemaRegistry:
    made = SchemaRegistry(
        SchemaRegistrySpec(url="http://me:secret@127.0.0.1:1", place="http://***@127.0.0.1:1"), clock or Clock()
    )
    made._client = cast(Any, client)
    return made


def avro(schema: dict[str, Any], number: int, value: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    schemaless_writer(stream, schema, value)
    return b"\0" + number.to_bytes(4, "big") + stream.getvalue()


def schema(definition: Any, kind: str = "AVRO", references: Sequence[SchemaReference] = ()) -> Schema:
    return Schema(json.dumps(definition), kind, list(references))


@pytest.fixture
def client() -> Client:
    return Client({1: schema(KEY), 2: schema(VALUE)})


def test_a_record_in_avro_becomes_json_with_its_schema(client: Client) -> None:
    raw = Message(avro(KEY, 1, {"id": 7}), avro(VALUE, 2, {"id": 7, "raw": b"\x01", "share": float("inf")}), offset=9)
    made = registry_with(client).readable(cast(Any, raw))
    key, value = msgspec.json.decode(made.key() or b""), msgspec.json.decode(made.value() or b"")
    assert key["payload"] == {"id": 7}
    assert value["payload"] == {"id": 7, "raw": "AQ==", "share": "Infinity"}
    assert [field["field"] for field in value["schema"]["fields"]] == ["id", "raw", "share"]
    assert (made.offset(), made.topic(), made.partition()) == (9, "orders", 3)


def test_each_schema_is_asked_for_once(client: Client) -> None:
    registry = registry_with(client)
    for number in range(5):
        registry.readable(cast(Any, Message(avro(KEY, 1, {"id": number}), None)))
    assert client.asked == [1]


def test_what_needs_no_schema_is_handed_on_as_it_is(client: Client) -> None:
    for key, value in ((b'{"id":1}', b'{"a":2}'), (None, None), (b"", b""), (b"\0", b"\0\0\0")):
        message = Message(key, value)
        assert registry_with(client).readable(cast(Any, message)) is message
    assert client.asked == []


def test_headers_may_name_the_schema_by_its_guid() -> None:
    guid = uuid.uuid4()
    client = Client({str(guid): schema(KEY), 5: schema(KEY)})
    body = avro(KEY, 0, {"id": 1})[5:]
    named = [(KEY_HEADER, b"\x01" + guid.bytes), (VALUE_HEADER, b"\0\0\0\0\x05")]
    made = registry_with(client).readable(cast(Any, Message(body, body, named)))
    assert msgspec.json.decode(made.key() or b"")["payload"] == {"id": 1}
    assert msgspec.json.decode(made.value() or b"")["payload"] == {"id": 1}


def test_json_schema_goes_before_the_json_as_it_is() -> None:
    described = {"type": "object", "properties": {"id": {"type": "integer", "connect.type": "int32"}}}
    free = {"type": "object", "properties": {"id": {"type": ["integer", "string"]}}}
    registry = registry_with(Client({1: schema(described, "JSON"), 2: schema(free, "JSON")}))
    made = registry.readable(cast(Any, Message(b"\0\0\0\0\x01" + b'{"id": 4}', b"\0\0\0\0\x02" + b'{"id": "x"}')))
    assert msgspec.json.decode(made.key() or b"")["schema"]["fields"] == [{"type": "int32", "optional": False, "field": "id"}]
    assert (made.key() or b"").endswith(b'"payload":{"id": 4}}')
    assert made.value() == b'{"id": "x"}'


def test_apicurios_json_names_a_schema_of_connect() -> None:
    described = {"type": "struct", "fields": [{"type": "int64", "field": "id"}], "optional": False}
    registry = registry_with(Client({7: schema(described, "KCONNECT")}))
    like = b'{"schemaId":7,"payload":1'  # cut off: no such record
    made = registry.readable(cast(Any, Message(b'{"schemaId":7,"payload":{"id":4}}', like)))
    assert msgspec.json.decode(made.key() or b"") == {"schema": described, "payload": {"id": 4}}
    assert made.value() == like


def test_schemas_of_other_subjects_are_fetched_before_it() -> None:
    inner = {"type": "record", "name": "Cents", "namespace": "m", "fields": [{"name": "n", "type": "long"}]}
    money = {"type": "record", "name": "Money", "namespace": "m", "fields": [{"name": "cents", "type": "m.Cents"}]}
    outer = {"type": "record", "name": "R", "fields": [{"name": "price", "type": "m.Money"}]}
    versions = {
        ("money", 2): schema(money, references=[SchemaReference("m.Cents", "cents", 1)]),
        ("cents", 1): schema(inner),
    }
    client = Client({1: schema(outer, references=[SchemaReference("m.Money", "money", 2)])}, versions)
    whole = json.loads(json.dumps(outer).replace('"m.Money"', json.dumps(money).replace('"m.Cents"', json.dumps(inner))))
    made = registry_with(client).readable(cast(Any, Message(None, avro(whole, 1, {"price": {"cents": {"n": 3}}}))))
    assert msgspec.json.decode(made.value() or b"")["payload"] == {"price": {"cents": {"n": 3}}}


@pytest.mark.parametrize(
    ("schemas", "value"),
    [
        pytest.param({}, avro(KEY, 1, {"id": 1}), id="no such schema"),
        pytest.param({1: schema("syntax = proto3", "PROTOBUF")}, b"\0\0\0\0\x01\0\x08\x01", id="Protobuf"),
        pytest.param({1: Schema("{", "AVRO")}, avro(KEY, 1, {"id": 1}), id="a schema that is none"),
        pytest.param({1: schema(["int", "string"])}, b"\0\0\0\0\x01\0\x02", id="a union"),
        pytest.param(
            {1: schema({"type": "record", "name": "A", "fields": ["id"]})}, avro(KEY, 1, {"id": 1}), id="fields that are none"
        ),
        pytest.param({1: schema(INDEXED, "JSON")}, b'\0\0\0\0\x01{"a": "b"}', id="an index that is no number"),
        pytest.param({1: schema(KEY)}, b"\0\0\0\0\x01\xff", id="cut off"),
        pytest.param({1: schema(KEY)}, avro(KEY, 1, {"id": 1}) + b"x", id="too long"),
    ],
)
def test_what_nobody_can_read_stays_as_it_came(schemas: dict[int | str, Schema], value: bytes) -> None:
    message = Message(None, value)
    assert registry_with(Client(schemas)).readable(cast(Any, message)) is message


def test_a_missing_schema_is_asked_for_again_later(client: Client) -> None:
    clock = Clock()
    registry, message = registry_with(client, clock), Message(None, avro(KEY, 9, {"id": 1}))
    for _ in range(3):
        registry.readable(cast(Any, message))
    assert client.asked == [9]
    client.schemas[9] = schema(KEY)
    clock.at += schema_registry.ASK_AGAIN_SECONDS + 1
    assert registry.readable(cast(Any, message)) is not message


@pytest.mark.parametrize(
    ("away", "error", "said"),
    [
        (OSError("refused by http://me:secret@127.0.0.1:1"), StoreUnreachable, "did not answer: OSError"),
        (SchemaRegistryError(503, 50003, "busy"), StoreUnreachable, "answers 503"),
        (SchemaRegistryError(401, 40101, "who are you"), StoreRefused, "Check schema_registry.options"),
        (SchemaRegistryError(404, 404, "no such page"), StoreRefused, "Check schema_registry.url, its path included"),
    ],
)
def test_no_answer_is_no_word_on_the_record(client: Client, away: Exception, error: type[Exception], said: str) -> None:
    client.away = away
    with pytest.raises(error, match=said) as raised:
        registry_with(client).readable(cast(Any, Message(avro(KEY, 1, {"id": 1}), None)))
    assert "secret" not in str(raised.value)


# what a consumer does meanwhile


class Consumer:
    """librdkafka's, handing out what it was given."""

    def __init__(self, messages: Sequence[Message]) -> None:
        self.left = list(messages)
        self.act: Callable[[], None] = lambda: None

    def consume(self, limit: int, timeout: float) -> list[Message]:
        self.act()
        out, self.left = self.left[:limit], self.left[limit:]
        return out

    def seek(self, place: Any) -> None: ...

    def close(self) -> None: ...


def raw_consumer(registry: SchemaRegistry, messages: Sequence[Message]) -> tuple[RawConsumer, Consumer]:
    made = RawConsumer(Settings(bootstrap_servers="127.0.0.1:1", pipelines={}), client_id="one", registry=registry)
    made._consumer.close()
    fake = Consumer(messages)
    made._consumer = cast(Any, fake)
    return made, fake


def some(*numbers: int, schema_number: int = 1) -> list[Message]:
    return [Message(avro(KEY, schema_number, {"id": number}), None, offset=number) for number in numbers]


async def test_messages_wait_in_their_order_for_a_registry_that_is_away(client: Client) -> None:
    consumer, _ = raw_consumer(registry_with(client), [*some(0, 1), *some(2, schema_number=4), *some(3, 4, 5)])
    client.schemas[4] = schema(KEY)
    polled = await consumer.consume(2)
    assert [message.offset() for message in polled.messages] == [0, 1]
    client.away = OSError("away")
    for _ in range(2):
        polled = await consumer.consume(3)
        assert polled.messages == []
        assert [type(fault) for _, fault in polled.faults] == [StoreUnreachable]
    client.away = None
    polled = await consumer.consume(3)
    assert [message.offset() for message in polled.messages] == [2, 3, 4, 5]
    await consumer.close()


async def test_what_waits_of_a_partition_that_is_sought_is_forgotten(client: Client) -> None:
    client.away = OSError("away")
    consumer, fake = raw_consumer(registry_with(client), some(7))
    await consumer.consume(1)
    await consumer.seek(Partition("orders", 3), 5)
    client.away = None
    fake.left = some(5, 6)
    assert [message.offset() for message in (await consumer.consume(5)).messages] == [5, 6]
    await consumer.close()


async def test_a_partition_that_goes_while_messages_wait_takes_them_along(client: Client) -> None:
    client.away = OSError("away")
    consumer, fake = raw_consumer(registry_with(client), some(7))
    await consumer.consume(1)
    client.away = None
    fake.act = lambda: consumer._let_go([Partition("orders", 3)])  # as a rebalance does, from within consume()
    assert (await consumer.consume(1)).messages == []
    await consumer.close()


async def test_more_than_may_wait_ends_the_consumer(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "WAITING_MAX", 2)
    client.away = OSError("away")
    consumer, _ = raw_consumer(registry_with(client), some(*range(9)))
    for _ in range(3):
        await consumer.consume(1)
    with pytest.raises(StoreUnreachable):
        await consumer.consume(1)
    await consumer.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"basic.auth": "x"}, r"Unrecognized properties: basic\.auth.*See schema_registry\.options"),
        ({"timeout": "soon"}, r"could not convert string to float: 'soon'.*See schema_registry\.options"),
    ],
)
def test_options_that_do_not_go_are_named(options: dict[str, str], said: str) -> None:
    spec = SchemaRegistrySpec(url="http://127.0.0.1:1", place="http://127.0.0.1:1", options=options)
    with pytest.raises(StoreRefused, match=said):
        SchemaRegistry(spec, Clock())
