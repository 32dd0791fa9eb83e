"""Numbers as whole texts: what is one, its exact value, and what the policies for percent, units and tolerance allow."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.builders import make_sample

from covey.rewards.base import safe_score
from covey.rewards.numeric import Quantity, number_of, numeric, quantity_of, quantity_of_answer
from covey.types import CoveyError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", Fraction(42)),
        ("-42", Fraction(-42)),
        ("1,234,567.25", Fraction(123456725, 100)),
        (".5", Fraction(1, 2)),
        ("1.5e-3", Fraction(3, 2000)),
        ("2 * 10^3", Fraction(2000)),
        (r"2 \cdot 10^{-1}", Fraction(1, 5)),
        ("-3/4", Fraction(-3, 4)),
        ("-1 1/2", Fraction(-3, 2)),
        (r"-2\frac{1}{3}", Fraction(-7, 3)),
        (r"\frac{-1}{3}", Fraction(-1, 3)),
        ("1" * 100, Fraction(int("1" * 100))),
        ("1e400", Fraction(10) ** 400),
    ],
)
def test_a_number_has_its_exact_value(text: str, value: Fraction):
    assert number_of(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "1e401",
        "1e-401",
        "1/0",
        "1,23",
        "12,34",
        "1.2.3",
        "1/2/3",
        "1.5/2",
        "4 2",
        "--4",
        "1 3/2",
        "nan",
        "inf",
        "1" * 101,
        "1e",
        "5 3 m",
        "4!",
        "4^2",
        "(4)",
        "4-2",
    ],
)
def test_what_is_no_number_has_no_value(text: str):
    assert number_of(text) is None


@pytest.mark.parametrize(
    ("text", "quantity"),
    [
        ("5 meters", Quantity(value=Fraction(5), unit="meters")),
        (r"5\text{ m}", Quantity(value=Fraction(5), unit="m")),
        ("5 m/s^2", Quantity(value=Fraction(5), unit="m/s^2")),
        (r"50\%", Quantity(value=Fraction(50), unit="%")),
        ("$5.50", Quantity(value=Fraction(11, 2), unit="$")),
        ("-$5", Quantity(value=Fraction(-5), unit="$")),
        (r"90^\circ", Quantity(value=Fraction(90), unit="\N{DEGREE SIGN}")),
        ("1/2 cup", Quantity(value=Fraction(1, 2), unit="cup")),
    ],
)
def test_a_unit_is_all_that_stands_behind_a_number(text: str, quantity: Quantity):
    assert quantity_of(text) == quantity


@pytest.mark.parametrize("answer", [Fraction(3, 2), Decimal("1.50"), 1.5, "3/2", "1.5", r"\frac{3}{2}", "$1.5$"])
def test_a_key_may_be_any_kind_of_number_or_its_text(answer: Any):
    assert quantity_of_answer(answer) == Quantity(value=Fraction(3, 2))


@pytest.mark.parametrize("answer", [True, float("nan"), Decimal("Infinity"), Decimal("1e999999999"), "many", [1], 1j])
def test_a_key_that_is_no_number_is_an_error_and_never_a_0(answer: Any):
    score = safe_score(numeric(), make_sample("1", answer=answer))
    assert score.value is None
    assert "is no number" in str(score.error)


@pytest.mark.parametrize(
    ("answer", "remedy"), [("50%", "percent = ignore or convert"), ("5 m", "units = optional or required")]
)
def test_a_key_that_needs_a_policy_says_which(answer: str, remedy: str):
    assert remedy in str(safe_score(numeric(), make_sample("50", answer=answer)).error)


@settings(max_examples=200, deadline=None)
@given(value=st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-(10**12), max_value=10**12))
def test_every_way_to_write_a_decimal_is_the_same_number(value: Decimal):
    for text in (f"{value:f}", f"{value:,f}", f"{value:e}", f"{Fraction(value)}", f"  {value:f}0"):
        assert number_of(text) == Fraction(value)


@settings(max_examples=200, deadline=None)
@given(
    key=st.fractions(max_denominator=50),
    given_value=st.fractions(max_denominator=50),
    absolute=st.sampled_from([0.0, 0.1, 2.0]),
    relative=st.sampled_from([0.0, 0.1, 0.5]),
)
def test_a_tolerance_is_the_larger_of_the_two_and_exact(key: Fraction, given_value: Fraction, absolute: float, relative: float):
    reward = numeric(absolute=absolute, relative=relative, whole_exact=False)
    is_close = abs(given_value - key) <= max(Fraction(str(absolute)), Fraction(str(relative)) * abs(key))
    assert reward(make_sample(str(given_value), answer=key)).value == float(is_close)


@given(key=st.integers(-1000, 1000), other=st.integers(-1000, 1000))
def test_no_tolerance_makes_one_whole_number_of_another(key: int, other: int):
    reward = numeric(absolute=5.0, relative=0.5)
    assert reward(make_sample(str(other), answer=key)).value == float(key == other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"absolute": -1.0}, "absolute=-1.0: give a tolerance of 0 or more"),
        ({"absolute": float("inf")}, "absolute=inf"),
        ({"relative": 1.0}, "lets 0 pass for any number"),
        ({"unit_names": ("m",)}, "no effect with units='refuse'"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(CoveyError, match=message):
        numeric(**options)
