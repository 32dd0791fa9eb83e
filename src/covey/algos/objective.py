"""The policy loss of one micro-batch, composed from a row of the table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from covey.algos.aggregate import Aggregation, aggregate
from covey.algos.kl import KL_TERMS, k1, k3
from covey.algos.preference import pair_slope
from covey.algos.spec import PolicySpec, keyword_arguments
from covey.metrics import Max, Mean, Metric, Quantile, Sum
from covey.tensors import GroupStats, LossOutput


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """A row of the table together with the recipe's numbers."""

    spec: PolicySpec
    options: Mapping[str, Any]
    """A value for each of `spec.options`."""
    aggregation: Aggregation
    kl: str
    """A row of KL_TERMS."""
    kl_cov_coefficient: float = 0.0

    @classmethod
    def of_row(cls, spec: PolicySpec, **options: Any) -> Objective:
        """Return the row with its own defaults, and these options."""
        return cls(spec=spec, options=spec.options | options, aggregation=spec.aggregation, kl=spec.kl)

    def advantages(self, stats: GroupStats) -> Float64[Tensor, "P G"]:
        """Return the row's advantages."""
        return self.spec.advantage(stats, **keyword_arguments(self.spec.advantage, self.options))

    def pair_losses(self, margins: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
        """Return the loss of each pair, in rows that learn from pairs."""
        assert self.spec.pair_loss is not None
        return self.spec.pair_loss(margins, **keyword_arguments(self.spec.pair_loss, self.options))

    def pair_advantages(self, marks: Float64[Tensor, "P G"], margins: Float[Tensor, "P"]) -> Float64[Tensor, "P G"]:
        """Return what the marked completions are worth: the pair's slope for the chosen one, less it for the rejected one.

        Twice, because the loss is a mean over pairs and the aggregation one over completions, two for each pair.
        """
        return 2 * marks * pair_slope(self.pair_losses, margins)[:, None]

    def has_signal(self, stats: GroupStats) -> Bool[Tensor, "P 1"]:
        """Return which groups can move the weights."""
        if self.spec.signal is not None:
            return self.spec.signal(stats)
        return (self.advantages(stats) != 0).any(dim=1, keepdim=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Coefficients:
    """Weights of the terms beside the surrogate. Controllers may change them from step to step."""

    beta: float = 0.0
    """Of the KL term; 0 = no reference model is needed."""
    entropy: float = 0.0
    """Of the entropy bonus."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossInputs:
    """The rows of one micro-batch, and what is known of the whole optimizer step."""

    logprobs: Float[Tensor, "B T"]
    """With gradient."""
    old_logprobs: Float[Tensor, "B T"] | None
    """None = this is the batch's only update: the policy is still the one that the batch came from, its own detached
    log-probs serve, and the ratio is exactly 1."""
    ref_logprobs: Float[Tensor, "B T"] | None
    entropy: Float[Tensor, "B T"]
    """With gradient iff there is an entropy bonus."""
    advantages: Float[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    weights: Float[Tensor, "B"]
    """Of each completion's tokens in the step's loss: `covey.algos.aggregate.sequence_weights`."""
    num_tokens: int
    """Under the mask of the whole step."""
    token_weights: Float[Tensor, "B T"] | None = None
    """Of each token in the surrogate: importance weights and filters; None = 1."""
    held_back: Bool[Tensor, "B T"] | None = None
    """Tokens that pay |log w| (KL-Cov)."""


def policy_loss(objective: Objective, inputs: LossInputs, coefficients: Coefficients) -> LossOutput:
    """Return this micro-batch's share of aggregate(surrogate + beta KL) - entropy coefficient * token mean of entropy."""
    spec, options, mask = objective.spec, objective.options, inputs.mask
    logprobs = inputs.logprobs
    old = logprobs.detach() if inputs.old_logprobs is None else inputs.old_logprobs
    log_ratio = spec.log_ratio(logprobs, old, mask)
    surrogate = keyword_arguments(spec.surrogate, options)
    token_loss = spec.surrogate(logprobs, log_ratio, inputs.advantages, mask, **surrogate)
    if inputs.token_weights is not None:
        token_loss = token_loss * inputs.token_weights
    if inputs.held_back is not None:
        token_loss = token_loss + objective.kl_cov_coefficient * torch.where(inputs.held_back, log_ratio.abs(), 0.0)
    in_loss = KL_TERMS[objective.kl].in_loss
    if inputs.ref_logprobs is not None and coefficients.beta and in_loss is not None:
        token_loss = token_loss + coefficients.beta * in_loss(logprobs, inputs.ref_logprobs, old)
    loss = aggregate(token_loss, mask, inputs.weights)
    if coefficients.entropy:
        # A token mean whatever the row's aggregation is, so that the coefficient means the same in every row.
        bonus = torch.where(mask, inputs.entropy, 0.0).sum() / inputs.num_tokens
        loss = loss - coefficients.entropy * bonus
    metrics = ratio_metrics(log_ratio.detach(), inputs.advantages, mask, spec.clip_range(options))
    metrics["loss/value"] = Sum(float(loss.detach()))
    metrics["entropy/mean"] = masked_mean(inputs.entropy.detach(), mask)
    return LossOutput(loss=loss, metrics=metrics)


def ratio_metrics(
    log_ratio: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    clip_range: tuple[float, float],
) -> dict[str, Metric]:
    """Return how far the policy has moved from the data, and how often the ratio was outside the row's clip range."""
    ratio = log_ratio.exp()
    largest = float(ratio[mask].max()) if bool(mask.any()) else -torch.inf
    low, high = clip_range
    return {
        "ratio/mean": masked_mean(ratio, mask),
        "ratio/max": Max(largest),
        "clip/low_frac": masked_mean((ratio < low) & (advantages < 0), mask),
        "clip/high_frac": masked_mean((ratio > high) & (advantages > 0), mask),
        "advantage/abs_mean": masked_mean(advantages.abs(), mask),
    }


def kl_metrics(
    logprobs: Float[Tensor, "B T"], ref_logprobs: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> dict[str, Metric]:
    """Return the distance from the reference: of a token (k3, never negative) and of a whole completion (sum of k1)."""
    tokens = k3(logprobs, ref_logprobs)[mask].double()
    sequences = torch.where(mask, k1(logprobs, ref_logprobs).double(), 0.0).sum(dim=1)[mask.any(dim=1)]
    values = tuple(tokens.tolist())
    return {
        "kl/ref": Mean(float(tokens.sum()), tokens.numel()),
        "kl/token_median": Quantile(values, 0.5),
        "kl/token_p99": Quantile(values, 0.99),
        "kl/token_max": Max(max(values, default=-math.inf)),
        "kl/sequence": Mean(float(sequences.sum()), sequences.numel()),
        "kl/sequence_max": Max(float(sequences.max()) if sequences.numel() else -math.inf),
    }


def masked_mean(values: Tensor, mask: Bool[Tensor, "B T"]) -> Mean:
    """Return the Mean of `values` over the True positions of the mask, summed in float64."""
    return Mean(float(values[mask].double().sum()), int(mask.sum()))
