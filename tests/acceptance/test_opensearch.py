"""Postgres → Debezium → Kafka → an indexer → OpenSearch: by the ``_seq_no`` tail, by the indexer's acks, and by sweeps alone."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from gapwatch.embedded import EmbeddedStack, OpenSearchPart
from tests.acceptance.indexer import Fault, Indexer
from tests.acceptance.mirror import create_topic
from tests.acceptance.scenery import CREATE, FIELDS, TABLE, configuration
from tests.acceptance.service import Service, wait_for
from tests.acceptance.shared import (
    FOUND_WITHIN_SECONDS,
    at,
    create_database,
    during,
    gaps_of,
    judged_after,
    now,
    number,
    record_at,
)
from tests.stack import ask, captured, execute

pytestmark = [pytest.mark.acceptance, pytest.mark.integration, pytest.mark.timeout(300)]

ROWS = 200
SETTINGS = {"number_of_shards": 3, "number_of_replicas": 0}
MAPPING = {
    "dynamic": "strict",
    "properties": {
        "seq": {"type": "long"},
        "v": {"type": "keyword"},
        "amount": {"type": "scaled_float", "scaling_factor": 100},
        "big": {"type": "text"},
    },
}


@dataclass
class Search:
    """One table and three pipelines: ``orders`` is tailed, ``acked`` acknowledged, ``swept`` (routed) seen by sweeps alone."""

    node: OpenSearchPart
    dsn: str
    service: Service
    indexers: dict[str, Indexer]
    prefix: str
    servers: str

    def insert(self, *keys: int) -> None:
        for key in keys:
            execute(self.dsn, f"INSERT INTO {TABLE} (id, seq, v, amount) VALUES ({key}, {key}, 'v{key % 7}', {key}.25)")

    def index(self, pipeline: str) -> str:
        return f"{self.prefix}-{pipeline}"

    def document(self, pipeline: str, key: int, routing: str = "") -> dict[str, Any] | None:
        query = f"?routing={routing}" if routing else ""
        try:
            found = ask("GET", f"{self.node.url}/{self.index(pipeline)}/_doc/{key}{query}")
        except urllib.error.HTTPError as error:
            error.close()
            if error.code != 404:
                raise
            return None
        return dict(found["_source"])

    def put(self, pipeline: str, key: int, document: dict[str, Any], routing: str = "") -> None:
        query = f"?routing={routing}" if routing else ""
        ask("PUT", f"{self.node.url}/{self.index(pipeline)}/_doc/{key}{query}", document)

    def gaps(self, pipeline: str, *keys: int) -> list[tuple[int, str, str]]:
        return [(gap["key"]["id"], gap["kind"], gap["cause"]) for gap in gaps_of(self.service, *keys, pipeline=pipeline)]

    def shard(self, routing: str) -> int:
        found = ask("GET", f"{self.node.url}/{self.index('swept')}/_search_shards?routing={routing}")
        return int(found["shards"][0][0]["shard"])

    def proven(self, pipeline: str) -> None:
        """Return when every write until now was proven to be at the target."""
        begun = now()

        def through() -> bool:
            text = self.service.view(pipeline)["consistent_through"]
            return text is not None and at(text) > begun

        wait_for(through, f"{pipeline} to be consistent through {begun}", 40)

    def sequence_numbers(self, pipeline: str) -> dict[str, int]:
        ask("POST", f"{self.node.url}/{self.index(pipeline)}/_refresh")
        body = {"size": 5_000, "seq_no_primary_term": True, "_source": False}
        hits = ask("POST", f"{self.node.url}/{self.index(pipeline)}/_search", body)["hits"]["hits"]
        return {hit["_id"]: hit["_seq_no"] for hit in hits}

    def command(self, *arguments: str) -> tuple[int, Any]:
        return self.service.answer(*arguments)

    def repair(self, pipeline: str, kinds: str) -> dict[str, Any]:
        code, plans = self.command("backfill", "plan", pipeline, "--kinds", kinds)
        assert code == 0, plans
        _, runs = self.command("backfill", "apply", plans[0]["id"], "--yes", "--wait")
        run: dict[str, Any] = runs[0]
        return run


@pytest.fixture(scope="module")
def node() -> Iterator[OpenSearchPart]:
    with EmbeddedStack(parts=("opensearch",)) as running:
        yield running.opensearch


def three_pipelines(stack: EmbeddedStack, node: OpenSearchPart, dsn: str, database: str) -> dict[str, Any]:
    config = configuration(stack, dsn, database, "")
    config["stores"]["search"] = {"type": "opensearch", "hosts": [node.url]}
    del config["stores"]["catalog"]
    source = config["pipelines"].pop("orders")["source"]
    feeds: dict[str, Any] = {"orders": {"seq_no": True}, "acked": {"acks": f"{database}.acks"}, "swept": "none"}
    for name, feed in feeds.items():
        target = {"store": "search", "index": f"{database}-{name}", "key": {"_id": "int"}, "feed": feed}
        config["pipelines"][name] = {
            "source": source,
            "target": {**target, "routing": "v"} if name == "swept" else target,
            "fields": FIELDS,
            "grace": "2s",
            "delivery": {"group": f"indexer-{database}-{name}"},
            "evidence": "values",
            "repair": {"extra": "delete", "undeleted": "delete"},
        }
    return config


@pytest.fixture(scope="module")
def scene(stack: EmbeddedStack, node: OpenSearchPart, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Search]:
    database = create_database(stack, f"search{number()}")
    dsn = stack.postgres.dsn(database)
    execute(dsn, CREATE, f"ALTER TABLE {TABLE} REPLICA IDENTITY FULL")
    execute(dsn, f"INSERT INTO {TABLE} (id, seq, v, amount) SELECT i, i, 'v' || i % 7, i + 0.5 FROM generate_series(1, {ROWS}) i")
    create_topic(stack.kafka.bootstrap_servers, f"{database}.acks", 1)
    with captured(stack, database, [TABLE], **{"decimal.handling.mode": "string"}) as prefix:
        indexers = {}
        for name in ("orders", "acked", "swept"):
            index = f"{database}-{name}"
            ask("PUT", f"{node.url}/{index}", {"settings": SETTINGS, "mappings": MAPPING})
            indexers[name] = Indexer(
                stack.kafka.bootstrap_servers,
                f"{prefix}.{TABLE}",
                f"indexer-{index}",
                node.url,
                index,
                routing="v" if name == "swept" else "",
                acks_topic=f"{database}.acks" if name == "acked" else "",
            )
        service = Service(tmp_path_factory.mktemp("search"), three_pipelines(stack, node, dsn, database))
        for indexer in indexers.values():
            indexer.start()
        try:
            service.start()
            for name in indexers:
                service.wait_healthy(name, 120)
            yield Search(node, dsn, service, indexers, database, stack.kafka.bootstrap_servers)
            service.check_alive()
        finally:
            for indexer in indexers.values():
                indexer.stop()
            service.stop()


def test_b1_d5_a_lost_write_is_found_repaired_and_verified(scene: Search) -> None:
    key, other = number(), number()
    scene.indexers["orders"].faults[key] = Fault.LOST
    scene.insert(key, other)
    gaps = wait_for(lambda: gaps_of(scene.service, key, other, pipeline="orders"), "the gap", 30)
    assert [(gap["key"], gap["kind"], gap["cause"], gap["state"]) for gap in gaps] == [
        ({"id": key}, "missing", "never_written", "open")
    ]
    seen = [row for row in gaps[0]["evidence"] if row.get("topic")]
    assert (seen[0]["topic"], seen[0]["side"]) == (f"{scene.prefix}.{TABLE}", "expected")
    view = scene.service.view("orders")
    assert view["status"] == "ERROR"
    assert at(view["consistent_through"]) <= at(gaps[0]["event_time"])

    before = scene.sequence_numbers("orders")
    run = scene.repair("orders", "missing")
    assert (run["state"], run["counts"]["written"], run["counts"]["verified"]) == ("succeeded", 1, 1)
    repaired = scene.document("orders", key)
    assert repaired == {"seq": key, "v": f"v{key % 7}", "amount": float(f"{key}.25"), "big": None}
    after = scene.sequence_numbers("orders")
    assert {name for name in after if after[name] != before.get(name)} == {str(key)}, "only what was missing is written"
    assert wait_for(lambda: not gaps_of(scene.service, key, pipeline="orders"), "the gap to be resolved", 30)
    [closed] = gaps_of(scene.service, key, pipeline="orders", state="resolved")
    assert closed["resolution"] == "backfilled"
    scene.service.wait_healthy("orders")


@pytest.mark.parametrize("pipeline", ["orders", "acked"])
def test_a3_trap_29_a_rejected_item_opens_a_gap_and_the_others_are_observed(scene: Search, pipeline: str) -> None:
    keys = [number() for _ in range(5)]
    indexer = scene.indexers[pipeline]
    indexer.faults[keys[2]] = Fault.REJECTED
    before = len(indexer.refused)
    scene.insert(*keys)
    wait_for(lambda: scene.gaps(pipeline, *keys), "the gap", 30)
    assert indexer.refused[before:] == ["mapper_parsing_exception"]
    cause = "rejected" if pipeline == "acked" else "never_written"  # a tail shows what is there, and no refusals
    assert scene.gaps(pipeline, *keys) == [(keys[2], "missing", cause)]
    during(4, lambda: _same(scene.gaps(pipeline, *keys), [(keys[2], "missing", cause)]))
    assert scene.repair(pipeline, "missing")["counts"]["verified"] == 1
    scene.service.wait_healthy(pipeline)


def test_m2_a_refused_update_is_rejected_and_its_ack_is_the_evidence(scene: Search) -> None:
    key, indexer = number(), scene.indexers["acked"]
    scene.insert(key)
    wait_for(lambda: scene.document("acked", key), "the document")
    scene.proven("acked")
    indexer.faults[key] = Fault.REJECTED
    execute(scene.dsn, f"UPDATE {TABLE} SET v = 'newer' WHERE id = {key}")
    [gap] = wait_for(lambda: gaps_of(scene.service, key, pipeline="acked"), "the gap", 30)
    assert (gap["kind"], gap["cause"]) == ("stale", "rejected")
    _, shown = scene.command("gaps", "show", gap["id"])
    [said] = [row for row in shown["evidence"] if row["side"] == "sink"]
    assert (said["operation"], said["reason"]) == ("rejected", "400 mapper_parsing_exception")
    ack = json.loads(record_at(scene.servers, said).value() or b"")
    assert (ack["op"], ack["id"], ack["error"]) == ("rejected", str(key), "mapper_parsing_exception")
    del indexer.faults[key]
    assert scene.repair("acked", "stale,mismatch")["counts"]["verified"] == 1
    scene.service.wait_healthy("acked")


def test_b5_d3_a_wrong_value_is_named_with_its_field_and_made_right(scene: Search) -> None:
    key = number()
    scene.indexers["orders"].faults[key] = Fault.FALSIFIED
    scene.insert(key)
    [gap] = wait_for(lambda: gaps_of(scene.service, key, pipeline="orders"), "the gap", 30)
    assert (gap["kind"], gap["fields"]) == ("mismatch", ["v"])
    scene.repair("orders", "mismatch,stale")
    document = scene.document("orders", key)
    assert document is not None
    assert document["v"] == f"v{key % 7}"
    scene.service.wait_healthy("orders")


def test_m13_a_direct_write_at_the_target_is_out_of_band(scene: Search) -> None:
    key = number()
    scene.insert(key)
    document = wait_for(lambda: scene.document("orders", key), "the document")
    scene.proven("orders")  # the tail shows a document as it is, twice a second: it must have shown this one as it was
    scene.put("orders", key, {**document, "v": "by hand"})
    wait_for(lambda: scene.gaps("orders", key), "the gap", 30)
    assert scene.gaps("orders", key) == [(key, "mismatch", "out_of_band")]
    [gap] = gaps_of(scene.service, key, pipeline="orders")
    assert gap["detector"] == "stream"
    assert judged_after(gap) <= FOUND_WITHIN_SECONDS
    scene.repair("orders", "mismatch,stale")
    assert scene.document("orders", key) == {**document, "amount": float(document["amount"])}
    scene.service.wait_healthy("orders")


def test_b6_a_document_that_nobody_wrote_is_extra_and_deleted_by_policy(scene: Search) -> None:
    key = number()
    scene.put("orders", key, {"seq": 1, "v": "stranger", "amount": 1, "big": None})
    gaps = wait_for(lambda: scene.gaps("orders", key), "the gap", 30)
    assert gaps == [(key, "extra", "out_of_band")]
    scene.repair("orders", "extra")
    assert scene.document("orders", key) is None
    scene.service.wait_healthy("orders")


@pytest.mark.parametrize("pipeline", ["orders", "acked"])
def test_a5_a_row_deleted_at_the_source(scene: Search, pipeline: str) -> None:
    kept, gone = number(), number()
    scene.insert(kept, gone)
    wait_for(lambda: all(scene.document(pipeline, key) for key in (kept, gone)), "both documents")
    scene.indexers[pipeline].faults[kept] = Fault.LOST
    execute(scene.dsn, f"DELETE FROM {TABLE} WHERE id IN ({kept}, {gone})")
    gaps = wait_for(lambda: scene.gaps(pipeline, kept, gone), "the gap", 30)
    assert [gap[:2] for gap in gaps] == [(kept, "undeleted")]
    during(4, lambda: _same([gap[:2] for gap in scene.gaps(pipeline, kept, gone)], [(kept, "undeleted")]))
    scene.repair(pipeline, "undeleted")
    assert scene.document(pipeline, kept) is None
    scene.service.wait_healthy(pipeline)


def test_trap_31_a_document_that_comes_back_after_its_deletion_is_found(scene: Search) -> None:
    """A deletion's version is forgotten after a minute; an older write that is late then stands as if it were new."""
    key = number()
    scene.insert(key)
    document = wait_for(lambda: scene.document("orders", key), "the document")
    execute(scene.dsn, f"DELETE FROM {TABLE} WHERE id = {key}")
    wait_for(lambda: scene.document("orders", key) is None, "the document to go")
    scene.proven("orders")
    assert scene.gaps("orders", key) == []
    scene.put("orders", key, document)
    [(_, kind, cause)] = wait_for(lambda: scene.gaps("orders", key), "the gap", 30)
    assert (kind, cause) in (("undeleted", "resurrected"), ("extra", "out_of_band"))
    scene.repair("orders", "extra,undeleted")
    assert scene.document("orders", key) is None
    scene.service.wait_healthy("orders")


def test_a7_an_item_that_was_sent_twice_is_no_gap(scene: Search) -> None:
    key = number()
    scene.indexers["orders"].faults[key] = Fault.TWICE
    scene.insert(key)
    wait_for(lambda: scene.document("orders", key), "the document")
    during(5, lambda: _same(scene.gaps("orders", key), []))
    scene.service.wait_healthy("orders")
    assert scene.gaps("orders", key) == []


def test_d1_d15_b7_a_sweep_of_routed_documents_names_what_differs(scene: Search) -> None:
    lost, wrong, stranger = number(), number(), number()
    scene.indexers["swept"].faults |= {lost: Fault.LOST, wrong: Fault.FALSIFIED}
    scene.insert(lost, wrong)
    scene.put("swept", stranger, {"seq": 1, "v": "x", "amount": 1, "big": None}, routing="elsewhere")
    twin = next(word for word in "abcdefgh" if scene.shard(word) != scene.shard("v1"))
    scene.put("swept", 1, {"seq": 1, "v": "v1", "amount": 1.5, "big": None}, routing=twin)
    wait_for(lambda: scene.document("swept", wrong, "false") or scene.document("swept", wrong, f"v{wrong % 7}"), "the document")
    _, runs = scene.command("sweep", "start", "swept", "--content", "--wait")
    assert runs[0]["state"] == "succeeded", runs
    found = wait_for(lambda: len(scene.gaps("swept", lost, wrong, stranger, 1)) == 4 and True, "the gaps", 30)
    assert found
    kinds = {gap["key"]["id"]: gap["kind"] for gap in gaps_of(scene.service, lost, wrong, stranger, 1, pipeline="swept")}
    assert kinds == {lost: "missing", wrong: "mismatch", stranger: "extra", 1: "duplicate"}
    run = scene.repair("swept", "missing,extra,mismatch")
    assert run["counts"]["verified"] >= 2, run
    assert scene.document("swept", lost, f"v{lost % 7}") is not None
    assert scene.document("swept", stranger, "elsewhere") is None, "it is deleted under the routing that it has"


def _same(found: object, expected: object) -> None:
    assert found == expected, json.dumps(found, default=str)
