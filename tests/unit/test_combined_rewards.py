"""Several rewards as one: golden values, the laws of each combination, and that a failed part is never a 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.builders import make_reward, make_sample

from covey.rewards.base import Reward, Sample, as_reward, safe_score, score_all
from covey.rewards.combine import COMBINATIONS, CombinedReward, combine_rewards
from covey.types import CoveyError, Score

SAMPLE = make_sample("21")


def constant(value: float, *, low: float = 0.0, high: float = 1.0) -> Reward:
    return make_reward(lambda sample: value, low=low, high=high)


def combined(values: Sequence[float], how: Any = "sum", **options: Any) -> CombinedReward:
    return combine_rewards({f"r{place}": (constant(value), 1.0) for place, value in enumerate(values)}, how, **options)


def fail(completion: str) -> float:
    raise ValueError("the grader was away")


# Golden values


def test_a_sum_weighs_raw_values_and_its_range_follows():
    reward = combine_rewards({"right": (constant(1.0), 2.0), "brief": (constant(-0.5, low=-1.0), 0.5)})
    assert (reward.low, reward.high) == (-0.5, 2.5)
    score = reward(SAMPLE)
    assert (score.value, score.parts) == (1.75, {"right": 1.0, "brief": -0.5})


def test_a_product_is_closed_by_one_part_at_0():
    assert combined([0.5, 0.8], "product")(SAMPLE).value == pytest.approx(0.4)
    assert combined([1.0, 0.0], "product")(SAMPLE).value == 0.0


def test_a_ranking_moves_each_part_to_0_to_1_and_gives_later_ones_less():
    parts = {"grade": (constant(3.0, low=1.0, high=5.0), 1.0), "form": (constant(1.0), 1.0), "brief": (constant(0.5), 1.0)}
    reward = combine_rewards(parts, "lexicographic", tie_break=0.1)
    assert reward(SAMPLE).value == pytest.approx(0.5 + 0.1 + 0.005)
    assert (reward.low, reward.high) == (0.0, pytest.approx(1.11))
    assert reward(SAMPLE).parts == {"grade": 3.0, "form": 1.0, "brief": 0.5}


def test_names_and_weights_are_those_given():
    reward = combine_rewards({"a": (constant(1.0), 2.0), "b": (constant(1.0), 0.5)})
    assert (reward.name, reward.part_names, reward.part_weights) == ("sum of a, b", ("a", "b"), (2.0, 0.5))


# Laws

SHARES = st.floats(0, 1)


@given(st.lists(st.tuples(SHARES, st.floats(0.01, 100)), min_size=1, max_size=5), st.floats(0.01, 100))
def test_a_sum_is_linear_in_its_weights(pairs: list[tuple[float, float]], factor: float):
    reward = combine_rewards({str(place): (constant(value), weight) for place, (value, weight) in enumerate(pairs)})
    scaled = combine_rewards({str(place): (constant(value), factor * weight) for place, (value, weight) in enumerate(pairs)})
    total = sum(value * weight for value, weight in pairs)
    assert reward(SAMPLE).value == pytest.approx(total, abs=1e-9)
    assert scaled(SAMPLE).value == pytest.approx(factor * total, abs=1e-9)


@given(st.lists(SHARES, min_size=1, max_size=5))
def test_a_product_is_never_above_its_smallest_part(values: list[float]):
    value = combined(values, "product")(SAMPLE).value
    assert value is not None
    assert 0 <= value <= min(values)


@given(st.lists(st.integers(0, 4), min_size=3, max_size=3), st.lists(st.integers(0, 4), min_size=3, max_size=3))
def test_a_ranking_orders_as_tuples_do_while_earlier_parts_differ_by_more_than_the_later_can_give(
    first: list[int], second: list[int]
):
    """In quarters, a difference of 0.25 outweighs all that tie_break=0.1 leaves to the parts after it: 0.11."""
    values = [combined([part / 4 for part in parts], "lexicographic")(SAMPLE).value or 0.0 for parts in (first, second)]
    assert (values[0] > values[1]) is (tuple(first) > tuple(second))


@pytest.mark.parametrize("how", COMBINATIONS)
@given(values=st.lists(SHARES, min_size=2, max_size=5), raised=SHARES, data=st.data())
def test_no_combination_falls_when_a_part_rises(how: Any, values: list[float], raised: float, data: st.DataObject):
    place = data.draw(st.integers(0, len(values) - 1))
    higher = [max(value, raised) if index == place else value for index, value in enumerate(values)]
    below, above = combined(values, how)(SAMPLE).value, combined(higher, how)(SAMPLE).value
    assert below is not None
    assert above is not None
    assert below <= above


@given(
    st.sampled_from(["sum", "lexicographic"]),
    st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3), st.floats(0.01, 10)), min_size=1, max_size=5),
    st.booleans(),
)
def test_the_ends_of_the_range_are_within_it(how: Any, ranges: list[tuple[float, float, float]], at_top: bool):
    """Rounding must not push a perfect completion out of the declared range: it would count as an error."""
    parts = {
        str(place): (
            constant(low + width if at_top else low, low=low, high=low + width),
            weight if how == "sum" else 1.0,
        )
        for place, (low, width, weight) in enumerate(ranges)
    }
    assert safe_score(combine_rewards(parts, how), SAMPLE).error is None


# Parts that fail


@pytest.mark.parametrize("how", COMBINATIONS)
def test_a_part_that_fails_leaves_no_value_but_the_others_are_recorded(how: Any):
    reward = combine_rewards(
        {"right": (constant(0.0), 1.0), "form": (as_reward(fail), 1.0), "brief": (constant(1.0), 1.0)}, how
    )
    score = safe_score(reward, SAMPLE)
    assert score.value is None
    assert score.parts == {"right": 0.0, "brief": 1.0}
    assert "part 'form' could not be scored" in str(score.error)
    assert "the grader was away" in str(score.error)


def test_each_part_that_fails_is_named():
    reward = as_reward({"one": fail, "two": lambda completion: None, "three": lambda completion: 7.0})
    score = safe_score(reward, SAMPLE)
    assert score.parts == {}
    assert all(f"part {name!r}" in str(score.error) for name in ("one", "two", "three"))
    assert "returned 7.0, outside its declared range" in str(score.error)


def test_one_unscored_completion_leaves_the_others_of_the_batch_alone():
    reward = as_reward([lambda completion: None if completion == "2" else 1.0, lambda completion: 0.5])
    scores = score_all(reward, [make_sample(text) for text in ("1", "2", "3")])
    assert [score.value for score in scores] == [1.5, None, 1.5]
    assert dict(scores[1].parts) == {"<lambda>_2": 0.5}


def test_the_parts_of_a_part_and_its_answer_are_kept():
    inner = make_reward(lambda sample: 1.0)
    graded = as_reward({"graded": lambda completion: Score(value=0.5, parts={"form": 0.25}, extracted="21"), "plain": inner})
    score = graded(SAMPLE)
    assert (score.parts, score.extracted) == ({"graded.form": 0.25, "graded": 0.5, "plain": 1.0}, "21")


# Batches


def test_a_part_that_takes_batches_is_called_once():
    sizes: list[int] = []

    def lengths(completions: list[str]) -> list[float]:
        sizes.append(len(completions))
        return [len(text) / 10 for text in completions]

    reward = as_reward([lengths, lambda completion: float(completion == "bb")])
    scores = score_all(reward, [make_sample(text) for text in ("a", "bb", "ccc")])
    assert [score.value for score in scores] == pytest.approx([0.1, 1.2, 0.3])
    assert sizes == [3]


# as_reward


def right(completion: str) -> float:
    return 1.0


def brief(completion: str) -> float:
    return 0.5


def test_a_list_becomes_a_weighted_sum_under_the_names_of_its_functions():
    reward = as_reward([right, brief], reward_weights=[2.0, 1.0])
    score = reward(SAMPLE)
    assert (score.value, score.parts) == (2.5, {"right": 1.0, "brief": 0.5})
    assert (reward.low, reward.high) == (0.0, 3.0)
    assert as_reward([right, brief])(SAMPLE).value == 1.5


def test_a_name_that_comes_again_gets_a_number():
    reward = as_reward([right, right, right])
    assert isinstance(reward, CombinedReward)
    assert reward.part_names == ("right", "right_2", "right_3")


def test_a_mapping_gives_names_and_weights():
    reward = as_reward({"correct": (right, 2.0), "short": brief})
    score = reward(SAMPLE)
    assert (score.value, score.parts) == (2.5, {"correct": 1.0, "short": 0.5})


def test_the_range_is_that_of_each_function():
    reward = as_reward([right, brief], (-1.0, 1.0), reward_weights=[2.0, 1.0])
    assert (reward.low, reward.high) == (-3.0, 3.0)


def test_a_reward_with_a_range_of_its_own_keeps_it():
    assert as_reward([constant(5.0, low=0.0, high=5.0), right], (-1.0, 1.0)).high == 6.0


WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "too few weights": ([right, brief], {"reward_weights": [1.0]}, "2 rewards and 1 reward_weights"),
    "weights of one": (right, {"reward_weights": [1.0]}, "reward_weights goes with a list"),
    "weights of a mapping": ({"a": right}, {"reward_weights": [1.0]}, r"in a mapping, give \{'name': \(reward, weight\)"),
    "an empty list": ([], {}, "no rewards were given"),
    "a text in a list": ([right, "brief"], {}, "reward 'brief' is not a function"),
    "a weight of 0": ([right, brief], {"reward_weights": [1.0, 0.0]}, "'brief' has the weight 0.0; give a positive one"),
    "a negative weight": ({"a": (right, -1.0)}, {}, "'a' has the weight -1.0.*return negative values"),
    "no weight": ({"a": (right, math.nan)}, {}, "'a' has the weight nan"),
    "a triple": ({"a": (right, 1.0, 2.0)}, {}, r"give a reward, or a pair \(reward, weight\)"),
    "a pair the wrong way": ({"a": (1.0, right)}, {}, r"give a reward, or a pair \(reward, weight\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_combined_is_refused_with_the_remedy(case: str):
    given_reward, options, message = WRONG[case]
    with pytest.raises(CoveyError, match=message):
        as_reward(given_reward, **options)


def test_a_combination_refuses_what_it_can_make_nothing_of():
    graded = {"a": (constant(1.0, high=2.0), 1.0)}
    with pytest.raises(CoveyError, match=r"'a' has the range \[0.0, 2.0\]; in a product every reward must go from 0 to 1"):
        combine_rewards(graded, "product")
    for how in ("product", "lexicographic"):
        with pytest.raises(CoveyError, match=f"weight 2.0, but a {how} has none"):
            combine_rewards({"a": (constant(1.0), 2.0)}, how)
    with pytest.raises(CoveyError, match="combined by 'mean'; choose one of sum, product, lexicographic"):
        combine_rewards(graded, "mean")  # ty: ignore[invalid-argument-type]
    with pytest.raises(CoveyError, match=r"tie_break=1\.0"):
        combine_rewards(graded, "lexicographic", tie_break=1.0)


def test_the_columns_a_part_needs_are_needed_by_the_whole():
    reward = as_reward([right, lambda completion, unit: 1.0])
    assert isinstance(reward, CombinedReward)
    assert reward.columns == ("unit",)
    score = safe_score(reward, Sample(prompt=SAMPLE.prompt, completion="", num_tokens=1, is_truncated=False))
    assert "no column of that name" in str(score.error)
