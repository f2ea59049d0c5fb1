"""Each part of the tail's rule (``core/seqno.py``), broken in the tail itself on a real node: then it misses something."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest

from gapwatch.core.seqno import Position
from gapwatch.embedded import EmbeddedStack, OpenSearchPart, opensearch
from gapwatch.errors import HistoryLost
from gapwatch_connectors.opensearch import feed
from gapwatch_connectors.opensearch.connection import encode
from gapwatch_connectors.opensearch.feed import Checkpoints, OpenSearchTail
from tests.contract.test_targets import address_of
from tests.integration.test_opensearch import Followed, put, tail_spec
from tests.stack import ask, until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

WRITERS = 8
PER_BULK = 100
STILL = {"refresh_interval": "-1", "number_of_shards": 1, "number_of_replicas": 0}


@dataclass
class Seams:
    """Writes one document at each place where a round of the tail could be interrupted, until there are enough."""

    node: OpenSearchPart
    index: str
    most: int = 12
    written: set[str] = field(default_factory=set)

    async def write(self) -> None:
        if len(self.written) < self.most:
            number = len(self.written)
            await asyncio.to_thread(put, self.node, self.index, number, {"customer": "a"})
            self.written.add(encode({"_id": str(number)}).decode())


Broken = Callable[[pytest.MonkeyPatch, Seams], None]


def intact(_: pytest.MonkeyPatch, __: Seams) -> None: ...


def no_refresh(monkeypatch: pytest.MonkeyPatch, _: Seams) -> None:
    async def nothing(_: OpenSearchTail) -> None: ...

    monkeypatch.setattr(OpenSearchTail, "_refresh", nothing)


def refresh_before_the_checkpoint(monkeypatch: pytest.MonkeyPatch, seams: Seams) -> None:
    checkpoints, refresh = OpenSearchTail._checkpoints, OpenSearchTail._refresh

    async def early(tail: OpenSearchTail) -> Checkpoints:
        await refresh(tail)
        await seams.write()
        return await checkpoints(tail)

    monkeypatch.setattr(OpenSearchTail, "_checkpoints", early)
    no_refresh(monkeypatch, seams)


def beyond_the_checkpoint(monkeypatch: pytest.MonkeyPatch, _: Seams) -> None:
    """The position becomes the checkpoint as it is after the refresh, instead of the one that was read up to."""
    refresh = OpenSearchTail._refresh
    later: dict[int, int] = {}

    async def refreshed(tail: OpenSearchTail) -> None:
        await refresh(tail)
        later.update((await OpenSearchTail._checkpoints(tail)).shards)

    def read(self: Position, shard: int, through: int) -> Position:
        return replace(self, shards={**self.shards, shard: max(through, later.get(shard, through))})

    monkeypatch.setattr(OpenSearchTail, "_refresh", refreshed)
    monkeypatch.setattr(Position, "read", read)


@pytest.mark.parametrize("broken", [intact, no_refresh, refresh_before_the_checkpoint, beyond_the_checkpoint])
async def test_each_step_of_a_round_is_needed_in_its_place(
    node: OpenSearchPart, made: list[Any], unique: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, broken: Broken
) -> None:
    seams = Seams(node, unique("seams"))
    ask("PUT", f"{node.url}/{seams.index}", {"settings": STILL})
    monkeypatch.setattr(feed, "ROUND_SECONDS_MIN", 0.05)
    broken(monkeypatch, seams)
    surround(monkeypatch, seams)
    made.append(OpenSearchTail(tail_spec(seams.index), address_of(node)))
    follower = Followed(made[-1], None)
    await follower.until(lambda: len(seams.written) == seams.most)
    passed = follower.batches
    await follower.until(lambda: follower.batches > passed + 3 and Position.decode(follower.token).shards[0] == seams.most - 1)
    await follower.stop()
    # the first one was there before the tail's first look, and lies before its first position
    missed = seams.written - set(follower.seen)
    before = {encode({"_id": "0"}).decode()}
    assert (missed - before == set()) == (broken is intact), missed


def surround(monkeypatch: pytest.MonkeyPatch, seams: Seams) -> None:
    checkpoints, refresh = OpenSearchTail._checkpoints, OpenSearchTail._refresh

    async def looked(tail: OpenSearchTail) -> Checkpoints:
        await seams.write()
        found = await checkpoints(tail)
        await seams.write()
        return found

    async def refreshed(tail: OpenSearchTail) -> None:
        await refresh(tail)
        await seams.write()

    monkeypatch.setattr(OpenSearchTail, "_checkpoints", looked)
    monkeypatch.setattr(OpenSearchTail, "_refresh", refreshed)


# the bound, under load: a lower number may be on its way while a higher one shows


def write_new(url: str, index: str, writer: int, bulks: int) -> None:
    for bulk in range(bulks):
        ids = range((writer * bulks + bulk) * PER_BULK, (writer * bulks + bulk + 1) * PER_BULK)
        lines = (b'{"index":{"_id":"%d"}}\n{"customer":"c"}\n' % number for number in ids)
        ask("POST", f"{url}/{index}/_bulk?filter_path=errors", b"".join(lines))


async def write_all(node: OpenSearchPart, index: str, writers: int, bulks: int) -> None:
    with ThreadPoolExecutor(writers) as threads:
        run = partial(asyncio.get_running_loop().run_in_executor, threads)
        await asyncio.gather(*(run(write_new, node.url, index, writer, bulks) for writer in range(writers)))


async def quiet() -> None:
    """Write nothing."""


async def shown_of(tail: OpenSearchTail, load: Callable[[], Awaitable[Any]], token: bytes | None = None) -> set[str]:
    """Follow while the load runs, which starts once the tail has a position, and three rounds longer; return what was shown."""
    follower = Followed(tail, token)
    await follower.until(lambda: follower.batches > 0)
    await load()
    passed = follower.watermark
    for _ in range(3):
        await follower.until(lambda: follower.watermark > passed)  # noqa: B023
        passed = follower.watermark
    await follower.stop()
    return set(follower.seen)


@pytest.fixture(scope="module")
def busy() -> Iterator[OpenSearchPart]:
    """A node that writes in more threads than the machine has cores: one may have to wait between its number and its document."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opensearch, "HEAP", (*opensearch.HEAP, f"-XX:ActiveProcessorCount={WRITERS}"))
        with EmbeddedStack(parts=("opensearch",)) as stack:
            yield stack.opensearch


async def test_nothing_is_missed_while_many_write(
    busy: OpenSearchPart, made: list[Any], unique: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That it is the global checkpoint which bounds a round is shown on a model (``tests/property/test_seqno.py``)."""
    monkeypatch.setattr(feed, "ROUND_SECONDS_MIN", 0.01)
    index = unique("bound")
    ask("PUT", f"{busy.url}/{index}", {"settings": STILL})
    put(busy, index, 10**9, {"customer": "first"})
    made.append(OpenSearchTail(tail_spec(index), address_of(busy)))
    shown = await shown_of(made[-1], partial(write_all, busy, index, WRITERS, 10))
    assert len(shown - {encode({"_id": str(10**9)}).decode()}) == WRITERS * 10 * PER_BULK


# whose position it is


@pytest.mark.parametrize("checked", [True, False])
async def test_a_position_is_one_of_the_index_and_not_of_its_name(
    node: OpenSearchPart, made: list[Any], unique: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, checked: bool
) -> None:
    if not checked:
        monkeypatch.setattr(Position, "must_be", lambda *_: None)
        monkeypatch.setattr(Position, "continued", lambda self, *_: self)
    index = unique("again")
    ask("PUT", f"{node.url}/{index}", {"settings": STILL})
    for number in range(5):
        put(node, index, number, {"customer": "a"})
    token = await end_of(OpenSearchTail(tail_spec(index), address_of(node)), made)
    ask("DELETE", f"{node.url}/{index}")
    ask("PUT", f"{node.url}/{index}", {"settings": STILL})
    for number in range(100, 107):
        put(node, index, number, {"customer": "a"})
    await assert_judged(node, index, made, token, checked, {str(number) for number in range(100, 107)})


@pytest.mark.parametrize("checked", [True, False])
async def test_m4_a_snapshot_restored_over_an_index_is_history_lost(
    node: OpenSearchPart, made: list[Any], unique: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, checked: bool
) -> None:
    """The index keeps its uuid then, and gives out the same numbers once more: only its history's uuid tells."""
    if not checked:
        monkeypatch.setattr(Position, "continued", lambda self, *_: self)
    index = unique("restored")
    ask("PUT", f"{node.url}/{index}", {"settings": STILL})
    put(node, index, 1, {"customer": "yesterday"})
    with snapshots(node, index) as restore:
        for number in range(2, 6):
            put(node, index, number, {"customer": "a"})
        token = await end_of(OpenSearchTail(tail_spec(index), address_of(node)), made)
        restore()
    for number in range(100, 107):
        put(node, index, number, {"customer": "a"})
    await assert_judged(node, index, made, token, checked, {str(number) for number in range(100, 107)})


async def end_of(tail: OpenSearchTail, made: list[Any]) -> bytes:
    made.append(tail)
    follower = Followed(tail, None)
    await follower.until(lambda: follower.batches > 1)
    await follower.stop()
    return follower.token


async def assert_judged(
    node: OpenSearchPart, index: str, made: list[Any], token: bytes, checked: bool, expected: set[str]
) -> None:
    made.append(OpenSearchTail(tail_spec(index), address_of(node)))
    if checked:
        with pytest.raises(HistoryLost, match=f"The index {index} was"):
            await shown_of(made[-1], quiet, token)
        return
    shown = await shown_of(made[-1], quiet, token)
    assert {encode({"_id": one}).decode() for one in expected} - shown, "unchecked, what stands behind the position alone shows"


@contextmanager
def snapshots(node: OpenSearchPart, index: str) -> Iterator[Callable[[], None]]:
    """Keep the index as it is now; yields what restores it over whatever became of it."""
    repository = f"{node.url}/_snapshot/kept"
    ask("PUT", repository, {"type": "fs", "settings": {"location": str(node.repository)}})
    snapshot, only = f"{repository}/{index}", {"indices": index, "include_global_state": False}
    ask("PUT", f"{snapshot}?wait_for_completion=true", only)

    def restore() -> None:
        ask("POST", f"{node.url}/{index}/_close")
        ask("POST", f"{snapshot}/_restore?wait_for_completion=true", only)

    try:
        yield restore
    finally:
        ask("DELETE", snapshot)


# whom it asks


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[OpenSearchPart, OpenSearchPart]]:
    with EmbeddedStack(parts=("opensearch",)) as stack:
        yield stack.opensearch, stack.add_opensearch_node()


@pytest.mark.parametrize("primary", [True, False])
async def test_only_primaries_are_asked(
    pair: tuple[OpenSearchPart, OpenSearchPart],
    made: list[Any],
    unique: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    primary: bool,
) -> None:
    """Where segments are copied, a replica shows a refresh later than its primary, which the refresh does not wait for."""
    node, index = pair[0], unique("copied")
    settings = {"number_of_shards": 1, "number_of_replicas": 1, "replication.type": "SEGMENT", "refresh_interval": "-1"}
    ask("PUT", f"{node.url}/{index}", {"settings": settings})
    await asyncio.to_thread(until, lambda: node.get(f"/_cluster/health/{index}")["status"] == "green", "the replica")
    monkeypatch.setattr(feed, "ROUND_SECONDS_MIN", 0.01)
    if not primary:
        monkeypatch.setattr(feed, "PRIMARY", "_replica")
    made.append(OpenSearchTail(tail_spec(index), address_of(node)))
    missed = 2 * 25 * PER_BULK - len(await shown_of(made[-1], partial(write_all, node, index, 2, 25)))
    assert bool(missed) != primary
