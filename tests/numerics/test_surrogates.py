"""The clipped surrogate and the policy loss around it: golden losses and gradients, every quadrant of the clip."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from covey.algos.aggregate import AGGREGATIONS, Aggregation, StepTotals
from covey.algos.objective import Objective, policy_loss
from covey.algos.ratios import MAX_LOG_RATIO, token_log_ratio
from covey.algos.registry import ALGORITHMS
from covey.algos.surrogates import Clip, clipped_surrogate
from covey.metrics import metric_values
from covey.tensors import LossOutput

# Two completions, of 3 tokens and of 1; the 9s are padding.
LOGPROBS = [[-0.5, -1.0, -0.2], [-2.0, 9.0, 9.0]]
OLD = [[-0.7, -1.0, -0.6], [-1.5, 9.0, -9.0]]
REF = [[-0.6, -1.3, -0.4], [-1.8, -9.0, 9.0]]
ADVANTAGES = [[1.0, 1.0, 1.0], [-1.0, 0.0, 0.0]]
MASK = [[True, True, True], [True, False, False]]
TOTALS = StepTotals(num_sequences=2, num_tokens=4, max_length=4)

GOLDEN_NAMES: dict[Aggregation, str] = {
    "token-mean": "token-mean",
    "seq-mean-token-mean": "seq-mean-token-mean",
    "seq-mean-token-sum": "seq-mean-token-sum",
    "seq-mean-token-sum-norm": "constant",
}


def float64(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def loss_of(
    logprobs: Tensor,
    *,
    mode: Aggregation = "token-mean",
    clip: Clip | None = None,
    beta: float = 0.0,
    old: Tensor | None = None,
    advantages: Any = ADVANTAGES,
) -> LossOutput:
    spec = dataclasses.replace(ALGORITHMS["grpo"], aggregation=mode)
    return policy_loss(
        Objective(spec=spec, clip=clip or Clip(low=0.2, high=0.28), beta=beta),
        logprobs=logprobs,
        old_logprobs=old,
        ref_logprobs=float64(REF) if beta else None,
        advantages=float64(advantages),
        mask=torch.tensor(MASK),
        totals=TOTALS,
    )


def test_every_aggregation_has_a_golden_loss():
    assert set(GOLDEN_NAMES) == set(AGGREGATIONS)


@pytest.mark.parametrize("mode", GOLDEN_NAMES)
def test_the_loss_is_golden(golden: dict[str, Any], mode: Aggregation):
    loss = loss_of(float64(LOGPROBS), mode=mode, old=float64(OLD)).loss
    assert float(loss) == pytest.approx(golden["loss"][f"clip_{GOLDEN_NAMES[mode]}"], abs=1e-8)


def test_the_loss_with_a_symmetric_clip_is_golden(golden: dict[str, Any]):
    loss = loss_of(float64(LOGPROBS), clip=Clip(low=0.2, high=0.2), old=float64(OLD)).loss
    assert float(loss) == pytest.approx(golden["loss"]["clip_symmetric_0.2_token-mean"], abs=1e-8)


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm"])
def test_the_gradient_is_golden(golden: dict[str, Any], mode: Aggregation):
    logprobs = float64(LOGPROBS).requires_grad_()
    loss_of(logprobs, mode=mode, old=float64(OLD)).loss.backward()
    assert logprobs.grad is not None
    expected = float64(golden["grad_clip_wrt_logp"][GOLDEN_NAMES[mode]])
    torch.testing.assert_close(logprobs.grad, expected, atol=1e-8, rtol=0)


def test_the_shares_of_clipped_tokens_are_golden(golden: dict[str, Any]):
    metrics = metric_values(loss_of(float64(LOGPROBS), old=float64(OLD)).metrics)
    assert metrics["clip/low_frac"] == golden["loss"]["clipfrac_low(A<0,r<0.8)"]
    assert metrics["clip/high_frac"] == golden["loss"]["clipfrac_high(A>0,r>1.28)"]


def test_the_other_metrics_are_those_of_the_unmasked_tokens():
    metrics = metric_values(loss_of(float64(LOGPROBS), old=float64(OLD)).metrics)
    ratios = [math.exp(0.2), 1.0, math.exp(0.4), math.exp(-0.5)]
    assert metrics["ratio/mean"] == pytest.approx(sum(ratios) / 4, abs=1e-12)
    assert metrics["ratio/max"] == pytest.approx(max(ratios), abs=1e-12)
    assert metrics["advantage/abs_mean"] == 1.0
    assert "kl/ref" not in metrics


def test_the_kl_term_is_added_with_weight_beta_and_the_ratio_stays_against_the_old_policy(golden: dict[str, Any]):
    output = loss_of(float64(LOGPROBS), old=float64(OLD), beta=0.5)
    k3 = golden["loss"]["kl_token-mean"]["k3"]
    assert float(output.loss) == pytest.approx(golden["loss"]["clip_token-mean"] + 0.5 * k3, abs=1e-8)
    assert metric_values(output.metrics)["kl/ref"] == pytest.approx(k3, abs=1e-12)
    assert metric_values(output.metrics)["loss/value"] == float(output.loss)


QUADRANTS = [
    # advantage, ratio, value, gradient with respect to the log-prob; clip range [0.8, 1.2]
    (1.0, 1.5, -1.2, 0.0),
    (1.0, 1.1, -1.1, -1.1),
    (1.0, 0.5, -0.5, -0.5),
    (-1.0, 1.5, 1.5, 1.5),
    (-1.0, 0.9, 0.9, 0.9),
    (-1.0, 0.5, 0.8, 0.0),
    (2.0, 1.5, -2.4, 0.0),
    (0.0, 1.5, 0.0, 0.0),
]


@pytest.mark.parametrize(("advantage", "ratio", "value", "gradient"), QUADRANTS)
def test_the_clip_takes_the_gradient_only_where_it_would_reward_moving_further(
    advantage: float, ratio: float, value: float, gradient: float
):
    log_ratio = float64([[math.log(ratio)]]).requires_grad_()
    loss = clipped_surrogate(log_ratio, log_ratio, float64([[advantage]]), Clip(low=0.2, high=0.2))
    loss.sum().backward()
    assert log_ratio.grad is not None
    assert float(loss.detach()) == pytest.approx(value, abs=1e-12)
    assert float(log_ratio.grad) == pytest.approx(gradient, abs=1e-12)


@pytest.mark.parametrize(("advantage", "ratio", "value"), [(1.0, 1.25, -1.25), (1.0, 1.4, -1.3), (-1.0, 0.85, 0.9)])
def test_the_two_sides_of_the_clip_are_set_apart(advantage: float, ratio: float, value: float):
    log_ratio = float64([[math.log(ratio)]])
    loss = clipped_surrogate(log_ratio, log_ratio, float64([[advantage]]), Clip(low=0.1, high=0.3))
    assert float(loss) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("difference", [100.0, -100.0])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_log_probs_that_differ_by_a_hundred_give_a_finite_loss_and_gradient(difference: float, advantage: float):
    logprobs = torch.full((2, 3), difference, dtype=torch.float32, requires_grad=True)
    advantages = torch.full((2, 3), advantage).tolist()
    output = loss_of(logprobs, old=torch.zeros(2, 3), advantages=advantages)
    output.loss.backward()
    assert logprobs.grad is not None
    assert torch.isfinite(output.loss)
    assert torch.isfinite(logprobs.grad).all()


def test_the_log_ratio_is_the_difference_up_to_its_bound():
    logprobs, old = float64([[-1.0, 5.0, 0.0, 100.0, -100.0]]), float64([[-1.5, 2.0, 0.0, 0.0, 0.0]])
    assert token_log_ratio(logprobs, old).tolist() == [[0.5, 3.0, 0.0, MAX_LOG_RATIO, -MAX_LOG_RATIO]]


def test_without_old_log_probs_the_ratio_is_exactly_one():
    metrics = metric_values(loss_of(float64(LOGPROBS)).metrics)
    assert (metrics["ratio/mean"], metrics["ratio/max"]) == (1.0, 1.0)
    assert (metrics["clip/low_frac"], metrics["clip/high_frac"]) == (0.0, 0.0)


def test_without_old_log_probs_the_gradient_is_the_policy_gradient():
    logprobs = float64(LOGPROBS).requires_grad_()
    loss_of(logprobs, mode="seq-mean-token-mean").loss.backward()
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, float64([[-1 / 6] * 3, [1 / 2, 0, 0]]), atol=1e-12, rtol=0)


def test_on_policy_the_loss_is_zero_while_its_gradient_is_not():
    logprobs = float64(LOGPROBS).requires_grad_()
    loss = loss_of(logprobs, mode="seq-mean-token-mean").loss  # Advantages +1 and -1: their mean is 0.
    loss.backward()
    assert logprobs.grad is not None
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-15)
    assert float(logprobs.grad.abs().min()) == 0.0  # padding
    assert float(logprobs.grad.norm()) > 0.5
