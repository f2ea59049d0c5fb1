"""The same as ``test_under_fire``, into an index: it refuses items, hangs, and its only node is killed while both sides change.

Everybody reaches the node through a recorder, whose notes are read afterwards for what the repair did to every document, and held
against its audit and its plans. The short form runs in CI; ``--soak`` does it with 200,000 documents and 500 writes a second, and
once more with two nodes, of which one is killed that holds primaries.
"""

from __future__ import annotations

import signal
import time
import urllib.error
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest
from confluent_kafka import Message, Producer

from gapwatch.embedded import EmbeddedStack, OpenSearchPart
from gapwatch_connectors.opensearch.connection import encode
from tests.acceptance import fire
from tests.acceptance.accounts import Shown, accounted, never_back, read_audit, within_plans
from tests.acceptance.copier import decode
from tests.acceptance.fire import HEALED_SECONDS, REFUSED, REFUSED_OF, Length, State, Writer, differing, is_lost
from tests.acceptance.indexer import Indexer
from tests.acceptance.recorder import CONFLICT, TOO_MANY, Item, Recorder, Sender, Span
from tests.acceptance.scenery import TABLE, configuration
from tests.acceptance.service import EVERY_ROLE, Service, wait_for
from tests.acceptance.test_opensearch import MAPPING, SETTINGS
from tests.stack import ask, captured, until

pytestmark = [pytest.mark.long, pytest.mark.acceptance, pytest.mark.integration, pytest.mark.timeout(2_400)]

PATIENT_SECONDS = 120  # the sink waits longer than the index ever hangs, so that no older bulk of its own comes late
START_SECONDS = 300
PAGE = 5_000
OVERTAKEN = 20  # rows that change, or go, while a write of their documents is on its way

SHORT = Length(rows=2_000, rate=60, seconds=14, grace="2s", away=3, hangs=4)
LONG = Length(rows=200_000, rate=500, seconds=300, grace="10s", away=20, hangs=40)  # longer than Gapwatch waits for an answer


@dataclass
class Tolerant(Indexer):
    """A sink that loses some of what it is to write, and passes over what the index refuses."""

    def _index(self, producer: Producer, messages: Sequence[Message]) -> None:
        changes = [change for change in map(decode, messages) if change is not None and not is_lost(change.seq)]
        last = {change.key: change for change in changes}  # a bulk that was not answered is sent again, whole
        body = b"".join(encode(line) + b"\n" for change in last.values() for line in self._lines(change))
        while body and not self._stop.is_set():
            errors = self._sent(body)
            if errors is not None and all(one["type"] == "es_rejected_execution_exception" for one in errors):
                self.refused += [one["type"] for one in errors]
                return
            time.sleep(0.3)

    def _sent(self, body: bytes) -> list[Any] | None:
        """Return the errors of a bulk's items; None where it was not answered."""
        try:
            answer = ask("POST", f"{self.url}/_bulk", body, PATIENT_SECONDS)
        except urllib.error.HTTPError as error:
            error.close()
            return None
        except (OSError, HTTPException):
            return None
        return [said["error"] for item in answer["items"] for said in item.values() if "error" in said]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("nodes", [1, 2] if metafunc.config.getoption("--soak") else [1], indirect=True, ids="nodes={}".format)


@pytest.fixture
def nodes(request: pytest.FixtureRequest) -> Iterator[list[OpenSearchPart]]:
    """The nodes of a cluster of its own, each a process; everybody talks to the first one."""
    with EmbeddedStack(parts=("opensearch",)) as running:
        yield [running.opensearch, *(running.add_opensearch_node() for _ in range(1, request.param))]


def test_sweep_and_repair_of_an_index_under_fire(
    stack: EmbeddedStack, nodes: list[OpenSearchPart], postgres_database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    length = fire.length_of(request.config, short=SHORT, long=LONG)
    dsn, database, node = stack.postgres.dsn(postgres_database), postgres_database, nodes[0]
    index, group = f"{database}-orders", f"indexer-{database}"
    fire.create(dsn, length)
    create(nodes, index)
    with (
        Recorder(node.host, node.port) as recorder,
        captured(stack, database, [TABLE], **{"decimal.handling.mode": "string"}) as prefix,
    ):
        sink = Tolerant(stack.kafka.bootstrap_servers, f"{prefix}.{TABLE}", group, recorder.url(Sender.SINK), index)
        service = Service(tmp_path, config_of(stack, dsn, database, recorder.url(Sender.GAPWATCH), index, group, length))
        writer = Writer(dsn, length.rows, length.rate)
        scene = Fire(recorder, nodes, index, service, dsn, length)
        sink.start()
        try:
            wait_for(lambda: count(node, index) >= length.rows * 0.97, "the rows to be copied", 600)
            half(recorder.url(Sender.SINK), index, length.rows)
            recorder.refuses = is_refused
            service.start(EVERY_ROLE)
            writer.start()
            fire.burn(length, scene.blows())
            service.check_alive()
            recorder.refuses = lambda _: False
            writer.stop()
            began = time.monotonic()
            wait_for(lambda: differing(dsn, documents(node, index)) == {}, "both stores to be equal", HEALED_SECONDS)
            healed = time.monotonic() - began
            wait_for(lambda: not service.gaps(), "the gaps to be resolved", 120)
            assert differing(dsn, documents(node, index)) == {}
            judged = examine(recorder.items, documents(node, index), tmp_path / "gapwatch.db", scene.lost_us)
            assert judged["writes"] >= length.rows * 0.1, judged
            print(f"healed after {healed:.0f} s; {writer.writes} writes at the source; {judged}")
        finally:
            writer.stop()
            sink.stop()
            service.stop()


def create(nodes: Sequence[OpenSearchPart], index: str) -> None:
    """Create the index, with a copy of each shard on every node; the last of several nodes has some of the primaries."""
    settings = SETTINGS | {"number_of_replicas": len(nodes) - 1}
    ask("PUT", f"{nodes[0].url}/{index}", {"settings": settings, "mappings": MAPPING})
    until(lambda: nodes[0].get(f"/_cluster/health/{index}")["status"] == "green", "every copy of the index")
    assert nodes[-1].name in primaries(nodes[0], index)


def primaries(node: OpenSearchPart, index: str) -> set[str]:
    """Return the names of the nodes that hold primaries."""
    shards = node.get(f"/_cat/shards/{index}?format=json&h=prirep,state,node")
    return {shard["node"] for shard in shards if (shard["prirep"], shard["state"]) == ("p", "STARTED")}


def config_of(stack: EmbeddedStack, dsn: str, database: str, url: str, index: str, group: str, length: Length) -> dict[str, Any]:
    target = {"store": "search", "index": index, "key": {"_id": "int"}, "feed": {"seq_no": True}}
    config = configuration(stack, dsn, database, group, **fire.repairing(length), target=target)
    config["stores"] = {"shop": config["stores"]["shop"], "search": {"type": "opensearch", "hosts": [url]}}
    return config


def is_refused(identifier: str) -> bool:
    return int(identifier) % REFUSED_OF == REFUSED


def half(url: str, index: str, rows: int) -> None:
    """Take every other document away, before anybody looks."""
    lines = [encode({"delete": {"_index": index, "_id": str(key)}}) + b"\n" for key in range(1, rows + 1, 2)]
    for start in range(0, len(lines), PAGE):
        ask("POST", f"{url}/_bulk", b"".join(lines[start : start + PAGE]), PATIENT_SECONDS)


@dataclass
class Fire:
    """What happens, and to whom; ``lost_us``: from when to when a node died."""

    recorder: Recorder
    nodes: Sequence[OpenSearchPart]
    index: str
    service: Service
    dsn: str
    length: Length
    lost_us: list[Span] = field(default_factory=list)

    def blows(self) -> list[Callable[[], None]]:
        """Return what happens, in order; with each the worker is killed once."""
        return [self.come_late, self.go_away if len(self.nodes) == 1 else self.lose_one, self.never_answer]

    def come_late(self) -> None:
        """Kill the worker that waits for an answer; its bulk is done when its rows have changed, and the next one is at work."""
        with self.recorder.hanging(Sender.GAPWATCH, executes=False) as bulk:
            time.sleep(self.length.hangs / 2)
            sent = sorted((one for one in bulk if not is_refused(one.id)), key=lambda one: one.operation != "create")
            overtake(self.recorder, self.dsn, [int(one.id) for one in sent])
            self.service.restart("repair", signal.SIGKILL)
            time.sleep(self.length.hangs / 2)

    def go_away(self) -> None:
        """Kill the only node, and the worker meanwhile."""
        self._without(self.nodes[0])

    def lose_one(self) -> None:
        """Kill a node that has primaries: their copies on the other one take over, and come back as copies."""
        node, other = self.nodes[0], self.nodes[-1]
        assert other.name in primaries(node, self.index)
        self._without(other)
        until(lambda: node.get(f"/_cluster/health/{self.index}")["status"] == "green", "the copies", START_SECONDS)
        assert primaries(node, self.index) == {node.name}

    def _without(self, node: OpenSearchPart) -> None:
        before = time.time_ns() // 1_000
        node.kill()
        self.lost_us.append((before, time.time_ns() // 1_000))
        time.sleep(self.length.away / 2)
        self.service.restart("repair", signal.SIGKILL)
        time.sleep(self.length.away / 2)
        node.launch()
        node.wait_ready(START_SECONDS)

    def never_answer(self) -> None:
        """This begins when the repair goes on: a worker that was killed at it still holds it for a minute."""
        with self.recorder.hanging(*Sender, executes=True):
            time.sleep(self.length.hangs)
        self.service.restart("repair", signal.SIGKILL)


def overtake(recorder: Recorder, dsn: str, keys: Sequence[int]) -> None:
    """Change and delete the first rows whose documents are on their way; return when the sink has written what became of them."""
    since, done = time.time_ns() // 1_000, set[int]()
    change, delete = "UPDATE {} SET seq = seq + 1 WHERE id = %s RETURNING seq", "DELETE FROM {} WHERE id = %s RETURNING seq"
    with psycopg.connect(dsn, autocommit=True) as connection:  # one row at a time: the writer locks several
        for number, key in enumerate(keys[:OVERTAKEN]):
            row = connection.execute((delete if number % 2 else change).format(TABLE), (key,)).fetchone()
            if row and not is_lost(row[0]):
                done.add(key)

    def written() -> bool:
        return done <= {
            int(one.id)
            for one in list(recorder.items)
            if one.sender is Sender.SINK and one.at_us >= since and (one.was_done or one.found_nothing)
        }

    wait_for(written, f"the sink to write {len(done)} documents", 120)


def count(node: OpenSearchPart, index: str) -> int:
    ask("POST", f"{node.url}/{index}/_refresh")
    return int(ask("GET", f"{node.url}/{index}/_count")["count"])


def documents(node: OpenSearchPart, index: str) -> dict[int, State]:
    """Return `seq` and `v` of every document, from the node itself."""
    ask("POST", f"{node.url}/{index}/_refresh")
    query = {"size": PAGE, "sort": ["_doc"], "_source": ["seq", "v"]}
    page = ask("POST", f"{node.url}/{index}/_search?scroll=2m&allow_partial_search_results=false", query)
    found: dict[int, State] = {}
    while page["hits"]["hits"]:
        found |= {int(hit["_id"]): (hit["_source"]["seq"], hit["_source"]["v"]) for hit in page["hits"]["hits"]}
        page = ask("POST", f"{node.url}/_search/scroll", {"scroll": "2m", "scroll_id": page["_scroll_id"]})
    ask("DELETE", f"{node.url}/_search/scroll", {"scroll_id": page["_scroll_id"]})
    return found


def examine(items: Sequence[Item], final: Mapping[int, State], ledger: Path, lost_us: Collection[Span]) -> dict[str, int]:
    """Read the recorder's notes: no write of ours took a document back; each is planned, and audited, and no other."""
    done = sorted((one for one in items if one.was_done or one.found_nothing), key=lambda one: (one.id, one.place))
    states = [
        Shown(key=int(one.id), seq=one.seq, is_ours=one.sender is Sender.GAPWATCH and one.was_done, at_us=one.at_us)
        for one in done
    ]
    judged, audit = never_back(states), read_audit(ledger)
    ours = [one for one in items if one.sender is Sender.GAPWATCH]
    sent, unsure = times_of(ours), times_of(one for one in ours if one.is_unsure(lost_us))
    within_plans(audit, sent)
    counts = accounted(audit, sent=sent, done=times_of(one for one in ours if one.was_done), unsure=unsure)
    unknown = {int(one.id) for one in items if one.is_unsure(lost_us)}
    last = {one.key: one.seq for one in states}
    left = {key: (seq, final.get(key)) for key, seq in last.items() if seq != final.get(key, (None,))[0] and key not in unknown}
    assert left == {}, "the recorder has not seen everything"
    told = Counter(f"{one.sender.value}_{one.status}" for one in items if one.status in (CONFLICT, TOO_MANY))
    assert told["sink_429"], told
    assert told["gapwatch_429"], told
    assert told["gapwatch_409"], told
    behind = overtaken(done)
    assert behind, "no write of ours came after its row's deletion"
    others = {"came_back": len(judged.came_back), "taken_back_by_others": judged.taken_back_by_others, "overtaken": behind}
    return {**counts, **others, "unsure": sum(map(len, unsure.values())), **told}


def times_of(items: Iterable[Item]) -> dict[int, list[int]]:
    """Return when items came, by their documents, ascending."""
    found: dict[int, list[int]] = defaultdict(list)
    for one in sorted(items, key=lambda one: one.at_us):
        found[int(one.id)].append(one.at_us)
    return found


def overtaken(done: Sequence[Item]) -> int:
    """Count the deletes of the sink that came after a write of ours, and were done before it: it came back, for a while."""
    return sum(
        before.id == after.id
        and (before.sender, before.operation) == (Sender.SINK, "delete")
        and (after.sender, after.operation, after.was_done) == (Sender.GAPWATCH, "create", True)
        and before.at_us > after.at_us
        for before, after in pairwise(done)
    )
