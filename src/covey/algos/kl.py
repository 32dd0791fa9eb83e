"""Per-token estimators of KL(policy || reference) from the log-probs of the sampled token, and where they may act.

Source of the names: Schulman 2020, "Approximating KL Divergence". An unbiased value does not make an unbiased gradient:
`KL_TERMS` says for each term which divergence its expected gradient belongs to, and the tests prove it by enumeration.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from covey.algos.ratios import MAX_LOG_RATIO


def k1(logprobs: Float[Tensor, "B T"], ref_logprobs: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Return log pi - log pi_ref: unbiased for KL(policy || reference), of either sign."""
    return logprobs - ref_logprobs


def k2(logprobs: Float[Tensor, "B T"], ref_logprobs: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Return (log pi - log pi_ref)^2 / 2: biased as a value; its gradient on policy is that of KL(policy || reference)."""
    return 0.5 * k1(logprobs, ref_logprobs) ** 2


def k3(
    logprobs: Float[Tensor, "B T"], ref_logprobs: Float[Tensor, "B T"], *, max_log_ratio: float = MAX_LOG_RATIO
) -> Float[Tensor, "B T"]:
    """Return r - 1 - log r with r = reference / policy: unbiased for KL(policy || reference), never negative.

    As a value it is the estimator GRPO uses (arXiv 2402.03300, eq. 4). As a loss on samples of the policy its expected
    gradient is that of the forward divergence KL(reference || policy), not of the divergence it estimates.
    """
    log_ratio = (ref_logprobs - logprobs).clamp(-max_log_ratio, max_log_ratio)
    return log_ratio.exp() - 1 - log_ratio


def weighted_k3(
    logprobs: Float[Tensor, "B T"],
    ref_logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    *,
    max_log_ratio: float = MAX_LOG_RATIO,
) -> Float[Tensor, "B T"]:
    """Return w k3 with w = policy / old policy carrying a gradient: DeepSeek-V3.2 (arXiv 2512.02556).

    The weight's own gradient is what makes the expected gradient that of KL(policy || reference), off policy too.
    """
    weight = (logprobs - old_logprobs).clamp(-max_log_ratio, max_log_ratio).exp()
    return weight * k3(logprobs, ref_logprobs, max_log_ratio=max_log_ratio)


def kl_to_go(token_kl: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Return for each token the sum of its completion's KL from it to the end: what the token's choice leads to."""
    masked = torch.where(mask, token_kl, 0.0)
    return torch.where(mask, masked.flip(1).cumsum(dim=1).flip(1), 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class KlTerm:
    """One way of holding the policy near the reference."""

    formula: str
    gradient: str
    """What its expected gradient on samples of the policy is."""
    in_loss: Callable[[Tensor, Tensor, Tensor], Tensor] | None
    """(logprobs, ref_logprobs, old_logprobs) -> [B, T]; None = it acts through the reward."""


KL_TERMS: dict[str, KlTerm] = {
    "k3_loss": KlTerm(
        formula="k3_t = s - 1 - log s, s = pi_ref / pi, in the loss",
        gradient="of the forward divergence KL(reference || policy), token by token",
        in_loss=lambda logprobs, ref, old: k3(logprobs, ref),
    ),
    "k2_loss": KlTerm(
        formula="k2_t = (log pi - log pi_ref)^2 / 2, in the loss",
        gradient="of KL(policy || reference) token by token; blind to how a token changes later ones",
        in_loss=lambda logprobs, ref, old: k2(logprobs, ref),
    ),
    "weighted_k3_loss": KlTerm(
        formula="w_t k3_t, w = pi / pi_old with its gradient, in the loss",
        gradient="of KL(policy || reference) token by token, off policy too; blind to how a token changes later ones",
        in_loss=weighted_k3,
    ),
    "k1_loss": KlTerm(
        formula="k1_t = log pi - log pi_ref, in the loss",
        gradient="zero: it holds the policy nowhere, and is here to be compared with",
        in_loss=lambda logprobs, ref, old: k1(logprobs, ref),
    ),
    "k1_reward": KlTerm(
        formula="k1_t = log pi_old - log pi_ref, subtracted from the reward-to-go",
        gradient="of the sequence's KL(policy || reference), later tokens included (with token ratios and equal weights)",
        in_loss=None,
    ),
}
