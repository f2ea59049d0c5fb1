"""Which hot path is chosen, with modules made up for the purpose."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, cast

import pytest

from gapwatch import native
from gapwatch.core.envelopes import INTERFACE, BatchDecoder, EventColumns, decoder_for, heartbeat_row
from gapwatch.core.envelopes.change_stream import WATERMARK
from gapwatch.core.envelopes.columns import Refused, Shape
from gapwatch.core.mapping import CompiledMapping
from gapwatch.errors import ConfigError, RecordError
from gapwatch.model.pipeline import FieldType, Match
from gapwatch.model.stream import Side
from tests.property.test_compiled import Told
from tests.unit.core.samples import change, field, pipeline, record


def module(interface: object = INTERFACE) -> ModuleType:
    made: Any = ModuleType(native.MODULE)
    made.INTERFACE = interface
    made.__version__ = "1.2.3"
    return made  # type: ignore[no-any-return]


def raising(error: ImportError) -> Callable[[str], ModuleType]:
    def load(name: str) -> ModuleType:
        raise error

    return load


def test_a_module_that_fits_is_used() -> None:
    made = module()
    found = native.find({}, lambda name: made)
    assert (found.module, found.name, found.reason, found.misfit) == (made, "native", "gapwatch_native 1.2.3", False)


def test_without_a_module_python_is_used_and_nobody_is_warned() -> None:
    found = native.find({}, raising(ModuleNotFoundError(name=native.MODULE)))
    assert (found.module, found.name, found.reason, found.misfit) == (None, "python", "gapwatch_native is not installed", False)


def test_a_module_of_another_interface_is_not_used_and_said_to_be_a_misfit() -> None:
    for other in (INTERFACE + 1, None):
        found = native.find({}, lambda name, other=other: module(other))  # type: ignore[misc]
        assert (found.module, found.misfit) == (None, True)
        assert f"interface {other}, not {INTERFACE}" in found.reason


def test_a_module_that_cannot_be_loaded_is_a_misfit() -> None:
    found = native.find({}, raising(ImportError("undefined symbol")))
    assert (found.module, found.misfit) == (None, True)
    assert "undefined symbol" in found.reason


def test_the_switch_turns_it_off_without_looking_for_it() -> None:
    found = native.find({native.SWITCH: "0"}, raising(ImportError("not to be asked")))
    assert (found.module, found.reason, found.misfit) == (None, "GAPWATCH_NATIVE=0", False)


@pytest.mark.parametrize(("value", "said"), [("yes", "neither 0 nor 1"), ("1", "make native")])
def test_a_switch_that_cannot_be_followed_says_what_to_do(value: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        native.find({native.SWITCH: value}, raising(ModuleNotFoundError(name=native.MODULE)))


def test_the_module_is_looked_for_by_default() -> None:
    assert native.find.__defaults__ == (importlib.import_module,)


class Declining:
    """A module that reads nothing, and notes what it was shown."""

    INTERFACE = INTERFACE
    Run = type("Run", (), {})

    def Columns(self, *shape: bool) -> EventColumns:  # noqa: N802 - as the module's class
        return EventColumns(Shape(**dict(zip(("masks", "values", "versions", "target_ids"), shape, strict=True))))

    def __init__(self) -> None:
        self.plans: list[dict[str, Any]] = []
        self.offsets: list[int | None] = []

    def Loop(self, plan: dict[str, Any], /) -> Any:  # noqa: N802 - as the module's class
        self.plans.append(plan)
        return self

    def read(self, messages: Any, values: Any, keys: Any, offsets: Any, stamps: Any, out: Any, declined: Any) -> int:
        self.offsets += offsets
        declined(messages)
        return 0


def decoded(native_module: Any, **options: Any) -> Any:
    spec = pipeline(field("name", FieldType.TEXT), field("total", FieldType.DECIMAL, scale=2, wire="text"), **options)
    decoder = BatchDecoder(decoder_for(spec, Side.EXPECTED, CompiledMapping(spec), native_module))
    row = {"id": 1, "name": "a", "total": "1.50"}
    return decoder.decode(
        [Told(record(change("c", after={**row, "id": number}), key={"id": number}, offset=number)) for number in range(3)]
    )


def test_what_the_module_declines_the_twin_reads() -> None:
    declining = Declining()
    columns = decoded(declining)
    assert columns.all() == decoded(None).all()
    assert len(columns) == len(declining.offsets) == 3
    assert [plan["names"] for plan in declining.plans] == [[b"name", b"total"]]


def test_a_pipeline_that_no_module_can_read_is_not_shown_to_it() -> None:
    declining = Declining()
    decoded(declining, match=Match.VERSION)
    assert declining.plans == []


@pytest.mark.parametrize(
    "number", [1 << 63, -(1 << 63) - 1, 99_999_999_999_999_999_999, 253_402_300_800_000, -62_135_596_800_001]
)
@pytest.mark.parametrize("native_module", [None, "declining"])
@pytest.mark.parametrize("what", ["time", "version"])
def test_a6_a_number_that_cannot_be_kept_is_a_dead_letter_and_the_others_come_through(
    number: int, native_module: str | None, what: str
) -> None:
    """It ended the role, which met the same record again after each start: no pipeline of the process went on."""
    versioned: dict[str, Any] = {"match": Match.VERSION, "version": "v"}
    spec = pipeline(field("name", FieldType.TEXT), **(versioned if what == "version" else {}))
    module: Any = Declining() if native_module else None
    decoder = BatchDecoder(decoder_for(spec, Side.EXPECTED, CompiledMapping(spec), module))
    told = [change("c", after={"id": offset, "name": "a", "v": 1}) for offset in range(4)]
    if what == "time":
        told[2]["source"]["ts_ms"] = number
    else:
        told[2]["after"]["v"] = number
    columns = decoder.decode([Told(record(value, key={"id": at}, offset=at)) for at, value in enumerate(told)])
    kept = what == "version" and -(1 << 63) <= number < 1 << 63
    assert list(columns.offsets) == [0, 1, 2, 3] if kept else [0, 1, 3]
    refused = [(offset, cast(Refused, item).error.reason) for offset, item in columns.others]
    assert refused == ([] if kept else [(2, "out_of_range")])


def test_a6_a_truncation_a_marker_or_a_heartbeat_at_a_time_that_cannot_be_kept_is_refused() -> None:
    """Neither a finding nor a watermark can hold it: it ended the role as well, or put the watermark beyond all writes."""
    spec = pipeline(field("name", FieldType.TEXT))
    truncated = change("t")
    truncated["source"]["ts_ms"] = 99_999_999_999_999_999_999
    marker = record(None, headers={WATERMARK: "999999999999999999"})
    for side, one in ((Side.EXPECTED, record(truncated)), (Side.OBSERVED, marker)):
        columns = BatchDecoder(decoder_for(spec, side, CompiledMapping(spec))).decode([Told(one)])
        assert [cast(Refused, item).error.reason for _, item in columns.others] == ["out_of_range"]
    beat = change("u", after={"id": 1})
    beat["source"]["ts_ms"] = 999_999_999_999_999_999
    with pytest.raises(RecordError, match="beyond what there can be"):
        heartbeat_row(record(beat))
