"""Rewards for form: JSON, tags and patterns. What is strict, what is refused at once, and how long it can take."""

from __future__ import annotations

import time
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.builders import make_sample

from covey.rewards.base import safe_score
from covey.rewards.failures import error_kind
from covey.rewards.killable import KillableReward
from covey.rewards.pattern import pattern, tags
from covey.rewards.schema import MAX_VALUES, is_same, json_answer, json_text_in, strict_json
from covey.types import CoveyError

# JSON


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 1}',
        '{"a": {"b": 1, "b": 2}}',
        "NaN",
        "-Infinity",
        "1e999",
        "[1,]",
        "{'a': 1}",
        "",
        "[1] [2]",
        "1" * 5000,
        '"\x01"',
    ],
)
def test_what_parsers_disagree_about_is_no_json(text: str):
    assert strict_json(text, max_depth=9) is None


def test_depth_and_size_are_bounded_before_anything_is_parsed():
    assert strict_json("[[1]]", max_depth=2) == [[1]]
    assert strict_json("[[1]]", max_depth=1) is None
    assert strict_json("[" + "1," * (MAX_VALUES - 2) + "1]", max_depth=1) == [1] * (MAX_VALUES - 1)
    assert strict_json("[" + "1," * MAX_VALUES + "1]", max_depth=1) is None
    assert strict_json('["[[[[", "]]\\"[["]', max_depth=1) == ["[[[[", ']]"[[']


@pytest.mark.parametrize(
    "text", ["[" * 10**6, '{"a":' * 10**5, '"' * 99_999, '["\\"' * 10**5, "```\n" + " " * 10**6, "```json\n" * 10**5]
)
def test_a_huge_text_is_refused_in_no_time(text: str):
    started = time.perf_counter()
    assert strict_json(json_text_in(text, "either") or "", max_depth=16) is None
    assert time.perf_counter() - started < 1.0


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-999, 999)
    | st.floats(allow_nan=False, allow_infinity=False, width=16)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(value=VALUES)
def test_a_value_is_itself(value: Any):
    assert is_same(value, value)


@pytest.mark.parametrize(
    ("value", "key", "same"),
    [
        (1, True, False),
        (True, 1, False),
        (0, False, False),
        (None, 0, False),
        (1.0, 1, True),
        (0.1, Decimal("0.1"), True),
        (0.5, Fraction(1, 2), True),
        (42, "42", True),
        (42, "not 42", False),
        ("42", 42, False),
        ([1, 2], (1, 2), True),
        ([2, 1], [1, 2], False),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ("a", "A", False),
        (1, [1], False),
        ({}, [], False),
    ],
)
def test_values_are_compared_by_kind_and_value(value: Any, key: Any, same: bool):
    assert is_same(value, key) is same


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schema": {"type": "objekt"}}, "schema is no JSON schema"),
        ({"schema": {"$ref": "https://example.org/schema.json"}}, "without references to other documents"),
        ({"schema": {"items": [{"$ref": "file:///etc/passwd"}]}}, "without references to other documents"),
        ({"fields": ("a",), "answer_field": "a"}, "both given"),
        ({"max_characters": 1}, "leave no object"),
    ],
)
def test_a_schema_or_options_that_cannot_work_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(CoveyError, match=message):
        json_answer(**options)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({}, "no fields to compare"),
        ("{}", "no fields to compare"),
        ("[1]", "no fields to compare"),
        (3, "no fields to compare"),
        (None, "no answer"),
    ],
)
def test_an_answer_without_fields_is_an_error_for_every_empty_object_would_be_right(answer: Any, message: str):
    score = safe_score(json_answer(), make_sample("{}", answer=answer))
    assert score.value is None
    assert message in str(score.error)


def test_a_field_that_the_answer_does_not_have_is_an_error():
    assert "has no field 'b'" in str(safe_score(json_answer(fields=("b",)), make_sample("{}", answer={"a": 1})).error)


def test_the_form_can_be_demanded():
    fenced = '```json\n{"a": 1}\n```'
    for form, paid in {"either": (1.0, 1.0), "bare": (1.0, 0.0), "fenced": (0.0, 1.0)}.items():
        reward = json_answer(form=form)
        assert tuple(reward(make_sample(text, answer={"a": 1})).value for text in ('{"a": 1}', fenced)) == paid


def test_a_schema_with_patterns_is_checked_where_it_can_be_stopped():
    slow = {"properties": {"a": {"pattern": "^(x+x+)+y$"}}}
    reward = json_answer(schema=slow, deadline_s=0.5)
    assert isinstance(reward, KillableReward)
    completion = '{"a": "' + "x" * 60 + '"}'
    score = safe_score(reward, make_sample(completion, answer={"a": "x" * 60}))
    assert error_kind(score) == "timeout"
    assert score.elapsed_s < 3.0


# Tags


@pytest.mark.parametrize("names", [(), ("a", "a"), ("<a>",), ("a b",), ("",)])
def test_tags_that_are_no_names_are_refused(names: tuple[str, ...]):
    with pytest.raises(CoveyError, match="give names without brackets, each once"):
        tags(tags=names)


def test_any_number_of_tags_is_demanded_in_order():
    reward = tags(tags=("a", "b", "c"))
    assert reward(make_sample("<a>1</a><b>2</b><c>3</c>")).value == 1.0
    assert reward(make_sample("<a>1</a><c>3</c><b>2</b>")).value == 0.0
    assert reward(make_sample("<a>1</a><b>2</b>")).value == 0.0


def test_the_last_block_is_what_was_extracted():
    assert tags()(make_sample("<think>1</think><answer> 42 </answer>")).extracted == "42"


def test_a_text_that_is_too_long_has_no_form():
    text = "<think>1</think><answer>42</answer>"
    assert tags(max_characters=len(text))(make_sample(text)).value == 1.0
    assert tags(max_characters=len(text) - 1)(make_sample(text)).value == 0.0


# Patterns


@pytest.mark.parametrize("slow", [r"(a+)+b", r"(a|a)*b", r"(a*)*b", r"(.*,)*x", r"a*a*a*a*a*a*a*b"])
def test_a_pattern_that_backtracks_for_ever_is_stopped_at_the_deadline(slow: str):
    score = safe_score(pattern(pattern=slow, deadline_s=0.5), make_sample("a," * 20 + "a" * 2000))
    assert error_kind(score) == "timeout" or score.value == 0.0
    assert score.elapsed_s < 3.0


def test_after_a_deadline_the_next_completion_is_scored():
    reward = pattern(pattern=r"(a+)+b", deadline_s=0.5)
    assert error_kind(safe_score(reward, make_sample("a" * 50))) == "timeout"
    assert safe_score(reward, make_sample("aab")).value == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "pattern is empty"),
        ({"pattern": "("}, "is no regular expression"),
        ({"pattern": "a*"}, "matches an empty completion"),
        ({"pattern": "a+", "group": "b"}, r"write it as \(\?P<b>"),
        ({"pattern": "a+", "max_characters": 0}, "give 1 or more"),
        ({"pattern": "a+", "deadline_s": -1.0}, "deadline_s=-1.0"),
    ],
)
def test_a_pattern_that_cannot_be_meant_is_refused(options: dict[str, Any], message: str):
    with pytest.raises(CoveyError, match=message):
        pattern(**options)


def test_case_and_length_are_options():
    assert pattern(pattern="yes", ignore_case=True)(make_sample("YES")).value == 1.0
    assert pattern(pattern="yes")(make_sample("YES")).value == 0.0
    assert pattern(pattern="a+", max_characters=3)(make_sample("aaaa")).value == 0.0
