"""Tokens are made, listed and revoked in the ledger; a secret is shown once, or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gapwatch.cli import main
from gapwatch.cli.exits import CONSISTENT, UNDECIDED, USAGE
from gapwatch.ledger import open_ledger
from tests.unit.config.test_load import GOOD


@pytest.fixture
def config(tmp_path: Path) -> str:
    file = tmp_path / "gapwatch.yaml"
    file.write_text(f"database: sqlite:///{tmp_path}/ledger.db\n{GOOD}")
    return str(file)


def test_h1_a_token_is_printed_once_and_opens_until_it_is_revoked(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["token", "create", "ci", "--scope", "repair", "--days", "1", "--config", config]) == CONSISTENT
    secret = capsys.readouterr().out.strip()
    ledger = open_ledger(f"sqlite:///{tmp_path}/ledger.db")
    try:
        record = ledger.token_by_secret(secret)
        assert record is not None
        assert (record.name, record.scopes) == ("ci", ("repair",))
        assert record.expires_at is not None
        assert 86_300 < (record.expires_at - record.created_at).total_seconds() < 86_500
        assert main.run(["token", "list", "-o", "json", "--config", config]) == CONSISTENT
        listed = capsys.readouterr().out
        assert [row["id"] for row in json.loads(listed)] == [record.id]
        assert secret not in listed
        assert main.run(["token", "revoke", record.id, "--config", config]) == CONSISTENT
        assert ledger.token_by_secret(secret) is None
        assert [(row.action, row.reason) for row in ledger.audit_rows()] == [
            ("token_revoke", "ci: repair"),
            ("token_create", "ci: repair"),
        ]
    finally:
        ledger.close()


def test_a_secret_from_a_file_is_taken_and_never_printed(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "secret"
    file.write_text("0123456789abcdef" * 2 + "\n")
    for _ in range(2):
        assert (
            main.run(["token", "create", "ops", "--scope", "admin", "--secret-file", str(file), "--config", config]) == CONSISTENT
        )
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "0123456789abcdef" not in shown.err
    main.run(["token", "list", "-o", "json", "--config", config])
    assert len(json.loads(capsys.readouterr().out)) == 1


@pytest.mark.parametrize(("content", "said"), [("short", "32 or more"), ("", "is empty"), (None, "cannot be read")])
def test_wrong_secret_files(
    content: str | None, said: str, config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_text(content)
    assert main.run(["token", "create", "ops", "--secret-file", str(file), "--config", config]) == USAGE
    assert said in capsys.readouterr().err


def test_an_unknown_token_cannot_be_revoked(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["token", "revoke", "tok_nobody", "--config", config]) in (USAGE, UNDECIDED)
    assert "There is no token tok_nobody." in capsys.readouterr().err
