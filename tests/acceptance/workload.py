"""Churn: inserts, updates, deletes, key changes, no-op and TOAST updates, rollbacks, hot keys; and a pipeline to watch it."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg

from gapwatch.embedded import EmbeddedStack
from tests.acceptance.background import Background
from tests.acceptance.copier import Copier, Rule
from tests.acceptance.scenery import configuration
from tests.acceptance.service import Service
from tests.stack import captured

TABLE = "public.churn"
HOT_KEYS = (1, 2, 3)
BIG = 6_000  # characters that do not compress: stored out of line
ROLLBACK_SHARE = 0.05
FIELDS = {
    "seq": "seq",
    "v": "v",
    "amount": {"from": "amount", "type": "decimal", "scale": 2},
    "flag": "flag",
    "big": "big",
}


def create_table(dsn: str, *, identity: str = "DEFAULT") -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            f"CREATE TABLE {TABLE} (id bigint PRIMARY KEY, seq bigint NOT NULL, v text, amount numeric(12,2), flag boolean,"
            " big text)"
        )
        connection.execute(f"ALTER TABLE {TABLE} REPLICA IDENTITY {identity}")
        connection.execute(f"ALTER TABLE {TABLE} ALTER COLUMN big SET STORAGE EXTERNAL")


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """One committed write: the row as it stood after (None: deleted), and a time not before its commit."""

    key: int
    seq: int | None
    acknowledged: float


@dataclass
class Churn(Background):
    """Writes about `rate` rows a second in transactions of several rows until it is stopped. One thread."""

    dsn: str
    rate: float
    seed: int = 1
    first_key: int = 1
    history: list[Committed] = field(default_factory=list)
    writes: int = 0
    _next_key: int = 0
    _seq: int = 0
    _live: dict[int, bool] = field(default_factory=dict)  # key → has a big column

    def __post_init__(self) -> None:
        self._next_key = self.first_key
        self._random = random.Random(self.seed)

    def _run(self) -> None:
        with psycopg.connect(self.dsn) as connection:
            self._transaction(connection, [self._insert(key=key) for key in HOT_KEYS])
            started, hot = time.monotonic(), 0.0
            while not self._stop.is_set():
                elapsed = time.monotonic() - started
                if self.writes > elapsed * self.rate:
                    time.sleep(0.005)
                    continue
                steps = [self._step() for _ in range(self._random.randint(1, 8))]
                if elapsed - hot >= 0.1:
                    hot = elapsed
                    steps += [self._update(key) for key in HOT_KEYS]
                self._transaction(connection, [step for step in steps if step])

    def _transaction(
        self, connection: psycopg.Connection, steps: list[tuple[str, tuple[Any, ...], list[tuple[int, int | None]]]]
    ) -> None:
        if self._random.random() < ROLLBACK_SHARE and self._live:
            key = self._random.choice(list(self._live))
            connection.execute(f"UPDATE {TABLE} SET v = 'rolled back' WHERE id = %s", (key,))
            connection.execute(f"DELETE FROM {TABLE} WHERE id = %s", (key,))
            connection.rollback()
        for statement, parameters, _ in steps:
            connection.execute(statement, parameters)
        connection.commit()
        acknowledged = time.time()
        for _, _, effects in steps:
            self.writes += 1
            self.history += [Committed(key=key, seq=seq, acknowledged=acknowledged) for key, seq in effects]

    def _step(self) -> tuple[str, tuple[Any, ...], list[tuple[int, int | None]]] | None:
        pick = self._random.random()
        cold = [key for key in self._sample(8) if key not in HOT_KEYS]
        if pick < 0.45 or not cold:
            return self._insert()
        if pick < 0.80:
            return self._update(cold[0])
        if pick < 0.85:
            return f"UPDATE {TABLE} SET v = v WHERE id = %s", (cold[0],), []
        if pick < 0.95:
            del self._live[cold[0]]
            return f"DELETE FROM {TABLE} WHERE id = %s", (cold[0],), [(cold[0], None)]
        plain = [key for key in cold if not self._live[key]]
        return self._change_key(plain[0]) if plain else None

    def _sample(self, count: int) -> list[int]:
        keys = list(self._live)
        return self._random.sample(keys, min(count, len(keys)))

    def _insert(self, key: int | None = None) -> tuple[str, tuple[Any, ...], list[tuple[int, int | None]]]:
        if key is None:
            self._next_key = max(self._next_key, max(HOT_KEYS) + 1)
            key, self._next_key = self._next_key, self._next_key + 1
        big = "".join(self._random.choices("abcdefghij", k=BIG)) if self._random.random() < 0.05 else None
        self._live[key] = big is not None
        self._seq += 1
        amount = Decimal(self._random.randrange(10_000)) / 100
        row = (key, self._seq, f"v{self._seq}", amount, self._random.random() < 0.5, big)
        return f"INSERT INTO {TABLE} VALUES (%s, %s, %s, %s, %s, %s)", row, [(key, self._seq)]

    def _update(self, key: int) -> tuple[str, tuple[Any, ...], list[tuple[int, int | None]]]:
        """Change a row; its big column, where it has one, is not touched, so that its event does not carry it."""
        self._seq += 1
        row = (self._seq, f"v{self._seq}", Decimal(self._random.randrange(10_000)) / 100, key)
        return f"UPDATE {TABLE} SET seq = %s, v = %s, amount = %s WHERE id = %s", row, [(key, self._seq)]

    def _change_key(self, key: int) -> tuple[str, tuple[Any, ...], list[tuple[int, int | None]]]:
        del self._live[key]
        new, self._next_key = self._next_key, self._next_key + 1
        self._live[new] = False
        self._seq += 1
        statement = f"UPDATE {TABLE} SET id = %s, seq = %s WHERE id = %s"
        return statement, (new, self._seq, key), [(key, None), (new, self._seq)]


@contextmanager
def churning(
    stack: EmbeddedStack,
    database: str,
    directory: Path,
    rate: float,
    roles: Sequence[str],
    rules: dict[Any, Rule] | None = None,
    *,
    grace: str = "5s",
    partitions: int = 4,
    **options: Any,
) -> Iterator[tuple[Churn, Copier, Service]]:
    """Watch a table to churn (it has not begun), its connector and its copier; ``rules`` are the copier's faults."""
    dsn = stack.postgres.dsn(database)
    create_table(dsn)
    with captured(stack, database, [TABLE], **{"decimal.handling.mode": "string"}) as prefix:
        group = f"copier-{database}"
        copier = Copier(stack.kafka.bootstrap_servers, f"{prefix}.{TABLE}", group, stack.mongodb.uri, database, "orders")
        copier.rules = copier.rules if rules is None else rules
        config = configuration(stack, dsn, database, group, grace=grace, partitions=partitions, **options)
        pipeline = config["pipelines"]["orders"]
        pipeline["source"] |= {"table": TABLE, "feed": {"debezium": f"{prefix}.{TABLE}"}}
        pipeline["fields"] = FIELDS
        service, churn = Service(directory, config), Churn(dsn, rate)
        with ExitStack() as running:  # what one of them failed with keeps no other from being stopped
            for part in (service, copier, churn):
                running.callback(part.stop)
            copier.start()
            service.start(roles)
            yield churn, copier, service
