"""A start with another mapping than the one that what is pending was read by."""

from __future__ import annotations

from pathlib import Path

import pytest

from gapwatch.embedded import EmbeddedStack
from tests.acceptance.scenery import TABLE, watched
from tests.acceptance.service import wait_for
from tests.acceptance.shared import caught_up

pytestmark = [pytest.mark.acceptance, pytest.mark.integration, pytest.mark.timeout(300)]

ANY_STATE = "open,acknowledged,snoozed,repairing,resolved"


def test_m26_a_changed_mapping_with_writes_pending(stack: EmbeddedStack, postgres_database: str, tmp_path: Path) -> None:
    """`upgrade --check` says beforehand what happens: no gap, the finding, and a content sweep that ends it."""
    before = [f"INSERT INTO {TABLE} (id, seq, v, amount) SELECT i, i, 'old', i + 0.25 FROM generate_series(1, 50) i"]
    fields = {"seq": "seq", "v": "v"}
    with watched(stack, postgres_database, tmp_path, before=before, fields=fields) as scene:
        service = scene.service
        assert service.command("upgrade", "--check").returncode == 0
        scene.copier.pause()
        scene.sql(f"INSERT INTO {TABLE} (id, seq, v, amount) SELECT i, i, 'new', i + 0.25 FROM generate_series(101, 130) i")
        scene.sql(f"UPDATE {TABLE} SET v = 'changed' WHERE id <= 10")
        wait_for(lambda: service.view()["in_transit_keys"] == 40, "what was written to be in transit", 30)
        service.stop()

        service.config["pipelines"]["orders"]["fields"] = {
            **fields,
            "v": {"from": "v", "type": "text", "nfc": True},
            "amount": {"from": "amount", "type": "decimal", "scale": 1},
        }
        service.write()
        said = service.command("upgrade", "--check")
        assert said.returncode == 1, said.stdout + said.stderr
        assert "Its mapping changes: field amount is new; field v (nfc false → true). 40 open writes were read by" in said.stdout

        service.start()
        wait_for(lambda: "mapping_changed" in str(service.view().get("findings")), "the finding", 60)
        scene.copier.resume()
        service.wait_healthy()
        caught_up(service)
        assert service.gaps(state=ANY_STATE) == []
        sweeps = service.api.get("/api/v1/sweeps", pipeline="orders")["sweeps"]
        assert sweeps[0]["state"] == "succeeded"
        findings = service.api.get("/api/v1/findings", pipeline="orders", open="false")["findings"]
        (changed,) = [finding for finding in findings if finding["finding"] == "mapping_changed"]
        assert changed["cleared_at"] is not None
        assert changed["covered_by"] == sweeps[0]["id"]
        assert service.command("upgrade", "--check").returncode == 0
