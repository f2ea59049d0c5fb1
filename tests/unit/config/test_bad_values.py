"""What a file may say wrongly: each is named, none ends in a traceback, none is ignored."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gapwatch.config import load, mask_url, parse, render
from gapwatch.config.source import OTHER_VARIABLES
from gapwatch.errors import ConfigError
from tests.unit.config.test_load import GOOD, ROOT, problems, settings

FIELD = "customer: customer"
GRACE = "    grace: 5s"
DEBEZIUM = "{ debezium: shop.public.orders }"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("grace: 5s", "grace: !foo 5s", "grace: The tag !foo is not known."),
        ("grace: 5s", "grace: 2024-13-45", "grace: A duration is a number with a unit"),
        ("grace: 5s", "grace: 30", "grace: A duration is a number with a unit"),
        ("grace: 5s", f"grace: {'9' * 400}s", "grace: A duration is at most 3650d."),
        ("grace: 5s", "grace: 0s", "grace: The grace must be above 0."),
        ("grace: 5s", "grace:", "grace: It is empty."),
        ("grace: 5s", "pulse: 0s", "pulse: It should be greater than 0."),
        ("grace: 5s", "match: version", "source.version: It is missing"),
        ("grace: 5s", "enabled: 'false'", "enabled: It should be true or false."),
        ("tolerance: 0.01", "tolerance: much", "tolerance: A tolerance is an absolute difference"),
        ("tolerance: 0.01", "tolerance: .nan", "tolerance: A tolerance is an absolute difference"),
        ("tolerance: 0.01", "tolerance: -1", "tolerance: A tolerance is an absolute difference"),
        ("type: decimal, scale: 2,", "type: text,", "tolerance: A field of type text has no tolerance."),
        (FIELD, "customer: { from: c, type: text, precision: us }", "precision: A field of type text has no precision."),
        (FIELD, "customer: { from: c, type: timestamp, timezone: Mars/X }", "timezone: There is no such time zone."),
        (FIELD, "customer: { frm: c }", "customer.frm: There is no such key. Did you mean `from`?"),
        (FIELD, "customer: [c]", "customer: It should be text or a mapping."),
        (FIELD, f"{FIELD}\n      customer.name: x", "customer.name: It lies within `customer`, which is mapped too."),
        (FIELD, "_id: customer", "fields._id: It is part of the key, which comes from `id`."),
        (FIELD, "_id.x: customer", "fields._id.x: It lies within `_id`, which is mapped too."),
        (FIELD, "a..b: customer", "fields.a..b: It is no path: a part of it is empty."),
        ("{ group: connect-orders }", "nothing", "delivery: It should be 'none' or a mapping."),
        ("{ group: connect-orders }", "{ grup: x }", "delivery.grup: There is no such key. Did you mean `group`?"),
        (
            "{ debezium: shop.public.orders }",
            "{ debezium: shop.public.orders, format: avro }",
            "It should be 'unwrapped' or 'json'.",
        ),
        (DEBEZIUM, "{ debezium: shop.public.orders, format: json }", "feed.format: Debezium's records are not plain JSON."),
        (DEBEZIUM, "{ debezium: shop.public.orders, wrappers: [a] }", "feed.wrappers: A feed of kind debezium has no wrappers."),
        (
            DEBEZIUM,
            "{ topic: x, debezium: y }",
            "source.feed: A feed is exactly one thing. Write { debezium: TOPIC } or { topic: ",
        ),
        (DEBEZIUM, "{ topic: x y }", "source.feed.topic: It is no name of a topic."),
        (DEBEZIUM, "{ topic: watch.events }", "source.feed.topic: This is one of Gapwatch's own topics."),
        (DEBEZIUM, "{ topic: x, format: unwrapped }", "source.feed.format: A plain topic has no format unwrapped."),
        (DEBEZIUM, "{ topic: x, wrappers: [] }", "source.feed.wrappers: "),
        (DEBEZIUM, "{ topic: x, wrappers: [''] }", "source.feed.wrappers"),
        (DEBEZIUM, "{ topic: x, wrappers: [a, a] }", "source.feed.wrappers: 'a' stands there twice."),
        (
            DEBEZIUM,
            "{ topic: x, wrappers: [amount] }",
            "source.feed.wrappers: `amount` is mapped as well: a record could mean either.",
        ),
        (DEBEZIUM, "{ topic: x, wrappers: [id] }", "source.feed.wrappers: `id` is mapped as well"),
        (DEBEZIUM, "{ topic: x }, transactions: y", "source.transactions: Only Debezium writes one"),
        ("{ change_stream: true }", "{ topic: x, wrappers: [total] }", "target.feed.wrappers: `total` is mapped as well"),
        ("{ change_stream: true }", "{ change_stream: true, format: unwrapped }", "A feed of kind change_stream has no format."),
        ("debezium: shop.public.orders", "debezium: shop orders", "feed.debezium: It is no name of a topic."),
        ("debezium: shop.public.orders", "debezium: watch.events", "This is one of Gapwatch's own topics."),
        ("sasl.password:", "group.id:", "kafka.options.group.id: Gapwatch sets this itself"),
        ('rs0" }', 'rs0", heartbeat: { every: 50s } }', "heartbeat.every: Heartbeats must come every 10 s or faster."),
        ("app:s3cret@db", "app:s3/cret@db", "dsn: Its user name or password holds a reserved character."),
        ("app:s3cret@db", "app:s3@cret@db", "dsn: Its user name or password holds a reserved character."),
        ("app:s3cret@db", "app:${S@db", "dsn: A reference is not closed."),
        ("stores:\n", "connect: { url: junk }\nstores:\n", "connect.url: It is no HTTP address."),
        ("stores:\n", "schema_registry: { url: 'http://a:1,b:2' }\nstores:\n", "schema_registry.url: It is no HTTP address."),
        (
            "stores:\n",
            "schema_registry: { options: { timeout: 1 } }\nstores:\n",
            "schema_registry: It has options and no address.",
        ),
        ("partitions: 4", "partitions: '4'", "topics.partitions: It should be a whole number."),
        (
            "grace: 5s",
            "grace: 5s\n    repair: { modes: [debezium] }",
            "repair.modes: Mode debezium asks a connector for a snapshot",
        ),
        (
            "grace: 5s",
            "grace: 5s\n    repair: { undo: /var/undo }",
            "repair.undo: It keeps whole documents, and evidence: fields",
        ),
        ("grace: 5s", "grace: 5s\n    repair: { modes: [] }", "repair.modes: "),
        ("grace: 5s", "grace: 5s\n    sweep: { cron: '@daily' }", "sweep.cron: '@daily' is no cron expression of five fields."),
        ("grace: 5s", "grace: 5s\n    sweep: { cron: '0 3 * * *', every: 1h }", "sweep.cron: There is an interval as well."),
        ("grace: 5s", "grace: 5s\n    repair: { modes: [telepathy] }", "repair.modes"),
        ("grace: 5s", "grace: 5s\n    repair: { missing: delete }", "repair.missing: A missing document cannot be deleted."),
        (
            "feed: { debezium: shop.public.orders } }",
            "feed: { topic: x } }\n    repair: { modes: [direct, republish] }",
            "repair.modes: Mode republish needs a source that Debezium captures.",
        ),
    ],
)
def test_one_wrong_value_is_one_problem_that_names_it(old: str, new: str, expected: str) -> None:
    assert old in GOOD
    found = problems(GOOD.replace(old, new, 1))
    assert any(expected in problem for problem in found), found
    assert all(problem.startswith("line ") for problem in found)
    assert not any("s3cret" in problem or "s3/cret" in problem for problem in found)


@pytest.mark.parametrize(
    "text",
    ["a: " + "[" * 3_000, "a: &b { c: *b }", "a: \x01", "- a", "a: b: c", "? [x]\n: y", "", "kafka:", "{", "\ud800"],
)
def test_whatever_the_file_holds_it_is_a_configuration_error(text: str) -> None:
    assert problems(text)


def test_columns_and_numbers_are_what_is_written_not_what_yaml_makes_of_them() -> None:
    found = settings(
        GOOD.replace('sasl.password: "hunter2"', "sasl.password: 0123")
        .replace(FIELD, "no: on")
        .replace("partitions: 4", "partitions: 010")
    )
    assert found.kafka_options == {"sasl.password": "0123"}
    assert (found.pipelines["orders"].fields[0].target, found.pipelines["orders"].fields[0].source) == ("no", "on")
    assert found.topics.partitions == 10


def test_a_password_from_the_environment_arrives_as_it_is() -> None:
    for password in ("0123", "a #b", "yes", "1_000", "a: b", "~", "2024-01-01"):
        found = settings(GOOD, GAPWATCH_KAFKA__OPTIONS__SASL_PASSWORD=password)
        assert found.kafka_options == {"sasl.password": password}


def test_numbers_and_switches_may_come_from_references() -> None:
    text = GOOD.replace("partitions: 4", 'partitions: "${PARTITIONS}"').replace(GRACE, "    enabled: ${ENABLED}\n" + GRACE)
    found = settings(text, PARTITIONS="12", ENABLED="false")
    assert (found.topics.partitions, found.pipelines["orders"].enabled) == (12, False)


def test_problems_in_values_from_the_environment_name_the_variable_and_not_the_value() -> None:
    assert problems(GOOD, {"GAPWATCH_TOPICS__PARTITIONS": "many", "GAPWATCH_KAFKA_BOOTSTRAP_SERVERS": "b:1"}) == [
        "GAPWATCH_TOPICS__PARTITIONS: topics.partitions: It should be a whole number.",
        "GAPWATCH_KAFKA_BOOTSTRAP_SERVERS: kafka_bootstrap_servers: There is no such key."
        " Known here: api, connect, database, kafka, pipelines, probes, schema_registry, stores, topics.",
    ]
    assert "GAPWATCH_DATABASE__X" in problems(GOOD, {"GAPWATCH_DATABASE__X": "1"})[0]


def test_a_variable_replaces_a_word_by_a_mapping() -> None:
    text = GOOD.replace("{ group: connect-orders }", "none")
    assert settings(text, GAPWATCH_PIPELINES__ORDERS__DELIVERY__GROUP="sink").pipelines["orders"].delivery.group == "sink"


def test_variables_that_kubernetes_sets_for_a_service_are_none_of_ours() -> None:
    links = {
        "GAPWATCH_SERVICE_HOST": "10.0.0.1",
        "GAPWATCH_SERVICE_PORT_HTTP": "8640",
        "GAPWATCH_PORT": "tcp://10.0.0.1:8640",
        "GAPWATCH_PORT_8640_TCP_ADDR": "10.0.0.1",
        "GAPWATCH_API_SERVICE_HOST": "10.0.0.1",
    }
    assert parse(GOOD, links) == settings()


def test_a_wrong_leaf_does_not_hide_what_two_keys_say_together() -> None:
    text = (
        GOOD.replace("grace: 5s", "grace: soon")
        .replace("key: { _id: int }", "key: { _id: text }")
        .replace("type: postgres", "typ: postgres")
    )
    found = problems(text)
    assert [problem.split(": ")[0] for problem in found] == [
        "line 4, stores.shop.type",
        "line 4, stores.shop.typ",
        "line 9, pipelines.orders.target.key._id",
        "line 13, pipelines.orders.grace",
    ]


def test_one_broken_pipeline_does_not_hide_another() -> None:
    second = GOOD[GOOD.index("  orders:") :].replace("orders:", "returns:", 1).replace("store: shop,", "store: shoop,")
    found = problems(GOOD.replace("    source: {", "    sauce: {") + second)
    assert any("pipelines.orders.source: It is missing." in problem for problem in found)
    assert any("pipelines.returns.source.store: There is no store 'shoop'." in problem for problem in found)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:p@h:1/d", "postgresql://u:***@h:1/d"),
        ("postgresql://u@h/d", "postgresql://u@h/d"),
        ("mongodb://u:p@a:1,b:2/?replicaSet=r", "mongodb://u:***@a:1,b:2/?replicaSet=r"),
        ("postgresql://h/d?sslpassword=p&a=b", "postgresql://h/d?sslpassword=***&a=b"),
        ("mongodb://h/?authMechanismProperties=AWS_SESSION_TOKEN:p", "mongodb://h/?authMechanismProperties=***"),
        ("postgresql://u:p/w@h/d", "***"),
        ("http://u:p@h", "http://u:***@h"),
        ("nonsense", "nonsense"),
    ],
)
def test_h3_addresses_show_no_password(url: str, shown: str) -> None:
    assert mask_url(url) == shown


def test_h3_no_account_of_any_address_is_printed() -> None:
    text = GOOD.replace("stores:\n", "connect: { url: 'http://u:s3cret@c:8083' }\ndatabase: postgresql://u:s3cret@h/d\nstores:\n")
    found = settings(text)
    for shown in (render(found), repr(found)):
        assert "s3cret" not in shown
    assert "http://u:***@c:8083" in render(found)


def test_the_address_and_the_account_of_a_schema_registry_are_masked() -> None:
    written = "schema_registry: { url: 'http://u:s3cret@r:8081', options: { basic.auth.user.info: 'u:s3cret', timeout: 3 } }"
    found = settings(GOOD.replace("stores:\n", f"{written}\nstores:\n"))
    assert found.schema_registry is not None
    assert found.schema_registry.place == "http://u:***@r:8081"
    shown = render(found)
    assert "s3cret" not in shown + repr(found)
    assert "basic.auth.user.info: '***'" in shown
    assert "timeout: '3'" in shown


def test_a_database_file_is_rendered_as_it_is() -> None:
    assert "database: sqlite:///gapwatch.db\n" in render(settings())


def test_every_variable_that_the_product_reads_is_known_to_the_configuration() -> None:
    read = {
        name
        for path in (ROOT / "app").rglob("*.py")
        for name in re.findall(r"environ(?:\.get\(|\[)\"GAPWATCH_([A-Z_]+)\"", path.read_text())
    }
    assert read
    assert read <= OTHER_VARIABLES


def test_a_file_that_is_missing_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: No such file or directory\. Name another one with --config\."):
        load(Path("no-such.yaml"), {})


def beside(source: str = "table: public.orders", extra: str = "", **first: str) -> str:
    """Return a file of two pipelines into one collection: the second reads `source`, and has `extra`; the first has `first`."""
    block = GOOD[GOOD.index("  orders:") :]
    given = "".join(f"    {name}: {value}\n" for name, value in first.items())
    second = block.replace("  orders:", "  returns:", 1).replace("table: public.orders", source)
    return GOOD + given + second + extra


@pytest.mark.parametrize("policy", ["extra: delete", "undeleted: auto", "undeleted: delete"])
def test_what_would_delete_another_pipelines_documents_is_refused(policy: str) -> None:
    (problem,) = problems(beside("table: public.returns", f"    repair: {{ {policy} }}\n"))
    assert "pipelines.returns.repair" in problem
    assert "Pipeline orders writes other rows into shop.orders" in problem
    assert "source.tables" in problem


def test_two_pipelines_on_one_target_are_taken_where_neither_deletes_the_others_documents() -> None:
    assert set(parse(beside("table: public.returns"), {}).pipelines) == {"orders", "returns"}
    assert parse(beside(extra="    repair: { extra: delete }\n"), {}).pipelines["returns"].repair.extra.value == "delete"


@pytest.mark.parametrize("port", ["\u00b2", "9" * 5_000, "\u0663"])
def test_a_port_that_is_no_number_is_a_problem_of_the_file(port: str) -> None:
    (problem,) = problems(f"api: {{ listen: '127.0.0.1:{port}' }}\n{GOOD}")
    assert "is no address. Write address:port" in problem


def test_a_size_of_thousands_of_digits_says_what_to_write() -> None:
    (problem,) = problems(GOOD.replace("grace: 5s", f"sweep: {{ batch: {{ bytes: '{'9' * 5_000}MiB' }} }}"))
    assert "512KiB or 5MiB" in problem
