"""A table as a target: what its configuration says, and what is wrong with it."""

from __future__ import annotations

import pytest

from gapwatch.config.load import parse
from gapwatch.config.render import render
from gapwatch.model.pipeline import FeedKind
from tests.unit.config.test_load import problems

GOOD = """
kafka: { bootstrap_servers: "localhost:9092" }
stores:
  shop: { type: postgres, dsn: "postgresql://app:s3cret@db/shop" }
  copy: { type: postgres, dsn: "postgresql://app:s3cret@db/copy" }
  catalog: { type: mongodb, uri: "mongodb://app:s3cret@mongo/" }
pipelines:
  orders:
    source: { store: shop, table: public.orders, key: { id: int }, feed: { debezium: shop.public.orders } }
    target: { store: copy, table: public.copies, key: { order_id: int }, feed: { debezium: copy.public.copies } }
    fields: { customer: customer }
    delivery: { group: sink }
"""


def test_a_table_is_the_target_of_another_one() -> None:
    found = parse(GOOD, {})
    target = found.pipelines["orders"].target
    assert (target.collection, target.feed.kind, target.feed.topic) == (
        "public.copies",
        FeedKind.DEBEZIUM,
        "copy.public.copies",
    )
    assert parse(render(found).replace("***", "s3cret"), {}).pipelines == found.pipelines
    alone = parse(GOOD.replace("{ debezium: copy.public.copies }", "none").replace("{ group: sink }", "none"), {})
    assert alone.pipelines["orders"].target.feed.kind is FeedKind.NONE


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("table: public.copies", "table: copies", "target.table: The table is needed with its schema."),
        ("table: public.copies", "collection: shop.copies", "target.collection: A postgres target has no `collection`."),
        (
            "table: public.copies",
            "table: public.copies, routing: customer",
            "target.routing: A postgres target has no `routing`.",
        ),
        ("debezium: copy.public.copies", "change_stream: true", "target.feed.change_stream: A target feed of kind change_stream"),
        (
            "debezium: copy.public.copies",
            "seq_no: true",
            "target.feed.seq_no: A target feed of kind seq_no",
        ),
        (
            "store: shop, table: public.orders, key: { id: int }, feed: { debezium: shop.public.orders }",
            "store: catalog, collection: shop.orders, key: { _id: int }, feed: { change_stream: true }",
            "source.store: A pipeline from mongodb to postgres is not supported yet.",
        ),
    ],
)
def test_what_a_table_as_a_target_cannot_be(old: str, new: str, expected: str) -> None:
    assert old in GOOD
    assert any(expected in problem for problem in problems(GOOD.replace(old, new, 1)))
