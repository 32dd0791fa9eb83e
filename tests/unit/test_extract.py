"""Reading numbers out of text: what counts as one, with which sign, and that no text can break or stall it."""

from __future__ import annotations

import time
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.rewards.extract import MAX_TEXT_CHARACTERS, normalise, numbers_in, without_restatement


def numbers(text: str) -> list[str]:
    return [str(number) for number in numbers_in(normalise(text))]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("21", ["21"]),
        ("The answer is 21.", ["21"]),
        ("21, 22 and 23", ["21", "22", "23"]),
        ("007", ["7"]),
        ("1,234", ["1234"]),
        ("1,234,567.5", ["1234567.5"]),
        ("3.14", ["3.14"]),
        ("21.", ["21"]),
        ("(21)", ["21"]),
        ("**21**", ["21"]),
        ("$21", ["21"]),
        (r"\boxed{21}", ["21"]),
        ("17+4=21", ["17", "4", "21"]),
        ("\N{FULLWIDTH DIGIT TWO}\N{FULLWIDTH DIGIT ONE}", ["21"]),
        ("\N{ARABIC-INDIC DIGIT TWO}\N{ARABIC-INDIC DIGIT ONE}", ["21"]),
        ("", []),
        ("twenty-one", []),
    ],
)
def test_plain_numbers_are_found_in_order(text: str, found: list[str]):
    assert numbers(text) == found


@pytest.mark.parametrize(
    "text", ["21st", "x21", "21x", "0x15", "21e3", "21%", "1,23", "12,3456", "1.2.3", ".5", "21_000", "H\N{SUBSCRIPT TWO}O"]
)
def test_what_only_looks_like_a_number_is_none(text: str):
    assert numbers(text) == []


@pytest.mark.parametrize("text", ["20,21", "19,20,21", "1,2,3,21", "20.5,21"])
def test_a_list_without_spaces_holds_no_plain_number(text: str):
    assert numbers(text) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("-21", ["-21"]),
        ("- 21", ["-21"]),
        ("\N{MINUS SIGN}21", ["-21"]),
        ("= -21", ["-21"]),
        ("=-21", ["-21"]),
        ("(-21)", ["-21"]),
        ("-1,234.5", ["-1234.5"]),
        ("The answer is -21.", ["-21"]),
        ("The answer is \N{MINUS SIGN}21.", ["-21"]),
        ("3 * -7", ["3", "-7"]),
    ],
)
def test_a_hyphen_before_a_number_is_a_minus_sign(text: str, found: list[str]):
    assert numbers(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("25 - 4", ["25", "4"]),
        ("25-4", ["25", "4"]),
        ("25 -4", ["25", "4"]),
        ("(20 + 5) - 4", ["20", "5", "4"]),
        ("step-4", ["4"]),
        ("20\N{EN DASH}21", ["20", "21"]),
    ],
)
def test_a_hyphen_behind_a_number_or_within_a_word_is_no_sign(text: str, found: list[str]):
    assert numbers(text) == found


@pytest.mark.parametrize("sign", ["", "-"])
def test_long_numbers_keep_every_digit(sign: str):
    digits = sign + "1234567890" * 5
    assert numbers_in(digits) == [Decimal(digits)]


@settings(max_examples=200, deadline=None)
@given(value=st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**9), max_value=10**9))
def test_a_number_written_out_is_read_back(value: Decimal):
    assert numbers_in(f"{value:f}") == [value]
    assert numbers_in(f"= {value:,f};") == [value]


ODD_TEXT = st.text(
    st.one_of(st.characters(), st.sampled_from("0123456789.,-+%*() \N{MINUS SIGN}\N{SUPERSCRIPT TWO}")), max_size=200
)


@settings(max_examples=300, deadline=None)
@given(text=ODD_TEXT)
def test_any_text_gives_finite_numbers(text: str):
    assert all(number.is_finite() for number in numbers_in(normalise(text)))


@settings(max_examples=200, deadline=None)
@given(text=ODD_TEXT, expression=ODD_TEXT.filter(bool))
def test_any_expression_can_be_looked_for_in_any_text(text: str, expression: str):
    assert isinstance(without_restatement(text, expression), str)


HUGE = {
    "digits": "1" * 10**6 + "x",
    "thousands": "111," * 10**5 + "111x",
    "decimals": "1." * 10**6,
    "signs": "- " * 10**6,
    "numbers": "1 " * 10**6,
    "expanding": "\N{PARENTHESIZED DIGIT ONE}" * 10**6,
    "spaces": "17" + " " * 10**6 + "+",
    "beginnings": "17 + " * 10**6,
}


@pytest.mark.parametrize("text", HUGE.values(), ids=HUGE)
def test_a_huge_text_takes_no_time(text: str):
    started = time.perf_counter()
    plain = normalise(text)
    numbers_in(without_restatement(plain, "17 + 4"))
    assert time.perf_counter() - started < 1.0


def test_a_text_is_cut_to_a_bounded_length():
    assert len(normalise("a" * 10 * MAX_TEXT_CHARACTERS)) == MAX_TEXT_CHARACTERS


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("17 + 4 = 21", "= 21"),
        ("17+4=21", "=21"),
        ("17  +\n4 = 21", "= 21"),
        ("21 = 17 + 4", "21 ="),
        ("(17 + 4) is 21", "( ) is 21"),
        ("17 + 4 = 17 + 4 = 21", "=   = 21"),
        ("17 + 45 = 62", "17 + 45 = 62"),
        ("117 + 4 = 121", "117 + 4 = 121"),
        ("3.17 + 4 = 7.17", "3.17 + 4 = 7.17"),
        ("17 + 4.5 = 21.5", "17 + 4.5 = 21.5"),
        ("17 - 4 = 13", "17 - 4 = 13"),
    ],
)
def test_only_the_very_expression_is_blanked_however_it_is_spaced(text: str, left: str):
    assert without_restatement(text, "17 + 4").strip() == left


@pytest.mark.parametrize("expression", ["17 * 4", "17*4"])
@pytest.mark.parametrize("text", ["17 * 4 = 68", "17 \N{MULTIPLICATION SIGN} 4 = 68", "17\N{DOT OPERATOR}4 = 68"])
def test_any_multiplication_sign_restates_a_product(expression: str, text: str):
    assert without_restatement(normalise(text), expression).strip() == "= 68"


def test_any_minus_sign_restates_a_difference():
    assert without_restatement(normalise("17 \N{MINUS SIGN} 4 = 13"), "17 - 4").strip() == "= 13"
