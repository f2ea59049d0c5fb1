"""What `gapwatch pipelines` ends with."""

from __future__ import annotations

from typing import Any

import pytest

from gapwatch.cli.pipelines import exit_code


def shown(status: str, gaps: int = 0, through: str | None = "2026-11-27T12:00:00Z") -> dict[str, Any]:
    return {"status": status, "gaps_open": {"missing": gaps}, "consistent_through": through}


@pytest.mark.parametrize(
    ("view", "code"),
    [
        (shown("HEALTHY"), 0),
        (shown("HEALTHY", through=None), 3),
        (shown("UNKNOWN"), 3),
        (shown("SKIPPED"), 3),
        (shown("SKIPPED", gaps=1), 1),
    ],
)
def test_m22_a_pipeline_that_is_let_alone_is_not_called_consistent(view: dict[str, Any], code: int) -> None:
    assert exit_code([shown("HEALTHY"), view]) == code
