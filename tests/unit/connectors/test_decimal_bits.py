"""A Decimal128 is read by its bits as the driver reads it digit by digit."""

from __future__ import annotations

from decimal import Decimal

import pytest
from bson import Decimal128
from hypothesis import given
from hypothesis import strategies as st

from gapwatch.core.canonical import read_number
from gapwatch.core.decimal128 import decimal_of


@given(bid=st.binary(min_size=16, max_size=16))
def test_any_bits_are_the_number_that_the_driver_makes_of_them(bid: bytes) -> None:
    value = Decimal128.from_bid(bid)
    expected = value.to_decimal()
    by_bits = decimal_of(bid)
    if by_bits is not None:
        assert by_bits.as_tuple() == expected.as_tuple()
    found = read_number(value)
    if expected.is_finite():
        assert isinstance(found, Decimal)
        assert found.as_tuple() == expected.as_tuple()
    else:
        assert found in ("NaN", "Infinity", "-Infinity")


@pytest.mark.parametrize("text", ["0", "-0", "-0.00", "9" * 34, "-1E-6176", "9.99E+6144", "1.50", "0.000001"])
def test_usual_numbers_are_read_by_their_bits(text: str) -> None:
    by_bits = decimal_of(Decimal128(text).bid)
    assert by_bits is not None
    assert by_bits.as_tuple() == Decimal128(text).to_decimal().as_tuple()


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "sNaN"])
def test_what_is_no_number_has_no_bits_of_one(text: str) -> None:
    assert decimal_of(Decimal128(text).bid) is None
