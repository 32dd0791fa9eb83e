"""The KL terms on completions of two tokens: only KL in the reward knows that a token decides where the next one is drawn.

Three states with two actions each: the start, and where action 0 or action 1 leads. Four completions, all enumerated.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from tests.numerics.arrays import assert_close, float64
from tests.numerics.losses import loss_of
from torch import Tensor

from covey.algos.credit import outcome_credit
from covey.algos.kl import k1, kl_to_go
from covey.algos.objective import Coefficients, Objective
from covey.algos.registry import ALGORITHMS

Trajectory = tuple[int, int]
TRAJECTORIES: list[Trajectory] = [(0, 0), (0, 1), (1, 0), (1, 1)]
BOTH = torch.ones(1, 2, dtype=torch.bool)


@pytest.fixture
def logits(golden: dict[str, Any]) -> Tensor:
    return float64(golden["kl_grad_two_step"]["logits_s0,s1|a0=0,s1|a0=1"]).requires_grad_()


@pytest.fixture
def ref_logits(golden: dict[str, Any]) -> Tensor:
    return float64(golden["kl_grad_two_step"]["ref"])


def logprobs_of(logits: Tensor, trajectory: Trajectory) -> Tensor:
    """Return [1, 2]: the log-probs of the completion's two tokens."""
    first, second = trajectory
    table = logits.log_softmax(dim=-1)
    return torch.stack([table[0, first], table[1 + first, second]])[None]


def divergence(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """Return KL(policy || reference) over whole completions."""
    total = torch.zeros((), dtype=torch.float64)
    for trajectory in TRAJECTORIES:
        logprob, ref_logprob = logprobs_of(logits, trajectory).sum(), logprobs_of(ref_logits, trajectory).sum()
        total = total + logprob.exp() * (logprob - ref_logprob)
    return total


def expected_gradient(name: str, logits: Tensor, ref_logits: Tensor, *, to_go: bool = True) -> Tensor:
    """Return E[dL/dlogits] of a loss with the KL term alone, summed over the tokens of a completion."""
    objective = dataclasses.replace(Objective.of_row(ALGORITHMS["rloo"]), kl=name)
    total = torch.zeros((), dtype=torch.float64)
    for trajectory in TRAJECTORIES:
        logprobs, ref = logprobs_of(logits, trajectory), logprobs_of(ref_logits, trajectory)
        credit = outcome_credit(torch.zeros(1, 1, dtype=torch.float64), BOTH).double()
        if name == "k1_reward":
            penalty = k1(logprobs.detach(), ref)
            credit = credit - (kl_to_go(penalty, BOTH) if to_go else penalty)
        output = loss_of(objective, logprobs, ref=ref, advantages=credit, mask=BOTH, coefficients=Coefficients(beta=1.0))
        total = total + logprobs.detach().sum().exp() * output.loss
    return torch.autograd.grad(total, logits)[0]


def test_the_golden_is_the_gradient_of_the_divergence_of_whole_completions(
    golden: dict[str, Any], logits: Tensor, ref_logits: Tensor
):
    (true,) = torch.autograd.grad(divergence(logits, ref_logits), logits)
    assert_close(true, golden["kl_grad_two_step"]["true_sequence_grad"])


def test_k1_in_the_reward_to_go_has_the_gradient_of_the_divergence_of_whole_completions(
    golden: dict[str, Any], logits: Tensor, ref_logits: Tensor
):
    found = expected_gradient("k1_reward", logits, ref_logits)
    assert_close(found, golden["kl_grad_two_step"]["true_sequence_grad"])
    assert_close(found, torch.autograd.grad(divergence(logits, ref_logits), logits)[0], atol=1e-13)


@pytest.mark.parametrize("name", ["k2_loss", "weighted_k3_loss"])
def test_token_level_losses_miss_what_the_first_token_leads_to(
    golden: dict[str, Any], name: str, logits: Tensor, ref_logits: Tensor
):
    expected = golden["kl_grad_two_step"]
    found = expected_gradient(name, logits, ref_logits)
    assert_close(found, expected["token_k2_loss_grad"])
    missing = torch.autograd.grad(divergence(logits, ref_logits), logits)[0] - found
    assert_close(missing[0], expected["missing_future_term_at_s0"])
    assert_close(missing[1:], torch.zeros(2, 2))


def test_k1_of_each_token_in_its_own_reward_alone_misses_it_too(golden: dict[str, Any], logits: Tensor, ref_logits: Tensor):
    found = expected_gradient("k1_reward", logits, ref_logits, to_go=False)
    assert_close(found, golden["kl_grad_two_step"]["token_k2_loss_grad"])


def test_k1_as_a_loss_has_no_gradient_here_either(logits: Tensor, ref_logits: Tensor):
    assert_close(expected_gradient("k1_loss", logits, ref_logits), torch.zeros(3, 2), atol=1e-14)


def test_k3_as_a_loss_has_neither_gradient(golden: dict[str, Any], logits: Tensor, ref_logits: Tensor):
    found = expected_gradient("k3_loss", logits, ref_logits)
    for key in ("true_sequence_grad", "token_k2_loss_grad"):
        assert float((found - float64(golden["kl_grad_two_step"][key])).abs().max()) > 0.01
