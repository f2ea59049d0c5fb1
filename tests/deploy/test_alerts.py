"""Alert rules, Alertmanager's configuration and the exposition, judged by Prometheus' own tools; runbooks for every alert."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from gapwatch.core.incidents import incident_of
from gapwatch.metrics import Metrics, Snapshot
from gapwatch.model.gap import Finding, FindingRecord, GapBurst, Run, RunKind, RunState
from gapwatch.model.pipeline import PipelineSpec, SweepSpec
from gapwatch.model.view import FeedView, Totals
from tests.http_harness import now, view
from tests.unit.config.test_load import settings

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RUNBOOKS = ROOT / "docs" / "runbooks"
HEADINGS = ["Meaning", "Impact", "Diagnosis", "Mitigation"]
NAME = re.compile(r"\bgapwatch_(?!token\b)[a-z_]+\b")  # the token is a secret's file
SERIES = ("_bucket", "_count", "_sum")

RULES = [
    rule
    for group in cast("dict[str, Any]", yaml.safe_load((PROMETHEUS / "rules.yaml").read_text()))["groups"]
    for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
ISSUED = {
    "GapwatchEventsLost",
    "GapwatchGapsOpen",
    "GapwatchConsistentThroughStanding",
    "GapwatchSinkLagging",
    "GapwatchSweepStale",
    "GapwatchRepairFailing",
    "GapwatchFeedStalled",
    "GapwatchDown",
    "GapwatchCoverageLow",
}


def tool(name: str) -> str:
    found = os.environ.get(name.upper()) or shutil.which(name)
    if not found:
        pytest.fail(f"This test needs {name}: run it with scripts/alerts, or set {name.upper()}.")
    return found


def run(name: str, *arguments: object, given: bytes | None = None) -> str:
    """Run a tool; return what it said. It must be content."""
    done = subprocess.run([tool(name), *map(str, arguments)], input=given, capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    return done.stdout.decode()


def spec() -> PipelineSpec:
    return replace(settings().pipelines["orders"], sweep=SweepSpec(every_seconds=600))


def exposed() -> Metrics:
    """Return the metrics after a script: every family has a sample, with numbers that can be told apart."""
    metrics = Metrics("1.2.3", ["orders"])
    metrics.configure([spec()])
    for role in ("capture", "ingest", "match", "repair", "api"):
        metrics.up.labels(role=role).set(1)
        metrics.role_failures.labels(role=role).inc()
    metrics.detection_delay.labels(pipeline="orders").observe(6)
    metrics.suspects_cleared.labels(pipeline="orders", reason="late_arrival").inc(21)
    metrics.store_requests.labels(store="shop", purpose="confirm", pipeline="orders").inc(5)
    metrics.unparsable.labels(reason="malformed").inc()
    metrics.stream_findings.labels(pipeline="orders", finding="slot_lost").inc()
    metrics.sweep_keys.labels(pipeline="orders", side="expected").inc(300)
    metrics.backfill_documents.labels(pipeline="orders", outcome="written").inc(20)
    metrics.replication_slot_retained.labels(pipeline="orders").set(1024)
    metrics.oplog_window.labels(store="catalog").set(3600)
    moment = now()
    shown = view(
        gaps_open={"missing": 2},
        coverage=0.75,
        in_transit_keys=4,
        oldest_in_transit=moment,
        totals=Totals(
            expected=521, observed=516, settled=490, cleared=8, late=1, snapshot_reads={"expected": 300}, delays_ms={100: 3}
        ),
        findings=(incident(moment),),
        feeds=(FeedView(side="expected", topic="shop.public.orders", watermark=moment, caught_up=True, lag=7, finding=None),),
    )
    metrics.show(
        Snapshot(
            views=[shown],
            detected={("orders", "missing", "stream"): 12},
            resolved={("orders", "backfilled"): 10},
            sweeps=[_run()],
            last_success={"orders": moment},
            oldest_open={"orders": moment - timedelta(minutes=5)},
        )
    )
    return metrics


def incident(moment: datetime) -> FindingRecord:
    """Return an incident of 50,000 missing keys."""
    burst = GapBurst(by_kind={"missing": 50_000}, since=moment)
    made = incident_of("orders", burst, None, threshold=1_000, now=moment)
    assert made is not None
    return made


def _run() -> Run:
    moment = now()
    return Run(
        id="r",
        pipeline="orders",
        kind=RunKind.SWEEP,
        state=RunState.SUCCEEDED,
        requested_at=moment,
        started_at=moment,
        ended_at=moment + timedelta(seconds=3),
        progress=1.0,
    )


def names() -> set[str]:
    """Return every series' name that the exposition may hold."""
    families = list(text_string_to_metric_families(exposed().exposition().decode()))
    return {sample.name for family in families for sample in family.samples}


@pytest.mark.alerts
def test_i7_prometheus_accepts_the_rules_and_its_configuration() -> None:
    assert f"{len(RULES)} rules found" in run("promtool", "check", "rules", PROMETHEUS / "rules.yaml")
    assert "SUCCESS" in run("promtool", "check", "config", PROMETHEUS / "prometheus.yml")


@pytest.mark.alerts
def test_i7_every_alert_fires_when_it_should_and_only_then() -> None:
    assert "SUCCESS" in run("promtool", "test", "rules", PROMETHEUS / "rules_test.yaml")


@pytest.mark.alerts
def test_alertmanager_accepts_its_configuration_and_routes_by_severity() -> None:
    file = ROOT / "deploy" / "alertmanager" / "alertmanager.yml"
    assert "SUCCESS" in run("amtool", "check-config", file)
    for severity, receiver in (("critical", "pager"), ("warning", "ticket")):
        said = run("amtool", "config", "routes", "test", f"--config.file={file}", "alertname=Any", f"severity={severity}")
        assert said.strip() == receiver


@pytest.mark.alerts
def test_i1_the_exposition_is_as_prometheus_wants_it() -> None:
    assert run("promtool", "check", "metrics", given=exposed().exposition()) == "", "it has no remark"


def test_i1_a_scripted_scenario_is_exposed_with_exactly_its_numbers() -> None:
    families = text_string_to_metric_families(exposed().exposition().decode())
    found = {(sample.name, *sorted(sample.labels.values())): sample.value for family in families for sample in family.samples}
    wanted = {
        ("gapwatch_gaps_open", "missing", "orders"): 2,
        ("gapwatch_gaps_open", "orders", "stale"): 0,
        ("gapwatch_gaps_detected_total", "missing", "orders", "stream"): 12,
        ("gapwatch_gaps_detected_total", "missing", "orders", "sweep"): 0,
        ("gapwatch_gaps_resolved_total", "backfilled", "orders"): 10,
        ("gapwatch_expected_events_total", "orders"): 521,
        ("gapwatch_observed_events_total", "orders"): 516,
        ("gapwatch_matched_events_total", "orders"): 498,
        ("gapwatch_late_events_total", "orders"): 1,
        ("gapwatch_in_transit_keys", "orders"): 4,
        ("gapwatch_coverage_ratio", "orders"): 0.75,
        ("gapwatch_consumer_lag", "expected", "orders"): 7,
        ("gapwatch_stream_findings_total", "orders", "slot_lost"): 1,
        ("gapwatch_stream_findings_total", "history_lost", "orders"): 0,
        ("gapwatch_sweep_duration_seconds", "orders"): 3,
        ("gapwatch_slo_seconds", "orders"): 900,
        ("gapwatch_stall_after_seconds", "orders"): 30,
        ("gapwatch_lag_limit_seconds", "orders"): 10,
        ("gapwatch_sweep_interval_seconds", "orders"): 600,
        ("gapwatch_coverage_target_ratio", "orders"): 0.999,
    }
    assert {key: found.get(key) for key in wanted} == wanted


def test_i2_lesson_45_more_keys_make_no_more_series() -> None:
    metrics = exposed()
    before = len(metrics.exposition().splitlines())
    metrics.suspects_cleared.labels(pipeline="orders", reason="late_arrival").inc(10_000)
    metrics.show(replace(metrics.snapshot, detected={("orders", "missing", "stream"): 10_012}))
    assert len(metrics.exposition().splitlines()) == before
    labels = {label for family in metrics.registry.collect() for sample in family.samples for label in sample.labels}
    assert labels.isdisjoint({"key", "id", "lsn", "offset", "error", "partition"})


def test_every_metric_in_rules_tests_and_runbooks_exists() -> None:
    known = names()
    for file in (*PROMETHEUS.glob("*.yaml"), *RUNBOOKS.glob("*.md"), ROOT / "docs" / "operations.md"):
        used = set(NAME.findall(re.sub(r"pipeline:gapwatch_\w+:\w+", "", file.read_text())))
        assert sorted(used - known) == [], file.name


def test_findings_in_rules_exist() -> None:
    text = (PROMETHEUS / "rules.yaml").read_text()
    named = {finding for group in re.findall(r'finding=~?"([a-z_|]+)"', text) for finding in group.split("|")}
    assert named
    assert named <= {finding.value for finding in Finding}


def test_there_is_an_alert_for_everything_that_must_wake_somebody() -> None:
    assert set(ALERTS) >= ISSUED
    assert all(re.fullmatch(r"Gapwatch(?:[A-Z][a-z]+)+", name) for name in ALERTS)


@pytest.mark.parametrize("name", sorted(ALERTS))
def test_an_alert_is_whole(name: str) -> None:
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in ("critical", "warning")
    notes = rule["annotations"]
    assert set(notes) == {"summary", "description", "runbook_url"}
    assert re.fullmatch(r"[A-Z].*\.", notes["summary"])
    assert "{{" not in notes["summary"], "static, so that a group of alerts has one"
    assert re.search(r"\{\{ \$labels\.(pipeline|role) \}\}", notes["description"])
    page = ROOT / notes["runbook_url"]
    assert page == RUNBOOKS / f"{name}.md"
    text = page.read_text()
    assert text.startswith(f"# {name}\n")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == HEADINGS
    assert all(len(part.split()) >= 10 for part in re.split(r"^## .+$", text, flags=re.MULTILINE)[1:])
    assert rule["labels"]["severity"] in text.splitlines()[2]


def test_no_runbook_is_without_its_alert() -> None:
    assert {page.stem for page in RUNBOOKS.glob("*.md")} == set(ALERTS)


def test_every_alert_has_a_unit_test_that_fires_and_one_that_is_silent() -> None:
    tests = cast("dict[str, Any]", yaml.safe_load((PROMETHEUS / "rules_test.yaml").read_text()))["tests"]
    cases = [case for test in tests for case in test.get("alert_rule_test", ())]
    fired = {case["alertname"] for case in cases if case.get("exp_alerts")}
    silent = {case["alertname"] for case in cases if not case.get("exp_alerts")}
    expected = [alert for case in cases for alert in case.get("exp_alerts", ())]
    assert fired == set(ALERTS)
    assert silent == set(ALERTS)
    assert all(alert["exp_annotations"] for alert in expected)


def test_commands_in_runbooks_exist() -> None:
    documented = (ROOT / "docs" / "cli.md").read_text()
    for page in (*RUNBOOKS.glob("*.md"), ROOT / "docs" / "operations.md"):
        for command in re.findall(r"`gapwatch ([a-z]+(?: [a-z]+)?)", page.read_text()):
            noun = command.split()[0]
            assert f"`{command}" in documented or f"`{noun}" in documented, f"{page.name}: gapwatch {command}"
