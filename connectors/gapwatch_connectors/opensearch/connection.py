"""Connections to OpenSearch: driver errors become ours, once, and never with a password or a key in them."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from decimal import Decimal
from typing import Any, Final
from urllib.parse import quote

import msgspec
from opensearchpy import AsyncOpenSearch
from opensearchpy.exceptions import ConnectionError as DriverConnectionError
from opensearchpy.exceptions import ConnectionTimeout, OpenSearchException, TransportError
from opensearchpy.serializer import JSONSerializer

from gapwatch.core.canonical import parse_json
from gapwatch.core.search_address import SearchAddress
from gapwatch.errors import StoreBusy, StoreRefused, StoreUnreachable

Json = Any
TIMEOUT_SECONDS: Final = 30.0
PAUSES_SECONDS: Final = (1.0, 2.0, 4.0, 8.0)  # before a page that was rejected is asked for again
# Overloaded, or a part of it is away: the cluster says that it cannot now.
REJECTED: Final = 429
AWAY: Final = frozenset({408, REJECTED, 502, 503, 504})
_ENCODER: Final = msgspec.json.Encoder(decimal_format="number")

# Every failure is raised as an error of ours: the driver need not log it as well, with ids in its addresses.
logging.getLogger("opensearch").setLevel(logging.CRITICAL)


def encode(value: Json) -> bytes:
    """Return JSON whose numbers are exact: a Decimal is written digit by digit."""
    return _ENCODER.encode(value)


_WANTED: ContextVar[msgspec.json.Decoder[Any] | None] = ContextVar("wanted", default=None)


class ExactJson(JSONSerializer):
    """JSON as the core reads it: whole numbers of any size, all others as Decimal; or into the type that a request wants."""

    def dumps(self, data: Any) -> Any:
        return data if isinstance(data, str | bytes) else encode(data)

    def loads(self, s: str) -> Any:
        wanted = _WANTED.get()
        if wanted is not None:
            return wanted.decode(s)
        try:
            return parse_json(s)
        except ValueError:  # half of a surrogate pair? An index keeps what it was sent
            return _lenient(s)


def _lenient(text: str) -> Any:
    """Return the value of JSON text whose strings may be no Unicode; ValueError where it is none."""
    try:
        return json.loads(text, parse_float=Decimal, parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError(str(error)) from error


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no JSON.")


def path(*parts: str) -> str:
    """Return a request path; every part is escaped, so that a name is never more than a name."""
    return "/" + "/".join(quote(part, safe="") for part in parts)


class Search:
    """One client of a store, made at the first use: a wrong address is then an answer like any other.

    Args:
        store: Its configured name.
        address: As :meth:`SearchAddress.encode` writes it.
        retries: Whether a request without an answer is sent to another host. Never for writes: they may have been done.
    """

    def __init__(self, store: str, address: str, *, retries: bool = True) -> None:
        self.store = store
        self._address = address
        self._retries = retries
        self._client: AsyncOpenSearch | None = None
        self._asked = 0

    def asked(self) -> int:
        """Return how many requests were made since this was asked last."""
        count, self._asked = self._asked, 0
        return count

    async def request(
        self,
        method: str,
        where: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Json = None,
        seconds: float = TIMEOUT_SECONDS,
        wanted: msgspec.json.Decoder[Any] | None = None,
    ) -> Json:
        """Return the answer's JSON, as ``wanted`` decodes it where given. Raises StoreUnreachable or StoreRefused."""
        client = self._connected()
        self._asked += 1
        content = "application/x-ndjson" if where.endswith("/_bulk") else "application/json"
        before = _WANTED.set(wanted)
        try:
            with wrapped(self.store):
                return await client.transport.perform_request(
                    method,
                    where,
                    params={name: _parameter(value) for name, value in (params or {}).items()},
                    body=body,
                    timeout=seconds,
                    headers={"content-type": content},
                )
        finally:
            _WANTED.reset(before)

    async def search(self, params: Mapping[str, Any], body: Json, wanted: msgspec.json.Decoder[Any] | None) -> Json:
        """Return the answer to a page of a scan, after pauses while the node rejects it because it has too much to do.

        Raises StoreUnreachable or StoreRefused.
        """
        for pause in PAUSES_SECONDS:
            try:
                return await self.request("POST", "/_search", params=params, body=body, wanted=wanted)
            except StoreBusy:
                await asyncio.sleep(pause)
        return await self.request("POST", "/_search", params=params, body=body, wanted=wanted)

    def _connected(self) -> AsyncOpenSearch:
        if self._client is None:
            self._client = self._open()
        return self._client

    def _open(self) -> AsyncOpenSearch:
        try:
            address = SearchAddress.parse(self._address)
            context = _tls(address) if address.scheme == "https" else None
        except (ValueError, OSError) as error:  # ssl.SSLError is an OSError
            what = error.strerror if isinstance(error, OSError) and error.strerror else "it cannot be read"
            raise StoreRefused(
                f"The address or a certificate of store {self.store} cannot be used: {what}.",
                store=self.store,
                remedy="Check hosts, ca, client_cert and client_key: paths of PEM files.",
            ) from None
        return AsyncOpenSearch(
            hosts=list(address.urls),
            http_auth=(address.user, address.password) if address.user else None,
            headers={"authorization": f"ApiKey {address.api_key}"} if address.api_key else None,
            ssl_context=context,
            serializer=ExactJson(),
            max_retries=len(address.hosts) if self._retries else 0,
            retry_on_timeout=False,
        )

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None


def _tls(address: SearchAddress) -> ssl.SSLContext:
    """Return a context that verifies the server; a client certificate where there is one."""
    context = ssl.create_default_context(cafile=address.ca or None)
    if address.client_cert:
        context.load_cert_chain(address.client_cert, address.client_key or None)
    return context


def _parameter(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@contextmanager
def wrapped(store: str) -> Iterator[None]:
    """Turn the driver's errors into StoreRefused or StoreUnreachable."""
    try:
        yield
    except ConnectionTimeout as error:
        raise StoreUnreachable(f"OpenSearch store {store} does not answer.", store=store, remedy="Check that it runs.") from error
    except DriverConnectionError as error:
        if isinstance(error.info, ssl.SSLCertVerificationError) or "CertificateError" in type(error.info).__name__:
            raise StoreRefused(
                f"The certificate of OpenSearch store {store} is not trusted.",
                store=store,
                remedy="Name the authority that signed it: `ca`, a PEM file; and a host that the certificate is for.",
            ) from error
        raise StoreUnreachable(f"OpenSearch store {store} does not answer.", store=store, remedy="Check that it runs.") from error
    except TransportError as error:
        raise _ours(store, error) from error
    except (OpenSearchException, ValueError, OSError) as error:
        raise StoreRefused(
            f"OpenSearch store {store} answered what cannot be read: {type(error).__name__}.",
            store=store,
            remedy="Check that its hosts are OpenSearch nodes.",
        ) from error


def _ours(store: str, error: TransportError) -> StoreRefused | StoreUnreachable:
    status = error.status_code if isinstance(error.status_code, int) else 0
    kind = error_type(error.info) or f"status {status}"
    if status in AWAY:
        away = StoreBusy if status == REJECTED else StoreUnreachable
        return away(f"OpenSearch store {store} cannot answer now ({kind}).", store=store, remedy="Wait, or relieve it.")
    if status == 401:
        return StoreRefused(
            f"OpenSearch store {store} refused the account.", store=store, remedy="Correct user and password, or the api_key."
        )
    if status == 403:
        return StoreRefused(
            f"OpenSearch store {store} refused: a right is missing, or the index is blocked ({kind}).",
            store=store,
            remedy="Grant the account read and indices:monitor on the index, and write for repairs.",
        )
    if kind == "index_not_found_exception":
        return StoreRefused(f"OpenSearch store {store} has no such index.", store=store, remedy="Create it, or correct its name.")
    return StoreRefused(
        f"OpenSearch store {store} refused: {kind}.", store=store, remedy="Compare the pipeline with the index and its mapping."
    )


def error_type(answer: Any) -> str:
    """Return the type of the error in an answer or an item of one; ``""`` where it names none."""
    said = answer.get("error") if isinstance(answer, Mapping) else None
    if not isinstance(said, Mapping):
        return ""
    roots = said.get("root_cause")
    inner = roots[0].get("type") if isinstance(roots, list) and roots and isinstance(roots[0], Mapping) else None
    return str(inner or said.get("type") or "")
