"""The soft penalty for long completions counts tokens, widens the range and is told apart from the reward."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.builders import make_reward, make_sample

from covey.rewards.base import Sample, as_reward, safe_score, score_all
from covey.rewards.length import soft_overlong_penalty, with_overlong_penalty
from covey.types import CoveyError

# arXiv 2503.14476, eq. 13 with a limit of 100 and a buffer of 20.
GOLDEN = {79: 0.0, 80: 0.0, 81: -0.05, 90: -0.5, 100: -1.0, 101: -1.0}


def sample_of(num_tokens: int, completion: str = "a") -> Sample:
    return replace(make_sample(completion), num_tokens=num_tokens)


@pytest.mark.parametrize(("num_tokens", "penalty"), GOLDEN.items())
def test_the_penalty_is_the_golden_one(num_tokens: int, penalty: float):
    assert soft_overlong_penalty(num_tokens, max_tokens=100, buffer=20) == pytest.approx(penalty, abs=1e-12)


@given(st.integers(0, 400), st.integers(1, 300), st.data())
def test_the_penalty_is_the_formula_of_the_paper(num_tokens: int, limit: int, data: st.DataObject):
    buffer = data.draw(st.integers(1, limit))
    if num_tokens <= limit - buffer:
        expected = 0.0
    elif num_tokens <= limit:
        expected = ((limit - buffer) - num_tokens) / buffer
    else:
        expected = -1.0
    assert soft_overlong_penalty(num_tokens, max_tokens=limit, buffer=buffer) == pytest.approx(expected, abs=1e-12)


def test_tokens_count_and_not_characters():
    reward = with_overlong_penalty(make_reward(lambda sample: 1.0), max_tokens=100, buffer=20)
    assert reward(sample_of(80, "a" * 1000)).value == 1.0
    assert reward(sample_of(100, "a")).value == 0.0


def test_the_penalty_widens_the_range_downwards_and_is_a_part():
    reward = with_overlong_penalty(make_reward(lambda sample: 0.5, name="right"), max_tokens=100, buffer=20, factor=2.0)
    assert (reward.name, reward.low, reward.high) == ("right", -2.0, 1.0)
    score = reward(sample_of(90))
    assert (score.value, score.parts) == (-0.5, {"right": 0.5, "overlong": -0.5})
    assert (reward.part_names, reward.part_weights) == (("right", "overlong"), (1.0, 2.0))
    assert safe_score(reward, sample_of(200)).error is None


def test_the_parts_of_a_combined_reward_stay():
    inner = as_reward({"right": (lambda completion: 1.0, 2.0), "form": (lambda completion: 0.5, 1.0)})
    reward = with_overlong_penalty(inner, max_tokens=100, buffer=20)
    score = reward(sample_of(100))
    assert (score.value, score.parts) == (1.5, {"right": 1.0, "form": 0.5, "overlong": -1.0})
    assert (reward.part_names, reward.part_weights) == (("right", "form", "overlong"), (2.0, 1.0, 1.0))


def test_what_could_not_be_scored_stays_so():
    reward = with_overlong_penalty(as_reward(lambda completion: None), max_tokens=100, buffer=20)
    score = safe_score(reward, sample_of(100))
    assert (score.value, score.parts) == (None, {"overlong": -1.0})
    assert "returned None" in str(score.error)


def test_a_reward_that_takes_batches_is_called_once():
    sizes: list[int] = []

    def ones(completions: list[str]) -> list[float]:
        sizes.append(len(completions))
        return [1.0] * len(completions)

    reward = with_overlong_penalty(as_reward(ones), max_tokens=100, buffer=20)
    assert [score.value for score in score_all(reward, [sample_of(count) for count in (80, 90, 100)])] == [1.0, 0.5, 0.0]
    assert sizes == [3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 100, "buffer": 0}, "buffer of 0 tokens: give 1 to 100"),
        ({"max_tokens": 100, "buffer": 101}, "buffer of 101 tokens"),
        ({"max_tokens": 100, "buffer": 20, "factor": 0.0}, "penalty of 0.0: give a positive number"),
    ],
)
def test_a_penalty_that_makes_no_sense_is_refused(options: dict[str, int], message: str):
    with pytest.raises(CoveyError, match=message):
        with_overlong_penalty(make_reward(lambda sample: 1.0), **options)


def test_a_second_penalty_is_refused():
    once = with_overlong_penalty(make_reward(lambda sample: 1.0), max_tokens=100, buffer=20)
    with pytest.raises(CoveyError, match="has a part 'overlong' already"):
        with_overlong_penalty(once, max_tokens=100, buffer=20)
