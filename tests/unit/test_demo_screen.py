"""The demo's screen fits its terminal, and names what was lost as long as there is room."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from gapwatch.demo.screen import Screen
from gapwatch.demo.story import Ending, Scene

SAYS = {
    "connector_state": "RUNNING",
    "task_states": ["RUNNING"],
    "lag": 0,
    "dead_letter_records": 0,
    "source_count": 550,
    "target_count": 550,
}
VIEW = {
    "status": "ERROR",
    "reasons": ["31 open gaps", "a second reason, which is far too long for the line of a narrow terminal"],
    "consistent_through": "2026-11-27T02:53:44.190Z",
    "gaps_open": {"missing": 0, "undeleted": 30},
    "pending_keys": 3,
    "in_transit_keys": 0,
    "coverage": 0.99,
}


def gap(number: int, state: str = "open", resolution: str | None = None) -> dict[str, Any]:
    return {
        "key_text": str(number),
        "kind": "undeleted",
        "cause": "never_written",
        "state": state,
        "resolution": resolution,
        "confirmed_at": f"2026-11-27T02:53:44.{number:03}Z",
        "event_time": "2026-11-27T02:53:38.190Z",
        "evidence": [{"side": "expected", "topic": "shop.public.orders", "partition": 3, "offset": number}],
    }


def shown(width: int, height: int, **scene: Any) -> list[str]:
    console = Console(width=width, height=height, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(Screen(Scene(pipeline_says=SAYS, pipeline=VIEW, page="http://127.0.0.1:8640/", **scene)))
    return captured.get().rstrip("\n").splitlines()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (200, 60)])
def test_it_fits_and_names_the_newest_orders_with_their_evidence(width: int, height: int) -> None:
    gaps = [gap(number) for number in range(100, 130)] + [gap(99, "resolved", "backfilled")]
    lines = shown(width, height, gaps=gaps, conclusions=["In truth 31 orders are wrong.", "Healed."])
    assert len(lines) <= height
    assert max(len(line) for line in lines) <= width
    assert "Orders found wrong: 31 (30 open, 1 backfilled)" in lines[9]
    for number in (129, 128, 127):
        (row,) = [line for line in lines if line.split()[:3] == [str(number), "undeleted", "never_written"]]
        assert row.rstrip().endswith(f"shop.public.orders [3] @ {number}")
    assert any("undeleted 30" in line for line in lines)
    assert "Healed." in lines[-1]
    missing = sum(str(number) not in " ".join(lines[11:]) for number in range(99, 130))
    assert any(line.strip() == f"and {missing} more" for line in lines) == (missing > 0)


def test_before_anything_was_lost_it_says_when_to_expect_it() -> None:
    lines = shown(100, 30)
    assert any(line.startswith("No order was found wrong yet.") for line in lines)


def test_what_is_not_known_is_a_dash_and_never_a_number() -> None:
    console = Console(width=100, height=30, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(Screen(Scene()))
    assert "0, 0" not in captured.get()
    assert captured.get().count(" - ") >= 6


def ending(**changes: Any) -> int:
    record = {
        "pipeline_says": SAYS,
        "truth_total": 12,
        "missed": 0,
        "invented": 0,
        "consistent": True,
        "status": "HEALTHY",
    }
    return Ending(record={**record, **changes}).exit_code


def test_the_exit_code_says_whether_the_story_came_true() -> None:
    assert ending() == 0
    assert ending(missed=1) == ending(invented=1) == ending(consistent=False) == 1
    assert ending(status="UNKNOWN") == 3
    assert ending(truth_total=0) == 3, "nothing was lost, so nothing was shown"
    odd: list[dict[str, Any]] = [
        {"lag": 1},
        {"dead_letter_records": 1},
        {"target_count": 549},
        {"connector_state": "FAILED"},
        {"task_states": []},
    ]
    for change in odd:
        assert ending(pipeline_says={**SAYS, **change}) == 3, "the pipeline did not look healthy"
