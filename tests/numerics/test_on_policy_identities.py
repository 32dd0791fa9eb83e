"""On its own data every algorithm is the policy gradient: where old and new policy agree, no trust region acts yet."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.numerics.arrays import assert_close, float64, mask_of
from tests.numerics.losses import gradient_of_loss, loss_of
from tests.rows import PLAIN_ROWS
from torch import Tensor

from covey.algos.aggregate import AGGREGATIONS, Aggregation
from covey.algos.objective import Objective
from covey.algos.registry import ALGORITHMS

every_row = pytest.mark.parametrize("name", PLAIN_ROWS)
lengths = st.lists(st.integers(1, 6), min_size=1, max_size=5)


def batch_of(lengths: list[int], *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probs, one advantage a completion on each of its tokens, and the mask."""
    generator = torch.Generator().manual_seed(seed)
    mask = mask_of([[0.0] * length for length in lengths])
    logprobs = -torch.rand(mask.shape, generator=generator, dtype=torch.float64) * 3
    advantages = torch.randn(len(lengths), 1, generator=generator, dtype=torch.float64) * mask
    return logprobs.requires_grad_(), advantages, mask


def objective_of(name: str, mode: Aggregation) -> Objective:
    return dataclasses.replace(Objective.of_row(ALGORITHMS[name]), aggregation=mode)


def gradient(name: str, mode: Aggregation, batch: tuple[Tensor, Tensor, Tensor], *, has_old: bool) -> Tensor:
    logprobs, advantages, mask = batch
    old = logprobs.detach().clone() if has_old else None
    return gradient_of_loss(loss_of(objective_of(name, mode), logprobs, old=old, advantages=advantages, mask=mask), logprobs)


@pytest.mark.parametrize("has_old", [False, True])
@pytest.mark.parametrize("mode", AGGREGATIONS)
@every_row
def test_the_on_policy_gradient_of_every_row_is_that_of_reinforce_token_by_token(name: str, mode: Aggregation, has_old: bool):
    """Sequence-wide ratios included: the 1/T of the geometric mean is undone by the T tokens that carry it. And SAPO's
    4/tau is what makes the slope of its sigmoid 1 at w = 1."""
    batch = batch_of([3, 1, 6, 2])
    expected = gradient("reinforce", mode, batch, has_old=has_old)
    assert_close(gradient(name, mode, batch, has_old=has_old), expected, atol=1e-7)


@given(lengths=lengths)
def test_the_policy_gradient_is_minus_the_advantage_over_what_the_aggregation_divides_by(lengths: list[int]):
    logprobs, advantages, mask = batch_of(lengths)
    num_tokens, num_sequences = sum(lengths), len(lengths)
    own_length = mask.sum(dim=1, keepdim=True)
    divisors = {
        "token-mean": torch.full_like(own_length, num_tokens),
        "seq-mean-token-mean": num_sequences * own_length,
        "seq-mean-token-sum": torch.full_like(own_length, num_sequences),
        "seq-mean-token-sum-norm": torch.full_like(own_length, num_sequences * 4),
        "group-mean-token-mean": num_sequences * own_length,  # Groups of one.
    }
    assert set(divisors) == set(AGGREGATIONS)
    for mode in AGGREGATIONS:
        found = gradient("grpo", mode, (logprobs, advantages, mask), has_old=False)
        assert_close(found, -advantages / divisors[mode], atol=1e-7)


@every_row
def test_the_loss_of_the_mean_over_sequences_is_minus_the_mean_advantage(name: str):
    """So a loss of 0 on the first update is no bug. SAPO's is 2/tau of it, and REINFORCE's a log-likelihood."""
    logprobs, _, mask = batch_of([3, 1, 6, 2])
    advantages = float64([[1.5], [-0.5], [2.0], [-1.0]]) * mask
    objective = objective_of(name, "seq-mean-token-mean")
    loss = float(loss_of(objective, logprobs, advantages=advantages, mask=mask).loss.detach())
    if name == "sapo":
        assert loss == pytest.approx(-(2 * 3.5 / 1.0 - 2 * 1.5 / 1.05) / 4, abs=1e-6)
    elif ALGORITHMS[name].surrogate in {ALGORITHMS["reinforce"].surrogate, ALGORITHMS["cispo"].surrogate}:
        assert loss == pytest.approx(float(-(advantages * logprobs.detach() / mask.sum(1, keepdim=True)).sum() / 4), abs=1e-6)
    else:
        assert loss == pytest.approx(-(1.5 - 0.5 + 2.0 - 1.0) / 4, abs=1e-7)


@every_row
def test_with_equal_lengths_the_mean_over_tokens_is_the_mean_over_sequences(name: str):
    batch = batch_of([4, 4, 4])
    found = gradient(name, "token-mean", batch, has_old=True)
    assert_close(found, gradient(name, "seq-mean-token-mean", batch, has_old=True), atol=1e-9)


@pytest.mark.parametrize("mode", AGGREGATIONS)
@every_row
def test_the_batch_twice_over_has_the_same_loss_and_half_the_gradient_on_each_copy(name: str, mode: Aggregation):
    logprobs, advantages, mask = batch_of([3, 1, 6, 2])
    old = logprobs.detach() + 0.3 * torch.sin(torch.arange(24.0, dtype=torch.float64)).reshape(4, 6)
    once = loss_of(objective_of(name, mode), logprobs, old=old, advantages=advantages, mask=mask, group_size=2)
    arrays: dict[str, Any] = {
        key: torch.cat([value, value]) for key, value in {"old": old, "advantages": advantages, "mask": mask}.items()
    }
    double = logprobs.detach().repeat(2, 1).requires_grad_()
    twice = loss_of(objective_of(name, mode), double, group_size=2, **arrays)
    assert_close(twice.loss.detach(), once.loss.detach(), atol=1e-7)
    assert_close(gradient_of_loss(twice, double)[:4], gradient_of_loss(once, logprobs) / 2, atol=1e-7)


@every_row
@given(order=st.permutations(range(4)))
def test_the_order_of_the_groups_and_of_the_completions_makes_no_difference(name: str, order: list[int]):
    logprobs, advantages, mask = batch_of([3, 1, 6, 2])
    objective = Objective.of_row(ALGORITHMS[name])
    straight = loss_of(objective, logprobs, advantages=advantages, mask=mask)
    moved = loss_of(objective, logprobs[order], advantages=advantages[order], mask=mask[order])
    assert_close(moved.loss.detach(), straight.loss.detach(), atol=1e-12)
    assert_close(gradient_of_loss(moved, logprobs), gradient_of_loss(straight, logprobs), atol=1e-12)
