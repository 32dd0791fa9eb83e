"""What a learner is told, and what it tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from covey.algos.controllers import adaptive_beta, entropy_coefficient
from covey.algos.objective import Coefficients
from covey.metrics import Mean, Metric
from covey.sampling import Sampling

SKIPPED = "update/skipped"
"""Updates that were left out because their gradient was not finite."""
SPIKED = "update/spiked"
"""Updates that were left out because they exceeded a limit."""


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
class SpikeLimits:
    """What an update must not exceed; 0 = no limit."""

    grad_norm_factor: float = 0.0
    """Of the gradient's norm, in medians of the last norms."""
    num_norms: int = 10
    """Norms that the median is of; there is no limit before as many were taken."""
    max_kl: float = 0.0
    """Mean KL of a token from the reference, in nats."""
    max_ratio: float = 0.0
    """Importance ratio of any token."""


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
    limits: SpikeLimits = SpikeLimits()

    @property
    def updates_per_step(self) -> int:
        return self.num_iterations * self.num_minibatches


@dataclass(frozen=True, kw_only=True, slots=True)
class ControllerSpec:
    """Targets that coefficients follow from step to step; 0 = they stay."""

    kl_target: float = 0.0
    kl_horizon: int = 10000
    entropy_target: float = 0.0

    def followed(self, used: Coefficients, found: Mapping[str, float | None], *, num_samples: int) -> Coefficients:
        """Return the coefficients moved towards their targets, by the metrics of a step that has used them."""
        beta, weight = used.beta, used.entropy
        kl, entropy = found.get("kl/sequence"), found.get("entropy/mean")
        if self.kl_target and kl is not None:
            beta = adaptive_beta(beta, kl, target=self.kl_target, horizon=float(self.kl_horizon), num_samples=num_samples)
        if self.entropy_target and entropy is not None:
            weight = entropy_coefficient(weight, entropy, target=self.entropy_target)
        return replace(used, beta=beta, entropy=weight)

    def metrics(self, used: Coefficients) -> dict[str, Metric]:
        """Return the coefficients that were in force, those that are used."""
        logged: dict[str, Metric] = {}
        if used.beta:
            logged["kl/beta"] = Mean(used.beta, 1)
        if used.entropy or self.entropy_target:
            logged["entropy/coefficient"] = Mean(used.entropy, 1)
        return logged


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """What came of a batch."""

    metrics: dict[str, Metric] = field(default_factory=dict)
    num_updates: int = 0
    """0 = nothing could move the weights, and nothing was done."""
    logprobs: Tensor | None = None
    """[B, T] under the policy before its first update; 0 where `is_scored` is False."""
    is_scored: Tensor | None = None
    exceeded: tuple[str, ...] = ()
    """In words, what limits were exceeded, by updates that were therefore not made."""

    @property
    def is_left_out(self) -> bool:
        """Whether it was computed and then not made, because something was wrong with it."""
        return not self.metrics.keys().isdisjoint((SKIPPED, SPIKED))
