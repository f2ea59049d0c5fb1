"""The address of an OpenSearch store as one text: what the configuration says in several keys, handed to the connector.

Form: ``opensearch+https://USER:PASSWORD@one:9200,two:9200?api_key=…&ca=…&client_cert=…&client_key=…``, every part escaped.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import parse_qs, quote, unquote, urlencode

PREFIX = "opensearch+"
OPTIONS = ("api_key", "ca", "client_cert", "client_key")


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchAddress:
    """``hosts`` are ``host:port`` of one scheme; the secrets never show in its ``repr``."""

    scheme: str
    hosts: tuple[str, ...]
    user: str = ""
    password: str = field(default="", repr=False)
    api_key: str = field(default="", repr=False)
    ca: str = ""
    client_cert: str = ""
    client_key: str = ""

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(f"{self.scheme}://{host}" for host in self.hosts)

    def encode(self) -> str:
        account = f"{quote(self.user, safe='')}:{quote(self.password, safe='')}@" if self.user else ""
        options = {name: getattr(self, name) for name in OPTIONS if getattr(self, name)}
        query = f"?{urlencode(options)}" if options else ""
        return f"{PREFIX}{self.scheme}://{account}{','.join(self.hosts)}{query}"

    @classmethod
    def parse(cls, text: str) -> SearchAddress:
        """Return the address; ValueError, without the text, where it is none."""
        scheme, separator, rest = text.removeprefix(PREFIX).partition("://")
        if not text.startswith(PREFIX) or not separator or scheme not in ("http", "https"):
            raise ValueError("not the address of an OpenSearch store")
        before, _, query = rest.partition("?")
        account, _, hosts = before.rpartition("@")
        user, _, password = account.partition(":")
        options = {name: values[0] for name, values in parse_qs(query, strict_parsing=bool(query)).items() if name in OPTIONS}
        return cls(
            scheme=scheme, hosts=tuple(hosts.rstrip("/").split(",")), user=unquote(user), password=unquote(password), **options
        )
