"""A node that has too much to do rejects a page of a scan: the scan pauses, and goes on."""

from __future__ import annotations

from typing import Any

import pytest
from opensearchpy.exceptions import TransportError

from gapwatch.core.search_address import SearchAddress
from gapwatch.errors import StoreBusy, StoreRefused, StoreUnreachable
from gapwatch_connectors.opensearch import connection
from gapwatch_connectors.opensearch.connection import PAUSES_SECONDS, Search

ADDRESS = SearchAddress(scheme="http", hosts=("127.0.0.1:1",)).encode()


def search(monkeypatch: pytest.MonkeyPatch, answers: list[Any]) -> tuple[Search, list[float]]:
    """Return a client whose requests are answered like this, one after the other, and the pauses that it makes."""
    made, paused = Search("search", ADDRESS), list[float]()

    async def request(*_: Any, **__: Any) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def sleep(seconds: float) -> None:
        paused.append(seconds)

    monkeypatch.setattr(made, "request", request)
    monkeypatch.setattr("gapwatch_connectors.opensearch.connection.asyncio.sleep", sleep)
    return made, paused


async def test_a_page_that_was_rejected_is_asked_for_again_after_a_pause_that_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    made, paused = search(monkeypatch, [StoreBusy("busy"), StoreBusy("busy"), {"hits": 1}])
    assert await made.search({}, {}, None) == {"hits": 1}
    assert paused == list(PAUSES_SECONDS[:2])


async def test_a_node_that_goes_on_rejecting_leaves_the_range_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    made, paused = search(monkeypatch, [StoreBusy("busy")] * 10)
    with pytest.raises(StoreBusy):
        await made.search({}, {}, None)
    assert paused == list(PAUSES_SECONDS)


@pytest.mark.parametrize("error", [StoreUnreachable("away"), StoreRefused("no")])
async def test_what_is_no_rejection_is_not_tried_again(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    made, paused = search(monkeypatch, [error, {}])
    with pytest.raises(type(error)):
        await made.search({}, {}, None)
    assert paused == []


def test_a_rejection_is_told_from_a_node_that_is_away() -> None:
    assert isinstance(connection._ours("s", TransportError(429, "too many", {})), StoreBusy)
    assert not isinstance(connection._ours("s", TransportError(503, "away", {})), StoreBusy)
