"""Transactions counted: whatever order the topics are read in, however often, and wherever a reader ends and another goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gapwatch.core import transactions
from gapwatch.core.transactions import Incomplete, Place, TransactionCheck

TOPIC = "shop.transaction"
EU, US = "shop.public.eu", "shop.public.us"
TABLES = {EU: "public.eu", US: "public.us"}
SETTLE = 1_000


class Record(NamedTuple):
    place: Place
    offset: int
    append: int
    value: bytes


class Log:
    """The topics as a connector fills them: begin, events, end. ``drop``: (transaction, table, number) that never arrive."""

    def __init__(self, *, wrapped: bool = False) -> None:
        self.records: list[Record] = []
        self.wrapped = wrapped
        self.now = 10_000
        self._offsets: dict[Place, int] = {}

    def add(self, place: Place, value: Any) -> None:
        offset = self._offsets.get(place, 0)
        self._offsets[place] = offset + 1
        text = {"schema": None, "payload": value} if self.wrapped else value
        self.records.append(Record(place, offset, self.now, json.dumps(text).encode()))

    def transaction(
        self, number: int, *tables: str, drop: Sequence[int] = (), begin: bool = True, end: bool = True, partition: int = 0
    ) -> None:
        """Write one event per table named; ``drop``: positions among them that are lost."""
        if begin:
            self.add(
                (TOPIC, 0), {"status": "BEGIN", "id": f"{number}:1", "event_count": None, "data_collections": None, "ts_ms": 1}
            )
        counts: dict[str, int] = {}
        for position, table in enumerate(tables):
            counts[table] = counts.get(table, 0) + 1
            within = {"id": f"{number}:{position}", "total_order": position + 1, "data_collection_order": counts[table]}
            if position not in drop:
                event = {"op": "c", "after": {"id": 1}, "source": {"schema": "public"}, "transaction": within}
                self.add((table, (partition + position) % 2), event)
        self.now += 10
        if end:
            self.boundary("END", f"{number}:9", counts)

    def boundary(self, status: str, name: str, counts: dict[str, int] | None) -> None:
        counted = None
        if counts is not None:
            counted = [{"data_collection": TABLES.get(table, table), "event_count": count} for table, count in counts.items()]
        total = None if counts is None else sum(counts.values())
        said = {"status": status, "id": name, "ts_ms": self.now, "event_count": total, "data_collections": counted}
        self.add((TOPIC, 0), said)


def read(check: TransactionCheck, records: Sequence[Record]) -> None:
    for record in records:
        check.take(record.place, record.offset, record.append, record.value)


def judged(check: TransactionCheck, clock: int = 10**9) -> list[Incomplete]:
    return list(check.judge(clock).incomplete)


@pytest.mark.parametrize("wrapped", [False, True])
def test_m12_a_dropped_event_is_named_by_its_transaction(wrapped: bool) -> None:
    log, check = Log(wrapped=wrapped), TransactionCheck(TOPIC, TABLES, SETTLE)
    log.transaction(571, EU, EU, US, drop=[1])
    log.transaction(572, EU, US)
    read(check, log.records)
    assert not check.due(), "what comes late may be on its way"
    log.now += SETTLE
    log.transaction(573, US)
    read(check, log.records[-3:])
    assert check.due()
    found = check.judge(check.clock)
    assert (found.complete, found.unchecked) == (1, 0)
    (lacks,) = found.incomplete
    assert lacks == Incomplete("571", EU, "public.eu", 2, 1, (2,), 10_010)
    assert lacks.sentence() == ("transaction 571 wrote 2 times to public.eu; 1 of its events (number 2) is not in shop.public.eu")
    assert not check.due()
    assert judged(check) == []


def test_m12_tables_that_are_not_watched_are_not_counted() -> None:
    log, check = Log(), TransactionCheck(TOPIC, {EU: "public.eu"}, SETTLE)
    log.transaction(571, EU, US, US, "public.other", drop=[1, 2, 3])
    log.transaction(572, US, drop=[0])
    log.transaction(573)
    read(check, log.records)
    assert check.judge(10**9).complete == 3


def test_what_was_begun_before_the_check_is_not_judged() -> None:
    log, check = Log(), TransactionCheck(TOPIC, TABLES, SETTLE)
    log.transaction(571, EU, EU, drop=[0], begin=False)
    log.transaction(572, EU, begin=False, end=False)
    read(check, log.records)
    found = check.judge(10**9)
    assert (found.complete, found.unchecked, found.incomplete) == (0, 1, [])
    assert check.position()["open"] == []


def test_a_transaction_waits_for_its_end_however_long() -> None:
    log, check = Log(), TransactionCheck(TOPIC, TABLES, SETTLE)
    log.transaction(571, EU, EU, end=False)
    log.now += 10 * SETTLE
    log.transaction(572, US)
    read(check, log.records)
    assert check.judge(10**9).complete == 1
    assert check.position()["open"] == ["571"]


def test_the_position_says_up_to_which_commit_all_was_judged() -> None:
    log, check = Log(), TransactionCheck(TOPIC, TABLES, SETTLE)
    log.transaction(571, EU)
    log.transaction(572, EU, drop=[0])
    log.now += SETTLE
    log.transaction(573, US)
    assert check.position()["through"] == 0
    read(check, log.records)
    check.judge(check.clock)
    position = check.position()
    assert position["through"] == 10_020, "when 572 was committed; 573 may lack events yet"
    successor = TransactionCheck(TOPIC, TABLES, SETTLE)
    successor.resume(position)
    assert successor.position()["through"] == 10_020


def test_a_complete_one_that_is_repeated_in_part_stays_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connector that starts again sends what it had not committed once more; what it leaves out then is there already."""
    monkeypatch.setattr(transactions, "COMPLETE_KEPT", 2)
    log, check = Log(), TransactionCheck(TOPIC, TABLES, SETTLE)
    for number in (571, 572):
        log.transaction(number, EU, US)
    read(check, log.records)
    assert check.judge(10**9).complete == 2
    before = len(log.records)
    log.transaction(571, EU, US, drop=[1])
    log.transaction(573, EU)
    read(check, log.records[before:])
    found = check.judge(10**9)
    assert (found.complete, found.incomplete) == (1, [])
    log.transaction(571, EU, US, drop=[1])
    read(check, log.records[-3:])
    assert [one.id for one in judged(check)] == ["571"], "of those longer ago nothing is remembered"


def test_repeated_events_and_ends_change_nothing() -> None:
    """A connector that was killed sends again what it had not committed."""
    log, check = Log(), TransactionCheck(TOPIC, TABLES, SETTLE)
    log.transaction(571, EU, US, end=False)
    log.transaction(571, EU, US)
    read(check, log.records)
    assert check.judge(10**9).complete == 1


def test_limits_give_the_oldest_up_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transactions, "TRANSACTIONS_MAX", 3)
    log, check = Log(), TransactionCheck(TOPIC, TABLES, SETTLE)
    for number in range(5):
        log.transaction(number, EU, EU, drop=[0], end=False)
    read(check, log.records)
    for number in range(5):
        log.boundary("END", f"{number}:9", {EU: 2})
    read(check, log.records[-5:][::-1])
    found = check.judge(10**9)
    assert found.unchecked >= 2
    assert {one.id for one in found.incomplete} <= {"2", "3", "4"}


def test_a_transaction_of_very_many_events_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transactions, "EVENTS_MAX", 64)
    log, check = Log(), TransactionCheck(TOPIC, TABLES, SETTLE)
    log.transaction(1, *[EU] * 100)
    log.transaction(2, EU)
    read(check, log.records)
    found = check.judge(10**9)
    assert found.incomplete == []
    assert found.complete == 1


def test_a_position_of_other_tables_is_not_taken_up() -> None:
    check = TransactionCheck(TOPIC, TABLES, SETTLE)
    position = check.position()
    assert TransactionCheck(TOPIC, {EU: "public.eu"}, SETTLE).resume(position) is None
    assert TransactionCheck(TOPIC, TABLES, SETTLE).resume(position) == {}


def test_what_was_judged_is_not_judged_again_by_a_reader_that_did_not_come_as_far() -> None:
    """The second reader ends between an event of what the first had judged, and its begin; the third reads the begin."""
    log, first = Log(), TransactionCheck(TOPIC, TABLES, SETTLE)
    log.transaction(571, EU, US, end=False)
    log.transaction(572, EU, US)
    read(first, log.records)
    assert first.judge(10**9).complete == 1
    second = TransactionCheck(TOPIC, TABLES, SETTLE)
    starts = second.resume(first.position())
    assert starts is not None
    second.begin(starts)
    read(second, [record for record in log.records if record.place[0] == EU and record.offset >= starts[record.place]])
    third = TransactionCheck(TOPIC, TABLES, SETTLE)
    starts = third.resume(second.position())
    assert starts is not None
    third.begin(starts)
    read(third, [record for record in log.records if record.offset >= starts[record.place]])
    found = third.judge(10**9)
    assert (found.complete, found.unchecked, found.incomplete) == (0, 0, [])
    log.boundary("END", "571:9", {EU: 1, US: 1})
    read(third, log.records[-1:])
    assert third.judge(10**9).complete == 1


transaction = st.tuples(st.lists(st.sampled_from([EU, US]), max_size=6), st.sets(st.integers(0, 5), max_size=2))


@given(st.lists(transaction, min_size=1, max_size=6), st.data())
def test_m12_the_same_is_found_whatever_the_order_and_wherever_readers_change(
    written: list[tuple[list[str], set[int]]], data: st.DataObject
) -> None:
    """Partitions are read in any interleaving, judged in between; readers end anywhere, and go on at what was stored last."""
    log = Log()
    wanted = set()
    for number, (tables, drop) in enumerate(written):
        log.now += data.draw(st.sampled_from([0, SETTLE]))
        log.transaction(number, *tables, drop=sorted(drop), partition=number)
        for table in {tables[position] for position in drop if position < len(tables)}:
            wanted.add((str(number), table, sum(tables[position] == table for position in drop if position < len(tables))))
    by_place: dict[Place, list[Record]] = {}
    for record in log.records:
        by_place.setdefault(record.place, []).append(record)
    check = TransactionCheck(TOPIC, TABLES, SETTLE)
    starts: dict[Place, int] = dict.fromkeys(by_place, 0)
    check.begin(starts)
    positions, stored = dict(starts), check.position()
    found: list[tuple[str, str, int]] = []
    since = repeated = 0

    def step(limit: int) -> None:
        """Read all that is left in some order up to `limit` records."""
        for _ in range(limit):
            left = [place for place, records in by_place.items() if positions[place] < len(records)]
            if not left:
                return
            place = data.draw(st.sampled_from(left))
            read(check, [by_place[place][positions[place]]])
            positions[place] += 1

    for _ in range(data.draw(st.integers(0, 3))):
        step(data.draw(st.integers(0, 10)))
        if all(positions[place] == len(records) for place, records in by_place.items()) and check.due():
            found += [(one.id, one.topic, one.missing) for one in judged(check, check.clock)]
        if data.draw(st.booleans()):
            stored, since = check.position(), len(found)
        if data.draw(st.booleans()):  # what was found since is found once more
            repeated += len(found) - since
            since = len(found)
            check = TransactionCheck(TOPIC, TABLES, SETTLE)
            resumed = check.resume(json.loads(json.dumps(stored)))
            assert resumed is not None
            check.begin(resumed)
            positions = {**dict.fromkeys(by_place, 0), **resumed}
    step(10**6)
    found += [(one.id, one.topic, one.missing) for one in judged(check)]
    assert set(found) == wanted
    assert len(found) == len(wanted) + repeated, "each once, unless it was found after the position was stored"
