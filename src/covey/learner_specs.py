"""What a learner is told, and what it tells."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from covey.metrics import Metric
from covey.sampling import Sampling


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoringSpec:
    """How completions are scored under a model."""

    sampling: Sampling
    """The distribution that they were drawn from."""
    compute_dtype: torch.dtype
    max_tokens_per_micro_batch: int
    max_shared_tokens: int
    checkpoints_layers: bool = False
    """Whether each layer is computed again in the backward pass: slower, and of activations only its input is kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnerSpec:
    """The optimizer's numbers, and how often it steps."""

    learning_rate: float
    warmup_steps: int
    num_steps: int
    decay: bool
    """Whether the learning rate falls linearly, to 0 after `num_steps` times `updates_per_step` updates, or stays."""
    max_grad_norm: float
    weight_decay: float
    max_new_tokens: int
    num_iterations: int = 1
    """Passes over a batch."""
    num_minibatches: int = 1
    """Updates in a pass."""
    seed: int = 0
    """Of the order of groups in a pass with several minibatches."""

    @property
    def updates_per_step(self) -> int:
        return self.num_iterations * self.num_minibatches


@dataclass(frozen=True, kw_only=True, slots=True)
class ControllerSpec:
    """Targets that coefficients follow from step to step; 0 = they stay."""

    kl_target: float = 0.0
    kl_horizon: int = 10000
    entropy_target: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """What came of a batch."""

    metrics: dict[str, Metric] = field(default_factory=dict)
    num_updates: int = 0
    """0 = nothing could move the weights, and nothing was done."""
    logprobs: Tensor | None = None
    """[B, T] under the policy before its first update; 0 where `is_scored` is False."""
    is_scored: Tensor | None = None
