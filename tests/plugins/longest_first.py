"""Which tests run beside which: a file stays with one worker, long stories come first, and heavy ones never run two at a time.

At the end no worker is left alone with a long one, and what needs many processes does not meet its like.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

import pytest

FOLDERS = ("acceptance", "integration", "contract", "deploy", "property", "simulation", "unit", "docs")
HEAVY = ("test_fleet", "test_under_fire", "test_under_fire_opensearch", "test_churn", "test_demo", "test_production_shape")
LONG = (
    "test_stream_findings",
    "test_sweeps",
    "test_gaps",
    "test_mongodb_source",
    "test_tables",
    "test_causes",
    "test_opensearch",
)


def _rank(item: pytest.Item) -> tuple[int, int, int]:
    name, parts = item.path.stem, item.path.parts
    place = next((at for at, known in enumerate(FOLDERS) if known in parts), len(FOLDERS))
    heavy = HEAVY.index(name) if name in HEAVY else len(HEAVY)
    return heavy, place, LONG.index(name) if name in LONG and place == 0 else len(LONG)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_rank)  # what is alike stays in the order that it has by chance


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler.loadscope import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "heavy" if PurePath(file).stem in HEAVY else file

    return Scheduling(config, log)
