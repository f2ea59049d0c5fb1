"""Tokens and scopes; without a token this machine only, and no page of somebody else's."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import pytest

from gapwatch.errors import UsageError
from gapwatch.http.app import ROUTES
from gapwatch.http.auth import SCOPES, check_listen, is_loopback
from tests.http_harness import Service, service

Client = aiohttp.ClientSession
PATHS = {
    "read": ("GET", "/api/v1/pipelines"),
    "operate": ("POST", "/api/v1/pipelines/orders/resume"),
    "repair": ("POST", "/api/v1/backfills/x/apply"),
}


def token(served: Service, *scopes: str) -> dict[str, str]:
    _, secret = served.ledger.create_token("ci", scopes, created_by="test")
    return {"Authorization": f"Bearer {secret}"}


async def status(client: Client, method: str, path: str, headers: dict[str, str] | None = None) -> int:
    async with client.request(method, path, headers=headers) as response:
        if response.status in (401, 403):
            assert response.content_type == "application/problem+json"
        if response.status == 401:
            assert response.headers["WWW-Authenticate"].startswith("Bearer")
        return response.status


async def test_h1_without_a_token_only_the_open_addresses_answer(client: Client, served: Service) -> None:
    token(served, "admin")
    for route in ROUTES:
        path = route.documented_path.replace("{id}", "x").replace("{key}", "1").replace("{name}", "page.js")
        answered = await status(client, route.method, path)
        assert (answered == 401) == (route.scope is not None), f"{route.method} {path}: {answered}"
    opened = {route.path for route in ROUTES if route.scope is None}
    assert opened == {"/livez", "/readyz", "/metrics", "/", "/assets/{name}", "/favicon.ico"}


async def test_h1_scopes(client: Client, served: Service) -> None:
    for held in SCOPES:
        headers = token(served, held)
        for needed, (method, path) in PATHS.items():
            allowed = SCOPES.index(held) >= SCOPES.index(needed)
            assert (await status(client, method, path, headers) == 403) == (not allowed), f"{held} for {needed}"


async def test_the_actor_is_the_token(client: Client, served: Service) -> None:
    await status(client, "POST", "/api/v1/pipelines/orders/resume", token(served, "operate"))
    assert served.desk.calls[0] == ("resume", "orders", "ci")


@pytest.mark.parametrize("header", ["Bearer", "Bearer wrong", "Basic dTpw", "gwt_x", ""])
async def test_a_wrong_token_opens_nothing(client: Client, served: Service, header: str) -> None:
    assert await status(client, "GET", "/api/v1/pipelines", {"Authorization": header}) == 401
    token(served, "read")
    assert await status(client, "GET", "/api/v1/pipelines", {"Authorization": header}) == 401


async def test_a_revoked_token_opens_nothing_at_once(client: Client, served: Service) -> None:
    headers = token(served, "read")
    assert await status(client, "GET", "/api/v1/pipelines", headers) == 200
    served.ledger.revoke_token(served.ledger.tokens()[0].id)
    assert await status(client, "GET", "/api/v1/pipelines", headers) == 401


async def test_without_tokens_this_machine_needs_none(client: Client) -> None:
    assert await status(client, "GET", "/api/v1/pipelines") == 200
    assert await status(client, "POST", "/api/v1/pipelines/orders/resume") == 200


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Host": "evil.example:8640"}, 401),  # DNS rebinding: the browser believes it talks to its own site
        ({"X-Forwarded-For": "10.0.0.1"}, 401),  # a proxy on this machine speaks for somebody else
        ({"Forwarded": "for=10.0.0.1"}, 401),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "[::1]:8640"}, 200),
    ],
)
async def test_lesson_44_a_page_of_another_site_cannot_use_the_open_api(
    client: Client, headers: dict[str, str], expected: int
) -> None:
    assert await status(client, "POST", "/api/v1/pipelines/orders/resume", headers) == expected


async def test_no_cors(client: Client) -> None:
    async with client.options(
        "/api/v1/pipelines", headers={"Origin": "https://x", "Access-Control-Request-Method": "GET"}
    ) as response:
        assert response.status == 405
        assert not [name for name in response.headers if name.lower().startswith("access-control")]


async def test_security_headers_are_on_every_answer(client: Client) -> None:
    for path in ("/", "/livez", "/api/v1/pipelines", "/api/v1/gaps?x=1", "/nothing"):
        async with client.get(path) as response:
            policy = response.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "http" not in policy, "the page loads from nowhere else"
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert response.headers["X-Frame-Options"] == "DENY"
            assert response.headers["Server"] == "gapwatch"
            assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("10.0.0.1", False),
        ("example.org", False),
        ("localhost.evil.example", False),
    ],
)
def test_what_loopback_is(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_lesson_44_without_a_token_nothing_but_loopback_is_bound() -> None:
    with pytest.raises(UsageError, match=r"0\.0\.0\.0") as refused:
        check_listen("0.0.0.0", has_tokens=False)
    assert "token create" in refused.value.remedy
    check_listen("0.0.0.0", has_tokens=True)
    check_listen("127.0.0.1", has_tokens=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    other = tmp_path / "other"
    other.mkdir()
    return other


async def test_lesson_44_the_server_refuses_to_start_where_others_could_reach_it(served: Service, folder: Path) -> None:
    from gapwatch.http.app import ApiServer

    async with service(folder) as other:
        server = ApiServer(other.server._deps)
        with pytest.raises(UsageError):
            await server.start("0.0.0.0", 0)
        headers = token(other, "read")
        _, port = await server.start("0.0.0.0", 0)
        try:
            other.ledger.revoke_token(other.ledger.tokens()[0].id)
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
                assert await status(client, "GET", "/api/v1/pipelines") == 401, "no token left is not open to all"
                assert await status(client, "GET", "/api/v1/pipelines", headers) == 401
        finally:
            await server.stop()


async def test_a_port_that_is_taken_is_an_error(served: Service, folder: Path) -> None:
    with pytest.raises(OSError, match="address already in use"):
        async with service(folder, port=served.port):
            pass


@pytest.mark.parametrize(("header", "refused"), [("Host", 401), ("Origin", 403)])
async def test_an_address_that_is_none_is_refused_and_no_fault_of_ours(client: Client, header: str, refused: int) -> None:
    broken = "[::1" if header == "Host" else "http://[::1"
    assert await status(client, "GET", "/api/v1/pipelines", {header: broken}) == refused
