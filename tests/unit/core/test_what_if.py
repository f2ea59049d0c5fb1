"""What a what-if changes, it changes everywhere; what it cannot change is refused."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from gapwatch.core.mapping import CompiledMapping
from gapwatch.core.replay import as_asked
from gapwatch.errors import UsageError
from gapwatch.model.pipeline import FeedKind, FeedSpec, FieldType, Match, SourceTable
from tests.unit.core.samples import field, pipeline

SPEC = pipeline(field("v", FieldType.INT), field("w", FieldType.INT))
WANTED = {"v": Decimal(1)}


def test_j3_a_tolerance_is_tried_in_every_table_of_the_source() -> None:
    """Else the source's digests would hold the field and the target's would not: every write would be called open."""
    tables = tuple(
        SourceTable(
            table=f"public.{name}",
            feed=FeedSpec(kind=FeedKind.DEBEZIUM, topic=f"shop.public.{name}"),
            key=SPEC.source.key,
            fields=SPEC.fields,
        )
        for name in ("eu", "us")
    )
    several = replace(SPEC, source=replace(SPEC.source, table="", tables=tables))
    asked = as_asked(several, tolerances=WANTED, recompiled=True)
    mappings = [CompiledMapping(one) for one in (asked, *asked.by_table())]
    assert [mapping.tolerances for mapping in mappings] == 3 * [(Decimal(1),)]
    assert len({mapping.fingerprint for mapping in mappings}) == 1
    assert as_asked(several) == several


@pytest.mark.parametrize("match", [Match.VERSION, Match.PRESENCE])
def test_a_tolerance_of_what_is_not_compared_is_refused(match: Match) -> None:
    with pytest.raises(UsageError, match=f"matches by {match.value}: no field is compared"):
        as_asked(replace(SPEC, match=match), tolerances=WANTED, recompiled=True)
