"""From per-token losses [B, T] to one number: each mode is a weight per completion.

The weights are computed once over the whole optimizer step, before it is cut into micro-batches or shared among ranks.
A micro-batch then returns its share of the step's loss, and shares add up whatever the cut.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Aggregation = Literal[
    "token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm", "group-mean-token-mean"
]


@dataclass(frozen=True, kw_only=True, slots=True)
class StepLengths:
    """What the modes divide by, counted over one whole optimizer step."""

    lengths: Float[Tensor, "B"]
    """Trained tokens of each completion."""
    group_size: int
    max_length: int
    """A constant of the run (the token limit of sampling), not the longest completion of the step."""

    @property
    def num_sequences(self) -> Float[Tensor, ""]:
        """Completions with at least one trained token."""
        return (self.lengths > 0).sum().clamp(min=1).to(self.lengths.dtype)

    @property
    def group_tokens(self) -> Float[Tensor, "P"]:
        """Trained tokens of each group."""
        return self.lengths.reshape(-1, self.group_size).sum(dim=1)


AGGREGATIONS: dict[Aggregation, Callable[[StepLengths], Float[Tensor, "B"]]] = {
    # DAPO (arXiv 2503.14476), in its released code: every token of the step weighs the same.
    "token-mean": lambda step: torch.ones_like(step.lengths) / step.lengths.sum().clamp(min=1),
    # GRPO (arXiv 2402.03300): every completion weighs the same, so tokens of long completions weigh less.
    "seq-mean-token-mean": lambda step: 1 / (step.lengths.clamp(min=1) * step.num_sequences),
    "seq-mean-token-sum": lambda step: torch.ones_like(step.lengths) / step.num_sequences,
    # Dr. GRPO (arXiv 2503.20783): a constant divisor, so that length changes no token's weight.
    "seq-mean-token-sum-norm": lambda step: torch.ones_like(step.lengths) / (step.num_sequences * step.max_length),
    # DAPO's equation 8 as printed: a token mean in each group, then a mean over groups with a trained token.
    "group-mean-token-mean": lambda step: (
        1 / (step.group_tokens.clamp(min=1) * (step.group_tokens > 0).sum().clamp(min=1))
    ).repeat_interleave(step.group_size),
}


def sequence_weights(
    mask: Bool[Tensor, "B T"], mode: Aggregation, *, group_size: int, max_length: int, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "B"]:
    """Return the weight of each completion's tokens in the step's loss; `mask` is that of the whole optimizer step."""
    step = StepLengths(lengths=mask.sum(dim=1).double(), group_size=group_size, max_length=max_length)
    return AGGREGATIONS[mode](step).to(dtype)


def aggregate(token_loss: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], weights: Float[Tensor, "B"]) -> Float[Tensor, ""]:
    """Return this micro-batch's share of the step's loss: sum over b, t of weights[b] * token_loss[b, t] * mask[b, t]."""
    return (torch.where(mask, token_loss, 0.0).sum(dim=1) * weights).sum()
