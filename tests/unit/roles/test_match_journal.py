"""A restore knows a whole state from a torn one, whatever compaction, crashes and thawed workers left behind."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gapwatch.errors import ProtocolError
from gapwatch.roles.match.journal import Journal, StateTorn, rank_of


def written(journal: Journal, offset: int, changed: dict[str, bytes], *, marker: bool = True) -> list[tuple[bytes, bytes]]:
    records = [journal.record(name, offset, payload) for name, payload in changed.items()]
    return [*records, journal.marker(offset, b"m%d" % offset, topic_id="T")] if marker else records


def latest(*checkpoints: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    return {key: value for checkpoint in checkpoints for key, value in checkpoint}


def test_a_whole_state_comes_back() -> None:
    journal = Journal(3)
    first = written(journal, 10, {"a": b"1", "b": b"2"})
    assert journal.removal("b") == b"3/b"
    log = latest(first, written(journal, 20, {"c": b"3"}))
    found = Journal(3).restore(log.items())
    assert found is not None
    assert (found.applied, found.topic_id, found.marker) == (20, "T", b"m20")
    assert found.records == {"a": b"1", "c": b"3"}
    assert found.leftovers == ["b"]
    assert set(log) == {b"3/a", b"3/b", b"3/c", b"3/marker"}


def test_without_a_marker_nothing_was_ever_finished() -> None:
    assert Journal(0).restore([]) is None
    assert Journal(0).restore(written(Journal(0), 5, {"a": b"1"}, marker=False)) is None


def test_a_checkpoint_that_did_not_end_is_no_part_of_the_state() -> None:
    journal = Journal(0)
    log = latest(written(journal, 10, {"a": b"1"}), written(journal, 20, {"b": b"2", "c": b"3"}, marker=False))
    found = Journal(0).restore(log.items())
    assert found is not None
    assert (found.applied, found.records, found.leftovers) == (10, {"a": b"1"}, ["b", "c"])


def test_a_missing_record_is_torn_by_name() -> None:
    log = latest(written(Journal(0), 10, {"a": b"1", "b": b"2"}))
    del log[b"0/a"]
    with pytest.raises(StateTorn) as raised:
        Journal(0).restore(log.items())
    assert raised.value.names == ("a",)


def test_an_older_record_over_a_newer_one_is_torn() -> None:
    """A thawed worker wrote last, and compaction took the newer record before anyone read it."""
    journal = Journal(0)
    old = written(journal, 10, {"a": b"1"})
    log = latest(old, written(journal, 20, {"a": b"2"}))
    log[b"0/a"] = old[0][1]
    with pytest.raises(StateTorn):
        Journal(0).restore(log.items())


def test_a_newer_record_under_a_listed_name_is_torn() -> None:
    """Names are written once: what lies there is not what the marker means."""
    journal = Journal(0)
    log = latest(written(journal, 10, {"a": b"1"}), written(journal, 20, {"a": b"2"}, marker=False))
    with pytest.raises(StateTorn):
        Journal(0).restore(log.items())


def test_a_removed_record_that_came_back_is_a_leftover() -> None:
    journal = Journal(0)
    first = written(journal, 10, {"a": b"1", "a.1": b"2"})
    assert journal.removal("a.1") == b"0/a.1"
    log = latest(first, written(journal, 20, {"a": b"3"}), [first[1]])
    found = Journal(0).restore(log.items())
    assert found is not None
    assert (found.records, found.leftovers) == ({"a": b"3"}, ["a.1"])


def test_the_next_marker_lists_what_was_restored() -> None:
    log = latest(written(Journal(0), 10, {"a": b"1", "b": b"2"}))
    second = Journal(0)
    second.restore(log.items())
    log.update(latest(written(second, 20, {"a": b"9"})))
    del log[b"0/b"]
    with pytest.raises(StateTorn):
        Journal(0).restore(log.items())


def test_unreadable_records_stop_the_process_and_rank_below_all() -> None:
    assert rank_of(b"\xc1") == -1
    with pytest.raises(ProtocolError):
        Journal(0).restore([(b"0/a", b"\xc1")])
    _, value = Journal(0).record("a", 7, b"x")
    assert rank_of(value) == 7
    with pytest.raises(ProtocolError):
        Journal(0).restore([(b"0/marker", value)])


@given(
    st.lists(st.dictionaries(st.sampled_from("abcd"), st.binary(max_size=3), max_size=4), min_size=1, max_size=6),
    st.integers(0, 40),
    st.data(),
)
def test_any_prefix_of_the_log_restores_to_its_last_marker(
    checkpoints: list[dict[str, bytes]], cut: int, data: st.DataObject
) -> None:
    """Cut after any record, and compact any subset of superseded ones: the result is the same."""
    journal, log = Journal(0), []
    states: dict[int, dict[str, bytes]] = {}
    state: dict[str, bytes] = {}
    for number, changed in enumerate(checkpoints, 1):
        fresh = {f"{name}{number}": payload for name, payload in changed.items()}
        replaced = [name for name in state if name[0] in changed]
        for name in replaced:
            journal.removal(name)
        log += written(journal, number * 10, fresh)
        state = {name: payload for name, payload in state.items() if name not in replaced} | fresh
        states[number * 10] = state
    log = log[: min(cut, len(log))]
    kept = [row for at, row in enumerate(log) if row[0] not in {key for key, _ in log[at + 1 :]} or data.draw(st.booleans())]
    found = Journal(0).restore(dict(kept).items())
    finished = [rank_of(value) for key, value in log if key == b"0/marker"]
    if not finished:
        assert found is None
        return
    assert found is not None
    assert (found.applied, found.records) == (finished[-1], states[finished[-1]])
