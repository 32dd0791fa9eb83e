"""What advantages must not depend on, and when they must be exactly zero: for every row of the table."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.numerics.arrays import GARBAGE, assert_close, stats_of_answers, stats_of_rewards, tenths
from tests.numerics.transcriptions import Answer
from tests.rows import PLAIN_ROWS
from torch import Tensor

from covey.algos.advantages import dr_grpo_advantages, grpo_advantages, rloo_advantages
from covey.algos.batch_advantages import gdpo_advantages, reinforce_pp_baseline_advantages
from covey.algos.objective import Objective
from covey.algos.registry import ALGORITHMS
from covey.tensors import GroupStats

ABSOLUTE = {"reinforce", "reinforce_pp", "remax"}
"""Rows whose baseline is not the group."""
BATCH_WIDE = {"reinforce_pp_baseline", "batch_std", "bnpo", "gdpo"}
"""Rows whose statistics span all groups."""
NOT_CENTRED = ABSOLUTE | {"opo", "passk_max"}
RELATIVE = [name for name in PLAIN_ROWS if name not in ABSOLUTE]

every_row = pytest.mark.parametrize("name", PLAIN_ROWS)
every_relative_row = pytest.mark.parametrize("name", RELATIVE)
one_group = st.lists(tenths, min_size=3, max_size=9)
RAGGED = [[1.0, 0.0, 0.3, None, None], [0.2, 0.9, 0.4, 0.1, 0.7], [None, 1.0, None, 0.5, None]]


def advantages_of(name: str, stats: GroupStats, **options: Any) -> Tensor:
    """Return the row's advantages; k = 2, so that small groups have sets that differ."""
    options = {"k": 2} | options
    objective = Objective.of_row(ALGORITHMS[name])
    own = {key: value for key, value in options.items() if key in objective.options}
    if ALGORITHMS[name].needs_baseline and stats.baseline is None:
        stats = dataclasses.replace(stats, baseline=torch.full(stats.rewards.shape[:1], 0.5, dtype=torch.float64))
    return dataclasses.replace(objective, options={**objective.options, **own}).advantages(stats)


def test_the_rows_named_here_exist():
    assert set(ALGORITHMS) >= (ABSOLUTE | BATCH_WIDE | NOT_CENTRED)


# --- exact zeros -----------------------------------------------------------------------------------------------------


@every_relative_row
@given(reward=st.floats(0.001, 0.999), size=st.integers(2, 17))
def test_equal_rewards_give_exactly_zero(name: str, reward: float, size: int):
    advantages = advantages_of(name, stats_of_rewards([[reward] * size]))
    assert torch.equal(advantages, torch.zeros(1, size, dtype=torch.float64))


@pytest.mark.parametrize("eps", [0.0, 1e-12])
@every_relative_row
def test_equal_rewards_give_exactly_zero_with_no_or_hardly_any_eps(name: str, eps: float):
    stats = stats_of_rewards([[0.1] * 7, [0.1] * 7])
    assert torch.equal(advantages_of(name, stats, eps=eps), torch.zeros(2, 7, dtype=torch.float64))


@every_relative_row
def test_a_flat_group_beside_others_gives_exactly_zero(name: str):
    """Not merely 1e-17, which the learner would take for a signal."""
    rewards = [[0.1] * 7, [0.3, 0.3, 0.9, 0.8, 0.7, 0.1, 0.2], [0.7, 0.6, 0.1, 0.2, 0.3, 0.5, 0.9]]
    lengths = [[1, 2, 3, 4, 5, 6, 7], [7, 3, 1, 1, 2, 9, 8], [5, 1, 7, 3, 2, 8, 1]]
    rows = zip(rewards, lengths, strict=True)
    stats = stats_of_answers([[Answer(reward=r, length=n) for r, n in zip(*row, strict=True)] for row in rows])
    advantages = advantages_of(name, stats)
    assert torch.equal(advantages[0], torch.zeros(7, dtype=torch.float64))
    assert (advantages[1:] != 0).any(dim=1).all()


def test_a_flat_group_gives_exactly_zero_when_tokens_are_what_is_whitened():
    answers = [[Answer(reward=0.1, length=4)] * 2, [Answer(reward=1.0, length=9), Answer(reward=0.0, length=1)]]
    advantages = reinforce_pp_baseline_advantages(stats_of_answers(answers), whiten_over="tokens")
    assert advantages[0].tolist() == [0.0, 0.0]


@every_relative_row
@pytest.mark.parametrize("rewards", [[[None, 0.7, None]], [[None, None, None]], [[0.7]], [[None]]])
def test_fewer_than_two_scored_rollouts_give_exactly_zero(name: str, rewards: list[list[float | None]]):
    assert advantages_of(name, stats_of_rewards(rewards)).tolist() == [[0.0] * len(rewards[0])]


@every_relative_row
def test_one_rollout_that_failed_is_no_group_either(name: str):
    assert advantages_of(name, stats_of_rewards([[0.0, None, None]])).tolist() == [[0.0] * 3]


@pytest.mark.parametrize("name", sorted(ABSOLUTE))
def test_without_a_baseline_from_the_group_one_rollout_teaches_and_none_does_not(name: str):
    assert advantages_of(name, stats_of_rewards([[None, 0.7]]))[0, 1] != 0
    assert advantages_of(name, stats_of_rewards([[None, None]])).tolist() == [[0.0, 0.0]]


@every_row
def test_a_batch_of_singletons_and_failures_to_score_is_finite(name: str):
    advantages = advantages_of(name, stats_of_rewards([[0.7, None], [None, None], [None, 0.2]]))
    assert torch.isfinite(advantages).all()


# --- rollouts that could not be scored -------------------------------------------------------------------------------


@every_row
def test_an_unscorable_rollout_gets_zero_and_leaves_all_statistics(name: str):
    advantages = advantages_of(name, stats_of_rewards([[None, 0.1, 0.5, None, 1.0], [0.3, 0.2, 0.9, None, None]]))
    alone = advantages_of(name, stats_of_rewards([[0.1, 0.5, 1.0], [0.3, 0.2, 0.9]]))
    assert_close(advantages[0, [0, 3]], [0.0, 0.0], atol=0)
    assert_close(advantages[1, 3:], [0.0, 0.0], atol=0)
    assert_close(torch.stack([advantages[0, [1, 2, 4]], advantages[1, :3]]), alone, atol=1e-12)


@every_row
@pytest.mark.parametrize("garbage", [GARBAGE, -GARBAGE, torch.nan])
def test_what_stands_in_for_an_unscorable_reward_does_not_matter(name: str, garbage: float):
    answers = [[Answer(reward=r, length=2, parts=(r or 0.0,)) for r in (None, 0.2, 0.5, 0.25)]]
    clean, spoiled = stats_of_answers(answers), stats_of_answers(answers)
    spoiled.rewards[0, 0] = garbage
    spoiled.parts[0, 0] = garbage
    spoiled.lengths[0, 0] = 10**6
    assert torch.equal(advantages_of(name, spoiled), advantages_of(name, clean))


@pytest.mark.parametrize("name", [name for name in PLAIN_ROWS if name not in BATCH_WIDE])
def test_groups_of_different_scored_sizes_are_each_as_if_alone(name: str):
    together = advantages_of(name, stats_of_rewards(RAGGED))
    alone = torch.cat([advantages_of(name, stats_of_rewards([row])) for row in RAGGED])
    assert_close(together, alone, atol=1e-14)


# --- what makes no difference ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in PLAIN_ROWS if name not in NOT_CENTRED])
@given(rewards=st.lists(st.sampled_from([0.0, 0.1, 0.7, 1.0]), min_size=3, max_size=9))
def test_advantages_of_a_group_sum_to_zero(name: str, rewards: list[float]):
    advantages = advantages_of(name, stats_of_rewards([rewards]), all_fail_correction=False)
    assert_close(advantages.sum(), 0.0, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in RELATIVE if name not in {"maxrl", "passk", "bnpo"}])
@given(rewards=one_group, shift=st.floats(-100, 100))
def test_a_constant_added_to_every_reward_changes_nothing(name: str, rewards: list[float], shift: float):
    shifted = advantages_of(name, stats_of_rewards([[reward + shift for reward in rewards]]))
    assert_close(shifted, advantages_of(name, stats_of_rewards([rewards])), atol=1e-9)


@pytest.mark.parametrize("name", ["maxrl", "passk", "bnpo"])
@given(rewards=st.lists(st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=4, max_size=4), min_size=1, max_size=3))
def test_rewards_and_their_range_moved_and_stretched_together_change_nothing(name: str, rewards: list[list[float]]):
    moved = stats_of_rewards([[8 * reward - 3 for reward in row] for row in rewards], low=-3, high=5)
    assert_close(advantages_of(name, moved), advantages_of(name, stats_of_rewards(rewards)), atol=1e-12)


@every_row
@given(data=st.data())
def test_reordering_a_group_reorders_its_advantages(name: str, data: st.DataObject):
    answer = st.builds(Answer, reward=st.none() | tenths, length=st.integers(1, 5))
    answers = data.draw(st.lists(answer, min_size=3, max_size=8))
    order = data.draw(st.permutations(range(len(answers))))
    reordered = advantages_of(name, stats_of_answers([[answers[index] for index in order]], low=-2, high=2))
    assert_close(reordered, advantages_of(name, stats_of_answers([answers], low=-2, high=2))[:, order], atol=1e-9)


@every_row
@given(order=st.permutations(range(4)))
def test_reordering_the_groups_reorders_their_advantages(name: str, order: list[int]):
    rewards = [[1.0, 0.0, 0.3], [None, 0.9, 0.4], [0.5, 0.5, 0.5], [0.7, 0.6, None]]
    reordered = advantages_of(name, stats_of_rewards([rewards[index] for index in order]))
    assert_close(reordered, advantages_of(name, stats_of_rewards(rewards))[order], atol=1e-12)


@given(rewards=one_group, scale=st.floats(0.01, 100), shift=st.floats(-10, 10))
def test_grpo_does_not_see_the_scale_of_the_rewards_nor_their_zero(rewards: list[float], scale: float, shift: float):
    scaled = grpo_advantages(stats_of_rewards([[scale * reward + shift for reward in rewards]]), eps=scale * 1e-4)
    assert_close(scaled, grpo_advantages(stats_of_rewards([rewards]), eps=1e-4), atol=1e-8)


@given(rewards=one_group, scale=st.floats(0.01, 100))
def test_dr_grpo_is_proportional_to_the_scale_of_the_rewards(rewards: list[float], scale: float):
    scaled = dr_grpo_advantages(stats_of_rewards([[scale * reward for reward in rewards]]))
    assert_close(scaled, scale * dr_grpo_advantages(stats_of_rewards([rewards])), atol=1e-10)


@given(rewards=one_group)
def test_rloo_is_dr_grpo_times_a_constant_that_depends_on_how_many_were_scored(rewards: list[float]):
    count = len(rewards)
    stats = stats_of_rewards([[*rewards, None]])
    assert_close(rloo_advantages(stats), count / (count - 1) * dr_grpo_advantages(stats), atol=1e-12)


@given(data=st.data(), part=st.integers(0, 2))
def test_a_part_paid_in_units_ten_times_as_large_changes_nothing_in_gdpo(data: st.DataObject, part: int):
    answer = st.builds(Answer, reward=st.none() | st.just(0.0), parts=st.tuples(tenths, tenths, tenths))
    groups = data.draw(st.lists(st.lists(answer, min_size=4, max_size=4), min_size=1, max_size=3))
    stats, scaled = stats_of_answers(groups), stats_of_answers(groups)
    scaled.parts[..., part] *= 10
    assert_close(gdpo_advantages(scaled, eps=1e-12), gdpo_advantages(stats, eps=1e-12), atol=1e-9)


# --- form ------------------------------------------------------------------------------------------------------------


@every_row
def test_advantages_carry_no_gradient_and_stay_float64(name: str):
    advantages = advantages_of(name, stats_of_rewards([[1.0, 0.0, 0.5]]))
    assert not advantages.requires_grad
    assert advantages.dtype == torch.float64


@every_row
def test_the_arguments_stay_as_they_were(name: str):
    answers = [[Answer(reward=r, length=2, parts=(0.5, r or 0.0)) for r in (None, 0.0, 0.5, 1.0)]]
    stats = stats_of_answers(answers, part_weights=[1.0, 2.0], baselines=[0.25])
    advantages_of(name, stats)
    before = stats_of_answers(answers, part_weights=[1.0, 2.0], baselines=[0.25])
    for field in dataclasses.fields(GroupStats):
        expected = getattr(before, field.name)
        if isinstance(expected, Tensor):
            assert torch.equal(getattr(stats, field.name), expected)


# --- which groups teach something ------------------------------------------------------------------------------------


@every_row
@given(rewards=st.lists(st.none() | st.sampled_from([0.0, 0.1, 0.5, 1.0]), min_size=3, max_size=6))
def test_a_group_without_a_signal_has_no_advantage_and_a_group_with_an_advantage_has_a_signal(
    name: str, rewards: list[float | None]
):
    objective = Objective.of_row(ALGORITHMS[name])
    stats = stats_of_rewards([rewards, [0.0, 1.0, *rewards[2:]]], baselines=[0.5, 0.5])
    has_advantage = (objective.advantages(stats) != 0).any(dim=1)
    has_signal = objective.has_signal(stats)[:, 0]
    assert not (has_advantage & ~has_signal).any()


@pytest.mark.parametrize("name", [name for name in PLAIN_ROWS if name not in {"passk", "passk_max"}])
def test_a_group_whose_rewards_differ_has_a_signal(name: str):
    stats = stats_of_rewards([[0.0, 1.0, None], [0.2, 0.2, 0.1]], baselines=[0.5, 0.5])
    assert Objective.of_row(ALGORITHMS[name]).has_signal(stats).tolist() == [[True], [True]]


@every_relative_row
def test_a_flat_group_has_a_signal_only_if_all_fail_and_the_row_corrects_for_that(name: str):
    stats = stats_of_rewards([[0.0] * 6, [0.1] * 6, [1.0] * 6])
    assert Objective.of_row(ALGORITHMS[name]).has_signal(stats).tolist() == [[name == "maxrl"], [False], [False]]


@pytest.mark.parametrize("key", ["p0.05_G2", "p0.05_G16", "p0.18_G8", "p0.5_G4", "p0.9_G8", "p0.9_G16"])
def test_the_expected_share_of_groups_without_a_signal_is_golden(golden: dict[str, Any], key: str):
    p, group_size = float(key[1:].split("_G")[0]), int(key.split("_G")[1])
    objective = Objective.of_row(ALGORITHMS["grpo"])
    rights = torch.arange(group_size + 1)
    outcomes = stats_of_rewards([[1.0] * right + [0.0] * (group_size - right) for right in rights.tolist()])
    probability = torch.distributions.Binomial(group_size, torch.tensor(p).double()).log_prob(rights.double()).exp()
    flat = ~objective.has_signal(outcomes)[:, 0]
    assert float(probability[flat].sum()) == pytest.approx(golden["degenerate_p^G+(1-p)^G"][key], abs=1e-6)
