"""Long stories come first and unit tests last, so that at the end no worker is left alone with a long one."""

from __future__ import annotations

import pytest

FOLDERS = ("acceptance", "integration", "contract", "deploy", "property", "simulation", "unit", "docs")
LONGEST = (
    "test_fleet",
    "test_under_fire_opensearch",
    "test_demo",
    "test_stream_findings",
    "test_sweeps",
    "test_churn",
    "test_gaps",
    "test_under_fire",
    "test_mongodb_source",
    "test_tables",
    "test_causes",
    "test_one_process",
    "test_opensearch",
)


def _rank(item: pytest.Item) -> tuple[int, int]:
    name = item.path.stem
    parts = item.path.parts
    place = next((at for at, known in enumerate(FOLDERS) if known in parts), len(FOLDERS))
    long = LONGEST.index(name) if place < 2 and name in LONGEST else len(LONGEST)
    return place, long


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_rank)  # what is alike stays in the order that it has by chance
