"""From one advantage per completion [P, G] to one per token [B, T]: the only place where advantages are broadcast."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor


def outcome_credit(advantages: Float64[Tensor, "P G"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Return each completion's advantage on every one of its tokens, 0 elsewhere, in float32 and without gradient."""
    per_sequence = advantages.detach().to(torch.float32).reshape(-1, 1)
    return torch.where(mask, per_sequence, 0.0)
