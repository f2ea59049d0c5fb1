"""A start with another mapping, or another canonical form, than the one that what is pending was read by."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from gapwatch.embedded import EmbeddedStack
from tests.acceptance.scenery import TABLE, Scene, watched
from tests.acceptance.service import Service, wait_for
from tests.acceptance.shared import caught_up

pytestmark = [pytest.mark.acceptance, pytest.mark.integration, pytest.mark.timeout(600)]

ANY_STATE = "open,acknowledged,snoozed,repairing,resolved"
FIELDS: dict[str, Any] = {"seq": "seq", "v": "v"}
OTHER_FIELDS: dict[str, Any] = {
    "seq": "seq",
    "v": {"from": "v", "type": "text", "nfc": True},
    "amount": {"from": "amount", "type": "decimal", "scale": 1},
}
OTHER_FORM = """
from functools import partial
from types import SimpleNamespace
import xxhash
from gapwatch.core import canonical
canonical.VERSION = 2
as_before = SimpleNamespace(**vars(xxhash))
xxhash.xxh3_128_digest = partial(xxhash.xxh3_128_digest, seed=2)
from gapwatch.ledger import types
types.xxhash = as_before  # keys are found in the ledger by their hash
"""


def test_m26_a_changed_mapping_and_then_a_new_canonical_form_with_writes_pending(
    stack: EmbeddedStack, postgres_database: str, tmp_path: Path
) -> None:
    """`upgrade --check` says beforehand what happens: no gap, the finding, and a content sweep that ends it."""
    before = [f"INSERT INTO {TABLE} (id, seq, v, amount) SELECT i, i, 'old', i + 0.25 FROM generate_series(1, 50) i"]
    with watched(stack, postgres_database, tmp_path, before=before, fields=FIELDS) as scene:
        service = scene.service
        assert service.command("upgrade", "--check").returncode == 0

        stop_with_writes_pending(scene, first=101)
        service.config["pipelines"]["orders"]["fields"] = OTHER_FIELDS
        service.write()
        upgraded(scene, "field amount is new; field v (nfc false → true)")

        stop_with_writes_pending(scene, first=201)
        service.environment["PYTHONPATH"] = with_another_form(tmp_path)
        upgraded(scene, "the canonical form (1 → 2)")
        assert len(findings(service)) == 2


def with_another_form(directory: Path) -> str:
    """Return the path by which Python finds a Gapwatch of a later version: all its digests are others, of the same contents."""
    (directory / "later").mkdir()
    (directory / "later" / "sitecustomize.py").write_text(OTHER_FORM)
    return os.pathsep.join([str(directory / "later"), *filter(None, [os.environ.get("PYTHONPATH")])])


def stop_with_writes_pending(scene: Scene, first: int) -> None:
    """Write 30 new rows and change ten, none of which the sink reaches; then stop Gapwatch."""
    scene.copier.pause()
    values = f"SELECT i, i, 'new', i + 0.25 FROM generate_series({first}, {first + 29}) i"
    scene.sql(f"INSERT INTO {TABLE} (id, seq, v, amount) {values}")
    scene.sql(f"UPDATE {TABLE} SET v = 'changed at {first}' WHERE id <= 10")
    wait_for(lambda: scene.service.view()["in_transit_keys"] == 40, "what was written to be in transit", 30)
    scene.service.stop()


def upgraded(scene: Scene, changes: str) -> None:
    """Start again: what `upgrade --check` says comes true, and nothing else."""
    service = scene.service
    said = service.command("upgrade", "--check")
    assert said.returncode == 1, said.stdout + said.stderr
    assert f"Its mapping changes: {changes}. 40 open writes were read by" in said.stdout

    service.start()
    wait_for(lambda: "mapping_changed" in str(service.view().get("findings")), "the finding", 60)
    scene.copier.resume()
    service.wait_healthy()
    caught_up(service)
    assert service.gaps(state=ANY_STATE) == []
    changed = max(findings(service), key=lambda finding: str(finding["first_seen"]))
    assert changed["cleared_at"] is not None
    sweep = service.api.get(f"/api/v1/sweeps/{changed['covered_by']}")
    assert (sweep["state"], sweep["request"]["content"]) == ("succeeded", True)
    assert service.command("upgrade", "--check").returncode == 0


def findings(service: Service) -> list[dict[str, Any]]:
    found = service.api.get("/api/v1/findings", pipeline="orders", open="false")["findings"]
    return [finding for finding in found if finding["finding"] == "mapping_changed"]
