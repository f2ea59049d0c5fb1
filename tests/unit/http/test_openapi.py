"""The document is valid, holds every route and nothing else, and real answers fit its schemas."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from gapwatch import __version__
from gapwatch.cli.main import run as run_command
from gapwatch.http.app import ROUTES, create_app
from gapwatch.http.openapi import document
from gapwatch.http.schemas import schemas
from gapwatch.model.gap import RunKind, RunState
from tests.http_harness import Service, view
from tests.ledger_samples import at, audit_row, finding, gap, opening, run

Client = aiohttp.ClientSession


@pytest.fixture
def spec() -> dict[str, Any]:
    return document(ROUTES, "1.2.3")


def test_the_document_is_valid_openapi_3_1(spec: dict[str, Any]) -> None:
    assert spec["openapi"] == "3.1.0"
    errors = [str(error) for error in OpenAPIV31SpecValidator(spec).iter_errors()]
    assert errors == []


async def test_h7_every_route_is_documented_and_every_documented_path_is_a_route(spec: dict[str, Any], served: Service) -> None:
    app = create_app(served.server._deps)
    routed = set()
    for route in app.router.routes():
        assert route.resource is not None
        path = re.sub(r"\{(\w+):[^}]*\}", r"{\1}", str(route.resource.get_info().get("path") or _template(route)))
        routed.add((route.method.lower(), path))
    documented = {(method, path) for path, operations in spec["paths"].items() for method in operations}
    assert routed == documented


def _template(route: Any) -> str:
    return str(route.resource.canonical)


def test_operations_have_names_of_their_own(spec: dict[str, Any]) -> None:
    names = [operation["operationId"] for operations in spec["paths"].values() for operation in operations.values()]
    assert len(names) == len(set(names))


def test_the_command_prints_what_a_service_would_serve(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # where there is no configuration
    assert run_command(["openapi"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == document(ROUTES, __version__)
    assert err == ""


async def test_the_document_is_served(client: Client, spec: dict[str, Any]) -> None:
    async with client.get("/openapi.json") as response:
        assert response.status == 200
        served = await response.json()
    assert served["paths"].keys() == spec["paths"].keys()
    assert served["info"]["version"] == "1.2.3<test>"


async def test_lesson_37_every_documented_endpoint_answers_once_started(
    client: Client, spec: dict[str, Any], served: Service
) -> None:
    served.ledger.store_gaps([opening(gap())])
    served.ledger.create_run(run(1))
    served.ledger.create_run(run(2, kind=RunKind.BACKFILL, state=RunState.SUCCEEDED))
    served.ledger.create_run(run(3, kind=RunKind.REPLAY, state=RunState.SUCCEEDED))
    real = {"gaps": gap().id, "sweeps": "run_1", "backfills": "run_2", "replays": "run_3", "pipelines": "orders"}
    for path, operations in spec["paths"].items():
        noun = path.split("/")[3] if path.startswith("/api/v1/") else ""
        address = path.replace("{id}", real.get(noun, "")).replace("{key}", "42").replace("{name}", "page.js")
        for method, operation in operations.items():
            async with client.request(method, address) as response:
                assert response.status not in (404, 405), f"{method} {address}"
                assert str(response.status) in operation["responses"], f"{method} {address} answers {response.status}"


async def test_h7_real_answers_fit_their_schemas(client: Client, spec: dict[str, Any], served: Service) -> None:
    served.ledger.store_gaps([opening(gap(1)), opening(gap(2, target_id=None, event_time=None, evidence=()))])
    served.ledger.create_run(run(1, counts={"missing": 1}))
    served.ledger.raise_finding(finding(time_from=at(1)))
    served.ledger.audit([audit_row(1), audit_row(2, key=None, key_fields=None, run_id=None, gap_id=None)])
    served.desk.shown = [
        view(findings=(finding(),), last_sweep=run(), gaps_open={"missing": 2}),
        view("empty", status="UNKNOWN", consistent_through=None, coverage=None, feeds=(), baseline=None),
    ]
    answers = {
        "Pipelines": "/api/v1/pipelines",
        "Pipeline": "/api/v1/pipelines/orders",
        "Gaps": "/api/v1/gaps?limit=1",
        "GapWithHistory": f"/api/v1/gaps/{gap(2).id}",
        "Sweeps": "/api/v1/sweeps",
        "Run": "/api/v1/sweeps/run_1",
        "Backfills": "/api/v1/backfills",
        "Replays": "/api/v1/replays",
        "Findings": "/api/v1/findings",
        "Audit": "/api/v1/audit",
        "KeyStory": "/api/v1/pipelines/orders/keys/42",
        "Problem": "/api/v1/gaps/none",
    }
    for name, path in answers.items():
        async with client.get(path) as response:
            body = json.loads(await response.text())
        schema = {"$ref": f"#/components/schemas/{name}", "components": spec["components"]}
        jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker()).validate(body)


def test_every_documented_answer_has_a_schema_that_exists(spec: dict[str, Any]) -> None:
    known = set(schemas()) | {name for name in spec["components"]["schemas"] if name.startswith("Body")}
    used = {text.split('"')[0] for text in json.dumps(spec).split("#/components/schemas/")[1:]}
    assert used <= known
    assert set(schemas()) <= used | {"Life"}
