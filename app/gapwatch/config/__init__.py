"""Configuration: read, checked, every problem at once; printed with secrets masked; published as a JSON Schema."""

from __future__ import annotations

from gapwatch.config.load import load, parse
from gapwatch.config.render import json_schema, mask_url, render

__all__ = ["json_schema", "load", "mask_url", "parse", "render"]
