"""What several ask at the same time is one question, and none of them depends on the others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from gapwatch.clock import SystemClock
from gapwatch.errors import StoreRefused, StoreUnreachable
from gapwatch.jointly import APART_SECONDS, Jointly
from tests.simulation.stores import VirtualClock


class Store:
    """Answers what it is asked, but "locked", which it never answers, and "refused"."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.alone: list[str] = []

    async def answer(self, questions: Sequence[str]) -> dict[str, int]:
        self.calls.append(sorted(questions))
        if "refused" in questions:
            raise StoreRefused("No.", store="shop")
        if "locked" in questions:
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        return {one: len(self.calls) for one in questions}

    async def ask(self, jointly: Jointly[str, dict[str, int]], question: str) -> int:
        async def alone() -> dict[str, int]:
            self.alone.append(question)
            if question == "locked":
                raise StoreUnreachable("It is locked.", store="shop")
            return await self.answer([question])

        return (await jointly.ask(question, alone))[question]


async def test_what_waits_at_the_same_time_is_one_question() -> None:
    store = Store()
    jointly = Jointly(store.answer, SystemClock())
    assert await asyncio.gather(*(store.ask(jointly, one) for one in "abc")) == [1, 1, 1]
    assert store.calls == [["a", "b", "c"]]
    assert await store.ask(jointly, "a") == 2, "an answer of before is none"
    assert store.alone == []


async def test_who_comes_while_a_question_is_under_way_gets_an_answer_that_begins_later() -> None:
    store, begun, going = Store(), asyncio.Event(), asyncio.Event()

    async def slowly(questions: Sequence[str]) -> dict[str, int]:
        begun.set()
        found = await store.answer(questions)
        await going.wait()
        return found

    jointly = Jointly(slowly, SystemClock(), gather=0)
    first = asyncio.create_task(store.ask(jointly, "a"))
    await begun.wait()
    begun.clear()
    second = asyncio.create_task(store.ask(jointly, "a"))
    await begun.wait()
    going.set()
    assert [await first, await second] == [1, 2]


@pytest.mark.parametrize("bad", ["refused", "locked"])
async def test_what_is_refused_or_waits_keeps_nobody_else_from_an_answer(bad: str) -> None:
    """For a while everybody asks by himself then, at once; later it is tried again."""
    store, clock = Store(), VirtualClock()
    jointly = Jointly(store.answer, clock, patience=0.05)
    wrong, right = await asyncio.gather(store.ask(jointly, bad), store.ask(jointly, "a"), return_exceptions=True)
    assert isinstance(wrong, StoreRefused | StoreUnreachable)
    assert isinstance(right, int)
    assert store.calls[0] == sorted([bad, "a"])
    assert store.alone == [bad, "a"]
    await store.ask(jointly, "b")
    assert store.alone == [bad, "a", "b"]
    await clock.sleep(APART_SECONDS)
    assert await asyncio.gather(store.ask(jointly, "a"), store.ask(jointly, "b"))
    assert store.alone == [bad, "a", "b"]
    assert store.calls[-1] == ["a", "b"]
    jointly.close()


async def test_who_stops_waiting_leaves_the_others_alone() -> None:
    store = Store()
    jointly = Jointly(store.answer, SystemClock())
    first, second = (asyncio.create_task(store.ask(jointly, one)) for one in "ab")
    await asyncio.sleep(0)
    first.cancel()
    assert await second == 1


async def test_what_was_under_way_ends_with_it_and_it_can_be_asked_again() -> None:
    store = Store()
    jointly = Jointly(store.answer, SystemClock())
    first = asyncio.create_task(store.ask(jointly, "a"))
    await asyncio.sleep(0)
    jointly.close()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await store.ask(jointly, "b") == 1
    assert store.calls == [["b"]]
