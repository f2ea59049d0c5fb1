"""What the tests under fire share: a table that is written to all the time, and a pipeline that repairs by itself."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import psycopg
import pytest

from tests.acceptance.background import Background
from tests.acceptance.scenery import CREATE, FIELDS, TABLE
from tests.stack import execute

HEALED_SECONDS = 300.0
REFUSED_OF, REFUSED = 20, 7  # ids with this remainder are refused: five in a hundred
LOST_OF = 50  # a sink loses one write in so many
OTHER_LENGTH = "UNDER_FIRE"  # not GAPWATCH_…: a service takes that for its configuration
State = tuple[int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """Rows, writes a second, seconds of writing, grace, and how long the target is away and hangs."""

    rows: int
    rate: float
    seconds: float
    grace: str
    away: float
    hangs: float


def length_of(config: pytest.Config, *, short: Length, long: Length) -> Length:
    """Return the long one for ``--soak``, but for what the environment says: UNDER_FIRE="rows=20000 rate=100 seconds=60"."""
    if not config.getoption("--soak"):
        return short
    said = dict(part.split("=") for part in os.environ.get(OTHER_LENGTH, "").split())
    return replace(long, **{name: type(getattr(long, name))(value) for name, value in said.items()})


@dataclass
class Writer(Background):
    """Updates, deletes and inserts rows again, about `rate` a second, until it is stopped."""

    dsn: str
    rows: int
    rate: float
    writes: int = 0

    def _run(self) -> None:
        rng, gone, seq, started = random.Random(1), set[int](), self.rows, time.monotonic()
        with psycopg.connect(self.dsn) as connection:
            while not self._stop.is_set():
                if self.writes > (time.monotonic() - started) * self.rate:
                    time.sleep(0.005)
                    continue
                for key in {rng.randint(1, self.rows) for _ in range(5)}:
                    seq += 1
                    self.writes += 1
                    if key in gone:
                        gone.discard(key)
                        connection.execute(f"INSERT INTO {TABLE} (id, seq, v) VALUES (%s, %s, %s)", (key, seq, f"v{seq}"))
                    elif rng.random() < 0.1:
                        gone.add(key)
                        connection.execute(f"DELETE FROM {TABLE} WHERE id = %s", (key,))
                    else:
                        connection.execute(f"UPDATE {TABLE} SET seq = %s, v = %s WHERE id = %s", (seq, f"v{seq}", key))
                connection.commit()


def is_lost(seq: int) -> bool:
    """Say whether the sink loses the write with this number."""
    return seq > 0 and seq % LOST_OF == 0


def create(dsn: str, length: Length) -> None:
    """Create the table, with its rows."""
    rows = f"INSERT INTO {TABLE} (id, seq, v) SELECT i, i, 'v' || i FROM generate_series(1, {length.rows}) i"
    execute(dsn, CREATE, f"ALTER TABLE {TABLE} REPLICA IDENTITY FULL", rows)


def repairing(length: Length) -> dict[str, Any]:
    """Return what the pipeline has beside its stores: it sweeps without a pause, and repairs whatever is found."""
    kinds = dict.fromkeys(("missing", "stale", "mismatch", "undeleted"), "auto")
    limits = {"max_documents_per_run": 1_000_000, "brake_ratio": 1.0, "backoff": "2s", "max_attempts": 100}
    return {
        "grace": length.grace,
        "fields": FIELDS,
        "repair": {**kinds, **limits},
        "sweep": {"every": "10s", "start_delay": "0s", "load": 1.0, "batch": {"documents": 500, "pause": "0s"}},
        "incident_threshold": 1_000_000,
    }


def burn(length: Length, blows: Sequence[Callable[[], None]]) -> None:
    """Let time pass before and after every blow: two steps each, and one more at the end."""
    step = length.seconds / (2 * len(blows) + 1)
    for blow in blows:
        time.sleep(step)
        blow()
        time.sleep(step)
    time.sleep(step)


def differing(dsn: str, documents: Mapping[int, State]) -> dict[int, tuple[State | None, State | None]]:
    """Compare `seq` and `v` of every row and every document, without Gapwatch."""
    with psycopg.connect(dsn) as connection:
        rows = {key: (seq, v) for key, seq, v in connection.execute(f"SELECT id, seq, v FROM {TABLE}").fetchall()}
    keys = rows.keys() | documents.keys()
    return {key: (rows.get(key), documents.get(key)) for key in keys if rows.get(key) != documents.get(key)}
