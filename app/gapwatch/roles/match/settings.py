"""How match runs Faust: every setting that a guarantee rests on, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from gapwatch.kafka.faust_parts import NoHttpClient
from gapwatch.kafka.faust_safety import (
    SafeApp,
    SafeTableManager,
    SendState,
    StateTable,
    assert_faust_version,
    broker_credentials,
    broker_urls,
    safe_transport,
)
from gapwatch.kafka.topics import RECORD_BYTES_MAX, match_app_id
from gapwatch.model.pipeline import Settings
from gapwatch.ports import Clock
from gapwatch.roles.match.journal import rank_of

TABLE: Final = "state"
METADATA_SECONDS_MAX: Final = 30  # Faust's five minutes are long for a group that waits for a topic or a partition


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchTuning:
    """Times in seconds. A worker writes only while the group answered within `session_seconds` / 2, and a write that the
    brokers did not acknowledge within `session_seconds` / 2 ends the worker: so two workers never write one partition's state.
    """

    session_seconds: float = 10.0
    checkpoint_seconds: float = 1.0
    final_checkpoint_seconds: float = 4.0
    stop_seconds: float = 15.0
    stalled_seconds: float = 60.0  # records wait, and none was applied
    recovery_seconds: float = 180.0
    probe_seconds: float = 15.0
    restart_seconds: float = 0.5
    restart_seconds_max: float = 10.0
    healthy_seconds: float = 60.0
    unacknowledged_records_max: int = 2_000  # applied since the last checkpoint, over all partitions
    suspects_max: int = 20_000  # said since the last checkpoint


def build_app(settings: Settings, tuning: MatchTuning, clock: Clock, send: SendState) -> tuple[SafeApp, StateTable]:
    """Return a new app and its state table; nothing is connected yet. ``send`` hands changelog records to our producer."""
    assert_faust_version()
    app = SafeApp(
        match_app_id(settings),
        broker=broker_urls(settings),
        broker_credentials=broker_credentials(settings.kafka_options),
        store="memory://",
        autodiscover=False,
        key_serializer="raw",
        value_serializer="raw",
        topic_partitions=settings.topics.partitions,
        topic_replication_factor=settings.topics.replication,
        topic_allow_declare=False,
        topic_disable_leader=True,
        table_standby_replicas=0,
        TableManager=SafeTableManager,
        Table=StateTable,
        HttpClient=NoHttpClient,
        agent_supervisor="mode.CrashingSupervisor",
        broker_session_timeout=tuning.session_seconds,
        broker_heartbeat_interval=min(1.0, tuning.session_seconds / 4),
        broker_request_timeout=30,
        broker_rebalance_timeout=30,
        broker_commit_interval=tuning.checkpoint_seconds,
        stream_wait_empty=False,
        stream_buffer_maxsize=256,
        # Only where the log's start has passed our position; the worker notices the jump and names it.
        consumer_auto_offset_reset="earliest",
        consumer_metadata_max_age_ms=METADATA_SECONDS_MAX * 1000,
        consumer_max_fetch_size=2 * RECORD_BYTES_MAX,
        producer_acks=-1,
        recovery_consistency_check=True,
        worker_redirect_stdouts=False,
        web_enabled=False,
    )
    app.transport = safe_transport(app, clock)
    table = app.Table(TABLE, key_type=bytes, value_type=bytes, partitions=settings.topics.partitions)
    table.send = send
    table.rank = rank_of
    return app, table


def app_facts(app: Any) -> dict[str, object]:
    """Return what a log line says of the app's place in its group."""
    return {"generation": app.consumer_generation_id, "rebalancing": app.rebalancing}
