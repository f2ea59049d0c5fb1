"""Gapwatch's own topics: what each is for, how it is created, and what is wrong with one that exists already.

Topics are created explicitly, with stated partitions, retention and cleanup; nothing relies on the broker's defaults.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog
from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import (
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from gapwatch.check_ports import Advice
from gapwatch.errors import StoreRefused, StoreUnreachable
from gapwatch.jointly import Jointly
from gapwatch.kafka.faults import STORE, gapwatch_error
from gapwatch.kafka.options import REQUEST_SECONDS, Admin, admin_client, all_answered, answered
from gapwatch.kafka.producer import COPIED_BYTES_MAX
from gapwatch.model.pipeline import CAPTURED, Settings
from gapwatch.ports import Clock

log = structlog.get_logger(__name__)

_HOUR_MS: Final = 3_600_000
_DAY_MS: Final = 24 * _HOUR_MS
VISIBLE_ATTEMPTS: Final = 100
VISIBLE_PAUSE_SECONDS: Final = 0.1
RECORD_BYTES_MAX: Final = 2 * 1024 * 1024  # above every record we make: 256 KiB of events, 512 KiB of state


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicPlan:
    """A topic as it shall be. ``fixed_partitions``: another number would break key placement. ``settings``: topic-level."""

    name: str
    partitions: int
    settings: Mapping[str, str] = field(default_factory=dict)
    fixed_partitions: bool = True

    @property
    def cleanup(self) -> str:
        return self.settings["cleanup.policy"]


def match_app_id(settings: Settings) -> str:
    """Return the id of match's Faust app, which is its consumer group as well."""
    return f"{settings.topics.prefix}.match"


def state_topic(settings: Settings) -> str:
    """Return the name of the changelog that holds match's state."""
    return f"{match_app_id(settings)}-state-changelog"


def topic_plans(settings: Settings) -> tuple[TopicPlan, ...]:
    """Return every topic that Gapwatch owns under these settings."""
    topics = settings.topics
    log_of = {"cleanup.policy": "delete", "max.message.bytes": str(RECORD_BYTES_MAX), "compression.type": "producer"}
    table = {
        "cleanup.policy": "compact",
        "max.message.bytes": str(RECORD_BYTES_MAX),
        "segment.ms": str(_HOUR_MS),
        "min.cleanable.dirty.ratio": "0.2",
        "delete.retention.ms": str(_DAY_MS),
    }
    plans = [
        # Append time is what `stall_after` is measured in, so it must be the broker's. A week: replay and evidence read it.
        TopicPlan(
            name=topics.events,
            partitions=topics.partitions,
            settings={**log_of, "retention.ms": str(7 * _DAY_MS), "message.timestamp.type": "LogAppendTime"},
        ),
        TopicPlan(name=topics.suspects, partitions=topics.partitions, settings={**log_of, "retention.ms": str(7 * _DAY_MS)}),
        TopicPlan(name=topics.status, partitions=1, settings={**table, "segment.ms": str(10 * 60_000)}),
        TopicPlan(name=topics.gaps, partitions=topics.partitions, settings=table),
        TopicPlan(
            name=topics.dead_letters,
            partitions=1,
            settings={**log_of, "max.message.bytes": str(COPIED_BYTES_MAX), "retention.ms": str(14 * _DAY_MS)},
            fixed_partitions=False,
        ),
        # A minute before compaction: a thawed worker's late record must not erase the newer one before a restore has seen both.
        TopicPlan(
            name=state_topic(settings),
            partitions=topics.partitions,
            settings={**table, "segment.ms": str(10 * 60_000), "min.compaction.lag.ms": "60000"},
        ),
    ]
    plans.extend(
        TopicPlan(
            name=name,
            partitions=1,
            settings={**log_of, "max.message.bytes": str(COPIED_BYTES_MAX), "retention.ms": str(7 * _DAY_MS)},
            fixed_partitions=False,
        )
        for name in _captured_feeds(settings)
    )
    return tuple(plans)


def _captured_feeds(settings: Settings) -> tuple[str, ...]:
    """Return the feed topics that role ``capture`` fills."""
    names: set[str] = set()
    for pipeline in settings.pipelines.values():
        for side, feed in (("source", pipeline.source.feed), ("target", pipeline.target.feed)):
            if feed.kind in CAPTURED:
                names.add(feed.topic or settings.topics.feed(pipeline.id, side))
    return tuple(sorted(names))


def captures(settings: Settings) -> bool:
    """Whether any pipeline has a feed that role ``capture`` fills."""
    return bool(_captured_feeds(settings))


class TopicAdmin:
    """Creates, checks and describes topics.

    Methods raise StoreUnreachable when the brokers do not answer within 20 s, StoreRefused when a right is missing.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._admin: Admin = admin_client(settings)

    async def ensure(self, plans: Collection[TopicPlan] | None = None) -> tuple[Advice, ...]:
        """Create what is missing and check what exists; return advice for what works but is not as it should be.

        Raises StoreRefused where going on would be wrong: another number of partitions, or state and tables that are not
        compacted (or logs that are, which would drop events).
        """
        wanted = tuple(topic_plans(self._settings) if plans is None else plans)
        existing = await self.describe([plan.name for plan in wanted])
        missing = [plan for plan in wanted if plan.name not in existing]
        await self._create(missing)
        return await self._check([plan for plan in wanted if plan.name in existing], existing)

    async def inspect(self) -> tuple[Advice, ...]:
        """As :meth:`ensure`, without creating or raising for what is wrong: for `doctor`."""
        wanted = topic_plans(self._settings)
        existing = await self.describe([plan.name for plan in wanted])
        advice = [
            Advice(level="ok", subject=plan.name, message="Does not exist yet; it is created at the first start.")
            for plan in wanted
            if plan.name not in existing
        ]
        configs = await self._configs([plan.name for plan in wanted if plan.name in existing])
        for plan in wanted:
            if plan.name in existing:
                advice.extend(_differences(plan, existing[plan.name].partitions, configs[plan.name]))
        return tuple(advice)

    async def describe(self, names: Sequence[str]) -> Mapping[str, TopicFacts]:
        """Return id and partition count of each topic that exists."""
        if not names:
            return {}
        asked = self._admin.describe_topics(TopicCollection(list(names)), request_timeout=REQUEST_SECONDS)
        await all_answered(asked.values())
        found: dict[str, TopicFacts] = {}
        for name, future in asked.items():
            try:
                described = future.result()
            except KafkaException as error:
                if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                    continue
                raise gapwatch_error(error, f"describe topic {name}") from error
            found[name] = TopicFacts(topic_id=str(described.topic_id), partitions=len(described.partitions))
        return found

    async def compacted(self, names: Sequence[str]) -> frozenset[str]:
        """Return the topics whose records may be removed one by one; one whose settings we may not read counts as such.

        Our own feeds never are, whatever we may read: `ensure` refuses them otherwise, and the marks of transactions in them,
        which take offsets as well, are no records that somebody removed.
        """
        names = sorted(set(names) - set(_captured_feeds(self._settings)))
        try:
            configs = await self._configs(names)
        except StoreRefused as error:
            log.warning("topic_settings_unread", topics=names, reason=str(error))
            return frozenset(names)
        return frozenset(name for name in names if "compact" in configs[name].get("cleanup.policy", "compact"))

    async def _create(self, plans: Sequence[TopicPlan]) -> None:
        if not plans:
            return
        replication = self._settings.topics.replication
        durable = {"min.insync.replicas": str(max(1, replication - 1))}
        new = [
            NewTopic(p.name, num_partitions=p.partitions, replication_factor=replication, config={**durable, **p.settings})
            for p in plans
        ]
        for name, future in self._admin.create_topics(new, operation_timeout=REQUEST_SECONDS).items():
            try:
                await asyncio.wrap_future(future)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # another worker was faster
                    raise gapwatch_error(error, f"create topic {name}") from error
            else:
                log.info("topic_created", topic=name)
        await self._visible([plan.name for plan in plans])

    async def _visible(self, names: Sequence[str]) -> None:
        """Return once the brokers know the topics: a creation is acknowledged a little earlier."""
        for _ in range(VISIBLE_ATTEMPTS):
            if len(await self.describe(names)) == len(names):
                return
            await asyncio.sleep(VISIBLE_PAUSE_SECONDS)
        raise StoreUnreachable(
            f"Kafka: topics were created but are not known after {VISIBLE_ATTEMPTS * VISIBLE_PAUSE_SECONDS:g} s.",
            store=STORE,
            remedy="Check the controller and the brokers.",
        )

    async def _check(self, plans: Sequence[TopicPlan], existing: Mapping[str, TopicFacts]) -> tuple[Advice, ...]:
        configs = await self._configs([plan.name for plan in plans])
        advice: list[Advice] = []
        for plan in plans:
            for found in _differences(plan, existing[plan.name].partitions, configs[plan.name]):
                if found.level == "error":
                    raise StoreRefused(found.message, store=STORE, remedy=found.remedy)
                log.warning("topic_differs", topic=plan.name, message=found.message)
                advice.append(found)
        return tuple(advice)

    async def _configs(self, names: Sequence[str]) -> Mapping[str, Mapping[str, str]]:
        if not names:
            return {}
        resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
        asked = self._admin.describe_configs(resources, request_timeout=REQUEST_SECONDS)
        return {
            resource.name: {
                entry.name: str(entry.value)
                for entry in (await answered(future, f"read the settings of topic {resource.name}")).values()
            }
            for resource, future in asked.items()
        }

    async def apply_settings(self, plan: TopicPlan) -> None:
        """Set a topic's settings to the plan's (what the advice of :meth:`ensure` proposes)."""
        entries = [ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in plan.settings.items()]
        resource = ConfigResource(ResourceType.TOPIC, plan.name, incremental_configs=entries)
        for future in self._admin.incremental_alter_configs([resource], request_timeout=REQUEST_SECONDS).values():
            await answered(future, f"change the settings of topic {plan.name}")


class SharedTopics:
    """Describes the topics of several that ask at about the same time in one request."""

    def __init__(self, topics: TopicAdmin, clock: Clock) -> None:
        self._topics = topics
        self._together = Jointly[Sequence[str], Mapping[str, TopicFacts]](self._describe, clock)

    async def describe(self, names: Sequence[str]) -> Mapping[str, TopicFacts]:
        """Return id and partition count of each topic that exists, and perhaps of others; raises as :class:`TopicAdmin`."""
        return await self._together.ask(names, lambda: self._topics.describe(names))

    async def _describe(self, asked: Sequence[Sequence[str]]) -> Mapping[str, TopicFacts]:
        return await self._topics.describe(sorted({name for names in asked for name in names}))


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicFacts:
    """``topic_id`` is the broker's: a topic deleted and created again has another one (it begins an epoch)."""

    topic_id: str
    partitions: int


def _differences(plan: TopicPlan, partitions: int, found: Mapping[str, str]) -> list[Advice]:
    advice: list[Advice] = []
    if partitions != plan.partitions and plan.fixed_partitions:
        advice.append(
            Advice(
                level="error",
                subject=plan.name,
                message=f"Topic {plan.name} has {partitions} partitions, but the configuration says {plan.partitions}.",
                remedy=f"Set kafka.partitions to {partitions}, or choose another kafka.prefix: the count is for life.",
            )
        )
    policy = ",".join(sorted(found.get("cleanup.policy", "").split(",")))
    if policy != plan.cleanup:
        advice.append(
            Advice(
                level="error",
                subject=plan.name,
                message=f"Topic {plan.name} has cleanup.policy={policy}, which would drop what Gapwatch still needs.",
                remedy=f"Set it: kafka-configs --alter --topic {plan.name} --add-config cleanup.policy={plan.cleanup}.",
            )
        )
    names = sorted(set(plan.settings) - {"cleanup.policy"})
    advice.extend(_setting(plan, name, found[name]) for name in names if name in found and found[name] != plan.settings[name])
    return advice


def _setting(plan: TopicPlan, name: str, value: str) -> Advice:
    smaller = name == "max.message.bytes" and int(value) < int(plan.settings[name])
    return Advice(
        level="error" if smaller else "warning",
        subject=plan.name,
        message=f"Topic {plan.name} has {name}={value}; Gapwatch creates it with {plan.settings[name]}.",
        remedy=f"kafka-configs --alter --topic {plan.name} --add-config {name}={plan.settings[name]}.",
    )


async def ensure_topics(settings: Settings) -> tuple[Advice, ...]:
    """Create and check all of Gapwatch's topics: see :meth:`TopicAdmin.ensure`."""
    return await TopicAdmin(settings).ensure()
