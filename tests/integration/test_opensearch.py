"""What only an index has: routing, aliases, external versions, strict mappings, shards that are away, a ``_seq_no`` tail."""

from __future__ import annotations

import asyncio
import http.server
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from gapwatch.core.canonical import parse_json
from gapwatch.core.search_address import SearchAddress
from gapwatch.core.seqno import Position
from gapwatch.embedded import EmbeddedStack, OpenSearchPart
from gapwatch.errors import HistoryLost, StoreRefused, StoreUnreachable
from gapwatch.feed_ports import StreamBatch
from gapwatch.model.pipeline import FeedKind, FeedSpec, PipelineSpec
from gapwatch.ports import ABSENT, StoredRecord, WriteItem
from gapwatch_connectors.opensearch.connection import Search, encode
from gapwatch_connectors.opensearch.feed import OpenSearchTail
from gapwatch_connectors.opensearch.preflight import OpenSearchPreflight
from gapwatch_connectors.opensearch.reader import OpenSearchReader
from gapwatch_connectors.opensearch.writer import OpenSearchWriter
from tests.contract.test_targets import address_of, chunks_of, key, numbers
from tests.stack import ask, until
from tests.unit.core.samples import field, pipeline

pytestmark = pytest.mark.integration


def spec_of(index: str, **target: Any) -> PipelineSpec:
    spec = pipeline(field("customer"), field("region"))
    return replace(spec, target=replace(spec.target, collection=index, **target))


def reader_of(node: OpenSearchPart, spec: PipelineSpec, made: list[Any]) -> OpenSearchReader:
    reader = OpenSearchReader(spec, address_of(node))
    made.append(reader)
    return reader


def writer_of(node: OpenSearchPart, spec: PipelineSpec, made: list[Any]) -> OpenSearchWriter:
    writer = OpenSearchWriter(spec, address_of(node))
    made.append(writer)
    return writer


def put(node: OpenSearchPart, index: str, number: int, document: dict[str, Any], **query: Any) -> Any:
    options = "&".join(f"{name}={value}" for name, value in query.items())
    return ask("PUT", f"{node.url}/{index}/_doc/{number}?{options}", document)


def routings(node: OpenSearchPart, index: str) -> list[str]:
    """Return one word for each shard."""
    found: dict[int, str] = {}
    for number in range(100):
        shard = ask("GET", f"{node.url}/{index}/_search_shards?routing=w{number}")["shards"][0][0]["shard"]
        found.setdefault(shard, f"w{number}")
    return [found[shard] for shard in sorted(found)]


# routing


async def test_d15_b7_lesson_25_routed_documents_are_read_written_and_deleted_where_they_lie(
    node: OpenSearchPart, index: str, made: list[Any]
) -> None:
    spec = spec_of(index, routing="region")
    reader, writer = reader_of(node, spec, made), writer_of(node, spec, made)
    words = routings(node, index)
    for number in range(30):
        put(node, index, number, {"customer": "c", "region": words[number % 3]}, routing=words[number % 3])
    put(node, index, 7, {"customer": "twin", "region": words[0]}, routing=words[0])  # 7 lies on shard 1 already
    found = await reader.fetch([key(number) for number in range(31)])
    assert found[key(30)] is ABSENT
    assert all(isinstance(found[key(number)], StoredRecord) for number in range(30) if number != 7)
    twins = found[key(7)]
    assert isinstance(twins, tuple)
    assert sorted(twin.fields["customer"] for twin in twins) == ["c", "twin"]
    assert {twin.target_id for twin in twins} == {f"7 (routing {words[0]})", f"7 (routing {words[1]})"}
    assert numbers(await chunks_of(reader, content=True)) == sorted([*range(30), 7])

    first, fresh = found[key(4)], key(100)
    assert isinstance(first, StoredRecord)
    document = {"_id": "100", "customer": "new", "region": words[2]}
    results = await writer.write(
        [
            WriteItem(key=key(4), document=None, replaces=first),
            WriteItem(key=fresh, document=document, replaces=ABSENT),
        ]
    )
    assert [result.outcome for result in results] == ["written", "written"]
    again = await reader.fetch([key(4), fresh])
    assert again[key(4)] is ABSENT
    written = again[fresh]
    assert isinstance(written, StoredRecord)
    assert written.raw.routing == words[2]
    moved = WriteItem(key=fresh, document={**document, "region": words[0]}, replaces=written)
    [refused] = await writer.write([moved])
    assert (refused.outcome, "routing" in refused.reason) == ("failed", True)


async def test_trap_33_routed_documents_that_nobody_declared_are_never_taken_for_absent(
    node: OpenSearchPart, index: str, made: list[Any]
) -> None:
    spec = spec_of(index)
    words = routings(node, index)
    for number in range(12):
        put(node, index, number, {"customer": "c"}, routing=words[number % 3])
    chunks = await chunks_of(reader_of(node, spec, made), content=False)
    assert not chunks[-1].complete
    assert "routed" in chunks[-1].reason
    made.append(OpenSearchPreflight(spec, address_of(node)))
    assert [advice.level for advice in await made[-1].check() if "routed" in advice.message]


# aliases, and what is refused


async def test_an_alias_is_followed_and_one_that_hides_or_forks_is_refused(
    node: OpenSearchPart, index: str, made: list[Any], unique: Callable[[str], str]
) -> None:
    put(node, index, 1, {"customer": "a"})
    alias, hiding, forked, other = (unique(name) for name in ("plain", "hiding", "forked", "other"))
    ask("PUT", f"{node.url}/{other}")
    actions = [
        {"add": {"index": index, "alias": alias, "routing": "x"}},
        {"add": {"index": index, "alias": hiding, "filter": {"term": {"customer": "b"}}}},
        {"add": {"index": index, "alias": forked}},
        {"add": {"index": other, "alias": forked}},
    ]
    ask("POST", f"{node.url}/_aliases", {"actions": actions})
    reader = reader_of(node, spec_of(alias), made)
    assert isinstance((await reader.fetch([key(1)]))[key(1)], StoredRecord)
    assert numbers(await chunks_of(reader, content=False)) == [1]
    assert (await reader.describe()).identity == (await reader_of(node, spec_of(index), made).describe()).identity
    for name, why in ((hiding, "filter"), (forked, "2 indices")):
        refused = reader_of(node, spec_of(name), made)
        with pytest.raises(StoreRefused, match=why):
            await refused.describe()
        with pytest.raises(StoreRefused):
            await refused.fetch([key(1)])


async def test_ids_of_another_form_are_named_and_never_coerced(node: OpenSearchPart, index: str, made: list[Any]) -> None:
    put(node, index, 1, {"customer": "a"})
    ask("PUT", f"{node.url}/{index}/_doc/007", {"customer": "a"})
    chunks = await chunks_of(reader_of(node, spec_of(index), made), content=False)
    assert not chunks[-1].complete
    assert "007" in chunks[-1].reason


# versions, and results of items


async def test_trap_30_external_versions_are_kept_so_that_the_next_one_is_taken(
    node: OpenSearchPart, index: str, made: list[Any]
) -> None:
    spec = spec_of(index)
    reader, writer = reader_of(node, spec, made), writer_of(node, spec, made)
    put(node, index, 1, {"customer": "old", "region": "r"}, version=500, version_type="external")
    read = (await reader.fetch([key(1)]))[key(1)]
    assert isinstance(read, StoredRecord)
    for value in ("first repair", "second repair"):
        [result] = await writer.write([WriteItem(key=key(1), document={"_id": "1", "customer": value}, replaces=read)])
        assert result.outcome == "written"
    assert put(node, index, 1, {"customer": "next"}, version=501, version_type="external")["result"] == "updated"
    [late] = await writer.write([WriteItem(key=key(1), document={"_id": "1", "customer": "late"}, replaces=read)])
    assert late.outcome == "guard_failed"
    [gone] = await writer.write([WriteItem(key=key(1), document=None, replaces=read)])
    assert gone.outcome == "guard_failed"


async def test_declared_versions_refuse_a_late_repair_even_over_a_deletion(
    node: OpenSearchPart, index: str, made: list[Any]
) -> None:
    spec = spec_of(index, version="_version")
    writer = writer_of(node, spec, made)
    document = {"_id": "1", "customer": "a", "_version": 10}
    [written] = await writer.write([WriteItem(key=key(1), document=document, replaces=ABSENT)])
    assert written.outcome == "written"
    found = (await reader_of(node, spec, made).fetch([key(1)]))[key(1)]
    assert isinstance(found, StoredRecord)
    assert dict(found.fields) == document
    ask("DELETE", f"{node.url}/{index}/_doc/1?version=12&version_type=external")
    [late] = await writer.write([WriteItem(key=key(1), document={**document, "_version": 11}, replaces=ABSENT)])
    assert late.outcome == "guard_failed"


async def test_d5_lesson_5_refused_items_fail_alone_with_their_reason_and_without_their_values(
    node: OpenSearchPart, made: list[Any], unique: Callable[[str], str]
) -> None:
    name = unique("strict")
    properties = {"customer": {"type": "long"}, "region": {"type": "keyword"}}
    ask("PUT", f"{node.url}/{name}", {"mappings": {"dynamic": "strict", "properties": properties}})
    writer = writer_of(node, spec_of(name), made)
    documents: list[dict[str, Any]] = [{"customer": 1}, {"customer": "top secret"}, {"unknown": 1}, {"customer": 4}]
    items = [
        WriteItem(key=key(number), document={"_id": str(number), **document}, replaces=ABSENT)
        for number, document in enumerate(documents)
    ]
    results = await writer.write(items)
    assert [result.outcome for result in results] == ["written", "failed", "failed", "written"]
    assert "mapper_parsing_exception" in results[1].reason
    assert "strict_dynamic_mapping_exception" in results[2].reason
    assert "top secret" not in results[1].reason
    ask("PUT", f"{node.url}/{name}/_settings", {"index.blocks.write": True})
    [blocked] = await writer.write(items[:1])
    assert (blocked.outcome, "block" in blocked.reason) == ("failed", True)
    made.append(OpenSearchPreflight(replace(spec_of(name), fields=(field("unknown"),)), address_of(node)))
    advice = {(item.level, item.message.split(" of ")[0]) for item in await made[-1].check()}
    assert ("error", "The mapping") in advice
    assert any("blocked" in message for level, message in advice if level == "warning")


# what is not whole


async def test_lesson_17_an_index_without_a_primary_is_unread_and_never_empty(
    node: OpenSearchPart, made: list[Any], unique: Callable[[str], str]
) -> None:
    name = unique("away")
    ask(
        "PUT",
        f"{node.url}/{name}?wait_for_active_shards=0",
        {"settings": {"number_of_shards": 1, "number_of_replicas": 0, "index.routing.allocation.require._name": "nobody"}},
    )
    reader = reader_of(node, spec_of(name), made)
    with pytest.raises(StoreUnreachable):
        await reader.is_empty()
    chunks = await chunks_of(reader, content=False)
    assert not chunks[-1].complete
    try:
        read = (await reader.fetch([key(1)]))[key(1)]
    except StoreUnreachable:
        read = None
    assert read is not ABSENT
    made.append(OpenSearchTail(tail_spec(name), address_of(node)))
    with pytest.raises(StoreUnreachable):
        await anext(made[-1].open(None))


# the connection


@contextmanager
def tls_server(directory: Path, *, asks: bool = False) -> Iterator[tuple[int, Path]]:
    """Serve an answer over TLS with a certificate of our own; yields port and certificate.

    With ``asks``, nobody is served but who shows a certificate: the server's own is one that it knows.
    """
    certificate, secret = directory / "server.pem", directory / "key.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(secret), "-out", str(certificate)]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *subject, *files],
        check=True,
        capture_output=True,
    )

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = encode({"authorization": self.headers.get("authorization")})
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, secret)
    if asks:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1], certificate
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


async def test_h2_tls_is_verified_and_accounts_are_sent(tmp_path: Path, made: list[Any]) -> None:
    with tls_server(tmp_path) as (port, certificate):
        hosts = (f"localhost:{port}",)
        made.append(Search("s", SearchAddress(scheme="https", hosts=hosts).encode()))
        with pytest.raises(StoreRefused, match="not trusted"):
            await made[-1].request("GET", "/")
        made.append(Search("s", SearchAddress(scheme="https", hosts=hosts, ca=str(certificate), api_key="k==").encode()))
        assert await made[-1].request("GET", "/") == {"authorization": "ApiKey k=="}
        made.append(
            Search("s", SearchAddress(scheme="https", hosts=hosts, ca=str(certificate), user="u", password="p:").encode())
        )
        assert await made[-1].request("GET", "/") == {"authorization": "Basic dTpwOg=="}
        made.append(
            Search("s", SearchAddress(scheme="https", hosts=hosts, ca=str(tmp_path / "none.pem"), password="s3cret").encode())
        )
        with pytest.raises(StoreRefused) as refused:
            await made[-1].request("GET", "/")
        assert "s3cret" not in str(refused.value)


async def test_h2_a_client_certificate_is_shown_to_who_asks_for_one(tmp_path: Path, made: list[Any]) -> None:
    with tls_server(tmp_path, asks=True) as (port, certificate):
        bare = SearchAddress(scheme="https", hosts=(f"localhost:{port}",), ca=str(certificate))
        made.append(Search("s", bare.encode()))
        with pytest.raises(StoreUnreachable):
            await made[-1].request("GET", "/")
        shown = replace(bare, client_cert=str(certificate), client_key=str(tmp_path / "key.pem"))
        made.append(Search("s", shown.encode()))
        assert await made[-1].request("GET", "/") == {"authorization": None}
        made.append(Search("s", replace(shown, client_key=str(tmp_path / "none.pem")).encode()))
        with pytest.raises(StoreRefused, match="certificate"):
            await made[-1].request("GET", "/")


# the tail


def tail_spec(index: str) -> PipelineSpec:
    spec = spec_of(index, feed=FeedSpec(kind=FeedKind.SEQ_NO, topic="t"))
    return replace(spec, pulse_seconds=0.05)


class Followed:
    """A tail that runs in the background: the newest sequence number that it showed of each document."""

    def __init__(self, tail: OpenSearchTail, token: bytes | None) -> None:
        self.seen: dict[str, int] = {}
        self.batches = 0
        self.watermark = 0
        self.token = token or b""
        self._tail = tail
        self._task = asyncio.create_task(self._run(token))

    async def _run(self, token: bytes | None) -> None:
        async with aclosing(self._tail.open(token)) as batches:  # type: ignore[type-var]
            async for batch in batches:
                self.take(batch)

    def take(self, batch: StreamBatch) -> None:
        for event in batch.events:
            headers = dict(event.headers)
            self.seen[event.key.decode()] = int(headers["gapwatch-shard"].decode().split(":")[2])
        self.token, self.watermark, self.batches = batch.token, batch.watermark, self.batches + 1

    async def stop(self) -> None:
        if not self._task.done():
            self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def stop_quietly(self) -> None:
        """As ``stop``; that a part was away for a moment is no error here."""
        with suppress(StoreUnreachable, StoreRefused):
            await self.stop()

    async def until(self, condition: Callable[[], bool], seconds: float = 90) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                if self._task.done():
                    await self._task
                await asyncio.sleep(0.02)


def there(node: OpenSearchPart, index: str) -> dict[str, int]:
    ask("POST", f"{node.url}/{index}/_refresh")
    body = {"size": 10_000, "seq_no_primary_term": True, "_source": False}
    hits = ask("POST", f"{node.url}/{index}/_search?preference=_primary", body)["hits"]["hits"]
    return {encode({"_id": hit["_id"]}).decode(): hit["_seq_no"] for hit in hits}


def write_much(url: str, index: str, seed: int, rounds: int) -> None:
    random = Random(seed)
    for _ in range(rounds):
        lines: list[dict[str, Any]] = []
        for _ in range(random.randrange(1, 60)):
            where = {"_index": index, "_id": str(random.randrange(400))}
            lines += (
                [{"delete": where}] if random.random() < 0.1 else [{"index": where}, {"customer": "c" * random.randrange(200)}]
            )
        ask("POST", f"{url}/_bulk", b"".join(encode(line) + b"\n" for line in lines))


async def test_the_tail_shows_every_document_that_is_there_under_load_and_over_restarts(
    node: OpenSearchPart, index: str, made: list[Any]
) -> None:
    made.append(OpenSearchTail(tail_spec(index), address_of(node)))
    follower = Followed(made[-1], None)
    await follower.until(lambda: follower.batches > 0)
    seen: dict[str, int] = {}
    writers = [asyncio.create_task(asyncio.to_thread(write_much, node.url, index, seed, 60)) for seed in range(3)]
    while not all(writer.done() for writer in writers):
        await asyncio.sleep(0.3)
        await follower.stop()  # wherever it is
        seen |= follower.seen
        made.append(OpenSearchTail(tail_spec(index), address_of(node)))
        follower = Followed(made[-1], follower.token)
    await asyncio.gather(*writers)
    expected = there(node, index)
    assert expected, "there is something to be shown"
    await follower.until(lambda: newest(expected, seen, follower.seen) == expected)
    await follower.stop()
    assert newest(expected, seen, follower.seen) == expected


def newest(names: Iterable[str], *seen: Mapping[str, int]) -> dict[str, int]:
    """Return what was seen last of these documents, by one follower after the other."""
    found = {name: number for one in seen for name, number in one.items()}
    return {name: found[name] for name in names if name in found}


@pytest.mark.parametrize("blind", [False, True])
async def test_the_tail_needs_its_refresh(
    node: OpenSearchPart, made: list[Any], unique: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, blind: bool
) -> None:
    """An index that nobody refreshes shows nothing of itself: without ours the position would pass over its documents."""
    name = unique("still")
    ask("PUT", f"{node.url}/{name}", {"settings": {"refresh_interval": "-1", "number_of_replicas": 0}})
    made.append(OpenSearchTail(tail_spec(name), address_of(node)))
    if blind:

        async def nothing(_: OpenSearchTail) -> None: ...

        monkeypatch.setattr(OpenSearchTail, "_refresh", nothing)
    follower = Followed(made[-1], None)
    await follower.until(lambda: follower.batches > 1)
    put(node, name, 1, {"customer": "a"})
    await follower.until(lambda: Position.decode(follower.token).shards[0] == 0)
    await follower.stop()
    assert len(follower.seen) == (0 if blind else 1)


async def test_a_document_stands_in_the_feed_as_it_is_and_the_watermark_follows(
    node: OpenSearchPart, index: str, made: list[Any]
) -> None:
    made.append(OpenSearchTail(tail_spec(index), address_of(node)))
    async with aclosing(made[-1].open(None)) as batches:
        first = await anext(batches)
        body = b'{"customer":"a","region":"r","unmapped":1}'
        ask("PUT", f"{node.url}/{index}/_doc/5", body)
        found: list[StreamBatch] = []
        async for batch in batches:
            found.append(batch)
            if any(item.events for item in found) and not batch.events:
                break
    [event] = [event for batch in found for event in batch.events]
    assert (event.key, parse_json(event.value)) == (b'{"_id":"5"}', {"customer": "a", "region": "r"})
    marks = [batch.watermark for batch in (first, *found)]
    assert marks == sorted(marks)
    assert marks[-1] > first.watermark > 0
    assert all(batch.watermark < event.event_time for batch in found if batch.events), "no time is told before its events are"


async def test_an_index_created_anew_is_history_lost(node: OpenSearchPart, index: str, made: list[Any]) -> None:
    put(node, index, 1, {"customer": "a"})
    made.append(OpenSearchTail(tail_spec(index), address_of(node)))
    follower = Followed(made[-1], None)
    await follower.until(lambda: follower.batches > 1)
    ask("DELETE", f"{node.url}/{index}")
    ask("PUT", f"{node.url}/{index}", {"settings": {"number_of_shards": 3, "number_of_replicas": 0}})
    with pytest.raises((HistoryLost, StoreRefused)):
        await follower.until(lambda: False)
    made.append(OpenSearchTail(tail_spec(index), address_of(node)))
    again = Followed(made[-1], follower.token)
    with pytest.raises(HistoryLost, match="created anew"):
        await again.until(lambda: False)


async def test_the_tail_goes_on_when_a_replica_takes_over(made: list[Any], unique: Callable[[str], str]) -> None:
    with EmbeddedStack(parts=("opensearch",)) as stack:
        first, second = stack.opensearch, stack.add_opensearch_node()
        name = unique("orders")
        settings = {"number_of_shards": 2, "number_of_replicas": 1, "index.unassigned.node_left.delayed_timeout": "0s"}
        ask("PUT", f"{first.url}/{name}", {"settings": settings})
        until(lambda: first.get(f"/_cluster/health/{name}")["status"] == "green", "the replicas")
        tail = OpenSearchTail(tail_spec(name), address_of(first))
        made.append(tail)
        follower = Followed(tail, None)
        await follower.until(lambda: follower.batches > 0)
        await asyncio.to_thread(write_much, first.url, name, 1, 20)
        await asyncio.to_thread(second.kill)
        await asyncio.to_thread(until, lambda: _primaries(first, name) == {first.name}, "the replicas to take over")
        seen = follower.seen
        await follower.stop_quietly()
        await asyncio.to_thread(write_much, first.url, name, 2, 20)
        follower = Followed(tail, follower.token)
        expected = there(first, name)
        assert expected, "there is something to be shown"
        await follower.until(lambda: newest(expected, seen, follower.seen) == expected)
        await follower.stop()
        assert newest(expected, seen, follower.seen) == expected


def _primaries(node: OpenSearchPart, index: str) -> set[str]:
    shards: Sequence[dict[str, str]] = node.get(f"/_cat/shards/{index}?format=json&h=prirep,state,node")
    return {shard["node"] for shard in shards if shard["prirep"] == "p" and shard["state"] == "STARTED"}


async def test_half_of_a_surrogate_pair_blocks_neither_the_tail_nor_those_who_read_beside_it(
    node: OpenSearchPart, index: str, made: list[Any]
) -> None:
    """A client cut a text in the middle of a sign, and the index kept it: every answer that held it was unreadable, for ever."""
    made += [OpenSearchTail(tail_spec(index), address_of(node)), OpenSearchReader(spec_of(index), address_of(node))]
    follower = Followed(made[0], None)
    await follower.until(lambda: follower.batches > 0)
    ask("PUT", f"{node.url}/{index}/_doc/1", b'{"customer": "a\\ud83d"}')
    put(node, index, 2, {"customer": "b"})
    await follower.until(lambda: len(follower.seen) == 2)
    await follower.stop()
    found = await made[1].fetch([key(1), key(2), key(3)])
    assert [one.fields.get("customer") for one in (found[key(1)], found[key(2)])] == ["a\ud83d", "b"]
    assert found[key(3)] is ABSENT
    chunks = [chunk async for chunk in made[1].scan(content=True)]
    assert (sum(len(chunk.records) for chunk in chunks), chunks[-1].complete) == (2, True)
