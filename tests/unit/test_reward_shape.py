"""Rewards for shape: golden values of the penalty for repetition and of the cosine, which acts on right answers alone."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.builders import make_reward, make_sample

from covey.rewards.base import Sample, safe_score, score_all
from covey.rewards.shape import cosine_shape, repetition, repetition_frac, with_cosine_length
from covey.types import CoveyError


@pytest.mark.parametrize(
    ("items", "ngram", "frac"),
    [
        ([5, 5, 5, 5, 5], 2, 0.75),
        ([5, 5, 5, 5, 5], 1, 0.8),
        ([1, 2, 3, 4], 2, 0.0),
        ([1, 2, 1, 2], 2, 1 / 3),
        ([1], 2, 0.0),
        ([], 1, 0.0),
    ],
)
def test_repetition_is_the_share_of_grams_that_came_before(items: list[int], ngram: int, frac: float):
    assert repetition_frac(items, ngram=ngram) == pytest.approx(frac)


@given(items=st.lists(st.integers(0, 3), max_size=20), ngram=st.integers(1, 4))
def test_repetition_counts_each_gram_that_an_earlier_one_equals(items: list[int], ngram: int):
    grams = [items[start : start + ngram] for start in range(max(0, len(items) - ngram + 1))]
    repeated = sum(gram in grams[:place] for place, gram in enumerate(grams))
    assert repetition_frac(items, ngram=ngram) == pytest.approx(repeated / max(1, len(grams)))


def with_tokens(*token_ids: int) -> Sample:
    return replace(make_sample("one two three"), token_ids=token_ids)


def test_five_equal_tokens_lose_three_quarters_of_the_penalty():
    assert repetition(ngram=2, unit="tokens")(with_tokens(5, 5, 5, 5, 5)).value == -0.75
    assert repetition(ngram=2, penalty=4.0, unit="tokens")(with_tokens(5, 5, 5, 5, 5)).value == -3.0
    assert repetition(ngram=2)(with_tokens(5, 5, 5, 5, 5)).value == 0.0


def test_a_text_without_tokens_is_an_error_where_tokens_are_counted():
    score = safe_score(repetition(unit="tokens"), make_sample("a a a a"))
    assert score.value is None
    assert "choose unit='words'" in str(score.error)


@pytest.mark.parametrize("options", [{"ngram": 0}, {"penalty": 0.0}, {"penalty": -1.0}, {"penalty": math.inf}])
def test_a_penalty_that_cannot_be_meant_is_refused(options: dict[str, Any]):
    with pytest.raises(CoveyError, match="give"):
        repetition(**options)


@pytest.mark.parametrize(
    ("num_tokens", "factor"), [(0, 1.0), (25, 0.5 + 0.25 * (1 + math.sqrt(0.5))), (50, 0.75), (100, 0.5), (1000, 0.5)]
)
def test_the_cosine_falls_from_1_to_its_value_at_the_limit(num_tokens: int, factor: float):
    assert cosine_shape(num_tokens, max_tokens=100, at_limit=0.5) == pytest.approx(factor)


@given(first=st.integers(0, 200), second=st.integers(0, 200), at_limit=st.floats(0.01, 1))
def test_a_longer_right_answer_is_never_worth_more_and_always_more_than_a_wrong_one(first: int, second: int, at_limit: float):
    shorter, longer = (cosine_shape(each, max_tokens=100, at_limit=at_limit) for each in sorted((first, second)))
    assert 0 < at_limit * (1 - 1e-12) <= longer <= shorter <= 1


def test_length_counts_among_right_answers_alone():
    reward = with_cosine_length(make_reward(lambda sample: float("42" in sample.completion), name="right"), max_tokens=8)
    texts = ["42", "42 42 42", "41", "41 41 41", ""]
    values = [score.value for score in score_all(reward, [make_sample(text) for text in texts])]
    assert values == pytest.approx([0.5 + 0.25 * (1 + math.sqrt(0.5)), 0.5, 0.0, 0.0, 0.0])


def test_the_lowest_value_is_kept_whatever_it_is():
    grades = {"bad": -1.0, "fair": 0.0, "good": 1.0}
    reward = with_cosine_length(make_reward(lambda sample: grades[sample.completion], low=-1.0), max_tokens=1, at_limit=0.5)
    assert [reward(make_sample(text)).value for text in grades] == [-1.0, -0.5, 0.0]
    assert (reward.low, reward.high) == (-1.0, 1.0)


def test_the_value_without_length_and_the_factor_are_parts():
    score = with_cosine_length(make_reward(lambda sample: 1.0, name="right"), max_tokens=2)(make_sample("42"))
    assert (score.value, score.parts) == (0.5, {"right": 1.0, "length_shape": 0.5})


def test_what_could_not_be_scored_stays_so():
    def fail(sample: Sample) -> float:
        raise ValueError("no")

    score = with_cosine_length(make_reward(fail), max_tokens=2)(make_sample("42"))
    assert score.value is None
    assert "ValueError: no" in str(score.error)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "sampling.max_new_tokens"),
        *itertools.product([{"max_tokens": 9, "at_limit": 0.0}, {"max_tokens": 9, "at_limit": 1.5}], ["give a share"]),
    ],
)
def test_a_shape_that_cannot_be_meant_is_refused(options: dict[str, Any], message: str):
    with pytest.raises(CoveyError, match=message):
        with_cosine_length(make_reward(lambda sample: 1.0), **options)
