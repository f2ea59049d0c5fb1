"""Events of an earlier mapping, which the log still holds after a restart with a field tolerated more or less."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec
import pytest

from gapwatch.model.pipeline import FieldSpec, FieldType
from gapwatch.model.stream import FORMAT, Batch, Side
from gapwatch.model.suspect import Reason
from tests.simulation.bench import Bench, only
from tests.simulation.world import GRACE_MS, MAPPING, pipeline

LATE = GRACE_MS + 1


def tolerating(count: int) -> Bench:
    """Return a matcher whose mapping tolerates a difference in so many fields."""
    fields = (FieldSpec(target=f"f{number}", source=f"f{number}", tolerance=Decimal("0.1")) for number in range(count))
    plain = FieldSpec(target="v", source="v", type=FieldType.INT, maskable=False)
    return Bench(pipeline(fields=(plain, *fields)))


def shows(bench: Bench, side: Side, at: int, values: tuple[str | None, ...]) -> Any:
    section = msgspec.structs.replace(bench.section(side, 1, at), mapping=MAPPING + 1, values=[values])
    return bench.apply(Batch(FORMAT, [section], []))


@pytest.mark.parametrize("today", [0, 1, 3])
def test_what_an_earlier_mapping_tolerated_is_right_only_where_it_is_the_same(today: int) -> None:
    """Another number of values than today's ended match, again and again; and where today tolerates none, none counted."""
    bench = tolerating(today)
    shows(bench, Side.EXPECTED, 100, ("1.5", "2"))
    shows(bench, Side.OBSERVED, 110, ("1.5", "7"))
    assert only(bench.streams(100 + LATE)).reason == Reason.UNSATISFIED
    shows(bench, Side.OBSERVED, 200 + LATE, ("1.5", "2"))
    assert bench.unsettled is None
    assert bench.status.counters.settled == 1


def test_one_write_with_values_and_one_without_are_not_the_same() -> None:
    bench = tolerating(0)
    bench.expect(1, 100)
    section = msgspec.structs.replace(bench.section(Side.OBSERVED, 1, 110), values=[("1.5",)])
    bench.apply(Batch(FORMAT, [section], []))
    assert only(bench.streams(100 + LATE)).reason == Reason.UNSATISFIED
