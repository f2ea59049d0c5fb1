"""What many tasks ask at about the same time is asked once, and nobody's answer depends on who else waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from gapwatch.clock import SystemClock
from gapwatch.errors import StoreUnreachable
from gapwatch.ledger import SqlLedger
from gapwatch.roles.stores import StoreAnswers
from gapwatch.roles.together import Together, facts_together, renewals_together


class Asked:
    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.away = False

    def work(self, items: Sequence[int]) -> Sequence[int]:
        self.calls.append(list(items))
        if self.away:
            raise StoreUnreachable("away", store="ledger")
        return [10 * item for item in items]


def together(asked: Asked) -> Together[int, int]:
    return Together(asked.work, SystemClock(), seconds=0.01)


async def test_each_gets_its_own_answer_of_one_call() -> None:
    asked = Asked()
    ask = together(asked)
    assert await asyncio.gather(*(ask.ask(item) for item in (3, 1, 2))) == [30, 10, 20]
    assert await ask.ask(4) == 40, "later ones are asked anew"
    assert asked.calls == [[3, 1, 2], [4]]


async def test_a_failure_is_that_of_all_who_wait_and_of_nobody_after_them() -> None:
    asked = Asked()
    asked.away = True
    ask = together(asked)
    answers = await asyncio.gather(ask.ask(1), ask.ask(2), return_exceptions=True)
    assert [type(answer) for answer in answers] == [StoreUnreachable, StoreUnreachable]
    asked.away = False
    assert await ask.ask(1) == 10


async def test_who_stops_waiting_leaves_the_others_alone() -> None:
    asked = Asked()
    ask = together(asked)
    first, second = asyncio.create_task(ask.ask(1)), asyncio.create_task(ask.ask(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == 20


async def test_of_several_leases_the_lost_one_is_told_from_the_others(ledger: SqlLedger) -> None:
    held = [ledger.take_lease(name, "me", seconds=60) for name in ("a", "b", "c")]
    leases = [lease for lease in held if lease is not None]
    ledger.release_lease(leases[1])
    assert ledger.take_lease("b", "you", seconds=60)
    renewals = renewals_together(ledger, SystemClock(), seconds=120)
    renewed = await asyncio.gather(*(renewals.ask(lease) for lease in leases))
    assert [lease and lease.name for lease in renewed] == ["a", None, "c"]
    assert renewed[0] is not None
    assert renewed[0].expires_at > leases[0].expires_at


async def test_of_one_facts_values_the_last_stays(ledger: SqlLedger) -> None:
    facts = facts_together(ledger, SystemClock())
    await asyncio.gather(facts.ask(("a", 1)), facts.ask(("b", {"n": 2})), facts.ask(("a", 3)))
    assert ledger.facts() == {"a": 3, "b": {"n": 2}}


class Store:
    def __init__(self) -> None:
        self.asked = 0
        self.away = False

    async def ping(self) -> int:
        self.asked += 1
        await asyncio.sleep(0)
        if self.away:
            raise StoreUnreachable("away", store="shop")
        return self.asked


async def test_a_store_answers_all_of_its_pipelines_at_once() -> None:
    store, other, answers = Store(), Store(), StoreAnswers[int](SystemClock())
    asks = [answers.ask(name, one.ping, seconds=60) for name, one in (("shop", store), ("shop", store), ("catalog", other))]
    assert await asyncio.gather(*asks) == [1, 1, 1]
    assert await answers.ask("shop", store.ping, seconds=60) == 1, "it is young enough"
    assert await answers.ask("shop", store.ping, seconds=-1) == 2, "it is too old"


async def test_a_store_that_did_not_answer_is_asked_anew_by_the_next() -> None:
    store, answers = Store(), StoreAnswers[int](SystemClock())
    store.away = True
    with pytest.raises(StoreUnreachable):
        await answers.ask("shop", store.ping, seconds=60)
    store.away = False
    assert await answers.ask("shop", store.ping, seconds=60) == 2
