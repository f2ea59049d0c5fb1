"""Rounds of the ``_seq_no`` tail against answers that a real node gives in a moment that no test can hit."""

from __future__ import annotations

from contextlib import aclosing
from decimal import Decimal
from typing import Any

import pytest

from gapwatch.core.search_address import SearchAddress
from gapwatch.core.seqno import Position
from gapwatch.errors import HistoryLost, StoreBusy, StoreUnreachable
from gapwatch.feed_ports import StreamBatch
from gapwatch_connectors.opensearch.connection import ExactJson
from gapwatch_connectors.opensearch.feed import OpenSearchTail
from tests.simulation.stores import VirtualClock
from tests.unit.core.samples import field, pipeline

ADDRESS = SearchAddress(scheme="http", hosts=("127.0.0.1:1",)).encode()
DOCUMENT: dict[str, Any] = {"_id": "7", "_seq_no": 0, "_primary_term": 1, "_version": 1, "_source": {"customer": "a"}}


class Node:
    """Two indices of one shard each, of which an alias means one. What was written shows once its index was refreshed."""

    store = "search"

    def __init__(self) -> None:
        self.meant = "first"
        self.documents = [DOCUMENT]
        self.checkpoint = -1
        self.replicas = 0  # that are started
        self.says_nothing = False  # of its shard's numbers: it is being closed
        self.refreshes = {"total": 1, "successful": 1, "failed": 0}
        self.refreshed = set[str]()
        self.moves_after_stats = False
        self.room = 1_000  # for so many documents
        self.sizes: list[int] = []

    def asked(self) -> int:
        return 1

    async def close(self) -> None: ...

    async def request(self, _: str, where: str, *, body: Any = None, **__: Any) -> Any:
        name, _, asked = where.removeprefix("/").partition("/")
        if asked == "_stats/docs":
            shard: dict[str, Any] = {"routing": {"primary": True, "state": "STARTED"}}
            if not self.says_nothing:
                shard["seq_no"] = {"global_checkpoint": self.checkpoint}
                shard["commit"] = {"user_data": {"history_uuid": f"history of {name}"}}
            self.meant = "second" if self.moves_after_stats else self.meant
            copies = [{"routing": {"primary": False, "state": "STARTED"}}] * self.replicas
            return {"indices": {name: {"uuid": name, "shards": {"0": [shard, *copies]}}}}
        if asked == "_refresh":
            self.refreshed |= {name} if self.refreshes["successful"] else set()
            return {"_shards": self.refreshes}
        if asked == "_search":
            self.sizes.append(body["size"])
            if body["size"] > self.room:
                raise StoreBusy("circuit_breaking_exception", store=self.store)
            after = body["query"]["range"]["_seq_no"]["gt"]
            shown = self.documents if name in self.refreshed else []
            hits = [one for one in shown if one["_seq_no"] > after][: body["size"]]
            return {"timed_out": False, "_shards": {"failed": 0, "successful": 1}, "hits": {"hits": hits}}
        return {self.meant: {"settings": {"index.uuid": self.meant, "index.number_of_shards": "1"}}}


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
async def tail(node: Node) -> OpenSearchTail:
    made = OpenSearchTail(pipeline(field("customer")), ADDRESS, clock=VirtualClock())
    made._search = made._dataset.search = node  # type: ignore[assignment]
    return made


async def read(tail: OpenSearchTail, node: Node, batches: int) -> list[StreamBatch]:
    """Return the batches that come after a document was written; the first of all says where the tail begins."""
    found: list[StreamBatch] = []
    async with aclosing(tail.open(None)) as opened:  # type: ignore[type-var]
        await anext(opened)
        node.checkpoint = 0
        while len(found) < batches:
            found.append(await anext(opened))
    return found


async def test_a_round_reads_what_was_written(tail: OpenSearchTail, node: Node) -> None:
    first, second = await read(tail, node, 2)
    assert [event.key for event in first.events] == [b'{"_id":"7"}']
    assert (second.events, Position.decode(second.token).shards) == ((), {0: 0})


async def test_a_primary_that_says_nothing_of_its_numbers_is_away(tail: OpenSearchTail, node: Node) -> None:
    """A shard is still called started while it is being closed. It ended role capture, for all feeds, with a KeyError."""
    node.says_nothing = True
    with pytest.raises(StoreUnreachable, match="0 of 1 primaries"):
        await read(tail, node, 1)


async def test_a_refresh_that_found_no_primary_is_none(tail: OpenSearchTail, node: Node) -> None:
    """OpenSearch counts it neither as done nor as failed; the tail went on, and what it should have shown was passed over."""
    node.refreshes = {"total": 2, "successful": 0, "failed": 0}
    with pytest.raises(StoreUnreachable, match="refreshed"):
        await read(tail, node, 1)


@pytest.mark.parametrize(("replicas", "refreshed", "is_done"), [(2, 3, True), (2, 2, False), (0, 2, True)])
async def test_as_many_copies_are_refreshed_as_there_were(
    tail: OpenSearchTail, node: Node, replicas: int, refreshed: int, is_done: bool
) -> None:
    """Counted by shards alone, replicas of one made up for another's primary that had just gone. One may come meanwhile."""
    node.replicas = replicas
    node.refreshes = {"total": 4, "successful": refreshed, "failed": 0}
    if is_done:
        assert (await read(tail, node, 1))[0].events
        return
    with pytest.raises(StoreUnreachable, match="refreshed"):
        await read(tail, node, 1)


async def test_an_alias_that_moves_within_a_round_moves_none_of_its_steps(tail: OpenSearchTail, node: Node) -> None:
    """The index that it led to then was refreshed, and the one before it was read: nothing was there, and the time was told."""
    node.moves_after_stats = True
    node.meant = "first"
    found: list[StreamBatch] = []
    begun = Position(uuid="first", round=1, shards={0: -1}, histories={0: "history of first"})
    node.checkpoint = 0
    lost = False
    async with aclosing(tail.open(begun.encode())) as opened:  # type: ignore[type-var]
        try:
            async for batch in opened:
                found.append(batch)  # noqa: PERF401 - they are wanted although it raises
        except HistoryLost:
            lost = True
    assert lost
    assert [event.key for batch in found for event in batch.events] == [b'{"_id":"7"}']


async def test_a_document_that_no_record_can_hold_is_touched(
    tail: OpenSearchTail, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index keeps half of a surrogate pair, escaped. It could not be read, again and again, and all behind it with it."""
    text = '{"customer": "a\\ud800", "total": 1.10, "big": 1' + "0" * 30 + "}"
    monkeypatch.setitem(DOCUMENT, "_source", ExactJson().loads(text))
    assert DOCUMENT["_source"] == {"customer": "a\ud800", "total": Decimal("1.10"), "big": 10**30}
    [first, _] = await read(tail, node, 2)
    [event] = first.events
    assert (event.key, event.value, dict(event.headers)["gapwatch-op"]) == (b'{"_id":"7"}', b"", b"update_touched")


@pytest.mark.parametrize("text", ['{"a": NaN}', '{"a": "\\ud800"', "[" * 100_000, '"\\ud800"' + "[" * 100_000])
def test_what_is_no_json_is_none(text: str) -> None:
    with pytest.raises(ValueError):
        ExactJson().loads(text)


@pytest.mark.parametrize(("room", "sizes"), [(1_000, [1_000]), (30, [1_000, 100, 10, 10, 10]), (0, [1_000, 100, 10, 1])])
async def test_a_page_that_the_node_has_no_room_for_is_asked_for_in_parts(
    tail: OpenSearchTail, node: Node, room: int, sizes: list[int]
) -> None:
    """The same thousand documents were asked for again and again, and rejected each time."""
    node.documents = [{**DOCUMENT, "_id": str(number), "_seq_no": number} for number in range(25)]
    node.room = room
    begun = Position(uuid="first", round=1, shards={0: -1}, histories={0: "history of first"})
    node.checkpoint, keys = 24, list[bytes]()
    async with aclosing(tail.open(begun.encode())) as opened:  # type: ignore[type-var]
        await anext(opened)
        try:
            while len(keys) < 25:
                keys += [event.key for event in (await anext(opened)).events]
        except StoreBusy:
            assert room == 0
    assert node.sizes == sizes
    assert len(set(keys)) == (25 if room else 0)
