"""Every estimator's golden numbers, and the rules that no formula states: exact zeros, None rewards, crumbs of reward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.numerics.arrays import assert_close, float64, stats_of_answers, stats_of_rewards
from tests.numerics.transcriptions import Answer

from covey.algos.advantages import (
    dr_grpo_advantages,
    grpo_advantages,
    maxrl_advantages,
    opo_advantages,
    passk_advantages,
    passk_max_advantages,
    raw_rewards,
    remax_advantages,
    rloo_advantages,
)
from covey.algos.batch_advantages import (
    batch_std_advantages,
    bnpo_advantages,
    gdpo_advantages,
    reinforce_pp_baseline_advantages,
)
from covey.tensors import GroupStats

TWO_GROUPS = [[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]]


@pytest.fixture
def one_right(golden: dict[str, Any]) -> GroupStats:
    """One right answer among eight."""
    return stats_of_rewards([golden["adv"]["r"]])


def of_parts(*groups: list[list[float]]) -> GroupStats:
    """Return the statistics of groups whose rewards are the sums of these parts."""
    return stats_of_answers([[Answer(reward=sum(parts), parts=tuple(parts)) for parts in group] for group in groups])


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("grpo_ddof1_eps1e-4", {}),
        ("grpo_ddof1_eps1e-4", {"ddof": 1, "eps": 1e-4}),
        ("grpo_ddof1_eps1e-6", {"eps": 1e-6}),
        ("grpo_ddof0_eps1e-8", {"ddof": 0, "eps": 1e-8}),
    ],
)
def test_grpo_is_golden(golden: dict[str, Any], one_right: GroupStats, key: str, options: dict[str, Any]):
    assert_close(grpo_advantages(one_right, **options), [golden["adv"][key]])


def test_dr_grpo_is_golden(golden: dict[str, Any], one_right: GroupStats):
    assert_close(dr_grpo_advantages(one_right), [golden["adv"]["drgrpo"]])


def test_rloo_is_golden(golden: dict[str, Any], one_right: GroupStats):
    assert_close(rloo_advantages(one_right), [golden["adv"]["rloo"]])
    assert golden["adv"]["rloo_equals_drgrpo_times_G/(G-1)"]
    assert_close(rloo_advantages(one_right), dr_grpo_advantages(one_right) * 8 / 7, atol=1e-14)


@pytest.mark.parametrize("all_fail_correction", [True, False])
def test_maxrl_is_golden(golden: dict[str, Any], one_right: GroupStats, all_fail_correction: bool):
    advantages = maxrl_advantages(one_right, all_fail_correction=all_fail_correction)
    assert_close(advantages, [golden["adv"]["maxrl"]])


def test_maxrl_gives_minus_one_to_a_group_in_which_all_fail_and_nothing_without_the_correction():
    stats = stats_of_rewards([[0.0, 0.0, None, 0.0]])
    assert maxrl_advantages(stats).tolist() == [[-1.0, -1.0, 0.0, -1.0]]
    assert maxrl_advantages(stats, all_fail_correction=False).tolist() == [[0.0, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize("num_right", [1, 2])
def test_pass_at_k_training_is_golden(golden: dict[str, Any], num_right: int):
    stats = stats_of_rewards([[1.0] * num_right + [0.0] * (8 - num_right)])
    assert_close(passk_advantages(stats, k=4), [golden["adv"][f"passk_k4_c{num_right}_n8"]])
    assert_close(passk_advantages(stats), [golden["adv"][f"passk_k4_c{num_right}_n8"]])


@pytest.mark.parametrize("num_right", [0, 5, 6, 8])
def test_pass_at_k_training_has_nothing_to_say_where_every_set_of_k_or_none_holds_a_right_answer(num_right: int):
    stats = stats_of_rewards([[1.0] * num_right + [0.0] * (8 - num_right)])
    assert passk_advantages(stats, k=4).tolist() == [[0.0] * 8]


def test_pass_at_k_training_has_nothing_to_say_to_a_group_of_no_more_than_k():
    assert passk_advantages(stats_of_rewards([[1.0, 0.0, 0.0, 0.0, None]]), k=4).tolist() == [[0.0] * 5]


def test_the_best_of_a_group_gets_the_golden_gap_to_the_second_best(golden: dict[str, Any]):
    advantages = passk_max_advantages(stats_of_rewards([[0.9, 0.5, 0.1, 0.1]]))
    assert_close(advantages, [golden["adv"]["passk_max2_norm_[.9,.5,.1,.1]"]])


def test_two_best_answers_have_no_gap():
    assert passk_max_advantages(stats_of_rewards([[0.9, 0.1, 0.9, 0.1]])).tolist() == [[0.0] * 4]


def test_opo_is_golden(golden: dict[str, Any]):
    answers = [Answer(reward=r, length=length) for r, length in zip([1, 0, 0, 1], [10, 20, 30, 40], strict=True)]
    assert_close(opo_advantages(stats_of_answers([answers])), [golden["adv"]["opo_r_[1,0,0,1]_L_[10,20,30,40]"]])


def test_batch_std_is_golden(golden: dict[str, Any]):
    expected = golden["adv"]["batch_std_two_groups_[1,0,0,0|1,1,1,0]"]
    assert_close(batch_std_advantages(stats_of_rewards(TWO_GROUPS)).reshape(-1), expected)


def test_reinforce_pp_baseline_is_golden(golden: dict[str, Any]):
    advantages = reinforce_pp_baseline_advantages(stats_of_rewards(TWO_GROUPS))
    assert_close(advantages.reshape(-1), golden["adv"]["rf++baseline_same"])


def test_gdpo_is_golden_and_the_sum_of_parts_normalised_once_is_another_method(golden: dict[str, Any]):
    stats = of_parts([[0, 0], [1, 0]], [[0, 0], [1, 1]])
    assert_close(gdpo_advantages(stats).reshape(-1), golden["adv"]["gdpo_two_groups_G2_[[0,0],[1,0]|[0,0],[1,1]]"])
    assert_close(grpo_advantages(stats).reshape(-1), golden["adv"]["sum_then_norm_same"])


def test_gdpo_is_golden_for_parts_of_different_scale(golden: dict[str, Any]):
    stats = of_parts([[1, 0.1], [0, 0.1], [1, 0], [0, 0]])
    assert_close(gdpo_advantages(stats).reshape(-1), golden["adv"]["gdpo_scale_[1,.1],[0,.1],[1,0],[0,0]"])
    assert_close(grpo_advantages(stats).reshape(-1), golden["adv"]["sum_then_norm_scale_same"])


def test_raw_rewards_are_the_rewards():
    assert raw_rewards(stats_of_rewards([[0.25, None, -3.0]])).tolist() == [[0.25, 0.0, -3.0]]


def test_remax_measures_each_group_against_its_greedy_completion():
    stats = stats_of_rewards([[1.0, 0.25, None], [1.0, 0.0, 0.5], [1.0, 0.0, 0.5]], baselines=[0.25, None, 1.0])
    assert remax_advantages(stats).tolist() == [[0.75, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, -1.0, -0.5]]


def test_bnpo_divides_by_the_beta_density_matched_to_the_shares_of_successes():
    """By hand: shares 1/4 and 3/4, mean 1/2, variance 1/8, so a = b = 1/2, Beta(7/6, 7/6), symmetric about 1/2."""
    density = 1.0465995937027905  # Gamma(7/3) / Gamma(7/6)^2 * (3/16)^(1/6)
    expected = float64([[3, -1, -1, -1], [1, 1, 1, -3]]) / 4 / density
    assert_close(bnpo_advantages(stats_of_rewards(TWO_GROUPS)), expected, atol=1e-12)


@pytest.mark.parametrize("rewards", [[[1.0, 0.0, 0.0]], [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]])
def test_bnpo_divides_by_one_where_the_groups_do_not_differ(rewards: list[list[float]]):
    stats = stats_of_rewards(rewards)
    assert_close(bnpo_advantages(stats), dr_grpo_advantages(stats), atol=1e-12)


def test_bnpo_is_not_shaken_by_shares_that_differ_by_rounding_alone():
    """Sums of the same numbers in another order differ in the last bit: a variance of 1e-33 is no variance."""
    stats = stats_of_rewards([[0.4, 0.5, 0.7, 0.0, 0.6], [0.0, 0.6, 0.4, 0.5, 0.7], [0.5, 0.6, 0.7, 0.0, 0.4]])
    assert_close(bnpo_advantages(stats), dr_grpo_advantages(stats), atol=1e-9)


# --- crumbs of reward ------------------------------------------------------------------------------------------------


def test_without_a_floor_crumbs_of_reward_become_full_size_signal(golden: dict[str, Any]):
    crumbs = stats_of_rewards([[0.0015] + [0.0] * 7])
    assert_close(grpo_advantages(crumbs), [golden["adv"]["illusory_eps1e-4_reward_0.0015_vs_0"]])
    assert_close(grpo_advantages(crumbs, eps=1e-6), [golden["adv"]["illusory_eps1e-6"]])


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 3.0)])
def test_a_group_below_the_floor_is_centred_and_divided_by_the_range(golden: dict[str, Any], low: float, high: float):
    stats = stats_of_rewards([[0.0015] + [0.0] * 7, golden["adv"]["r"]], low=low, high=high)
    advantages = grpo_advantages(stats, min_group_std=0.01)
    assert_close(advantages[0] * (high - low), [0.0015 * 7 / 8] + [-0.0015 / 8] * 7, atol=1e-12)
    assert_close(advantages[1], golden["adv"]["grpo_ddof1_eps1e-4"])


def test_the_floor_is_a_share_of_the_declared_range(golden: dict[str, Any]):
    """The deviation of one right answer in eight is 0.354: above 0.1 of a range of 1, below 0.1 of a range of 10."""
    of_one, of_ten = (stats_of_rewards([golden["adv"]["r"]], high=high) for high in (1.0, 10.0))
    assert_close(grpo_advantages(of_one, min_group_std=0.1), [golden["adv"]["grpo_ddof1_eps1e-4"]])
    assert_close(grpo_advantages(of_ten, min_group_std=0.1), float64([golden["adv"]["drgrpo"]]) / 10)


def test_the_float32_group_of_tenths_gives_exactly_zero_whatever_eps_is(golden: dict[str, Any]):
    trap = golden["adv"]["float32_constant_0.1_G7"]
    rewards = torch.full((7,), 0.1, dtype=torch.float32)
    in_float32 = (rewards - rewards.mean()) / (rewards.std() + 1e-8)
    assert in_float32.abs().max() > 0.1  # The trap is real: rounding alone makes up an advantage.
    assert grpo_advantages(stats_of_rewards([rewards.tolist()]), eps=1e-8).tolist() == [[trap["required"]] * 7]
    assert golden["adv"]["constant_group_eps1e-4"] == grpo_advantages(stats_of_rewards([[0.7] * 8]))[0].tolist()


@pytest.mark.parametrize("estimator", [reinforce_pp_baseline_advantages, gdpo_advantages])
def test_a_group_with_one_scored_rollout_stays_out_of_the_statistics_of_the_batch(estimator: Any):
    with_it = estimator(stats_of_rewards([[1.0, 0.0, 0.5], [0.7, None, None]]))
    assert_close(with_it, torch.cat([estimator(stats_of_rewards([[1.0, 0.0, 0.5]])), torch.zeros(1, 3)]), atol=1e-12)


@pytest.mark.parametrize("estimator", [batch_std_advantages, reinforce_pp_baseline_advantages, gdpo_advantages])
def test_a_flat_group_counts_in_the_statistics_of_the_batch(estimator: Any):
    with_it = estimator(stats_of_rewards([[1.0, 0.0], [0.5, 0.5]]), eps=1e-12)
    alone = estimator(stats_of_rewards([[1.0, 0.0]]), eps=1e-12)
    assert_close(with_it[0], alone[0] * (3**0.5), atol=1e-10)  # The same sum of squares over 3 instead of 1.
