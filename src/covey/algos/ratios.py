"""Log importance ratios of the policy against the policy that the data came from."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""exp(20) = 4.9e8: beyond any clip range, and far from overflow in float32."""


def token_log_ratio(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    max_log_ratio: float = MAX_LOG_RATIO,
) -> Float[Tensor, "B T"]:
    """Return log w = log pi(token) - log pi_old(token), clamped to +-`max_log_ratio` so that exp() stays finite."""
    del mask  # One signature for all: a token's ratio needs no other token.
    return (logprobs - old_logprobs).clamp(-max_log_ratio, max_log_ratio)


def sequence_log_ratio(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    max_log_ratio: float = MAX_LOG_RATIO,
) -> Float[Tensor, "B T"]:
    """Return the mean over a completion's tokens of log pi - log pi_old, at each of its positions: GSPO.

    (arXiv 2507.18071, eq. 7.) Its exponential is the length-normalised likelihood ratio of the completion.
    """
    lengths = mask.sum(dim=1, keepdim=True).clamp(min=1)
    mean = torch.where(mask, logprobs - old_logprobs, 0.0).sum(dim=1, keepdim=True) / lengths
    return mean.clamp(-max_log_ratio, max_log_ratio).expand_as(logprobs)
