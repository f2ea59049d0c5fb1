"""The judges of the tests under fire: they see what is to be seen, and nothing else."""

from __future__ import annotations

import pytest

from tests.acceptance.accounts import (
    GUARD_FAILED,
    LEFT_ALONE,
    PLANNED,
    VANISHED,
    WRITTEN,
    Audit,
    Note,
    Shown,
    accounted,
    never_back,
    within_plans,
)

RUN = "run"


def notes(*said: tuple[int, int, str] | tuple[int, int, str, str]) -> Audit:
    """Return an audit of one run: times, keys, outcomes, and reasons; its plan has keys 1 to 3 since 0."""
    made = [Note(run=RUN, at_us=one[0], key=one[1], outcome=one[2], reason=one[3] if len(one) > 3 else "") for one in said]
    return Audit(notes=made, plans={RUN: dict.fromkeys((1, 2, 3), 0)})


def states(*seqs: int | None, ours: int) -> list[Shown]:
    """Return the states of one document; that at the place `ours` was made by us."""
    return [Shown(key=1, seq=seq, is_ours=place == ours, at_us=place) for place, seq in enumerate(seqs)]


def test_a_write_that_is_announced_and_claimed_is_accounted_for() -> None:
    audit = notes((10, 1, PLANNED), (10, 2, PLANNED), (14, 1, WRITTEN), (14, 2, VANISHED, "the source changed while we wrote"))
    writes = {1: [12], 2: [13]}
    assert accounted(audit, sent=writes, done=writes) == {"writes": 2, "announced": 2, "claimed": 2, "silent": 0}


def test_what_was_not_announced_is_seen() -> None:
    with pytest.raises(AssertionError, match="announced 0"):
        accounted(notes(), sent={1: [12]}, done={})
    with pytest.raises(AssertionError, match="announced 1"):
        accounted(notes((10, 1, PLANNED), (14, 1, WRITTEN)), sent={1: [12, 13]}, done={1: [12, 13]})
    with pytest.raises(AssertionError, match="announced later"):
        accounted(notes((13, 1, PLANNED)), sent={1: [12]}, done={1: [12]})
    assert accounted(notes((13, 1, PLANNED)), sent={1: [12]}, done={1: [12]}, slack_us=1)["silent"] == 1


def test_a_claim_without_a_write_of_its_own_time_is_seen() -> None:
    audit = notes((10, 1, PLANNED), (14, 1, WRITTEN))
    for came in ([], [9], [15]):
        with pytest.raises(AssertionError):
            accounted(audit, sent={1: came}, done={1: came})
    assert accounted(audit, sent={1: [12]}, done={}, unsure={1: [12]})["claimed"] == 1


def test_a_row_that_was_found_gone_claims_no_write() -> None:
    assert accounted(notes((10, 1, PLANNED), (14, 1, VANISHED, LEFT_ALONE)), sent={}, done={})["claimed"] == 0
    assert accounted(notes((14, 1, VANISHED, LEFT_ALONE)), sent={}, done={})["claimed"] == 0


def test_what_was_done_and_is_said_not_to_be_is_seen() -> None:
    """Its worker was killed before it could say more than that it is about to write: that is told. A denial is not."""
    came = {1: [12]}
    assert accounted(notes((10, 1, PLANNED)), sent=came, done=came)["silent"] == 1
    with pytest.raises(AssertionError, match="left open"):
        accounted(notes((10, 1, PLANNED), (14, 1, GUARD_FAILED, "it is another one")), sent=came, done=came)
    twice = notes((10, 1, PLANNED), (20, 1, PLANNED), (24, 1, GUARD_FAILED, "a document with this key is there by now"))
    assert accounted(twice, sent={1: [12, 22]}, done=came)["silent"] == 1


def test_what_is_outside_the_plan_is_seen() -> None:
    inside = notes((10, 1, PLANNED), (14, 1, WRITTEN))
    within_plans(inside, {1: [12]})
    with pytest.raises(AssertionError, match="in no plan"):
        within_plans(inside, {4: [12]})
    with pytest.raises(AssertionError, match="which its plan has not"):
        within_plans(notes((10, 4, PLANNED)), {})
    late = Audit(notes=(), plans={RUN: {1: 20}})
    with pytest.raises(AssertionError, match="before it was planned"):
        within_plans(late, {1: [12]})
    with pytest.raises(AssertionError, match="before it was planned"):
        within_plans(Audit(notes=[Note(run=RUN, key=1, at_us=12, outcome=PLANNED)], plans={RUN: {1: 20}}), {})


def test_a_document_that_our_write_takes_back_is_seen() -> None:
    with pytest.raises(AssertionError, match="back from 7 to 5"):
        never_back(states(5, 7, 5, ours=2))
    assert never_back(states(5, 7, 9, ours=2)).came_back == set()
    assert never_back(states(5, None, 5, ours=2)).came_back == set()
    assert never_back(states(7, None, 5, ours=2)).came_back == {1}
    assert never_back(states(5, 7, 5, ours=9)).taken_back_by_others == 1
