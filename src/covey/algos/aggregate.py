"""From per-token losses [B, T] to one number: each mode is a weight per sequence.

A micro-batch returns its share of the step's loss. The totals it divides by are counted once over the whole
optimizer step, so that the gradient does not depend on how the step was cut into micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Aggregation = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTotals:
    """What one optimizer step holds, over all micro-batches and ranks."""

    num_sequences: int
    """Sequences with at least one trained token."""
    num_tokens: int
    max_length: int
    """A constant of the run (the token limit of sampling), not the longest sequence of the step."""


AGGREGATIONS: dict[Aggregation, Callable[[Float[Tensor, "B"], StepTotals], Float[Tensor, "B"]]] = {
    # DAPO (arXiv 2503.14476): every token of the step weighs the same, so long completions weigh more.
    "token-mean": lambda lengths, totals: torch.full_like(lengths, 1.0 / totals.num_tokens),
    # GRPO (arXiv 2402.03300): every completion weighs the same, so tokens of long completions weigh less.
    "seq-mean-token-mean": lambda lengths, totals: 1.0 / (lengths.clamp(min=1) * totals.num_sequences),
    "seq-mean-token-sum": lambda lengths, totals: torch.full_like(lengths, 1.0 / totals.num_sequences),
    # Dr. GRPO (arXiv 2503.20783): a constant divisor, so that length changes no token's weight.
    "seq-mean-token-sum-norm": lambda lengths, totals: torch.full_like(
        lengths, 1.0 / (totals.num_sequences * totals.max_length)
    ),
}


def aggregate(
    token_loss: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], mode: Aggregation, totals: StepTotals
) -> Float[Tensor, ""]:
    """Return this micro-batch's share of the step's loss: sum over b, t of weight(b) * token_loss[b, t] * mask[b, t]."""
    weights = AGGREGATIONS[mode](mask.sum(dim=1).to(token_loss.dtype), totals)
    return (torch.where(mask, token_loss, 0.0).sum(dim=1) * weights).sum()
