"""A small client of the HTTP API: for the command line, and for the demo."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any

from gapwatch.errors import ConflictError, GapwatchError, NotFoundError, StoreUnreachable, UsageError

TIMEOUT_SECONDS = 30.0


class Api:
    """A small client of the HTTP API. Errors of the service come back as our own exceptions, with their exit codes."""

    def __init__(self, url: str, token: str = "") -> None:
        self.url = url.rstrip("/")
        self._token = token.strip()  # a secret from a file often ends with a line's end
        _check(self.url, self._token)

    def alive(self, seconds: float = 1.0) -> bool:
        """Say whether the service answers at all."""
        try:
            with urllib.request.urlopen(f"{self.url}/livez", timeout=seconds) as response:  # noqa: S310 - checked
                return bool(response.status == 200)
        except (OSError, ValueError, HTTPException):
            return False

    def get(self, path: str, **parameters: object) -> Any:
        """Return the JSON answer; parameters that are None or empty are left out."""
        chosen = {name: str(value) for name, value in parameters.items() if value not in (None, "")}
        query = f"?{urllib.parse.urlencode(chosen)}" if chosen else ""
        return self._request("GET", path + query, None)

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        return self._request("POST", path, dict(body or {}))

    def pages(self, path: str, member: str, limit: int, **parameters: object) -> list[dict[str, Any]]:
        """Return up to `limit` items over as many pages as it takes."""
        items: list[dict[str, Any]] = []
        cursor: str | None = None
        while len(items) < limit:
            answer = self.get(path, limit=min(500, limit - len(items)), cursor=cursor, **parameters)
            items += answer[member]
            cursor = answer.get("next_cursor")
            if not cursor:
                break
        return items

    def _request(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        headers = {"Accept": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)  # noqa: S310 - checked
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:  # noqa: S310
                return json.loads(response.read() or b"null")
        except urllib.error.HTTPError as error:
            with error:
                raise _problem(error.code, error.read()) from error
        except (HTTPException, ValueError) as error:
            raise StoreUnreachable(
                f"What answers at {self.url} is not Gapwatch, or broke off.", remedy="Name the right address with --url."
            ) from error
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            raise StoreUnreachable(
                f"Nothing answers at {self.url}.", remedy="Start it with `gapwatch run`, or name another address with --url."
            ) from error


def segment(text: str) -> str:
    """Return a text as one segment of a path, whatever stands in it."""
    return urllib.parse.quote(text, safe="")


def _check(url: str, token: str) -> None:
    """Refuse what cannot be sent; raises UsageError, which shows neither a token nor a password."""
    if not token.isascii() or not token.isprintable():
        raise UsageError(
            "The bearer token holds characters that no token has.",
            remedy="Hand in GAPWATCH_TOKEN as `gapwatch token create` printed it.",
        )
    try:
        parts = urllib.parse.urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        parts, good = urllib.parse.urlsplit(""), False
    if "@" in parts.netloc:
        raise UsageError("The address of a service holds a user's name.", remedy="Hand in a token in GAPWATCH_TOKEN instead.")
    if not good or not url.isascii() or not url.isprintable() or " " in url or parts.query or parts.fragment:
        shown = "The address" if "@" in url else repr(url)
        raise UsageError(f"{shown} is not the address of a service.", remedy="Write it like http://127.0.0.1:8640.")


def _problem(status: int, content: bytes) -> GapwatchError:
    try:
        problem = json.loads(content)
        text = str(problem.get("detail") or problem.get("title") or f"HTTP status {status}")
        running = problem.get("running_id")
    except (ValueError, AttributeError):
        text, running = f"The service answered with HTTP status {status}.", None
    if status == 404:
        return NotFoundError(text)
    if status == 409:
        return ConflictError(text, running_id=running)
    if status in (401, 403):
        return UsageError(text, remedy="Hand in a token with the right scope in GAPWATCH_TOKEN.")
    if 400 <= status < 500:
        return UsageError(text)
    return StoreUnreachable(text)
