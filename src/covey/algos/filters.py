"""Which tokens keep their gradient: choices over the whole optimizer step, made before it is cut into micro-batches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def top_entropy_mask(entropy: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], *, share: float) -> Bool[Tensor, "B T"]:
    """Return the `share` of the step's tokens with the highest entropy: those that keep a gradient (arXiv 2506.01939).

    At least one token; ties at the threshold are all kept.
    """
    values = entropy[mask]
    if values.numel() == 0:
        return mask
    threshold = values.topk(math.ceil(share * values.numel())).values[-1]
    return mask & (entropy >= threshold)


def covariance(
    logprobs: Float[Tensor, "B T"], advantages: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """Return (log pi - mean log pi)(A - mean A), means over the step's tokens: what moves entropy (arXiv 2505.22617).

    A likely token with a high advantage, or an unlikely one with a low, makes the policy more certain.
    """
    centred = (logprobs - logprobs[mask].mean()) * (advantages - advantages[mask].mean())
    return torch.where(mask, centred, 0.0)


def clip_cov_mask(
    logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    numbers: Float[Tensor, "B T"],
    *,
    share: float,
    low: float = 1.0,
    high: float = 5.0,
) -> Bool[Tensor, "B T"]:
    """Return the tokens that lose their gradient in Clip-Cov (arXiv 2505.22617, eq. 11).

    Of the tokens with a covariance between `low` and `high`, those with the lowest random `numbers`, as many as are
    `share` of all tokens (at least one if there is a candidate).
    """
    value = covariance(logprobs, advantages, mask)
    candidates = mask & (value > low) & (value < high)
    num_dropped = min(max(1, int(share * int(mask.sum()))), int(candidates.sum()))
    drawn = torch.where(candidates, numbers, torch.inf).reshape(-1)
    chosen = torch.zeros(mask.numel(), dtype=torch.bool)
    chosen[drawn.topk(num_dropped, largest=False).indices] = True
    return chosen.reshape(mask.shape)


def kl_cov_mask(
    logprobs: Float[Tensor, "B T"], advantages: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], *, share: float
) -> Bool[Tensor, "B T"]:
    """Return the `share` of tokens with the highest covariance, at least one: KL-Cov holds them back (eq. 12)."""
    if not bool(mask.any()):
        return mask
    value = covariance(logprobs, advantages, mask).masked_fill(~mask, -torch.inf).reshape(-1)
    chosen = torch.zeros(mask.numel(), dtype=torch.bool)
    chosen[value.topk(max(1, int(share * int(mask.sum())))).indices] = True
    return chosen.reshape(mask.shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenFilter:
    """A row of the table."""

    formula: str
    share: float
    """The paper's share of tokens."""
    needs_entropy: bool = False
    needs_later_updates: bool = False
    """Whether it does nothing on a batch's first update, where the ratio is 1."""


TOKEN_FILTERS: dict[str, TokenFilter] = {
    "none": TokenFilter(formula="every token keeps its gradient", share=0.0),
    "top_entropy": TokenFilter(
        formula="only the filter_share of tokens with the highest entropy keep a gradient (arXiv 2506.01939)",
        share=0.2,
        needs_entropy=True,
    ),
    "clip_cov": TokenFilter(
        formula="of the tokens with covariance in (1, 5), filter_share of all lose their gradient (arXiv 2505.22617)",
        share=2e-4,
    ),
    "kl_cov": TokenFilter(
        formula="the filter_share of tokens with the highest covariance pay kl_cov_coefficient |log w| (arXiv 2505.22617)",
        share=2e-4,
        needs_later_updates=True,
    ),
}
