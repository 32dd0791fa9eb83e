"""The k3 estimator: its value is the divergence it names, its gradient as a loss is the other one's, as documented."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from covey.algos.aggregate import StepTotals
from covey.algos.kl import k3
from covey.algos.objective import Objective, policy_loss
from covey.algos.registry import ALGORITHMS
from covey.algos.surrogates import Clip


def float64(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture
def logits(golden: dict[str, Any]) -> Tensor:
    """Of a policy with three actions."""
    return float64(golden["kl_grad"]["theta"]).requires_grad_()


@pytest.fixture
def ref_logprobs(golden: dict[str, Any]) -> Tensor:
    return float64(golden["kl_grad"]["ref_logits"]).log_softmax(dim=-1)


def gradient_of_expected_k3(logits: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Return the k3 loss's gradient averaged over the samples it would be computed on: all three actions, exactly."""
    logprobs = logits.log_softmax(dim=-1)
    sampled_from = logprobs.detach().exp()
    loss = (sampled_from * k3(logprobs[None], ref_logprobs[None])[0]).sum()
    return torch.autograd.grad(loss, logits)[0]


def test_k3_has_the_golden_value(golden: dict[str, Any]):
    logprobs, ref_logprobs = float64([[-0.5, -1.0, -0.2, -2.0]]), float64([[-0.6, -1.3, -0.4, -1.8]])
    assert float(k3(logprobs, ref_logprobs).mean()) == pytest.approx(golden["loss"]["kl_token-mean"]["k3"], abs=1e-15)


def test_k3_is_zero_for_equal_log_probs_and_positive_otherwise():
    differences = float64([[-5.0, -1.0, -0.01, 0.0, 0.01, 1.0, 5.0]])
    values = k3(torch.full_like(differences, -2.0), differences - 2.0)
    assert ((values == 0) == (differences == 0)).all()
    assert (values >= 0).all()


def test_k3_is_unbiased_for_the_divergence_of_the_policy_from_the_reference(
    golden: dict[str, Any], logits: Tensor, ref_logprobs: Tensor
):
    logprobs = logits.detach().log_softmax(dim=-1)
    mean = float((logprobs.exp() * k3(logprobs[None], ref_logprobs[None])[0]).sum())
    assert mean == pytest.approx(golden["kl_grad"]["KL(p||q)"], abs=1e-12)


def test_the_expected_gradient_of_k3_is_that_of_the_forward_divergence(
    golden: dict[str, Any], logits: Tensor, ref_logprobs: Tensor
):
    found = gradient_of_expected_k3(logits, ref_logprobs)
    torch.testing.assert_close(found, float64(golden["kl_grad"]["E[grad k3_loss]"]), atol=1e-8, rtol=0)
    forward = (ref_logprobs.exp() * (ref_logprobs - logits.log_softmax(dim=-1))).sum()
    torch.testing.assert_close(found, torch.autograd.grad(forward, logits)[0], atol=1e-14, rtol=0)


def test_the_expected_gradient_of_k3_is_not_that_of_the_divergence_it_estimates(
    golden: dict[str, Any], logits: Tensor, ref_logprobs: Tensor
):
    found = gradient_of_expected_k3(logits, ref_logprobs)
    assert float((found - float64(golden["kl_grad"]["true_grad_reverse_KL"])).abs().max()) > 0.03


def test_a_step_on_the_kl_term_alone_brings_the_policy_closer_to_the_reference(logits: Tensor, ref_logprobs: Tensor):
    logprobs = logits.log_softmax(dim=-1)
    objective = Objective(spec=ALGORITHMS["grpo"], clip=Clip(), beta=0.5)
    loss = torch.zeros((), dtype=torch.float64)
    for action, probability in enumerate(logprobs.detach().exp()):
        output = policy_loss(
            objective,
            logprobs=logprobs[action].reshape(1, 1),
            old_logprobs=None,
            ref_logprobs=ref_logprobs[action].reshape(1, 1),
            advantages=float64([[0.0]]),
            mask=torch.tensor([[True]]),
            totals=StepTotals(num_sequences=1, num_tokens=1, max_length=1),
        )
        loss = loss + probability * output.loss
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, 0.5 * gradient_of_expected_k3(logits, ref_logprobs), atol=1e-14, rtol=0)

    def divergence(of: Tensor) -> float:
        moved = of.detach().log_softmax(dim=-1)
        return float((moved.exp() * (moved - ref_logprobs)).sum())

    assert divergence(logits - 0.1 * gradient) < divergence(logits)


@pytest.mark.parametrize("difference", [100.0, -100.0])
def test_k3_of_log_probs_that_differ_by_a_hundred_is_finite(difference: float):
    logprobs = torch.tensor([[difference]], requires_grad=True)
    value = k3(logprobs, torch.zeros(1, 1)).sum()
    value.backward()
    assert logprobs.grad is not None
    assert torch.isfinite(value)
    assert torch.isfinite(logprobs.grad).all()
