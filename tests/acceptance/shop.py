"""A shop that is open: its table is written to all the time; and what its copy has to be, by plain reads of both."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import psycopg

from tests.acceptance.background import Background
from tests.acceptance.scenery import TABLE, Scene
from tests.acceptance.shared import number


@dataclass
class Shop(Background):
    """Inserts rows, changes `seq` and `v` of old ones, deletes new ones, some fifty writes a second, until it is stopped."""

    dsn: str
    rows: int
    writes: int = 0

    def _run(self) -> None:
        new: list[int] = []
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            for turn in itertools.count():
                if self._stop.wait(0.02):
                    return
                seq = number()
                if turn % 3 == 0:
                    new.append(seq)
                    connection.execute(f"INSERT INTO {TABLE} (id, seq, v, amount) VALUES (%s, %s, 'new', 1)", (seq, seq))
                elif turn % 3 == 1 or len(new) < 5:
                    key = 1 + turn * 7 % self.rows
                    connection.execute(f"UPDATE {TABLE} SET seq = %s, v = 'changed' WHERE id = %s", (seq, key))
                else:
                    connection.execute(f"DELETE FROM {TABLE} WHERE id = %s", (new.pop(0),))
                self.writes += 1


def differing(scene: Scene) -> dict[int, tuple[Any, Any]]:
    """Compare every row and every document, without Gapwatch."""
    rows = {key: row[1:] for key, row in scene.rows().items()}
    documents = {
        key: (document.get("seq"), document.get("v"), document["amount"].to_decimal() if document.get("amount") else None)
        for key, document in scene.documents().items()
    }
    keys = rows.keys() | documents.keys()
    return {key: (rows.get(key), documents.get(key)) for key in keys if rows.get(key) != documents.get(key)}
