"""Rewards: what a user's function may look like, and that no failure of it ever passes for a score."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.builders import make_prompt, make_reward, make_sample
from tests.reward_cases import NEEDED_OPTIONS

from covey.rewards.base import (
    FunctionReward,
    Rewarder,
    Sample,
    refuse_missing_columns,
    reward_from_function,
    safe_score,
    score_all,
)
from covey.rewards.numeric import asserted_number, last_number
from covey.rewards.registry import REWARDS, find_reward, find_rewards
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


def with_columns(**columns: Any) -> Sample:
    return replace(SAMPLE, prompt=replace(SAMPLE.prompt, columns=columns))


def test_a_function_may_ask_for_a_column_of_the_data():
    reward = reward_from_function(lambda completion, unit: float(unit == "km"))
    assert [reward(with_columns(unit=unit)).value for unit in ("km", "kg")] == [1.0, 0.0]


def test_a_parameter_with_a_default_takes_the_column_if_there_is_one():
    reward = reward_from_function(lambda completion, bonus=0.25: bonus)
    assert (reward(with_columns(bonus=0.5)).value, reward(SAMPLE).value) == (0.5, 0.25)


def test_a_missing_column_is_an_error_that_names_the_prompt_and_the_known_ones():
    score = safe_score(reward_from_function(lambda completion, unit: 1.0), with_columns(solution="21"))
    assert score.value is None
    assert "has a parameter 'unit', but prompt 'p' has no column of that name" in str(score.error)
    assert "completion, answer, prompt, sample, and columns of the data: here solution" in str(score.error)


def test_a_missing_column_is_refused_before_anything_is_sampled():
    reward = reward_from_function(lambda completion, unit: 1.0)
    prompts = [replace(SAMPLE.prompt, prompt_id="has it", columns={"unit": "km"}), replace(SAMPLE.prompt, prompt_id="lacks it")]
    refuse_missing_columns(reward, prompts[:1])
    with pytest.raises(CoveyError, match="'unit', but prompt 'lacks it' has no column"):
        refuse_missing_columns(reward, prompts)


def test_a_coroutine_function_is_refused():
    async def reward(completion: str) -> float:
        return 1.0

    with pytest.raises(CoveyError, match="'reward' is a coroutine function"):
        reward_from_function(reward)


def test_an_object_with_a_coroutine_call_is_refused():
    class Verifier:
        async def __call__(self, completion: str) -> float:
            return 1.0

    with pytest.raises(CoveyError, match="'Verifier' is a coroutine function"):
        reward_from_function(Verifier())


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
        "invalid: mine returned 1.5, outside its declared range [0.0, 1.0]; scale it, or declare the range it really has"
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
    thread = threading.Thread(target=lambda: scores.append(safe_score(find_reward("asserted_number", key="x"), SAMPLE)))
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


# --- score_all ---------------------------------------------------------------------------------------------------------


class Batched:
    """A reward that takes batches, does `act` in each, and notes how many samples came at once."""

    name, low, high = "batched", 0.0, 10.0

    def __init__(self, act: Callable[[Sequence[Sample]], Any]) -> None:
        self.act, self.sizes = act, list[int]()

    def __call__(self, sample: Sample) -> Score:
        raise AssertionError("one by one, although it takes batches")

    def score_batch(self, samples: Sequence[Sample]) -> Any:
        self.sizes.append(len(samples))
        return self.act(samples)


SAMPLES = [make_sample(text) for text in ("1", "2", "3")]


def test_a_batched_reward_is_called_once_and_in_order():
    reward = Batched(lambda samples: [Score(value=float(sample.completion)) for sample in samples])
    assert [score.value for score in score_all(reward, SAMPLES)] == [1.0, 2.0, 3.0]
    assert reward.sizes == [3]


def test_a_reward_without_batches_is_called_for_each():
    reward = make_reward(lambda sample: float(sample.completion), high=2.0)
    assert [score.value for score in score_all(reward, SAMPLES)] == [1.0, 2.0, None]


def test_nothing_to_score_is_no_call():
    reward = Batched(lambda samples: [])
    assert (score_all(reward, []), reward.sizes) == ([], [])


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda samples: 1 / 0, "ZeroDivisionError"),
        (lambda samples: exit_quietly(), "SystemExit"),
        (lambda samples: [Score(value=1.0)] * 2, "returned 2 scores for 3 completions"),
        (lambda samples: [Score(value=1.0)] * 4, "returned 4 scores for 3 completions"),
        (lambda samples: [Score(value=1.0), Score(value=1.0), None], "AttributeError"),
        (lambda samples: None, "TypeError"),
    ],
    ids=["raises", "exits", "too few", "too many", "no score", "nothing"],
)
def test_a_batch_that_fails_leaves_all_its_samples_unscored(act: Callable[..., Any], said: str):
    scores = score_all(Batched(act), SAMPLES)
    assert [score.value for score in scores] == [None] * 3
    assert all(said in str(score.error) for score in scores)


def exit_quietly() -> None:
    raise SystemExit(0)


def test_a_value_out_of_range_in_a_batch_is_an_error_of_that_sample_alone():
    scores = score_all(Batched(lambda samples: [Score(value=value) for value in (1.0, 10.5, math.nan)]), SAMPLES)
    assert [score.value for score in scores] == [1.0, None, None]
    assert "returned 10.5, outside its declared range [0.0, 10.0]" in str(scores[1].error)


def test_the_time_of_a_batch_is_divided_evenly():
    def act(samples: Sequence[Sample]) -> list[Score]:
        threading.Event().wait(0.06)
        return [Score(value=1.0)] * len(samples)

    times = [score.elapsed_s for score in score_all(Batched(act), SAMPLES)]
    assert len(set(times)) == 1
    assert 0.02 <= times[0] < 0.5


def test_the_rewarder_scores_a_batch_with_one_call_of_each():
    proxy, gold = (
        Batched(lambda samples: [Score(value=float(sample.completion)) for sample in samples]),
        Batched(lambda samples: [Score(value=0.0)] * len(samples)),
    )
    scores = Rewarder(proxy=proxy, gold=gold).score_all(SAMPLES)
    assert [(first.value, second and second.value) for first, second in scores] == [(1.0, 0.0), (2.0, 0.0), (3.0, 0.0)]
    assert (proxy.sizes, gold.sizes) == ([3], [3])
    assert [second for _, second in Rewarder(proxy=proxy, gold=None).score_all(SAMPLES)] == [None] * 3


# --- the table ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REWARDS)
def test_a_row_is_found_by_its_name(name: str):
    reward = find_reward(name, key="reward.name", options=NEEDED_OPTIONS.get(name, {}))
    assert reward.name == name
    assert reward.low < reward.high


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


def test_named_parts_are_combined_under_the_names_of_their_functions():
    mine = "tests.unit.test_rewards:fail"
    reward = find_rewards({"last_number": 1.0, mine: 0.5}, "sum", key="reward.parts")
    assert (reward.part_names, reward.part_weights) == (("last_number", "fail"), (1.0, 0.5))
    assert (reward.low, reward.high) == (0.0, 1.5)


def test_an_unknown_part_is_refused_with_its_key():
    with pytest.raises(CoveyError, match=r"reward\.parts='last_nmber' is not a reward"):
        find_rewards({"last_nmber": 1.0}, "sum", key="reward.parts")


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
        ("It could be anything but 21", 0.0, None),
        ("This is wrong: 21", 0.0, None),
        ("Anything except 21", 0.0, None),
        ("21 is incorrect", 0.0, None),
        ("21 thousand", 0.0, None),
        ("A hundred books? No: 21", 1.0, "21"),
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


@pytest.mark.parametrize("name", ["last_number", "asserted_number"])
def test_an_answer_that_is_no_number_is_an_error_and_never_a_0(name: str):
    score = safe_score(find_reward(name, key="x"), make_sample("21", answer="twenty-one"))
    assert score.value is None
    assert score.error


@pytest.mark.parametrize("name", ["last_number", "asserted_number"])
@settings(max_examples=150, deadline=None)
@given(text=st.text(st.one_of(st.characters(), st.sampled_from("0123456789.,-+= ")), max_size=100))
def test_any_text_is_scored_0_or_1(name: str, text: str):
    assert safe_score(find_reward(name, key="x"), make_sample(text, answer=21, expression="17 + 4")).value in (0.0, 1.0)
