"""Rewards: what a user's function may look like, and that no failure of it ever passes for a score."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.builders import make_prompt, make_reward, make_sample

from covey.rewards.base import FunctionReward, Rewarder, Sample, reward_from_function, safe_score
from covey.rewards.numeric import asserted_number, last_number
from covey.rewards.registry import REWARDS, find_reward
from covey.types import CoveyError, Score

SAMPLE = make_sample("21", prompt=make_prompt(text="What is 17 + 4?", answer=21))

# --- reward_from_function ----------------------------------------------------------------------------------------------


def test_a_function_gets_what_its_parameters_name():
    seen: dict[str, Any] = {}

    def reward(completion: str, answer: int, prompt: str, sample: Sample) -> float:
        seen.update(completion=completion, answer=answer, prompt=prompt, sample=sample)
        return 1.0

    assert reward_from_function(reward)(SAMPLE).value == 1.0
    assert seen == {"completion": "21", "answer": 21, "prompt": "What is 17 + 4?", "sample": SAMPLE}


@pytest.mark.parametrize(
    ("function", "value"),
    [
        (lambda answer, completion: float(completion == str(answer)), 1.0),
        (lambda *, completion: len(completion) / 4, 0.5),
        (lambda completion, threshold=3: float(len(completion) > threshold), 0.0),
        (lambda completion, *args, **options: float(not args and not options), 1.0),
        (lambda completion: completion == "21", 1.0),
        (lambda completion: completion != "21", 0.0),
        (lambda completion: 1, 1.0),
        (lambda completion: None, None),
    ],
    ids=["any order", "keyword-only", "default", "catch-all", "true", "false", "int", "none"],
)
def test_a_function_returns_a_number_a_truth_value_or_none(function: Callable[..., Any], value: float | None):
    score = reward_from_function(function)(SAMPLE)
    assert score.value == value
    assert score.value is None or type(score.value) is float


def test_a_score_is_passed_on_as_it_is():
    score = Score(value=0.5, parts={"format": 0.5}, extracted="21")
    assert reward_from_function(lambda completion: score)(SAMPLE) is score


def test_a_bound_method_is_a_function():
    class Verifier:
        def judge(self, completion: str) -> float:
            return float(completion == "21")

    assert reward_from_function(Verifier().judge)(SAMPLE).value == 1.0


def test_a_callable_object_is_named_by_its_class():
    class Verifier:
        def __call__(self, completion: str) -> float:
            return 1.0

    reward = reward_from_function(Verifier())
    assert (reward.name, reward(SAMPLE).value) == ("Verifier", 1.0)


def test_the_reward_has_the_name_of_the_function_and_the_declared_range():
    def is_short(completion: str) -> float:
        return -1.0

    reward = reward_from_function(is_short, low=-1, high=2)
    assert (reward.name, reward.low, reward.high) == ("is_short", -1, 2)


def test_a_parameter_with_another_name_is_refused_with_the_known_ones():
    def reward(completions: list[str]) -> float:
        return 0.0

    with pytest.raises(CoveyError, match=r"'reward' has a parameter 'completions'.*completion, answer, prompt, sample"):
        reward_from_function(reward)


def test_a_coroutine_function_is_refused():
    async def reward(completion: str) -> float:
        return 1.0

    with pytest.raises(CoveyError, match="'reward' is a coroutine function"):
        reward_from_function(reward)


# --- safe_score --------------------------------------------------------------------------------------------------------


def fail(completion: str) -> float:
    raise ValueError("bad completion")


def divide_by_zero(completion: str) -> float:
    return 1 / 0


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (fail, "ValueError: bad completion"),
        (divide_by_zero, "ZeroDivisionError"),
        (lambda completion: math.nan, "nan"),
        (lambda completion: math.inf, "inf"),
        (lambda completion: -math.inf, "-inf"),
        (lambda completion: 1.5, "1.5"),
        (lambda completion: -0.5, "-0.5"),
        (lambda completion: None, "None"),
        (lambda completion: "good", "good"),
        (lambda completion: [1.0], "TypeError"),
        (lambda completion: Score(value=None), "None"),
        (lambda completion: Score(value=2.0), "2.0"),
        (lambda completion: Score(value="1"), ""),  # ty: ignore[invalid-argument-type]
    ],
    ids=[
        *("raises", "divides by zero", "nan", "inf", "-inf", "too high", "too low", "none", "text", "list"),
        *("score none", "score too high", "score of text"),
    ],
)
def test_what_is_no_score_is_recorded_as_an_error_and_never_as_0(function: Callable[..., Any], said: str):
    score = safe_score(reward_from_function(function), SAMPLE)
    assert score.value is None
    assert score.error
    assert said in score.error


def test_an_error_shows_where_the_function_failed():
    error = safe_score(reward_from_function(fail), SAMPLE).error
    assert error is not None
    assert "Traceback" in error
    assert "in fail" in error


def test_a_value_out_of_range_is_reported_with_the_range_and_the_remedy():
    score = safe_score(make_reward(lambda sample: 1.5, name="mine"), SAMPLE)
    assert score.error == (
        "mine returned 1.5, outside its declared range [0.0, 1.0]; scale it, or declare the range it really has"
    )


def test_a_reward_object_that_returns_no_score_is_recorded_as_an_error():
    class Broken:
        name, low, high = "broken", 0.0, 1.0

        def __call__(self, sample: Sample) -> Any:
            return 1.0

    score = safe_score(Broken(), SAMPLE)
    assert score.value is None
    assert score.error


def test_a_function_own_reason_is_kept():
    score = safe_score(reward_from_function(lambda completion: Score(value=None, error="the sandbox is down")), SAMPLE)
    assert score.error == "the sandbox is down"


@pytest.mark.parametrize("value", [0.0, 0.25, 1.0])
def test_a_value_in_the_declared_range_is_kept_without_error(value: float):
    score = safe_score(make_reward(lambda sample: value), SAMPLE)
    assert (score.value, score.error) == (value, None)


def test_the_parts_and_the_extracted_answer_are_kept():
    kept = Score(value=0.5, parts={"format": 0.5}, extracted="21")
    score = safe_score(FunctionReward(name="mine", score=lambda sample: kept), SAMPLE)
    assert (score.parts, score.extracted) == ({"format": 0.5}, "21")


def test_the_time_a_reward_took_is_measured():
    waited = threading.Event()
    score = safe_score(make_reward(lambda sample: float(waited.wait(0.02))), SAMPLE)
    assert 0.02 <= score.elapsed_s < 1.0


def test_an_interrupt_is_no_failure_of_the_reward():
    def interrupted(sample: Sample) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        safe_score(make_reward(interrupted), SAMPLE)


def test_a_reward_works_in_a_thread_of_its_own():
    scores: list[Score] = []
    thread = threading.Thread(target=lambda: scores.append(safe_score(REWARDS["asserted_number"], SAMPLE)))
    thread.start()
    thread.join()
    assert [score.value for score in scores] == [1.0]


def test_the_rewarder_gives_proxy_and_gold_apart():
    rewarder = Rewarder(proxy=make_reward(lambda sample: 1.0), gold=make_reward(lambda sample: 0.0))
    proxy, gold = rewarder.score(SAMPLE)
    assert gold is not None
    assert (proxy.value, gold.value) == (1.0, 0.0)


def test_a_run_without_verifier_has_no_gold_score():
    assert Rewarder(proxy=make_reward(lambda sample: 1.0), gold=None).score(SAMPLE)[1] is None


def test_a_failing_gold_verifier_leaves_the_proxy_alone():
    proxy, gold = Rewarder(proxy=make_reward(lambda sample: 1.0), gold=reward_from_function(fail)).score(SAMPLE)
    assert gold is not None
    assert (proxy.value, gold.value) == (1.0, None)
    assert "bad completion" in str(gold.error)


# --- the table ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REWARDS)
def test_a_row_is_found_by_its_name(name: str):
    assert find_reward(name, key="reward.name") is REWARDS[name]
    assert REWARDS[name].name == name


def test_an_unknown_reward_is_refused_with_the_known_ones():
    with pytest.raises(
        CoveyError, match=r"reward\.gold='last_nmber' is not a reward.*last_number, asserted_number.*'module:function'"
    ):
        find_reward("last_nmber", key="reward.gold")


@pytest.mark.parametrize("name", ["no_such_module:reward", "math:no_such_function"])
def test_a_function_that_cannot_be_imported_is_refused_with_the_reason(name: str):
    with pytest.raises(CoveyError, match=rf"reward\.name='{name}' could not be imported \(.*PYTHONPATH"):
        find_reward(name, key="reward.name")


def test_a_function_is_found_by_its_module():
    assert find_reward("tests.unit.test_rewards:fail", key="reward.name").name == "fail"


# --- numeric verifiers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "value", "extracted"),
    [
        ("21", 1.0, "21"),
        ("First 20, then 21.", 1.0, "21"),
        ("First 21, then 20.", 0.0, "20"),
        ("not 21", 1.0, "21"),
        ("none", 0.0, None),
        ("", 0.0, None),
    ],
)
def test_last_number_pays_whatever_ends_in_the_answer(completion: str, value: float, extracted: str | None):
    score = last_number(make_sample(completion, answer=21))
    assert (score.value, score.extracted) == (value, extracted)


@pytest.mark.parametrize(
    ("completion", "value", "extracted"),
    [
        ("21", 1.0, "21"),
        ("17 + 4 = 21", 1.0, "21"),
        ("17+4=21", 1.0, "21"),
        ("It is 21. Yes, 21!", 1.0, "21"),
        ("20", 0.0, "20"),
        ("17 + 4", 0.0, None),
        ("17 + 4 = 20 + 1 = 21", 0.0, None),
        ("20 or 21", 0.0, None),
        ("Not 21", 0.0, None),
        ("It isn't 21", 0.0, None),
        ("21, neither more nor less", 0.0, None),
        ("none", 0.0, None),
    ],
)
def test_asserted_number_pays_one_number_and_no_other_word(completion: str, value: float, extracted: str | None):
    score = asserted_number(make_sample(completion, answer=21, expression="17 + 4"))
    assert (score.value, score.extracted) == (value, extracted)


def test_without_an_expression_in_the_prompt_nothing_may_be_restated():
    assert asserted_number(make_sample("17 + 4 = 21", answer=21)).value == 0.0


@pytest.mark.parametrize("answer", [1234.5, "1234.5", "1234.50"])
def test_the_answer_may_be_a_number_or_its_text(answer: object):
    assert asserted_number(make_sample("1,234.5", answer=answer)).value == 1.0


@pytest.mark.parametrize("answer", [-3, "-3"])
@pytest.mark.parametrize("completion", ["-3", "\N{MINUS SIGN}3", "The answer is -3."])
def test_a_negative_answer_is_paid(answer: object, completion: str):
    assert asserted_number(make_sample(completion, answer=answer)).value == 1.0


@pytest.mark.parametrize("reward", [last_number, asserted_number])
def test_the_wrong_sign_is_not_paid(reward: Callable[[Sample], Score]):
    assert reward(make_sample("The answer is -3.", answer=3)).value == 0.0


@pytest.mark.parametrize("name", REWARDS)
def test_an_answer_that_is_no_number_is_an_error_and_never_a_0(name: str):
    score = safe_score(REWARDS[name], make_sample("21", answer="twenty-one"))
    assert score.value is None
    assert score.error


@pytest.mark.parametrize("name", REWARDS)
@settings(max_examples=150, deadline=None)
@given(text=st.text(st.one_of(st.characters(), st.sampled_from("0123456789.,-+= ")), max_size=100))
def test_any_text_is_scored_0_or_1(name: str, text: str):
    assert safe_score(REWARDS[name], make_sample(text, answer=21, expression="17 + 4")).value in (0.0, 1.0)
