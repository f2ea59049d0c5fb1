"""The ``_seq_no`` tail against a model of a shard: nothing that is still there is missed, and each part of the rule is needed.

In the model, as in the server, a write takes its number first and is done later, so that a higher number may be there while a
lower one is not; the global checkpoint is the number up to which all are done; a refresh makes visible what is done then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from gapwatch.core.seqno import NOTHING, Position, Window
from gapwatch.errors import HistoryLost


@dataclass
class Shard:
    """One primary: writes of documents `0…n`, each a (number, document)."""

    random: Random
    next_number: int = 0
    under_way: dict[int, int] = field(default_factory=dict)  # number → document
    done: dict[int, int] = field(default_factory=dict)  # document → its newest number
    finished: set[int] = field(default_factory=set)
    visible: dict[int, int] = field(default_factory=dict)

    @property
    def checkpoint(self) -> int:
        return min(self.under_way, default=self.next_number) - 1

    def act(self) -> None:
        """Begin a write, or end any of those under way; or refresh, as the index does by itself now and then."""
        choice = self.random.random()
        if choice < 0.5:
            document = self.random.randrange(12)
            if document not in self.under_way.values():  # writes of one document wait for each other
                self.under_way[self.next_number] = document
                self.next_number += 1
        elif choice < 0.95 and self.under_way:
            self.finish(self.random.choice(list(self.under_way)))
        elif choice >= 0.95:
            self.refresh()

    def finish(self, number: int) -> None:
        self.done[self.under_way.pop(number)] = number

    def refresh(self) -> None:
        self.visible = dict(self.done)

    def read(self, window: Window) -> dict[int, int]:
        return {document: n for document, n in self.visible.items() if window.after < n <= window.through}


Rule = Callable[[Shard, Position], tuple[Position, dict[int, int]]]


def right(shard: Shard, position: Position) -> tuple[Position, dict[int, int]]:
    return one_round(shard, position)


def one_round(
    shard: Shard, position: Position, *, bound: str = "checkpoint", refresh: str = "after", last: str = "bound"
) -> tuple[Position, dict[int, int]]:
    if refresh == "before":
        shard.refresh()
        for _ in range(shard.random.randrange(4)):
            shard.act()
    through = shard.checkpoint if bound == "checkpoint" else shard.next_number - 1
    for _ in range(shard.random.randrange(4)):
        shard.act()
    if refresh == "after":
        shard.refresh()
    for _ in range(shard.random.randrange(4)):
        shard.act()
    found: dict[int, int] = {}
    for window in position.begin(0).windows({0: through}):
        found = shard.read(window)
        end = through if last == "bound" else max(found.values(), default=through)
        position = position.read(0, end)
    return position, found


def missed(seed: int, rule: Rule) -> set[int]:
    """Run writes and rounds side by side, let all end, read once more; return the documents whose newest write never showed."""
    shard = Shard(Random(seed))
    position = Position(uuid="u", round=0, shards={0: NOTHING})
    seen: dict[int, int] = {}
    for _ in range(40):
        for _ in range(shard.random.randrange(12)):
            shard.act()
        position, found = rule(shard, position)
        seen |= found
    for number in list(shard.under_way):
        shard.finish(number)
    for _ in range(2):
        position, found = rule(shard, position)
        seen |= found
    for number in list(shard.under_way):
        shard.finish(number)
    shard.refresh()
    for window in position.windows({0: shard.checkpoint}):
        seen |= shard.read(window)
    return {document for document, number in shard.done.items() if seen.get(document) != number}


@examples(deadline=None, max_examples=300)
@given(st.integers(0, 2**32))
def test_nothing_that_is_there_is_missed(seed: int) -> None:
    assert missed(seed, right) == set()


def loses(rule: Rule) -> bool:
    return any(missed(seed, rule) for seed in range(200))


def test_a_checkpoint_that_is_not_the_bound_loses_writes() -> None:
    assert loses(lambda shard, position: one_round(shard, position, bound="greatest"))


@pytest.mark.parametrize("refresh", ["before", "never"])
def test_a_refresh_that_does_not_begin_after_the_checkpoint_loses_writes(refresh: str) -> None:
    assert loses(lambda shard, position: one_round(shard, position, refresh=refresh))


def test_going_on_from_the_greatest_number_seen_loses_writes_where_nothing_bounds_it() -> None:
    assert loses(lambda shard, position: one_round(shard, position, bound="greatest", last="seen"))


def test_reading_a_copy_that_is_behind_loses_writes() -> None:
    """The primary's checkpoint says nothing of what another copy shows: segment replication copies it later."""

    def from_replica(shard: Shard, position: Position) -> tuple[Position, dict[int, int]]:
        behind = dict(shard.visible)
        before = position
        position, _ = one_round(shard, position)
        through = position.shards[0]
        window = Window(shard=0, after=before.shards[0], through=through)
        return position, {document: n for document, n in behind.items() if window.after < n <= window.through}

    assert loses(from_replica)


def test_a_position_is_one_of_an_index_and_not_of_its_name() -> None:
    position = Position(uuid="first", round=5, shards={0: 7, 1: NOTHING})
    assert Position.decode(position.encode()) == position
    position.must_be("first", "orders")
    with pytest.raises(HistoryLost, match="orders was created anew"):
        position.must_be("second", "orders")


def test_a_position_is_one_of_a_shards_history() -> None:
    """A snapshot restored over an index leaves its uuid, and numbers are given out once more."""
    position = Position(uuid="u", round=5, shards={0: 7, 1: 9}, histories={0: "a", 1: "b"})
    assert Position.decode(position.encode()).continued({0: "a", 1: "b"}, "orders") == position
    with pytest.raises(HistoryLost, match="orders was set back"):
        position.continued({0: "a", 1: "c"}, "orders")
    old = Position.decode(b'{"uuid": "u", "round": 5, "shards": {"0": 7, "1": 9}}')  # as stored before there were histories
    assert old.continued({0: "a", 1: "b"}, "orders") == position


@pytest.mark.parametrize("token", [b"", b"{}", b'{"uuid": 1}', b'{"_data": "82"}'])
def test_a_foreign_token_is_history_lost(token: bytes) -> None:
    with pytest.raises(HistoryLost):
        Position.decode(token)


@given(st.lists(st.integers(0, 2**41), min_size=2, max_size=9))
def test_rounds_rise_whatever_the_clock_does(clocks: list[int]) -> None:
    rounds, position = [], Position(uuid="u", round=0)
    for now in clocks:
        position = Position.decode(position.begin(now).encode())
        rounds.append(position.round)
    assert rounds == sorted(set(rounds))
