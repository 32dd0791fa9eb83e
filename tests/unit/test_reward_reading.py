"""Where answers are read: what is an answer, what is two of them, and what NFKC alone would get wrong."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.rewards.extract import MAX_TEXT_CHARACTERS
from covey.rewards.reading import READINGS, Reading, boxes_in, is_denied, plain_text, trimmed
from covey.types import CoveyError


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("4\N{SUPERSCRIPT TWO}", "4^2"),
        ("H\N{SUBSCRIPT TWO}O", "H_2O"),
        ("4\N{VULGAR FRACTION ONE HALF}", "4 1/2 "),
        ("1\N{FRACTION SLASH}2", "1/2"),
        ("4\N{CIRCLED DIGIT TWO}", "4 2 "),
        ("\N{ARABIC-INDIC DIGIT FOUR}\N{DEVANAGARI DIGIT TWO}", "42"),
        ("\N{FULLWIDTH DIGIT FOUR}\N{FULLWIDTH LATIN CAPITAL LETTER A}", "4A"),
        ("\N{MINUS SIGN}4", "-4"),
        ("\N{MATHEMATICAL BOLD DIGIT FOUR}", "4"),
        ("plain", "plain"),
    ],
)
def test_characters_keep_what_they_mean(text: str, plain: str):
    assert plain_text(text) == plain


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (" 42. ", "42"),
        ("42..", "42.."),
        ("**42.**", "42"),
        ('"`42`"', "42"),
        (r"$\text{B}$", "B"),
        ("'a' or 'b'", "'a' or 'b'"),
        ("*a* or *b*", "*a* or *b*"),
        ("**", "**"),
        ("$", "$"),
        ("42!", "42!"),
    ],
)
def test_only_what_encloses_all_of_a_text_is_taken_off(text: str, left: str):
    assert trimmed(text) == left


@pytest.mark.parametrize(
    ("text", "contents"),
    [
        (r"\boxed{42}", ["42"]),
        (r"\boxed{\frac{1}{2}}", [r"\frac{1}{2}"]),
        (r"\boxed {a} and \fbox{b}", ["a", "b"]),
        (r"\boxed{\{1\}}", [r"\{1\}"]),
        (r"\boxed{a\boxed{b}}", ["b", r"a\boxed{b}"]),
        (r"\boxed{}", [""]),
        (r"{} } \boxed{a}", ["a"]),
        (r"\\boxed{a}", []),
        (r"\boxed{a", None),
        (r"\boxed{a} \boxed{", None),
        ("nothing", []),
    ],
)
def test_boxes_have_balanced_braces(text: str, contents: list[str] | None):
    boxes = boxes_in(text)
    assert (boxes if boxes is None else [content for _, _, content in boxes]) == contents


@pytest.mark.parametrize(
    ("text", "denied"),
    [
        ("It is not 42", True),
        ("x is not negative, so 42", False),
        ("It is not negative.\n42", False),
        ("42 is wrong", True),
        ("42, which is not wrong", False),
        ("This is wrong: 42", True),
        ("42 or 43", True),
        ("nothing but 42", False),
        ("the least number that is not prime is 42", False),
        ("we cannot do better than 42", False),
        ("in dollars or cents it is 42", False),
        ("it cannot be 42", True),
        ("It is not equal to 42", True),
        ("either 42", True),
        ("42 is not right", True),
        ("42 isn't right", True),
        ("It could be anything but **42**", True),
        ("it isn't 42", True),
        ("the factor is 42", False),
    ],
)
def test_a_denial_reaches_as_far_as_its_clause(text: str, denied: bool):
    start = text.index("42")
    assert is_denied(text, start, start + 2) is denied


@pytest.mark.parametrize(
    ("where", "completion", "found"),
    [
        ("whole", "So, the final answer is: 42", "42"),
        ("whole", "Thus my result = 42", "42"),
        ("whole", "The answer is the answer is 42", "the answer is 42"),
        ("whole", "Answering: 42", "Answering: 42"),
        ("whole", "   ", None),
        ("last_line", "41\n\nAnswer: 42\n ", "42"),
        ("boxed", r"\boxed{ 4 2 } \boxed{4  2}", "4 2"),
        ("tagged", "<answer>\n42\n</answer>", "42"),
        ("tagged", "<Answer>42</Answer>", None),
        ("marked", "steps\n#### 42.", "42"),
        ("marked", "####", None),
    ],
)
def test_one_answer_is_read_or_none(where: str, completion: str, found: str | None):
    assert Reading(where=where).read(completion) == found  # ty: ignore[invalid-argument-type]


def test_tag_and_marker_can_be_chosen():
    assert Reading(where="tagged", tag="final").read("<answer>41</answer><final>42</final>") == "42"
    assert Reading(where="marked", marker="=>").read("41 => 42") == "42"


@pytest.mark.parametrize("where", READINGS)
def test_nothing_is_read_of_a_text_that_is_too_long(where: str):
    text = r"<answer>42</answer> \boxed{42} #### 42" + " " * MAX_TEXT_CHARACTERS
    assert Reading(where=where).read(text) is None  # ty: ignore[invalid-argument-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"where": "box"}, "read='box' is none of whole, last_line, boxed, tagged, marked"),
        ({"tag": "<answer>"}, "give a name without brackets"),
        ({"marker": " "}, "marker is empty"),
    ],
)
def test_a_reading_that_cannot_work_is_refused(options: dict[str, str], message: str):
    with pytest.raises(CoveyError, match=message):
        Reading(**options)  # ty: ignore[invalid-argument-type]


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=100), where=st.sampled_from(list(READINGS)))
def test_any_text_can_be_read(text: str, where: str):
    found = Reading(where=where).read(text)  # ty: ignore[invalid-argument-type]
    assert found is None or found.strip()


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=100))
def test_plain_text_is_plain_already(text: str):
    once = plain_text(text)
    assert plain_text(once) == once
