"""The fixture of the golden losses, and the policy loss of a small batch without a learner."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from tests.numerics.arrays import mask_of, padded
from torch import Tensor

from covey.algos.aggregate import sequence_weights
from covey.algos.objective import Coefficients, LossInputs, Objective, policy_loss
from covey.tensors import LossOutput

# Two completions, of 3 tokens and of 1.
LOGPROBS = [[-0.5, -1.0, -0.2], [-2.0]]
OLD = [[-0.7, -1.0, -0.6], [-1.5]]
REF = [[-0.6, -1.3, -0.4], [-1.8]]
ADVANTAGES = [[1.0, 1.0, 1.0], [-1.0]]
MAX_LENGTH = 4
MASK = mask_of(LOGPROBS)


def golden_logprobs() -> Tensor:
    return padded(LOGPROBS).requires_grad_()


def loss_of(
    objective: Objective,
    logprobs: Tensor,
    *,
    old: Tensor | None = None,
    ref: Tensor | None = None,
    advantages: Tensor | None = None,
    mask: Tensor | None = None,
    group_size: int = 1,
    max_length: int = MAX_LENGTH,
    coefficients: Coefficients | None = None,
    **inputs: Any,
) -> LossOutput:
    """Return the loss of a step that is one micro-batch; by default with the golden fixture's advantages and mask."""
    mask = MASK if mask is None else mask
    weights = sequence_weights(mask, objective.aggregation, group_size=group_size, max_length=max_length, dtype=torch.float64)
    step = LossInputs(
        logprobs=logprobs,
        old_logprobs=old,
        ref_logprobs=ref,
        entropy=torch.zeros_like(logprobs),
        advantages=padded(ADVANTAGES) if advantages is None else advantages,
        mask=mask,
        weights=weights.to(logprobs.dtype),
        num_tokens=int(mask.sum()),
    )
    return policy_loss(objective, dataclasses.replace(step, **inputs), coefficients or Coefficients())


def gradient_of_loss(output: LossOutput, leaf: Tensor) -> Tensor:
    return torch.autograd.grad(output.loss, leaf)[0]
