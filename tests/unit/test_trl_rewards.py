"""Reward functions written for TRL work unchanged, and none of their columns is ever given to another prompt's completion."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.builders import make_sample

from covey.rewards.base import Reward, Sample, as_reward, refuse_missing_columns, safe_score, score_all
from covey.rewards.trl import TrlReward, is_trl_function
from covey.tasks.from_python import PromptLike, make_prompt
from covey.types import CoveyError


def sample_of(prompt: PromptLike, completion: str = "a", token_ids: list[int] | None = None) -> Sample:
    return replace(make_sample(completion, prompt=make_prompt(prompt, 0)), token_ids=token_ids)


def seen_by(function_of: Callable[[dict[str, Any]], Callable[..., Any]], samples: list[Sample]) -> dict[str, Any]:
    """Return what a function noted in the dictionary that it was made with, after one batch without an error."""
    seen: dict[str, Any] = {}
    scores = score_all(as_reward(function_of(seen)), samples)
    assert [score.error for score in scores] == [None] * len(samples)
    return seen


# What the function gets


def test_plain_prompts_come_as_texts():
    def note(seen: dict[str, Any]) -> Callable[..., Any]:
        def reward(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
            seen.update(prompts=prompts, completions=completions)
            return [1.0] * len(completions)

        return reward

    seen = seen_by(note, [sample_of("one?", "1"), sample_of("two?", "2")])
    assert seen == {"prompts": ["one?", "two?"], "completions": ["1", "2"]}


def test_conversations_come_as_lists_of_messages():
    def note(seen: dict[str, Any]) -> Callable[..., Any]:
        def reward(prompts: list[Any], completions: list[Any]) -> list[float]:
            seen.update(prompts=prompts, completions=completions)
            return [1.0] * len(completions)

        return reward

    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one?"}]
    seen = seen_by(note, [sample_of({"prompt": turns}, "1")])
    assert seen == {"prompts": [turns], "completions": [[{"role": "assistant", "content": "1"}]]}


def test_columns_and_the_answer_come_as_lists_by_name():
    def note(seen: dict[str, Any]) -> Callable[..., Any]:
        def reward(completions: list[str], solution: list[str], answer: list[int], unit: str = "km") -> list[float]:
            seen.update(solution=solution, answer=answer, unit=unit)
            return [1.0] * len(completions)

        return reward

    rows = [{"prompt": "one?", "solution": "x", "answer": 1}, {"prompt": "two?", "solution": "y", "answer": 2}]
    assert seen_by(note, [sample_of(row) for row in rows]) == {"solution": ["x", "y"], "answer": [1, 2], "unit": "km"}


def test_a_catch_all_gets_every_column_and_a_gap_is_none():
    def note(seen: dict[str, Any]) -> Callable[..., Any]:
        def reward(completions: list[str], **kwargs: Any) -> list[float]:
            seen.update(kwargs)
            return [1.0] * len(completions)

        return reward

    seen = seen_by(
        note, [sample_of({"prompt": "one?", "solution": "x"}), sample_of({"prompt": "two?", "level": 3, "answer": 2})]
    )
    assert {key: seen[key] for key in ("solution", "level", "answer")} == {
        "solution": ["x", None],
        "level": [None, 3],
        "answer": [None, 2],
    }
    assert set(seen) == {"prompts", "solution", "level", "answer", "trainer_state", "log_extra", "log_metric"}


def test_the_tokens_of_the_completions_are_given():
    def longest_is_best(completion_ids: list[list[int]], **kwargs: Any) -> list[float]:
        return [len(ids) / 3 for ids in completion_ids]

    samples = [sample_of("one?", token_ids=[5]), sample_of("one?", token_ids=[5, 6, 7])]
    assert [score.value for score in score_all(as_reward(longest_is_best), samples)] == [1 / 3, 1.0]


def test_tokens_of_a_text_that_no_model_sampled_are_an_error_and_not_an_empty_list():
    score = safe_score(as_reward(lambda completion_ids: [1.0]), sample_of("one?"))
    assert "this text was not sampled by a model" in str(score.error)


def test_logging_helpers_may_be_called_and_say_nothing():
    def reward(completions: list[str], log_extra: Any = None, log_metric: Any = None) -> list[float]:
        log_extra("length", [len(text) for text in completions])
        log_metric("mean_length", 1.0)
        return [1.0] * len(completions)

    assert safe_score(as_reward(reward), sample_of("one?")).value == 1.0


def test_a_function_may_take_the_trainer_state_along_but_not_look_into_it():
    def indifferent(completions: list[str], trainer_state: Any) -> list[float]:
        return [1.0] * len(completions)

    def scheduled(completions: list[str], trainer_state: Any) -> list[float]:
        return [min(1.0, trainer_state.global_step / 100)] * len(completions)

    assert safe_score(as_reward(indifferent), sample_of("one?")).value == 1.0
    assert "trainer_state.global_step is not there" in str(safe_score(as_reward(scheduled), sample_of("one?")).error)


@pytest.mark.parametrize(
    ("function", "is_trl"),
    [
        (lambda completions: [], True),
        (lambda prompts, **kwargs: [], True),
        (lambda completion_ids, **kwargs: [], True),
        (lambda completion: 0.0, False),
        (lambda completion, **kwargs: 0.0, False),
        (lambda sample: 0.0, False),
        (partial(lambda completions, scale: [], scale=2.0), True),
    ],
)
def test_the_parameters_say_which_kind_a_function_is(function: Callable[..., Any], is_trl: bool):
    assert is_trl_function(function) is is_trl
    assert isinstance(as_reward(function), TrlReward) is is_trl


def test_the_reward_has_the_name_and_the_declared_range():
    def brief(completions: list[str]) -> list[float]:
        return [-len(text) / 100 for text in completions]

    reward = as_reward(brief, (-1.0, 0.0))
    assert (reward.name, reward.low, reward.high) == ("brief", -1.0, 0.0)
    assert safe_score(reward, sample_of("one?", "12345")).value == -0.05


# Columns stay with their prompts


def paired(prompts: list[str], completions: list[str], secret: list[str], answer: list[str], **kwargs: Any) -> list[float]:
    """Fails unless every completion comes with the columns of its own prompt; each completion names its prompt."""
    for prompt, completion, first, second, third in zip(prompts, completions, secret, answer, kwargs["third"], strict=True):
        assert prompt == completion.partition("/")[0] == first == second == third
    return [len(completion) / 100 for completion in completions]


@given(st.integers(1, 6), st.integers(1, 5), st.randoms(use_true_random=False))
def test_columns_stay_with_their_prompts_under_every_order(num_prompts: int, group_size: int, generator: random.Random):
    rows = [{"prompt": f"p{n}", "secret": f"p{n}", "answer": f"p{n}", "third": f"p{n}"} for n in range(num_prompts)]
    samples = [sample_of(row, f"{row['prompt']}/{'x' * place}") for row in rows for place in range(group_size)]
    order = generator.sample(range(len(samples)), len(samples))
    reward = as_reward([paired, lambda completion, secret: float(completion.startswith(secret))])
    straight, shuffled = score_all(reward, samples), score_all(reward, [samples[place] for place in order])
    assert [score.error for score in straight] == [None] * len(samples)
    assert [shuffled[order.index(place)].value for place in range(len(samples))] == [score.value for score in straight]


def test_the_check_above_can_fail():
    swapped = make_prompt({"prompt": "p0", "secret": "p1", "answer": "p0", "third": "p0"}, 0)
    score = safe_score(as_reward(paired), make_sample("p0/x", prompt=swapped))
    assert "AssertionError" in str(score.error)


# What goes wrong


def reward_returning(result: Any) -> Reward:
    def reward(completions: list[str]) -> Any:
        return result() if callable(result) else result

    return as_reward(reward)


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ([1.0], "returned 1 values for 2 completions; return one for each"),
        ([1.0] * 3, "returned 3 values for 2 completions"),
        ([1.0, "0.5"], "returned '0.5' for a completion; return a number, or None"),
        ([1.0, [0.5]], "return a number, or None"),
        (1.0, "returned 1.0; a function that takes completions returns a list of numbers"),
        (None, "returned None; a function that takes completions returns a list"),
        ("10", "returned '10'; a function"),
        ({"a": 1.0, "b": 2.0}, "a function that takes completions returns a list"),
        (lambda: 1 / 0, "ZeroDivisionError"),
    ],
    ids=["too few", "too many", "text", "list", "number", "none", "digits", "mapping", "raises"],
)
def test_a_wrong_batch_leaves_every_completion_unscored(result: Any, said: str):
    scores = score_all(reward_returning(result), [sample_of("one?"), sample_of("two?")])
    assert [score.value for score in scores] == [None, None]
    assert all(said in str(score.error) for score in scores)


def test_none_and_nan_are_completions_that_could_not_be_scored():
    scores = score_all(reward_returning([1.0, None, math.nan, True]), [sample_of(f"{n}?") for n in range(4)])
    assert [score.value for score in scores] == [1.0, None, None, 1.0]
    assert "returned None" in str(scores[1].error)
    assert "returned nan, outside its declared range" in str(scores[2].error)


def test_an_array_is_a_list_of_numbers():
    numpy = pytest.importorskip("numpy")
    scores = score_all(reward_returning(numpy.array([0.5, 1.0], dtype=numpy.float32)), [sample_of("a"), sample_of("b")])
    assert [(score.value, type(score.value)) for score in scores] == [(0.5, float), (1.0, float)]


def test_a_generator_is_a_list_of_numbers():
    scores = score_all(reward_returning(lambda: (value for value in (0.5, 1.0))), [sample_of("a"), sample_of("b")])
    assert [score.value for score in scores] == [0.5, 1.0]


def test_a_missing_column_is_an_error_that_names_the_prompt():
    def reward(completions: list[str], solution: list[str]) -> list[float]:
        return [1.0] * len(completions)

    samples = [sample_of({"prompt": "one?", "id": "has it", "solution": "x"}), sample_of({"prompt": "two?", "id": "lacks it"})]
    scores = score_all(as_reward(reward), samples)
    assert [score.value for score in scores] == [None, None]
    assert "parameter 'solution', but prompt 'lacks it' has no column" in str(scores[0].error)
    with pytest.raises(CoveyError, match="'lacks it' has no column"):
        refuse_missing_columns(as_reward(reward), [sample.prompt for sample in samples])


def test_an_answer_is_a_column_only_where_it_was_given():
    reward = as_reward(lambda completions, answer: [1.0] * len(completions))
    refuse_missing_columns(reward, [make_prompt({"prompt": "one?", "answer": 0}, 0)])
    with pytest.raises(CoveyError, match="'answer'"):
        refuse_missing_columns(reward, [make_prompt("two?", 0)])
