"""What a process that matches says it waits for."""

from __future__ import annotations

import asyncio

import pytest

from gapwatch.clock import SystemClock
from gapwatch.errors import StoreUnreachable
from gapwatch.model.pipeline import Settings
from gapwatch.roles.match import role
from gapwatch.roles.match.settings import MatchTuning


async def test_k6_a_matcher_waits_for_brokers_that_answer_and_a_worker_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    stop, answers = asyncio.Event(), iter([False, True, True])

    async def ensure_topics(_: Settings) -> None:
        if not next(answers):
            raise StoreUnreachable("Kafka does not answer.")

    class Worker:
        hung = False

        def __init__(self, *_: object, **__: object) -> None: ...

        async def run(self, stop: asyncio.Event) -> None:
            if len(said) == 2:
                raise RuntimeError("a bug")
            stop.set()

    monkeypatch.setattr(role, "ensure_topics", ensure_topics)
    monkeypatch.setattr(role, "MatchWorker", Worker)
    tuning = MatchTuning(restart_seconds=0.001)
    settings = Settings(bootstrap_servers="")
    await role.MatchRole(settings, {}, SystemClock(), stop=stop, tuning=tuning, waits_for=said.append).run()
    before = "a worker that runs: "
    assert said == [before + "Kafka does not answer.", "", before + "RuntimeError('a bug')", ""]
