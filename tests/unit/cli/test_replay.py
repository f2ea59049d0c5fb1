"""``gapwatch replay``: what is said of a replay, what its exit code claims, and what is refused before anything is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gapwatch.cli import main
from gapwatch.cli.exits import CONSISTENT, DIFFERENCES, UNDECIDED, USAGE
from gapwatch.cli.replay import exit_code, summary
from tests.unit.config.test_load import GOOD


def found(*, open_: int = 0, late: int = 0, unknown: int = 0, holes: int = 0, undecided: int = 0, complete: bool = True) -> Any:
    return {
        "verdicts": {"open": open_, "late": late, "unknown": unknown},
        "read": {"expected": 10, "observed": 9},
        "holes": [{}] * holes,
        "undecided": undecided,
        "complete": complete,
    }


@pytest.mark.parametrize(
    ("record", "code", "said"),
    [
        (found(), CONSISTENT, "0 open, 0 late, 0 unknown; read 10 writes of the source and 9 of the target."),
        (found(open_=1, undecided=3), DIFFERENCES, "1 open"),
        (found(late=1), DIFFERENCES, "1 late"),
        (found(unknown=2), UNDECIDED, "2 unknown"),
        (found(holes=2), UNDECIDED, "2 stretches of the streams are missing"),
        (found(undecided=2), UNDECIDED, "2 keys could not be judged yet."),
        (found(complete=False), UNDECIDED, "The logs end before the range was read through."),
    ],
)
def test_0_is_said_only_when_all_was_read_and_in_time(record: Any, code: int, said: str) -> None:
    assert exit_code(record) == code
    assert said in summary(record)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["nope", "--from", "0:1", "--to", "0:2"],
            "There is no pipeline 'nope'.\n  Configured: orders.",
        ),
        (["orders", "--from", "2023-11-14T23:00:00Z", "--to", "2023-11-14T22:00:00Z"], "lies after --to"),
        (["orders", "--from", "0:1", "--to", "0:1"], "The range is empty"),
        (["orders", "--from", "0:1", "--to", "0:2", "--grace", "soon"], "'soon' is not a length of time."),
        (["orders", "--from", "0:1", "--to", "0:2", "--tolerance", "total"], "'total' is not a tolerance."),
        (["orders", "--from", "0:1", "--to", "0:2", "--tolerance", "total=-1"], "'total=-1' is not a tolerance."),
        (
            ["orders", "--from", "0:1", "--to", "0:2", "--tolerance", "total=1", "--tolerance", "total=2"],
            "A field is given two tolerances.",
        ),
        (["orders", "--from", "0:1"], "Missing option '--to'"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_read(
    tmp_path: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "gapwatch.yaml"
    file.write_text(GOOD)
    assert main.run(["--config", str(file), "replay", "verdicts", *arguments]) == USAGE
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.out == ""
