"""The value model of PPO, and the credit that it gives: against plain forwards, REINFORCE and itself cut otherwise."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import in_float64
from tests.ranks import on_ranks
from tests.tiny_batches import SPEC, STATS, WHOLE, Cut, gradient_of, make_learner, objective_of, ragged_groups, relative_error
from torch import Tensor, nn

from covey.algos.critic import ppo_credit
from covey.algos.objective import Coefficients, Objective
from covey.algos.registry import ALGORITHMS
from covey.batch import make_tokens
from covey.critic import Critic, CriticKind, CriticSpec, explained_variance, new_critic
from covey.distributed import ALONE, Ranks
from covey.learner import Learner
from covey.metrics import metric_values
from covey.models.lora import AdapterSpec
from covey.models.policy import Policy, load_policy, with_adapters
from covey.tensors import Scores, Tokens
from covey.types import CoveyError

CRITIC = CriticSpec(learning_rate=1e-2, warmup_steps=0, max_grad_norm=1.0, value_epsilon=0.2)
every_cut = pytest.mark.parametrize("cut", [(1, 0), (64, 64), (4096, 0), WHOLE], ids=str)


def tokens_of() -> Tokens:
    return make_tokens(ragged_groups(), (), STATS)


def critic_of(
    policy: Policy, kind: CriticKind = "separate", *, cut: Cut = WHOLE, ranks: Ranks = ALONE, head: bool = True
) -> Critic:
    """Return a critic of the tiny model; `head`: with a head that is not 0, so that there is something to see."""
    learner = make_learner(policy, objective_of("grpo"), cut=cut)
    critic = new_critic(policy.model, kind, CRITIC, learner.scoring, ranks=ranks)
    if head:
        numbers = torch.randn(critic.head.weight.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        critic.head.weight.data.copy_(numbers)
        critic.head.bias.data.fill_(0.25)
    return critic


def slow_values(critic: Critic) -> Tensor:
    """Return the values [B, T + 1] by a plain forward of each completion alone."""
    groups = ragged_groups()
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    width = max(len(rollout.completion.token_ids) for rollout in rollouts) + 1
    rows = []
    for rollout in rollouts:
        ids = torch.tensor([rollout.prompt_ids + rollout.completion.token_ids])
        hidden = critic.trunk.get_decoder()(input_ids=ids).last_hidden_state[0, len(rollout.prompt_ids) - 1 :]
        values = critic.head(hidden.to(critic.dtype))[:, 0]
        rows.append(nn.functional.pad(values, (0, width - len(values))))
    return torch.stack(rows)


# --- Values ----------------------------------------------------------------------------------------------------------


@every_cut
@pytest.mark.parametrize("kind", ["separate", "head"])
def test_values_are_those_of_a_plain_forward_however_they_are_cut(shared_tiny_policy64: Policy, kind: CriticKind, cut: Cut):
    critic, tokens = critic_of(shared_tiny_policy64, kind, cut=cut), tokens_of()
    expected = slow_values(critic).detach()
    scored = tokens.completion_mask.any(dim=1)
    assert not bool(critic.values(tokens)[~scored].any())
    assert torch.allclose(critic.values(tokens)[scored], expected[scored], atol=1e-10)


def test_the_first_values_are_zero(shared_tiny_policy: Policy):
    assert not bool(critic_of(shared_tiny_policy, head=False).values(tokens_of()).any())


@every_cut
def test_the_gradient_is_that_of_the_clipped_loss_however_it_is_cut(shared_tiny_policy64: Policy, cut: Cut):
    critic, tokens = critic_of(shared_tiny_policy64, cut=cut), tokens_of()
    mask, (old, returns) = tokens.completion_mask, old_and_returns(tokens)
    values = slow_values(critic)[:, : mask.shape[1]]
    clipped = old + (values - old).clamp(-0.2, 0.2)
    loss = (0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2))[mask].mean()
    expected = torch.cat([piece.reshape(-1) for piece in torch.autograd.grad(loss, trained_of(critic))])
    found = gradient_of_update(critic, tokens, old, returns)
    assert float(expected.norm()) > 1e-3
    assert relative_error(found, expected) < 1e-10


def trained_of(critic: Critic) -> list[nn.Parameter]:
    return [weight for weight in critic.trained.parameters() if weight.requires_grad]


def old_and_returns(tokens: Tokens) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(9)
    old, returns = (torch.randn(tokens.completion_mask.shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return old, returns


def gradient_of_update(critic: Critic, tokens: Tokens, old: Tensor, returns: Tensor) -> Tensor:
    """Return the gradient that the optimizer would have seen, before it was clipped."""
    for packs in critic._plan(tokens):
        critic._backward(tokens, packs, old, returns, tokens.completion_mask, num_tokens=int(tokens.completion_mask.sum()))
    return torch.cat([weight.grad.reshape(-1) for weight in trained_of(critic) if weight.grad is not None])


def test_the_loss_falls_on_a_batch_and_the_returns_are_explained(shared_tiny_policy: Policy):
    critic, tokens = critic_of(shared_tiny_policy, head=False), tokens_of()
    returns = torch.where(tokens.completion_mask, tokens.stats.rewards.reshape(-1, 1).float(), 0.0)
    found = []
    for _ in range(30):
        values = critic.values(tokens)[:, :-1]
        found.append(metric_values(critic.update(tokens, values, returns, tokens.completion_mask)))
    assert found[0]["critic/explained_variance"] == pytest.approx(0.0, abs=1e-6)
    assert (found[-1]["critic/explained_variance"] or 0.0) > 0.9
    first, last = (each["critic/loss"] or 0.0 for each in (found[0], found[-1]))
    assert last < 0.1 * first
    assert critic.num_updates == 30


def test_a_head_leaves_the_policy_alone(tiny_policy: Policy):
    critic, tokens = critic_of(tiny_policy, "head"), tokens_of()
    before = {name: weight.clone() for name, weight in tiny_policy.model.named_parameters()}
    old, returns = old_and_returns(tokens)
    head = critic.head.weight.clone()
    critic.update(tokens, old.float(), returns.float(), tokens.completion_mask)
    assert not torch.equal(critic.head.weight, head)
    assert all(torch.equal(weight, before[name]) for name, weight in tiny_policy.model.named_parameters())
    assert all(weight.grad is None for weight in tiny_policy.model.parameters())
    assert critic.num_parameters == critic.head.weight.numel() + 1


def test_a_separate_critic_leaves_the_policy_alone_too(tiny_policy: Policy):
    critic, tokens = critic_of(tiny_policy), tokens_of()
    before = {name: weight.clone() for name, weight in tiny_policy.model.named_parameters()}
    old, returns = old_and_returns(tokens)
    critic.update(tokens, old.float(), returns.float(), tokens.completion_mask)
    assert all(torch.equal(weight, before[name]) for name, weight in tiny_policy.model.named_parameters())
    moved = [not torch.equal(weight, before[name]) for name, weight in critic.trunk.named_parameters() if "lm_head" not in name]
    assert all(moved)


def test_a_restored_critic_goes_on_with_the_same_bits(tiny_policy: Policy):
    tokens = tokens_of()
    old, returns = (values.float() for values in old_and_returns(tokens))
    first = critic_of(tiny_policy)
    first.update(tokens, old, returns, tokens.completion_mask)
    saved = {name: value.clone() for name, value in first.state().items()}
    second = critic_of(tiny_policy, head=False)
    second.restore(saved)
    for critic in (first, second):
        critic.update(tokens, old, returns, tokens.completion_mask)
    assert {name: value.tolist() for name, value in first.state().items()} == {
        name: value.tolist() for name, value in second.state().items()
    }


def test_with_adapters_only_a_head_is_offered(tiny_policy: Policy):
    adapted = with_adapters(
        tiny_policy, AdapterSpec(rank=4, alpha=8.0, targets=("all-linear",), is_merged=True), start="", seed=0
    )
    assert critic_of(adapted, "head").num_parameters < 1000
    with pytest.raises(CoveyError, match="critic='head'"):
        critic_of(adapted)


def test_explained_variance_is_one_for_what_is_foreseen_and_zero_for_a_constant():
    returns = torch.tensor([1.0, 2.0, 4.0])
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(torch.full((3,), 9.0), returns) == pytest.approx(0.0)
    assert explained_variance(returns, torch.ones(3)) == 0.0


# --- Credit ----------------------------------------------------------------------------------------------------------


def learner_of(policy: Policy, name: str, *, beta: float = 0.0, ranks: Ranks = ALONE, **changes: Any) -> Learner:
    objective = dataclasses.replace(objective_of(name, **changes), aggregation="seq-mean-token-sum", kl="k1_reward")
    objective = dataclasses.replace(objective, spec=dataclasses.replace(objective.spec, whitens_tokens=False))
    critic = critic_of(policy, head=False, ranks=ranks) if ALGORITHMS[name].critic_credit is not None else None
    return make_learner(
        policy, objective, cut=(64, 64), coefficients=Coefficients(beta=beta), critic=critic, ranks=ranks, spec=SPEC
    )


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_with_a_zero_critic_and_whole_returns_ppo_is_reinforce_without_a_baseline(shared_tiny_policy64: Policy, beta: float):
    """On the first update, where the ratio is 1, of completions that ended or not: nothing is expected after a cut either."""
    groups = ragged_groups()
    gradients = []
    rows: dict[str, dict[str, Any]] = {"ppo": {"gamma": 1.0, "lam": 1.0}, "reinforce": {}}
    for name, options in rows.items():
        learner, tokens = learner_of(shared_tiny_policy64, name, beta=beta, **options), make_tokens(groups, (), STATS)
        scores = learner.make_scores(tokens, None)
        old = learner.score(shared_tiny_policy64.model, tokens).logprobs
        ref = (old - 0.1) * tokens.completion_mask
        batch = learner.make_batch(tokens, dataclasses.replace(scores, old_logprobs=old, ref_logprobs=ref))
        gradients.append(gradient_of(learner.model, lambda to=learner, on=batch: to.accumulate_gradient(on)))
    assert relative_error(gradients[0], gradients[1]) < 1e-6


def test_credit_is_golden_on_three_tokens():
    """r = [0, 0, 1], V = [.2, .5, .4], lambda .95 and 1, from a completion that ended."""
    values = torch.tensor([[0.2, 0.5, 0.4, 9.0]], dtype=torch.float64)
    mask, reward = torch.ones(1, 3, dtype=torch.bool), torch.ones(1, dtype=torch.float64)
    ended, cut = torch.tensor([False]), torch.tensor([True])
    assert ppo_credit(reward, None, values, mask, ended, lam=0.95)[0][0].tolist() == pytest.approx([0.7465, 0.47, 0.6])
    assert ppo_credit(reward, None, values, mask, ended, lam=1.0)[0][0].tolist() == pytest.approx([0.8, 0.5, 0.6])
    advantages, returns = ppo_credit(reward, None, values, mask, cut, lam=1.0)
    assert advantages[0].tolist() == pytest.approx([9.8, 9.5, 9.6])
    assert returns[0].tolist() == pytest.approx([10.0, 10.0, 10.0])


def test_the_value_after_a_short_completion_is_found_behind_its_own_last_token():
    values = torch.tensor([[0.0, 0.0, 5.0, 7.0], [0.0, 0.0, 0.0, 7.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    _, returns = ppo_credit(torch.ones(2), None, values, mask, torch.tensor([True, True]), lam=1.0)
    assert returns.tolist() == [[6.0, 6.0, 0.0], [8.0, 8.0, 8.0]]


def test_what_kl_costs_is_paid_where_it_arises():
    penalty = torch.tensor([[0.5, 0.25, 0.0]])
    mask = torch.tensor([[True, True, False]])
    advantages, _ = ppo_credit(torch.ones(1), penalty, torch.zeros(1, 4), mask, torch.tensor([False]), lam=1.0)
    assert advantages.tolist() == [[0.25, 0.75, 0.0]]


def test_padding_changes_no_credit(shared_tiny_policy64: Policy):
    tokens = tokens_of()
    values = critic_of(shared_tiny_policy64).values(tokens)
    reward, mask = tokens.stats.rewards.reshape(-1), tokens.completion_mask
    narrow = ppo_credit(reward, None, values, mask, tokens.is_truncated)[0]
    wide = ppo_credit(
        reward, None, nn.functional.pad(values, (0, 5), value=3.0), nn.functional.pad(mask, (0, 5)), tokens.is_truncated
    )[0]
    assert torch.equal(wide[:, : mask.shape[1]], narrow)
    assert not bool(wide[:, mask.shape[1] :].any())


def test_each_update_of_the_policy_comes_with_one_of_the_critic(tiny_policy: Policy):
    objective: Objective = objective_of("ppo")
    spec = dataclasses.replace(SPEC, num_iterations=2, num_minibatches=3)
    critic = critic_of(tiny_policy, head=False)
    learner = make_learner(tiny_policy, objective, spec=spec, critic=critic)
    tokens = tokens_of()
    metrics = metric_values(learner.train_on(learner.make_batch(tokens, learner.make_scores(tokens, None))).metrics)
    assert learner.num_updates == critic.num_updates == 6
    assert (metrics["critic/loss"] or 0.0) > 0


# --- Ranks -----------------------------------------------------------------------------------------------------------


def steps_of(policy: Policy, ranks: Ranks) -> tuple[Tensor, dict[str, Any]]:
    """Return policy's and critic's weights after two updates on a batch, and the metrics."""
    policy = dataclasses.replace(policy, model=copy.deepcopy(policy.model))
    learner = learner_of(policy, "ppo", ranks=ranks)
    learner.spec = dataclasses.replace(SPEC, num_iterations=2)
    tokens = tokens_of()
    scores: Scores = learner.make_scores(tokens, None)
    metrics = metric_values(learner.train_on(learner.make_batch(tokens, scores)).metrics)
    assert learner.critic is not None
    weights = [*policy.model.parameters(), *learner.critic.trained.parameters()]
    return torch.cat([weight.detach().reshape(-1) for weight in weights]), metrics


def compare_with_one_process(ranks: Ranks, directory: Path) -> tuple[float, dict[str, Any], dict[str, Any]]:
    policy = in_float64(load_policy(str(directory), compute_dtype="float32"))
    weights, metrics = steps_of(policy, ranks)
    expected, expected_metrics = steps_of(policy, ALONE)
    return float((weights - expected).abs().max()), metrics, expected_metrics


def test_two_ranks_train_the_critic_of_one(tiny_directory: Path, tmp_path: Path):
    for error, metrics, expected in on_ranks(2, compare_with_one_process, tiny_directory, directory=tmp_path):
        assert error < 1e-10
        assert metrics == pytest.approx(expected, abs=1e-9)
