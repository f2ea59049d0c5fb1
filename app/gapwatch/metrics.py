"""Every metric, declared once (``product.md`` 3). Names carry the prefix ``gapwatch_``; labels are bounded: no key, id or offset.

Two kinds: what a process counts itself (:class:`Metrics`), and what is read from a snapshot of the pipelines' views, taken in the
background, so that a scrape never asks Kafka or the ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from gapwatch.clock import SystemClock
from gapwatch.core.cron import longest_pause_seconds
from gapwatch.core.incidents import gaps_of_incident
from gapwatch.model.gap import Detector, Finding, Kind, Resolution, Run, RunState, Severity
from gapwatch.model.pipeline import PipelineSpec
from gapwatch.model.view import PipelineView

PROPAGATION_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
SNAPSHOT_SECONDS_MAX: Final = 60.0  # how old what holds now may be: it is read every 30 seconds at least
UNREAD: Final = "the ledger does not answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What a scrape shows of all pipelines: taken every two seconds by whoever serves metrics."""

    views: Sequence[PipelineView] = ()
    detected: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    resolved: Mapping[tuple[str, str], int] = field(default_factory=dict)
    sweeps: Sequence[Run] = ()  # the newest of each pipeline
    sweeps_before: Sequence[Run] = ()  # the newest that ended, where the newest of all has not
    last_success: Mapping[str, datetime] = field(default_factory=dict)  # pipeline → end of its last succeeded sweep
    oldest_open: Mapping[str, datetime] = field(default_factory=dict)
    repairs: Mapping[tuple[str, bool], int] = field(default_factory=dict)  # (pipeline, given up) → open gaps
    stopped: Set[str] = frozenset()  # pipelines whose automatic repair has stopped


def unread(last: Snapshot) -> Snapshot:
    """Return what is shown while the ledger does not answer: what was counted stays, and nothing that holds now is known.

    A sweep that ran, as one that runs, would keep an alert silent for as long as that lasts.
    """
    views = [
        replace(view, status=Severity.UNKNOWN.name, reasons=(UNREAD,), consistent_through=None, coverage=None)
        for view in last.views
    ]
    ended = [run for run in last.sweeps if run.ended_at is not None]
    return replace(last, views=views, sweeps=(), sweeps_before=(*ended, *last.sweeps_before))


class Metrics:
    """The metrics of one process, in one registry."""

    def __init__(self, version: str, pipelines: Sequence[str] = (), *, monotonic: Callable[[], float] | None = None) -> None:
        self.registry = CollectorRegistry()
        self._monotonic = monotonic or SystemClock().monotonic
        self._shown = Snapshot(), self._monotonic()  # with when it was read
        label = ("pipeline",)
        self.detection_delay = self._histogram("detection_delay_seconds", "From the write to its gap", label)
        self.suspects_cleared = self._counter("suspects_cleared", "Suspects that turned out to agree", ("pipeline", "reason"))
        self.store_requests = self._counter("store_requests", "Requests to a store", ("store", "purpose", "pipeline"))
        self.transactions = self._counter("transactions", "Transactions whose events were counted", ("outcome",))
        self.unparsable = self._counter(
            "unparsable_events",
            "Records that could not be read: sent to the dead-letter topic, or of the sink's own one",
            ("reason",),
        )
        self.stream_findings = self._counter("stream_findings", "Stream findings raised", ("pipeline", "finding"))
        self.sweep_keys = self._counter("sweep_keys_compared", "Keys read by sweeps", ("pipeline", "side"))
        self.backfill_documents = self._counter("backfill_documents", "Documents handled by backfills", ("pipeline", "outcome"))
        self.replication_slot_retained = self._gauge(
            "replication_slot_retained_bytes", "Write-ahead log that the slot keeps", ("pipeline",)
        )
        self.oplog_window = self._gauge("oplog_window_seconds", "How far back the oplog reaches", ("store",))
        self.up = self._gauge("up", "1 while the role runs", ("role",))
        self.role_failures = self._counter("role_failures", "How often a role's task failed and was started anew", ("role",))
        self._limits: dict[str, Gauge] = {
            name: self._gauge(name, documentation, label)
            for name, documentation in (
                ("slo_seconds", "Age of an open gap above which the pipeline is CRITICAL"),
                ("stall_after_seconds", "Age of a watermark above which the pipeline is UNKNOWN"),
                ("lag_limit_seconds", "Age of a write in transit above which the sink lags"),
                ("sweep_interval_seconds", "Time between scheduled sweeps"),
                ("coverage_target_ratio", "Coverage below which the pipeline is WARNING"),
            )
        }
        info = self._gauge("build_info", "The build that runs", ("version",))
        info.labels(version=version).set(1)
        for pipeline in pipelines:  # label sets exist from the first scrape, so that rate() works
            self.detection_delay.labels(pipeline=pipeline)
            for outcome in ("written", "already_newer", "vanished", "failed"):
                self.backfill_documents.labels(pipeline=pipeline, outcome=outcome)
            for finding in Finding:
                self.stream_findings.labels(pipeline=pipeline, finding=finding.value)
        self.registry.register(_Views(self))

    def configure(self, pipelines: Iterable[PipelineSpec]) -> None:
        """Show what each pipeline is held against, so that alert rules need no numbers of their own."""
        for spec in pipelines:
            values: dict[str, float | None] = {
                "slo_seconds": spec.slo_seconds,
                "stall_after_seconds": spec.stall_after_seconds,
                "lag_limit_seconds": spec.lag_limit,
                "sweep_interval_seconds": longest_pause_seconds(spec.sweep.cron) if spec.sweep.cron else spec.sweep.every_seconds,
                "coverage_target_ratio": spec.coverage_target,
            }
            for name, value in values.items():
                if value is not None:
                    self._limits[name].labels(pipeline=spec.id).set(value)

    def show(self, snapshot: Snapshot, *, read_at: float | None = None) -> None:
        """Replace what scrapes show of the pipelines. ``read_at``: when it was begun to be read (monotonic), None: just now."""
        self._shown = snapshot, self._monotonic() if read_at is None else read_at

    @property
    def snapshot(self) -> Snapshot:
        """What a scrape shows now. A ledger that neither answers nor fails ends no reading: what was read expires by its age."""
        snapshot, read_at = self._shown
        return snapshot if self._monotonic() - read_at <= SNAPSHOT_SECONDS_MAX else unread(snapshot)

    def count_requests(self, store: str, purpose: str, pipeline: str, number: int = 1) -> None:
        """Count requests to a store; ``pipeline`` is empty where they serve all of its pipelines."""
        self.store_requests.labels(store=store, purpose=purpose, pipeline=pipeline).inc(number)

    def measured(self, metric: str, of: str, value: float | None) -> None:
        """Show what a check measured of a pipeline or a store; None: nothing is known of it any more."""
        gauge = {
            "replication_slot_retained_bytes": self.replication_slot_retained,
            "oplog_window_seconds": self.oplog_window,
        }[metric]
        if value is not None:
            gauge.labels(of).set(value)
        else:
            with suppress(KeyError):  # two pipelines of one store: the other one was first
                gauge.remove(of)

    def exposition(self) -> bytes:
        """Return the text format that Prometheus reads."""
        return generate_latest(self.registry)

    def _counter(self, name: str, documentation: str, labels: Sequence[str]) -> Counter:
        return Counter(name, documentation, labels, namespace="gapwatch", registry=self.registry)

    def _gauge(self, name: str, documentation: str, labels: Sequence[str]) -> Gauge:
        return Gauge(name, documentation, labels, namespace="gapwatch", registry=self.registry)

    def _histogram(self, name: str, documentation: str, labels: Sequence[str]) -> Histogram:
        return Histogram(name, documentation, labels, namespace="gapwatch", registry=self.registry, buckets=PROPAGATION_BUCKETS)


class _Views(Collector):
    """Renders the snapshot."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        snapshot = self._metrics.snapshot
        yield from _gaps(snapshot)
        yield from _times(snapshot.views)
        yield from _totals(snapshot.views)
        yield from _status(snapshot.views)
        yield from _sweeps(snapshot)
        yield from _repairs(snapshot)


def _gaps(snapshot: Snapshot) -> Iterable[Metric]:
    gaps = GaugeMetricFamily("gapwatch_gaps_open", "Open gaps", labels=["pipeline", "kind"])
    oldest = GaugeMetricFamily(
        "gapwatch_oldest_open_gap_timestamp_seconds", "When the oldest open gap was confirmed", labels=["pipeline"]
    )
    grace = GaugeMetricFamily("gapwatch_grace_seconds", "The grace in force", labels=["pipeline"])
    for view in snapshot.views:
        if view.grace_seconds is not None:
            grace.add_metric([view.id], view.grace_seconds)
        for kind in Kind:
            gaps.add_metric([view.id, kind.value], view.gaps_open.get(kind.value, 0))
        if view.id in snapshot.oldest_open:
            oldest.add_metric([view.id], snapshot.oldest_open[view.id].timestamp())
    yield gaps
    yield grace
    yield oldest
    detected = CounterMetricFamily("gapwatch_gaps_detected", "Gaps ever detected", labels=["pipeline", "kind", "detector"])
    never = {(view.id, kind.value, detector.value): 0 for view in snapshot.views for kind in Kind for detector in Detector}
    for labels, count in {**never, **snapshot.detected}.items():
        detected.add_metric(list(labels), count)
    yield detected
    resolved = CounterMetricFamily("gapwatch_gaps_resolved", "Gaps ever resolved", labels=["pipeline", "resolution"])
    for view in snapshot.views:
        for resolution in Resolution:
            resolved.add_metric([view.id, resolution.value], snapshot.resolved.get((view.id, resolution.value), 0))
    yield resolved


def _times(views: Sequence[PipelineView]) -> Iterable[Metric]:
    columns: dict[str, tuple[str, Callable[[PipelineView], datetime | None]]] = {
        "consistent_through": ("Every write up to this time is proven at the target", lambda view: view.consistent_through),
        "source_watermark": ("Everything committed at the source up to this time was read", lambda view: view.source_watermark),
        "target_watermark": ("Everything committed at the target up to this time was read", lambda view: view.target_watermark),
        "oldest_in_transit": ("Commit time of the oldest write in transit", lambda view: view.oldest_in_transit),
    }
    for name, (documentation, of) in columns.items():
        family = GaugeMetricFamily(f"gapwatch_{name}_timestamp_seconds", documentation, labels=["pipeline"])
        for view in views:
            time = of(view)
            if time is not None:
                family.add_metric([view.id], time.timestamp())
        yield family


UNVERIFIABLE = ("not_read", "overflow")  # why: ten attempts at its stores failed; a limit was reached


def _totals(views: Sequence[PipelineView]) -> Iterable[Metric]:
    counters: dict[str, tuple[str, Callable[[PipelineView], int]]] = {
        "expected_events": ("Writes seen at the source", lambda view: view.totals.expected),
        "observed_events": ("Writes seen at the target", lambda view: view.totals.observed),
        "matched_events": ("Source writes proven at the target", lambda view: view.totals.settled + view.totals.cleared),
        "forgotten_keys": ("Keys that made room for others, at a limit", lambda view: view.totals.forgotten),
        "late_events": ("Events below the published watermark", lambda view: view.totals.late),
    }
    for name, (documentation, of) in counters.items():
        family = CounterMetricFamily(f"gapwatch_{name}", documentation, labels=["pipeline"])
        for view in views:
            family.add_metric([view.id], of(view))
        yield family
    snapshot_reads = CounterMetricFamily("gapwatch_snapshot_reads", "Snapshot reads seen", labels=["pipeline", "side"])
    delay = HistogramMetricFamily(
        "gapwatch_propagation_delay_seconds", "From the write at the source to its arrival at the target", labels=["pipeline"]
    )
    for view in views:
        for side in ("expected", "observed"):
            snapshot_reads.add_metric([view.id, side], view.totals.snapshot_reads.get(side, 0))
        delay.add_metric([view.id], *_buckets(view.totals.delays_ms))
    yield snapshot_reads
    unverifiable = CounterMetricFamily(
        "gapwatch_unverifiable_writes", "Source writes that nobody could prove either way", labels=["pipeline", "reason"]
    )
    for view in views:
        for reason in UNVERIFIABLE:
            unverifiable.add_metric([view.id, reason], view.totals.unverifiable.get(reason, 0))
    yield unverifiable
    yield delay


def _buckets(delays_ms: Mapping[int, int]) -> tuple[list[tuple[str, float]], float]:
    """Return cumulative Prometheus buckets, and the sum as far as bounds tell it (each value counted at its upper bound)."""
    rows: list[tuple[str, float]] = []
    count, total = 0, 0.0
    for bound in PROPAGATION_BUCKETS:
        here = sum(number for upper, number in delays_ms.items() if 0 <= upper <= bound * 1000)
        total += (here - count) * bound
        count = here
        rows.append((str(bound), float(count)))
    above = sum(delays_ms.values()) - count
    rows.append(("+Inf", float(count + above)))
    return rows, total + above * PROPAGATION_BUCKETS[-1]


def _status(views: Sequence[PipelineView]) -> Iterable[Metric]:
    status = GaugeMetricFamily("gapwatch_pipeline_status", "1 for the status in force", labels=["pipeline", "status"])
    coverage = GaugeMetricFamily(
        "gapwatch_coverage_ratio", "Share of the last hour's closed writes that were proven either way", labels=["pipeline"]
    )
    pending = GaugeMetricFamily("gapwatch_pending_keys", "Keys whose newest write is not yet proven", labels=["pipeline"])
    transit = GaugeMetricFamily("gapwatch_in_transit_keys", "Keys that the sink has not reached yet", labels=["pipeline"])
    incident = GaugeMetricFamily("gapwatch_incident_gaps", "Open gaps of the incident that is on, else 0", labels=["pipeline"])
    lag = GaugeMetricFamily("gapwatch_consumer_lag", "Raw records not yet read", labels=["pipeline", "side"])
    for view in views:
        for severity in Severity:
            status.add_metric([view.id, severity.name], float(view.status == severity.name))
        if view.coverage is not None:
            coverage.add_metric([view.id], view.coverage)
        pending.add_metric([view.id], view.pending_keys)
        transit.add_metric([view.id], view.in_transit_keys)
        incident.add_metric([view.id], gaps_of_incident(view))
        for side in ("expected", "observed"):
            known = [feed.lag for feed in view.feeds if feed.side == side and feed.lag is not None]
            if known:
                lag.add_metric([view.id, side], sum(known))
    return (status, coverage, pending, transit, incident, lag)


def _sweeps(snapshot: Snapshot) -> Iterable[Metric]:
    running = GaugeMetricFamily("gapwatch_sweep_running", "1 while a sweep runs", labels=["pipeline"])
    progress = GaugeMetricFamily("gapwatch_sweep_progress_ratio", "How far the newest sweep is", labels=["pipeline"])
    duration = GaugeMetricFamily("gapwatch_sweep_duration_seconds", "How long the newest ended sweep took", labels=["pipeline"])
    success = GaugeMetricFamily(
        "gapwatch_sweep_last_success_timestamp_seconds", "When the last sweep succeeded", labels=["pipeline"]
    )
    for run in snapshot.sweeps:
        running.add_metric([run.pipeline], float(run.state is RunState.RUNNING))
        if run.progress is not None:
            progress.add_metric([run.pipeline], run.progress)
    for run in (*snapshot.sweeps, *snapshot.sweeps_before):
        if run.started_at is not None and run.ended_at is not None:
            duration.add_metric([run.pipeline], (run.ended_at - run.started_at).total_seconds())
    for pipeline, ended in snapshot.last_success.items():
        success.add_metric([pipeline], ended.timestamp())
    return (running, progress, duration, success)


def _repairs(snapshot: Snapshot) -> Iterable[Metric]:
    failed = GaugeMetricFamily("gapwatch_repairs_failed", "Open gaps whose repair did not come off", labels=["pipeline", "state"])
    stopped = GaugeMetricFamily("gapwatch_automatic_repair_stopped", "1 while automatic repair has stopped", labels=["pipeline"])
    for view in snapshot.views:
        for state, given_up in (("waiting", False), ("given_up", True)):
            failed.add_metric([view.id, state], snapshot.repairs.get((view.id, given_up), 0))
        stopped.add_metric([view.id], float(view.id in snapshot.stopped))
    return (failed, stopped)
