"""From one advantage per completion [P, G] to one per token [B, T]: the only place where advantages are broadcast."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor


def outcome_credit(advantages: Float64[Tensor, "P G"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Return each completion's advantage on every one of its tokens, 0 elsewhere, in float32 and without gradient."""
    per_sequence = advantages.detach().to(torch.float32).reshape(-1, 1)
    return torch.where(mask, per_sequence, 0.0)


def whitened(credit: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], *, eps: float = 1e-8) -> Float[Tensor, "B T"]:
    """Return (c - mean c) / (std c + eps) over all tokens under the mask: REINFORCE++ (arXiv 2501.03262, section 3).

    Statistics in float64, divisor count - 1. Every token counts once, so long completions count more. Exactly zero if
    all tokens have the same credit.
    """
    values = credit[mask].double()
    if values.numel() == 0 or float(values.max()) == float(values.min()):
        return torch.zeros_like(credit)
    normalised = (values - values.mean()) / (values.std(correction=1) + eps)
    return torch.zeros_like(credit).masked_scatter(mask, normalised.to(credit.dtype))
