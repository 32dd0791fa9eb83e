"""Advantage estimators: GroupStats -> [P, G], in float64.

All of them give exactly zero to a rollout that could not be scored, to a group whose scored rewards are all equal
(an explicit test, because in floating point equal rewards need not have zero variance) and to a group with fewer
than two scored rollouts.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from covey.tensors import GroupStats


def group_mean(stats: GroupStats) -> Float64[Tensor, "P 1"]:
    """Return the mean reward over each group's scored rollouts (0 for a group without one)."""
    count = stats.scored.sum(dim=1, keepdim=True)
    return torch.where(stats.scored, stats.rewards, 0.0).sum(dim=1, keepdim=True) / count.clamp(min=1)


def group_std(stats: GroupStats, *, ddof: int) -> Float64[Tensor, "P 1"]:
    """Return the standard deviation over each group's scored rollouts, with divisor (count - ddof)."""
    count = stats.scored.sum(dim=1, keepdim=True)
    squares = torch.where(stats.scored, (stats.rewards - group_mean(stats)) ** 2, 0.0).sum(dim=1, keepdim=True)
    return (squares / (count - ddof).clamp(min=1)).sqrt()


def is_informative(stats: GroupStats) -> Bool[Tensor, "P 1"]:
    """Return whether two scored rewards of the group differ. Needs no tolerance: it compares the rewards themselves."""
    highest = stats.rewards.masked_fill(~stats.scored, -torch.inf).amax(dim=1, keepdim=True)
    lowest = stats.rewards.masked_fill(~stats.scored, torch.inf).amin(dim=1, keepdim=True)
    return highest > lowest


def dr_grpo_advantages(stats: GroupStats, *, min_group_std: float = 0.0, reward_range: float = 1.0) -> Float64[Tensor, "P G"]:
    """Return r - mean(r): Dr. GRPO (arXiv 2503.20783, section 3.2). The options have no effect without a division."""
    del min_group_std, reward_range
    return torch.where(is_informative(stats) & stats.scored, stats.rewards - group_mean(stats), 0.0)


def grpo_advantages(
    stats: GroupStats, *, min_group_std: float = 0.0, reward_range: float = 1.0, ddof: int = 1, eps: float = 1e-4
) -> Float64[Tensor, "P G"]:
    """Return (r - mean(r)) / (std(r) + eps): GRPO (DeepSeekMath, arXiv 2402.03300, section 4.1.2).

    The paper fixes neither ddof nor eps; the sample deviation and 1e-4 are common practice. A group whose deviation is
    below `min_group_std` * `reward_range` is divided by `reward_range` instead: dividing crumbs of reward by their own
    spread would turn them into full-size signal.
    """
    std = group_std(stats, ddof=ddof)
    scale = torch.where(std < min_group_std * reward_range, torch.full_like(std, reward_range), std + eps)
    return dr_grpo_advantages(stats) / scale
