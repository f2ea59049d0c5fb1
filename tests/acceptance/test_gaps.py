"""Gaps on real parts: one lost write, one gap; nothing lost, none."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gapwatch.embedded import EmbeddedStack
from tests.acceptance.copier import Change
from tests.acceptance.scenery import TABLE, configuration, watched
from tests.acceptance.service import Service, wait_for
from tests.acceptance.shared import FOUND_WITHIN_SECONDS, during, judged_after, resident_mib, resumed

pytestmark = [pytest.mark.acceptance, pytest.mark.integration]


def nothing(_: Change) -> list[tuple[float, Any]]:
    return [(0, None)]


def at(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def test_b1_one_lost_write_is_one_gap(stack: EmbeddedStack, postgres_database: str, tmp_path: Path) -> None:
    before = ["INSERT INTO public.orders (id, seq, v, amount) SELECT i, i, 'old', i FROM generate_series(1, 20) i"]
    with watched(stack, postgres_database, tmp_path, before=before) as scene:
        assert scene.service.gaps() == []
        scene.copier.rules[501] = nothing
        scene.insert(100, 500)
        scene.insert(101, 501)
        gaps = wait_for(scene.service.gaps, "the gap", 30)
        assert [(gap["key"], gap["kind"], gap["cause"], gap["state"]) for gap in gaps] == [
            ({"id": 101}, "missing", "never_written", "open")
        ]
        assert gaps[0]["detector"] == "stream"
        assert judged_after(gaps[0]) <= FOUND_WITHIN_SECONDS
        seen = [row for row in gaps[0]["evidence"] if row.get("topic")]
        assert (seen[0]["topic"], seen[0]["side"]) == (f"{postgres_database}.public.orders", "expected")
        view = scene.service.view()
        assert view["status"] == "ERROR"
        assert at(view["consistent_through"]) <= at(gaps[0]["event_time"])
        scene.copier.rules.clear()
        scene.sql("UPDATE public.orders SET v = 'again' WHERE id = 101")
        resolved = wait_for(lambda: scene.service.gaps(state="resolved"), "the gap to be resolved", 30)
        assert [gap["resolution"] for gap in resolved] == ["late_arrival"]
        scene.service.wait_healthy(seconds=40)
        written = at(gaps[0]["event_time"])
        wait_for(lambda: at(scene.service.view()["consistent_through"]) > written, "consistent-through to move on", 40)


def test_m22_while_it_is_paused_nothing_opens_and_nothing_is_lost(
    stack: EmbeddedStack, postgres_database: str, tmp_path: Path
) -> None:
    """A write is lost before the pause, one in it; a gap of before is mended in it. All is said when it is resumed."""
    before = [
        f"ALTER TABLE {TABLE} ADD COLUMN written timestamptz NOT NULL DEFAULT now()",
        f"INSERT INTO {TABLE} (id, seq, v, amount) VALUES (1, 1, 'first', 1)",  # makes the topic: a new one is a hole, and swept
    ]
    orders = configuration(stack, "", postgres_database, "")["pipelines"]["orders"]
    source = {**orders["source"], "changed_at": "written"}
    with watched(stack, postgres_database, tmp_path, before=before, source=source, repair={"missing": "report"}) as scene:
        service = scene.service
        scene.copier.rules.update(dict.fromkeys((501, 502, 503), nothing))
        scene.insert(101, 501)
        wait_for(service.gaps, "the gap", 30)
        scene.insert(102, 502)
        # At once: a command takes its time to begin, and what is lost is late soon.
        service.api.post("/api/v1/pipelines/orders/pause", {"reason": "the target moves"})
        since = datetime.now(UTC)
        scene.insert(103, 503)
        scene.insert(104, 504)
        through = []

        def look() -> None:
            view = service.view()
            assert (view["status"], view["reasons"]) == ("SKIPPED", ["the target moves"])
            through.append(at(view["consistent_through"]))

        during(8, look)  # grace is two seconds
        service.check_alive()
        assert [gap["key"] for gap in service.gaps(state="open,resolved")] == [{"id": 101}]
        assert through == sorted(through)
        assert through[-1] <= at(service.gaps()[0]["event_time"]) < since, "a status of before the pause may be read in it"
        _, [plan] = service.answer("backfill", "plan", "orders")
        for command in (("sweep", "start", "orders"), ("backfill", "apply", plan["id"], "--yes")):
            refused = service.command(*command)
            assert refused.returncode == 2, command
            assert "Pipeline orders is left alone now: the target moves." in refused.stderr
        scene.copier.rules.clear()
        scene.sql("UPDATE public.orders SET v = 'again' WHERE id = 101")
        wait_for(lambda: 101 in scene.documents(), "the document", 30)
        assert service.command("pipelines", "resume", "orders").returncode == 0
        wait_for(lambda: {gap["key"]["id"] for gap in service.gaps()} == {102, 103}, "the gaps of what was lost", 60)
        assert {gap["state"] for gap in service.gaps(state="open,resolved") if gap["key"]["id"] == 101} == {"resolved"}
        request = resumed(service)["request"]
        assert request["range"] == "lookback"
        looked_back_to = at(request["since"])
        assert since - timedelta(seconds=12) <= looked_back_to <= since - timedelta(seconds=2), "the pause's start less grace"


MANY = 50_000
RESIDENT_MIB = 700  # of all processes, while 50,000 gaps are confirmed and stored


def test_m18_d17_fifty_thousand_missing_at_once_are_one_incident_and_nothing_is_repaired_by_itself(
    stack: EmbeddedStack, postgres_database: str, tmp_path: Path
) -> None:
    """Nobody copied what was there before: each key is a gap, page by page, and all of them are one thing to look at."""
    before = [f"INSERT INTO public.orders (id, seq, v, amount) SELECT i, i, 'old', i FROM generate_series(1, {MANY}) i"]
    no_snapshot = {"snapshot.mode": "no_data"}
    options: dict[str, Any] = {"connector": no_snapshot, "wait": False, "repair": {"missing": "auto"}}
    with watched(stack, postgres_database, tmp_path, before=before, **options) as scene:
        service = scene.service
        resident = 0.0

        def incident() -> dict[str, Any] | None:
            nonlocal resident
            service.check_alive()
            resident = max(resident, sum(resident_mib(process.pid) for process in service.processes.values()))
            found = service.view().get("findings", [])
            return next((one for one in found if one["finding"] == "incident" and one["details"]["gaps"] == MANY), None)

        found = wait_for(incident, "the incident of all of them", 180)
        assert found["details"]["by_kind"] == {"missing": MANY}
        assert len(found["details"]["samples"]) == 10
        assert found["message"].startswith("50,000 gaps at once (missing 50,000) since ")
        page = service.api.get("/api/v1/gaps", pipeline="orders", limit="1000")
        assert len(page["gaps"]) == 1_000
        assert page["next_cursor"]
        wait_for(lambda: service.metric("gapwatch_incident_gaps", pipeline="orders") == MANY, "the metric", 20)
        raised = service.api.get("/api/v1/findings", pipeline="orders", open="false")["findings"]
        assert len([one for one in raised if one["finding"] == "incident"]) == 1
        assert resident < RESIDENT_MIB

        held = f"{MANY} documents to repair within an hour are more than max_documents_per_run (10000)"
        wait_for(lambda: any(held in reason for reason in service.view()["reasons"]), "automatic repair to stop", 30)
        wait_for(lambda: service.metric("gapwatch_automatic_repair_stopped", pipeline="orders") == 1, "the metric to say so", 20)
        assert service.api.get("/api/v1/backfills", pipeline="orders")["backfills"] == []
        assert scene.documents() == {}


BOTH, DROPPED, REST, ON_ITS_WAY = 500, 100, 8_800, 100  # keys; each of the first has two writes


def lasting(service: Service) -> set[tuple[str, ...]]:
    """Return the series that are there whatever is known now: a time, or a coverage, that is not known has none."""
    return {one for one in service.series() if not one[0].endswith(("_timestamp_seconds", "_coverage_ratio"))}


def test_m6_i2_ten_thousand_writes_of_known_classes_are_counted_exactly_and_add_no_series(
    stack: EmbeddedStack, postgres_database: str, tmp_path: Path
) -> None:
    """First one write of each class, then thousands: the counters say exactly how many, and no metric has a key of its own."""
    with watched(stack, postgres_database, tmp_path, coverage_target=0.99) as scene:
        service = scene.service

        def insert(first: int, count: int) -> int:
            values = f"SELECT i, i, 'a', 1 FROM generate_series({first}, {first + count - 1}) i"
            scene.sql(f"INSERT INTO {TABLE} (id, seq, v, amount) {values}")
            return first + count

        def write(first: int, both: int, dropped: int, rest: int) -> None:
            scene.copier.rules |= dict.fromkeys(range(first, first + both + dropped), nothing)
            after = insert(first, both)
            scene.sql(f"UPDATE {TABLE} SET seq = seq + 1000000 WHERE id >= {first}")
            insert(insert(after, dropped), rest)
            wait_for(lambda: counted() == expected(), "everything to be counted", 90)
            scene.copier.pause()

        def counted() -> dict[str, int]:
            totals = service.view()["totals"]
            return {name: totals[name] for name in ("settled", "superseded", "cleared", "gap", "unverifiable")}

        def expected() -> dict[str, Any]:
            return {"settled": both + rest, "superseded": both, "cleared": 0, "gap": dropped, "unverifiable": {}}

        both, dropped, rest = 1, 1, 1
        write(1, both, dropped, rest)
        insert(9, 1)
        oldest = "gapwatch_oldest_in_transit_timestamp_seconds"
        wait_for(lambda: service.metric(oldest, pipeline="orders"), "a write to be in transit", 30)
        asked = "gapwatch_store_requests_total"
        for store in ("shop", "catalog"):
            wait_for(partial(service.metric, asked, store=store, purpose="recheck"), "the gap to be read again", 20)
        before = lasting(service)
        scene.copier.resume()  # the one that was on its way is one of the rest
        both, dropped, rest = BOTH, DROPPED, REST
        write(10, both - 1, dropped - 1, rest - 2)
        insert(20_000, ON_ITS_WAY)
        view = wait_for(
            lambda: seen if (seen := service.view())["in_transit_keys"] == ON_ITS_WAY else None, "those in transit", 30
        )
        assert view["totals"]["expected"] == 10_000 == 2 * BOTH + DROPPED + REST + ON_ITS_WAY
        assert view["status"] != "HEALTHY"
        assert lasting(service) == before


REST_SECONDS = 8.0


def test_m25_watching_costs_the_stores_what_the_budget_says(stack: EmbeddedStack, postgres_database: str, tmp_path: Path) -> None:
    """At rest heartbeats, change stream, markers and pings, as many as docs/operations.md says; a gap costs its reads."""
    with watched(stack, postgres_database, tmp_path) as scene:
        service = scene.service

        def asked() -> dict[tuple[str, str, str], float]:
            return requests_of(service)

        begun, before = time.monotonic(), asked()
        during(REST_SECONDS, service.check_alive)
        rest = spent(before, asked())
        seconds = time.monotonic() - begun  # at least: a busy machine takes longer
        assert set(rest) == {
            ("shop", "heartbeat", ""),
            ("shop", "watch", "orders"),
            ("catalog", "capture", "orders"),
            ("catalog", "watch", "orders"),
        }
        assert 1 <= rest["shop", "heartbeat", ""] <= seconds / 0.25 + 1
        assert 1 <= rest["catalog", "capture", "orders"] <= seconds * (4 + 4) * 1.5
        assert max(rest["shop", "watch", "orders"], rest["catalog", "watch", "orders"]) <= 2 * (seconds / 5 + 1)
        before = asked()
        scene.copier.rules[7] = nothing
        scene.insert(1, 7)
        wait_for(service.gaps, "the gap", 30)
        spent_on_it = spent(before, asked())
        assert spent_on_it["shop", "confirm", "orders"] == 2
        assert spent_on_it["catalog", "confirm", "orders"] == 1


def requests_of(service: Service) -> dict[tuple[str, str, str], float]:
    """Return (store, purpose, pipeline) → requests so far."""
    found = service.samples("gapwatch_store_requests_total")
    return {(labels["store"], labels["purpose"], labels["pipeline"]): value for labels, value in found}


def spent(
    before: dict[tuple[str, str, str], float], after: dict[tuple[str, str, str], float]
) -> dict[tuple[str, str, str], float]:
    return {what: more for what, count in after.items() if (more := count - before.get(what, 0))}
