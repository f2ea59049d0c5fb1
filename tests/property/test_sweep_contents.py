"""Whatever a page of rows or documents holds: its contents, computed by columns, are those of each record by itself."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gapwatch.core.canonical_records import MANY, canonical_records
from gapwatch.core.column_parts import Handed, Moments
from gapwatch.core.mapping import Canonical, CompiledMapping
from gapwatch.core.sweep_contents import PageContents
from gapwatch.core.sweep_sets import digests
from gapwatch.core.values import MISSING, Instant, JsonText, ObjectIdValue, Other
from gapwatch.errors import RecordError
from gapwatch.model.pipeline import FieldSpec, FieldType, Rounding
from gapwatch.model.stream import Side
from tests.unit.core.samples import field, pipeline

PLACEHOLDER = "__debezium_unavailable_value"
NUMERALS = st.from_regex(r"[+-]?[0-9]{0,22}(\.[0-9]{0,5})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)
ODD_TEXTS = (
    st.sampled_from([PLACEHOLDER, "", "NaN", "-inf", "infinity", "٣.٥", "1.٥", "0", "-0", "00", "1.", ".5", "10", "1e5"])
    | st.sampled_from(["9" * 300, "9" * 1_200, "1.50", "true", "F", "\ud800", "é" * 700, "x" * 1_100, "\0"])
    | st.sampled_from(["2026-01-02T03:04:05.678901Z", "2026-01-02 03:04:05+02", "0" * 24])
)
ISO = st.builds(
    "{}{}{}".format,
    st.datetimes(max_value=datetime(9998, 1, 1)).map(lambda at: at.replace(microsecond=0).isoformat())  # noqa: DTZ001
    | st.sampled_from(["2026-01-02T03:04:05", "2026-02-30T03:04:05", "٢٠٢٦-01-02T03:04:05"]),
    st.from_regex(r"(\.[0-9]{0,7})?", fullmatch=True),
    st.sampled_from(["Z", "Z", "", "+00:00", "-05:30"]),
)
TEXTS = st.text(st.characters(exclude_categories=()), max_size=12) | NUMERALS | ISO | ODD_TEXTS
WHOLE = (
    st.integers(-1_200, 1_200)
    | st.integers(-(2**80), 2**80)
    | st.sampled_from([2**53, 2**63 - 1, -(2**63), 10**18, -(10**18), 10**4_400])
)
FRACTIONS = st.floats() | st.sampled_from([-0.0, 1e16, 1e22, 1e23, 5e-324, 1.5, 0.05, 123.25, 100.0])
DECIMALS = (
    st.decimals()
    | st.decimals(allow_nan=False, allow_infinity=False, places=3)
    | st.sampled_from(
        [
            Decimal("-0"),
            Decimal("-0.00"),
            Decimal("1E+400"),
            Decimal("1E-400"),
            Decimal("sNaN"),
            Decimal("NaN12"),
            Decimal("1.50"),
        ]
    )
)
ZONES = st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30)), ZoneInfo("Europe/Berlin")])
MOMENTS = (
    st.datetimes()
    | st.datetimes(min_value=datetime(2, 1, 1), max_value=datetime(9998, 1, 1), timezones=ZONES)  # noqa: DTZ001
    | st.builds(Instant, st.integers(-(10**20), 10**20), st.sampled_from([1, 1_000, 1_000_000]))
)
OTHERS = (
    st.dates()
    | st.times()
    | st.timedeltas()
    | st.uuids()
    | st.binary(max_size=20)
    | st.binary(min_size=12, max_size=12)
    | st.binary(min_size=16, max_size=16)
    | st.builds(ObjectIdValue, st.binary(min_size=12, max_size=12))
    | st.builds(JsonText, st.sampled_from(['{"b": 1.0, "a": [null, 1e2]}', "not json", '"text"', "1"]))
    | st.just(Other("regex", "a/i"))
    | st.lists(st.integers(0, 3) | st.text(max_size=2) | st.none(), max_size=4)
    | st.dictionaries(st.text(max_size=2), st.integers() | st.text(max_size=2) | st.datetimes(), max_size=3)
)
ANY = st.one_of(st.none(), st.just(MISSING), st.booleans(), WHOLE, FRACTIONS, DECIMALS, TEXTS, MOMENTS, OTHERS)
KINDS = (
    ISO,
    st.booleans(),
    WHOLE,
    FRACTIONS,
    DECIMALS,
    TEXTS,
    MOMENTS,
    st.datetimes(),
    st.dates(),
    st.uuids(),
    st.binary(max_size=18),
    ANY,
)


@st.composite
def specs(draw: st.DrawFn, name: str) -> FieldSpec:
    kind = draw(st.sampled_from(list(FieldType)))
    numeric = kind in (FieldType.INT, FieldType.DECIMAL, FieldType.FLOAT)
    return field(
        name,
        kind,
        scale=draw(st.sampled_from([None, None, 0, 1, 2, 3, 5, -2])),
        digits=draw(st.sampled_from([None, None, 6])),
        precision=draw(st.sampled_from(["ms", "us", "s"])),
        rounding=draw(st.sampled_from(list(Rounding))),
        timezone=draw(st.sampled_from(["UTC", "Z", "Europe/Berlin"])),
        tolerance=draw(st.sampled_from([None, None, Decimal("0.5")])) if numeric else None,
        multiset=draw(st.booleans()),
        absent_is_null=draw(st.booleans()),
        nfc=draw(st.booleans()),
        maskable=draw(st.booleans()),
        wire=draw(
            st.sampled_from(
                ["", "", "text", "epoch_us", "epoch_s", "epoch_days", "float32", "base64", "hex", "bits", "iso", "time_ms"]
            )
        ),
    )


@st.composite
def pages(draw: st.DrawFn) -> tuple[CompiledMapping, list[dict[str, Any]]]:
    names = draw(st.lists(st.sampled_from(["a", "b", "c", "d.e", "d.f"]), min_size=1, max_size=4, unique=True))
    fields = [draw(specs(name)) for name in names]
    count = draw(st.integers(1, 8))
    columns = []
    for _ in names:
        values = draw(st.sampled_from(KINDS))
        if draw(st.booleans()):
            values = values | st.none()
        columns.append(draw(st.lists(values, min_size=count, max_size=count)))
    nested = draw(st.booleans())
    return CompiledMapping(pipeline(*fields)), [_document(names, row, nested=nested) for row in zip(*columns, strict=True)]


def _document(names: Sequence[str], values: Sequence[Any], *, nested: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in zip(names, values, strict=True):
        if value is MISSING:
            continue
        outer, _, inner = name.partition(".")
        if inner and nested:
            found.setdefault(outer, {})[inner] = value
        else:
            found[name] = value
    return found


def form_of(mapping: CompiledMapping, side: Side, document: dict[str, Any]) -> Canonical:
    return mapping.canonical_source(document) if side is Side.EXPECTED else mapping.canonical_target(document)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("options", [{}, {"maskable": True}, {"tolerance": Decimal("0.1")}], ids=["fixed", "mask", "value"])
def test_a_value_without_a_canonical_form_equals_nothing_on_the_other_side(options: dict[str, Any]) -> None:
    """It is nested too deep; its neighbours are compared as ever, and it is read by key, where its reason is said."""
    kind = FieldType.DECIMAL if "tolerance" in options else FieldType.JSON
    mapping = CompiledMapping(pipeline(field("a", kind, **options), field("b")))
    documents = [{"a": 1, "b": "x"}, {"a": nested(250), "b": "y"}, {"a": 2, "b": "z"}]
    found = []
    for side in Side:
        with pytest.raises(RecordError, match="nested deeper"):
            form_of(mapping, side, documents[1])
        contents = PageContents(mapping, side)
        found.append(contents.contents(contents.columns(documents), len(documents)).tolist())
        beside = [documents[0], documents[2]]
        assert [found[-1][0], found[-1][2]] == contents.contents(contents.columns(beside), 2).tolist()
    assert [one == other for one, other in zip(*found, strict=True)] == [True, False, True]
    if "tolerance" in options:
        assert not mapping.values_agree(found[0][1][1], found[1][1][1])


@pytest.mark.parametrize("count", [2, 2 * MANY])
def test_a_record_without_a_canonical_form_takes_no_other_one_with_it(count: int) -> None:
    mapping = CompiledMapping(pipeline(field("a", FieldType.JSON)))
    documents = [{"a": number} for number in range(count)]
    documents[1] = {"a": nested(250)}
    found = canonical_records(mapping, Side.EXPECTED)(documents)
    assert isinstance(found[1], RecordError)
    assert [one for at, one in enumerate(found) if at != 1] == [
        mapping.canonical_source(document) for at, document in enumerate(documents) if at != 1
    ]


@given(pages(), st.sampled_from(list(Side)))
def test_contents_of_a_page_are_those_of_its_records(page: tuple[CompiledMapping, list[dict[str, Any]]], side: Side) -> None:
    mapping, documents = page
    contents = PageContents(mapping, side)
    try:
        alone = [form_of(mapping, side, document) for document in documents]
    except (ValueError, TypeError, ArithmeticError) as error:
        with pytest.raises(type(error)):
            contents.contents(contents.columns(documents), len(documents))
        return
    found = contents.contents(contents.columns(documents), len(documents))
    if mapping.tolerances:
        assert found.tolist() == [(one.identity, one.values) for one in alone]
    else:
        assert found.tobytes() == digests([one.identity for one in alone]).tobytes()


@given(pages(), st.sampled_from(list(Side)))
def test_many_records_become_canonical_as_each_of_them(page: tuple[CompiledMapping, list[dict[str, Any]]], side: Side) -> None:
    mapping, documents = page
    many = documents * MANY
    try:
        alone = [form_of(mapping, side, document) for document in documents] * MANY
    except (ValueError, TypeError, ArithmeticError) as error:
        with pytest.raises(type(error)):
            canonical_records(mapping, side)(many)
        return
    assert canonical_records(mapping, side)(many) == alone
    assert canonical_records(mapping, side)(documents) == alone[: len(documents)]


EPOCH_2000 = 946_684_800_000_000
MICROS = st.integers(-(2**63), 2**63 - 1) | st.integers(-(10**15), 10**15) | st.sampled_from([2**63 - 1, -(2**63), 0])


def usual_moment(micros: int) -> Any:
    if abs(micros) >= 2**63 - 1:
        return "infinity" if micros > 0 else "-infinity"
    return Instant(micros + EPOCH_2000, 1_000_000)


@given(
    st.lists(MICROS | st.none(), min_size=1, max_size=8),
    st.sampled_from(["s", "ms", "us"]),
    st.sampled_from(list(Rounding)),
    st.booleans(),
)
def test_moments_that_come_as_numbers_are_those_that_they_stand_for(
    column: list[int | None], precision: str, rounding: Rounding, maskable: bool
) -> None:
    mapping = CompiledMapping(
        pipeline(field("at", FieldType.TIMESTAMP, precision=precision, rounding=rounding, maskable=maskable))
    )
    handed = Handed(usual=usual_moment, moments=Moments(per_second=1_000_000, offset=EPOCH_2000))
    contents = PageContents(mapping, Side.EXPECTED, handed=[handed])
    usually = [mapping.canonical_source({"at": None if one is None else usual_moment(one)}).identity for one in column]
    assert contents.contents([column], len(column)).tobytes() == digests(usually).tobytes()


@given(st.lists(st.integers(-(2**31), 2**31 - 1) | st.none(), min_size=1, max_size=8))
def test_dates_that_come_as_numbers_are_those_that_they_stand_for(column: list[int | None]) -> None:
    mapping = CompiledMapping(pipeline(field("on", FieldType.DATE)))
    contents = PageContents(mapping, Side.EXPECTED, handed=[Handed(usual=lambda days: days + 10_957, days=10_957)])
    usually = [mapping.canonical_source({"on": None if one is None else one + 10_957}).identity for one in column]
    assert contents.contents([column], len(column)).tobytes() == digests(usually).tobytes()


@given(st.lists(st.dates() | st.none(), min_size=1, max_size=8))
def test_a_column_is_handed_over_as_its_store_likes(column: list[date | None]) -> None:
    """Values that only stand for others are never read as what they look like."""
    mapping = CompiledMapping(pipeline(field("a", FieldType.TEXT), field("b", FieldType.DECIMAL), field("c", FieldType.TIME)))
    handed = [Handed(usual=len), Handed(usual=date.fromisoformat), Handed(usual=time.fromisoformat)]
    texts = [None if one is None else one.isoformat() for one in column]
    times = [None if one is None else "12:30:01" for one in column]
    contents = PageContents(mapping, Side.EXPECTED, handed=handed)
    usually = [
        mapping.canonical_source(
            {
                "a": None if text is None else len(text),
                "b": None if text is None else date.fromisoformat(text),
                "c": None if clock is None else time.fromisoformat(clock),
            }
        ).identity
        for text, clock in zip(texts, times, strict=True)
    ]
    assert contents.contents([texts, texts, times], len(column)).tobytes() == digests(usually).tobytes()


def test_an_empty_page_has_no_contents() -> None:
    mapping = CompiledMapping(pipeline(field("a")))
    assert len(PageContents(mapping, Side.EXPECTED).contents([[]], 0)) == 0
