"""The frozen dataclasses of the flow that hold tensors; the lowest module that imports torch.

Every per-token tensor is in completion coordinates [B, T]: column t is the t-th token after the prompt. Prompts never
appear in a loss tensor; the shift between logits and tokens exists only inside `models/scoring.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from covey.metrics import Metric


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupStats:
    """All that an advantage estimator may see. Float64, because float32 group statistics invent signal."""

    rewards: Float64[Tensor, "P G"]
    """0 where `scored` is False; never read there."""
    scored: Bool[Tensor, "P G"]
    lengths: Int[Tensor, "P G"]
    parts: Float64[Tensor, "P G K"]
    baseline: Float64[Tensor, "P"] | None = None
    """Reward of the greedy completion, NaN where it could not be scored; None iff the row asks for none."""
    reward_low: float = 0.0
    reward_high: float = 1.0
    """The declared range of the rewards."""
    part_weights: Float64[Tensor, "K"] | None = None
    """None = every part counts once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """The tokens of one step, without anything computed by a model."""

    prompt_ids: list[Int[Tensor, "_"]]
    """One per group: the prompt is stored once, however many completions it has."""
    completion_ids: Int[Tensor, "B T"]
    completion_mask: Bool[Tensor, "B T"]
    """True on completion tokens. Made from lengths, never from token values."""
    sampling_logprobs: Float[Tensor, "B T"] | None
    """As the engine reported them; None iff the completions do not come from the present policy."""
    is_truncated: Bool[Tensor, "B"]
    """Whether a completion was cut off at the token limit."""
    stats: GroupStats
    """Of the groups here and, after them, of those that were sampled with them and left out: statistics that span the
    step see these, too."""

    @property
    def num_groups(self) -> int:
        return len(self.prompt_ids)

    @property
    def group_size(self) -> int:
        return self.completion_ids.shape[0] // self.num_groups


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """What frozen models say about the tokens, computed before the update."""

    old_logprobs: Float[Tensor, "B T"] | None
    """Trainer's log-probs before the first update; None = the detached first forward serves."""
    ref_logprobs: Float[Tensor, "B T"] | None
    """None iff there is no reference model."""
    entropy: Float[Tensor, "B T"] | None = None
    """Of the policy before the first update; None iff it was not scored then."""
    values: Float[Tensor, "B T_plus_1"] | None = None
    """Of the state before each token and, in the column behind a completion's last token, after it; None iff there is no
    value model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Everything the learner needs for one step."""

    tokens: Tokens
    scores: Scores
    advantages: Float[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    """The tokens that are trained on: the completions' own, less those that a correction rejects."""
    token_weights: Float[Tensor, "B T"] | None = None
    """Of each token in the surrogate; None = 1."""
    held_back: Bool[Tensor, "B T"] | None = None
    """Tokens that pay for a change of their probability; None = none do."""
    returns: Float[Tensor, "B T"] | None = None
    """What the value model is fitted to; None iff there is none."""
    margins: Float[Tensor, "N"] | None = None
    """Of the step's pairs, before the update; None iff the row learns from no pairs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossOutput:
    """A micro-batch's share of the whole step's loss: shares add up to the loss of the step."""

    loss: Float[Tensor, ""]
    metrics: dict[str, Metric]


def concat_rows(pieces: list[Tensor]) -> Tensor:
    """Return [sum of rows, T] from pieces [rows_i, T_i], padded on the right with zeros to the widest."""
    width = max(piece.shape[1] for piece in pieces)
    return torch.cat([torch.nn.functional.pad(piece, (0, width - piece.shape[1])) for piece in pieces])
