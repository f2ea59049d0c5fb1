"""What opens a gap, what does not, and when: one watched table with 10,000 older rows, grace 2 s."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from bson import Decimal128

from gapwatch.embedded import EmbeddedStack
from tests.acceptance.copier import Copier
from tests.acceptance.scenery import CREATE, FIELDS, TABLE, Scene, configuration
from tests.acceptance.service import Service, wait_for
from tests.acceptance.shared import at, clean, create_database, during, falsify, gaps_of, late, lose, now, number
from tests.acceptance.silence import is_stale, no_heartbeats, unread_partitions
from tests.stack import BESIDE_SECONDS, captured, execute

pytestmark = [pytest.mark.acceptance, pytest.mark.integration]

OLDER = 10_000
GRACE = 2.0
STALL_AFTER = 5.0
SETTLED_KEYS_MAX = 5_000
WINDOW = GRACE + 0.2  # W: grace + disorder; both clocks are this machine's
PROMPT = 1 + (2 * 0.25 + 1) + 0.5 + 2  # P: 1 s, 2 × heartbeats + settle, the group's commits, the confirm reads
ROLES = ("ingest", "match", "repair", "api")


@dataclass
class History:
    """What the API said while the service started: (capture runs, view, number of gaps)."""

    samples: list[tuple[bool, dict[str, Any], int]] = field(default_factory=list)

    def take(self, service: Service, *, capturing: bool) -> dict[str, Any]:
        view = service.view()
        if view["status"] is not None:
            self.samples.append((capturing, view, len(service.gaps(state=""))))
        return view


@dataclass
class Stage:
    scene: Scene
    history: History
    user: str


def start_in_two_steps(service: Service) -> History:
    """Start everything but capture until the snapshot is read through, then capture; sample the API all the while."""
    history = History()
    service.start(ROLES)

    def snapshot_read() -> bool:
        service.check_alive()
        totals = history.take(service, capturing=False).get("totals")
        return totals is not None and totals["snapshot_reads"].get("expected", 0) >= OLDER

    wait_for(snapshot_read, f"{OLDER} snapshot reads", 90)
    during(2.5, lambda: history.take(service, capturing=False))
    service.start(["capture"])
    wait_for(lambda: history.take(service, capturing=True)["status"] == "HEALTHY", "HEALTHY", 60)
    return history


@pytest.fixture(scope="module")
def stage(stack: EmbeddedStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A table of 10,000 rows, captured; Gapwatch reads it as a user who may do nothing but SELECT."""
    database = create_database(stack, f"windows_{number()}")
    dsn, user = stack.postgres.dsn(database), f"watcher_{database}"
    execute(
        dsn,
        CREATE,
        f"ALTER TABLE {TABLE} ADD COLUMN exact numeric",
        f"ALTER TABLE {TABLE} REPLICA IDENTITY FULL",
        f"INSERT INTO {TABLE} (id, seq, v, amount) SELECT i, 0, 'older', 1 FROM generate_series(1, {OLDER}) i",
        f"CREATE ROLE {user} LOGIN",
        f"GRANT SELECT ON {TABLE} TO {user}",
    )
    with captured(stack, database, [TABLE], **{"decimal.handling.mode": "string"}) as prefix:
        group = f"copier-{database}"
        copier = Copier(stack.kafka.bootstrap_servers, f"{prefix}.{TABLE}", group, stack.mongodb.uri, database, "orders")
        fields = {
            **FIELDS,
            "amount": {"from": "amount", "type": "decimal", "scale": 2, "tolerance": "0.01"},
            "exact": {"from": "exact", "type": "decimal"},
        }
        config = configuration(
            stack,
            stack.postgres.dsn(database, user),
            database,
            group,
            fields=fields,
            evidence="values",
            stall_after=f"{STALL_AFTER:.0f}s",
            settled_keys_max=SETTLED_KEYS_MAX,
        )
        service = Service(tmp_path_factory.mktemp("windows"), config)
        scene = Scene(stack, dsn, database, copier, service)
        copier.start()
        try:
            yield Stage(scene, start_in_two_steps(service), user)
            service.check_alive()
        finally:
            copier.stop()
            service.stop()


@pytest.fixture
def scene(stage: Stage) -> Iterator[Scene]:
    with clean(stage.scene) as scene:
        yield scene


def test_a4_history_is_counted_and_nothing_else(stage: Stage) -> None:
    reading = [view for capturing, view, _ in stage.history.samples if not capturing]
    assert reading[-1]["totals"]["snapshot_reads"]["expected"] == OLDER
    assert max(view["totals"]["snapshot_reads"].get("expected", 0) for _, view, _ in stage.history.samples) == OLDER
    assert {view["source_watermark"] for view in reading} == {None}, "snapshot reads moved the watermark"
    assert max(view["pending_keys"] + view["in_transit_keys"] for _, view, _ in stage.history.samples) < SETTLED_KEYS_MAX
    assert {count for _, _, count in stage.history.samples} == {0}
    assert {view["totals"]["expected"] for _, view, _ in stage.history.samples} == {0}


def test_a5_a_deleted_key_that_is_still_there(scene: Scene) -> None:
    kept, gone = number(), number()
    for key in (kept, gone):
        scene.insert(key, key)
    wait_for(lambda: {kept, gone} <= scene.documents().keys(), "both documents")
    scene.copier.rules["d", kept] = lose
    scene.sql(f"DELETE FROM {TABLE} WHERE id IN ({kept}, {gone})")
    gaps = wait_for(scene.service.gaps, "the gap", 30)
    assert [(gap["key"], gap["kind"], gap["cause"]) for gap in gaps] == [({"id": kept}, "undeleted", "never_written")]
    wait_for(lambda: gone not in scene.documents(), "the other one to go", 20)
    during(WINDOW, lambda: _none(gaps_of(scene.service, gone)))


def test_b2_expiry_without_traffic(scene: Scene) -> None:
    key = number()
    scene.copier.rules[key] = lose
    scene.insert(key, key)
    written = now()  # and from here on silence
    gaps = wait_for(scene.service.gaps, "the gap", 30)
    assert [(gap["key"], gap["kind"]) for gap in gaps] == [({"id": key}, "missing")]
    assert at(gaps[0]["first_seen"]) - written <= timedelta(seconds=WINDOW + PROMPT + BESIDE_SECONDS)
    assert at(gaps[0]["first_seen"]) - at(gaps[0]["event_time"]) >= timedelta(seconds=GRACE)
    source = next(row for row in gaps[0]["evidence"] if row["side"] == "expected")
    assert source["topic"] == f"{scene.database}.{TABLE}"
    assert source["offset"] >= 0
    assert source["position"]


def test_b3_a_late_write_resolves(scene: Scene) -> None:
    key, began = number(), now()
    scene.copier.rules[key] = late(600)
    scene.insert(key, key)
    gaps = wait_for(lambda: gaps_of(scene.service, key), "the gap", 30)
    assert sum(scene.service.view()["gaps_open"].values()) == 1
    written = now()
    scene.copier.release()
    resolved = wait_for(lambda: gaps_of(scene.service, key, state="resolved"), "the late write", 30)
    assert [gap["id"] for gap in resolved] == [gap["id"] for gap in gaps]
    assert resolved[0]["resolution"] == "late_arrival"
    assert began - timedelta(milliseconds=1) <= at(resolved[0]["event_time"]) <= written, "when it was written, not when it came"
    assert written <= at(resolved[0]["resolved_at"]) <= written + timedelta(seconds=5 + BESIDE_SECONDS)
    assert sum(scene.service.view()["gaps_open"].values()) == 0


def test_b4_lesson_9_values_within_and_beyond_the_tolerance_to_the_last_digit(scene: Scene) -> None:
    within, beyond, equal, off = number(), number(), number(), number()
    large = Decimal(10) ** 23
    scene.copier.rules |= {
        within: falsify(amount=Decimal128("10.01")),
        beyond: falsify(amount=Decimal128("10.02")),
        equal: falsify(exact=Decimal128("1E+23")),
        off: falsify(exact=Decimal128(str(large + 1))),
    }
    for key in (within, beyond):
        scene.insert(key, key, amount="10.00")
    for key in (equal, off):
        scene.sql(f"INSERT INTO {TABLE} (id, seq, v, amount, exact) VALUES ({key}, {key}, 'a', 1, {large})")
    gaps = wait_for(lambda: _all(gaps_of(scene.service, within, beyond, equal, off), 2), "two gaps", 30)
    assert [(gap["key"]["id"], gap["kind"], gap["fields"]) for gap in gaps] == [
        (beyond, "mismatch", ["amount"]),
        (off, "mismatch", ["exact"]),
    ]
    assert [_values(gap, "amount") for gap in gaps[:1]] == [(Decimal("10.00"), Decimal("10.02"))]
    assert [_values(gap, "exact") for gap in gaps[1:]] == [(large, large + 1)]
    during(WINDOW, lambda: _none(gaps_of(scene.service, within, equal)))


def test_b6_an_extra_although_the_counts_are_equal(scene: Scene) -> None:
    lost, extra = number(), number()
    scene.copier.rules[lost] = lose
    scene.insert(lost, lost)
    client = scene.mongo()
    try:
        client[scene.database].orders.insert_one({"_id": extra, "seq": extra, "v": "nobody's"})
    finally:
        client.close()
    assert len(scene.documents()) == len(scene.rows())
    gaps = wait_for(lambda: _all(gaps_of(scene.service, lost, extra), 2), "two gaps", 30)
    assert [(gap["key"]["id"], gap["kind"]) for gap in gaps] == [(lost, "missing"), (extra, "extra")]
    assert gaps[1]["target_id"] == str(extra)
    assert gaps[1]["cause"] == "out_of_band"


def test_b8_younger_than_the_grace_is_pending_and_no_gap(scene: Scene) -> None:
    """A partition says once a second what is pending, and grace is two: on a busy machine one key may go unsaid, not three."""
    assert any(_pending_before_its_gap(scene) == 1 for _ in range(3))


def _pending_before_its_gap(scene: Scene) -> int:
    """Lose a write; return how many keys were shown as pending at most until its gap opened, which is never before grace."""
    quiet(scene)
    key = number()
    scene.copier.rules[key] = lose
    pending = [0]
    started = now()  # the commit is later than this
    scene.insert(key, key)

    def opened() -> list[dict[str, Any]]:
        view, gaps = scene.service.view(), gaps_of(scene.service, key)
        if now() - started < timedelta(seconds=GRACE):
            assert gaps == []
        pending.append(view["pending_keys"] + view["in_transit_keys"])
        return gaps

    [gap] = wait_for(opened, "the gap", 30)
    assert at(gap["first_seen"]) - at(gap["event_time"]) >= timedelta(seconds=GRACE)
    return max(pending)


def test_b8_in_transit_is_shown_and_is_no_gap(scene: Scene) -> None:
    quiet(scene)
    keys = [number() for _ in range(5)]
    scene.copier.pause()
    for key in keys:
        scene.insert(key, key)
    # Each partition says it once a second; what is in transit is not pending.
    shown(scene, in_transit_keys=len(keys), pending_keys=0)
    during(WINDOW + PROMPT, lambda: _none(gaps_of(scene.service, *keys)))
    assert scene.service.view()["in_transit_keys"] == len(keys)
    scene.copier.resume()
    shown(scene, in_transit_keys=0)
    scene.service.wait_healthy()
    assert gaps_of(scene.service, *keys, state="") == []


def test_m1_consistent_through_stands_below_the_lost_write(stage: Stage, scene: Scene) -> None:
    before = [view for _, view, _ in stage.history.samples if view["baseline"] is None]
    assert before
    assert {view["consistent_through"] for view in before} == {None}
    key = number()
    scene.copier.rules[key] = lose
    scene.insert(key, key)
    gap = wait_for(lambda: gaps_of(scene.service, key), "the gap", 30)[0]
    lost_at = at(gap["event_time"])
    later = number()
    scene.insert(later, later)
    wait_for(lambda: later in scene.documents(), "a later write")
    during(4, lambda: _below(scene, lost_at))
    assert _metric(scene) <= lost_at.timestamp()
    run = scene.service.api.post("/api/v1/backfills", {"pipeline": "orders", "dry_run": False})

    def verified() -> dict[str, Any] | None:
        view = scene.service.view()
        if gaps_of(scene.service, key):
            assert at(view["consistent_through"]) <= lost_at
            return None
        return view

    wait_for(verified, f"backfill {run['id']}", 30)
    assert gaps_of(scene.service, key, state="resolved")[0]["resolution"] == "backfilled"
    wait_for(lambda: _recent_for(scene, 3), f"consistent-through within {GRACE + 2:.0f} s of now", 60)
    wait_for(lambda: _shown_everywhere(scene), "metric and command line to say the same", 20)


def story(scene: Scene, key: int) -> dict[str, Any]:
    done = scene.service.command("key", "orders", str(key))
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert done.stderr.strip().endswith(told["verdict"])
    return told


def test_m20_the_story_of_one_key_that_is_a_gap_in_transit_and_right(scene: Scene) -> None:
    lost, waits, right = number(), number(), number()
    scene.copier.rules[lost] = lose
    for key in (right, lost):
        scene.insert(key, key)
    gap = wait_for(lambda: gaps_of(scene.service, lost), "the gap", 30)[0]

    # Its verdict comes back on the stream once the gap is stored.
    told = wait_for(lambda: found if (found := story(scene, lost))["stream"]["verdicts"] else None, "its verdict", 20)
    assert told["verdict"] == f"A gap: missing, cause never_written, since {gap['event_time']}."
    assert (told["stores"]["source"]["read"], told["stores"]["target"]["read"]) == ("present", "absent")
    source = next(row for row in gap["evidence"] if row["side"] == "expected")
    place = {name: source[name] for name in ("topic", "partition", "offset", "position")}
    assert [{name: row[name] for name in place} for row in told["stream"]["events"]] == [place]
    assert told["stream"]["state"] == "closed"
    assert [row["outcome"] for row in told["stream"]["verdicts"]] == ["gap"]
    assert [one["id"] for one in told["gaps"]] == [gap["id"]]

    run = scene.service.api.post("/api/v1/backfills", {"pipeline": "orders", "dry_run": False})
    wait_for(lambda: not gaps_of(scene.service, lost), f"backfill {run['id']}", 30)
    told = story(scene, lost)
    assert told["verdict"] == "No gap: the target holds what the source holds."
    assert [row["outcome"] for row in told["audit"] if row["action"] == "backfill_write"].count("written") == 1
    assert told["gaps"][0]["resolution"] == "backfilled"

    told = story(scene, right)
    assert told["stream"]["state"] == "settled"
    assert sorted(row["side"] for row in told["stream"]["events"]) == ["expected", "observed"]  # read in one go, in any order
    assert told["verdict"] == "No gap: the target holds what the source holds."
    assert (told["gaps"], told["stream"]["verdicts"]) == ([], [])

    scene.copier.pause()
    scene.insert(waits, waits)
    shown(scene, in_transit_keys=1)
    told = story(scene, waits)
    assert told["stream"]["state"] == "in_transit"
    (event,) = told["stream"]["events"]
    place_text = f"{event['topic']}[{event['partition']}] offset {event['offset']}"
    assert told["verdict"] == (
        f"Not a gap yet: the stores differ now, but the write is in transit: the sink has not reached {place_text} yet."
    )


def test_m19_lag_is_never_loss(scene: Scene, request: pytest.FixtureRequest) -> None:
    """Fifteen seconds at a grace of two; with ``--soak`` three minutes."""
    seconds = 180 if request.config.getoption("--soak") else 15
    keys = [number() for _ in range(8 * seconds)]
    shown(scene, in_transit_keys=0)  # of the test before
    scene.copier.pause()
    begun: list[datetime] = []  # when each write was begun
    writer = threading.Thread(target=_write_slowly, args=(scene, keys, 0.1, begun))
    writer.start()
    transit, statuses, through = [], [], []

    def look() -> None:
        view = scene.service.view()
        assert sum(view["gaps_open"].values()) == 0
        transit.append(view["in_transit_keys"])
        statuses.append((view["status"], [reason for reason in view["reasons"] if "sink_lagging" in reason]))
        through.append(view["consistent_through"])

    def all_in_transit() -> bool:
        look()
        status, lagging = statuses[-1]
        return transit[-1] == len(keys) and status == "WARNING" and bool(lagging)

    during(seconds, look)
    writer.join()  # on a busy machine it takes its time
    wait_for(all_in_transit, "all to be in transit, and a WARNING of it", 20)
    assert transit == sorted(transit)
    assert at(through[-1]) < begun[1], "beyond the first write, which the sink has not reached"
    assert len(set(through[-20:])) == 1, "consistent-through moved although the sink stood still"
    scene.copier.resume()
    scene.service.wait_healthy()
    shown(scene, in_transit_keys=0)
    assert gaps_of(scene.service, *keys, state="") == []
    wait_for(lambda: at(scene.service.view()["consistent_through"]) > begun[-1], "consistent-through to pass the last write", 30)


@pytest.mark.parametrize("role", ["match", "ingest", "capture"])
def test_b16_a_dead_role_is_unknown_and_never_the_last_green(scene: Scene, role: str) -> None:
    scene.service.kill(role, signal.SIGKILL)
    try:
        unknown_in_time(scene, now())
    finally:
        scene.service.start([role])
    scene.service.wait_healthy()
    assert scene.service.gaps() == []


def test_b16_a_raw_partition_that_nobody_reads_is_unknown(scene: Scene) -> None:
    with unread_partitions(scene) as stolen:
        assert stolen
        unknown_in_time(scene, now())
        assert is_stale(scene)
    scene.service.wait_healthy()
    assert scene.service.gaps() == []


def test_b16_trap_11_heartbeat_rows_that_stop_are_unknown(scene: Scene) -> None:
    begun = now()
    with no_heartbeats(scene):
        unknown_in_time(scene, now())
        assert any("source watermark" in reason for reason in scene.service.view()["reasons"])
        (finding,) = wait_for(lambda: _stalled(scene, begun), "the finding", 20)
        assert (finding["side"], finding["is_hole"]) == ("expected", False)
        assert "is silent: it proves no time after" in finding["message"]
    scene.service.wait_healthy()
    assert _stalled(scene, begun) == []
    assert [one["cleared_at"] is None for one in _stalled(scene, begun, open="false")] == [False], "one silence is one finding"
    assert scene.service.gaps() == []


def _stalled(scene: Scene, since: datetime, **asked: str) -> list[dict[str, Any]]:
    """Return the findings of feeds that fell silent since then."""
    found = scene.service.api.get("/api/v1/findings", pipeline="orders", **asked)["findings"]
    return [one for one in found if one["finding"] == "feed_stalled" and at(one["first_seen"]) > since]


def quiet(scene: Scene) -> None:
    """Wait until nothing of another test is unsettled: its document was put right by hand."""
    shown(scene, pending_keys=0, in_transit_keys=0)


def _none(gaps: list[dict[str, Any]]) -> None:
    assert gaps == []


def _all(gaps: list[dict[str, Any]], count: int) -> list[dict[str, Any]] | None:
    return gaps if len(gaps) >= count else None


def _values(gap: dict[str, Any], name: str) -> tuple[Decimal, Decimal]:
    values = {row["side"]: row["values"][name] for row in gap["evidence"] if "values" in row}
    return Decimal(values["source"]), Decimal(values["target"])


def shown(scene: Scene, **values: int) -> None:
    """Wait until the pipeline's view shows these numbers."""
    wait_for(lambda: {name: scene.service.view().get(name) for name in values} == values, f"{values}", 20)


def _below(scene: Scene, time: datetime) -> None:
    assert at(scene.service.view()["consistent_through"]) <= time


def _age(scene: Scene) -> float:
    through = scene.service.view()["consistent_through"]
    return (now() - at(through)).total_seconds()


def _recent(scene: Scene) -> bool:
    return _age(scene) <= GRACE + 2


def _metric(scene: Scene) -> float:
    value = scene.service.metric("gapwatch_consistent_through_timestamp_seconds", pipeline="orders")
    assert value is not None
    return value


def _shown_everywhere(scene: Scene) -> bool:
    """Whether the metric lies within what the API says before and after, and the command line has it as a column."""
    before, shown, after = (_through(scene), _metric(scene), _through(scene))
    table = scene.service.command("pipelines", "--output", "csv").stdout.splitlines()
    column = dict(zip(table[0].split(","), table[1].split(","), strict=False))["consistent_through"]
    return before - 2.5 <= shown <= after and before <= at(column).timestamp() <= _through(scene)


def _through(scene: Scene) -> float:
    return at(scene.service.view()["consistent_through"]).timestamp()


def _recent_for(scene: Scene, seconds: float) -> bool:
    """Whether consistent-through follows now at that distance for so long: a machine that is busy may stand still itself."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not _recent(scene):
            return False
        time.sleep(0.2)
    return True


def unknown_in_time(scene: Scene, silent: datetime) -> None:
    """Look for twice ``stall_after``: every view that is made a second after the first of them, or later, is UNKNOWN."""
    due = silent + timedelta(seconds=STALL_AFTER + 1)
    made = silent  # by the API's own clock: its answer may come late
    while made < due + timedelta(seconds=STALL_AFTER):
        time.sleep(0.2)
        view = scene.service.view()
        made = at(view["read_at"])
        assert view["status"] == "UNKNOWN" or made < due, view


def _write_slowly(scene: Scene, keys: list[int], pause: float, begun: list[datetime]) -> None:
    with psycopg.connect(scene.dsn, autocommit=True) as connection:
        for key in keys:
            begun.append(now())
            connection.execute(f"INSERT INTO {TABLE} (id, seq, v, amount) VALUES (%s, %s, 'a', 1)", (key, key))
            time.sleep(pause)
