"""The judge of the demo: it knows nothing of what it judges, and calls a miss a miss."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gapwatch.demo import compare
from gapwatch.demo.compare import Truth
from gapwatch.demo.story import judge


def truth(missing: Iterable[int] = (), extra: Iterable[int] = (), different: Iterable[int] = ()) -> Truth:
    return Truth(
        missing=frozenset(missing), extra=frozenset(extra), different=frozenset(different), source_count=10, target_count=10
    )


def found(**kinds: set[int]) -> list[dict[str, Any]]:
    return [{"key": {"id": number}, "kind": kind} for kind, numbers in kinds.items() for number in numbers]


def test_the_comparison_uses_the_drivers_and_no_code_of_gapwatch() -> None:
    imported: set[str] = set()
    for node in ast.walk(ast.parse(Path(compare.__file__).read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
    assert imported == {"__future__", "bson", "dataclasses", "decimal", "psycopg", "pymongo", "typing"}


def test_what_was_found_is_held_against_what_is_true() -> None:
    right = truth({1, 2}, {3}, {4})
    assert judge(right, found(missing={1, 2}, undeleted={3}, stale={4})) == {"missed": 0, "invented": 0}
    assert judge(right, found(missing={1, 2}, extra={3}, mismatch={4})) == {"missed": 0, "invented": 0}
    assert judge(right, found(missing={1}, undeleted={3}, stale={4})) == {"missed": 1, "invented": 0}
    assert judge(right, found(missing={1, 2, 9}, undeleted={3}, stale={4})) == {"missed": 0, "invented": 1}
    assert judge(right, found(stale={1}, missing={2}, undeleted={3}, mismatch={4})) == {"missed": 1, "invented": 1}, "wrong kind"
    assert judge(truth(), []) == {"missed": 0, "invented": 0}
