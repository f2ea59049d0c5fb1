"""A target that was restored from a backup: behind, ahead and diverged are told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gapwatch.embedded import EmbeddedStack
from tests.acceptance.scenery import TABLE, watched
from tests.acceptance.service import wait_for

pytestmark = [pytest.mark.acceptance, pytest.mark.integration]


def test_m4_a_restored_target_is_stale_ahead_or_a_mismatch(stack: EmbeddedStack, postgres_database: str, tmp_path: Path) -> None:
    """The version column tells a backup's age; where the versions are equal, the content differs."""
    declared: dict[str, Any] = {
        "source": {
            "store": "shop",
            "table": TABLE,
            "key": {"id": "int"},
            "feed": {"debezium": f"{postgres_database}.{TABLE}"},
            "version": "seq",
        },
        "target": {
            "store": "catalog",
            "collection": f"{postgres_database}.orders",
            "key": {"_id": "int"},
            "feed": {"change_stream": True},
            "version": "seq",
        },
    }
    before = [f"INSERT INTO {TABLE} (id, seq, v, amount) SELECT i, 50, 'now', i FROM generate_series(1, 20) i"]
    with watched(stack, postgres_database, tmp_path, before=before, **declared) as scene:
        assert scene.service.gaps() == []
        client = scene.mongo()
        try:
            orders = client[postgres_database].orders
            restored = {1: (49, "before"), 2: (51, "after"), 3: (50, "other")}  # from an older, a newer, another backup
            for number, (seq, value) in restored.items():
                orders.update_one({"_id": number}, {"$set": {"seq": seq, "v": value}})
            gaps = wait_for(lambda: found if len(found := scene.service.gaps()) >= len(restored) else None, "the gaps", 40)
        finally:
            client.close()
        assert {gap["key"]["id"]: (gap["kind"], sorted(gap["fields"])) for gap in gaps} == {
            1: ("stale", ["seq", "v"]),
            2: ("ahead", ["seq", "v"]),
            3: ("mismatch", ["v"]),
        }
