"""The configuration: every problem at once, with its line and what to do; secrets nowhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import jsonschema
import pytest
import yaml

from gapwatch.config import json_schema, mask_url, parse, render
from gapwatch.errors import ConfigError
from gapwatch.model.pipeline import FeedKind, FeedSpec, FieldType, KeyType, Policy, Settings

ROOT = Path(__file__).parents[3]
GOOD = """\
kafka: { bootstrap_servers: "localhost:9092", options: { sasl.password: "hunter2" } }
topics: { prefix: watch, partitions: 4 }
stores:
  shop: { type: postgres, dsn: "postgresql://app:s3cret@db/shop", heartbeat: { auto: true, every: 250ms } }
  catalog: { type: mongodb, uri: "mongodb://app:s3cret@mongo/?replicaSet=rs0" }
pipelines:
  orders:
    source: { store: shop, table: public.orders, key: { id: int }, feed: { debezium: shop.public.orders } }
    target: { store: catalog, collection: shop.orders, key: { _id: int }, feed: { change_stream: true } }
    fields:
      customer: customer
      total: { from: amount, type: decimal, scale: 2, tolerance: 0.01 }
    grace: 5s
    delivery: { group: connect-orders }
"""


def problems(text: str, environ: Mapping[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, environ or {})
    return [str(problem) for problem in caught.value.problems]


def settings(text: str = GOOD, **environ: str) -> Settings:
    return parse(text, environ)


def test_a_good_file_is_resolved() -> None:
    orders = settings().pipelines["orders"]
    assert (orders.grace_seconds, orders.delivery.group) == (5.0, "connect-orders")
    assert orders.source.key[0].type is KeyType.INT
    assert (orders.target.feed.kind, orders.target.feed.topic) == (FeedKind.CHANGE_STREAM, "watch.feed.orders.target")
    assert [(field.target, field.source, field.type) for field in orders.fields] == [
        ("customer", "customer", FieldType.INFERRED),
        ("total", "amount", FieldType.DECIMAL),
    ]
    assert settings().stores["shop"].heartbeat.every_seconds == 0.25


def test_bad_input_malformed_yaml() -> None:
    assert problems("kafka: { bootstrap_servers: x\nstores: [") == [
        "line 2, the YAML, column 7: Not valid YAML: expected ',' or '}', but got ':'. Mend the syntax there."
    ]


def test_bad_input_unknown_key() -> None:
    assert problems(GOOD.replace("grace: 5s", "grase: 5s")) == [
        "line 13, pipelines.orders.grase: There is no such key. Did you mean `grace`?"
    ]


def test_bad_input_key_codec_mismatch() -> None:
    assert problems(GOOD.replace("key: { _id: int }", "key: { _id: text }")) == [
        "line 9, pipelines.orders.target.key._id: It is of type text, but its counterpart id at the source is of type int."
        " Give both the same type: keys are never coerced."
    ]


def test_k3_all_problems_are_listed_at_once() -> None:
    text = (
        GOOD.replace("grace: 5s", "grace: soon")
        .replace("partitions: 4", "partitions: many")
        .replace("type: mongodb", "type: mango")
        .replace('"localhost:9092"', '"${BROKERS}"')
    )
    found = problems(text)
    assert len(found) == 4
    assert (
        found[0]
        == "line 1, kafka.bootstrap_servers: The environment variable BROKERS is not set. Set it, or write ${BROKERS:-default}."
    )
    assert found[1].startswith("line 2, topics.partitions: ")
    assert found[2].startswith("line 5, stores.catalog.type: It should be 'postgres', 'mongodb' or 'opensearch'.")
    assert found[3] == ("line 13, pipelines.orders.grace: A duration is a number with a unit, like 250ms, 30s, 5m, 48h or 1d.")


def test_problems_that_need_two_keys_come_together_too() -> None:
    text = (
        GOOD.replace("store: shop,", "store: shoop,")
        .replace("    delivery: { group: connect-orders }\n", "    repair: { missing: delete }\n    sweep: { lookback: 48h }\n")
        .replace("table: public.orders", "table: orders")
    )
    found = problems(text)
    assert any("There is no store 'shoop'. Stores: catalog, shop." in problem for problem in found)
    assert any("A missing document cannot be deleted. Write report or auto." in problem for problem in found)
    assert any("pipelines.orders.delivery: It is missing: nobody says how far the sink has come" in problem for problem in found)
    assert any("pipelines.orders.sweep.lookback: Nobody says when a row was written last." in problem for problem in found)
    assert any("The table is needed with its schema." in problem for problem in found)


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        ("{ within: 5m }", "No sweep is scheduled"),
        ("{ every: 5m, within: 6m }", "The next sweep would be due before this one ends"),
    ],
)
def test_a_sweep_takes_its_time_only_between_two_scheduled_ones(sweep: str, said: str) -> None:
    assert any(f"pipelines.orders.sweep.within: {said}" in problem for problem in problems(GOOD + f"    sweep: {sweep}\n"))
    assert parse(GOOD + "    sweep: { every: 5m, within: 0s }\n", {}).pipelines["orders"].sweep.within_seconds == 0


def test_lookback_and_automatic_repair_are_read_with_their_limits_and_rendered_as_they_were() -> None:
    text = GOOD.replace("table: public.orders,", "table: public.orders, changed_at: updated_at,")
    text += "    sweep: { every: 30m, within: 10m, lookback: 48h }\n    evidence: values\n"
    text += "    repair: { missing: auto, extra: auto, max_attempts: 3, backoff: 10s, undo: undo }\n"
    made = parse(text, {})
    spec = made.pipelines["orders"]
    assert (spec.source.changed_at, spec.sweep.lookback_seconds, spec.sweep.full_every_seconds) == (
        "updated_at",
        172_800,
        604_800,
    )
    assert (spec.repair.missing, spec.repair.stale, spec.repair.extra) == (Policy.AUTO, Policy.REPORT, Policy.AUTO)
    assert (spec.repair.max_attempts, spec.repair.backoff_seconds, spec.sweep.within_seconds) == (3, 10.0, 600.0)
    again = parse(render(made), {})
    assert (again.pipelines["orders"].sweep, again.pipelines["orders"].repair) == (spec.sweep, spec.repair)
    assert again.pipelines["orders"].source.changed_at == "updated_at"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("collection: shop.orders,", "collection: shop.orders, routing: x,"),
        ("{ change_stream: true }", "{ acks: done }"),
    ],
)
def test_what_is_not_there_yet_is_refused_by_name_and_never_ignored(old: str, new: str) -> None:
    assert any("is not supported yet" in problem for problem in problems(GOOD.replace(old, new)))


def test_maintenance_windows_are_read_and_a_wrong_one_is_named_with_its_place() -> None:
    windows = '["0 2 * * sun for 2h", "2027-01-05T18:00:00Z/2027-01-05T20:00:00Z"]'
    made = parse(GOOD.replace("    grace: 5s", f"    grace: 5s\n    maintenance: {windows}"), {})
    assert made.pipelines["orders"].maintenance == ("0 2 * * sun for 2h", "2027-01-05T18:00:00Z/2027-01-05T20:00:00Z")
    assert parse(render(made), {}).pipelines["orders"].maintenance == made.pipelines["orders"].maintenance
    (problem,) = problems(GOOD.replace("    grace: 5s", '    grace: 5s\n    maintenance: ["sundays"]'))
    assert "pipelines.orders.maintenance.0: 'sundays' is no window: it is neither CRON for DURATION nor START/END." in problem


TABLES = "tables: [public.orders_eu, public.orders_us], topic_pattern: 'shop.{table}', key: { id: int }"


def several(*changes: tuple[str, str]) -> str:
    text = GOOD.replace("table: public.orders, key: { id: int }, feed: { debezium: shop.public.orders }", TABLES)
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


def test_m24_several_tables_have_a_topic_each() -> None:
    made = settings(several())
    spec = made.pipelines["orders"]
    assert [(one.source.table, one.source.feed.topic) for one in spec.by_table()] == [
        ("public.orders_eu", "shop.public.orders_eu"),
        ("public.orders_us", "shop.public.orders_us"),
    ]
    assert (spec.source.table, spec.source.name) == ("", "public.orders_eu, public.orders_us")
    assert parse(render(made), {}).pipelines["orders"].source == spec.source
    assert settings().pipelines["orders"].by_table() == (settings().pipelines["orders"],)


def test_a_transaction_topic_is_read_and_rendered_as_it_was() -> None:
    for text in (GOOD.replace("table: public.orders,", "table: public.orders, transactions: shop.transaction,"), several()):
        text = text if "transactions:" in text else several(("tables: [", "transactions: shop.transaction, tables: ["))
        spec = settings(text).pipelines["orders"]
        assert spec.source.transactions == "shop.transaction"
        assert parse(render(settings(text)), {}).pipelines["orders"].source == spec.source
    bad = problems(GOOD.replace("table: public.orders,", "table: public.orders, transactions: 'shop transaction',"))
    assert any("source.transactions: It is no name of a topic." in problem for problem in bad)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("tables: [", "table: a.b, tables: [", "source.table: There are several tables: `table` means only one."),
        (
            "key: { id: int }",
            "key: { id: int }, feed: { debezium: x }",
            "source.feed: There are several tables: `feed` means only",
        ),
        ("public.orders_us]", "orders_us]", "source.tables: 'orders_us': the table is needed with its schema."),
        ("public.orders_us]", "public.orders_eu]", "source.tables: 'public.orders_eu' stands there twice."),
        ("'shop.{table}'", "shop.orders", "source.topic_pattern: It does not say in which topic each table's changes come."),
        (
            ", topic_pattern: 'shop.{table}'",
            "",
            "source.topic_pattern: It does not say in which topic each table's changes come.",
        ),
        ("'shop.{table}'", "'shop {table}'", "source.topic_pattern: It is no name of a topic."),
        (", public.orders_us]", "]", "source.tables: "),
        (TABLES, "table: a.b, topic_pattern: '{table}', key: { id: int }, feed: { debezium: x }", "There is one table: its feed"),
        (TABLES, "table: a.b, key: { id: int }", "source.feed: A feed is exactly one thing."),
    ],
)
def test_bad_input_tables_and_their_topics(old: str, new: str, said: str) -> None:
    assert any(said in problem for problem in problems(several((old, new))))


def test_a_key_twice_is_refused() -> None:
    assert problems(GOOD + "topics: { prefix: other }\n") == [
        "line 15, topics: The key stands here a second time. Keep one of them."
    ]


def test_the_environment_wins_and_references_are_filled_in(tmp_path: Path) -> None:
    secret = tmp_path / "uri"
    secret.write_text("mongodb://from-a-file/\n")
    text = GOOD.replace('"mongodb://app:s3cret@mongo/?replicaSet=rs0"', f'"${{file:{secret}}}"').replace("5s", "${GRACE:-7s}")
    found = settings(text, GAPWATCH_KAFKA__BOOTSTRAP_SERVERS="broker:1", GAPWATCH_TOPICS__PARTITIONS="16")
    assert (found.bootstrap_servers, found.topics.partitions) == ("broker:1", 16)
    assert found.stores["catalog"].url == "mongodb://from-a-file/"
    assert found.pipelines["orders"].grace_seconds == 7.0
    assert settings(text, GRACE="9s").pipelines["orders"].grace_seconds == 9.0


@pytest.mark.parametrize(("word", "enabled"), [("false", False), ("true", True), ("no", False)])
def test_lesson_38_the_off_switch_switches_off(word: str, enabled: bool) -> None:
    text = GOOD.replace("    grace: 5s", f"    enabled: {word}\n    grace: 5s")
    assert settings(text).pipelines["orders"].enabled is enabled
    assert settings(GOOD, GAPWATCH_PIPELINES__ORDERS__ENABLED=word).pipelines["orders"].enabled is enabled


def test_documents_are_deleted_by_explicit_policy_only() -> None:
    assert settings().pipelines["orders"].repair.extra is Policy.REPORT
    text = GOOD.replace("    grace: 5s", "    repair: { extra: delete }\n    grace: 5s")
    assert settings(text).pipelines["orders"].repair.extra is Policy.DELETE
    assert "cannot be deleted" in problems(text.replace("extra:", "stale:"))[0]


def test_h3_secrets_are_shown_nowhere() -> None:
    found = settings()
    for shown in (render(found), repr(found), repr(found.stores)):
        assert "s3cret" not in shown
        assert "hunter2" not in shown
    assert "postgresql://app:***@db/shop" in render(found)
    assert mask_url("postgresql://h/d?password=x&a=b") == "postgresql://h/d?password=***&a=b"
    with pytest.raises(ConfigError) as caught:
        parse(GOOD.replace("type: postgres,", "type: mongodb,"), {})
    assert "s3cret" not in str(caught.value)


def test_the_published_schema_is_the_one_in_force_and_takes_the_good_file() -> None:
    published = json.loads((ROOT / "docs" / "gapwatch.schema.json").read_text())
    assert published == json_schema()
    jsonschema.validate(yaml.safe_load(GOOD), published)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(GOOD.replace("grace: 5s", "grase: 5s")), published)


def test_the_example_of_the_readme_is_valid() -> None:
    text = (ROOT / "README.md").read_text().split("```yaml\n")[1].split("```")[0]
    found = parse(text, {"SHOP_DSN": "postgresql://db/shop", "CATALOG_URI": "mongodb://mongo/?replicaSet=rs0"})
    assert found.pipelines["orders"].grace_seconds == 30.0
    with pytest.raises(ConfigError, match="The environment variable SHOP_DSN is not set") as caught:
        parse(text, {})
    assert len(caught.value.problems) == 2


def test_probes_are_served_where_the_file_or_the_environment_says() -> None:
    assert settings().probes_port == 0
    laid = settings(GAPWATCH_PROBES__LISTEN="0.0.0.0:8641")
    assert (laid.probes_host, laid.probes_port) == ("0.0.0.0", 8641)
    assert settings(GAPWATCH_PROBES__LISTEN="").probes_port == 0
    assert problems(GOOD, {"GAPWATCH_PROBES__LISTEN": "8641"}) == [
        "GAPWATCH_PROBES__LISTEN: probes.listen: '8641' is no address. Write address:port, like 127.0.0.1:8640."
    ]


@pytest.mark.parametrize(
    ("feed", "wrappers"),
    [("{ topic: orders }", ()), ("{ topic: orders, format: json, wrappers: [order, orders] }", ("order", "orders"))],
)
def test_a11_a_plain_topic_is_read_and_rendered_as_it_was(feed: str, wrappers: tuple[str, ...]) -> None:
    found = settings(GOOD.replace("{ debezium: shop.public.orders }", feed))
    source = found.pipelines["orders"].source
    assert source.feed == FeedSpec(kind=FeedKind.TOPIC, topic="orders", format="json", wrappers=wrappers)
    assert source.table == "public.orders"
    assert parse(render(found), {}).pipelines["orders"].source == source


def test_a11_a_target_may_be_followed_by_a_plain_topic() -> None:
    found = settings(GOOD.replace("feed: { change_stream: true }", "feed: { topic: written }"))
    assert found.pipelines["orders"].target.feed == FeedSpec(kind=FeedKind.TOPIC, topic="written", format="json")
