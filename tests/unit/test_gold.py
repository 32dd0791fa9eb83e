"""The gold verifier: its failures are told, and its range is that of an accuracy."""

from __future__ import annotations

import pytest

from covey.rewards.base import FunctionReward, Sample, as_reward, safe_score
from covey.rollout import SampledGroups, gold_problem
from covey.tasks.from_python import task_of_prompts
from covey.types import Completion, CoveyError, Group, Message, Prompt, Rollout, Score

PROMPT = Prompt(prompt_id="p", messages=(Message(role="user", content="p"),))


def sampled(golds: list[Score | None]) -> SampledGroups:
    completion = Completion(token_ids=[1], logprobs=[0.0], finish_reason="stop", policy_version=0)
    rollouts = tuple(
        Rollout(prompt_ids=[0], completion=completion, text="", reward=Score(value=1.0), gold=gold) for gold in golds
    )
    return SampledGroups(used=[Group(prompt=PROMPT, rollouts=rollouts)], dropped=[], draws=[0], rollout_s=0, reward_s=0)


def test_a_failing_gold_verifier_is_told_with_its_first_failure() -> None:
    problem = gold_problem(sampled([Score(value=1.0), Score(value=None, error="no such answer")]), max_error_frac=0.1)
    assert problem is not None
    assert "gold could not score 1 of 2 completions" in problem
    assert "no such answer" in problem


def test_a_sound_gold_verifier_and_none_at_all_are_no_problem() -> None:
    assert gold_problem(sampled([Score(value=0.0)] * 2), max_error_frac=0.0) is None
    assert gold_problem(sampled([None, None]), max_error_frac=0.0) is None


def test_gold_is_a_share_whatever_the_range_of_the_reward() -> None:
    task = task_of_prompts(["a"], None, lambda completion: 7.0, lambda completion: 0.5, (0.0, 10.0))
    assert (task.proxy.low, task.proxy.high) == (0.0, 10.0)
    assert task.gold is not None
    assert (task.gold.low, task.gold.high) == (0.0, 1.0)


def test_a_gold_verifier_with_another_range_is_refused() -> None:
    graded = FunctionReward(name="graded", score=lambda sample: Score(value=5.0), low=0.0, high=10.0)
    with pytest.raises(CoveyError, match=r"gold 'graded' has the range \[0.0, 10.0\]"):
        task_of_prompts(["a"], None, lambda completion: 1.0, graded, (0.0, 1.0))


def test_an_empty_range_is_refused() -> None:
    with pytest.raises(CoveyError, match="the first number must be smaller"):
        as_reward(lambda completion: 1.0, (1.0, 1.0))


def test_a_score_with_other_number_types_is_written_as_plain_ones() -> None:
    numpy = pytest.importorskip("numpy")
    reward = FunctionReward(
        name="typed",
        score=lambda sample: Score(value=numpy.float32(1), parts={"format": numpy.float32(0.5)}, extracted=21),  # ty: ignore[invalid-argument-type]
    )
    score = safe_score(reward, Sample(prompt=PROMPT, completion="", num_tokens=1, is_truncated=False))
    assert (type(score.value), type(score.parts["format"]), score.extracted) == (float, float, "21")
