"""``gapwatch openapi``: the description of the HTTP API, without a service."""

from __future__ import annotations

import json

import typer

app = typer.Typer(help="Print the OpenAPI 3.1 document of the HTTP API.", invoke_without_command=True)


@app.callback()
def openapi() -> None:
    """Print the document that a running service shows at `/openapi.json`; it needs neither a service nor a configuration."""
    from gapwatch import __version__
    from gapwatch.http.app import ROUTES
    from gapwatch.http.openapi import document

    print(json.dumps(document(ROUTES, __version__), indent=2))
