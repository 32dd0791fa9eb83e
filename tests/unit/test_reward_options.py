"""Options of rewards: by name, checked by kind, for one reward or for each part; and the minimum of several verifiers."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.builders import make_reward, make_sample
from tests.reward_cases import NEEDED_OPTIONS

from covey.rewards.base import safe_score
from covey.rewards.combine import combine_rewards
from covey.rewards.options import kind_in_words, options_of
from covey.rewards.registry import REWARDS, find_reward, find_rewards
from covey.types import CoveyError


@pytest.mark.parametrize("name", REWARDS)
def test_every_option_has_a_default_and_a_kind_that_recipes_can_hold(name: str):
    for option in options_of(REWARDS[name]).values():
        assert option.default is not inspect.Parameter.empty
        assert kind_in_words(option.kind)


@pytest.mark.parametrize("name", REWARDS)
def test_the_defaults_given_by_hand_are_the_defaults(name: str):
    needed = NEEDED_OPTIONS.get(name, {})
    defaults = {option.name: option.default for option in options_of(REWARDS[name]).values()}
    assert find_reward(name, key="x", options=defaults | needed) == find_reward(name, key="x", options=needed)


def test_the_options_reach_the_reward():
    strict, lenient = (find_reward("exact", key="x", options={"ignore_case": flag}) for flag in (False, True))
    assert [reward(make_sample("a", answer="A")).value for reward in (strict, lenient)] == [0.0, 1.0]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("last_number", {"read": "boxed"}, r"reward.name='last_number': 'read' is no option of it; it has none"),
        ("exact", {"ignorecase": True}, r"'ignorecase' is no option of it; it has read, tag, marker, ignore_case"),
        ("exact", {"read": "box"}, r"read='box' should be one of whole, last_line, boxed, tagged, marked"),
        ("exact", {"ignore_case": "yes"}, r"ignore_case='yes' should be true or false"),
        ("exact", {"tag": 3}, r"tag=3 should be a text"),
        ("choice", {"choices": "AB"}, r"choices='AB' should be a list of texts"),
        ("choice", {"choices": ["A"]}, r"choices=\['A'\]: give two or more"),
        ("choice", {"choices": ["A", "a"]}, r"all different"),
        ("numeric", {"absolute": True}, r"absolute=True should be a number"),
        ("numeric", {"absolute": "1"}, r"absolute='1' should be a number"),
        ("repetition", {"ngram": 2.0}, r"ngram=2.0 should be a whole number"),
        ("json", {"schema": []}, r"schema=\[\] should be a table"),
        ("cosine_length", {}, r"reward.name='cosine_length': max_tokens=0"),
        ("cosine_length", {"max_tokens": 9, "of": "nothing"}, r"of='nothing' is not a reward"),
        ("cosine_length", {"max_tokens": 9, "of": "exact", "of_options": {"x": 1}}, r"of='exact': 'x' is no option of it"),
        ("tests.unit.test_rewards:fail", {"x": 1}, "is your own function and takes no options, but x came"),
    ],
)
def test_an_option_that_is_unknown_or_of_another_kind_is_refused_with_what_there_is(
    name: str, options: dict[str, Any], message: str
):
    with pytest.raises(CoveyError, match=message):
        find_reward(name, key="reward.name", options=options)


def test_each_part_has_its_own_options():
    options = {"exact": {"read": "tagged"}, "numeric": {"absolute": 1.0}}
    reward = find_rewards({"exact": 1.0, "numeric": 1.0}, "sum", key="reward.parts", options=options)
    assert reward.part_names == ("exact_tagged", "numeric")
    assert reward(make_sample("<answer>2</answer>", answer="2")).parts == {"exact_tagged": 1.0, "numeric": 0.0}
    assert reward(make_sample("2.5", answer="2")).parts == {"exact_tagged": 0.0, "numeric": 1.0}


def test_options_for_what_is_no_part_are_refused():
    with pytest.raises(CoveyError, match=r"options for 'exakt', which is none of the reward.parts: exact, numeric"):
        find_rewards({"exact": 1.0, "numeric": 1.0}, "sum", key="reward.parts", options={"exakt": {}})


def test_a_reward_that_reads_a_bare_answer_has_the_name_of_its_row():
    names = {read: find_reward("numeric", key="x", options={"read": read}).name for read in ("whole", "last_line", "boxed")}
    assert names == {"whole": "numeric", "last_line": "numeric", "boxed": "numeric_boxed"}


def test_the_minimum_pays_what_the_strictest_verifier_gives():
    reward = find_rewards({"last_number": 1.0, "asserted_number": 1.0}, "min", key="reward.parts")
    assert (reward.name, reward.low, reward.high) == ("minimum of last_number, asserted_number", 0.0, 1.0)
    assert [reward(make_sample(text, answer=42)).value for text in ("42", "not 42", "41")] == [1.0, 0.0, 0.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_the_minimum_is_the_smallest_value(values: list[float]):
    parts = {str(place): (make_reward(lambda sample, value=value: value), 1.0) for place, value in enumerate(values)}
    assert combine_rewards(parts, "min")(make_sample("x")).value == min(values)


def test_a_verifier_that_cannot_score_leaves_the_minimum_without_a_value():
    def fail(sample: object) -> float:
        raise ValueError("away")

    parts = {"fails": (make_reward(fail), 1.0), "denies": (make_reward(lambda sample: 0.0), 1.0)}
    assert safe_score(combine_rewards(parts, "min"), make_sample("x")).value is None


def test_the_minimum_takes_neither_weights_nor_other_ranges():
    with pytest.raises(CoveyError, match=r"weight 2\.0, but a min has none"):
        combine_rewards({"a": (make_reward(lambda sample: 1.0), 2.0)}, "min")
    with pytest.raises(CoveyError, match="in a min every reward must go from 0 to 1"):
        combine_rewards({"a": (make_reward(lambda sample: 1.0, high=2.0), 1.0)}, "min")
