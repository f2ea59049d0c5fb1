"""What the documents say is what the code does."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from gapwatch.cli.main import NOUNS
from gapwatch.config import json_schema
from gapwatch.metrics import Metrics, Snapshot
from gapwatch.model.gap import Run, RunKind, RunState
from gapwatch.model.view import PipelineView, Totals

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ROOT = Path(__file__).parents[2]


def test_links_inside_the_documents_lead_somewhere() -> None:
    broken = []
    for document in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        targets = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", document.read_text())
        broken += [f"{document.relative_to(ROOT)} → {target}" for target in targets if not (document.parent / target).exists()]
    assert broken == []


def test_m16_every_proof_of_the_detection_matrix_exists() -> None:
    rows = [line.split("|") for line in (ROOT / "docs" / "detection.md").read_text().splitlines() if line.startswith("| ")][1:]
    named = {row[1].strip(): re.findall(r"`(\w+)`", row[-2]) for row in rows}
    assert [fault for fault, proofs in named.items() if not proofs] == []
    code = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    defined = set(re.findall(r"def (\w+)\(", code))
    proofs = {proof for proofs in named.values() for proof in proofs}
    assert sorted(proofs - defined) == []
    told = re.search(
        r"^TALES\b.*?= \((.*?)^\)", (ROOT / "tests" / "acceptance" / "test_faults.py").read_text(), re.DOTALL | re.MULTILINE
    )
    assert told is not None
    assert {proof for proof in proofs if not proof.startswith("test_")} <= set(re.findall(r"\w+", told.group(1)))


def test_m16_every_test_that_a_document_names_exists() -> None:
    files = [path for tests in ("tests", "native/tests") for path in (ROOT / tests).rglob("*.py")]
    there = {name for path in files for name in [path.stem, *re.findall(r"def (test_\w+)\(", path.read_text())]}
    documents = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]
    named = {(path.name, name) for path in documents for name in re.findall(r"\btest_\w+", path.read_text())}
    assert sorted((document, name) for document, name in named if name not in there) == []


def test_every_target_of_the_makefile_says_what_it_does() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert phony is not None
    documented = set(re.findall(r"^([a-z-]+):.*## ", text, re.MULTILINE))
    assert set(phony.group(1).split()) == documented


def test_every_configuration_key_is_documented() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    named = {part for code in re.findall(r"`([^`]+)`", text) for part in re.split(r"[.:{},\s]+", code)}
    missing = sorted(_keys(json_schema()) - named)
    assert missing == []


def test_every_metric_is_documented_and_every_documented_one_exists() -> None:
    metrics = Metrics("0", ["orders"])
    metrics.show(Snapshot(views=[_view()], sweeps=[_run()], last_success={"orders": NOW}, oldest_open={"orders": NOW}))
    served = {
        family.name.removeprefix("gapwatch_") + ("_total" if family.type == "counter" else "")
        for family in metrics.registry.collect()
    }
    text = (ROOT / "docs" / "metrics.md").read_text()
    documented = set(re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE))
    assert served == documented


def test_every_command_is_in_the_readme_or_the_help() -> None:
    assert set(NOUNS) >= {"run", "demo", "doctor", "pipelines", "gaps", "key", "sweep", "backfill", "config", "topics"}
    for module, text in NOUNS.values():
        assert import_module(module).app is not None
        assert text.endswith(".")


def _keys(schema: dict[str, Any]) -> set[str]:
    forms = [schema, *schema.get("$defs", {}).values()]
    return {key for form in forms for key in form.get("properties", {})}


def _view() -> PipelineView:
    return PipelineView(
        id="orders",
        status="HEALTHY",
        reasons=(),
        consistent_through=NOW,
        source_watermark=NOW,
        target_watermark=NOW,
        delivered_through=NOW,
        pending_keys=0,
        in_transit_keys=0,
        oldest_in_transit=NOW,
        oldest_unsettled=None,
        gaps_open={},
        coverage=1.0,
        feeds=(),
        findings=(),
        last_sweep=None,
        baseline=NOW,
        totals=Totals(delays_ms={100: 3, -1: 1}),
        read_at=NOW,
    )


def _run() -> Run:
    return Run(
        id="r",
        pipeline="orders",
        kind=RunKind.SWEEP,
        state=RunState.SUCCEEDED,
        requested_at=NOW,
        started_at=NOW,
        ended_at=NOW,
        progress=1.0,
    )
