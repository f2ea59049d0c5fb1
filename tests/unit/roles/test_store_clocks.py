"""A wrong clock is named; a slow answer is none."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from gapwatch.check_ports import Advice
from gapwatch.errors import StoreUnreachable
from gapwatch.roles.repair.clocks import StoreClocks
from tests.simulation.stores import spec_of_rig


@dataclass
class Reader:
    """Answers with these offsets, in milliseconds, one after the other."""

    offsets: list[int]

    async def clock_offset_ms(self) -> int:
        return self.offsets.pop(0)


def checked(source: list[int], target: list[int]) -> Sequence[Advice]:
    async def stores() -> Any:
        return SimpleNamespace(source=Reader(source), target=Reader(target))

    return asyncio.run(StoreClocks(spec_of_rig(), stores).check())


def test_clocks_that_go_together_are_asked_once() -> None:
    assert checked([2_000], [-2_000]) == []


@pytest.mark.parametrize("offsets", [[9_000, 30], [9_000, -9_000, -1_999]])
def test_an_answer_that_was_slow_is_asked_for_again(offsets: list[int]) -> None:
    assert checked(offsets, [0]) == []


def test_a_wrong_clock_is_named_with_its_store_and_its_side() -> None:
    ahead, behind = checked([9_000, 8_400, 8_900], [-2_001, -2_050, -70_000])
    assert (ahead.finding, ahead.subject) == ("clock_skew", "orders.source")
    assert "store shop is 8.4 s ahead of ours" in ahead.message
    assert (behind.finding, behind.subject) == ("clock_skew", "orders.target")
    assert "store catalog is 2.0 s behind ours" in behind.message


def test_a_store_that_does_not_answer_hides_no_wrong_clock_of_the_other_one() -> None:
    class Away:
        async def clock_offset_ms(self) -> int:
            raise StoreUnreachable("It does not answer.", store="shop")

    async def stores() -> Any:
        return SimpleNamespace(source=Away(), target=Reader([9_000] * 3))

    unknown, ahead = asyncio.run(StoreClocks(spec_of_rig(), stores).watch())
    assert (unknown.level, unknown.subject, unknown.finding) == ("unknown", "orders.source", "clock_skew")
    assert (ahead.level, ahead.subject) == ("warning", "orders.target")
