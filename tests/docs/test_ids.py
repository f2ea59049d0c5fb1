"""Which lessons, traps and features have a test that carries their id. The papers lie elsewhere: here stand their numbers only.

A test is named after what it proves: ``test_lesson_28_…``, ``test_trap_44_…``, ``test_d13_…``, or several of them in a row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

ROOT = Path(__file__).parents[2]

LESSONS: Final = range(1, 49)
TRAPS: Final = range(1, 49)
FEATURES: Final[Mapping[str, Iterable[int]]] = {
    "a": range(1, 12),
    "b": [*range(1, 9), 12, 15, 16, 17],
    "d": range(1, 19),
    "f": [2, 3, 4, 7, 9],
    "g": [5, 8],
    "h": [1, 2, 3, 6, 7, 8],
    "i": [1, 2, 4, 7],
    "j": [1, 2, 3],
    "k": [*range(1, 7), 10],
    "l": [1, 3, 4, 5],
    "m": [*range(1, 10), 12, 13, *range(16, 27)],
}
# What is due and has no test of its own yet: id and reason. An id goes when its test is there.
OWED: Final[Mapping[str, str]] = {}
# Of lesson 9 sums by asset, of 18 caches as targets and of 46 checks over two databases wait for features C, which are not built.
# Tested of them are the digits of numbers, our own cache, and the two databases of a pipeline.

REAL_PARTS: Final[Mapping[str, str]] = {  # of each store and broker, how a test gets hold of the real one
    "kafka": r"stack\.kafka\b",
    "connect": r"stack\.connect\b",
    "postgres": r"stack\.postgres\b",
    "mongodb": r"stack\.mongodb\b",
    "opensearch": r'parts=\([^)]*"opensearch"',
}


def names_of_tests() -> set[str]:
    """Return the names of all tests, without the words before their ids."""
    files = [*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "native" / "tests").rglob("test_*.py")]
    return {name for path in files for name in re.findall(r"^ *(?:async )?def (test_\w+)\(", path.read_text(), re.MULTILINE)}


def ids() -> list[str]:
    numbered = [f"{letter}{number}" for letter, numbers in FEATURES.items() for number in numbers]
    return [*(f"lesson_{number}" for number in LESSONS), *(f"trap_{number}" for number in TRAPS), *numbered]


def test_l5_every_lesson_trap_and_feature_that_is_due_has_a_test_of_its_name() -> None:
    names = names_of_tests()
    missing = [one for one in ids() if not any(re.search(rf"_{one}(_|$)", name) for name in names)]
    assert sorted(missing) == sorted(OWED)


def test_l1_lesson_48_every_store_is_tested_for_real() -> None:
    """Three of five had no test against a real database. Each connector, and Kafka, is used by tests on the real part."""
    connectors = {
        path.name for path in (ROOT / "connectors" / "gapwatch_connectors").iterdir() if (path / "__init__.py").exists()
    }
    assert connectors - {"debezium"} <= REAL_PARTS.keys()  # that one runs in Kafka Connect
    code = "\n".join(path.read_text() for path in (ROOT / "tests" / "acceptance").rglob("*.py"))
    assert [part for part, how in REAL_PARTS.items() if not re.search(how, code)] == []
