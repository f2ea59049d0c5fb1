"""How commands reach Gapwatch: the HTTP API of a running service, or of one that is opened for this command alone.

In order: ``--url`` or ``GAPWATCH_URL``; the address that the configuration listens on, if something answers there; else the
same API over the ledger and the status topic of the configuration, inside this process, for as long as the command takes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gapwatch.api_client import Api

PROBE_SECONDS = 0.5


@contextmanager
def connect(url: str, config: Path | None) -> Iterator[Api]:
    """Open the API for one command.

    Args:
        url: What ``--url`` said, or an empty string.
        config: The configuration file, used where no address is given.
    """
    token = os.environ.get("GAPWATCH_TOKEN", "")
    chosen = url or os.environ.get("GAPWATCH_URL", "")
    if chosen:
        yield Api(chosen, token)
        return
    from gapwatch.config import load

    settings = load(config, os.environ)
    listening = f"http://{settings.listen_host}:{settings.listen_port}"
    if Api(listening).alive(PROBE_SECONDS):
        yield Api(listening, token)
        return
    from gapwatch.wiring.service import local_service

    with local_service(settings) as opened:
        yield Api(opened, token)
