"""A target that was restored from a backup: behind, ahead and diverged, told apart by each way of matching as far as it can."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from gapwatch.embedded import EmbeddedStack
from tests.acceptance.scenery import TABLE, Scene, watched
from tests.acceptance.service import wait_for
from tests.acceptance.shared import create_database, number

pytestmark = [pytest.mark.acceptance, pytest.mark.integration]

RESTORED = {1: (49, "before"), 2: (51, "after"), 3: (50, "other")}  # from an older, a newer, another backup
DELETED = 4
FOUND: dict[str, dict[int, str]] = {  # by pipeline: what it is to find
    "orders": {1: "stale", 2: "ahead", 3: "mismatch", DELETED: "missing"},
    "by_version": {1: "stale", 2: "ahead", DELETED: "missing"},
    "by_presence": {DELETED: "missing"},
}


@pytest.fixture(scope="module")
def restored(stack: EmbeddedStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Yield one collection under three pipelines, once some documents are those of a backup and one is gone."""
    database = create_database(stack, f"restored_{number()}")
    declared: dict[str, Any] = {
        "source": {
            "store": "shop",
            "table": TABLE,
            "key": {"id": "int"},
            "feed": {"debezium": f"{database}.{TABLE}"},
            "version": "seq",
        },
        "target": {
            "store": "catalog",
            "collection": f"{database}.orders",
            "key": {"_id": "int"},
            "feed": {"change_stream": True},
            "version": "seq",
        },
    }
    before = [f"INSERT INTO {TABLE} (id, seq, v, amount) SELECT i, 50, 'now', i FROM generate_series(1, 20) i"]
    beside = {"by_version": {"match": "version"}, "by_presence": {"match": "presence"}}
    directory = tmp_path_factory.mktemp("restored")
    with watched(stack, database, directory, before=before, beside=beside, **declared) as scene:
        for pipeline in FOUND:
            scene.service.wait_healthy(pipeline)
            assert scene.service.gaps(pipeline) == []
        client = scene.mongo()
        try:
            orders = client[database].orders
            for key, (seq, value) in RESTORED.items():
                orders.update_one({"_id": key}, {"$set": {"seq": seq, "v": value}})
            orders.delete_one({"_id": DELETED})
        finally:
            client.close()
        yield scene


def found(scene: Scene, pipeline: str) -> dict[int, dict[str, Any]]:
    """Return a pipeline's gaps by key, once there are as many as there are to be."""
    many = len(FOUND[pipeline])
    gaps = wait_for(lambda: gaps if len(gaps := scene.service.gaps(pipeline)) >= many else None, f"gaps of {pipeline}", 40)
    return {gap["key"]["id"]: gap for gap in gaps}


def settled(scene: Scene, pipeline: str) -> None:
    """Assert that the pipeline finds what it is to find and no more, once what the others find was judged by it, too."""
    for other in FOUND:
        found(scene, other)
    wait_for(lambda: not scene.service.view(pipeline)["pending_keys"], "every key to be judged", 30)
    assert {key: gap["kind"] for key, gap in found(scene, pipeline).items()} == FOUND[pipeline]


def test_m4_a_restored_target_is_stale_ahead_or_a_mismatch(restored: Scene) -> None:
    """The version column tells a backup's age; where the versions are equal, the content differs."""
    settled(restored, "orders")
    gaps = found(restored, "orders")
    assert {key: sorted(gap["fields"]) for key, gap in gaps.items() if key != DELETED} == {
        1: ["seq", "v"],
        2: ["seq", "v"],
        3: ["v"],
    }
    view = restored.service.view("orders")
    assert (view["match"], view["not_proven"]) == ("digest", None)


def test_match_version_tells_older_from_newer_and_says_that_it_proves_no_contents(restored: Scene) -> None:
    settled(restored, "by_version")
    view = restored.service.view("by_version")
    assert view["match"] == "version"
    assert (
        view["not_proven"]
        == "contents: only the version column is compared, so that a wrong field under the right version is not seen"
    )


def test_match_presence_finds_what_is_gone_and_says_that_it_proves_no_contents(restored: Scene) -> None:
    settled(restored, "by_presence")
    view = restored.service.view("by_presence")
    assert view["match"] == "presence"
    assert view["not_proven"] == (
        "contents: only that a document is there is compared, so that an update which never arrived is not seen"
    )
