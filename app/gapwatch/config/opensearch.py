"""What the configuration says of an OpenSearch store and of an index as a target."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from gapwatch.config import forms
from gapwatch.config.source import Document, Place
from gapwatch.core.search_address import SearchAddress

ACCOUNT_OPTIONS = ("user", "password", "api_key", "ca", "client_cert", "client_key")
INDEX_NAME = re.compile(r'[^A-Z\\/*?"<>| ,#:_+.-][^A-Z\\/*?"<>| ,#:]{0,254}')
_HOST = re.compile(r"(https?)://((?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):\d{1,5})/?")


def store_address(place: Place, store: forms.Store, document: Document) -> str:
    """Return the store's address as the connector reads it; problems are added to the document."""
    for other in ("dsn", "uri"):
        if getattr(store, other) is not None:
            document.problem((*place, other), f"An opensearch store has no `{other}`.", "Write `hosts` instead.")
    if not store.hosts:
        document.problem(place, "`hosts` is missing.", 'Write hosts: ["https://search:9200"].')
        return ""
    found = [_HOST.fullmatch(host) for host in store.hosts]
    for number, match in enumerate(found):
        if match is None:
            remedy = "Write https://HOST:PORT, and the account beside it: `user` and `password`, or `api_key`."
            document.problem((*place, "hosts", number), "It is no address of a node.", remedy)
    schemes = {match[1] for match in found if match}
    if len(schemes) > 1:
        document.problem(
            (*place, "hosts"), "Some hosts are reached with TLS, and some without.", "Write all of them with https://."
        )
    if not all(found) or len(schemes) != 1:
        return ""
    address = SearchAddress(
        scheme=schemes.pop(),
        hosts=tuple(match[2] for match in found if match),
        **{name: getattr(store, name) or "" for name in ACCOUNT_OPTIONS},
    )
    for option, message, remedy in _problems(address):
        document.problem((*place, option), message, remedy)
    return address.encode()


def _problems(address: SearchAddress) -> Iterator[tuple[str, str, str]]:
    if bool(address.user) != bool(address.password):
        lacking = "password" if address.user else "user"
        yield lacking, f"`{lacking}` is missing.", "An account is both, user and password."
    if address.api_key and address.user:
        yield "api_key", "There is an account as well.", "Keep one of the two."
    if address.client_key and not address.client_cert:
        yield "client_key", "A key without its certificate is of no use.", "Name the certificate too: client_cert."
    if address.scheme == "http":
        for name in ("ca", "client_cert"):
            if getattr(address, name):
                yield name, "Without TLS nobody shows a certificate.", "Write the hosts with https://."
        secret = "api_key" if address.api_key else "password" if address.password else ""
        if secret and not all(_is_loopback(host) for host in address.hosts):
            yield secret, "It would travel in the clear.", "Write the hosts with https://."


def _is_loopback(host: str) -> bool:
    name = host.rpartition(":")[0].strip("[]")
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def store_tree(url: str, mask: str) -> dict[str, Any]:
    """Return a store's keys as the file has them, secrets masked."""
    address = SearchAddress.parse(url)
    options = {name: getattr(address, name) for name in ACCOUNT_OPTIONS if getattr(address, name)}
    shown = {name: mask if name in ("password", "api_key") else value for name, value in options.items()}
    return {"hosts": list(address.urls), **shown}


def target_problems(form: forms.Target, fields: Iterable[str]) -> Iterator[tuple[Place, str, str]]:
    """Yield (place below the target, message, remedy) of what is wrong with an index as a target."""
    for name in ("collection", "table"):
        if getattr(form, name) is not None:
            yield (name,), f"An opensearch target has no `{name}`.", "Write `index` instead."
    if form.index is None:
        yield ("index",), "It is missing.", "Name the index, or an alias of exactly one index."
    elif not INDEX_NAME.fullmatch(form.index):
        yield ("index",), "It is no name of one index.", "Write one lower-case name: no pattern, no list."
    yield from _key_problems(form.key)
    if form.routing is not None and form.routing not in set(fields):
        yield ("routing",), f"`{form.routing}` is no mapped field.", "Name the path of the field whose value routes a document."


def _key_problems(key: Mapping[str, str]) -> Iterator[tuple[Place, str, str]]:
    if list(key) != ["_id"]:
        remedy = "Write key: { _id: TYPE }; index each document under the source's key."
        yield ("key",), "The key of an index is its _id: nothing else can be looked up in real time.", remedy
    elif key["_id"] == "bytes":
        yield ("key", "_id"), "An _id is text: bytes have no one form in it.", "Use a key of another type."
