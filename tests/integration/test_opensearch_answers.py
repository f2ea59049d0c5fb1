"""A real node behind a proxy that changes one of its answers: what did not answer whole is unread, what is wrong is named."""

from __future__ import annotations

import http.server
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from gapwatch.core.keys import KeyCodec
from gapwatch.core.mapping import CompiledMapping
from gapwatch.core.search_address import SearchAddress
from gapwatch.core.seqno import NOTHING, Position
from gapwatch.embedded import OpenSearchPart
from gapwatch.errors import StoreRefused, StoreUnreachable
from gapwatch.model.pipeline import FeedKind, FeedSpec, FieldType, KeyColumn, KeyType, PipelineSpec
from gapwatch.model.stream import Side
from gapwatch.ports import ABSENT, StoredRecord, Unread, WriteItem
from gapwatch_connectors.opensearch.feed import OpenSearchTail
from gapwatch_connectors.opensearch.preflight import OpenSearchPreflight
from gapwatch_connectors.opensearch.reader import OpenSearchReader
from tests.contract.test_targets import address_of, chunks_of, key, numbers
from tests.integration.test_opensearch import Followed, put, reader_of, routings, spec_of, tail_spec, writer_of
from tests.stack import ask
from tests.unit.core.samples import field

pytestmark = pytest.mark.integration

Mangle = Callable[[str, int, Any], tuple[int, Any]]


@dataclass
class Proxy:
    """Hands every request on to the node, and its answer back as ``mangle(path, status, answer)`` makes it."""

    url: str
    mangle: Mangle = lambda _, status, answer: (status, answer)

    @property
    def address(self) -> str:
        return SearchAddress(scheme="http", hosts=(self.url.removeprefix("http://"),)).encode()


@contextmanager
def proxied(node: OpenSearchPart) -> Iterator[Proxy]:
    made = Proxy("")

    class Handler(http.server.BaseHTTPRequestHandler):
        def _hand_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0)) or None
            kind = self.headers.get("content-type") or "application/json"
            request = urllib.request.Request(node.url + self.path, data=body, headers={"content-type": kind}, method=self.command)
            try:
                with urllib.request.urlopen(request, timeout=30) as said:
                    status, answer = said.status, json.loads(said.read() or b"null")
            except urllib.error.HTTPError as error:
                with error:
                    status, answer = error.code, json.loads(error.read() or b"null")
            status, answer = made.mangle(self.path, status, answer)
            sent = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def __getattr__(self, name: str) -> Callable[[], None]:
            if name.startswith("do_"):
                return self._hand_on
            raise AttributeError(name)

        def log_message(self, format: str, *arguments: Any) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


@pytest.fixture
def proxy(node: OpenSearchPart) -> Iterator[Proxy]:
    with proxied(node) as running:
        yield running


def searches(change: Callable[[Any], object], *, first: int = 0) -> Mangle:
    """Change the answers to searches, from the nth on."""
    seen = [0]

    def mangle(path: str, status: int, answer: Any) -> tuple[int, Any]:
        if path.partition("?")[0].endswith("/_search"):
            seen[0] += 1
            if seen[0] > first:
                change(answer)
        return status, answer

    return mangle


FAULTS: dict[str, Callable[[Any], object]] = {
    "timed out": lambda answer: answer.update(timed_out=True),
    "a shard failed": lambda answer: answer["_shards"].update(failed=1, successful=0),
    "a shard was passed over": lambda answer: answer["_shards"].update(successful=0, total=0),
    "no total": lambda answer: answer["hits"].pop("total", None),
}


# D1: a scan


def short(answer: Any) -> None:
    """A page lacks a hit, and nothing says so but the total."""
    if answer["hits"].get("hits"):
        del answer["hits"]["hits"][-1:]
    answer["hits"].setdefault("hits", [])


@pytest.mark.parametrize("how", ["keys", "ids", "documents", "contents"])
@pytest.mark.parametrize("fault", [*FAULTS, "short page"])
async def test_d1_trap_29_what_did_not_answer_whole_leaves_the_scan_incomplete(
    proxy: Proxy, node: OpenSearchPart, index: str, made: list[Any], fault: str, how: str
) -> None:
    for number in range(12):
        put(node, index, number, {"customer": "c", "region": "r"})
    spec = spec_of(index)
    spec = replace(spec, fields=(field("customer", FieldType.TEXT), field("region", FieldType.TEXT)))
    made.append(OpenSearchReader(spec, proxy.address))
    reader = made[-1]
    assert (await complete(reader, spec, how)) == (12, True, "")
    proxy.mangle = searches(short if fault == "short page" else FAULTS[fault])
    count, whole, reason = await complete(reader, spec, how)
    assert not whole
    assert "Shard" in reason
    assert count < 12
    if fault != "no total":  # one shard's answer is enough, wherever in the scan
        proxy.mangle = searches(short if fault == "short page" else FAULTS[fault], first=1)
        count, whole, _ = await complete(reader, spec, how)
        assert not whole
        assert 0 < count < 12


async def complete(reader: OpenSearchReader, spec: PipelineSpec, how: str) -> tuple[int, bool, str]:
    """Return how many were read, whether all of it was, and why not."""
    chunks: Any
    if how == "keys":
        chunks = reader.scan_keys(chunk=5)
    elif how == "contents":
        chunks = reader.scan_contents(CompiledMapping(spec), Side.OBSERVED, chunk=5)
    else:
        chunks = reader.scan(content=how == "documents", chunk=5)
    async with aclosing(chunks) as found:
        read = [chunk.keys if how == "contents" else chunk async for chunk in found]
    sizes = [len(chunk.records) if how in ("ids", "documents") else len(chunk) for chunk in read]
    return sum(sizes), all(chunk.complete for chunk in read), read[-1].reason


async def test_d1_a_short_answer_to_any_other_question_is_no_answer(
    proxy: Proxy, node: OpenSearchPart, index: str, made: list[Any]
) -> None:
    put(node, index, 1, {"customer": "c"})
    made.append(OpenSearchReader(spec_of(index), proxy.address))
    reader = made[-1]

    def failed(where: str) -> Mangle:
        def mangle(path: str, status: int, answer: Any) -> tuple[int, Any]:
            if path.partition("?")[0].endswith(where):
                answer["_shards"].update(failed=1, successful=answer["_shards"]["successful"] - 1)
            return status, answer

        return mangle

    for where in ("/_count", "/_refresh"):
        proxy.mangle = failed(where)
        with pytest.raises(StoreUnreachable, match="whole"):
            await reader.is_empty()
    proxy.mangle = failed("/_search/point_in_time")
    assert not (await chunks_of(reader, content=False))[-1].complete
    proxy.mangle = lambda _, status, answer: (status, answer)
    assert not await reader.is_empty()


async def test_lesson_17_a_look_up_that_was_not_answered_is_unread_and_never_absent(
    proxy: Proxy, node: OpenSearchPart, index: str, made: list[Any]
) -> None:
    put(node, index, 1, {"customer": "c"})
    made.append(OpenSearchReader(spec_of(index), proxy.address))

    def refused(path: str, status: int, answer: Any) -> tuple[int, Any]:
        if "_mget" in path:
            answer["docs"][0] = {
                "_index": index,
                "_id": "1",
                "error": {"type": "no_shard_available_action_exception", "root_cause": [{"type": "no_shard_available"}]},
            }
        return status, answer

    proxy.mangle = refused
    found = await made[-1].fetch([key(1), key(2)])
    assert isinstance(found[key(1)], Unread)
    assert found[key(2)] is ABSENT
    proxy.mangle = lambda path, status, answer: (status, {"docs": answer["docs"][:1]} if "_mget" in path else answer)
    with pytest.raises(StoreUnreachable, match="1 of 2"):
        await made[-1].fetch([key(1), key(2)])
    proxy.mangle = lambda path, status, answer: (
        (429, {"error": {"type": "circuit_breaking_exception"}}) if "_mget" in path else (status, answer)
    )
    with pytest.raises(StoreUnreachable):
        await made[-1].fetch([key(1)])


@pytest.mark.parametrize("fault", ["timed out", "a shard failed", "a shard was passed over"])
async def test_a_tail_that_was_not_answered_whole_stays_where_it_is(
    proxy: Proxy, node: OpenSearchPart, index: str, made: list[Any], fault: str
) -> None:
    made.append(OpenSearchTail(tail_spec(index), proxy.address))
    follower = Followed(made[-1], None)
    await follower.until(lambda: follower.batches > 1)
    proxy.mangle = searches(FAULTS[fault])
    put(node, index, 1, {"customer": "c"})
    with pytest.raises(StoreUnreachable, match="whole"):
        await follower.until(lambda: False)
    assert set(Position.decode(follower.token).shards.values()) == {NOTHING}
    proxy.mangle = lambda _, status, answer: (status, answer)
    again = Followed(made[-1], follower.token)
    await again.until(lambda: len(again.seen) == 1)
    await again.stop()


# an alias, and emptiness


@pytest.mark.parametrize("how", ["keys", "ids", "documents", "contents"])
async def test_an_alias_switched_in_mid_sweep_proves_nothing(
    node: OpenSearchPart, index: str, made: list[Any], unique: Callable[[str], str], how: str
) -> None:
    alias, other = unique("current"), unique("other")
    ask("PUT", f"{node.url}/{other}", {"settings": {"number_of_shards": 3, "number_of_replicas": 0}})
    for number in range(12):
        put(node, index, number, {"customer": "c"})
        put(node, other, number, {"customer": "c"})
    ask("POST", f"{node.url}/_aliases", {"actions": [{"add": {"index": index, "alias": alias}}]})
    spec = replace(spec_of(alias), fields=(field("customer", FieldType.TEXT),))
    reader = reader_of(node, spec, made)
    first = (await reader.describe()).identity
    chunks: Any
    if how == "keys":
        chunks = reader.scan_keys(chunk=2)
    elif how == "contents":
        chunks = reader.scan_contents(CompiledMapping(spec), Side.OBSERVED, chunk=2)
    else:
        chunks = reader.scan(content=how == "documents", chunk=2)
    read: list[Any] = []
    async with aclosing(chunks) as found:
        async for chunk in found:
            if not read:
                swap = [{"remove": {"index": index, "alias": alias}}, {"add": {"index": other, "alias": alias}}]
                ask("POST", f"{node.url}/_aliases", {"actions": swap})
            read.append(chunk.keys if how == "contents" else chunk)
    assert not read[-1].complete
    assert "created anew" in read[-1].reason
    assert (await reader.describe()).identity != first
    chunks_after = await chunks_of(reader, content=False)
    assert chunks_after[-1].complete
    assert numbers(chunks_after) == list(range(12))


async def test_trap_43_an_index_missing_at_the_start_is_unread_and_one_that_only_looks_empty_is_never_empty(
    proxy: Proxy, node: OpenSearchPart, made: list[Any], unique: Callable[[str], str]
) -> None:
    name = unique("late")
    made.append(OpenSearchReader(spec_of(name), proxy.address))
    reader = made[-1]
    for asked in (reader.describe, reader.is_empty):
        with pytest.raises(StoreRefused, match="no such index"):
            await asked()
    assert not (await chunks_of(reader, content=False))[-1].complete
    ask("PUT", f"{node.url}/{name}", {"settings": {"number_of_shards": 2, "number_of_replicas": 0}})
    assert numbers(await chunks_of(reader, content=False)) == []
    assert await reader.is_empty(), "it was created empty, and every shard says so"
    put(node, name, 1, {"customer": "a"})

    def nothing(answer: Any) -> None:
        answer["hits"]["hits"] = []
        answer["hits"]["total"] = {"value": 0, "relation": "eq"}

    proxy.mangle = searches(nothing)
    chunks = await chunks_of(reader, content=False)
    assert numbers(chunks) == []
    assert not await reader.is_empty(), "a search that finds nothing proves nothing"


# preflight


async def advice_of(spec: PipelineSpec, address: str, made: list[Any]) -> list[tuple[str, str, str]]:
    made.append(OpenSearchPreflight(spec, address))
    return [(one.level, one.message, one.remedy) for one in await made[-1].check()]


def levels(found: list[tuple[str, str, str]], word: str) -> list[str]:
    return [level for level, message, _ in found if word in message]


async def test_preflight_names_what_is_wrong_with_the_index(
    node: OpenSearchPart, index: str, made: list[Any], unique: Callable[[str], str]
) -> None:
    address = address_of(node)
    assert await advice_of(spec_of(index), address, made) == [("ok", f"{index} can be read.", "")]
    [(level, message, remedy)] = await advice_of(spec_of(unique("nowhere")), address, made)
    assert (level, "no such index" in message, bool(remedy)) == ("error", True, True)

    alias, other = unique("alias"), unique("other")
    ask("POST", f"{node.url}/_aliases", {"actions": [{"add": {"index": index, "alias": alias}}]})
    assert await advice_of(spec_of(alias), address, made) == [("ok", f"{alias} can be read.", "")]
    ask("PUT", f"{node.url}/{other}")
    ask("POST", f"{node.url}/_aliases", {"actions": [{"add": {"index": other, "alias": alias}}]})
    assert levels(await advice_of(spec_of(alias), address, made), "means 2 indices") == ["error"]

    ask("PUT", f"{node.url}/{index}/_settings", {"index.refresh_interval": "-1"})
    tailed = spec_of(index, feed=FeedSpec(kind=FeedKind.SEQ_NO, topic="t"))
    assert levels(await advice_of(tailed, address, made), "never refreshed") == ["warning"]
    assert levels(await advice_of(spec_of(index), address, made), "never refreshed") == [], "nothing but the tail needs it"

    ask("PUT", f"{node.url}/{index}/_settings", {"index.translog.durability": "async"})
    assert levels(await advice_of(tailed, address, made), "seconds after") == ["warning"]
    ask("PUT", f"{node.url}/{index}/_settings", {"index.translog.durability": "request"})
    assert levels(await advice_of(tailed, address, made), "seconds after") == []

    put(node, index, 1, {"customer": "c"}, version=500, version_type="external", refresh="true")
    assert levels(await advice_of(spec_of(index), address, made), "versions from outside") == ["warning"]
    assert levels(await advice_of(spec_of(index, version="_version"), address, made), "versions from outside") == []

    ask("PUT", f"{node.url}/{index}/_doc/not-a-number?refresh=true", {"customer": "c"})
    found = await advice_of(spec_of(index), address, made)
    assert levels(found, "not-a-number") == ["error"]
    assert "never coerced" in found[-1][2]


def always(status: int, error: str) -> Mangle:
    return lambda *_: (status, {"error": {"type": error}})


async def test_preflight_names_what_is_wrong_with_the_server(proxy: Proxy, index: str, made: list[Any]) -> None:
    def version(**changed: Any) -> Mangle:
        def mangle(path: str, status: int, answer: Any) -> tuple[int, Any]:
            if path == "/":
                answer["version"] = {name: value for name, value in {**answer["version"], **changed}.items() if value}
            return status, answer

        return mangle

    for changed, named in (
        ({"distribution": None, "number": "8.17.0"}, "another server 8.17.0"),
        ({"distribution": "elastic", "number": "9.1.0"}, "elastic 9.1.0"),
        ({"number": "1.3.20"}, "opensearch 1.3.20"),
    ):
        proxy.mangle = version(**changed)
        found = await advice_of(spec_of(index), proxy.address, made)
        assert levels(found, named) == ["error"]
        assert "OpenSearch 2 or newer" in found[0][2]
    proxy.mangle = version(number="2.19.1")
    assert [level for level, _, _ in await advice_of(spec_of(index), proxy.address, made)] == ["ok"]

    for status, named in ((401, "refused the account"), (403, "a right is missing")):
        proxy.mangle = always(status, "security_exception")
        [(level, message, remedy)] = await advice_of(spec_of(index), proxy.address, made)
        assert (level, named in message, bool(remedy)) == ("error", True, True)
    proxy.mangle = always(503, "cluster_block_exception")
    with pytest.raises(StoreUnreachable):
        await advice_of(spec_of(index), proxy.address, made)


async def test_h2_preflight_warns_of_plain_http_beyond_this_machine(node: OpenSearchPart, index: str, made: list[Any]) -> None:
    plain = SearchAddress(scheme="http", hosts=(f"0.0.0.0:{node.port}",)).encode()  # reaches this machine, and is no loopback
    found = await advice_of(spec_of(index), plain, made)
    assert levels(found, "without TLS") == ["warning"]
    assert levels(await advice_of(spec_of(index), address_of(node), made), "without TLS") == []


# ids that a search or an address would take for something else

ODD = (
    "a@b",
    "xa@b",
    "*",
    "a*",
    "_all",
    "..",
    "a/b",
    "a",
    "b",
    " ",
    " a",
    "a b",
    "a,b",
    "a%2Fb",
    "ä",
    "a\u0308",
    "日本",
    '"',
    "\\",
    "😀",
)


async def test_lesson_28_an_id_means_itself_and_nothing_that_contains_it(
    node: OpenSearchPart, index: str, made: list[Any]
) -> None:
    spec = spec_of(index, key=(KeyColumn(path="_id", type=KeyType.TEXT),))
    spec = replace(spec, source=replace(spec.source, key=(KeyColumn(path="id", type=KeyType.TEXT),)))
    reader, writer = reader_of(node, spec, made), writer_of(node, spec, made)
    codec = KeyCodec(spec.target.key)
    keys = {one: codec.encode([one]) for one in ODD}
    items = [WriteItem(key=keys[one], document={"_id": one, "customer": one}, replaces=ABSENT) for one in ODD]
    assert {result.outcome for result in await writer.write(items)} == {"written"}
    shown = [record.key for chunk in await chunks_of(reader, content=False) for record in chunk.records]
    assert sorted(shown) == sorted(keys.values())
    for gone, its_key in keys.items():
        found = await reader.fetch(list(keys.values()))
        there = {one for one in ODD if found[keys[one]] is not ABSENT}
        read = found[its_key]
        assert gone in there
        assert isinstance(read, StoredRecord)
        assert read.fields["customer"] == gone
        [result] = await writer.write([WriteItem(key=its_key, document=None, replaces=read)])
        assert result.outcome == "written"
        after = await reader.fetch(list(keys.values()))
        assert {one for one in ODD if after[keys[one]] is not ABSENT} == there - {gone}


async def test_lesson_34_twins_inside_the_refresh_interval_are_seen(
    node: OpenSearchPart, made: list[Any], unique: Callable[[str], str]
) -> None:
    """Nobody refreshes the index: a search shows neither of the two, and the look-up both, so that the key is a duplicate."""
    name = unique("twins")
    settings = {"number_of_shards": 3, "number_of_replicas": 0, "refresh_interval": "-1"}
    ask("PUT", f"{node.url}/{name}", {"settings": settings})
    spec = spec_of(name, routing="region")
    words = routings(node, name)
    for word in words[:2]:
        put(node, name, 7, {"customer": "c", "region": word}, routing=word)
    assert ask("POST", f"{node.url}/{name}/_search", {})["hits"]["total"]["value"] == 0
    found = (await reader_of(node, spec, made).fetch([key(7)]))[key(7)]
    assert isinstance(found, tuple)
    assert {twin.target_id for twin in found} == {f"7 (routing {word})" for word in words[:2]}
