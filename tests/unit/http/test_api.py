"""Every endpoint as documented, over real HTTP and a real ledger."""

from __future__ import annotations

import asyncio
import io
import json
from dataclasses import replace
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from msgspec import structs
from yarl import URL

from gapwatch.errors import ConflictError, StoreUnreachable
from gapwatch.model.gap import Kind, RepairRecord, RunKind, RunState
from tests.http_harness import BrokenError, Service, now, view
from tests.ledger_samples import at, audit_row, finding, gap, opening, run

Client = aiohttp.ClientSession


async def get(client: Client, path: str, status: int = 200, **how: Any) -> Any:
    async with client.get(path, **how) as response:
        assert response.status == status, await response.text()
        return json.loads(await response.text())


async def post(client: Client, path: str, body: Any = None, status: int = 200) -> tuple[Any, aiohttp.ClientResponse]:
    async with client.post(path, json=body if body is not None else {}) as response:
        assert response.status == status, await response.text()
        return json.loads(await response.text()), response


def assert_problem(body: Any, status: int, *words: str) -> None:
    assert body["status"] == status
    assert body["type"] == "about:blank"
    assert body["title"]
    for word in words:
        assert word in body["detail"]


# pipelines


async def test_pipelines(client: Client, served: Service) -> None:
    served.desk.shown = [view("orders"), view("customers", status="UNKNOWN", consistent_through=None)]
    body = await get(client, "/api/v1/pipelines")
    assert [one["id"] for one in body["pipelines"]] == ["orders", "customers"]
    assert body["pipelines"][1]["consistent_through"] is None
    assert body["read_at"].endswith("Z")
    assert (await get(client, "/api/v1/pipelines/orders"))["status"] == "HEALTHY"
    assert_problem(await get(client, "/api/v1/pipelines/nope", 404), 404, "nope", "Configured")


async def test_pause_and_resume(client: Client, served: Service) -> None:
    body, _ = await post(client, "/api/v1/pipelines/orders/pause", {"reason": "maintenance"})
    assert body["id"] == "orders"
    await post(client, "/api/v1/pipelines/orders/resume")
    asked = [call for call in served.desk.calls if call[0] != "views"]
    assert asked == [("pause", "orders", "local", "maintenance"), ("resume", "orders", "local")]
    await post(client, "/api/v1/pipelines/nope/pause", status=404)


@pytest.mark.parametrize("key", ["42", "a/b", "1,2", "ü %", "a?b#c"])
async def test_m20_the_story_of_one_key(client: Client, served: Service, key: str) -> None:
    path = f"{served.url}/api/v1/pipelines/orders/keys/{quote(key, safe='')}"
    async with aiohttp.ClientSession() as session, session.get(URL(path, encoded=True)) as response:
        assert response.status == 200
        story = await response.json()
    assert served.desk.calls == [("key", "orders", key)]
    assert story["verdict"] == "No gap."


# gaps


async def test_gaps_come_in_pages_with_a_true_total(client: Client, served: Service) -> None:
    served.ledger.store_gaps([opening(gap(number)) for number in range(1, 8)])
    seen: list[int] = []
    path = "/api/v1/gaps?limit=3&pipeline=orders"
    while True:
        async with client.get(path) as response:
            body = await response.json()
            link = response.links.get("next")
        seen += [one["key"]["id"] for one in body["gaps"]]
        assert body["total"] == 7
        assert (link is None) == (body["next_cursor"] is None)
        if link is None:
            break
        path = str(URL(str(link["url"])).relative())
    assert seen == [7, 6, 5, 4, 3, 2, 1]


async def test_gap_filters(client: Client, served: Service) -> None:
    served.ledger.store_gaps([opening(gap(1)), opening(gap(2, kind=Kind.STALE)), opening(gap(3, confirmed_at=at(1000)))])

    async def ids(query: str) -> list[int]:
        return sorted(one["key"]["id"] for one in (await get(client, f"/api/v1/gaps?{query}"))["gaps"])

    assert await ids("kind=stale") == [2]
    assert await ids("kind=stale,missing&state=open") == [1, 2, 3]
    assert await ids("kind=stale&kind=missing") == [1, 2, 3]
    assert await ids("state=resolved") == []
    assert await ids("cause=rejected") == []
    assert await ids("since=2026-11-24T10:10:00Z") == [3]
    assert await ids("since=2026-11-24T12:10:00%2B02:00") == [3]
    assert await ids("kind=&cursor=&pipeline=") == [1, 2, 3]


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ("kind=lost", "lost"),
        ("state=opened", "opened"),
        ("since=yesterday", "RFC 3339"),
        ("since=2026-11-24T10:00:00", "zone"),
        ("limit=0", "between 1 and 1000"),
        ("limit=1001", "between 1 and 1000"),
        ("limit=١", "whole number"),
        ("cursor=!!", "cursor"),
        ("stat=open", "stat"),
    ],
)
async def test_a_wrong_parameter_is_refused_and_filters_nothing_silently(client: Client, query: str, word: str) -> None:
    assert_problem(await get(client, f"/api/v1/gaps?{query}", 400), 400, word)


async def test_an_unknown_pipeline_is_not_a_pipeline_without_gaps(client: Client) -> None:
    for path in ("gaps", "sweeps", "backfills", "replays", "findings", "audit"):
        assert_problem(await get(client, f"/api/v1/{path}?pipeline=nope", 404), 404, "nope")


async def test_all_gaps_can_be_exported(client: Client, served: Service) -> None:
    served.ledger.store_gaps([opening(gap(number)) for number in range(1, 1203)])
    async with client.get("/api/v1/gaps?state=open", headers={"Accept": "application/x-ndjson"}) as response:
        assert response.content_type == "application/x-ndjson"
        lines = (await response.text()).splitlines()
    assert {json.loads(line)["key"]["id"] for line in lines} == set(range(1, 1203))


async def test_an_export_that_breaks_off_does_not_look_complete(
    client: Client, served: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.ledger.store_gaps([opening(gap(number)) for number in range(1, 1203)])
    pages = served.ledger.gaps

    def broken(*arguments: Any, **how: Any) -> Any:
        if how["cursor"]:
            raise StoreUnreachable("The ledger does not answer.", store="ledger")
        return pages(*arguments, **how)

    monkeypatch.setattr(served.ledger, "gaps", broken, raising=False)
    async with client.get("/api/v1/gaps", headers={"Accept": "application/x-ndjson"}) as response:
        assert response.status == 200, "the first page was fine"
        with pytest.raises(aiohttp.ClientError):
            await response.read()


async def test_g8_one_gap_with_its_evidence_and_history(client: Client, served: Service) -> None:
    served.ledger.store_gaps([opening(gap())])
    body = await get(client, f"/api/v1/gaps/{gap().id}")
    assert body["evidence"] == [{"side": "expected", "topic": "shop.public.orders", "partition": 0, "offset": 1}]
    assert [row["event"] for row in body["history"]] == ["opened"]
    assert_problem(await get(client, "/api/v1/gaps/gap_x", 404), 404, "gap_x")


async def test_a_gap_is_changed_by_hand(client: Client, served: Service) -> None:
    served.ledger.store_gaps([opening(gap())])
    body, _ = await post(client, f"/api/v1/gaps/{gap().id}/resolve", {"resolution": "accepted", "note": "known"})
    assert (body["state"], body["resolution"], body["note"]) == ("resolved", "accepted", "known")
    assert [row["actor"] for row in body["history"]] == ["gapwatch", "local"]
    for action, sent, noted in (
        ("ack", {"note": "n"}, ("ack", "local", "n", "manual", 3600.0)),
        ("snooze", {"seconds": 60}, ("snooze", "local", "", "manual", 60.0)),
    ):
        await post(client, f"/api/v1/gaps/{gap().id}/{action}", sent)
        assert served.desk.calls[-1] == ("gap", gap().id, *noted)


# runs


async def test_a_sweep_is_queued_and_can_be_asked_about(client: Client, served: Service) -> None:
    body, response = await post(client, "/api/v1/sweeps", {"pipeline": "orders", "content": True}, 202)
    assert response.headers["Location"] == f"/api/v1/sweeps/{body['id']}"
    assert served.desk.calls[-1] == ("sweep", "orders", {"range": "full", "content": True}, "local")
    assert (await get(client, response.headers["Location"]))["state"] == "queued"
    assert [one["id"] for one in (await get(client, "/api/v1/sweeps?pipeline=orders&state=queued"))["sweeps"]] == [body["id"]]
    assert (await get(client, "/api/v1/sweeps?state=running"))["sweeps"] == []
    cancelled, _ = await post(client, f"/api/v1/sweeps/{body['id']}/cancel")
    assert cancelled["state"] == "cancelled"


async def test_a_sweep_of_keys(client: Client, served: Service) -> None:
    await post(client, "/api/v1/sweeps", {"pipeline": "orders", "range": "keys", "keys": ["1", "2"]}, 202)
    assert served.desk.calls[-1] == ("sweep", "orders", {"range": "keys", "keys": ["1", "2"]}, "local")
    refused, _ = await post(client, "/api/v1/sweeps", {"pipeline": "orders", "keys": ["1"]}, 400)
    assert_problem(refused, 400, "keys")


async def test_lesson_39_a_second_sweep_gets_the_running_id(client: Client) -> None:
    first, _ = await post(client, "/api/v1/sweeps", {"pipeline": "orders"}, 202)
    second, _ = await post(client, "/api/v1/sweeps", {"pipeline": "orders"}, 409)
    assert_problem(second, 409, first["id"])
    assert second["running_id"] == first["id"]


async def test_d6_failed_repairs_are_listed_queued_again_and_automatic_repair_resumed(client: Client, served: Service) -> None:
    served.ledger.store_gaps([opening(gap(number)) for number in (1, 2)])
    moment = now()
    one = RepairRecord(
        gap_id=gap(1).id,
        pipeline="orders",
        attempts=5,
        tries=6,
        outcome="failed",
        reason="Document failed validation",
        first_at=moment,
        last_at=moment,
        next_at=None,
        run_id="run_1",
    )
    waiting = replace(one, gap_id=gap(2).id, attempts=0, outcome="unread", next_at=moment + timedelta(minutes=1))
    served.ledger.store_repairs([one, waiting])
    answer = await get(client, "/api/v1/repairs?pipeline=orders&state=given_up")
    (shown,) = answer["repairs"]
    assert (shown["key"], shown["attempts"], shown["state"], shown["next_at"]) == ({"id": 1}, 5, "given_up", None)
    assert shown["reason"] == "Document failed validation"
    assert [record["state"] for record in (await get(client, "/api/v1/repairs"))["repairs"]] == ["given_up", "waiting"]
    await get(client, "/api/v1/repairs?pipeline=nobody", 404)
    await get(client, "/api/v1/repairs?state=lost", 400)
    run, response = await post(client, "/api/v1/repairs/requeue", {"pipeline": "orders", "keys": ["1"]}, 202)
    assert response.headers["Location"] == f"/api/v1/backfills/{run['id']}"
    resumed, _ = await post(client, "/api/v1/repairs/resume", {"pipeline": "orders"})
    assert resumed["automatic_repair"] == "resumed"
    assert served.desk.calls == [("requeue", "orders", ["1"], "local"), ("resume_repair", "orders", "local")]


async def test_a_sweep_of_a_part_is_asked_for_as_it_was_given(client: Client, served: Service) -> None:
    parts: list[dict[str, Any]] = [{"range": "range", "from": "1"}, {"range": "lookback", "lookback_seconds": 3600.0}]
    for number, asked in enumerate(parts):
        run, _ = await post(client, "/api/v1/sweeps", {"pipeline": "orders", **asked}, 202)
        assert served.desk.calls[number * 2] == ("sweep", "orders", asked, "local")
        await post(client, f"/api/v1/sweeps/{run['id']}/cancel")


async def test_d11_a_backfill_is_a_dry_run_unless_asked_otherwise(client: Client, served: Service) -> None:
    planned, response = await post(client, "/api/v1/backfills", {"pipeline": "orders", "kinds": ["missing"]}, 202)
    assert served.desk.calls == [("plan", "orders", ["missing"], "local")]
    assert response.headers["Location"] == f"/api/v1/backfills/{planned['id']}"
    refused, _ = await post(client, "/api/v1/backfills", {"plan": planned["id"]}, 400)
    assert_problem(refused, 400, "dry_run")
    applied, _ = await post(client, "/api/v1/backfills", {"plan": planned["id"], "dry_run": False}, 202)
    assert applied["request"] == {"dry_run": False, "plan": planned["id"]}
    assert len((await get(client, "/api/v1/backfills"))["backfills"]) == 2
    conflict, _ = await post(client, f"/api/v1/backfills/{planned['id']}/apply", status=409)
    assert conflict["running_id"] == applied["id"]
    await post(client, f"/api/v1/backfills/{applied['id']}/cancel")
    at_once, _ = await post(client, "/api/v1/backfills", {"pipeline": "orders", "dry_run": False}, 202)
    assert at_once["request"]["dry_run"] is False
    for wrong in ({}, {"pipeline": "orders", "plan": "run_1"}, {"plan": "run_1", "dry_run": False, "kinds": ["missing"]}):
        await post(client, "/api/v1/backfills", wrong, 400)
    await post(client, "/api/v1/backfills/run_99/apply", status=404)


async def test_a_replay_is_queued_and_can_be_asked_about(client: Client, served: Service) -> None:
    asked = {"pipeline": "orders", "from": "2026-11-24T10:00:00Z", "to": "2026-11-24T11:00:00Z"}
    body, response = await post(client, "/api/v1/replays", asked, 202)
    assert response.headers["Location"] == f"/api/v1/replays/{body['id']}"
    assert served.desk.calls[-1] == ("replay", "orders", asked["from"], asked["to"], "events", "local")
    assert [one["id"] for one in (await get(client, "/api/v1/replays?pipeline=orders"))["replays"]] == [body["id"]]
    conflict, _ = await post(client, "/api/v1/replays", asked, 409)
    assert conflict["running_id"] == body["id"]
    refused, _ = await post(client, "/api/v1/replays", {"pipeline": "orders", "from": "2026-11-24T10:00:00Z"}, 400)
    assert_problem(refused, 400, "to")
    cancelled, _ = await post(client, f"/api/v1/replays/{body['id']}/cancel")
    assert cancelled["state"] == "cancelled"


async def test_a_run_of_another_kind_is_not_found(client: Client, served: Service) -> None:
    served.ledger.create_run(run(1, kind=RunKind.BACKFILL))
    await get(client, "/api/v1/sweeps/run_1", 404)
    await post(client, "/api/v1/sweeps/run_1/cancel", status=404)
    stored = served.ledger.run("run_1")
    assert stored is not None
    assert stored.state is RunState.QUEUED


# findings and audit


async def test_findings_and_audit(client: Client, served: Service) -> None:
    served.ledger.raise_finding(finding(1))
    served.ledger.raise_finding(finding(2))
    served.ledger.clear_finding("finding_2", at=at(9))
    served.ledger.audit([audit_row(1), audit_row(2, run_id="run_2")])
    assert [one["id"] for one in (await get(client, "/api/v1/findings"))["findings"]] == ["finding_1"]
    assert len((await get(client, "/api/v1/findings?open=false&pipeline=orders"))["findings"]) == 2
    assert_problem(await get(client, "/api/v1/findings?open=maybe", 400), 400, "maybe")
    assert [one["id"] for one in (await get(client, "/api/v1/audit?run_id=run_2"))["audit"]] == ["audit_2"]
    assert len((await get(client, "/api/v1/audit?limit=1"))["audit"]) == 1


# errors


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConflictError("somebody was faster"), 409),
        (StoreUnreachable("The ledger does not answer.", store="ledger"), 503),
        (BrokenError("something of ours"), 500),
    ],
)
async def test_our_errors_are_problems(client: Client, served: Service, error: Exception, status: int) -> None:
    served.desk.fails = error
    async with client.get("/api/v1/pipelines") as response:
        assert response.status == status
        assert response.content_type == "application/problem+json"
        assert ("Retry-After" in response.headers) == (status == 503)
        assert_problem(json.loads(await response.text()), status, str(error))


async def test_h3_an_unforeseen_error_tells_the_client_nothing(client: Client, served: Service) -> None:
    served.desk.fails = RuntimeError("secret dsn postgres://u:p@h")
    async with client.get("/api/v1/pipelines") as response:
        text = await response.text()
        assert response.status == 500
    assert "secret" not in text
    assert_problem(json.loads(text), 500, "log")


async def test_unknown_addresses_and_methods_are_problems(client: Client) -> None:
    assert_problem(await get(client, "/api/v1/nothing", 404), 404)
    assert_problem(await get(client, "/api/v2/pipelines", 404), 404)
    async with client.delete("/api/v1/pipelines") as response:
        assert response.status == 405
        assert "GET" in response.headers["Allow"]
        assert response.content_type == "application/problem+json"


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b'{"reason": 1}', "application/json", 400),
        (b'{"raeson": "x"}', "application/json", 400),
        (b"{", "application/json", 400),
        (b"\xff", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"reason=x", "application/x-www-form-urlencoded", 415),
        (b"", "text/plain", 200),
    ],
)
async def test_a_body_that_does_not_fit_is_refused(client: Client, content: bytes, kind: str, status: int) -> None:
    async with client.post("/api/v1/pipelines/orders/pause", data=content, headers={"Content-Type": kind}) as response:
        assert response.status == status
        if status != 200:
            assert_problem(json.loads(await response.text()), status)


@pytest.mark.parametrize(("size", "status"), [(1024 * 1024, 400), (1024 * 1024 + 1, 413)])
async def test_h6_the_body_has_a_limit(client: Client, size: int, status: int) -> None:
    body = b'{"x": "' + b"a" * (size - 9) + b'"}'
    assert len(body) == size
    async with client.post("/api/v1/sweeps", data=io.BytesIO(body), headers={"Content-Type": "application/json"}) as response:
        assert response.status == status
        assert_problem(json.loads(await response.text()), status)


async def test_a_slow_answer_is_cut_off(client: Client, served: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    from gapwatch.http import problems

    async def never() -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(problems, "REQUEST_SECONDS_MAX", 0.05)
    monkeypatch.setattr(served.desk, "views", never)
    assert_problem(await get(client, "/api/v1/pipelines", 504), 504)


async def test_records_hold_exact_keys(client: Client, served: Service) -> None:
    served.ledger.store_gaps([opening(structs.replace(gap(1), key_fields={"id": 2**53 + 1}))])
    (record,) = (await get(client, "/api/v1/gaps"))["gaps"]
    assert record["key_text"] == "9007199254740993"
    assert record["key"]["id"] == 9007199254740993


async def test_a_number_that_python_would_not_read_is_a_wrong_parameter(client: Client) -> None:
    assert_problem(await get(client, f"/api/v1/gaps?limit={'9' * 5_000}", 400), 400, "limit")


async def test_a_body_that_is_not_what_its_encoding_says_is_refused(client: Client) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    async with client.post("/api/v1/sweeps", data=b"abc", headers=headers) as response:
        assert_problem(await response.json(content_type=None), 400, "Content-Encoding")
