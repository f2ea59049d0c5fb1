"""Work beside its caller: one piece at a time, and nobody loses what it raised."""

from __future__ import annotations

import asyncio

import pytest

from gapwatch.roles.repair.beside import Beside


class Pieces:
    def __init__(self) -> None:
        self.done: list[str] = []
        self.go = asyncio.Event()

    async def piece(self, name: str, error: str = "") -> None:
        await self.go.wait()
        self.done.append(name)
        if error:
            raise ValueError(error)


async def test_a_piece_goes_on_beside_its_caller_and_the_next_one_waits_for_it() -> None:
    pieces, beside = Pieces(), Beside()
    async with beside:
        await beside.begin(pieces.piece("one"))
        assert pieces.done == []
        pieces.go.set()
        await beside.begin(pieces.piece("two"))
        assert pieces.done == ["one"]
    assert pieces.done == ["one", "two"]


async def test_what_a_piece_raises_is_raised_before_another_one_begins() -> None:
    pieces, beside = Pieces(), Beside()
    pieces.go.set()
    await beside.begin(pieces.piece("one", "it failed"))
    with pytest.raises(ValueError, match="it failed"):
        await beside.begin(pieces.piece("two"))
    await beside.ended()
    assert pieces.done == ["one"]


async def test_what_a_piece_raises_is_raised_at_the_blocks_end() -> None:
    pieces, beside = Pieces(), Beside()
    pieces.go.set()
    with pytest.raises(ValueError, match="it failed"):
        async with beside:
            await beside.begin(pieces.piece("one", "it failed"))


async def test_what_ends_the_block_is_told_once_the_piece_has_ended() -> None:
    pieces, beside = Pieces(), Beside()
    asyncio.get_running_loop().call_later(0.01, pieces.go.set)

    async def fail() -> None:
        async with beside:
            await beside.begin(pieces.piece("one", "it failed"))
            raise KeyError

    with pytest.raises(KeyError):
        await fail()
    assert pieces.done == ["one"]
