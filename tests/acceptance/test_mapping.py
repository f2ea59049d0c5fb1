"""A field that is mapped wrongly is one finding: no flood of gaps, and no repair (M23)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gapwatch.embedded import EmbeddedStack
from gapwatch.errors import UsageError
from tests.acceptance.copier import Copier
from tests.acceptance.scenery import CREATE, TABLE, Scene, configuration
from tests.acceptance.service import Service, wait_for
from tests.acceptance.shared import create_database, during, number
from tests.stack import captured, execute

pytestmark = [pytest.mark.acceptance, pytest.mark.integration, pytest.mark.timeout(600)]

ROWS = 300
WRONG = {"seq": "seq", "v": "v", "amount": {"from": "seq", "type": "decimal", "scale": 2}, "big": "big"}


@dataclass
class World:
    scene: Scene
    right: dict[str, Any]  # a configuration with the right mapping

    def other(self, directory: Path, name: str, **pipeline: Any) -> Service:
        """Return another service beside the first: its own topics, groups and ledger."""
        config = copy.deepcopy(self.right)
        config["topics"]["prefix"] = f"gw-{self.scene.database}-{name}"
        config["pipelines"]["orders"].update(pipeline)
        return Service(directory, config)


@pytest.fixture(scope="module")
def world(stack: EmbeddedStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A table that is empty when the service starts, and gets its rows then: one pipeline maps them right, one wrongly."""
    database = create_database(stack, f"mapping_{number()}")
    dsn, group = stack.postgres.dsn(database), f"copier-{database}"
    execute(dsn, CREATE, f"ALTER TABLE {TABLE} REPLICA IDENTITY FULL")
    config = configuration(stack, dsn, database, group, evidence="values")
    right = copy.deepcopy(config)
    config["pipelines"]["wrong"] = {**config["pipelines"]["orders"], "fields": WRONG}
    with captured(stack, database, [TABLE], **{"decimal.handling.mode": "string"}) as prefix:
        copier = Copier(stack.kafka.bootstrap_servers, f"{prefix}.{TABLE}", group, stack.mongodb.uri, database, "orders")
        service = Service(tmp_path_factory.mktemp("mapping"), config)
        scene = Scene(stack, dsn, database, copier, service)
        copier.start()
        try:
            service.start()
            for pipeline in ("orders", "wrong"):
                service.wait_healthy(pipeline)
            execute(dsn, f"INSERT INTO {TABLE} (id, seq, v, amount) SELECT i, i, 'a', i + 0.25 FROM generate_series(1, {ROWS}) i")
            wait_for(lambda: len(scene.documents()) == ROWS, "the documents", 30)
            yield World(scene, right)
            service.check_alive()
        finally:
            copier.stop()
            service.stop()


def suspicions(service: Service, pipeline: str) -> list[dict[str, Any]]:
    if service.view(pipeline)["status"] is None:
        return []  # it does not answer yet
    found = service.api.get("/api/v1/findings", pipeline=pipeline, open="true")["findings"]
    return [finding for finding in found if finding["finding"] == "mapping_suspect"]


def baseline(service: Service) -> dict[str, Any] | None:
    sweep: dict[str, Any] | None = service.view().get("last_sweep")
    return sweep if sweep and sweep["ended_at"] else None


def assert_suspected(service: Service, pipeline: str) -> None:
    """One finding that names the field, no gap, nothing to repair, and an ERROR that says why."""
    (finding,) = suspicions(service, pipeline)
    assert finding["message"].startswith("The mapping looks wrong: amount differs in ")
    assert "source " in finding["message"]
    assert "target " in finding["message"]
    assert service.gaps(pipeline) == []
    view = service.view(pipeline)
    assert view["status"] == "ERROR"
    assert any(reason.startswith("mapping_suspect: The mapping looks wrong") for reason in view["reasons"])
    with pytest.raises(UsageError, match="is not repaired now"):
        service.api.post("/api/v1/backfills", {"pipeline": pipeline, "dry_run": True})


def assert_only_coverage_is_low(service: Service) -> None:
    """Of the last hour's writes nobody could say anything while the mapping was wrong: that is said, and nothing else."""
    view = service.view()
    assert view["status"] in ("WARNING", "HEALTHY")
    assert all(reason.startswith("coverage ") for reason in view["reasons"]), view["reasons"]


def test_m23_a_wrong_field_in_the_stream_is_one_finding(world: World) -> None:
    service = world.scene.service
    wait_for(lambda: suspicions(service, "wrong"), "the finding", 60)

    def judged() -> bool:
        totals = service.view("wrong")["totals"]
        return int(totals["gap"] + sum(totals["unverifiable"].values())) == ROWS

    wait_for(judged, "every write to be judged", 60)
    assert_suspected(service, "wrong")
    ever = service.gaps("wrong", state="")
    assert len(ever) < 50, "no flood, not even for a moment"
    assert {gap["resolution"] for gap in ever} <= {"superseded"}
    assert sum(service.view("wrong")["totals"]["unverifiable"].values()) >= ROWS - 50
    service.wait_healthy("orders")
    assert suspicions(service, "orders") == []


def test_m23_a_wrong_field_at_the_first_start_is_found_by_the_baseline_and_over_once_corrected(
    world: World, tmp_path: Path
) -> None:
    service = world.other(tmp_path, "late", fields=WRONG)
    service.start()
    try:
        sweep = wait_for(lambda: baseline(service), "the baseline", 90)
        assert (sweep["state"], sweep["error"][:24]) == ("inconclusive", "The mapping looks wrong:")
        assert sweep["counts"]["mismatch"] == ROWS
        assert_suspected(service, "orders")
        assert {gap["resolution"] for gap in service.gaps(state="")} <= {"superseded"}
        assert service.view()["consistent_through"] is None
        service.stop()
        service.config["pipelines"]["orders"]["fields"] = world.right["pipelines"]["orders"]["fields"]
        service.write()
        service.start()
        view = wait_for(lambda: view if (view := service.view())["consistent_through"] else None, "a baseline", 90)
        assert view["last_sweep"]["state"] == "succeeded"
        assert (suspicions(service, "orders"), service.gaps()) == ([], [])
        during(2, lambda: assert_only_coverage_is_low(service))
    finally:
        service.stop()


def test_m23_validate_shows_both_sides_before_anything_is_started(world: World, tmp_path: Path) -> None:
    wrong, right = tmp_path / "wrong", tmp_path / "right"
    for directory in (wrong, right):
        directory.mkdir()
    said = world.other(wrong, "wrong", fields=WRONG).command("config", "validate", "--against-live")
    assert said.returncode == 2
    assert said.stdout.count("The mapping looks wrong") == 1
    assert "error    orders: The mapping looks wrong: amount differs in 100 of 100 keys." in said.stdout
    shown = next(line for line in said.stdout.splitlines() if "orders.fields.amount" in line)
    key = int(shown.partition("key ")[2].partition(":")[0])
    assert f"differ in 100 of 100 keys; key {key}: source '{key}', target '{key}.25'." in shown
    said = world.other(right, "right").command("config", "validate", "--against-live")
    assert said.returncode == 0, said.stdout + said.stderr
    assert "100 of 100 keys were read on both sides; 100 agree in every field." in said.stdout
    for name in ("seq", "v", "amount", "big"):
        assert f"orders.fields.{name}: agree in 100 keys; key " in said.stdout
