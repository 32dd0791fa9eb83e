"""Per-token policy losses [B, T], before aggregation. Lower is better.

All share the positional arguments (logprobs, log_ratio, advantages, mask). Their keyword-only parameters are options of
the recipe.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def clipped_surrogate(
    logprobs: Float[Tensor, "B T"],
    log_ratio: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
    dual_clip: float = 0.0,
    delta: float = 0.0,
) -> Float[Tensor, "B T"]:
    """Return -min(w A, clip(w, 1 - low, 1 + high) A) with w = exp(log_ratio): PPO's bound (arXiv 1707.06347, eq. 7).

    `dual_clip` = c > 1 bounds the loss of a negative advantage by -c A (arXiv 1912.09729, eq. 5); `delta` > 1 bounds w
    itself in the unclipped branch (two-sided clipping, INTELLECT-2, arXiv 2505.07291). Both take the gradient from a
    token that is bad and has become much likelier. 0 = off.
    """
    del logprobs, mask
    ratio = log_ratio.exp()
    bounded = ratio.clamp(max=delta) if delta else ratio
    loss = -torch.minimum(bounded * advantages, ratio.clamp(1 - epsilon_low, 1 + epsilon_high) * advantages)
    return torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss) if dual_clip else loss


def cispo_surrogate(
    logprobs: Float[Tensor, "B T"],
    log_ratio: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    epsilon_low: float = 1.0,
    epsilon_high: float = 0.28,
) -> Float[Tensor, "B T"]:
    """Return -sg[clip(w, 1 - low, 1 + high)] A log pi: CISPO (MiniMax-M1, arXiv 2506.13585, eq. 4).

    The weight is clipped and not the update, so every token keeps a gradient. `epsilon_low` = 1 means no lower bound, as
    in the authors' runs. TRL's `epsilon_high` is the cap itself, 1 + `epsilon_high` here.
    """
    del mask
    weight = log_ratio.detach().exp().clamp(1 - epsilon_low, 1 + epsilon_high)
    return -weight * advantages * logprobs


def sapo_surrogate(
    logprobs: Float[Tensor, "B T"],
    log_ratio: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    tau_positive: float = 1.0,
    tau_negative: float = 1.05,
) -> Float[Tensor, "B T"]:
    """Return -(4/tau) sigmoid(tau (w - 1)) A, a soft clip: SAPO (arXiv 2511.20347, eq. 5).

    tau is `tau_positive` where A > 0 and `tau_negative` elsewhere; the larger it is, the sooner the gradient fades.
    """
    del logprobs, mask
    tau = torch.full_like(advantages, tau_negative).masked_fill(advantages > 0, tau_positive)
    return -(4 / tau) * torch.sigmoid(tau * (log_ratio.exp() - 1)) * advantages


def gmpo_surrogate(
    logprobs: Float[Tensor, "B T"],
    log_ratio: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    epsilon_low: float = 0.4,
    epsilon_high: float = 0.4,
) -> Float[Tensor, "B T"]:
    """Return -A times the geometric mean of the completion's clipped token ratios, at each position: GMPO.

    (arXiv 2507.20673, eq. 4.) The log-ratio is clipped to [-low, high] on one side only: from above where A > 0, from
    below where A < 0, which is PPO's pessimistic choice token by token.
    """
    del logprobs
    clipped = log_ratio.clamp(-epsilon_low, epsilon_high)
    pessimistic = torch.where(advantages > 0, torch.minimum(log_ratio, clipped), torch.maximum(log_ratio, clipped))
    lengths = mask.sum(dim=1, keepdim=True).clamp(min=1)
    mean = torch.where(mask, pessimistic, 0.0).sum(dim=1, keepdim=True) / lengths
    return -mean.exp() * advantages


def reinforce_surrogate(
    logprobs: Float[Tensor, "B T"],
    log_ratio: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
) -> Float[Tensor, "B T"]:
    """Return -A log pi: the policy gradient itself (Williams 1992), with no correction for older data."""
    del log_ratio, mask
    return -advantages * logprobs
