"""Rows 4, 14 and 17: what is done with the work besides one ingester and one matcher. Every round has a broker of its own."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from benchmarks import contestants, handover, replayed, work, workers
from benchmarks.answers import check
from gapwatch.embedded import EmbeddedStack
from gapwatch.ledger import open_ledger

SHARED_ROW, SHARED_TIMES = 4, 4  # of a short run the second start-up would be a quarter
ROWS = (SHARED_ROW, 14, handover.ROW)


def measure(keys: int, rounds: int, wanted: Collection[int]) -> list[dict[str, Any]]:
    """Return the rows that are wanted; which team goes first changes from round to round."""
    teams: dict[tuple[str, int], list[workers.Team]] = {}
    replays = []
    ends: dict[str, list[handover.HandOver]] = {}
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
        counts = [1, 2] if number % 2 == 0 else [2, 1]
        with EmbeddedStack(parts=("kafka",)) as stack, tempfile.TemporaryDirectory() as directory:
            servers, database = stack.kafka.bootstrap_servers, f"sqlite:///{Path(directory) / 'bench.db'}"
            planted = work.produce(servers, keys)
            open_ledger(database).close()
            for count in counts if SHARED_ROW in wanted else [1]:
                team = workers.run(workers.INGESTERS, count, servers, keys, database)
                teams.setdefault((workers.INGESTERS, count), []).append(team)
                check(contestants.differing(servers, keys, workers.prefix_of(workers.INGESTERS, count)), planted, keys)
            for count in counts if SHARED_ROW in wanted else []:
                team = workers.run(workers.MATCHERS, count, servers, keys, database)
                teams.setdefault((workers.MATCHERS, count), []).append(team)
                check(contestants.found(servers, workers.prefix_of(workers.MATCHERS, count)), planted, keys)
            for what in handover.FAULTS if handover.ROW in wanted else ():
                ends.setdefault(what, []).append(one := handover.measure(what, servers, keys))
                print(f"  a matcher {what}: {one.pause:.1f} s still, none behind after {one.catch_up:.1f} s", file=sys.stderr)
            if 14 in wanted:
                replays.append(replayed.run(servers, keys, database, planted, Path(directory)))
    return [
        *(workers.rows(teams) if SHARED_ROW in wanted else []),
        *(replayed.rows(replays) if replays else []),
        *handover.rows(ends),
    ]
