"""M8: the same missing documents come back by each of the three modes, verified and audited, and nothing else happens."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from gapwatch.embedded import EmbeddedStack
from tests.acceptance.copier import Change, Operation
from tests.acceptance.scenery import TABLE, Scene, watched
from tests.acceptance.service import wait_for
from tests.acceptance.shared import caught_up, clean, create_database, found, lose, number

pytestmark = [pytest.mark.acceptance, pytest.mark.integration, pytest.mark.timeout(600)]

LOST = 117
MODES = ["direct", "debezium", "republish"]


@pytest.fixture(scope="module")
def built(stack: EmbeddedStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    database = create_database(stack, f"modes_{number()}")
    signals = {
        "signal.enabled.channels": "source,kafka",
        "signal.kafka.topic": f"{database}.signals",
        "signal.kafka.bootstrap.servers": stack.kafka.bootstrap_servers,
        "read.only": "true",
    }
    admin = AdminClient({"bootstrap.servers": stack.kafka.bootstrap_servers})
    admin.create_topics([NewTopic(f"{database}.signals", 1, 1)])[f"{database}.signals"].result(30)
    options: dict[str, Any] = {"grace": "1s", "repair": {"modes": MODES, "undeleted": "delete"}}
    with watched(stack, database, tmp_path_factory.mktemp("modes"), connector=signals, **options) as scene:
        yield scene


@pytest.fixture
def scene(built: Scene) -> Iterator[Scene]:
    with clean(built) as scene:
        yield scene


def lost_rows(scene: Scene, count: int = LOST) -> range:
    """Insert rows whose documents are lost; return their keys once every gap is open and the sink is right again."""
    first = number()
    for _ in range(count - 1):
        number()
    keys = range(first, first + count)
    scene.copier.rules |= dict.fromkeys(keys, lose)
    scene.sql(
        f"INSERT INTO {TABLE} (id, seq, v, amount) SELECT i, i, 'v' || i, 1.5 FROM generate_series({keys[0]}, {keys[-1]}) i"
    )
    wait_for(lambda: found(scene) == dict.fromkeys(keys, "missing"), f"{count} gaps", 60)
    return keys


def raised(scene: Scene) -> int:
    """Return how many suspects were raised so far, once no more come."""
    seen = [0]

    def stands() -> bool:
        time.sleep(2.5)  # a status is a second old, or a little more
        seen.append(scene.service.view()["totals"]["raised"])
        return seen[-1] == seen[-2]

    wait_for(stands, "no more suspects", 30)
    return seen[-1]


def repaired(scene: Scene, mode: str, *options: str) -> tuple[int, dict[str, Any]]:
    code, plans = scene.service.answer("backfill", "plan", "orders", "--mode", mode, *options)
    assert code == 0, plans
    assert plans[0]["request"]["mode"] == mode
    code, runs = scene.service.answer("backfill", "apply", plans[0]["id"], "--yes", "--wait")
    return code, runs[0]


@pytest.mark.parametrize("mode", MODES)
def test_m8_each_mode_repairs_the_same_117_documents(scene: Scene, mode: str) -> None:
    keys = lost_rows(scene)
    passed: Counter[int] = Counter()

    def count(change: Change) -> list[tuple[float, Operation | None]]:
        passed[change.key] += 1
        return [(0, change.applied())]

    scene.copier.rules |= dict.fromkeys(keys, count)
    before = raised(scene)
    code, run = repaired(scene, mode)
    assert (code, run["state"]) == (0, "succeeded"), run["error"]
    counts = {name: run["counts"][name] for name in ("planned", "written", "verified", "failed", "in_sync")}
    assert counts == {"planned": LOST, "written": LOST, "verified": LOST, "failed": 0, "in_sync": 1}
    documents = scene.documents()
    assert all(documents[key]["v"] == f"v{key}" for key in keys)
    assert passed == ({} if mode == "direct" else dict.fromkeys(keys, 1)), "the sink wrote them, once, or had no part in it"

    audit = scene.service.api.get("/api/v1/audit", pipeline="orders", run_id=run["id"], limit=500)["audit"]
    said = Counter(row["outcome"] for row in audit if row["run_id"] == run["id"] and row["action"] == "backfill_write")
    assert said == {"planned" if mode == "direct" else "requested": LOST, "written": LOST}
    after = caught_up(scene.service)
    assert before <= raised(scene) <= before + LOST, "each document was looked at once more when it came, if at all"
    assert not [one for one in after["findings"] if not one["cleared_at"]], after["findings"]
    resolved = scene.service.gaps(state="resolved")
    assert {(gap["resolution"], gap["occurrences"]) for gap in resolved if gap["key"]["id"] in keys} == {("backfilled", 1)}


def test_m8_a_lost_delete_is_sent_again_and_no_snapshot_brings_it(scene: Scene) -> None:
    key = number()
    scene.insert(key, key)
    wait_for(lambda: key in scene.documents(), "the document", 30)
    scene.copier.rules[key] = lose
    scene.sql(f"DELETE FROM {TABLE} WHERE id = {key}")
    wait_for(lambda: found(scene) == {key: "undeleted"}, "the gap", 60)
    scene.copier.rules.clear()
    code, run = repaired(scene, "debezium", "--kinds", "undeleted")
    assert (code, run["state"], run["counts"]["failed"]) == (1, "failed", 1), run
    assert "a snapshot delivers rows only" in run["error"]
    assert key in scene.documents()
    code, run = repaired(scene, "republish", "--kinds", "undeleted")
    assert (code, run["state"], run["counts"]["vanished"]) == (0, "succeeded", 1), run
    assert key not in scene.documents()
    wait_for(lambda: not scene.service.gaps(), "the gap to be closed", 30)
