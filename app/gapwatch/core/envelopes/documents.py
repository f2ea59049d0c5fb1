"""Events whose content is a document (or a plain row): what Debezium for MongoDB, our reader and plain topics have in common."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

from gapwatch.core.canonical import generic
from gapwatch.core.envelopes.columns import Shape
from gapwatch.core.envelopes.records import Event
from gapwatch.core.mapping import CompiledMapping, SideMapping
from gapwatch.core.values import MISSING, ObjectIdValue
from gapwatch.errors import RecordError
from gapwatch.model.pipeline import Match
from gapwatch.model.stream import Operation, Side

WITH_CONTENT: Final = frozenset({Operation.UPSERT, Operation.SNAPSHOT, Operation.LOOKED_UP})


class DocumentEvents:
    """Builds events of one side from documents."""

    def __init__(self, mapping: CompiledMapping, side: Side) -> None:
        self.mapping = mapping
        self.side: SideMapping = mapping.side(side)
        roots = {column.path.split(".")[0] for column in self.side.codec.columns}
        self.keyed_by_id = roots == {"_id"}
        whole = all(re.fullmatch(r"_id(\.[^.]+)?", column.path) for column in self.side.codec.columns)  # other fields do not fit
        self.names_targets = side is Side.OBSERVED and not whole
        self._needs_version = mapping.pipeline.match is Match.VERSION
        pipeline = mapping.pipeline
        version = pipeline.source.version if side is Side.EXPECTED else pipeline.target.version
        paths = [*self.side.paths, *([version] if version else [])]
        if not self.keyed_by_id:
            paths += [column.path for column in self.side.codec.columns]
        condition = mapping.counting.condition(side)
        self.filtered = condition is not None
        paths += condition.paths if condition is not None else ()
        self.names = frozenset([*paths, *(path.split(".")[0] for path in paths)])  # the members that are read at all
        self.shape = Shape(
            masks=bool(mapping.mask_at), values=bool(mapping.value_at), versions=bool(version), target_ids=self.names_targets
        )

    def events(
        self,
        operation: Operation,
        identifier: Mapping[str, Any],
        document: Mapping[str, Any] | None,
        *,
        major: int,
        minor: int,
        event_time: int,
        created: bool = False,
    ) -> tuple[Event, ...]:
        """Return the event of one write; none of a snapshot's read of what does not count.

        Args:
            operation: What was done.
            identifier: The document key.
            document: None where the content is not known.
            major: The position.
            minor: The position within that.
            event_time: When it was committed.
            created: Whether there was no such document before.

        Raises:
            KeyMisfit: The key is not in either of the two, or does not fit.
        """
        key = self.side.codec.extract(identifier if self.keyed_by_id or document is None else {**identifier, **document})
        target_id = identity_text(identifier.get("_id", MISSING)) if self.names_targets else None
        if self.filtered and document is not None and operation in WITH_CONTENT:
            counts = self.mapping.counting.counts(self.side.side, document)
            told = self.mapping.counting.told(self.side.side, operation, counted=counts, created=created)
            if told is None:
                return ()
            operation = told
        if document is None or operation not in WITH_CONTENT:
            return (Event(key, operation, major, minor, event_time, b"", None, None, None, target_id),)
        content = self.mapping.content(self.side.parts(document))
        version = self.side.version(document)
        if version is None and self._needs_version:
            raise RecordError("version_missing", "The document's version field holds no whole number.")
        digest, masks, values = content.digest, content.masks, content.values
        return (Event(key, operation, major, minor, event_time, digest, masks, values, version, target_id),)


def identity_text(value: Any) -> bytes | None:
    """Return a document id as a person writes it: text, number, UUID, 24 hex digits; None where there is no id."""
    if value is MISSING or value is None:
        return None
    if isinstance(value, str | int | UUID | ObjectIdValue):
        return str(value).encode("utf-8", "surrogatepass")
    return generic(value)
