"""The small language of ``where`` and ``deleted_when``, and what it says of canonical values."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest

from gapwatch.core.canonical import compile_form
from gapwatch.core.conditions import Clause, comparison, holds, keeping, parse, paths_of, type_problem
from gapwatch.core.values import MISSING
from gapwatch.model.pipeline import FieldType
from tests.unit.core.samples import field


def holds_for(text: str, kind: FieldType, value: Any) -> bool:
    (clause,) = parse(text)
    spec = field(clause.path, kind)
    assert type_problem(clause, spec) == ""
    return comparison(clause, spec)(compile_form(spec)(value))


def test_a_condition_is_comparisons_joined_by_and() -> None:
    text = (
        """ status IN ('paid', 'it''s') and "odd name" != -1.5 AND a.b is not null and n >= 10 and gone=true and x not in (1,2)"""
    )
    assert parse(text) == (
        Clause("status", "=", ("paid", "it's")),
        Clause("odd name", "<>", (Decimal("-1.5"),)),
        Clause("a.b", "not null"),
        Clause("n", ">=", (Decimal(10),)),
        Clause("gone", "=", (True,)),
        Clause("x", "<>", (Decimal(1), Decimal(2))),
    )
    assert paths_of("a = 1 and b = 2 and a < 3") == ("a", "b")
    assert paths_of("") == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it ends too early"),
        ("status", "it ends too early"),
        ("status = paid", "'paid' is no constant: text stands in single quotes"),
        ("status = 'paid' or n = 1", "there is no `or`: list the values with `in`"),
        ("status = null", "nothing is compared with null: write `is null` or `is not null`"),
        ("status is 'paid'", "after `is` stands `null` or `not null`"),
        ("status in 'paid'", "after `in` stands a list in parentheses"),
        ("status in ('a' 'b')", "'b' stands in a list where `,` or `)` should"),
        ("status like 'a%'", "'like' is no comparison"),
        ("lower(status) = 'a'", "'(' is no comparison"),
        ("status = 'a' status = 'b'", "'status' stands where `and` should"),
        ("n = 1; drop table orders", "'; drop table orders' cannot be read"),
        ("n = 1a", "'1a' cannot be read"),
        ("'a' = status", "'a' stands where a field should"),
    ],
)
def test_what_is_no_condition_is_named(text: str, said: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(text)
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("text", "kind", "yes", "no"),
    [
        ("f = 'a'", FieldType.TEXT, ["a"], ["b", "", "A", None, MISSING]),
        ("f <> 'a'", FieldType.TEXT, ["b", ""], ["a", None, MISSING]),
        ("f in ('a', 'b')", FieldType.TEXT, ["a", "b"], ["c", None]),
        ("f not in ('a', 'b')", FieldType.TEXT, ["c"], ["a", "b", None]),
        ("f is null", FieldType.TEXT, [None, MISSING], ["", "a"]),
        ("f is not null", FieldType.JSON, [{}, 0], [None, MISSING]),
        ("f = 1", FieldType.DECIMAL, [1, Decimal("1.00"), "1.0"], [2, None]),
        ("f < 10", FieldType.INT, [9, -10], [10, 11, None]),
        ("f <= 1e3", FieldType.DECIMAL, [1000, Decimal("999.99")], [Decimal("1000.01")]),
        ("f > 0.5", FieldType.FLOAT, [0.75, float("inf")], [0.5, float("nan"), None]),
        ("f = true", FieldType.BOOL, [True, "t"], [False, None]),
        (
            "f >= '2026-01-01T00:00:00Z'",
            FieldType.TIMESTAMP,
            [datetime(2026, 1, 1, tzinfo=UTC), "2026-01-01T02:00:00+02:00"],
            [datetime(2025, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC), None],
        ),
        ("f < '2026-01-01'", FieldType.DATE, [date(2025, 12, 31)], [date(2026, 1, 1)]),
        ("f = true", FieldType.INFERRED, [True], ["true", 1, None, MISSING]),
        ("f > 5", FieldType.INFERRED, [6, 5.5, Decimal("5.01")], [5, "6", None, True]),
    ],
)
def test_a_comparison_is_judged_on_the_value_and_null_satisfies_none(
    text: str, kind: FieldType, yes: list[Any], no: list[Any]
) -> None:
    assert [value for value in yes if not holds_for(text, kind, value)] == []
    assert [value for value in no if holds_for(text, kind, value)] == []


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("f = 5", FieldType.TEXT, "5 is not of type text."),
        ("f = 'many'", FieldType.INT, "many is not of type int."),
        ("f < 'a'", FieldType.TEXT, "A field of type text has no order here: `<` compares numbers and times."),
        ("f >= '2026-01-01'", FieldType.INFERRED, "A field of type inferred has no order here: `>=` compares numbers and times."),
        ("f = '{}'", FieldType.JSON, "A field of type json can only be asked for null."),
    ],
)
def test_what_a_type_cannot_be_compared_with_is_named(text: str, kind: FieldType, said: str) -> None:
    (clause,) = parse(text)
    assert type_problem(clause, field("f", kind)) == said


def test_a_masked_field_leaves_open_what_no_other_comparison_denies() -> None:
    tests = [lambda part: part == b"x", lambda part: part == b"y"]
    assert holds(tests, [b"x", b"y"]) is True
    assert holds(tests, [b"x", b"x"]) is False
    assert holds(tests, [b"x", None]) is None
    assert holds(tests, [None, b"x"]) is False


def test_keep_says_how_long_and_from_when() -> None:
    kept = keeping("90d by placed.at")
    assert (kept.seconds, kept.path) == (90 * 86_400, "placed.at")
    assert keeping(" 1.5h by placed ").seconds == 5_400
    for wrong in ("90d", "by placed", "90 by placed", "0s by placed", "90d by"):
        with pytest.raises(ValueError, match="no duration"):
            keeping(wrong)
