"""What every program shares: its arguments, the six fields as one would compare them, and the answer that it prints.

``python -m benchmarks.peers.programs.NAME SERVERS SOURCE TARGET TOTAL DIRECTORY GROUP [follow]``. Without ``follow`` it stops
after `TOTAL` records and prints one JSON object with its answer; with it, it goes on until it is killed and says several times a
second what it has read and found.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from benchmarks.figures import report

TOLD_EVERY_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    servers: str
    source: str
    target: str
    total: int
    directory: Path
    group: str
    follow: bool


def arguments() -> Arguments:
    servers, source, target, total, directory, group = sys.argv[1:7]
    return Arguments(
        servers=servers,
        source=source,
        target=target,
        total=int(total),
        directory=Path(directory),
        group=group,
        follow=sys.argv[7:] == ["follow"],
    )


@dataclass(slots=True)
class Answer:
    """Keys that are missing, differ, or are there without having been written, and how many records were read."""

    read: int = 0
    missing: set[int] = field(default_factory=set)
    wrong: set[int] = field(default_factory=set)
    extra: set[int] = field(default_factory=set)

    def end(self) -> None:
        """Print the answer, and leave: what a framework does at its shut-down is not part of the work."""
        report(self.read, **{name: sorted(getattr(self, name)) for name in ("missing", "wrong", "extra")})
        sys.stdout.flush()
        os._exit(0)

    def tell(self) -> None:
        """Say from a thread how far it is, for as long as the process lives."""
        threading.Thread(target=self._tell, daemon=True).start()

    def _tell(self) -> None:
        while True:
            print(json.dumps({"read": self.read, "wrong": sorted(self.wrong.copy())}), flush=True)
            time.sleep(TOLD_EVERY_SECONDS)


def row(after: dict[str, Any]) -> tuple[Any, ...]:
    """Return the six fields of a source row."""
    moment = round(datetime.fromisoformat(after["updated_at"]).timestamp() * 1_000)
    return (after["customer"], Decimal(after["amount"]), after["status"], after["quantity"], moment, after["version"])


def document(after: dict[str, Any]) -> tuple[Any, ...]:
    """Return the same six fields of a target document."""
    amount, moment = Decimal(after["amount"]["$numberDecimal"]), after["updated_at"]["$date"]
    return (after["customer"], amount, after["status"], after["quantity"], moment, after["version"])


def as_json(fields: Iterable[Any]) -> list[Any]:
    """Return fields in a form that a state store which keeps JSON gives back unchanged."""
    return [str(value.normalize()) if isinstance(value, Decimal) else value for value in fields]
