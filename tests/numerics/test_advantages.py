"""Advantage estimators: golden numbers, exact zeros, and what they must not depend on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny_batches import stats_of
from torch import Tensor

from covey.algos.advantages import dr_grpo_advantages, grpo_advantages
from covey.algos.registry import ALGORITHMS

ESTIMATORS = [spec.advantage for spec in ALGORITHMS.values()]
every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS, ids=list(ALGORITHMS))
one_group = st.lists(st.integers(-20, 20).map(lambda tenths: tenths / 10), min_size=2, max_size=12)


def assert_close(found: Tensor, expected: Any, *, atol: float = 1e-8) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=torch.float64), atol=atol, rtol=0)


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("grpo_ddof1_eps1e-4", {}),
        ("grpo_ddof1_eps1e-4", {"ddof": 1, "eps": 1e-4}),
        ("grpo_ddof1_eps1e-6", {"eps": 1e-6}),
        ("grpo_ddof0_eps1e-8", {"ddof": 0, "eps": 1e-8}),
    ],
)
def test_grpo_gives_the_golden_advantages(golden: dict[str, Any], key: str, options: dict[str, Any]):
    assert_close(grpo_advantages(stats_of([golden["adv"]["r"]]), **options), [golden["adv"][key]])


def test_dr_grpo_gives_the_golden_advantages(golden: dict[str, Any]):
    assert_close(dr_grpo_advantages(stats_of([golden["adv"]["r"]])), [golden["adv"]["drgrpo"]])


@pytest.mark.parametrize(("name", "key"), [("grpo", "grpo_ddof1_eps1e-4"), ("dr_grpo", "drgrpo")])
def test_the_rows_of_the_table_use_the_documented_estimator(golden: dict[str, Any], name: str, key: str):
    advantages = ALGORITHMS[name].advantage(stats_of([golden["adv"]["r"]]), min_group_std=0.01)
    assert_close(advantages, [golden["adv"][key]])


@every_estimator
@given(reward=st.floats(-1e6, 1e6), size=st.integers(2, 17))
def test_equal_rewards_give_exactly_zero(estimator: Any, reward: float, size: int):
    assert torch.equal(estimator(stats_of([[reward] * size])), torch.zeros(1, size, dtype=torch.float64))


def test_the_float32_group_of_tenths_gives_exactly_zero_whatever_eps_is(golden: dict[str, Any]):
    trap = golden["adv"]["float32_constant_0.1_G7"]
    rewards = torch.full((7,), 0.1, dtype=torch.float32)
    in_float32 = (rewards - rewards.mean()) / (rewards.std() + 1e-8)
    assert in_float32.abs().max() > 0.1  # The trap is real: rounding alone makes up an advantage.
    advantages = grpo_advantages(stats_of([rewards.tolist()]), eps=1e-8)
    assert advantages.tolist() == [[trap["required"]] * 7]


@every_estimator
def test_a_flat_group_beside_an_informative_one_gives_exactly_zero(estimator: Any):
    advantages = estimator(stats_of([[0.1] * 7, [0.1] * 6 + [0.2]]))
    assert torch.equal(advantages[0], torch.zeros(7, dtype=torch.float64))
    assert (advantages[1] != 0).all()


@every_estimator
@pytest.mark.parametrize("rewards", [[None, 0.7, None], [None, None, None]])
def test_fewer_than_two_scored_rollouts_give_exactly_zero(estimator: Any, rewards: list[float | None]):
    assert estimator(stats_of([rewards])).tolist() == [[0.0, 0.0, 0.0]]


@every_estimator
def test_an_unscorable_rollout_gets_zero_and_leaves_the_mean_and_the_deviation(estimator: Any):
    advantages = estimator(stats_of([[None, -1.0, 0.5, None]]))
    alone = estimator(stats_of([[-1.0, 0.5]]))
    assert advantages[0, [0, 3]].tolist() == [0.0, 0.0]
    assert_close(advantages[:, 1:3], alone, atol=1e-15)


@every_estimator
def test_what_stands_in_for_an_unscorable_reward_does_not_matter(estimator: Any):
    clean = stats_of([[None, -1.0, 0.5, 0.25]])
    garbage = stats_of([[None, -1.0, 0.5, 0.25]])
    garbage.rewards[0, 0] = 1e9
    assert torch.equal(estimator(garbage), estimator(clean))


@every_estimator
def test_groups_of_different_scored_sizes_are_each_as_if_alone(estimator: Any):
    rewards = [[1.0, 0.0, 0.3, None, None], [0.2, 0.9, 0.4, 0.1, 0.7], [None, 5.0, None, 6.0, None]]
    together = estimator(stats_of(rewards))
    alone = torch.cat([estimator(stats_of([row])) for row in rewards])
    assert torch.equal(together, alone)


@every_estimator
@given(rewards=one_group)
def test_advantages_of_a_group_sum_to_zero(estimator: Any, rewards: list[float]):
    assert_close(estimator(stats_of([rewards])).sum(), 0.0, atol=1e-10)


@every_estimator
@given(rewards=one_group, shift=st.floats(-100, 100))
def test_a_constant_added_to_every_reward_changes_nothing(estimator: Any, rewards: list[float], shift: float):
    shifted = estimator(stats_of([[reward + shift for reward in rewards]]))
    assert_close(shifted, estimator(stats_of([rewards])), atol=1e-9)


@given(rewards=one_group, scale=st.floats(0.01, 100))
def test_grpo_does_not_see_the_scale_of_the_rewards(rewards: list[float], scale: float):
    scaled = grpo_advantages(stats_of([[scale * reward for reward in rewards]]), eps=scale * 1e-4)
    assert_close(scaled, grpo_advantages(stats_of([rewards]), eps=1e-4), atol=1e-9)


@given(rewards=one_group, scale=st.floats(0.01, 100))
def test_dr_grpo_is_proportional_to_the_scale_of_the_rewards(rewards: list[float], scale: float):
    scaled = dr_grpo_advantages(stats_of([[scale * reward for reward in rewards]]))
    assert_close(scaled, scale * dr_grpo_advantages(stats_of([rewards])), atol=1e-10)


@every_estimator
@given(data=st.data())
def test_reordering_a_group_reorders_its_advantages(estimator: Any, data: st.DataObject):
    rewards = data.draw(st.lists(st.none() | st.integers(-3, 3), min_size=2, max_size=8))
    order = data.draw(st.permutations(range(len(rewards))))
    reordered = estimator(stats_of([[rewards[index] for index in order]]))
    assert_close(reordered, estimator(stats_of([rewards]))[:, order], atol=1e-12)


@every_estimator
@given(order=st.permutations(range(4)))
def test_reordering_the_groups_reorders_their_advantages(estimator: Any, order: list[int]):
    rewards = [[1.0, 0.0, 0.3], [None, 0.9, 0.4], [0.5, 0.5, 0.5], [7.0, 6.0, None]]
    reordered = estimator(stats_of([rewards[index] for index in order]))
    assert torch.equal(reordered, estimator(stats_of(rewards))[order])


def test_without_a_floor_crumbs_of_reward_become_full_size_signal(golden: dict[str, Any]):
    crumbs = stats_of([[0.0015] + [0.0] * 7])
    assert_close(grpo_advantages(crumbs), [golden["adv"]["illusory_eps1e-4_reward_0.0015_vs_0"]])
    assert_close(grpo_advantages(crumbs, eps=1e-6), [golden["adv"]["illusory_eps1e-6"]])


def test_a_group_below_the_floor_is_centred_but_not_scaled(golden: dict[str, Any]):
    stats = stats_of([[0.0015] + [0.0] * 7, golden["adv"]["r"]])
    advantages = grpo_advantages(stats, min_group_std=0.01)
    assert_close(advantages[0], [0.0015 * 7 / 8] + [-0.0015 / 8] * 7, atol=1e-12)
    assert_close(advantages[1], golden["adv"]["grpo_ddof1_eps1e-4"])


@every_estimator
def test_advantages_carry_no_gradient_and_stay_float64(estimator: Any):
    advantages = estimator(stats_of([[1.0, 0.0, 0.5]]))
    assert not advantages.requires_grad
    assert advantages.dtype == torch.float64
