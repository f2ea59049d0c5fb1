"""What the configuration leaves open, filled in from the source's catalogue and the connector's configuration.

Types that were not declared, which fields an event may lack (unchanged TOAST), and how the feed encodes each column.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple, Protocol

from gapwatch.core.conditions import parse, paths_of
from gapwatch.core.counting import problems as counting_problems
from gapwatch.errors import ConfigError, ConfigProblem
from gapwatch.model.pipeline import FeedKind, FieldSpec, FieldType, KeyColumn, PipelineSpec

TOASTABLE: Final = frozenset({"x", "e", "m"})
MASKABLE_MAX: Final = 254  # digests of their own; with that of all other fields, as many as match's state counts of a write


class Column(Protocol):
    """``ports.ColumnInfo``, which the core does not import."""

    @property
    def name(self) -> str: ...
    @property
    def type_name(self) -> str: ...
    @property
    def storage(self) -> str: ...
    @property
    def scale(self) -> int | None: ...
    @property
    def precision(self) -> int | None: ...


class Dataset(Protocol):
    """``ports.DatasetInfo``."""

    @property
    def columns(self) -> Sequence[Column]: ...
    @property
    def replica_identity(self) -> str: ...
    @property
    def post_images(self) -> bool: ...


class Encoding(NamedTuple):
    """What a column is, and how Debezium writes it.

    ``certain``: what it writes says all; of ``bit varying`` it leaves out how long a value is, and zeros in front are lost.
    """

    type: FieldType
    wire: str = ""
    scale: int | None = None
    certain: bool = True


_TYPE: Final = re.compile(r"(?P<name>[^(\[]+?)\s*(?:\((?P<arguments>[0-9, -]+)\))?(?P<rest>\s[^(\[]+)?(?P<array>(?:\[\])*)")
_PLAIN: Final = {
    "smallint": FieldType.INT,
    "integer": FieldType.INT,
    "bigint": FieldType.INT,
    "oid": FieldType.INT,
    "double precision": FieldType.FLOAT,
    "boolean": FieldType.BOOL,
    "uuid": FieldType.UUID,
    "text": FieldType.TEXT,
    "character varying": FieldType.TEXT,
    "character": FieldType.TEXT,
    "bpchar": FieldType.TEXT,
    '"char"': FieldType.TEXT,
    "name": FieldType.TEXT,
    "citext": FieldType.TEXT,
    "inet": FieldType.TEXT,
    "cidr": FieldType.TEXT,
    "macaddr": FieldType.TEXT,
    "macaddr8": FieldType.TEXT,
    "xml": FieldType.TEXT,
    "ltree": FieldType.TEXT,
}
# Read differently by Debezium and by a driver, or in a form that depends on settings: somebody has to say what is meant.
_NOT_INFERRED: Final = frozenset(
    {"interval", "money", "hstore", "point", "line", "lseg", "box", "path", "polygon", "circle", "tsvector", "tsquery"}
    | {
        "int4range",
        "int8range",
        "numrange",
        "tsrange",
        "tstzrange",
        "daterange",
        "geometry",
        "geography",
        "vector",
        "halfvec",
        "sparsevec",
    }
)
_IN_ARRAYS: Final = _PLAIN.keys() - {"citext", "ltree"} | {"numeric", "decimal", "real", "json", "jsonb", "bytea", "date"}
_ZONED: Final = frozenset({"timestamp with time zone", "timestamptz", "time with time zone", "timetz"})
_TEMPORAL: Final = _ZONED | {"timestamp without time zone", "timestamp", "time without time zone", "time"}
_TIMESTAMP_WIRE: Final = {"connect": "epoch_ms", "isostring": "iso", "nanoseconds": "epoch_ns"}
_TIME_WIRE: Final = {"connect": "time_ms", "isostring": "iso", "nanoseconds": "time_ns"}
_BINARY_WIRE: Final = {"bytes": "base64", "base64": "base64", "base64-url-safe": "base64url", "hex": "hex"}


def resolve(pipeline: PipelineSpec, dataset: Dataset, connector_config: Mapping[str, str] | None = None) -> PipelineSpec:
    """Return the pipeline with every open type, ``maskable`` and ``wire`` filled in; declared types stay as they are.

    Args:
        pipeline: As configured.
        dataset: The source's catalogue (``DatasetReader.describe``). Without columns (a document store) values are compared
            by value where no type is declared, and nothing is ever masked.
        connector_config: The source connector's configuration, None where it is not known (Debezium's defaults are assumed).

    Raises:
        ConfigError: A mapped column is not in the table, or its type must be declared, and names every such field; or an event
            may leave out more fields than a write's state holds digests of.
    """
    config = connector_config or {}
    columns = {column.name: column for column in dataset.columns}
    problems: list[ConfigProblem] = []
    fields = tuple(_field(pipeline, spec, columns, dataset, config, problems) for spec in pipeline.fields)
    key = tuple(_key_column(pipeline, column, columns, config, problems) for column in pipeline.source.key)
    where = tuple(_where_field(pipeline, path, columns, config, problems) for path in paths_of(pipeline.source.where))
    if problems:
        raise ConfigError(problems)
    feed = replace(
        pipeline.source.feed,
        placeholder=config.get("unavailable.value.placeholder", pipeline.source.feed.placeholder),
        full_before=dataset.replica_identity == "f",
        post_images=_post_images(pipeline, dataset, config),
    )
    resolved = replace(pipeline, fields=fields, source=replace(pipeline.source, key=key, feed=feed, where_fields=where))
    problems += [*counting_problems(resolved), *_too_many_maskable(pipeline.id, fields)]
    if problems:
        raise ConfigError(problems)
    return resolved


def resolve_target(pipeline: PipelineSpec, dataset: Dataset, connector_config: Mapping[str, str] | None = None) -> PipelineSpec:
    """Return the pipeline with how a table as its target is encoded in its own feed; documents (no columns) say that themselves.

    Args:
        pipeline: As configured, or resolved.
        dataset: The target's catalogue.
        connector_config: Of the connector that captures the target, None where it is not known.

    Raises:
        ConfigError: A mapped column, or one of the key, is not in the table; names every such field.
    """
    columns = {column.name: column for column in dataset.columns}
    if not columns:
        return pipeline
    target, config = pipeline.target, connector_config or {}
    problems: list[ConfigProblem] = []
    wires: list[tuple[str, int | None]] = []
    for spec in pipeline.fields:
        column = columns.get(spec.target)
        if column is None:
            problems.append(_no_column(f"pipelines.{pipeline.id}.fields.{spec.target}", spec.target, target.collection))
            continue
        found = encoding_of(column, config)
        wires.append((found.wire, found.scale) if found is not None else ("", None))
    by_value = target.feed.kind is FeedKind.TOPIC
    place = f"pipelines.{pipeline.id}.target.key"
    key = tuple(
        _key_part(place, column, columns, target.collection, config, problems, by_value=by_value) for column in target.key
    )
    if problems:
        raise ConfigError(problems)
    feed = replace(
        target.feed,
        placeholder=config.get("unavailable.value.placeholder", target.feed.placeholder),
        full_before=dataset.replica_identity == "f",
    )
    return replace(pipeline, target=replace(target, key=key, feed=feed, wires=tuple(wires)))


def joined(pipeline: PipelineSpec, tables: Sequence[PipelineSpec]) -> PipelineSpec:
    """Return the pipeline of several tables, each of which was resolved by itself: one mapping, and every table's encodings.

    Args:
        pipeline: As configured.
        tables: What :meth:`PipelineSpec.by_table` returned, resolved.

    Raises:
        ConfigError: A field has not the same type in all of them, and names every such field; or too many may be left out.
    """
    if not pipeline.source.tables:
        return tables[0]
    columns = list(zip(*(one.fields for one in tables), strict=True))
    problems = [problem for column in columns if (problem := _of_several_types(pipeline, column, tables)) is not None]
    of_where = list(zip(*(one.source.where_fields for one in tables), strict=True))
    problems += [problem for column in of_where if (problem := _of_several_types(pipeline, column, tables, "source.where"))]
    if problems:
        raise ConfigError(problems)
    maskable = [any(spec.maskable for spec in column) for column in columns]
    fields = [tuple(replace(spec, maskable=may) for spec, may in zip(one.fields, maskable, strict=True)) for one in tables]
    if problems := _too_many_maskable(pipeline.id, fields[0]):
        raise ConfigError(problems)
    found = tuple(
        replace(known, feed=one.source.feed, key=one.source.key, fields=own, where_fields=one.source.where_fields)
        for known, one, own in zip(pipeline.source.tables, tables, fields, strict=True)
    )
    feed = replace(pipeline.source.feed, placeholder=tables[0].source.feed.placeholder)
    first = tables[0].source
    source = replace(pipeline.source, key=first.key, feed=feed, tables=found, where_fields=first.where_fields)
    return replace(pipeline, fields=fields[0], source=source)


def _too_many_maskable(pipeline: str, fields: Sequence[FieldSpec]) -> list[ConfigProblem]:
    """Return what is wrong where more fields have a digest of their own than a write's state holds."""
    count = sum(spec.maskable and spec.tolerance is None for spec in fields)
    if count <= MASKABLE_MAX:
        return []
    return [
        ConfigProblem(
            f"pipelines.{pipeline}.fields",
            f"The source's events may leave out {count} of these fields (unchanged TOAST); {MASKABLE_MAX} are the most.",
            remedy="Set REPLICA IDENTITY FULL on the table, or map fewer of its fields by one pipeline.",
        )
    ]


def _of_several_types(
    pipeline: PipelineSpec, column: Sequence[FieldSpec], tables: Sequence[PipelineSpec], place: str = ""
) -> ConfigProblem | None:
    """Return what is wrong where a field is compared differently from table to table."""
    meant = [(spec.type, spec.wire == "float32", spec.wire if spec.type is FieldType.ARRAY else "") for spec in column]
    for number, one in enumerate(meant):
        if one != meant[0]:
            return ConfigProblem(
                f"pipelines.{pipeline.id}.{place or f'fields.{column[0].target}'}",
                f"Column {column[0].source} has not the same type in {tables[0].source.table} and {tables[number].source.table}.",
                remedy="Declare the field's type, or watch the tables by pipelines of their own.",
            )
    return None


def _post_images(pipeline: PipelineSpec, dataset: Dataset, config: Mapping[str, str]) -> bool:
    if pipeline.source.feed.kind is FeedKind.DEBEZIUM:
        return dataset.post_images and config.get("capture.mode.full.update.type") == "post_image"
    return dataset.post_images


def _field(
    pipeline: PipelineSpec,
    spec: FieldSpec,
    columns: Mapping[str, Column],
    dataset: Dataset,
    config: Mapping[str, str],
    problems: list[ConfigProblem],
) -> FieldSpec:
    if not columns:
        return replace(spec, maskable=False)
    place = f"pipelines.{pipeline.id}.fields.{spec.target}"
    column = columns.get(spec.source)
    if column is None:
        problems.append(_no_column(place, spec.source, pipeline.source.table))
        return spec
    found = encoding_of(column, config)
    if spec.type is FieldType.INFERRED and (found is None or not found.certain):
        problems.append(
            ConfigProblem(
                place,
                f"The type of column {spec.source} ({column.type_name}) has no single meaning on both sides.",
                remedy="Declare it: `type: text`, `decimal`, `json` …, or leave the field out.",
            )
        )
        return spec
    whole = dataset.replica_identity == "f" or pipeline.source.feed.kind is FeedKind.TOPIC
    maskable = column.storage in TOASTABLE and not whole
    if found is None:
        return replace(spec, maskable=maskable)
    kind = found.type if spec.type is FieldType.INFERRED else spec.type
    wire = "text" if kind is FieldType.JSON and found.type is FieldType.TEXT else found.wire  # no column of JSON: its text
    return replace(spec, type=kind, maskable=maskable, wire=spec.wire or wire, wire_scale=_scale(spec, found))


def _where_field(
    pipeline: PipelineSpec,
    path: str,
    columns: Mapping[str, Column],
    config: Mapping[str, str],
    problems: list[ConfigProblem],
) -> FieldSpec:
    """Return what a column of the source's condition is: by the catalogue, or as it is mapped where there is none."""
    if not columns:
        mapped = next((spec for spec in pipeline.fields if spec.source == path), FieldSpec(target=path, source=path))
        return replace(mapped, target=path, maskable=False)
    spec = FieldSpec(target=path, source=path, maskable=False)
    place = f"pipelines.{pipeline.id}.source.where"
    column = columns.get(path)
    if column is None:
        problems.append(_no_column(place, path, pipeline.source.table))
        return spec
    found = encoding_of(column, config)
    if found is not None:
        return replace(spec, type=found.type, wire=found.wire, wire_scale=found.scale)
    if any(clause.path == path and clause.constants for clause in parse(pipeline.source.where)):
        said = f"Column {path} ({column.type_name}) can only be asked for null."
        problems.append(ConfigProblem(place, said, remedy="Compare another column, or ask for null."))
    return spec


def _scale(spec: FieldSpec | KeyColumn, found: Encoding) -> int | None:
    return found.scale if spec.wire_scale is None else spec.wire_scale


def _key_column(
    pipeline: PipelineSpec,
    column: KeyColumn,
    columns: Mapping[str, Column],
    config: Mapping[str, str],
    problems: list[ConfigProblem],
) -> KeyColumn:
    if not columns:
        return column
    place, by_value = f"pipelines.{pipeline.id}.source.key", pipeline.source.feed.kind is FeedKind.TOPIC
    return _key_part(place, column, columns, pipeline.source.table, config, problems, by_value=by_value)


def _key_part(
    place: str,
    column: KeyColumn,
    columns: Mapping[str, Column],
    table: str,
    config: Mapping[str, str],
    problems: list[ConfigProblem],
    *,
    by_value: bool,
) -> KeyColumn:
    """Return a part of a key with how its feed encodes it; `by_value`: a plain topic, which encodes nothing."""
    info = columns.get(column.path)
    if info is None:
        problems.append(_no_column(place, column.path, table))
        return column
    found = None if by_value else encoding_of(info, config)
    return column if found is None else replace(column, wire=column.wire or found.wire, wire_scale=_scale(column, found))


def _no_column(place: str, name: str, table: str) -> ConfigProblem:
    return ConfigProblem(place, f"Column {name} is not in {table}.", remedy="Correct the name, or remove the field.")


def encoding_of(column: Column, config: Mapping[str, str]) -> Encoding | None:
    """Return what a Postgres column is and how Debezium's connector writes it; None where a person has to say."""
    found = _TYPE.fullmatch(column.type_name.strip())
    if found is None:  # as geometry(Point,4326)
        return None if _not_inferred(column.type_name.partition("(")[0]) else Encoding(FieldType.TEXT)
    arguments = [int(item) for item in (found["arguments"] or "").split(",") if item.strip()]
    name = f"{found['name']}{found['rest'] or ''}".strip().lower()
    element = _scalar(name, arguments, column, config)
    if element is None or not found["array"]:
        return element
    if name not in _IN_ARRAYS and name not in _TEMPORAL:
        return None  # a driver shows the whole array of an enum or an extension's type as one text
    return Encoding(FieldType.ARRAY, f"items:{element.type.value}:{element.wire}", element.scale)


def _not_inferred(name: str) -> bool:
    """Whether a type has to be declared, in whichever schema its extension lies."""
    return name.strip().lower().rpartition(".")[2] in _NOT_INFERRED


def _scalar(name: str, arguments: Sequence[int], column: Column, config: Mapping[str, str]) -> Encoding | None:
    if _not_inferred(name):
        return None
    if name in ("numeric", "decimal"):
        return _numeric(arguments, column, config)
    if name == "real":
        return Encoding(FieldType.FLOAT, "float32")
    if name in ("json", "jsonb"):
        return Encoding(FieldType.JSON, "json_text")
    if name == "bytea":
        return Encoding(FieldType.BYTES, _BINARY_WIRE.get(config.get("binary.handling.mode", "bytes"), "base64"))
    if name in ("bit", "bit varying"):
        return Encoding(FieldType.TEXT, "bits", arguments[0] if arguments else 1, certain=name == "bit")
    if name == "date":
        return Encoding(FieldType.DATE, "iso" if config.get("time.precision.mode") == "isostring" else "epoch_days")
    if name in _TEMPORAL:
        return _temporal(name, arguments, config)
    return Encoding(_PLAIN.get(name, FieldType.TEXT))  # anything else is an enum or a domain: both sides show its text


def _numeric(arguments: Sequence[int], column: Column, config: Mapping[str, str]) -> Encoding:
    mode = config.get("decimal.handling.mode", "precise")
    if mode != "precise":
        return Encoding(FieldType.DECIMAL, "text" if mode == "string" else "")
    if arguments:
        return Encoding(FieldType.DECIMAL, "base64_unscaled", arguments[1] if len(arguments) > 1 else 0)
    if column.scale is not None and column.precision is not None:
        return Encoding(FieldType.DECIMAL, "base64_unscaled", column.scale)
    return Encoding(FieldType.DECIMAL, "variable_scale")


def _temporal(name: str, arguments: Sequence[int], config: Mapping[str, str]) -> Encoding:
    mode = config.get("time.precision.mode", "adaptive")
    fine = not arguments or arguments[0] > 3  # Debezium's adaptive modes: three digits fit milliseconds
    if name.startswith("timestamp"):
        wire = _TIMESTAMP_WIRE.get(mode) or ("epoch_us" if fine or mode == "microseconds" else "epoch_ms")
        return Encoding(FieldType.TIMESTAMP, "iso" if name in _ZONED else wire)
    wire = _TIME_WIRE.get(mode) or ("time_us" if fine or mode != "adaptive" else "time_ms")
    return Encoding(FieldType.TIME, "iso" if name in _ZONED else wire)
