"""The demo's table and its small write load."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, field
from decimal import Decimal

import psycopg

TABLE = "public.orders"
SEEDED_ROWS = 300
TRANSACTIONS_PER_SECOND = 15
SWAP_EVERY = 25  # transactions; a swap deletes an old order and inserts a new one, in one transaction
STATUSES = ("new", "paid", "packed", "shipped")


def create_table(dsn: str) -> None:
    """Create and fill the table of orders."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE public.orders (id bigint PRIMARY KEY, customer text NOT NULL, status text NOT NULL,"
            " amount numeric(12,2) NOT NULL, quantity integer NOT NULL)"
        )
        connection.execute("ALTER TABLE public.orders REPLICA IDENTITY FULL")
        connection.execute(
            "INSERT INTO public.orders"
            " SELECT i, 'customer ' || i %% 40, 'new', i + 0.25, 1 + i %% 7 FROM generate_series(1, %s) i",
            (SEEDED_ROWS,),
        )


@dataclass
class Load:
    """Inserts, updates and deletes orders until it is stopped. One thread; ``written`` counts changed rows."""

    dsn: str
    seed: int = 20
    written: int = 0
    next_id: int = SEEDED_ROWS + 1
    error: BaseException | None = None
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _live: list[int] = field(default_factory=lambda: list(range(1, SEEDED_ROWS + 1)))

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="demo-load", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop after the running transaction; raises what the load ended with, if it failed."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        generator = random.Random(self.seed)
        try:
            with psycopg.connect(self.dsn) as connection:
                number = 0
                while not self._stop.wait(1 / TRANSACTIONS_PER_SECOND):
                    number += 1
                    if number % SWAP_EVERY == 0:
                        self._swap(connection, generator)
                    else:
                        self._ordinary(connection, generator)
        except BaseException as error:
            self.error = error

    def _ordinary(self, connection: psycopg.Connection, generator: random.Random) -> None:
        with connection.transaction():
            self._insert(connection, generator)
            connection.execute(
                "UPDATE public.orders SET status = %s, quantity = quantity + 1 WHERE id = %s",
                (generator.choice(STATUSES), generator.choice(self._live)),
            )
            self.written += 2

    def _swap(self, connection: psycopg.Connection, generator: random.Random) -> None:
        gone = self._live.pop(generator.randrange(len(self._live)))
        with connection.transaction():
            self._insert(connection, generator)
            connection.execute("DELETE FROM public.orders WHERE id = %s", (gone,))
            self.written += 2

    def _insert(self, connection: psycopg.Connection, generator: random.Random) -> None:
        amount = Decimal(generator.randrange(100, 100_000)) / 100
        connection.execute(
            "INSERT INTO public.orders VALUES (%s, %s, 'new', %s, %s)",
            (self.next_id, f"customer {generator.randrange(40)}", amount, generator.randrange(1, 9)),
        )
        self._live.append(self.next_id)
        self.next_id += 1

    def lose_inserts(self, count: int) -> None:
        """Insert `count` orders in a transaction that also deletes: a sink that drops such batches loses them."""
        generator = random.Random(self.seed + self.next_id)
        with psycopg.connect(self.dsn) as connection, connection.transaction():
            for _ in range(count):
                self._insert(connection, generator)
            self._insert(connection, generator)
            connection.execute("DELETE FROM public.orders WHERE id = %s", (self._live.pop(),))

    def lose_deletes(self, count: int) -> None:
        """Delete `count` of the oldest orders in one transaction."""
        with psycopg.connect(self.dsn) as connection, connection.transaction():
            for _ in range(count):
                connection.execute("DELETE FROM public.orders WHERE id = %s", (self._live.pop(0),))
