"""Per-token policy losses [B, T], before aggregation. Lower is better."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """The trust region of the importance ratio: [1 - low, 1 + high]."""

    low: float = 0.2
    high: float = 0.2


def clipped_surrogate(
    logprobs: Float[Tensor, "B T"], log_ratio: Float[Tensor, "B T"], advantages: Float[Tensor, "B T"], clip: Clip
) -> Float[Tensor, "B T"]:
    """Return -min(w A, clip(w, 1 - low, 1 + high) A) with w = exp(log_ratio): PPO's bound (arXiv 1707.06347, eq. 7).

    `logprobs` is not used: it is part of the signature for surrogates that weigh the log-prob itself.
    """
    del logprobs
    ratio = log_ratio.exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip.low, 1 + clip.high) * advantages)
