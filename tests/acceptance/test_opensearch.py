"""Postgres → Debezium → Kafka → an indexer → OpenSearch: by the ``_seq_no`` tail, the indexer's acks, and look-ups alone."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from gapwatch.embedded import EmbeddedStack, OpenSearchPart
from tests.acceptance.indexer import KINDS, OF_UPDATES, Fault, Indexer
from tests.acceptance.mirror import create_topic
from tests.acceptance.scenery import CREATE, FIELDS, TABLE, configuration
from tests.acceptance.service import Service, wait_for
from tests.acceptance.shared import (
    FOUND_WITHIN_SECONDS,
    at,
    create_database,
    during,
    gaps_of,
    is_at_rest,
    judged_after,
    now,
    number,
    record_at,
)
from tests.stack import ask, captured, execute

pytestmark = [pytest.mark.acceptance, pytest.mark.integration, pytest.mark.timeout(600)]

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
    """One table and its pipelines.

    ``orders`` is tailed, ``acked`` acknowledged; ``swept`` (routed) and ``versioned`` (external versions) are looked up alone;
    ``late`` has an index that is not there yet.
    """

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

    def places(self, pipeline: str) -> tuple[int, int]:
        """Return how many records the indexer's topic holds, and how many of them it has committed."""
        group, topic = self.indexers[pipeline].group, self.indexers[pipeline].topic
        consumer = Consumer({"bootstrap.servers": self.servers, "group.id": group, "enable.auto.commit": False})
        try:
            partitions = [TopicPartition(topic, one) for one in consumer.list_topics(topic, timeout=30).topics[topic].partitions]
            committed = consumer.committed(partitions, timeout=30)
            ends = [consumer.get_watermark_offsets(one, timeout=30)[1] for one in partitions]
            return sum(ends), sum(max(0, one.offset) for one in committed)
        finally:
            consumer.close()

    def passed(self, pipeline: str, written: int) -> bool:
        """Return whether ``written`` records have come from the source, and the indexer is through with all that there are."""
        end, committed = self.places(pipeline)
        return end >= written and committed >= end

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


def pipelines(stack: EmbeddedStack, node: OpenSearchPart, dsn: str, database: str) -> dict[str, Any]:
    config = configuration(stack, dsn, database, "")
    config["stores"]["search"] = {"type": "opensearch", "hosts": [node.url]}
    del config["stores"]["catalog"]
    source = config["pipelines"].pop("orders")["source"]
    feeds: dict[str, Any] = {"orders": {"seq_no": True}, "acked": {"acks": f"{database}.acks"}}
    deliveries: dict[str, Any] = {"late": "none", "acked": {"acks": f"{database}.acks"}}
    more = {"swept": {"routing": "v"}, "versioned": {"version": "_version"}}
    for name in ("orders", "acked", "swept", "versioned", "late"):
        target = {"store": "search", "index": f"{database}-{name}", "key": {"_id": "int"}, "feed": feeds.get(name, "none")}
        config["pipelines"][name] = {
            "source": {**source, "version": "seq"} if name == "versioned" else source,
            "target": target | more.get(name, {}),
            "fields": FIELDS,
            "grace": "2s",
            "delivery": deliveries.get(name, {"group": f"indexer-{database}-{name}"}),
            "evidence": "values",
            "repair": {"extra": "delete", "undeleted": "delete", "modes": ["direct", "debezium", "republish"]},
        }
    return config


@pytest.fixture
def scene(built: Search) -> Search:
    """With the two pipelines at rest that are observed: what one test writes comes to the indexes of all."""
    for pipeline in ("orders", "acked"):
        wait_for(partial(is_at_rest, built.service, pipeline), f"pipeline {pipeline} to be at rest", 120)
    return built


@pytest.fixture(scope="module")
def built(stack: EmbeddedStack, node: OpenSearchPart, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Search]:
    database = create_database(stack, f"search{number()}")
    dsn = stack.postgres.dsn(database)
    execute(dsn, CREATE, f"ALTER TABLE {TABLE} REPLICA IDENTITY FULL")
    execute(dsn, f"INSERT INTO {TABLE} (id, seq, v, amount) SELECT i, i, 'v' || i % 7, i + 0.5 FROM generate_series(1, {ROWS}) i")
    create_topic(stack.kafka.bootstrap_servers, f"{database}.acks", 1)
    create_topic(stack.kafka.bootstrap_servers, f"{database}.signals", 1)
    options = {
        "decimal.handling.mode": "string",
        "signal.enabled.channels": "source,kafka",
        "signal.kafka.topic": f"{database}.signals",
        "signal.kafka.bootstrap.servers": stack.kafka.bootstrap_servers,
        "read.only": "true",
    }
    with captured(stack, database, [TABLE], **options) as prefix:
        indexers = {}
        for name in ("orders", "acked", "swept", "versioned"):
            index = f"{database}-{name}"
            ask("PUT", f"{node.url}/{index}", {"settings": SETTINGS, "mappings": MAPPING})
            indexers[name] = Indexer(
                stack.kafka.bootstrap_servers,
                f"{prefix}.{TABLE}",
                f"indexer-{index}",
                node.url,
                index,
                routing="v" if name == "swept" else "",
                version="seq" if name == "versioned" else "",
                acks_topic=f"{database}.acks" if name == "acked" else "",
            )
        service = Service(tmp_path_factory.mktemp("search"), pipelines(stack, node, dsn, database))
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
    execute(scene.dsn, f"UPDATE {TABLE} SET seq = seq + 1, amount = 99 WHERE id = {key}")
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


def test_m19_what_the_acks_say_is_how_far_the_indexer_has_come(scene: Search) -> None:
    """While the indexer is away, its last word stands: what it has not reached is in transit, and no gap."""
    indexer, keys = scene.indexers["acked"], [number() for _ in range(5)]
    scene.proven("acked")  # what the test before wrote last would be in transit as well
    wait_for(lambda: scene.service.view("acked")["in_transit_keys"] == 0, "nothing to be in transit", 20)
    indexer.stop()
    scene.insert(*keys)
    wait_for(lambda: scene.service.view("acked")["in_transit_keys"] == len(keys), "what was written to be in transit", 20)
    during(6, lambda: _same(scene.gaps("acked", *keys), []))  # grace is two seconds
    assert scene.service.view("acked")["in_transit_keys"] == len(keys)
    indexer.faults[keys[0]] = Fault.LOST
    indexer.start()
    wait_for(lambda: scene.gaps("acked", *keys), "the gap of what it passed and did not write", 40)
    assert scene.gaps("acked", *keys) == [(keys[0], "missing", "never_written")]
    wait_for(lambda: scene.service.view("acked")["in_transit_keys"] == 0, "the status to say that nothing is", 20)
    assert scene.repair("acked", "missing")["counts"]["verified"] == 1
    scene.service.wait_healthy("acked")


@pytest.mark.parametrize("pipeline", ["orders", "acked"])
def test_a5_trap_34_a_row_deleted_at_the_source(scene: Search, pipeline: str) -> None:
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


def test_a3_a_lost_write_is_found_by_confirmation_reads_alone(scene: Search) -> None:
    """``feed: none``: what the source wrote is looked up once it is due, and no sweep is needed."""
    key, other = number(), number()
    before = scene.service.view("swept")["last_sweep"]
    scene.indexers["swept"].faults[key] = Fault.LOST
    scene.insert(key, other)
    [gap] = wait_for(lambda: gaps_of(scene.service, key, other, pipeline="swept"), "the gap", 30)
    assert (gap["key"], gap["kind"], gap["cause"], gap["detector"]) == ({"id": key}, "missing", "never_written", "stream")
    assert scene.service.view("swept")["last_sweep"] == before, "no sweep had a part in it"
    assert scene.repair("swept", "missing")["counts"]["verified"] == 1
    wait_for(lambda: not scene.gaps("swept", key), "the gap to be resolved", 30)


# what a bulk can do


def test_trap_29_every_way_in_which_a_bulk_can_fail_is_found_with_its_kind(scene: Search) -> None:
    """Whole bulks, items that are refused, older writes that come last, offsets before answers; and one that was sent again."""
    indexer, keys = scene.indexers["orders"], {fault: number() for fault in KINDS}
    scene.insert(*(keys[fault] for fault in OF_UPDATES))
    wait_for(lambda: all(scene.document("orders", keys[fault]) for fault in OF_UPDATES), "the documents")
    scene.proven("orders")
    before = len(indexer.refused)
    for fault, key in keys.items():  # one after the other: whole bulks are lost here
        indexer.faults[key] = fault
        end, _ = scene.places("orders")
        if fault in OF_UPDATES:
            execute(scene.dsn, f"UPDATE {TABLE} SET seq = seq + 1, amount = 99 WHERE id = {key}")
        else:
            scene.insert(key)
        wait_for(partial(scene.passed, "orders", end + 1), f"the indexer to have passed {fault}")
    wanted = {keys[fault]: kind for fault, kind in KINDS.items() if kind}

    def kinds() -> dict[int, str]:
        return {key: kind for key, kind, _ in scene.gaps("orders", *keys.values())}

    wait_for(lambda: kinds() == wanted, f"gaps {wanted}", 30)
    during(3, lambda: _same(kinds(), wanted))
    causes = {key: cause for key, _, cause in scene.gaps("orders", *keys.values())}
    assert {causes[keys[fault]] for fault, kind in KINDS.items() if kind == "missing"} == {"never_written"}
    refused = {"429", "413", "503", "retried", "document_missing_exception", "version_conflict_engine_exception"}
    assert set(indexer.refused[before:]) == refused
    indexer.faults.clear()
    assert scene.repair("orders", "missing,stale,mismatch")["counts"]["verified"] == len(wanted)
    scene.service.wait_healthy("orders")


def test_d15_b7_an_update_under_a_wrong_routing_makes_a_second_document(scene: Search) -> None:
    def wrong(key: int) -> str:
        return f"not-v{key % 7}-but-elsewhere"

    key = next(key for key in iter(number, 0) if scene.shard(wrong(key)) != scene.shard(f"v{key % 7}"))
    scene.insert(key)
    document = wait_for(lambda: scene.document("swept", key, f"v{key % 7}"), "the document")
    scene.indexers["swept"].faults[key] = Fault.MISROUTED
    execute(scene.dsn, f"UPDATE {TABLE} SET seq = seq + 1, amount = 7 WHERE id = {key}")
    [gap] = wait_for(lambda: gaps_of(scene.service, key, pipeline="swept"), "the gap", 30)
    assert gap["kind"] == "duplicate"
    _, shown = scene.command("gaps", "show", gap["id"])
    [read] = [row for row in shown["evidence"] if row["side"] == "target"]
    assert set(read["target_ids"]) == {f"{key} (routing v{key % 7})", f"{key} (routing {wrong(key)})"}, "both are listed"
    scene.indexers["swept"].faults.clear()
    ask("DELETE", f"{scene.node.url}/{scene.index('swept')}/_doc/{key}?routing={wrong(key)}")
    scene.put("swept", key, {**document, "seq": key + 1, "amount": 7}, routing=f"v{key % 7}")
    wait_for(lambda: not scene.gaps("swept", key), "the gap to be resolved", 40)


# many at once


def test_d4_d11_117_of_1967_are_written_and_no_other_sequence_number_moves(scene: Search) -> None:
    first = number()
    keys = [first, *(number() for _ in range(1_966))]
    lost = set(keys[::16][:117])
    assert len(lost) == 117
    scene.indexers["orders"].faults |= dict.fromkeys(lost, Fault.LOST)
    rows = f"SELECT i, i, 'v' || i % 7, i + 0.25 FROM generate_series({keys[0]}, {keys[-1]}) i"
    end, _ = scene.places("orders")
    execute(scene.dsn, f"INSERT INTO {TABLE} (id, seq, v, amount) {rows}")
    wait_for(partial(scene.passed, "orders", end + len(keys)), "the indexer to be through with all", 60)
    wait_for(lambda: {gap["key"]["id"] for gap in scene.service.gaps("orders")} == lost, "117 gaps", 60)
    scene.indexers["orders"].faults.clear()
    before = scene.sequence_numbers("orders")
    code, plans = scene.command("backfill", "plan", "orders", "--kinds", "missing")
    assert code == 0, plans
    assert scene.sequence_numbers("orders") == before, "a plan writes nothing"
    _, [run] = scene.command("backfill", "apply", plans[0]["id"], "--yes", "--wait")
    counts = {name: run["counts"][name] for name in ("planned", "written", "verified", "failed", "in_sync")}
    assert counts == {"planned": 117, "written": 117, "verified": 117, "failed": 0, "in_sync": 1}
    after = scene.sequence_numbers("orders")
    assert {name for name in after if after[name] != before.get(name)} == {str(key) for key in lost}
    assert before.keys() <= after.keys()
    scene.service.wait_healthy("orders")


@pytest.mark.parametrize("mode", ["direct", "debezium", "republish"])
def test_m8_each_mode_repairs_an_index(scene: Search, mode: str) -> None:
    keys = [number() for _ in range(17)]
    scene.indexers["orders"].faults |= dict.fromkeys(keys, Fault.LOST)
    scene.insert(*keys)
    wait_for(lambda: {key for key, *_ in scene.gaps("orders", *keys)} == set(keys), "the gaps", 30)
    scene.indexers["orders"].faults.clear()
    code, plans = scene.command("backfill", "plan", "orders", "--mode", mode)
    assert code == 0, plans
    code, [run] = scene.command("backfill", "apply", plans[0]["id"], "--yes", "--wait")
    assert (code, run["state"]) == (0, "succeeded"), run["error"]
    counts = {name: run["counts"][name] for name in ("planned", "written", "verified", "failed", "in_sync")}
    assert counts == {"planned": 17, "written": 17, "verified": 17, "failed": 0, "in_sync": 1}
    assert all(scene.document("orders", key) for key in keys)
    scene.service.wait_healthy("orders")


def test_d5_lesson_5_3_of_100_that_the_index_refuses_fail_alone(scene: Search) -> None:
    keys = [number() for _ in range(100)]
    refused = set(keys[10:13])
    scene.indexers["orders"].faults |= dict.fromkeys(keys, Fault.LOST)
    long = "repeat('x', 40000)"  # a keyword takes 32,766 bytes
    rows = f"SELECT i, i, CASE WHEN i IN ({', '.join(map(str, refused))}) THEN {long} ELSE 'v' END, 1"
    execute(scene.dsn, f"INSERT INTO {TABLE} (id, seq, v, amount) {rows} FROM generate_series({keys[0]}, {keys[-1]}) i")
    wait_for(lambda: len(scene.gaps("orders", *keys)) == 100, "100 gaps", 40)
    scene.indexers["orders"].faults.clear()
    run = scene.repair("orders", "missing")
    counts = {name: run["counts"][name] for name in ("written", "verified", "failed", "in_sync", "open_gaps_left")}
    assert counts == {"written": 97, "verified": 97, "failed": 3, "in_sync": 0, "open_gaps_left": 3}
    assert run["state"] == "failed"
    assert "3 documents failed" in run["error"]
    assert "xxx" not in run["error"], "a value has no place in it"
    assert {key for key, *_ in scene.gaps("orders", *keys)} == refused
    assert all((scene.document("orders", key) is None) == (key in refused) for key in keys)
    execute(scene.dsn, f"DELETE FROM {TABLE} WHERE id IN ({', '.join(map(str, refused))})")
    scene.service.wait_healthy("orders")


# versions from outside, and snapshots


def test_m4_b5_trap_30_an_index_restored_from_yesterday_is_stale_and_one_from_a_newer_copy_ahead(scene: Search) -> None:
    """A real snapshot is restored over the index; then the source is set back, so that the index has what is newer."""
    indexer, keys = scene.indexers["versioned"], [number() for _ in range(3)]
    scene.insert(*keys)
    wait_for(lambda: all(scene.document("versioned", key) for key in keys), "the documents")
    scene.service.wait_healthy("versioned")
    url, index = scene.node.url, scene.index("versioned")
    ask("PUT", f"{url}/_snapshot/kept", {"type": "fs", "settings": {"location": str(scene.node.repository)}})

    def snapshot(name: str) -> None:
        only = {"indices": index, "include_global_state": False}
        ask("PUT", f"{url}/_snapshot/kept/{name}?wait_for_completion=true", only)

    def restore(name: str) -> None:
        ask("POST", f"{url}/{index}/_close")
        only = {"indices": index, "include_global_state": False}
        ask("POST", f"{url}/_snapshot/kept/{name}/_restore?wait_for_completion=true", only)

    def swept() -> dict[int, dict[str, Any]]:
        code, runs = scene.command("sweep", "start", "versioned", "--content", "--wait")
        assert code in (0, 1), runs
        return {gap["key"]["id"]: gap for gap in gaps_of(scene.service, *keys, pipeline="versioned")}

    def versions(gap: dict[str, Any]) -> tuple[int, int]:
        _, shown = scene.command("gaps", "show", gap["id"])
        by_side = {row["side"]: row for row in shown["evidence"] if "version" in row}
        return by_side["source"]["version"], by_side["target"]["version"]

    snapshot("yesterday")
    execute(scene.dsn, f"UPDATE {TABLE} SET seq = seq + 1000000, amount = 7 WHERE id = {keys[0]}")
    wait_for(lambda: (scene.document("versioned", keys[0]) or {}).get("seq") == keys[0] + 1_000_000, "the update")
    scene.service.wait_healthy("versioned")
    snapshot("today")
    restore("yesterday")
    found = swept()
    assert {key: gap["kind"] for key, gap in found.items()} == {keys[0]: "stale"}
    assert versions(found[keys[0]]) == (keys[0] + 1_000_000, keys[0])
    restore("today")
    wait_for(lambda: not scene.gaps("versioned", *keys), "the gap to be resolved", 40)

    refused = len(indexer.refused)
    execute(scene.dsn, f"UPDATE {TABLE} SET seq = 5, amount = 8 WHERE id = {keys[1]}")
    found = wait_for(swept, "the gap", 30)
    assert {key: gap["kind"] for key, gap in found.items()} == {keys[1]: "ahead"}
    assert versions(found[keys[1]]) == (5, keys[1])
    assert indexer.refused[refused:] == ["version_conflict_engine_exception"], "the index took it for an old write"
    execute(scene.dsn, f"UPDATE {TABLE} SET seq = {keys[1]}, amount = {keys[1]}.25 WHERE id = {keys[1]}")
    wait_for(lambda: not scene.gaps("versioned", *keys), "the gap to be resolved", 40)
    scene.service.wait_healthy("versioned")


def test_b5_a_stale_document_is_listed_with_both_versions_and_how_long_it_is_behind(scene: Search) -> None:
    key = number()
    scene.insert(key)
    wait_for(lambda: scene.document("versioned", key), "the document")
    scene.indexers["versioned"].faults[key] = Fault.LOST
    execute(scene.dsn, f"UPDATE {TABLE} SET seq = seq + 1 WHERE id = {key}")
    [gap] = wait_for(lambda: gaps_of(scene.service, key, pipeline="versioned"), "the gap", 30)
    assert gap["kind"] == "stale"
    _, shown = scene.command("gaps", "show", gap["id"])
    read = {row["side"]: row for row in shown["evidence"] if "read" in row}
    assert (read["source"]["version"], read["target"]["version"]) == (key + 1, key)
    behind = (at(read["target"]["time"]) - at(gap["event_time"])).total_seconds()
    assert read["target"]["behind_seconds"] == pytest.approx(behind, abs=0.01)
    assert behind > 2, "longer than grace"
    scene.indexers["versioned"].faults.clear()
    assert scene.repair("versioned", "stale")["counts"]["verified"] == 1
    scene.service.wait_healthy("versioned")


def test_trap_31_a_late_versioned_write_brings_a_deleted_document_back_once_its_deletion_is_forgotten(scene: Search) -> None:
    key, index = number(), scene.index("versioned")
    ask("PUT", f"{scene.node.url}/{index}/_settings", {"index.gc_deletes": "1h"})
    scene.insert(key)
    document = wait_for(lambda: scene.document("versioned", key), "the document")
    late = f"{scene.node.url}/{index}/_doc/{key}?version={key}&version_type=external"
    execute(scene.dsn, f"DELETE FROM {TABLE} WHERE id = {key}")
    wait_for(lambda: scene.document("versioned", key) is None, "the indexer to delete the document")
    with pytest.raises(urllib.error.HTTPError) as refused:
        ask("PUT", late, document)
    refused.value.close()
    assert refused.value.code == 409, "as long as it is known"
    ask("PUT", f"{scene.node.url}/{index}/_settings", {"index.gc_deletes": "0s"})

    def taken() -> bool:
        ask("POST", f"{scene.node.url}/{index}/_refresh")
        try:
            ask("PUT", late, document)
        except urllib.error.HTTPError as error:
            error.close()
            return False
        return True

    wait_for(taken, "the deletion to be forgotten", 90)
    _, runs = scene.command("sweep", "start", "versioned", "--wait")
    assert runs[0]["state"] == "succeeded", runs
    [(_, kind, _)] = wait_for(lambda: scene.gaps("versioned", key), "the gap", 30)
    assert kind in ("undeleted", "extra")
    scene.repair("versioned", "extra,undeleted")
    assert scene.document("versioned", key) is None
    scene.service.wait_healthy("versioned")


def test_trap_43_an_index_that_is_missing_and_created_empty_later_is_never_equal(scene: Search) -> None:
    late = scene.index("late")
    assert scene.service.view("late")["status"] not in ("HEALTHY", "WARNING")
    assert scene.service.view("late")["consistent_through"] is None
    code, runs = scene.command("sweep", "start", "late", "--wait")
    assert code in (2, 3), runs  # inconclusive; or the one that started by itself is under way
    ask("PUT", f"{scene.node.url}/{late}", {"settings": SETTINGS, "mappings": MAPPING})

    def swept() -> bool:
        code, runs = scene.command("sweep", "start", "late", "--wait")
        assert code != 0, runs
        return code == 1

    wait_for(swept, "a sweep of the empty index", 90)
    gaps = wait_for(lambda: found if len(found := scene.service.gaps("late")) >= ROWS else None, "every row to be missing", 60)
    assert {gap["kind"] for gap in gaps} == {"missing"}
    assert scene.service.view("late")["status"] not in ("HEALTHY", "WARNING")
    scene.command("pipelines", "pause", "late")


def _same(found: object, expected: object) -> None:
    assert found == expected, json.dumps(found, default=str)
