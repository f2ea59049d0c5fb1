"""Who may do what. Bearer tokens with scopes; without any token, this machine only.

Without a token configured the API binds to loopback and trusts who comes from there. A browser on the same machine comes from
there too, so a page of somebody else's must not reach it: the Host header has to name loopback (against DNS rebinding), and a
request that a browser marks as coming from another site is refused.
"""

from __future__ import annotations

import asyncio
import ipaddress
from typing import Final
from urllib.parse import SplitResult, urlsplit

from aiohttp import web

from gapwatch.errors import UsageError
from gapwatch.http.deps import DEPS
from gapwatch.http.problems import Problem

SCOPES: Final = ("read", "operate", "repair", "admin")  # each includes those before it
LOCAL_ACTOR: Final = "local"
ACTOR: Final = web.RequestKey("actor", str)
OPEN_ON_LOOPBACK: Final = web.AppKey("open_on_loopback", bool)
_FORWARDED: Final = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP")


def is_loopback(host: str) -> bool:
    """Whether an address or name to bind to is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_listen(host: str, *, has_tokens: bool) -> None:
    """Refuse to listen where others can reach it while nobody needs a token. Raises UsageError."""
    if not has_tokens and not is_loopback(host):
        raise UsageError(
            f"The API may not listen on {host or 'all addresses'}: there is no token, so anybody could use it.",
            remedy="Make one with `gapwatch token create`, or listen on 127.0.0.1.",
        )


async def authorize(request: web.Request, scope: str) -> None:
    """Let the request pass and note who it is; raises Problem 401 or 403."""
    header = request.headers.get("Authorization")
    tokens = request.app[DEPS].tokens
    if header is None:
        if request.app[OPEN_ON_LOOPBACK] and _is_local(request) and not await asyncio.to_thread(tokens.has_tokens):
            _refuse_other_sites(request)  # only here: a bearer token is nothing that a browser sends by itself
            request[ACTOR] = LOCAL_ACTOR
            return
        raise _unauthorized("A bearer token is needed.")
    kind, _, secret = header.partition(" ")
    token = await asyncio.to_thread(tokens.token_by_secret, secret.strip()) if kind.lower() == "bearer" else None
    if token is None:
        raise _unauthorized("The bearer token is not valid: unknown, expired or revoked.", error="invalid_token")
    if not _covers(token.scopes, scope):
        raise Problem(
            403,
            f"This needs the scope {scope}, and the token has {', '.join(token.scopes)}.",
            headers={"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{scope}"'},
        )
    request[ACTOR] = token.name


def _covers(held: tuple[str, ...], needed: str) -> bool:
    return max((SCOPES.index(scope) for scope in held if scope in SCOPES), default=-1) >= SCOPES.index(needed)


def _unauthorized(detail: str, *, error: str = "") -> Problem:
    challenge = 'Bearer realm="gapwatch"' + (f', error="{error}"' if error else "")
    return Problem(401, detail, headers={"WWW-Authenticate": challenge})


def _is_local(request: web.Request) -> bool:
    """Whether the request comes straight from this machine: not through a proxy, and not by a name that leads elsewhere."""
    peer = request.transport.get_extra_info("peername") if request.transport else None
    if not peer or not is_loopback(str(peer[0])) or any(name in request.headers for name in _FORWARDED):
        return False
    return is_loopback(_parts(f"//{request.headers.get('Host', '')}").hostname or "")


def _parts(address: str) -> SplitResult:
    """Return an address in its parts; one that is none (an open bracket) has neither host nor place."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")


def _refuse_other_sites(request: web.Request) -> None:
    origin = request.headers.get("Origin")
    crossed = request.headers.get("Sec-Fetch-Site") in ("cross-site", "same-site")
    if origin is not None and _parts(origin).netloc != request.headers.get("Host"):
        crossed = True
    if crossed:
        raise Problem(403, "Requests from pages of other sites are refused.")
