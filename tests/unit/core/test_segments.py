"""The state's records: what was cut restores to the same keys, whatever was given up in between, and stays within its bounds."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gapwatch.core import segments
from gapwatch.core.keyrows import KeyRows
from gapwatch.core.keystate import EXTRA, HEAD_BYTES, Held, KeyState, alone_state, pack_head, with_tail
from gapwatch.core.segments import RECORD_BYTES_MAX, SegmentLog


def write(number: int, *, parts: int = 1, flags: int = 0, due: int = 0) -> bytes:
    head = pack_head(1, flags, 0, 0, parts, 3, 1, 1_000 + number, number, number, 5_000 + number, due or 7_000 + number)
    return head + bytes([1 + number % 250]) * (16 * parts)


def settled(number: int, *, parts: int = 1) -> bytes:
    return write(number, parts=parts) + write(number + 1)[:HEAD_BYTES]


def updated(number: int, *, older: int = 1, parts: int = 1) -> KeyState:
    state = KeyState()
    state.expected = write(number + 9, parts=parts)
    state.writes = [state.expected]
    state.older = [bytes([251 - at]) * (16 * parts) for at in range(older)]
    state.observed = write(number, parts=parts)[:HEAD_BYTES] + state.older[0] if older else None
    return state


def settled_before(number: int) -> bytes:
    return settled(number) + bytes(range(16)) + bytes(range(1, 17))


def long(number: int) -> KeyState:
    state = KeyState()
    state.expected, state.odd, state.observed = write(number), True, write(number + 7)
    return state


@dataclasses.dataclass
class Disk:
    """Keeps what a changelog would, in the order of the marker's list."""

    records: dict[str, bytes] = dataclasses.field(default_factory=dict)
    largest: int = 0

    def take(self, cut: list[tuple[str, bytes | None]]) -> None:
        for name, payload in cut:
            if payload is None:
                del self.records[name]
            else:
                assert name not in self.records
                self.records[name] = payload
                self.largest = max(self.largest, len(payload))


def restored(rows: KeyRows, log: SegmentLog, disk: Disk, *, parts: int = 1) -> tuple[KeyRows, SegmentLog]:
    again = KeyRows(parts)
    again.clock, again.evicted_below = rows.clock, rows.evicted_below
    other = SegmentLog(again, "again")
    other.restore(log.listed, disk.records)
    assert {name for name, _, _ in log.listed} == disk.records.keys()
    return again, other


def known(rows: KeyRows) -> dict[bytes, tuple[object, bool, int]]:
    def plain(held: Held | None) -> object:
        return held.packed() if isinstance(held, KeyState) else held

    return {key: (plain(rows.held(key)[0]), rows.held(key)[1], int(rows.order[row])) for key, row in rows.at.items()}


KEYS = st.integers(0, 9)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["open", "settle", "settle before", "update", "long", "odd", "alone", "drop"]), KEYS),
        st.sampled_from([("cut", 0), ("restart", 0), ("room", 4), ("gather", 0)]),
    ),
    max_size=60,
)


@given(STEPS)
@settings(deadline=None)
def test_whatever_happened_the_same_keys_come_back(steps: list[tuple[str, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "SLACK_KEYS", 3)
        patch.setattr(segments, "CLEANED_MIN", 4)
        patch.setattr(segments, "SEGMENTS_MIN", 5)
        rows, disk = KeyRows(1), Disk()
        log = SegmentLog(rows, "0")
        for number, (step, value) in enumerate([*steps, ("cut", 0), ("restart", 0)]):
            key = b"key%d" % value
            if step in ("open", "settle"):
                rows.put(key, write(number) if step == "open" else settled(number), is_open=step == "open")
            elif step in ("long", "odd"):
                rows.put(key, long(number), is_open=step == "odd")
            elif step == "alone":
                rows.put(key, alone_state(write(number)), is_open=True)
            elif step == "update":
                rows.put(key, updated(number, older=1 + number % 5), is_open=True)
            elif step == "settle before":
                rows.put(key, settled_before(number), is_open=False)
            elif step == "drop":
                rows.drop(key)
            elif step == "room":
                rows.make_room(value)
            elif step == "gather":
                rows.gather()
            else:
                before = known(rows)
                disk.take(log.cut())
                if step == "restart":
                    rows, log = restored(rows, log, disk)
                    log._prefix = str(number)
                assert known(rows) == before
                assert (rows.open, rows.settled) == (
                    sum(is_open for _, is_open, _ in before.values()),
                    sum(not is_open for _, is_open, _ in before.values()),
                )
        assert known(rows) == known(restored(rows, log, disk)[0])


def test_what_is_on_disk_stays_near_twice_of_what_is_known_and_in_small_records() -> None:
    rows, disk = KeyRows(1), Disk()
    log = SegmentLog(rows, "0")
    for turn in range(60):
        for number in range(2_000):
            rows.put(b"key%06d" % (number + turn % 5 * 500), write(number), is_open=True)
        disk.take(log.cut())
        assert sum(keys for _, _, keys in log.listed) <= 2 * len(rows) + segments.SLACK_KEYS + 2_000
    assert disk.largest <= RECORD_BYTES_MAX
    assert known(restored(rows, log, disk)[0]) == known(rows)


def test_a_checkpoint_of_few_changes_writes_little() -> None:
    rows, disk = KeyRows(1), Disk()
    log = SegmentLog(rows, "0")
    for number in range(20_000):
        rows.put(b"key%06d" % number, write(number), is_open=True)
    disk.take(log.cut())
    assert disk.largest <= RECORD_BYTES_MAX
    assert log.cut() == []
    rows.put(b"key%06d" % 7, settled(7), is_open=False)
    (record,) = log.cut()
    assert record[1] is not None
    assert len(record[1]) < 300


def test_many_small_segments_are_joined() -> None:
    rows, disk = KeyRows(1), Disk()
    log = SegmentLog(rows, "0")
    for number in range(2_000):
        rows.put(b"key%06d" % number, write(number), is_open=True)
        disk.take(log.cut())
    assert len(disk.records) <= segments.SEGMENTS_MIN + len(rows) // segments.KEYS_A_SEGMENT + 1
    assert known(restored(rows, log, disk)[0]) == known(rows)


def test_a_mapping_with_more_maskable_fields_takes_up_the_state_of_one_with_fewer() -> None:
    rows, disk = KeyRows(1), Disk()
    log = SegmentLog(rows, "0")
    rows.put(b"open", write(1), is_open=True)
    rows.put(b"settled", settled(2), is_open=False)
    rows.put(b"odd", long(3), is_open=True)
    rows.put(b"alone", alone_state(write(5)), is_open=True)
    rows.put(b"updated", updated(6, older=3), is_open=True)
    rows.put(b"settled before", settled_before(7), is_open=False)
    assert set(rows.long) == {b"odd"}
    rows.put(b"tail", write(4, flags=EXTRA) + with_tail(("1.5",), None), is_open=True)
    disk.take(log.cut())
    again, other = restored(rows, log, disk, parts=3)
    assert known(again) == known(rows)
    again.put(b"new", write(5, parts=3), is_open=True)
    disk.take(other.cut())
    assert known(restored(again, other, disk, parts=3)[0]) == known(again)


def test_rows_grow_and_are_moved_together_without_losing_a_due_time() -> None:
    rows = KeyRows(1)
    for number in range(200_000):
        rows.put(b"key%06d" % number, write(number, due=10 + number), is_open=True)
    for number in range(1_000, 200_000):
        rows.drop(b"key%06d" % number)
    rows.make_room(10)
    assert rows.size == len(rows) == 1_000
    assert rows.due(509) == [b"key%06d" % number for number in range(500)]
    assert len(rows.due(5_000)) == 1_000


def test_a_parked_key_is_not_found_by_its_own_due_time() -> None:
    rows = KeyRows(1)
    rows.put(b"a", write(1, due=10), is_open=True)
    rows.put(b"b", write(2, due=10), is_open=True)
    rows.park(b"a")
    assert rows.due(10) == [b"b"]
    assert rows.open_held(b"a") == write(1, due=10)
    rows.count()
    assert rows.due(10) == [b"a", b"b"]


def test_a_key_that_the_target_alone_has_shown_is_held_in_a_row_and_found_when_it_is_due() -> None:
    rows = KeyRows(1)
    rows.put(b"a", alone_state(write(1, due=10)), is_open=True)
    rows.put(b"b", alone_state(write(2, due=10)), is_open=True)
    assert rows.long == {}
    assert (rows.open, rows.due(9), rows.due(10)) == (2, [], [b"a", b"b"])
    rows.park(b"a")
    rows.put(b"b", settled(2), is_open=False)
    assert (rows.open, rows.due(10), rows.alone_rows().tolist(), rows.open_rows().tolist()) == (1, [], [0], [])
    held = rows.open_held(b"a")
    assert isinstance(held, KeyState)
    assert (held.observed, held.odd, held.due) == (write(1, due=10), True, 10)
    rows.count()
    assert rows.due(10) == [b"a"]


def test_the_keys_that_changed_last_stay_when_there_are_too_many() -> None:
    rows = KeyRows(1)
    for number in range(32):
        rows.put(b"%02d" % number, settled(number), is_open=False)
    rows.put(b"00", settled(0), is_open=False)
    rows.put(b"open", write(1), is_open=True)
    rows.make_room(16)
    assert rows.settled == 14
    assert set(rows.at) == {b"open", b"00", *(b"%02d" % number for number in range(19, 32))}


def test_a_state_from_before_rows_held_updates_is_read() -> None:
    rows, disk = KeyRows(1), Disk()
    log = SegmentLog(rows, "0")
    rows.put(b"open", write(1), is_open=True)
    rows.put(b"settled", settled(2), is_open=False)
    disk.take(log.cut())
    disk.records = {name: msgspec.msgpack.encode(msgspec.msgpack.decode(body)[:-2]) for name, body in disk.records.items()}
    assert known(restored(rows, log, disk)[0]) == known(rows)


def test_an_updated_row_is_due_by_its_new_write_and_can_be_parked() -> None:
    rows = KeyRows(1)
    rows.put(b"key", updated(1), is_open=True)
    assert not rows.long
    assert rows.due(7_009) == []
    rows.park(b"key")
    assert rows.due(8_000) == []
    rows.count()
    assert rows.due(7_010) == [b"key"]
    assert (len(rows.open_rows()), len(rows.alone_rows())) == (1, 0)
