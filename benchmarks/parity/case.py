"""What a case is: a setting of TRL, one of Covey, and what is said about the two; and what comes out of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from covey.algos.objective import Coefficients
from covey.token_choice import TokenChoice
from parity.fixture import STANDARD, Data

NO_COEFFICIENTS, NO_CHOICE = Coefficients(), TokenChoice()


@dataclass(frozen=True, kw_only=True)
class Theirs:
    """A setting of TRL."""

    trainer: str = "grpo"
    options: Mapping[str, Any] = field(default_factory=dict)
    num_micro_batches: int = 1
    steps_per_generation: int = 1
    """Above 1, only the first of that many optimizer steps is compared."""
    sampler_noise: float = 0.0
    """How far the engine's log-probs are from the trainer's; above 0, TRL corrects for it."""
    scale: float = 1.0
    """What loss and gradient are multiplied by, to undo another denominator."""


@dataclass(frozen=True, kw_only=True)
class Ours:
    """A setting of Covey."""

    row: str = "grpo"
    options: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Of the objective: aggregation, kl."""
    coefficients: Coefficients = NO_COEFFICIENTS
    choice: TokenChoice = NO_CHOICE
    temperature: float = 1.0
    is_sequence_ratio: bool = False
    """Whether the row's ratio is replaced by GSPO's."""
    masks_truncated: bool = False
    num_groups: int | None = None
    """The update is made on the first groups alone; None = all."""
    kl_in_rewards: float = 0.0
    """What a completion's KL is weighted with and taken from its reward, before the advantages."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Two settings that agree, or that differ by design and agree after an adjustment."""

    table: str
    name: str
    theirs: Theirs = Theirs()
    ours: Ours = Ours()
    data: Data = STANDARD
    is_on_policy: bool = False
    why: str = ""
    """Set iff the two differ by design."""
    differs: tuple[str, ...] = ("loss", "gradient")
    """The quantities that differ then; the others agree without the adjustment."""
    adjustment: str = ""
    adjusted: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the case that the adjustment replaces."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one of the two makes of a case."""

    advantages: Tensor  # [B] or [B, T]
    loss: float
    gradient: dict[str, Tensor]
    logprobs: dict[str, Tensor]  # name -> [B, T]
    clipped_frac: float = 0.0
    log_ratios: Tensor | None = None
    """Of the tokens that have a gradient; None = the policy is the old one."""
