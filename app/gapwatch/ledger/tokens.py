"""Bearer tokens of the API: only their hashes are stored."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Row, func, or_, select, update

from gapwatch.errors import NotFoundError, UsageError
from gapwatch.ledger.part import LedgerPart
from gapwatch.ledger.tables import tokens
from gapwatch.ledger.types import from_us

SCOPES: Final = ("read", "operate", "repair", "admin")  # each includes those before it
PREFIX: Final = "gwt_"  # so that secret scanners recognise one
NAME_MAX: Final = 100
SECRET_LEAST: Final = 32  # characters of a secret that was made elsewhere


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRecord:
    """A token as it is listed. The secret itself is shown once, when it is made, and stored nowhere."""

    id: str
    name: str
    scopes: tuple[str, ...]
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None


class TokenQueries(LedgerPart):
    def create_token(
        self, name: str, scopes: Collection[str], *, created_by: str, expires_at: datetime | None = None, secret: str = ""
    ) -> tuple[TokenRecord, str]:
        """Make a token; return its record and its secret. Raises UsageError for an unknown scope or an empty name.

        Args:
            secret: One that was made elsewhere (by a secret store); by default a new one. Known already with the same scopes:
                nothing changes. Raises UsageError where it is short, revoked, expired, or known with other scopes.
        """
        unknown = sorted(set(scopes) - set(SCOPES))
        if unknown or not scopes:
            raise UsageError(f"Unknown scopes: {', '.join(unknown) or 'none given'}.", remedy=f"There are {', '.join(SCOPES)}.")
        if not name.strip() or len(name) > NAME_MAX:
            raise UsageError("A token needs a name that says who uses it.", remedy=f"Give 1 to {NAME_MAX} characters.")
        if secret:
            known = self._adopted(secret, tuple(scope for scope in SCOPES if scope in scopes))
            if known is not None:
                return known, secret
        secret = secret or PREFIX + secrets.token_urlsafe(32)

        def create(connection: Connection) -> TokenRecord:
            record = TokenRecord(
                id="tok_" + secrets.token_hex(8),
                name=name,
                scopes=tuple(scope for scope in SCOPES if scope in scopes),
                created_at=from_us(self._db.now_us(connection)),
                created_by=created_by,
                expires_at=expires_at,
                revoked_at=None,
            )
            connection.execute(
                tokens.insert().values(
                    id=record.id,
                    name=name,
                    hash=_hash(secret),
                    scopes=list(record.scopes),
                    created_at=record.created_at,
                    created_by=created_by,
                    expires_at=expires_at,
                )
            )
            return record

        return self._db.write(create), secret

    def _adopted(self, secret: str, scopes: tuple[str, ...]) -> TokenRecord | None:
        """Return the token that has this secret already; None where there is none."""
        if len(secret) < SECRET_LEAST or not secret.isascii() or not secret.isprintable() or " " in secret:
            raise UsageError(
                f"A secret has {SECRET_LEAST} or more printable ASCII characters, and no spaces.",
                remedy="Make one with: openssl rand -hex 32.",
            )
        query = select(tokens).where(tokens.c.hash == _hash(secret))
        row = self._db.read(lambda connection: connection.execute(query).one_or_none())
        if row is None:
            return None
        record = self.token_by_secret(secret)
        if record is None or record.scopes != scopes:
            raise UsageError(
                f"This secret is known already, as token {row.id}: revoked, expired, or with other scopes.",
                remedy="Give another secret.",
            )
        return record

    def tokens(self) -> Sequence[TokenRecord]:
        """Return all tokens, also revoked and expired ones, oldest first."""
        query = select(tokens).order_by(tokens.c.created_at, tokens.c.id)
        return [_record(row) for row in self._db.read(lambda connection: connection.execute(query).all())]

    def token_by_secret(self, secret: str) -> TokenRecord | None:
        """Return the valid token with this secret. Found by its hash, so the time taken tells nothing about stored ones."""
        query = select(tokens).where(
            tokens.c.hash == _hash(secret),
            tokens.c.revoked_at.is_(None),
            or_(tokens.c.expires_at.is_(None), tokens.c.expires_at > self._db.now()),
        )
        row = self._db.read(lambda connection: connection.execute(query).one_or_none())
        return None if row is None else _record(row)

    def has_tokens(self) -> bool:
        """Whether any token is valid now: without one the API binds to loopback only."""
        query = (
            select(func.count())
            .select_from(tokens)
            .where(tokens.c.revoked_at.is_(None), or_(tokens.c.expires_at.is_(None), tokens.c.expires_at > self._db.now()))
        )
        return bool(self._db.read(lambda connection: connection.execute(query).scalar_one()))

    def revoke_token(self, token_id: str) -> TokenRecord:
        """Revoke at once; an already revoked one keeps its time. Raises NotFoundError."""

        def revoke(connection: Connection) -> TokenRecord | None:
            at = from_us(self._db.now_us(connection))
            statement = update(tokens).where(tokens.c.id == token_id, tokens.c.revoked_at.is_(None)).values(revoked_at=at)
            connection.execute(statement)
            row = connection.execute(select(tokens).where(tokens.c.id == token_id)).one_or_none()
            return None if row is None else _record(row)

        record = self._db.write(revoke)
        if record is None:
            raise NotFoundError(f"There is no token {token_id}.")
        return record


def _hash(secret: str) -> str:
    # 256 random bits need no salt and no slow hash: there is nothing to guess.
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def _record(row: Row[Any]) -> TokenRecord:
    return TokenRecord(
        id=row.id,
        name=row.name,
        scopes=tuple(row.scopes),
        created_at=row.created_at,
        created_by=row.created_by,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )
