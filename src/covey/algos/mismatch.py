"""Engine against trainer: how far their log-probs of the same tokens are apart, and weights that correct for it.

rho = exp(trainer's log-prob - engine's log-prob), of one token or multiplied over a completion. On one machine with one
number format rho is 1 up to rounding, and there is nothing to correct; an engine in another precision is another policy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from covey.algos.kl import k3
from covey.algos.ratios import MAX_LOG_RATIO
from covey.metrics import EffectiveShare, Max, Mean, Metric


@dataclass(frozen=True, kw_only=True, slots=True)
class Correction:
    """A row of the table: weights of the policy loss, and the bounds it is usually used with."""

    formula: str
    weights: Callable[..., Tensor]
    """(old_logprobs, sampling_logprobs, mask, *, low, high) -> [B, T]; exactly 0 = rejected."""
    low: float | None
    """None = there is no lower bound."""
    high: float


def token_weights(old: Float[Tensor, "B T"], sampling: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Return rho of each token."""
    return (old - sampling).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def sequence_product(
    old: Float[Tensor, "B T"], sampling: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B 1"]:
    """Return the product of rho over each completion: unbiased, and of high variance for long ones."""
    return torch.where(mask, old - sampling, 0.0).sum(dim=1, keepdim=True).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def sequence_geometric_mean(
    old: Float[Tensor, "B T"], sampling: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B 1"]:
    """Return the geometric mean of rho over each completion: not an importance weight, so good for filtering only."""
    lengths = mask.sum(dim=1, keepdim=True).clamp(min=1)
    return (torch.where(mask, old - sampling, 0.0).sum(dim=1, keepdim=True) / lengths).clamp(max=MAX_LOG_RATIO).exp()


def _truncated(rho: Tensor, high: float) -> Tensor:
    return rho.clamp(max=high)


def _kept(rho: Tensor, low: float, high: float) -> Tensor:
    return torch.where((rho >= low) & (rho <= high), rho, 0.0)


CORRECTIONS: dict[str, Correction] = {
    # Truncated importance sampling, per token.
    "tis_token": Correction(
        formula="min(rho_t, high)",
        weights=lambda old, sampling, mask, *, low, high: _truncated(token_weights(old, sampling), high),
        low=None,
        high=2.0,
    ),
    "tis_sequence": Correction(
        formula="min(prod_t rho_t, high)",
        weights=lambda old, sampling, mask, *, low, high: _truncated(sequence_product(old, sampling, mask), high).expand_as(
            old
        ),
        low=None,
        high=2.0,
    ),
    # Masked importance sampling; with bounds 0.5 and 5 what is called IcePop.
    "mask_token": Correction(
        formula="rho_t if low <= rho_t <= high, else the token is left out",
        weights=lambda old, sampling, mask, *, low, high: _kept(token_weights(old, sampling), low, high),
        low=0.5,
        high=5.0,
    ),
    "mask_sequence": Correction(
        formula="prod_t rho_t if it is within low and high, else the completion is left out",
        weights=lambda old, sampling, mask, *, low, high: _kept(sequence_product(old, sampling, mask), low, high).expand_as(
            old
        ),
        low=0.0,
        high=3.0,
    ),
    "mask_geometric": Correction(
        formula="1 if the geometric mean of rho is within low and high, else the completion is left out",
        weights=lambda old, sampling, mask, *, low, high: (
            _kept(sequence_geometric_mean(old, sampling, mask), low, high).gt(0).to(old.dtype).expand_as(old)
        ),
        low=0.99,
        high=1.01,
    ),
}


def mismatch_metrics(
    logprobs: Float[Tensor, "B T"], sampling_logprobs: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> dict[str, Metric]:
    """Return how far the engine's log-probs are from the trainer's for the same tokens under the same weights."""
    count = int(mask.sum())
    difference = (logprobs - sampling_logprobs)[mask].double()
    rho = difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    divergence = k3(sampling_logprobs, logprobs)[mask].double()
    return {
        "mismatch/abs_mean": Mean(float(difference.abs().sum()), count),
        "mismatch/max": Max(float(difference.abs().max()) if count else -torch.inf),
        "mismatch/k3": Mean(float(divergence.sum()), count),
        "mismatch/ratio_mean": Mean(float(rho.sum()), count),
        "mismatch/chi_square": Mean(float((rho**2 - 1).sum()), count),
        "mismatch/ess_frac": EffectiveShare(float(rho.sum()), float((rho**2).sum()), count),
    }
