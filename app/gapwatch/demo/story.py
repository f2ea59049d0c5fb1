"""The story of ``gapwatch demo``: a pipeline that looks healthy and is wrong, what Gapwatch says of it, and how it heals.

1. Real parts start: Kafka, Connect with Debezium, Postgres, a MongoDB replica set; a table of orders is captured, and
   Debezium's own MongoDB sink copies it. That sink drops every batch that holds a DELETE.
2. Gapwatch starts, makes its baseline, and watches while a small load writes.
3. The load stops. An independent full comparison of both stores says what is true; what Gapwatch found is held against it.
4. Gapwatch plans a backfill, applies it and verifies. A second comparison says whether both stores agree.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, NoReturn

from gapwatch.demo.compare import Truth, compare
from gapwatch.demo.load import Load
from gapwatch.demo.pipeline import COLLECTION, DATABASE, Pipeline
from gapwatch.demo.service import GRACE_SECONDS, STATES_OPEN, Service
from gapwatch.embedded import EmbeddedStack
from gapwatch.errors import GapwatchError

WAIT_SECONDS_MAX = 90.0
LOOK_SECONDS = 0.4
STILL_SECONDS = 1.5
CLASSES = {
    "missing": "missing",
    "extra": "extra",
    "undeleted": "extra",
    "stale": "different",
    "mismatch": "different",
    "ahead": "different",
}


@dataclass(slots=True, kw_only=True)
class Scene:
    """What is shown: the pipeline's own word, Gapwatch's word, what is happening, and what was concluded so far."""

    act: str = ""
    began: float = field(default_factory=time.monotonic)
    pipeline_says: dict[str, Any] = field(default_factory=dict)
    pipeline: dict[str, Any] = field(default_factory=dict)
    gaps: list[dict[str, Any]] = field(default_factory=list)  # all that ever opened
    conclusions: list[str] = field(default_factory=list)
    page: str = ""
    written: int = 0

    @property
    def open_gaps(self) -> list[dict[str, Any]]:
        return [gap for gap in self.gaps if gap["state"] != "resolved"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """The outcome, as ``--json`` prints it."""

    record: dict[str, Any]

    @property
    def exit_code(self) -> int:
        """Return 3 when something was not read or the story did not come about, 1 when Gapwatch was wrong, else 0."""
        record, says = self.record, self.record["pipeline_says"]
        looks_healthy = (
            says["connector_state"] == "RUNNING"
            and says["task_states"] == ["RUNNING"]
            and (says["lag"], says["dead_letter_records"]) == (0, 0)
            and says["source_count"] == says["target_count"]
        )
        if record["status"] == "UNKNOWN" or not looks_healthy or not record["truth_total"]:
            return 3
        right = record["missed"] == 0 and record["invented"] == 0 and record["consistent"]
        return 0 if right else 1


class Story:
    """Runs the demo from start to end.

    Args:
        seconds: Length of the write load.
        say: Called with one line for each step, which begins with the seconds since the start.
    """

    def __init__(self, *, seconds: float, say: Callable[[str], None]) -> None:
        self.scene = Scene()
        self._seconds = seconds
        self._tell = say
        self._show: Callable[[Scene], None] = lambda scene: None
        self._closing = ExitStack()
        self._stack = EmbeddedStack(on_progress=self._say)
        self._pipeline = Pipeline(self._stack)
        self._service: Service | None = None
        self._quiet: tuple[tuple[int, int], float] = ((-1, -1), 0.0)
        self._still: tuple[tuple[int, ...], float] | None = None
        self._has_found = False

    def __enter__(self) -> Story:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    # the acts

    def prepare(self) -> None:
        """Start the parts, the pipeline and Gapwatch, up to its baseline."""
        self._act("Starting Kafka, Connect, Postgres and MongoDB")
        self._closing.callback(self._stack.stop)
        self._stack.start()
        self._act("Connecting orders from Postgres to MongoDB: Debezium, Kafka, Debezium's MongoDB sink")
        self._closing.callback(self._pipeline.close)
        self._pipeline.start()
        self._service = Service(self._stack, self._pipeline)
        self._closing.callback(self._service.stop)
        self.scene.page = self._service.page
        self._act("Starting Gapwatch; it compares both stores once, for its baseline")
        self._wait(self._service.answers, "Gapwatch to answer")
        self._say(f"The page is at {self.scene.page}")
        self._wait(self._copied, "the sink to copy the rows that were there")
        self._wait(self._has_baseline, "Gapwatch's baseline")

    def play(self, show: Callable[[Scene], None]) -> Ending:
        """Write, find, judge, repair; ``show`` is called with every new scene."""
        self._show = show
        load = Load(dsn=self._pipeline.dsn)
        self._closing.callback(load.stop)
        self._write(load)
        self._act("The load has stopped; what was written last is judged")
        self._let_counts_agree(load)
        self._wait(lambda: self._settled(load), "every write to be judged")
        says = self._pipeline.says()
        self._act("Comparing both stores independently of Gapwatch")
        before = self._compare()
        found = self._watching.gaps(STATES_OPEN)
        verdict = judge(before, found)
        self._conclude(
            f"In truth {before.total} orders are wrong. Gapwatch found {len(found)}:"
            f" {verdict['missed']} missed, {verdict['invented']} invented."
        )
        run = self._repair()
        self._wait(self._healed, "the pipeline to be green")
        after = self._compare()
        self._conclude(f"Compared again: {after.total} orders are wrong.")
        return self._ending(before, after, found, verdict, run, says)

    def stay(self) -> NoReturn:
        """Keep everything up, refreshing the screen, until the caller is interrupted."""
        self._act("Done; everything stays up until Ctrl-C")
        while True:
            self._look()
            time.sleep(1)

    # the parts of the acts

    @property
    def _watching(self) -> Service:
        assert self._service is not None, "prepare() comes first"
        return self._service

    def _copied(self) -> bool:
        source, target = self._pipeline.counts()
        return source == target > 0

    def _has_baseline(self) -> bool:
        self._look()
        return self.scene.pipeline.get("consistent_through") is not None

    def _write(self, load: Load) -> None:
        self._act(f"Writing for {self._seconds:.0f} seconds")
        load.start()
        until = time.monotonic() + self._seconds
        while (left := until - time.monotonic()) > 0:
            self._look(load)
            time.sleep(min(LOOK_SECONDS, left))
        load.stop()

    def _first(self) -> str:
        gap = min(self.scene.gaps, key=lambda gap: str(gap["confirmed_at"]))
        return f"order {gap['key_text']} is {gap['kind']} ({gap['cause']})"

    def _let_counts_agree(self, load: Load) -> None:
        """Lose as many inserts as deletes: write transactions that the sink drops until both stores count the same."""
        for _ in range(12):
            self._wait(self._stands_still, "the sink to be through", load=load)
            source, target = self._pipeline.counts()
            sent = self._pipeline.sent()
            if target > source:
                load.lose_inserts(target - source)
            elif source > target:
                load.lose_deletes(source - target)
            else:
                return
            self._wait(partial(self._more_than, sent), "the write to be sent to the sink", load=load)

    def _stands_still(self) -> bool:
        """Whether the sink has no lag, and nothing came for a while: what was written last may still be on its way."""
        if self._pipeline.lag():
            self._still = None
        else:
            key = (self._pipeline.sent(), *self._pipeline.counts())
            if self._still is None or key != self._still[0]:
                self._still = (key, time.monotonic())
        return self._still is not None and time.monotonic() - self._still[1] >= STILL_SECONDS

    def _more_than(self, sent: int) -> bool:
        return self._pipeline.sent() > sent

    def _settled(self, load: Load) -> bool:
        """Whether Gapwatch has judged everything that was written so far."""
        self._look(load)
        view = self.scene.pipeline
        if view.get("pending_keys") or view.get("in_transit_keys") or view.get("source_watermark") is None:
            return False
        return (_now() - _time(view["source_watermark"])).total_seconds() < GRACE_SECONDS and self._quiet_for(2 * GRACE_SECONDS)

    def _quiet_for(self, seconds: float) -> bool:
        key = (len(self.scene.gaps), self.scene.written)
        if key != self._quiet[0]:
            self._quiet = (key, time.monotonic())
        return time.monotonic() - self._quiet[1] >= seconds

    def _compare(self) -> Truth:
        return compare(self._pipeline.dsn, self._pipeline.uri, DATABASE, COLLECTION)

    def _repair(self) -> dict[str, Any]:
        self._act("Repairing: plan, apply, verify")
        api = self._watching.api
        planned = api.post("/api/v1/backfills", {"pipeline": "orders", "kinds": list(CLASSES)[:5]})
        run = api.post("/api/v1/backfills", {"plan": planned["id"], "dry_run": False})

        def ended() -> bool:
            nonlocal run
            run = api.get(f"/api/v1/backfills/{run['id']}")
            self._look()
            return run["state"] not in ("queued", "running")

        self._wait(ended, "the backfill")
        verified = run["counts"].get("verified", 0)
        self._conclude(f"Backfill {run['state']}: {verified} documents written or deleted, and read back.")
        return dict(run)

    def _healed(self) -> bool:
        self._look()
        return self.scene.pipeline.get("status") == "HEALTHY" and not self.scene.open_gaps

    def _ending(
        self,
        before: Truth,
        after: Truth,
        found: list[dict[str, Any]],
        verdict: dict[str, int],
        run: dict[str, Any],
        says: dict[str, Any],
    ) -> Ending:
        delays = sorted(
            (_time(gap["confirmed_at"]) - _time(gap["event_time"])).total_seconds() for gap in found if gap["event_time"]
        )
        view = self.scene.pipeline
        by_kind: dict[str, int] = {}
        for gap in found:
            by_kind[gap["kind"]] = by_kind.get(gap["kind"], 0) + 1
        return Ending(
            record={
                "schema_version": 1,
                "pipeline_says": says,
                "truth_total": before.total,
                "found_total": len(found),
                "missed": verdict["missed"],
                "invented": verdict["invented"],
                "by_kind": by_kind,
                "repaired": before.total - after.total,
                "verified": run["counts"].get("verified", 0),
                "detection_seconds": {"p50": _quantile(delays, 0.5), "p99": _quantile(delays, 0.99)},
                "consistent_through": view.get("consistent_through"),
                "ended_at": _now().isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                "consistent": after.total == 0 and view.get("status") == "HEALTHY",
                "truth_after_repair": after.total,
                "status": view.get("status"),
            }
        )

    # showing and waiting

    def _say(self, line: str) -> None:
        self._tell(f"{time.monotonic() - self.scene.began:5.1f} s  {line}")

    def _act(self, text: str) -> None:
        self.scene.act = text
        self._say(text)
        self._show(self.scene)

    def _conclude(self, text: str) -> None:
        self.scene.conclusions.append(text)
        self._say(text)
        self._show(self.scene)

    def _look(self, load: Load | None = None) -> None:
        if load is not None:
            self.scene.written = load.written
            if load.error is not None:
                raise load.error
        self._watching.check()
        try:
            self.scene.pipeline = self._watching.view()
            self.scene.gaps = self._watching.gaps()
            self.scene.pipeline_says = self._pipeline.says()
        except GapwatchError:  # nobody answers: nothing is known, and the last word must not stay
            self.scene.pipeline = {**self.scene.pipeline, "status": "UNKNOWN"}
        if self.scene.gaps and not self._has_found:
            self._has_found = True
            self._say(f"The first gap: {self._first()}")
        self._show(self.scene)

    def _wait(self, condition: Callable[[], bool], what: str, *, load: Load | None = None) -> None:
        until = time.monotonic() + WAIT_SECONDS_MAX
        while not condition():
            if time.monotonic() > until:
                raise GapwatchError(f"Waited {WAIT_SECONDS_MAX:.0f} s for {what}, in vain.", remedy="Is this machine very busy?")
            if load is not None:
                self._look(load)
            time.sleep(LOOK_SECONDS)


def judge(truth: Truth, found: list[dict[str, Any]]) -> dict[str, int]:
    """Hold the found gaps against the truth: what is wrong and was not found, what was found and is not wrong."""
    claimed = {(int(gap["key"]["id"]), CLASSES.get(gap["kind"], gap["kind"])) for gap in found}
    true = truth.as_pairs()
    return {"missed": len(true - claimed), "invented": len(claimed - true)}


def _quantile(values: list[float], share: float) -> float | None:
    """Return the nearest-rank quantile of sorted `values`, in seconds."""
    if not values:
        return None
    return round(values[max(0, math.ceil(share * len(values)) - 1)], 3)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def _now() -> datetime:
    return datetime.now(UTC)
