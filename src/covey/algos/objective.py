"""The policy loss of one micro-batch, composed from a row of the table."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from covey.algos.aggregate import StepTotals, aggregate
from covey.algos.registry import PolicySpec
from covey.algos.surrogates import Clip
from covey.metrics import Max, Mean, Metric, Sum
from covey.tensors import LossOutput


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """A row of the table together with the recipe's numbers."""

    spec: PolicySpec
    clip: Clip
    beta: float = 0.0
    """Weight of the per-token KL term; 0 = no reference model is needed."""
    min_group_std: float = 0.0
    """Groups with a smaller deviation are not scaled up; as a share of `reward_range`."""
    reward_range: float = 1.0
    """The reward's declared highest value minus its lowest."""


def policy_loss(
    objective: Objective,
    *,
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"] | None,
    ref_logprobs: Float[Tensor, "B T"] | None,
    advantages: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    totals: StepTotals,
) -> LossOutput:
    """Return this micro-batch's share of aggregate(surrogate + beta * KL).

    `old_logprobs` None means that this is the first update of the batch, where the policy is still the one that the
    batch is scored with: its own detached log-probs serve, and the ratio is exactly 1.
    """
    old = logprobs.detach() if old_logprobs is None else old_logprobs
    log_ratio = objective.spec.log_ratio(logprobs, old)
    token_loss = objective.spec.surrogate(logprobs, log_ratio, advantages, objective.clip)
    metrics = ratio_metrics(log_ratio.detach(), advantages, mask, objective.clip)
    if ref_logprobs is not None:
        kl = objective.spec.kl(logprobs, ref_logprobs)
        token_loss = token_loss + objective.beta * kl
        metrics["kl/ref"] = masked_mean(kl.detach(), mask)
    loss = aggregate(token_loss, mask, objective.spec.aggregation, totals)
    metrics["loss/value"] = Sum(float(loss.detach()))
    return LossOutput(loss=loss, metrics=metrics)


def ratio_metrics(
    log_ratio: Float[Tensor, "B T"], advantages: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], clip: Clip
) -> dict[str, Metric]:
    """Return how far the policy has moved from the data, and how often the clip took the gradient away."""
    ratio = log_ratio.exp()
    largest = float(ratio[mask].max()) if bool(mask.any()) else -torch.inf
    return {
        "ratio/mean": masked_mean(ratio, mask),
        "ratio/max": Max(largest),
        "clip/low_frac": masked_mean((ratio < 1 - clip.low) & (advantages < 0), mask),
        "clip/high_frac": masked_mean((ratio > 1 + clip.high) & (advantages > 0), mask),
        "advantage/abs_mean": masked_mean(advantages.abs(), mask),
    }


def masked_mean(values: Tensor, mask: Bool[Tensor, "B T"]) -> Mean:
    """Return the Mean of `values` over the True positions of the mask, summed in float64."""
    return Mean(float(values[mask].double().sum()), int(mask.sum()))
