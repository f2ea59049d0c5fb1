"""The effective configuration, printed without secrets; and the file's JSON Schema."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from decimal import Decimal
from enum import Enum
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import yaml

from gapwatch.config import forms
from gapwatch.config.build import SECRET_OPTION
from gapwatch.model.pipeline import Settings

MASK = "***"
_QUERY_SECRET = re.compile(r"(?i)((?:password|secret|token)[^=&]*=)[^&]*")


def mask_url(url: str) -> str:
    """Return `url` with its password, and passwords in its query, replaced by ``***``."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return MASK
    netloc = parts.netloc
    if "@" in netloc:
        account, _, host = netloc.rpartition("@")
        user, separator, _ = account.partition(":")
        netloc = f"{user}{separator}{MASK if separator else ''}@{host}"
    return urlunsplit(parts._replace(netloc=netloc, query=_QUERY_SECRET.sub(rf"\g<1>{MASK}", parts.query)))


def render(settings: Settings) -> str:
    """Return everything in force as YAML, defaults included, secrets masked. Names are those of the resolved settings."""
    tree = _plain(settings)
    tree["database"] = mask_url(settings.database)
    tree["kafka_options"] = {
        name: MASK if SECRET_OPTION.search(name) else value for name, value in sorted(settings.kafka_options.items())
    }
    for name, store in settings.stores.items():
        tree["stores"][name]["url"] = mask_url(store.url)
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of ``gapwatch.yaml`` (before ``${…}`` is filled in, values may be text)."""
    schema = forms.File.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "gapwatch.yaml", **schema}


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
