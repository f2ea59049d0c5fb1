"""``gapwatch token``: bearer tokens of the API. Works on the ledger itself, since without a token there is no API to ask."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gapwatch.cli.options import Output, OutputOption, config_of
from gapwatch.cli.output import emit, note
from gapwatch.clock import SystemClock

if TYPE_CHECKING:
    from gapwatch.ledger import SqlLedger, TokenRecord

app = typer.Typer(help="Bearer tokens of the API.", no_args_is_help=True)

COLUMNS = ("id", "name", "scopes", "created_at", "created_by", "expires_at", "revoked_at")
SECRET_CHARACTERS_MAX = 1_000


class Scope(StrEnum):
    """Each includes those before it."""

    READ = "read"
    OPERATE = "operate"
    REPAIR = "repair"
    ADMIN = "admin"


@contextmanager
def _ledger(context: typer.Context) -> Iterator[SqlLedger]:
    from gapwatch.config import load
    from gapwatch.ledger import open_ledger

    ledger = open_ledger(load(config_of(context), os.environ).database)
    try:
        yield ledger
    finally:
        ledger.close()


@app.command()
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Who uses it; stands in the audit trail.")],
    scope: Annotated[Scope, typer.Option(help="What it may do; each scope includes those before it.")] = Scope.READ,
    days: Annotated[
        float | None, typer.Option(min=0.001, max=36_500, help="Days until it expires; by default it does not.")
    ] = None,
    secret_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Take the secret from a file, instead of making and printing one.")
    ] = None,
) -> None:
    """Make a token and print its secret, once. With the same file a second time nothing changes."""
    secret = _secret(secret_file) if secret_file is not None else ""
    expires = SystemClock().now() + timedelta(days=days) if days else None
    with _ledger(context) as ledger:
        record, made = ledger.create_token(name, [scope.value], created_by=_actor(), expires_at=expires, secret=secret)
        _note_in_the_trail(ledger, "token_create", record)
    note(f"Token {record.id} of {record.name}: {', '.join(record.scopes)}.")
    if not secret:
        print(made)


@app.command("list")
def list_(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """List all tokens, also revoked and expired ones; never their secrets."""
    from gapwatch.core.reports import rfc3339

    with _ledger(context) as ledger:
        rows: list[dict[str, Any]] = [
            {
                "id": record.id,
                "name": record.name,
                "scopes": list(record.scopes),
                "created_at": rfc3339(record.created_at),
                "created_by": record.created_by,
                "expires_at": rfc3339(record.expires_at) if record.expires_at else None,
                "revoked_at": rfc3339(record.revoked_at) if record.revoked_at else None,
            }
            for record in ledger.tokens()
        ]
    emit(rows, COLUMNS, output)


@app.command()
def revoke(context: typer.Context, token: Annotated[str, typer.Argument(help="Its id, from `token list`.")]) -> None:
    """Revoke a token, at once."""
    with _ledger(context) as ledger:
        record = ledger.revoke_token(token)
        _note_in_the_trail(ledger, "token_revoke", record)
    note(f"Token {record.id} of {record.name} is revoked.")


def _actor() -> str:
    """Return who calls, by the system's name or number: a container's user may have no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def _note_in_the_trail(ledger: SqlLedger, action: str, record: TokenRecord) -> None:
    from gapwatch.model.gap import AuditRow

    row = AuditRow(
        id=f"{action}/{record.id}",
        at=SystemClock().now(),
        actor=_actor(),
        action=action,
        pipeline="",
        key=None,
        key_fields=None,
        run_id=None,
        gap_id=None,
        outcome="done",
        reason=f"{record.name}: {', '.join(record.scopes)}",
    )
    ledger.audit([row])


def _secret(file: Path) -> str:
    from gapwatch.errors import UsageError

    try:
        with file.open(encoding="utf-8") as opened:
            secret = opened.read(SECRET_CHARACTERS_MAX).strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError(f"The file {file} cannot be read: {reason}.", remedy="Correct the path, or its rights.") from error
    if not secret:
        raise UsageError(f"The file {file} is empty.", remedy="Put the secret there.")
    return secret
