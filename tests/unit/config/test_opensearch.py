"""An OpenSearch store, and an index as a target: what is taken, and what is refused by name."""

from __future__ import annotations

import pytest

from gapwatch.config import parse, render
from gapwatch.core.search_address import SearchAddress
from gapwatch.model.pipeline import DeliverySpec, FeedKind, KeyType
from tests.unit.config.test_load import problems

GOOD = """\
kafka: { bootstrap_servers: "localhost:9092" }
topics: { prefix: watch }
stores:
  shop: { type: postgres, dsn: "postgresql://app:s3cret@db/shop" }
  search: { type: opensearch, hosts: ["https://one:9200", "https://two:9200"], user: app, password: "s3cret@:/", ca: ca.pem }
pipelines:
  orders:
    source: { store: shop, table: public.orders, key: { id: int }, feed: { debezium: shop.public.orders } }
    target: { store: search, index: orders, key: { _id: int }, feed: { seq_no: true }, routing: customer }
    fields: { customer: customer }
    grace: 5s
    delivery: { group: indexer }
"""


def test_an_index_is_a_target() -> None:
    found = parse(GOOD, {})
    target = found.pipelines["orders"].target
    assert (target.collection, target.routing, target.key[0].type) == ("orders", "customer", KeyType.INT)
    assert (target.feed.kind, target.feed.topic) == (FeedKind.SEQ_NO, "watch.feed.orders.target")
    address = SearchAddress.parse(found.stores["search"].url)
    assert (address.urls, address.user, address.password, address.ca) == (
        ("https://one:9200", "https://two:9200"),
        "app",
        "s3cret@:/",
        "ca.pem",
    )
    acks = parse(GOOD.replace("{ seq_no: true }", "{ acks: done.orders }"), {}).pipelines["orders"].target.feed
    assert (acks.kind, acks.topic) == (FeedKind.ACKS, "done.orders")
    assert parse(GOOD.replace("{ seq_no: true }", "none"), {}).pipelines["orders"].target.feed.kind is FeedKind.NONE


def test_h3_its_secrets_show_nowhere() -> None:
    found = parse(GOOD, {})
    assert "s3cret" not in repr(found)
    assert "s3cret" not in render(found)
    assert "s3cret" not in repr(SearchAddress.parse(found.stores["search"].url))
    keyed = parse(GOOD.replace('user: app, password: "s3cret@:/"', 'api_key: "s3cret=="'), {})
    assert "s3cret" not in render(keyed) + repr(keyed)
    assert SearchAddress.parse(keyed.stores["search"].url).api_key == "s3cret=="


def test_an_acks_topic_says_how_far_the_indexer_has_come() -> None:
    found = parse(GOOD.replace("{ group: indexer }", "{ acks: done.orders }"), {})
    assert found.pipelines["orders"].delivery == DeliverySpec(acks_topic="done.orders")
    assert parse(render(found).replace("***", "s3cret"), {}).pipelines == found.pipelines


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"https://one:9200"', '"https://app:pw@one:9200"', "stores.search.hosts.0: It is no address of a node."),
        ('"https://one:9200"', '"one"', "stores.search.hosts.0: It is no address of a node."),
        ('"https://one:9200"', '"http://one:9200"', "stores.search.hosts: Some hosts are reached with TLS, and some without."),
        ('hosts: ["https://one:9200", "https://two:9200"], ', "", "stores.search: `hosts` is missing."),
        ("user: app, ", "", "stores.search.user: `user` is missing."),
        ("ca: ca.pem", "ca: ca.pem, api_key: k", "stores.search.api_key: There is an account as well."),
        ("ca: ca.pem", "client_key: k.pem", "stores.search.client_key: A key without its certificate is of no use."),
        ("ca: ca.pem", "ca: ca.pem, uri: x", "stores.search.uri: An opensearch store has no `uri`."),
        ("ca: ca.pem", "ca: ca.pem, heartbeat: none", "stores.search.heartbeat: An opensearch store needs no heartbeat."),
        ("type: postgres, dsn", "type: postgres, user: x, dsn", "stores.shop.user: A postgres store has no `user`."),
        (
            "index: orders",
            "collection: shop.orders, index: orders",
            "target.collection: An opensearch target has no `collection`.",
        ),
        ("index: orders", "index: 'orders-*'", "target.index: It is no name of one index."),
        ("index: orders", "index: 'a,b'", "target.index: It is no name of one index."),
        ("index: orders, ", "", "target.index: It is missing."),
        ("key: { _id: int }", "key: { order: int }", "target.key: The key of an index is its _id"),
        ("{ seq_no: true }", "{ change_stream: true }", "target.feed.change_stream: An index is not followed by change_stream."),
        ("{ seq_no: true }", "{ acks: watch.events }", "target.feed.acks: This is one of Gapwatch's own topics."),
        ("{ seq_no: true }", "{ acks: a, seq_no: true }", "target.feed: A feed is exactly one thing."),
        ("routing: customer", "routing: region", "target.routing: `region` is no mapped field."),
        ("routing: customer", "keep: 30d", "target.keep: '30d' does not say how long, and from when."),
        ("{ group: indexer }", "{ acks: watch.events }", "delivery.acks: This is one of Gapwatch's own topics."),
        ("{ group: indexer }", "{ acks: done, group: indexer }", "delivery: It is one thing."),
        ("{ group: indexer }", "{ }", "delivery: It is one thing."),
        (
            "source: { store: shop, table",
            "source: { store: search, table",
            "source.store: A source of type opensearch is not supported",
        ),
    ],
)
def test_one_wrong_value_is_one_problem_that_names_it(old: str, new: str, expected: str) -> None:
    assert old in GOOD
    found = problems(GOOD.replace(old, new, 1))
    assert any(expected in problem for problem in found), found


MONGO = GOOD.replace(
    '{ type: postgres, dsn: "postgresql://app:s3cret@db/shop" }', '{ type: mongodb, uri: "mongodb://app:s3cret@db/" }'
).replace(
    "table: public.orders, key: { id: int }, feed: { debezium: shop.public.orders }",
    "collection: shop.orders, key: { _id: int }, feed: { change_stream: true }",
)


def test_a_collection_is_the_source_of_an_index() -> None:
    found = parse(MONGO, {})
    source = found.pipelines["orders"].source
    assert (source.table, source.feed.kind, source.feed.topic) == (
        "shop.orders",
        FeedKind.CHANGE_STREAM,
        "watch.feed.orders.source",
    )
    assert parse(render(found).replace("***", "s3cret"), {}).pipelines == found.pipelines


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("collection: shop.orders", "table: shop.orders", "source.table: A mongodb source has no `table`."),
        ("collection: shop.orders", "collection: orders", "source.collection: The collection is needed with its database."),
        ("change_stream: true", "debezium: shop.orders", "source.feed: A collection is followed by its change stream"),
        ("change_stream: true", "change_stream: true, debezium: a", "source.feed: A collection is followed by its change stream"),
    ],
)
def test_what_a_collection_as_a_source_cannot_be(old: str, new: str, expected: str) -> None:
    assert old in MONGO
    assert any(expected in problem for problem in problems(MONGO.replace(old, new, 1)))


def test_a_collection_is_the_target_of_another_one() -> None:
    index = "{ store: search, index: orders, key: { _id: int }, feed: { seq_no: true }, routing: customer }"
    assert index in MONGO
    copy = "{ store: shop, collection: shop.copy, key: { _id: int }, feed: { change_stream: true } }"
    target = parse(MONGO.replace(index, copy), {}).pipelines["orders"].target
    assert (target.collection, target.feed.kind, target.feed.topic) == (
        "shop.copy",
        FeedKind.CHANGE_STREAM,
        "watch.feed.orders.target",
    )


def test_bytes_have_no_form_in_an_id() -> None:
    found = problems(GOOD.replace("{ id: int }", "{ id: bytes }").replace("{ _id: int }", "{ _id: bytes }"))
    assert len(found) == 1
    assert "target.key._id: An _id is text" in found[0]


def test_h2_a_secret_does_not_travel_in_the_clear() -> None:
    plain = GOOD.replace("https://one:9200", "http://one:9200").replace("https://two:9200", "http://127.0.0.1:9200")
    found = problems(plain.replace(", ca: ca.pem", ""))
    assert len(found) == 1
    assert "stores.search.password: It would travel in the clear." in found[0]
    local = parse(plain.replace("http://one", "http://localhost").replace(", ca: ca.pem", ""), {})
    assert SearchAddress.parse(local.stores["search"].url).scheme == "http"
