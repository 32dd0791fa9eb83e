"""Advantages: the right rewards, in the right groups, normalised as documented, and exactly 0 where there is no signal."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.builders import make_group, make_prompt, make_reward, make_sample
from tests.conformance.cases import batch_of, groups_of, learner_of, noisy, slow_logprobs, stats_of, step_gradient
from tests.ranks import on_ranks
from tests.rows import PLAIN_ROWS

from covey.algos.advantages import dr_grpo_advantages, grpo_advantages
from covey.algos.batch_advantages import gdpo_advantages
from covey.algos.credit import outcome_credit
from covey.algos.objective import Coefficients, Objective
from covey.algos.registry import ALGORITHMS
from covey.batch import group_stats, make_tokens, select_groups
from covey.distributed import ALONE, Ranks
from covey.engines.scripted import ScriptedEngine
from covey.models.policy import Policy, load_policy
from covey.models.tiny import write_tiny_model
from covey.rewards.base import Rewarder, Sample, safe_score
from covey.rewards.combine import combine_rewards
from covey.rollout import RolloutSpec, rollout_metrics, sample_groups, sample_step
from covey.sampling import Sampling
from covey.types import Group, Prompt

ONE_OF_EIGHT = [1.0] + [0.0] * 7
every_row = pytest.mark.parametrize("name", PLAIN_ROWS)


def close(found: Any, expected: Any, *, atol: float = 1e-8) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype), atol=atol, rtol=0)


# Formulas


def test_grpo_divides_by_the_documented_deviation():
    expected = {(1, 1e-4): 2.47417393, (1, 1e-6): 2.47486673, (0, 1e-8): 2.64575123}
    for (ddof, eps), golden in expected.items():
        close(grpo_advantages(stats_of([ONE_OF_EIGHT]), ddof=ddof, eps=eps)[0, 0], golden, atol=1e-7)
    close(grpo_advantages(stats_of([ONE_OF_EIGHT]))[0, 0], 2.47417393, atol=1e-8)


def test_a_flat_group_gives_exactly_zero_whatever_rounding_does():
    for size in range(2, 12):
        for reward in (0.1, 0.3, 0.7, 1.1, 2.3):
            assert not grpo_advantages(stats_of([[reward] * size]), eps=1e-12).any()


@every_row
def test_a_single_scored_completion_has_no_advantage_unless_the_row_has_another_baseline(name: str):
    spec = ALGORITHMS[name]
    for reward in (0.0, 0.4, 1.0):
        stats = stats_of([[None, reward, None], [None, None, None]], baseline=torch.zeros(2, dtype=torch.float64))
        found = Objective.of_row(spec).advantages(stats)
        if spec.min_group_size == 1:
            close(found, [[0.0, reward, 0.0], [0.0] * 3])
        else:
            assert not found.any()


def test_an_unscorable_completion_is_no_wrong_one():
    stats = group_stats([make_group([None, -1.0, 0.5, None])])
    close(dr_grpo_advantages(stats), [[0.0, -0.75, 0.75, 0.0]])


def test_groups_of_different_sizes_are_each_as_if_alone():
    ragged = [[1.0, 0.0, 0.3, None, None, None], [0.2, 0.9, 0.4, 0.1, 0.7, 0.5], [None, 5.0, None, 6.0, None, 7.0]]
    found = grpo_advantages(stats_of(ragged))
    for row, values in enumerate(ragged):
        scored = torch.tensor([value for value in values if value is not None], dtype=torch.float64)
        expected = (scored - scored.mean()) / (scored.std() + 1e-4)
        close(found[row][torch.tensor([value is not None for value in values])], expected)


def test_a_mean_over_groups_counts_each_group_by_its_own_tokens(tiny_policy64: Policy):
    lengths, rewards = [[3, 14], [8, 2], [4, 7]], [[1.0, 0.0], [0.2, 0.9], [0.0, 1.0]]
    learner = learner_of(tiny_policy64, "dr_grpo", aggregation="group-mean-token-mean")
    together = step_gradient(learner, batch_of(learner, groups_of(rewards, lengths)))
    single = [step_gradient(learner, batch_of(learner, [group])) for group in groups_of(rewards, lengths)]
    torch.testing.assert_close(together, sum(single, torch.zeros_like(together)) / 3, atol=1e-12, rtol=1e-8)


def test_gdpo_weighs_parts_after_they_are_normalised():
    """So a part paid in units ten times as large changes nothing, and its weight does."""
    parts = torch.tensor([[[0.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [1.0, 1.0]]], dtype=torch.float64)
    stats = stats_of([[0.0, 1.0], [0.0, 2.0]], parts=parts)
    close(gdpo_advantages(stats), [[-0.54768, 0.54768], [-1.09536, 1.09536]], atol=1e-4)
    large = dataclasses.replace(stats, parts=parts * torch.tensor([1.0, 10.0]))
    close(gdpo_advantages(large), gdpo_advantages(stats), atol=2e-4)
    weights = torch.tensor([1.0, 10.0], dtype=torch.float64)
    weighted = gdpo_advantages(dataclasses.replace(stats, part_weights=weights))
    close(weighted[1, 1] / weighted[0, 1], 11.0, atol=1e-6)


def test_credit_follows_the_rows_of_its_group_and_carries_no_gradient():
    advantages = torch.arange(6, dtype=torch.float64).reshape(2, 3).requires_grad_()
    credit = outcome_credit(advantages, torch.ones(6, 2, dtype=torch.bool))
    close(credit, [[index, index] for index in range(6)])
    assert not credit.requires_grad


# A step without a signal


def test_a_flat_batch_moves_nothing_without_a_kl_term_and_is_held_back_with_one(tiny_policy: Policy):
    learner = learner_of(tiny_policy)
    learner.update(batch_of(learner, groups_of()))  # so that there is momentum
    flat = groups_of([[0.5] * 4] * 3)
    reference = slow_logprobs(tiny_policy.model, flat).detach() - 0.5
    before = torch.cat([weight.detach().reshape(-1).clone() for weight in tiny_policy.model.parameters()])
    assert learner.update(batch_of(learner, flat, ref=reference)).metrics == {}
    assert torch.equal(torch.cat([weight.reshape(-1) for weight in tiny_policy.model.parameters()]), before)
    learner.coefficients = Coefficients(beta=0.1)
    assert learner.update(batch_of(learner, flat, ref=reference)).metrics
    assert not torch.equal(torch.cat([weight.reshape(-1) for weight in tiny_policy.model.parameters()]), before)


# Order


def test_a_minibatch_holds_what_belongs_to_its_rows(tiny_policy64: Policy):
    groups = groups_of()
    logprobs = slow_logprobs(tiny_policy64.model, groups)
    old, ref = noisy(logprobs, scale=0.3, seed=1), noisy(logprobs, scale=0.3, seed=2)
    batch = batch_of(learner_of(tiny_policy64), groups, old=old, ref=ref)
    part = select_groups(batch, [2, 0])
    rows = [8, 9, 10, 11, 0, 1, 2, 3]
    assert part.scores.old_logprobs is not None
    assert part.scores.ref_logprobs is not None
    for found, whole in (
        (part.scores.old_logprobs, old),
        (part.scores.ref_logprobs, ref),
        (part.advantages, batch.advantages),
        (part.tokens.completion_ids, batch.tokens.completion_ids),
        (part.mask, batch.mask),
    ):
        assert torch.equal(found, whole[rows])


def test_every_row_meets_its_own_old_and_reference_log_probs_however_the_step_is_cut(tiny_policy64: Policy):
    groups = groups_of()
    logprobs = slow_logprobs(tiny_policy64.model, groups)
    old, ref = noisy(logprobs, scale=0.3, seed=1), noisy(logprobs, scale=0.3, seed=2)
    options: dict[str, Any] = {"coefficients": Coefficients(beta=0.1)}
    whole, cut = (learner_of(tiny_policy64, cut=size, **options) for size in ((4096, 4096), (40, 0)))
    batch = batch_of(whole, groups, old=old, ref=ref)
    torch.testing.assert_close(step_gradient(cut, batch), step_gradient(whole, batch), atol=1e-12, rtol=1e-8)


# From prompts to groups


def scripted_step(
    policy: Policy, prompts: list[Prompt], reward: Any, *, group_size: int = 3, ranks: Ranks = ALONE
) -> list[Group]:
    """Return groups whose completions name their prompt and their sample: "2 1" is sample 1 of prompt 2."""
    numbers = {tuple(policy.encode(prompt.messages)): index for index, prompt in enumerate(prompts)}
    engine = ScriptedEngine(lambda ids, sample: [*f"{numbers[tuple(ids)]} {sample}".encode(), 257], stop_ids=frozenset({257}))
    groups, _, _ = sample_groups(
        prompts,
        policy=policy,
        engine=engine,
        rewarder=Rewarder(proxy=reward, gold=None),
        sampling=Sampling(max_new_tokens=16),
        keys=[[0] * group_size for _ in prompts],
        ranks=ranks,
    )
    return groups


def hundreds(sample: Sample) -> float:
    """The reward 100 * prompt + sample, from what the completion says of itself."""
    prompt, index = sample.completion.split()
    return 100.0 * int(prompt) + int(index)


PROMPTS = [make_prompt(str(index), f"Question {index}?", answer=index) for index in range(5)]
HUNDREDS = make_reward(hundreds, high=1000.0)


def test_every_group_holds_the_rewards_of_its_own_prompt(shared_tiny_policy: Policy):
    groups = scripted_step(shared_tiny_policy, PROMPTS, HUNDREDS)
    close(group_stats(groups).rewards, [[100 * prompt + sample for sample in range(3)] for prompt in range(5)])
    advantages = dr_grpo_advantages(group_stats(groups))
    close(outcome_credit(advantages, make_tokens(groups).completion_mask)[:, 0], [-1.0, 0.0, 1.0] * 5)


def test_every_completion_is_judged_by_the_answer_to_its_own_prompt(shared_tiny_policy: Policy):
    reward = make_reward(lambda sample: float(int(sample.completion.split()[0]) == sample.prompt.answer))
    for order in ([0, 1, 2, 3, 4], [3, 1, 4, 0, 2], [4, 3, 2, 1, 0]):
        prompts = [dataclasses.replace(PROMPTS[index], answer=place) for place, index in enumerate(order)]
        assert group_stats(scripted_step(shared_tiny_policy, prompts, reward)).rewards.all()


def advantages_on(ranks: Ranks, directory: str) -> list[list[float]]:
    policy = load_policy(directory, compute_dtype="float32")
    groups = scripted_step(policy, PROMPTS, HUNDREDS, group_size=4, ranks=ranks)
    return grpo_advantages(group_stats(groups)).tolist()


def test_every_rank_has_the_advantages_of_a_single_process(tmp_path: Path):
    model = write_tiny_model(tmp_path / "model")
    expected = advantages_on(ALONE, str(model))
    assert len(expected) == 5
    assert on_ranks(2, advantages_on, str(model), directory=tmp_path) == [expected, expected]


def test_choosing_among_groups_keeps_rows_together_and_logs_all_of_them(shared_tiny_policy: Policy):
    """Of prompts 0 to 4 the even ones have flat groups: they are left out of training, but not of the mean reward."""

    def reward(sample: Sample) -> float:
        prompt, index = (int(word) for word in sample.completion.split())
        return 0.5 if prompt % 2 == 0 else float(index == 0)

    numbers = {tuple(shared_tiny_policy.encode(prompt.messages)): index for index, prompt in enumerate(PROMPTS)}
    waiting = list(PROMPTS)
    sampled = sample_step(
        lambda count: [waiting.pop(0) for _ in range(min(count, len(waiting)))],
        RolloutSpec(
            sampling=Sampling(max_new_tokens=16),
            prompts_per_step=3,
            group_size=2,
            max_draws=2,
            keeps=lambda group: not group.is_flat,
            seed=0,
        ),
        step=1,
        policy=shared_tiny_policy,
        engine=ScriptedEngine(lambda ids, k: [*f"{numbers[tuple(ids)]} {k}".encode(), 257], stop_ids=frozenset({257})),
        rewarder=Rewarder(proxy=make_reward(reward), gold=None),
    )
    assert [group.prompt.prompt_id for group in sampled.all] == ["1", "3", "0", "2", "4"]
    assert sampled.draws == [0, 1, 0, 0, 1]
    assert all(rollout.text.split()[0] == group.prompt.prompt_id for group in sampled.all for rollout in group.rollouts)
    metrics = rollout_metrics(sampled, reward_low=0.0, reward_high=1.0)
    assert metrics["reward/mean"].value == pytest.approx(0.5)
    assert metrics["group/num_used"].value == 2
    assert metrics["group/num_sampled"].value == 5


def test_a_part_that_could_not_be_scored_leaves_the_whole_without_a_value():
    parts = {"works": (make_reward(lambda sample: 0.5), 1.0), "fails": (make_reward(lambda sample: math.nan), 1.0)}
    score = safe_score(combine_rewards(parts), make_sample("x"))
    assert score.value is None
    assert score.parts == {"works": 0.5}
