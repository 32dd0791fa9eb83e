"""The KL terms on a policy with three actions, exactly: what each estimates, and which divergence its gradient lowers."""

from __future__ import annotations

import dataclasses
import math
import statistics
from typing import Any

import pytest
import torch
from tests.numerics.arrays import assert_close, float64, padded
from tests.numerics.losses import LOGPROBS, MASK, OLD, REF, loss_of
from torch import Tensor

from covey.algos.kl import KL_TERMS, k1, k2, k3, kl_to_go, weighted_k3
from covey.algos.objective import Coefficients, Objective, kl_metrics
from covey.algos.registry import ALGORITHMS
from covey.metrics import metric_values

EXPECTED_GRADIENTS = {
    # The golden gradient of each term, and the divergence that it belongs to.
    "k1_loss": ("E[grad k1_loss]", None),
    "k2_loss": ("E[grad k2_loss]", "reverse"),
    "k3_loss": ("E[grad k3_loss]", "forward"),
    "weighted_k3_loss": ("E[grad (ratio*k3)] (DeepSeek-V3.2)", "reverse"),
    "k1_reward": ("E[k1_in_reward score-fn]", "reverse"),
}
every_term = pytest.mark.parametrize("name", EXPECTED_GRADIENTS)


@pytest.fixture
def logits(golden: dict[str, Any]) -> Tensor:
    """Of a policy with three actions."""
    return float64(golden["kl_grad"]["theta"]).requires_grad_()


@pytest.fixture
def ref_logprobs(golden: dict[str, Any]) -> Tensor:
    return float64(golden["kl_grad"]["ref_logits"]).log_softmax(dim=-1)


def reverse(logits: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Return KL(policy || reference)."""
    logprobs = logits.log_softmax(dim=-1)
    return (logprobs.exp() * (logprobs - ref_logprobs)).sum()


def forward(logits: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Return KL(reference || policy)."""
    return (ref_logprobs.exp() * (ref_logprobs - logits.log_softmax(dim=-1))).sum()


def expected_gradient(
    name: str, logits: Tensor, ref_logprobs: Tensor, *, beta: float = 1.0, old_logits: Tensor | None = None
) -> Tensor:
    """Return E[dL/dlogits] of the policy loss with no advantage but what the KL term gives, over all three actions.

    The sample's probability is that of the old policy: the policy itself by default.
    """
    logprobs = logits.log_softmax(dim=-1)
    old_logprobs = logprobs.detach() if old_logits is None else old_logits.log_softmax(dim=-1)
    objective = dataclasses.replace(Objective.of_row(ALGORITHMS["rloo"], epsilon_low=1e9, epsilon_high=1e9), kl=name)
    total = torch.zeros((), dtype=torch.float64)
    for action in range(3):
        one = torch.tensor([[True]])
        penalty = k1(old_logprobs[action].reshape(1, 1), ref_logprobs[action].reshape(1, 1))
        in_reward = KL_TERMS[name].in_loss is None
        output = loss_of(
            objective,
            logprobs[action].reshape(1, 1),
            old=old_logprobs[action].reshape(1, 1),
            ref=ref_logprobs[action].reshape(1, 1),
            advantages=-beta * kl_to_go(penalty, one) if in_reward else float64([[0.0]]),
            mask=one,
            coefficients=Coefficients(beta=beta),
        )
        total = total + old_logprobs[action].exp() * output.loss
    return torch.autograd.grad(total, logits)[0]


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("estimator", "key"), [(k1, "k1"), (k2, "k2"), (k3, "k3")])
def test_the_estimators_have_their_golden_values(golden: dict[str, Any], estimator: Any, key: str):
    values = estimator(padded(LOGPROBS), padded(REF))[MASK]
    assert float(values.mean()) == pytest.approx(golden["loss"]["kl_token-mean"][key], abs=1e-12)


def test_k3_times_the_ratio_has_its_golden_value(golden: dict[str, Any]):
    values = weighted_k3(padded(LOGPROBS), padded(REF), padded(OLD))[MASK]
    assert float(values.mean()) == pytest.approx(golden["loss"]["kl_token-mean"]["k3_times_ratio"], abs=1e-12)


def test_k1_and_k3_are_unbiased_for_the_divergence_and_k2_is_not(golden: dict[str, Any], logits: Tensor, ref_logprobs: Tensor):
    logprobs = logits.detach().log_softmax(dim=-1)
    means = [float((logprobs.exp() * f(logprobs[None], ref_logprobs[None])[0]).sum()) for f in (k1, k2, k3)]
    assert means == pytest.approx(golden["kl_grad"]["E[k1],E[k2],E[k3]"], abs=1e-8)
    assert means[0] == pytest.approx(golden["kl_grad"]["KL(p||q)"], abs=1e-12)
    assert means[2] == pytest.approx(golden["kl_grad"]["KL(p||q)"], abs=1e-12)


@pytest.mark.parametrize("estimator", [k2, k3])
def test_k2_and_k3_are_zero_for_equal_log_probs_and_positive_otherwise(estimator: Any):
    differences = float64([[-5.0, -1.0, -0.01, 0.0, 0.01, 1.0, 5.0]])
    values = estimator(torch.full_like(differences, -2.0), differences - 2.0)
    assert ((values == 0) == (differences == 0)).all()
    assert (values >= 0).all()


def test_k1_is_the_difference_with_the_sign_of_the_policy():
    assert k1(float64([[-1.0, -3.0]]), float64([[-2.5, -2.0]])).tolist() == [[1.5, -1.0]]


@pytest.mark.parametrize("difference", [100.0, -100.0])
@pytest.mark.parametrize("name", [name for name, term in KL_TERMS.items() if term.in_loss is not None])
def test_terms_of_log_probs_that_differ_by_a_hundred_are_finite(name: str, difference: float):
    in_loss = KL_TERMS[name].in_loss
    assert in_loss is not None
    logprobs = torch.tensor([[difference]], requires_grad=True)
    value = in_loss(logprobs, torch.zeros(1, 1), torch.zeros(1, 1)).sum()
    (gradient,) = torch.autograd.grad(value, logprobs)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()


# --- gradients -------------------------------------------------------------------------------------------------------


def test_every_term_of_the_table_is_tested_here():
    assert set(EXPECTED_GRADIENTS) == set(KL_TERMS)


def test_the_goldens_are_the_gradients_of_the_two_divergences(golden: dict[str, Any], logits: Tensor, ref_logprobs: Tensor):
    (of_reverse,) = torch.autograd.grad(reverse(logits, ref_logprobs), logits)
    (of_forward,) = torch.autograd.grad(forward(logits, ref_logprobs), logits)
    assert_close(of_reverse, golden["kl_grad"]["true_grad_reverse_KL"])
    assert_close(of_forward, golden["kl_grad"]["true_grad_forward_KL(q||p)"])
    assert float((of_reverse - of_forward).abs().max()) > 0.03


@every_term
def test_the_expected_gradient_of_a_term_is_golden(golden: dict[str, Any], name: str, logits: Tensor, ref_logprobs: Tensor):
    key, divergence = EXPECTED_GRADIENTS[name]
    found = expected_gradient(name, logits, ref_logprobs)
    assert_close(found, golden["kl_grad"][key])
    if divergence:
        value = (reverse if divergence == "reverse" else forward)(logits, ref_logprobs)
        assert_close(found, torch.autograd.grad(value, logits)[0], atol=1e-13)


@pytest.mark.parametrize("name", ["weighted_k3_loss", "k1_reward"])
def test_off_policy_the_weighted_term_keeps_the_gradient_of_the_reverse_divergence_and_k1_in_the_reward_does_not(
    name: str, logits: Tensor, ref_logprobs: Tensor
):
    """The penalty in the reward is that of the policy that sampled, so it is right only where the two agree."""
    old_logits = float64([-0.5, 0.4, 0.2])
    found = expected_gradient(name, logits, ref_logprobs, old_logits=old_logits)
    (true,) = torch.autograd.grad(reverse(logits, ref_logprobs), logits)
    distance = float((found - true).abs().max())
    assert distance < 1e-13 if name == "weighted_k3_loss" else distance > 0.01


@pytest.mark.parametrize("beta", [0.1, 0.5])
@every_term
def test_a_step_on_a_term_alone_brings_the_policy_closer_to_the_reference_unless_it_is_k1_as_a_loss(
    name: str, beta: float, logits: Tensor, ref_logprobs: Tensor
):
    gradient = expected_gradient(name, logits, ref_logprobs, beta=beta)
    assert_close(gradient, beta * expected_gradient(name, logits, ref_logprobs), atol=1e-14)
    before, after = float(reverse(logits, ref_logprobs).detach()), float(reverse(logits - gradient, ref_logprobs).detach())
    if name == "k1_loss":
        assert after == pytest.approx(before, abs=1e-14)
    else:
        assert after < before - 0.001


# --- from a token to the end of its completion -----------------------------------------------------------------------


def test_kl_to_go_is_the_sum_from_a_token_to_the_end_of_its_completion():
    token_kl = padded([[1.0, 2.0, 4.0], [3.0], [0.5, -1.0]], filler=1e9)
    mask = torch.tensor([[True, True, True], [True, False, False], [True, True, False]])
    found = kl_to_go(token_kl, mask)
    assert found[0].tolist() == [7.0, 6.0, 4.0]
    assert found[1, 0].item() == 3.0
    assert found[2, :2].tolist() == [-0.5, -1.0]


# --- the distance that is reported -----------------------------------------------------------------------------------


def test_the_distance_from_the_reference_is_measured_for_a_token_and_for_a_whole_completion(golden: dict[str, Any]):
    metrics = metric_values(kl_metrics(padded(LOGPROBS, filler=-9.0), padded(REF), MASK))
    by_token = [math.exp(-gap) - 1 + gap for gap in (0.1, 0.3, 0.2, -0.2)]
    assert metrics["kl/ref"] == pytest.approx(golden["loss"]["kl_token-mean"]["k3"], abs=1e-12)
    assert metrics["kl/token_max"] == pytest.approx(max(by_token), abs=1e-12)
    assert metrics["kl/token_median"] == pytest.approx(statistics.median_low(by_token), abs=1e-12)
    assert metrics["kl/sequence"] == pytest.approx((0.6 - 0.2) / 2, abs=1e-12)
    assert metrics["kl/sequence_max"] == pytest.approx(0.6, abs=1e-12)


def test_completions_without_a_token_do_not_count_in_the_distance():
    mask = torch.cat([MASK, torch.zeros(1, 3, dtype=torch.bool)])
    rows = [*LOGPROBS, [5.0]], [*REF, [-5.0]]
    metrics = metric_values(kl_metrics(padded(rows[0]), padded(rows[1]), mask))
    assert metrics == metric_values(kl_metrics(padded(LOGPROBS), padded(REF), MASK))
