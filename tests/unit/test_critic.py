"""The value model on every path of the scorer, and what one update of it does: numbers, optimizer and what it leaves alone.

How it acts within a step of the policy: tests/equivalence/test_ppo.py.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.adapters import adapted
from tests.numerics import transcriptions
from tests.numerics.arrays import float64, mask_of, padded, unpadded
from tests.tiny_batches import STATS, ragged_groups, widened
from tests.unit.test_native_families import built, every_model
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from covey.algos.critic import ppo_credit
from covey.batch import make_tokens
from covey.critic import Critic, CriticKind, CriticSpec, explained_variance, new_critic
from covey.learner_specs import ScoringSpec
from covey.metrics import metric_values
from covey.models.policy import Policy
from covey.models.scoring import completion_hidden, hidden_of_layout, packed_forward, plan_scoring
from covey.sampling import Sampling
from covey.tensors import Tokens
from covey.types import CoveyError

SPEC = CriticSpec(learning_rate=1e-2, warmup_steps=0, max_grad_norm=1.0, value_epsilon=0.2)
BF16 = torch.bfloat16
numbers = st.integers(-20, 20).map(lambda value: value / 10)


def scoring(dtype: torch.dtype = torch.float32, *, checkpoints_layers: bool = False) -> ScoringSpec:
    return ScoringSpec(
        sampling=Sampling(),
        compute_dtype=dtype,
        max_tokens_per_micro_batch=4096,
        max_shared_tokens=4096,
        checkpoints_layers=checkpoints_layers,
    )


def tokens_of() -> Tokens:
    return make_tokens(ragged_groups(), (), STATS)


def critic_of(model: PreTrainedModel, kind: CriticKind = "separate", spec: CriticSpec = SPEC) -> Critic:
    """Return a critic with a head that is not 0."""
    critic = new_critic(model, kind, spec, scoring())
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        critic.head.weight.copy_(0.1 * torch.randn(critic.head.weight.shape, generator=generator, dtype=torch.float64))
        critic.head.bias.fill_(0.25)
    return critic


def gpt2() -> PreTrainedModel:
    """A model that runs through its own modules."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=264, n_positions=64, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3)
        return GPT2LMHeadModel(config).eval()


def old_and_returns(tokens: Tokens) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(9)
    old, returns = torch.randn(2, *tokens.completion_mask.shape, generator=generator).unbind()
    return old, returns


def plain_values(critic: Critic) -> list[Tensor]:
    """Return the values of each completion's states, the one behind its last token too: each alone, by the model's own code."""
    rows: list[Tensor] = []
    for rollout in (rollout for group in ragged_groups() for rollout in group.rollouts):
        decoder: Any = critic.trunk.get_decoder()
        ids = torch.tensor([rollout.prompt_ids + rollout.completion.token_ids])
        hidden = decoder(input_ids=ids).last_hidden_state[0, len(rollout.prompt_ids) - 1 :]
        rows.append(critic.head(hidden)[:, 0])
    return rows


def assert_values_are_plain(critic: Critic) -> None:
    tokens = tokens_of()
    found, expected = critic.values(tokens), plain_values(critic)
    for row in tokens.completion_mask.any(dim=1).nonzero()[:, 0].tolist():
        torch.testing.assert_close(found[row, : len(expected[row])], expected[row], atol=1e-5, rtol=0)
        assert not bool(found[row, len(expected[row]) :].any())


# --- Values ----------------------------------------------------------------------------------------------------------


@every_model
@torch.no_grad()
def test_values_are_those_of_a_plain_forward_in_every_family(name: str):
    assert_values_are_plain(critic_of(built(name)))


@torch.no_grad()
def test_values_are_those_of_a_plain_forward_of_a_model_that_cannot_be_packed():
    assert_values_are_plain(critic_of(gpt2()))


@torch.no_grad()
def test_a_head_reads_the_policy_with_its_adapters(shared_tiny_policy: Policy):
    with_adapters, without = (critic_of(policy.model, "head") for policy in (adapted(shared_tiny_policy), shared_tiny_policy))
    assert_values_are_plain(with_adapters)
    assert float((with_adapters.values(tokens_of()) - without.values(tokens_of())).abs().max()) > 1e-2


def test_more_padding_changes_no_value(shared_tiny_policy: Policy):
    critic, tokens = critic_of(shared_tiny_policy.model), tokens_of()
    narrow, wide = critic.values(tokens), critic.values(widened(tokens, extra=3))
    assert torch.equal(wide[:, : narrow.shape[1]], narrow)
    assert not bool(wide[:, narrow.shape[1] :].any())


@torch.no_grad()
def test_hidden_states_come_from_the_packed_path_where_there_is_one_and_in_the_compute_dtype(shared_tiny_policy: Policy):
    """The paths round differently in bfloat16, so the bits tell which one was taken."""
    model, tokens = shared_tiny_policy.model, tokens_of()
    [packs] = plan_scoring(model, tokens, [0, 1, 2], max_tokens=4096, max_shared_tokens=4096)
    found = completion_hidden(model, tokens, packs, compute_dtype=BF16)
    assert found.dtype == BF16
    assert torch.equal(found, packed_forward(model, tokens, packs, BF16, checkpoints_layers=False).hidden())


@torch.no_grad()
def test_a_model_that_cannot_be_packed_computes_in_the_compute_dtype_too():
    model, tokens = gpt2(), tokens_of()
    [packs] = plan_scoring(model, tokens, [0, 1, 2], max_tokens=4096, max_shared_tokens=4096)
    exact, found = (completion_hidden(model, tokens, packs, compute_dtype=dtype) for dtype in (torch.float32, BF16))
    with torch.autocast("cpu", dtype=BF16):
        expected = hidden_of_layout(model, tokens, packs, BF16, checkpoints_layers=False)
    assert torch.equal(found, expected)
    assert not torch.equal(found.float(), exact)


def test_layers_that_are_computed_again_keep_less_and_have_the_same_gradient(shared_tiny_policy: Policy):
    tokens = tokens_of()
    [packs] = plan_scoring(shared_tiny_policy.model, tokens, [0, 1, 2], max_tokens=4096, max_shared_tokens=4096)
    kept: list[int] = []
    gradients: list[Tensor] = []
    for checkpoints_layers in (False, True):
        model, sizes = copy.deepcopy(shared_tiny_policy.model), []

        def note(saved: Tensor, to: list[int] = sizes) -> Tensor:
            to.append(saved.numel())
            return saved

        with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
            hidden = completion_hidden(model, tokens, packs, compute_dtype=torch.float32, checkpoints_layers=checkpoints_layers)
        hidden.square().sum().backward()
        kept.append(sum(sizes))
        gradients.append(torch.cat([weight.grad.reshape(-1) for weight in model.parameters() if weight.grad is not None]))
    assert kept[1] < 0.5 * kept[0]
    assert torch.equal(gradients[0], gradients[1])


# --- An update -------------------------------------------------------------------------------------------------------


def test_the_metrics_of_an_update_are_their_formulas_on_the_tokens_that_are_trained_on(tiny_policy: Policy):
    """With a clip range of its own, and every other token left out."""
    critic = critic_of(tiny_policy.model, spec=dataclasses.replace(SPEC, value_epsilon=0.5))
    tokens = tokens_of()
    old, returns = old_and_returns(tokens)
    mask = tokens.completion_mask.clone()
    mask[:, 1::2] = False
    values = critic.values(tokens)
    found = metric_values(critic.update(tokens, old, returns, mask))

    losses: list[float] = []
    errors: list[float] = []
    targets: list[float] = []
    num_clipped, total = 0, 0.0
    for row, column in mask.nonzero().tolist():
        v, before, target = (float(grid[row, column]) for grid in (values, old, returns))
        near = before + max(-0.5, min(0.5, v - before))
        losses.append(0.5 * max((v - target) ** 2, (near - target) ** 2))
        num_clipped += abs(v - before) > 0.5
        total += v
        errors.append(target - before)
        targets.append(target)
    assert 0 < num_clipped < len(losses)
    assert found["critic/loss"] == pytest.approx(math.fsum(losses) / len(losses), abs=1e-5)
    assert found["critic/clip_frac"] == pytest.approx(num_clipped / len(losses), abs=1e-12)
    assert found["critic/value_mean"] == pytest.approx(total / len(losses), abs=1e-5)
    assert found["critic/explained_variance"] == pytest.approx(1 - variance(errors) / variance(targets), abs=1e-5)


def variance(values: list[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / len(values)


def test_tokens_that_are_left_out_change_no_bit_of_an_update(tiny_policy: Policy):
    tokens = tokens_of()
    old, returns = old_and_returns(tokens)
    mask = tokens.completion_mask.clone()
    mask[:, 1::2] = False
    mask[2] = False
    ends = []
    for others in (returns, torch.where(mask, returns, 7.0)):
        critic = critic_of(tiny_policy.model)
        critic.update(tokens, old, others, mask)
        ends.append(critic.state())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_gradient_that_was_left_behind_has_no_part_in_an_update(tiny_policy: Policy):
    tokens = tokens_of()
    old, returns = old_and_returns(tokens)
    clean, dirty = critic_of(tiny_policy.model), critic_of(tiny_policy.model)
    for weight in dirty.trained.parameters():
        weight.grad = torch.full_like(weight, 100.0)
    for critic in (clean, dirty):
        critic.update(tokens, old, returns, tokens.completion_mask)
    assert all(torch.equal(value, dirty.state()[name]) for name, value in clean.state().items())
    assert all(weight.grad is None for weight in dirty.trained.parameters())


def test_the_rate_rises_over_the_warm_up_and_then_stays(tiny_policy: Policy):
    """AdamW's first step moves a number by the rate itself; here, the bias from 0."""
    critic = new_critic(tiny_policy.model, "head", dataclasses.replace(SPEC, warmup_steps=4), scoring())
    tokens = tokens_of()
    returns = torch.ones(tokens.completion_mask.shape)
    rates: list[float] = []
    for update in range(6):
        critic.update(tokens, torch.zeros_like(returns), returns, tokens.completion_mask)
        rates.append(critic.optimizer.param_groups[0]["lr"])
        if update == 0:
            assert float(critic.head.bias.detach()) == pytest.approx(0.0025, abs=1e-7)
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01])


def test_the_gradient_is_clipped_after_its_norm_was_taken(tiny_policy: Policy):
    """AdamW's first moment is a tenth of the first gradient."""
    tokens = tokens_of()
    old, returns = old_and_returns(tokens)
    norms: list[tuple[float, float]] = []
    for max_grad_norm in (1e6, 1e-3):
        critic = critic_of(tiny_policy.model, spec=dataclasses.replace(SPEC, max_grad_norm=max_grad_norm))
        logged = metric_values(critic.update(tokens, old, returns, tokens.completion_mask))["critic/grad_norm"]
        assert logged is not None
        moments = [value for name, value in critic.state().items() if name.endswith("exp_avg")]
        norms.append((logged, 10 * float(torch.cat([moment.reshape(-1) for moment in moments]).norm())))
    (whole, of_whole), (cut, of_cut) = norms
    assert whole == cut > 0.1
    assert of_whole == pytest.approx(whole, rel=1e-4)
    assert of_cut == pytest.approx(1e-3, rel=1e-3)


def test_without_an_error_to_learn_from_no_weight_moves(tiny_policy: Policy):
    """Values and returns are 0: nothing decays, either."""
    critic, tokens = new_critic(tiny_policy.model, "separate", SPEC, scoring()), tokens_of()
    before = [weight.clone() for weight in critic.trained.parameters()]
    zero = torch.zeros(tokens.completion_mask.shape)
    critic.update(tokens, zero, zero, tokens.completion_mask)
    assert all(torch.equal(now, then) for now, then in zip(critic.trained.parameters(), before, strict=True))


def test_a_gradient_that_is_not_finite_is_an_error_and_changes_nothing(tiny_policy: Policy):
    critic, tokens = critic_of(tiny_policy.model), tokens_of()
    old, returns = old_and_returns(tokens)
    before = {name: value.clone() for name, value in critic.state().items()}
    returns[0, 0] = torch.inf
    with pytest.raises(CoveyError, match=r"lower algorithm\.critic_learning_rate"):
        critic.update(tokens, old, returns, tokens.completion_mask)
    assert all(torch.equal(value, before[name]) for name, value in critic.state().items())
    assert all(weight.grad is None for weight in critic.trained.parameters())


# --- What it holds ---------------------------------------------------------------------------------------------------


def test_a_copy_trains_the_decoder_and_not_an_output_head_of_its_own():
    policy = built("llama")
    critic = new_critic(policy, "separate", SPEC, scoring())
    frozen = [name for name, weight in critic.trained.named_parameters() if not weight.requires_grad]
    assert frozen == ["trunk.lm_head.weight"]
    assert all(weight.requires_grad for weight in policy.parameters())


def test_a_copy_trains_an_embedding_that_is_the_output_head_too():
    critic = new_critic(built("llama, tied, with biases"), "separate", SPEC, scoring())
    assert all(weight.requires_grad for weight in critic.trained.parameters())


@pytest.mark.parametrize(("dtype", "of_number"), [(torch.float32, 16), (BF16, 18)])
def test_each_number_is_held_with_its_gradient_two_moments_and_a_rounded_copy(
    shared_tiny_policy: Policy, dtype: torch.dtype, of_number: int
):
    model = shared_tiny_policy.model
    num_weights = sum(weight.numel() for weight in model.parameters())
    critic = new_critic(model, "separate", SPEC, scoring(dtype))
    assert critic.num_parameters == num_weights + model.config.hidden_size + 1
    assert critic.num_bytes == of_number * critic.num_parameters


def test_an_output_head_that_nothing_reads_is_held_without_gradient_and_moments():
    model = built("llama")
    critic = new_critic(model, "separate", SPEC, scoring())
    num_frozen = model.lm_head.weight.numel()
    assert critic.num_bytes == 16 * (critic.num_parameters - num_frozen) + 4 * num_frozen


def test_making_a_critic_draws_no_random_numbers(shared_tiny_policy: Policy):
    before = torch.get_rng_state()
    new_critic(shared_tiny_policy.model, "head", SPEC, scoring())
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_is_explained_of_returns_that_are_equal_but_for_rounding():
    """A step in which every completion fails: A + V is 0 on paper."""
    values = 0.3 * torch.rand(8, 21, generator=torch.Generator().manual_seed(0))
    mask, ended = torch.ones(8, 20, dtype=torch.bool), torch.zeros(8, dtype=torch.bool)
    _, returns = ppo_credit(torch.zeros(8), None, values, mask, ended, gamma=1.0, lam=1.0)
    assert returns.any()
    assert explained_variance(values[:, :-1][mask], returns[mask]) == 0.0


# --- Credit ----------------------------------------------------------------------------------------------------------


def test_with_values_of_zero_every_token_has_the_whole_reward():
    mask = mask_of([[0] * 3, [0], [0] * 2])
    values = torch.zeros(3, 4, dtype=torch.float64)
    ended = torch.zeros(3, dtype=torch.bool)
    advantages, returns = ppo_credit(float64([0.5, -1.0, 2.0]), None, values, mask, ended, gamma=1.0, lam=1.0)
    assert advantages.tolist() == returns.tolist() == [[0.5, 0.5, 0.5], [-1.0, 0.0, 0.0], [2.0, 2.0, 0.0]]


def test_what_follows_a_cut_is_discounted_once_more_than_the_reward():
    """r = 1 at the last of two tokens, 5 behind it, gamma = 1/2: 1 + 5/2 there, and half of that before."""
    values, mask = float64([[0.0, 0.0, 5.0]]), torch.ones(1, 2, dtype=torch.bool)
    _, returns = ppo_credit(float64([1.0]), None, values, mask, torch.tensor([True]), gamma=0.5, lam=1.0)
    assert returns.tolist() == [[1.75, 3.5]]


def test_a_completion_without_tokens_has_no_credit():
    """One that could not be scored: its row is masked whole."""
    mask = torch.tensor([[False, False], [True, True]])
    credit = ppo_credit(float64([9.0, 2.0]), None, torch.ones(2, 3, dtype=torch.float64), mask, torch.tensor([True, False]))
    assert all(not bool(grid[0].any()) and bool(grid[1].any()) for grid in credit)


@given(
    steps=st.lists(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=5), min_size=1, max_size=3),
    rewards=st.lists(numbers, min_size=3, max_size=3),
    following=numbers,
    is_truncated=st.lists(st.booleans(), min_size=3, max_size=3),
    gamma=st.sampled_from([0.9, 1.0]),
    lam=st.sampled_from([0.0, 0.95, 1.0]),
)
def test_credit_is_the_double_sum_over_reward_penalties_and_what_follows(
    steps: Any, rewards: list[float], following: float, is_truncated: list[bool], gamma: float, lam: float
):
    count = len(steps)
    penalties, values = [[p for p, _ in row] for row in steps], [[v for _, v in row] for row in steps]
    width = max(len(row) for row in steps)
    advantages, returns = ppo_credit(
        float64(rewards[:count]),
        padded(penalties, filler=99.0),
        padded([[*row, following] for row in values], width=width + 1, filler=77.0),
        mask_of(steps),
        torch.tensor(is_truncated[:count]),
        gamma=gamma,
        lam=lam,
    )
    found = zip(unpadded(advantages, steps), unpadded(returns, steps), strict=True)
    for row, (of_advantages, of_returns) in enumerate(found):
        paid = [-penalty for penalty in penalties[row]]
        paid[-1] += rewards[row]
        after = following if is_truncated[row] else 0.0
        expected = transcriptions.gae(paid, [*values[row], after], gamma=gamma, lam=lam)
        assert of_advantages == pytest.approx(expected, abs=1e-10)
        assert of_returns == pytest.approx([a + v for a, v in zip(expected, values[row], strict=True)], abs=1e-10)
    assert not bool(advantages[~mask_of(steps)].any())
    assert not bool(returns[~mask_of(steps)].any())
