"""From the file's form to :class:`Settings`: what needs more than one key to judge, and what is not there yet."""

from __future__ import annotations

import re
from collections.abc import Mapping

from gapwatch.config import forms
from gapwatch.config.checks import address_problem, field_problems, option_problem, path_problems, topic_problem
from gapwatch.config.counting import kept_of, target_rule_problems, where_problems
from gapwatch.config.opensearch import ACCOUNT_OPTIONS, store_address, target_problems
from gapwatch.config.plain import plain_feed, plain_problems
from gapwatch.config.repair import repair_problems, repair_spec, shared_target_problems
from gapwatch.config.schema_registry import registry_problems, registry_spec
from gapwatch.config.source import Document, Place
from gapwatch.config.sweep import sweep_problems, sweep_spec
from gapwatch.config.tables import dataset_of, source_tables, table_problems, target_table_problems
from gapwatch.core.maintenance import EXAMPLES, MaintenanceSpec
from gapwatch.model.pipeline import (
    DeliverySpec,
    FeedKind,
    FeedSpec,
    FieldSpec,
    FieldType,
    HeartbeatSpec,
    KeyColumn,
    KeyType,
    Match,
    PipelineSpec,
    Rounding,
    Settings,
    SourceSpec,
    StoreSpec,
    StoreType,
    TargetSpec,
    TopicsSpec,
)

_SCHEMES = {
    StoreType.POSTGRES: ("dsn", ("postgresql://", "postgres://")),
    StoreType.MONGODB: ("uri", ("mongodb://", "mongodb+srv://")),
}
_NOT_YET = "is not supported yet"
_REMOVE = "Remove it."
GRACE_MIN_SECONDS, GRACE_MAX_SECONDS = 5.0, 300.0  # of grace: auto


def build(form: forms.File, document: Document, file: str) -> Settings:
    """Return the settings; problems are added to the document."""
    host, port = _listen(form.api.listen, ("api", "listen"), document)
    probes_host, probes_port = _listen(form.probes.listen, ("probes", "listen"), document) if form.probes.listen else ("", 0)
    topics = TopicsSpec(prefix=form.topics.prefix, partitions=form.topics.partitions, replication=form.topics.replication)
    stores = {name: _store(name, store, document) for name, store in form.stores.items()}
    pipelines = {name: _Builder(name, pipeline, stores, topics, document).build() for name, pipeline in form.pipelines.items()}
    for name, spec in pipelines.items():
        shared = shared_target_problems(spec, pipelines.values())
        for place, message, remedy in (*repair_problems(spec, connect=bool(form.connect.url)), *shared):
            document.problem(("pipelines", name, "repair", *place), message, remedy)
    _common(form, document)
    return Settings(
        bootstrap_servers=form.kafka.bootstrap_servers,
        kafka_options=form.kafka.options,
        connect_url=form.connect.url,
        schema_registry=registry_spec(form.schema_registry),
        listen_host=host,
        listen_port=port,
        probes_host=probes_host,
        probes_port=probes_port,
        topics=topics,
        database=form.database,
        stores=stores,
        pipelines=pipelines,
        file=file,
    )


def _common(form: forms.File, document: Document) -> None:
    if not form.database.startswith(("sqlite:///", "postgresql://", "postgres://")):
        document.problem(("database",), "The ledger's address is not known.", "Write sqlite:///FILE or postgresql://….")
    elif not form.database.startswith("sqlite"):
        document.add(("database",), address_problem(form.database))
    if form.connect.url:
        if not form.connect.url.startswith(("http://", "https://")):
            document.problem(("connect", "url"), "It is no HTTP address.", "Write it like http://localhost:8083.")
        document.add(("connect", "url"), address_problem(form.connect.url))
    for place, problem in registry_problems(form.schema_registry):
        document.add(("schema_registry", *place), problem)
    for name in form.kafka.options:
        document.add(("kafka", "options", name), option_problem(name))
    document.add(("topics", "prefix"), topic_problem(form.topics.prefix))


def _listen(text: str, place: Place, document: Document) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65_536:
        document.problem(place, f"{text!r} is no address.", "Write address:port, like 127.0.0.1:8640.")
        return "127.0.0.1", 8640
    return host.strip("[]"), int(port)


def _store(name: str, store: forms.Store, document: Document) -> StoreSpec:
    place: Place = ("stores", name)
    kind = StoreType(store.type)
    url = ""
    if kind is StoreType.OPENSEARCH:
        url = store_address(place, store, document)
    else:
        option, schemes = _SCHEMES[kind]
        url = getattr(store, option) or ""
        for other in ("dsn", "uri", "hosts", *ACCOUNT_OPTIONS):
            if other != option and other in store.model_fields_set:
                document.problem((*place, other), f"A {kind.value} store has no `{other}`.", f"Write `{option}` instead.")
        if not url:
            document.problem(place, f"`{option}` is missing.", f"Write {option}: {schemes[0]}….")
        elif not url.startswith(schemes):
            document.problem(
                (*place, option), f"It does not begin with {schemes[0]}.", "Write the address as the driver wants it."
            )
        document.add((*place, option), address_problem(url))
    if kind is StoreType.OPENSEARCH and "heartbeat" in store.model_fields_set:
        document.problem((*place, "heartbeat"), "An opensearch store needs no heartbeat.", _REMOVE)
    heartbeat = store.heartbeat
    if isinstance(heartbeat, str):
        spec = HeartbeatSpec(auto=heartbeat == "auto")
    else:
        spec = HeartbeatSpec(auto=heartbeat.auto and not heartbeat.topic, topic=heartbeat.topic, every_seconds=heartbeat.every)
        if not 0 < heartbeat.every <= 10:
            document.problem((*place, "heartbeat", "every"), "Heartbeats must come every 10 s or faster.", "Write 1s.")
    return StoreSpec(name=name, type=kind, url=url, heartbeat=spec)


class _Builder:
    """Builds one pipeline."""

    def __init__(
        self, name: str, form: forms.Pipeline, stores: Mapping[str, StoreSpec], topics: TopicsSpec, document: Document
    ) -> None:
        self._name = name
        self._form = form
        self._stores = stores
        self._topics = topics
        self._document = document

    def build(self) -> PipelineSpec:
        form = self._form
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", self._name):
            self._problem((), f"{self._name!r} is no name.", "Use letters, digits, - and _; at most 63.")
        self._maintenance()
        source, target = self._source(), self._target()
        self._keys()
        self._versions(source, target)
        fields = self._fields()
        for path, problem in path_problems(fields, source.key, target.key):
            self._add(("fields", path), problem)
        for place, message, remedy in sweep_problems(form.sweep, changed_at=bool(form.source.changed_at)):
            self._problem(("sweep", *place), message, remedy)
        grace_least, grace = self._grace()
        return PipelineSpec(
            id=self._name,
            source=source,
            target=target,
            fields=fields,
            match=Match(form.match),
            delivery=self._delivery(),
            grace_seconds=grace,
            grace_least_seconds=grace_least,
            disorder_seconds=form.disorder,
            settle_seconds=form.settle,
            clock_skew_max_seconds=form.clock_skew_max,
            stall_after_seconds=form.stall_after,
            lag_limit_seconds=form.lag_limit,
            confirm_again_seconds=form.confirm_again,
            pulse_seconds=form.pulse,
            history=form.history,
            settled_keys_max=form.settled_keys_max,
            pending_keys_max=form.pending_keys_max,
            suspects_max=form.suspects_max,
            baseline=form.baseline,
            coverage_target=form.coverage_target,
            slo_seconds=form.slo,
            incident_threshold=form.incident_threshold,
            evidence=form.evidence,
            enabled=form.enabled,
            maintenance=tuple(form.maintenance),
            sweep=sweep_spec(form.sweep),
            repair=repair_spec(form.repair),
        )

    def _grace(self) -> tuple[float | None, float]:
        """Return the least grace (None: it is declared) and the grace, or the largest one where it is measured."""
        form = self._form
        if form.grace != forms.AUTO_GRACE:
            if form.grace <= 0:
                self._problem(("grace",), "The grace must be above 0.", "Write how long the target may lag, like 30s.")
            for option in ("grace_min", "grace_max"):
                if getattr(form, option) is not None:
                    self._problem((option,), "The grace is declared, not measured.", "Remove it, or write grace: auto.")
            return None, form.grace
        if isinstance(form.target.feed, str):
            self._problem(
                ("grace",), "Without a feed of the target no delay is measured.", "Write how long it may lag, like 30s."
            )
        least, most = form.grace_min or GRACE_MIN_SECONDS, form.grace_max or GRACE_MAX_SECONDS
        if least > most:
            self._problem(("grace_min",), f"It is above grace_max ({most:g} s).", "Write a smaller one.")
        return least, most

    def _problem(self, place: Place, message: str, remedy: str = "") -> None:
        self._document.problem(("pipelines", self._name, *place), message, remedy)

    def _add(self, place: Place, problem: tuple[str, str] | None) -> None:
        self._document.add(("pipelines", self._name, *place), problem)

    def _maintenance(self) -> None:
        for number, text in enumerate(self._form.maintenance):
            try:
                MaintenanceSpec.parse(text)
            except ValueError as error:
                self._problem(("maintenance", number), f"{text!r} is no window: {error}.", f"Write {EXAMPLES}.")

    def _versions(self, source: SourceSpec, target: TargetSpec) -> None:
        for side, version in (("source", source.version), ("target", target.version)):
            if self._form.match == "version" and not version:
                self._problem((side, "version"), "It is missing: match: version compares it.", "Name the column that rises.")

    def _store(self, side: str, name: str, *allowed: StoreType) -> StoreType | None:
        """Return the store's type, None where nothing more can be said of it."""
        store = self._stores.get(name)
        if store is None and name in (self._document.tree.get("stores") or {}):
            return None  # there is one, with a problem of its own
        if store is None:
            known = ", ".join(sorted(self._stores))
            self._problem((side, "store"), f"There is no store {name!r}.", f"Stores: {known}.")
        elif store.type not in allowed:
            self._problem(
                (side, "store"),
                f"A {side} of type {store.type.value} {_NOT_YET}.",
                f"The {side} must be a store of type {' or '.join(kind.value for kind in allowed)}.",
            )
        else:
            return store.type
        return None

    def _unsupported(self, side: str, form: forms.Source | forms.Target, names: tuple[str, ...]) -> None:
        for name in names:
            if getattr(form, name) is not None:
                self._problem((side, name), f"`{name}` {_NOT_YET}.", _REMOVE)

    def _source(self) -> SourceSpec:
        form = self._form.source
        kind = self._store("source", form.store, StoreType.POSTGRES, StoreType.MONGODB)
        for option, problem in where_problems(form):
            self._add(("source", option), problem)
        if kind is StoreType.MONGODB:
            self._unsupported("source", form, ("tables", "topic_pattern", "transactions"))
            return self._collection_source(form)
        self._unsupported("source", form, ("collection",))
        if form.transactions is not None:
            self._add(("source", "transactions"), topic_problem(form.transactions, self._topics))
            if form.feed is not None and form.feed.topic:
                self._problem(("source", "transactions"), "Only Debezium writes one, and the feed is a plain topic.", _REMOVE)
        if form.tables is not None:
            return self._tables_source(form)
        if form.topic_pattern is not None:
            self._problem(("source", "topic_pattern"), "There is one table: its feed names its topic.", _REMOVE)
        table = form.table or ""
        if table.count(".") != 1:
            self._problem(("source", "table"), "The table is needed with its schema.", "Write table: public.orders.")
        return SourceSpec(
            store=form.store,
            table=table,
            key=_columns(form.key),
            feed=self._feed("source", form.feed),
            version=form.version,
            changed_at=form.changed_at,
            where=form.where or "",
            on_leave=form.on_leave or "delete",
            transactions=form.transactions or "",
        )

    def _tables_source(self, form: forms.Source) -> SourceSpec:
        for option, problem in table_problems(form, self._topics):
            self._add(("source", option), problem)
        return SourceSpec(
            store=form.store,
            table="",
            key=_columns(form.key),
            feed=FeedSpec(kind=FeedKind.DEBEZIUM),
            version=form.version,
            changed_at=form.changed_at,
            where=form.where or "",
            on_leave=form.on_leave or "delete",
            transactions=form.transactions or "",
            tables=source_tables(form),
            topic_pattern=form.topic_pattern or "",
        )

    def _collection_source(self, form: forms.Source) -> SourceSpec:
        target = self._stores.get(self._form.target.store)
        if target is not None and target.type is StoreType.POSTGRES:
            remedy = "The target of a mongodb source must be a mongodb or an opensearch store."
            self._problem(("source", "store"), f"A pipeline from mongodb to {target.type.value} {_NOT_YET}.", remedy)
        if form.table is not None:
            self._problem(("source", "table"), "A mongodb source has no `table`.", "Write collection: shop.orders.")
        if "." not in (form.collection or ""):
            self._problem(
                ("source", "collection"), "The collection is needed with its database.", "Write collection: shop.orders."
            )
        if form.feed is None or form.feed.model_fields_set != {"change_stream"} or not form.feed.change_stream:
            message = f"A collection is followed by its change stream; any other source feed of it {_NOT_YET}."
            self._problem(("source", "feed"), message, "Write { change_stream: true }.")
        return SourceSpec(
            store=form.store,
            table=form.collection or "",
            key=_columns(form.key),
            feed=FeedSpec(kind=FeedKind.CHANGE_STREAM, topic=self._topics.feed(self._name, "source")),
            version=form.version,
            changed_at=form.changed_at,
            where=form.where or "",
            on_leave=form.on_leave or "delete",
        )

    def _target(self) -> TargetSpec:
        form = self._form.target
        kind = self._store("target", form.store, *StoreType)
        for option, problem in target_rule_problems(self._form):
            self._add(("target", option), problem)
        kept = kept_of(form)
        if kind is StoreType.OPENSEARCH:
            for place, message, remedy in target_problems(form, self._form.fields):
                self._problem(("target", *place), message, remedy)
        elif kind is StoreType.POSTGRES:
            for place, message, remedy in target_table_problems(form):
                self._problem(("target", *place), message, remedy)
        else:
            self._unsupported("target", form, ("table", "index", "routing"))
            if "." not in (form.collection or ""):
                self._problem(
                    ("target", "collection"), "The collection is needed with its database.", "Write collection: shop.orders."
                )
        if form.dead_letter_topic:
            self._add(("target", "dead_letter_topic"), topic_problem(form.dead_letter_topic, self._topics))
        feed = FeedSpec(kind=FeedKind.NONE) if isinstance(form.feed, str) else self._feed("target", form.feed, kind)
        return TargetSpec(
            store=form.store,
            collection=dataset_of(form, kind),
            key=_columns(form.key),
            feed=feed,
            dead_letter_topic=form.dead_letter_topic,
            version=form.version,
            routing=form.routing or "",
            changed_at=form.changed_at,
            deleted_when=form.deleted_when or "",
            keep_seconds=kept.seconds if kept is not None else 0.0,
            keep_by=kept.path if kept is not None else "",
        )

    def _feed(self, side: str, form: forms.Feed | None, store: StoreType | None = None) -> FeedSpec:
        place = (side, "feed")
        form = forms.Feed() if form is None else form
        indexed = store is StoreType.OPENSEARCH
        given = [name for name in ("debezium", "change_stream", "topic", "seq_no", "acks") if getattr(form, name)]
        if len(given) != 1:
            followed = side == "target" and store is not StoreType.POSTGRES
            choices = "debezium: TOPIC } or { topic: TOPIC" + (" } or { change_stream: true" if followed else "")
            choices = "seq_no: true } or { acks: TOPIC" if indexed else choices
            self._problem(place, "A feed is exactly one thing.", f"Write {{ {choices} }}.")
            return FeedSpec(kind=FeedKind.NONE)
        kind = given[0]
        if kind not in ("debezium", "topic") and form.format is not None:
            self._problem((*place, "format"), f"A feed of kind {kind} has no format.", _REMOVE)
        if kind != "topic" and form.wrappers is not None:
            self._problem(
                (*place, "wrappers"), f"A feed of kind {kind} has no wrappers.", "Remove it, or write { topic: TOPIC, … }."
            )
        if kind == "debezium" and form.format == "json":
            self._problem((*place, "format"), "Debezium's records are not plain JSON.", "Write unwrapped, or remove it.")
        if indexed:
            return self._index_feed(place, kind, form)
        if kind == "debezium" and form.debezium:
            self._add((*place, kind), topic_problem(form.debezium, self._topics))
            return FeedSpec(kind=FeedKind.DEBEZIUM, topic=form.debezium, format=form.format or "")
        if kind == "change_stream" and side == "target" and store is not StoreType.POSTGRES:
            return FeedSpec(kind=FeedKind.CHANGE_STREAM, topic=self._topics.feed(self._name, side))
        if kind == "topic":
            for option, problem in plain_problems(side, self._form, form, self._topics):
                self._add((*place, option), problem)
            return plain_feed(form)
        remedy = "Use debezium, a plain topic, or the change_stream of a collection."
        self._problem((*place, kind), f"A {side} feed of kind {kind} {_NOT_YET}.", remedy)
        return FeedSpec(kind=FeedKind.NONE)

    def _index_feed(self, place: Place, kind: str, form: forms.Feed) -> FeedSpec:
        if kind == "seq_no":
            return FeedSpec(kind=FeedKind.SEQ_NO, topic=self._topics.feed(self._name, "target"))
        if kind == "acks" and form.acks:
            self._add((*place, kind), topic_problem(form.acks, self._topics))
            return FeedSpec(kind=FeedKind.ACKS, topic=form.acks)
        self._problem((*place, kind), f"An index is not followed by {kind}.", "Write { seq_no: true }, { acks: TOPIC } or none.")
        return FeedSpec(kind=FeedKind.NONE)

    def _keys(self) -> None:
        source, target = self._form.source.key, self._form.target.key
        if len(source) != len(target):
            self._problem(
                ("target", "key"),
                f"The key has {len(target)} parts here and {len(source)} at the source.",
                "Write the same parts in the same order.",
            )
            return
        for (column, kind), (path, other) in zip(source.items(), target.items(), strict=True):
            if kind != other:
                self._problem(
                    ("target", "key", path),
                    f"It is of type {other}, but its counterpart {column} at the source is of type {kind}.",
                    "Give both the same type: keys are never coerced.",
                )

    def _fields(self) -> tuple[FieldSpec, ...]:
        specs = []
        for path, form in self._form.fields.items():
            if isinstance(form, str):
                specs.append(FieldSpec(target=path, source=form))
                continue
            for option, problem in field_problems(form):
                self._add(("fields", path, option), problem)
            specs.append(
                FieldSpec(
                    target=path,
                    source=form.from_,
                    type=FieldType(form.type) if form.type else FieldType.INFERRED,
                    scale=form.scale,
                    digits=form.digits,
                    precision=form.precision,
                    rounding=Rounding(form.rounding),
                    timezone=form.timezone,
                    tolerance=form.tolerance,
                    multiset=form.multiset,
                    absent_is_null=form.absent_is_null,
                    nfc=form.nfc,
                )
            )
        return tuple(specs)

    def _delivery(self) -> DeliverySpec:
        delivery = self._form.delivery
        observed = not isinstance(self._form.target.feed, str)
        if delivery is None:
            if observed:
                self._problem(
                    ("delivery",),
                    "It is missing: nobody says how far the sink has come, so lag could not be told from loss.",
                    "Write delivery: { group: connect-NAME }, the sink's consumer group, or delivery: none.",
                )
            return DeliverySpec()
        if isinstance(delivery, str):
            return DeliverySpec()
        if bool(delivery.group) == bool(delivery.acks):
            self._problem(("delivery",), "It is one thing.", "Write { group: NAME }, { acks: TOPIC }, or none.")
        if delivery.acks:
            self._add(("delivery", "acks"), topic_problem(delivery.acks, self._topics))
        return DeliverySpec(group=delivery.group or "", acks_topic=delivery.acks or "")


def _columns(key: Mapping[str, str]) -> tuple[KeyColumn, ...]:
    return tuple(KeyColumn(path=path, type=KeyType(kind)) for path, kind in key.items())
