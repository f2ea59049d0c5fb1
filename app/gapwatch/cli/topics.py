"""``gapwatch topics create``: make our own topics, and check those that exist."""

from __future__ import annotations

import os

import typer

from gapwatch.cli.options import config_of
from gapwatch.cli.output import note

app = typer.Typer(help="Gapwatch's own topics.", no_args_is_help=True)


@app.callback()
def topics() -> None:
    """Gapwatch's own topics."""


@app.command()
def create(context: typer.Context) -> None:
    """Create the topics that are missing; refuse when one that exists is unfit."""
    import asyncio

    from gapwatch.config import load
    from gapwatch.kafka.topics import ensure_topics

    settings = load(config_of(context), os.environ)
    asyncio.run(ensure_topics(settings))
    note(f"All topics with the prefix {settings.topics.prefix} exist and are as they should be.")
