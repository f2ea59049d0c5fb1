"""No false red under churn: a correct copier, everything killed in turn, and not one gap is opened.

The short form runs in CI; ``make soak`` runs the long one.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pymongo import MongoClient

from gapwatch.embedded import EmbeddedStack
from tests.acceptance.background import Background
from tests.acceptance.copier import Copier
from tests.acceptance.oplog import history_of
from tests.acceptance.service import EVERY_ROLE, Service, wait_for
from tests.acceptance.workload import TABLE, Churn, churning

pytestmark = [pytest.mark.acceptance, pytest.mark.integration, pytest.mark.timeout(1_200)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """How long and how hard: seconds of churn, writes a second, pause of the copier, how often each part is killed."""

    seconds: float
    rate: float
    pause: float
    rounds: int


SHORT = Length(seconds=45, rate=300, pause=8, rounds=1)
LONG = Length(seconds=300, rate=300, pause=60, rounds=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Missed:
    """A write from before the claimed time (``seq`` None: the delete of what had ``before``) that the target does not show."""

    claimed: str
    read: float  # when the claim was in our hands
    key: int
    seq: int | None
    before: int
    there: int | None

    def had_arrived(self, history: Sequence[tuple[float, int | None]]) -> bool:
        """Whether the target held it before the claim was read, and went back since: a sink was given older writes again."""
        last: int | None = None
        for at, seq in history:
            if at > self.read:
                return False
            if seq is not None:
                last = seq
            if self.seq is None and seq is None and last is not None and last >= self.before:
                return True
            if self.seq is not None and seq is not None and seq >= self.seq:
                return True
        return False


@dataclass
class Sampler(Background):
    """Reads consistent-through each second, and what both stores' histories say of it.

    A sample is wrong when a write that was committed before it had not yet been at the target at that moment. One that had, and
    that the target lost since (Connect, killed, sends again what it had not committed), is for the stream to see.
    """

    service: Service
    churn: Churn
    uri: str
    database: str
    missed: list[Missed] = field(default_factory=list)
    samples: int = 0
    defined: int = 0

    def _run(self) -> None:
        client: MongoClient[dict[str, Any]] = MongoClient(self.uri)
        try:
            while not self._stop.wait(1.0):
                try:
                    self._sample(client)
                except Exception:
                    if self.service.view()["status"] is not None and not self._stop.is_set():
                        continue  # MongoDB is away for a moment: nothing can be said of this second
        finally:
            client.close()

    def _sample(self, client: MongoClient[dict[str, Any]]) -> None:
        """Compare what was claimed with what the target holds *after* the claim: it can only have come closer since."""
        claimed = self.service.view()["consistent_through"]
        read = time.time()
        self.samples += 1
        if claimed is None:
            return
        self.defined += 1
        through = datetime.fromisoformat(claimed.replace("Z", "+00:00")).timestamp()
        newest: dict[int, int | None] = {}
        before: dict[int, int] = {}
        moved_on: set[int] = set()  # the source wrote the key since: the target may show either
        for write in list(self.churn.history):
            if write.acknowledged >= through:
                moved_on.add(write.key)
                continue
            newest[write.key] = write.seq
            before[write.key] = write.seq or before.get(write.key, 0)
        present = {
            document["_id"]: document["seq"]
            for document in client[self.database].orders.find({"_id": {"$in": list(newest)}}, {"seq": 1})
        }
        for key, seq in newest.items():
            there = present.get(key)
            if key in moved_on:
                continue
            if (seq is None and there is not None) or (seq is not None and (there is None or there < seq)):
                self.missed.append(Missed(claimed=claimed, read=read, key=key, seq=seq, before=before[key], there=there))

    def wrong(self) -> list[Missed]:
        """Return what was claimed of writes that had never been at the target by then, by its oplog."""
        history = history_of(self.uri, f"{self.database}.orders", "seq")
        client: MongoClient[dict[str, Any]] = MongoClient(self.uri)
        try:
            documents = {document["_id"]: document["seq"] for document in client[self.database].orders.find({}, {"seq": 1})}
        finally:
            client.close()
        shown = {key: states[-1][1] for key, states in history.items() if states[-1][1] is not None}
        assert shown == documents, "the oplog was not read right"
        return [missed for missed in self.missed if not missed.had_arrived(history.get(missed.key, ()))]


def disturb(stack: EmbeddedStack, service: Service, copier: Copier, length: Length) -> None:
    """Kill and restart everything in turn, and pause the copier once, spread over the length of the run."""
    steps: list[Callable[[], None]] = []
    for number in range(length.rounds):
        how = signal.SIGKILL if number % 2 == 0 else signal.SIGTERM
        steps += [lambda role=role, how=how: service.restart(role, how) for role in ("match", "ingest", "capture")]  # type: ignore[misc]
        steps += [lambda: _restart(stack.mongodb), lambda: _restart(stack.connect)]
    steps.insert(len(steps) // 2, lambda: _pause(copier, length.pause))
    gap = (length.seconds - length.pause) / (len(steps) + 1)
    for step in steps:
        time.sleep(gap)
        step()
    time.sleep(gap)


def _restart(part: Any) -> None:
    part.kill()
    part.start()


def _pause(copier: Copier, seconds: float) -> None:
    copier.pause()
    time.sleep(seconds)
    copier.resume()


def test_what_never_arrived_is_never_taken_for_a_step_back() -> None:
    def missed(seq: int | None) -> Missed:
        return Missed(claimed="", read=10.0, key=1, seq=seq, before=5, there=None)

    assert missed(5).had_arrived([(1.0, 4), (9.0, 5), (11.0, 3)])
    assert not missed(5).had_arrived([(1.0, 4), (11.0, 5)])
    assert not missed(5).had_arrived([])
    assert missed(None).had_arrived([(1.0, 5), (2.0, None), (9.0, 5)])
    assert not missed(None).had_arrived([(1.0, 4), (2.0, None), (9.0, 5)])
    assert not missed(None).had_arrived([(1.0, 5), (11.0, None)])


@pytest.mark.long
def test_l3_no_false_red_under_churn(
    stack: EmbeddedStack, postgres_database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    length = LONG if request.config.getoption("--soak") else SHORT
    with churning(stack, postgres_database, tmp_path, length.rate, EVERY_ROLE) as (churn, copier, service):
        service.wait_healthy()
        sampler = Sampler(service, churn, stack.mongodb.uri, postgres_database)
        churn.start()
        sampler.start()
        disturb(stack, service, copier, length)
        churn.stop()
        wait_for(lambda: _copied(stack, postgres_database, churn), "the copier to have copied all", 120)
        view = service.wait_healthy(seconds=120)
        view = wait_for(lambda: _settled(service, churn), "every write to be accounted for", 120)
        sampler.stop()
        assert service.gaps(state="") == [], "gaps were opened although nothing was lost"
        assert sampler.wrong() == []
        # A busy machine takes fewer samples than one a second.
        assert sampler.defined > min(length.seconds, sampler.samples) / 4, "consistent-through was hardly ever defined"
        totals = view["totals"]
        closed = (
            totals["settled"] + totals["superseded"] + totals["cleared"] + totals["gap"] + sum(totals["unverifiable"].values())
        )
        assert closed == totals["expected"]
        assert totals["gap"] == 0
        assert churn.writes >= length.seconds * length.rate * 0.5


def _copied(stack: EmbeddedStack, database: str, churn: Churn) -> bool:
    with psycopg.connect(churn.dsn) as connection:
        rows: dict[int, int] = dict(connection.execute(f"SELECT id, seq FROM {TABLE}").fetchall())
    client: MongoClient[dict[str, Any]] = MongoClient(stack.mongodb.uri)
    try:
        return {document["_id"]: document["seq"] for document in client[database].orders.find({}, {"seq": 1})} == rows
    finally:
        client.close()


def _settled(service: Service, churn: Churn) -> dict[str, Any] | None:
    view = service.view()
    if view["status"] != "HEALTHY" or view["pending_keys"] or view["in_transit_keys"]:
        return None
    last = churn.history[-1].acknowledged
    through = view["consistent_through"]
    if through is None or datetime.fromisoformat(through.replace("Z", "+00:00")).timestamp() <= last:
        return None
    return view
