"""What a command hands to the service: any text as one segment, no address or token that cannot be sent, and no secret shown."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from gapwatch.api_client import Api
from gapwatch.cli import main
from gapwatch.cli.exits import CONSISTENT, DIFFERENCES, TIMED_OUT, UNDECIDED, USAGE
from gapwatch.cli.runs import exit_code
from tests.unit.config.test_load import GOOD


class Heard:
    """A service that answers everything alike and keeps what it was asked."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.tokens: list[str | None] = []
        self.answer = b'{"id": "x", "state": "open"}'
        heard = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                heard.paths.append(self.path)
                heard.tokens.append(self.headers["Authorization"])
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(200)
                self.send_header("Content-Length", str(len(heard.answer)))
                self.end_headers()
                self.wfile.write(heard.answer)

            do_POST = do_GET  # noqa: N815 - the server's name for it

            def log_message(self, *_: Any) -> None: ...

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Heard]:
    made = Heard()
    thread = Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("GAPWATCH_URL", made.url)
    monkeypatch.delenv("GAPWATCH_TOKEN", raising=False)
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("command", "path"),
    [
        ("gaps show", "/api/v1/gaps/{}"),
        ("gaps ack", "/api/v1/gaps/{}/ack"),
        ("pipelines pause", "/api/v1/pipelines/{}/pause"),
        ("pipelines resume", "/api/v1/pipelines/{}/resume"),
        ("sweep cancel", "/api/v1/sweeps/{}/cancel"),
        ("backfill cancel", "/api/v1/backfills/{}/cancel"),
    ],
)
def test_any_text_is_one_segment_of_the_address(heard: Heard, command: str, path: str) -> None:
    assert main.run([*command.split(), "a b/é?x"]) == CONSISTENT
    assert heard.paths == [path.format("a%20b%2F%C3%A9%3Fx")]


@pytest.mark.parametrize(
    "url", ["http://[::1", "http://127.0.0.1:abc", "http://a b", "http://", "ftp://x", "http://x/?a=1", "http://x:99999"]
)
def test_an_address_that_is_none_is_refused_with_what_to_write(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["gaps", "list", "--url", url]) == USAGE
    said = capsys.readouterr().err
    assert "is not the address of a service" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("url", ["http://me:hunter2@127.0.0.1:1", "http://me:hunter2@127.0.0.1:abc", "http://me:hunter2@[::1"])
def test_h3_a_password_in_an_address_is_refused_and_not_shown(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["gaps", "list", "--url", url]) == USAGE
    assert "hunter2" not in capsys.readouterr().err


@pytest.mark.parametrize("token", ["hunter2\nx", "hunter2\u20ac", "hunter2\x7fx"])
def test_h3_a_token_that_cannot_be_sent_is_refused_and_not_shown(
    heard: Heard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], token: str
) -> None:
    monkeypatch.setenv("GAPWATCH_TOKEN", token)
    assert main.run(["gaps", "list"]) == USAGE
    said = capsys.readouterr().err
    assert "GAPWATCH_TOKEN" in said
    assert "hunter2" not in said
    assert heard.paths == []


def test_a_token_may_end_with_its_line(heard: Heard) -> None:
    Api(heard.url, "hunter2\n").get("/api/v1/gaps")
    assert heard.tokens == ["Bearer hunter2"]


def test_what_answers_and_is_not_gapwatch_is_said(heard: Heard, capsys: pytest.CaptureFixture[str]) -> None:
    heard.answer = b"<html>"
    assert main.run(["gaps", "list"]) == UNDECIDED
    said = capsys.readouterr().err
    assert "is not Gapwatch" in said
    assert "Traceback" not in said


def test_a_file_of_keys_that_is_no_text_is_refused(heard: Heard, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys"
    file.write_bytes(b"\xff\xfe1\n")
    assert main.run(["sweep", "start", "orders", "--range", f"keys={file}"]) == USAGE
    assert "it is not text" in capsys.readouterr().err
    assert heard.paths == []


def test_a_token_for_longer_than_any_calendar_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "gapwatch.yaml"
    file.write_text(f"database: sqlite:///{tmp_path}/ledger.db\n{GOOD}")
    assert main.run(["token", "create", "ci", "--days", "1e9", "--config", str(file)]) == USAGE
    assert "--days" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "state", "counts", "code"),
    [
        ("sweep", "succeeded", {"differences": 0}, CONSISTENT),
        ("sweep", "succeeded", {"differences": 2}, DIFFERENCES),
        ("sweep", "failed", {}, UNDECIDED),
        ("sweep", "failed", {"differences": 2}, DIFFERENCES),
        ("replay", "failed", {}, UNDECIDED),
        ("sweep", "inconclusive", {}, UNDECIDED),
        ("sweep", "cancelled", {}, UNDECIDED),
        ("backfill", "aborted", {}, DIFFERENCES),
        ("backfill", "failed", {}, DIFFERENCES),
    ],
)
def test_1_is_said_only_where_differences_were_found(kind: str, state: str, counts: dict[str, int], code: int) -> None:
    assert exit_code({"kind": kind, "state": state, "counts": counts}) == code
    assert exit_code(None) == TIMED_OUT
