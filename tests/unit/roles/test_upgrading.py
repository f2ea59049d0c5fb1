"""A mapping, or the canonical form, that is not the one that stored what is there: no gap, one finding, and a content sweep."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from gapwatch.core import mapping as mapping_module
from gapwatch.core.mapping import CompiledMapping
from gapwatch.core.upgrade import changes, shortened
from gapwatch.errors import StoreRefused, StoreUnreachable
from gapwatch.ledger import SqlLedger, inspected, is_new, open_ledger
from gapwatch.model.gap import Finding, Run, RunKind, RunState
from gapwatch.model.pipeline import FieldType, Match, Settings
from gapwatch.model.stream import Outcome
from gapwatch.model.suspect import Suspect
from gapwatch.roles.board import Board, Facts
from gapwatch.roles.repair.mappings import MappingWatch, is_in_force
from gapwatch.roles.repair.runner import RunnerDependencies, RunRunner
from gapwatch.roles.repair.sweeps import SchedulerDependencies, SweepScheduler, request_sweep
from gapwatch.roles.repair.watcher import FindingBook
from gapwatch.roles.upgrading import Stored, of_ledger, of_pipelines, of_state, opened
from tests.simulation import world
from tests.simulation.bench import Bench
from tests.simulation.stores import VirtualClock, _NoStatus
from tests.simulation.world import GRACE_MS
from tests.unit.core.samples import field, pipeline

BEFORE = pipeline(field("total", FieldType.DECIMAL, scale=2), field("note"))
AFTER = pipeline(field("total", FieldType.DECIMAL, scale=3), field("note"), field("city"))
SAID = "field city is new; field total (scale 2 → 3)"


def as_stored(mapping: CompiledMapping) -> Any:
    return msgspec.json.decode(msgspec.json.encode({"fingerprint": str(mapping.fingerprint), "layout": mapping.layout}))


def test_every_difference_of_two_mappings_is_named() -> None:
    before, after = CompiledMapping(BEFORE), CompiledMapping(AFTER)
    assert shortened(changes(as_stored(before)["layout"], after.layout)) == SAID
    assert changes(as_stored(before)["layout"], before.layout) == []
    swapped = CompiledMapping(replace(BEFORE, fields=BEFORE.fields[::-1]))
    assert changes(before.layout, swapped.layout) == ["the order of the fields"]
    assert len(mapping_module.FIELD_LAYOUT) == len(before.layout[3][0])


def test_a_new_canonical_form_is_another_mapping(monkeypatch: pytest.MonkeyPatch) -> None:
    before = CompiledMapping(BEFORE)
    monkeypatch.setattr(mapping_module, "VERSION", 2)
    after = CompiledMapping(BEFORE)
    assert before.fingerprint != after.fingerprint
    assert changes(before.layout, after.layout) == ["the canonical form (1 → 2)"]


# ── what was pending ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("parts", [1, 2], ids=["the same form of rows", "one more field that events may leave out"])
def test_m26_what_was_pending_waits_for_a_newer_write_or_is_read(monkeypatch: pytest.MonkeyPatch, parts: int) -> None:
    """Digests of two mappings differ for the same content: none of that is a difference."""
    bench = Bench()
    bench.expect(1, 100, key=b"goes on")
    bench.expect(2, 100, key=b"stands")
    bench.expect(3, 100, key=b"settled")
    bench.observe(3, 150, key=b"settled")
    fields = [field("v", FieldType.INT), *(field(f"f{number}", maskable=True) for number in range(1, parts))]
    bench.spec = world.pipeline(fields=tuple(fields))
    monkeypatch.setattr("tests.simulation.bench.MAPPING", world.MAPPING + 1)
    bench.restart()
    masks = [77] * (parts - 1) if parts > 1 else None
    bench.observe(20, 200, key=b"stands", masks=masks)  # the write of before, as the new mapping sees it
    bench.expect(10, 300, key=b"goes on", masks=masks)
    bench.observe(10, 400, key=b"goes on", masks=masks)
    bench.observe(30, 400, key=b"settled", masks=masks)  # written again, the same content
    said = [one for one in bench.streams(500 + GRACE_MS) if isinstance(one, Suspect)]
    assert sorted((one.key, one.reason) for one in said) == [(b"settled", "mapping"), (b"stands", "mapping")]
    assert all(seen.digest == b"" for one in said for seen in (one.opening,) if seen.side == 0)
    for one in said:
        bench.verdict(one, Outcome.CLEARED)
    assert bench.unsettled is None
    assert bench.status.counters.gap == 0


# ── the finding, and the sweep that ends it ───────────────────────────────────────────────────────────────────────────────────


class Pipelines:
    """Hands out the stores of one pipeline, as far as they are asked here."""

    def __init__(self) -> None:
        self.spec = BEFORE
        self.away = False

    async def stores(self, pipeline: str) -> Any:
        if self.away:
            raise StoreUnreachable("Postgres does not answer.", store="shop")
        return SimpleNamespace(spec=self.spec, mapping=CompiledMapping(self.spec), source=self)

    async def describe(self) -> Any:
        return SimpleNamespace(unique=("id",))


def board(ledger: SqlLedger, clock: VirtualClock) -> Board:
    settings = Settings(bootstrap_servers="", pipelines={"orders": BEFORE})
    made = Board(replace(settings, topics=replace(settings.topics, partitions=1)), ledger, _NoStatus(), clock)
    bench = Bench(replace(world.pipeline(), id="orders"))
    bench.streams(1_000)
    made.take(msgspec.json.encode(msgspec.structs.replace(bench.status, pipeline="orders")))
    return made


async def test_m26_a_changed_mapping_is_one_finding_until_a_content_sweep_succeeded(ledger: SqlLedger) -> None:
    clock, pipelines, found = VirtualClock(), Pipelines(), list[str]()
    book = FindingBook(ledger, clock, lambda pipeline, finding: found.append(finding))

    async def start() -> None:
        await MappingWatch({"orders": BEFORE}, ledger, pipelines, clock, book).compare("orders")

    ids = iter(f"run_{number}" for number in range(9))
    dependencies = SchedulerDependencies(
        pipelines={"orders": BEFORE}, partitions=1, ledger=ledger, board=board(ledger, clock), clock=clock, new_id=ids.__next__
    )
    scheduler = SweepScheduler(dependencies)
    time = clock.now().isoformat()
    ledger.set_fact(Facts.baseline("orders"), {"started_at": time, "ended_at": time, "sweep_id": None})
    ledger.set_fact(Facts.swept("orders"), {"started_at": time, "run": "", "masked": 0})
    await start()
    await start()
    await scheduler.tick()
    assert (found, ledger.runs(pipeline="orders")) == ([], []), "the first mapping is no change, nor is the same one"

    pipelines.spec = AFTER
    await start()
    await start()
    (record,) = ledger.findings("orders")
    assert (record.finding, record.is_hole, found) == (Finding.MAPPING_CHANGED, False, ["mapping_changed"])
    assert SAID in record.message
    await scheduler.tick()
    (run,) = ledger.runs(pipeline="orders")
    assert (run.request["reason"], run.request["content"], run.request["range"]) == ("mapping_changed", True, "full")

    runner = RunRunner(cast(RunnerDependencies, SimpleNamespace(**{**vars_of(dependencies), "holder": "one"})))
    _succeed(runner, run, clock, content=False)
    assert ledger.findings("orders"), "a sweep of ids compares no content"
    _succeed(runner, run, clock, content=True)
    assert ledger.findings("orders") == []


OTHERS = {
    "target": replace(BEFORE, target=replace(BEFORE.target, collection="shop.orders_v2")),
    "target's store": replace(BEFORE, target=replace(BEFORE.target, store="another")),
    "source": replace(BEFORE, source=replace(BEFORE.source, table="public.orders_v2")),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=list(OTHERS))
async def test_what_was_proved_of_another_source_or_target_is_forgotten(ledger: SqlLedger, other: Any) -> None:
    """An empty collection under the old name of a pipeline was HEALTHY, and consistent through now, until somebody swept it."""
    clock, pipelines, found = VirtualClock(), Pipelines(), list[str]()
    book, view_of = FindingBook(ledger, clock, lambda pipeline, finding: found.append(finding)), board(ledger, clock)

    async def start() -> bool:
        await MappingWatch({"orders": BEFORE}, ledger, pipelines, clock, book).compare("orders")
        return "no baseline yet: a content sweep has to finish first" not in (await view_of.view("orders")).reasons

    def swept() -> None:
        time = clock.now().isoformat()
        ledger.set_fact(Facts.baseline("orders"), {"started_at": time, "ended_at": time, "sweep_id": None})
        ledger.set_fact(Facts.swept("orders"), {"started_at": time, "run": "", "masked": 0})

    swept()
    mapping = CompiledMapping(BEFORE)
    ledger.set_fact(Facts.mapping("orders"), {"fingerprint": str(mapping.fingerprint), "layout": mapping.layout})
    assert (await start(), found) == (True, []), "after a version that did not store what it compared"
    request_sweep(ledger, BEFORE, clock, "under way", {})
    pipelines.spec = other
    assert not await start()
    assert (await view_of.view("orders")).consistent_through is None
    assert ledger.fact(Facts.swept("orders")) is None, "no gap is held from a sweep of the other one"
    (run,) = ledger.runs(pipeline="orders")
    assert (run.state, found) == (RunState.CANCELLED, ["mapping_changed"]), "what it had read is of the other one"
    swept()
    assert (await start(), found) == (True, ["mapping_changed"]), "once"


def tolerating(tolerance: str) -> Any:
    return replace(BEFORE, fields=(replace(BEFORE.fields[0], tolerance=Decimal(tolerance)), *BEFORE.fields[1:]))


STRICTER = {
    "match mode": (replace(BEFORE, match=Match.PRESENCE), BEFORE, "the match mode (presence → digest)"),
    "tolerance": (tolerating("100"), tolerating("0.5"), "the tolerance of total (100 → 0.5)"),
}


@pytest.mark.parametrize(("lax", "strict", "said"), STRICTER.values(), ids=list(STRICTER))
async def test_what_was_proved_less_strictly_is_proved_anew(ledger: SqlLedger, lax: Any, strict: Any, said: str) -> None:
    """What had looked for presence alone, or with a wide tolerance, was believed to be equal when it was asked for more."""
    clock, pipelines = VirtualClock(), Pipelines()
    assert CompiledMapping(lax).fingerprint == CompiledMapping(strict).fingerprint, "digests alone do not tell"
    book = FindingBook(ledger, clock, lambda *_: None)
    for pipelines.spec in (lax, lax, strict):
        assert ledger.findings("orders") == []
        await MappingWatch({"orders": BEFORE}, ledger, pipelines, clock, book).compare("orders")
    (finding,) = ledger.findings("orders")
    assert said in finding.message
    assert not is_in_force(ledger, CompiledMapping(lax))
    assert is_in_force(ledger, CompiledMapping(strict))


@pytest.mark.parametrize("other", [AFTER, *OTHERS.values()], ids=["mapping", *OTHERS])
async def test_a_sweep_by_the_mapping_of_before_proves_nothing_by_the_new_one(ledger: SqlLedger, other: Any) -> None:
    """The process of before still ran, and took the sweep that the one of after had asked for: nobody compared by the new one."""
    clock, before, after = VirtualClock(), Pipelines(), Pipelines()
    after.spec = other
    book = FindingBook(ledger, clock, lambda *_: None)
    for pipelines in (before, after):
        await MappingWatch({"orders": BEFORE}, ledger, pipelines, clock, book).compare("orders")

    async def sweep(pipelines: Pipelines) -> None:
        async def ended(run: Run, *_: Any, **__: Any) -> Run:
            return replace(run, state=RunState.SUCCEEDED, ended_at=clock.now())

        async def takes(*_: Any) -> bool:
            return False

        known = {"pipelines": {"orders": BEFORE}, "ledger": ledger, "board": board(ledger, clock), "clock": clock}
        parts = {"sweeper": lambda _: SimpleNamespace(run=ended), "split": lambda _: SimpleNamespace(takes=takes)}
        runner = RunRunner(cast(RunnerDependencies, SimpleNamespace(**known, **parts, stores={RunKind.SWEEP: pipelines})))
        request = {"range": "full", "content": True}
        run = Run(
            id="r", pipeline="orders", kind=RunKind.SWEEP, state=RunState.RUNNING, requested_at=clock.now(), request=request
        )
        await runner._run(replace(run, started_at=clock.now()), "one")

    await sweep(before)
    assert ledger.findings("orders"), "nobody has compared by the new one"
    assert ledger.fact(Facts.baseline("orders")) is None
    await sweep(after)
    assert ledger.findings("orders") == []
    assert ledger.fact(Facts.baseline("orders")) is not None


def vars_of(dependencies: SchedulerDependencies) -> dict[str, Any]:
    return {name: getattr(dependencies, name) for name in ("pipelines", "ledger", "board", "clock")}


def _succeed(runner: RunRunner, run: Run, clock: VirtualClock, *, content: bool) -> None:
    started = clock.now()
    ended = replace(
        run,
        kind=RunKind.SWEEP,
        state=RunState.SUCCEEDED,
        started_at=started,
        ended_at=clock.now(),
        request={**run.request, "content": content},
    )
    runner._settle(ended, 0)


async def test_a_mapping_that_cannot_be_read_yet_is_compared_later(ledger: SqlLedger) -> None:
    clock, pipelines = VirtualClock(), Pipelines()
    pipelines.away = True
    watch = MappingWatch({"orders": BEFORE}, ledger, pipelines, clock, FindingBook(ledger, clock, lambda *_: None))
    with pytest.raises(StoreUnreachable):
        await watch.compare("orders")
    assert ledger.fact(Facts.mapping("orders")) is None


# ── upgrade --check ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def stored(**facts: Any) -> Stored:
    return Stored(revision="0002", needed="0002", facts=facts)


async def advice(found: Stored, spec: Any = AFTER, error: Exception | None = None) -> list[tuple[str, str]]:
    async def mapping() -> CompiledMapping:
        if error is not None:
            raise error
        return CompiledMapping(spec)

    bench = Bench(replace(world.pipeline(), id="orders"))
    (held,) = opened([msgspec.structs.replace(bench.status, pending=3, raised=2)]).values()
    both = {"orders": held, "old": held}
    return [(item.level, item.message) for item in await of_pipelines(found, both, {"orders": mapping})]


async def test_m26_upgrade_check_says_what_will_happen() -> None:
    known = {Facts.mapping("orders"): as_stored(CompiledMapping(BEFORE))}
    (level, message), gone = await advice(stored(**known))
    assert level == "warning"
    assert message.startswith(f"Its mapping changes: {SAID}. 5 open writes were read by the old one: ")
    assert "mapping_changed stands until a content sweep" in message
    assert gone == (
        "warning",
        "It is not in the configuration any more, or not enabled: its 5 open writes are forgotten.",
    )
    assert (await advice(stored(**known), BEFORE))[0] == ("ok", "Its mapping is the same; 5 open writes go on as they are.")
    assert (await advice(stored()))[0][0] == "ok"
    baseline: dict[str, Any] = {Facts.baseline("orders"): {}}
    assert (await advice(stored(**baseline)))[0][1].startswith("The version that ran last did not store its mapping")
    away, refused = StoreUnreachable("It does not answer.", store="shop"), StoreRefused("No such table.", store="shop")
    assert [(await advice(stored(), error=error))[0][0] for error in (away, refused)] == ["unknown", "error"]


def test_upgrade_check_names_migrations_and_states_that_cannot_be_read(tmp_path: Path) -> None:
    assert of_ledger(Stored(revision=None, needed="", facts={})).level == "ok"
    migrated = of_ledger(Stored(revision="0001", needed="0002", facts={}))
    assert (migrated.level, "from 0001 to 0002" in migrated.message) == ("warning", True)
    status = Bench().status
    assert of_state(opened([status])) == []
    (refused,) = of_state(opened([status, msgspec.structs.replace(status, partition=1, state_format=2)]))
    assert (refused.level, "has format 2" in refused.message) == ("error", True)
    url = f"sqlite:///{tmp_path}/new.db"
    assert is_new(url)
    open_ledger(url).close()
    revision, needed, looked_at = inspected(url)
    looked_at.close()
    assert revision == needed
