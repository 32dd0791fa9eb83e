"""Which completions of a group a row learns from, for rows that learn from a selection: GroupStats -> [P, G], in float64."""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

from covey.algos.advantages import rewards_differ, success_share
from covey.tensors import GroupStats


def successes(stats: GroupStats, *, threshold: float = 0.5) -> Float64[Tensor, "P G"]:
    """Return 1 for completions whose reward is at least `threshold` of the declared range, 0 for others: RAFT's selection.

    RAFT (arXiv 2304.06767) keeps the best completion of a prompt; with rewards of right and wrong, all right ones are best.
    """
    return (stats.scored & (success_share(stats) >= threshold)).double()


def best_and_worst(stats: GroupStats) -> Float64[Tensor, "P G"]:
    """Return 1 for the group's best completion, -1 for its worst and 0 for others; 0 for all if no two rewards differ.

    Among equals the first counts: samples of a group are exchangeable, so that this is a random one.
    """
    best = stats.rewards.masked_fill(~stats.scored, -torch.inf).argmax(dim=1, keepdim=True)
    worst = stats.rewards.masked_fill(~stats.scored, torch.inf).argmin(dim=1, keepdim=True)
    marks = torch.zeros_like(stats.rewards).scatter(1, best, 1.0).scatter(1, worst, -1.0)
    return torch.where(rewards_differ(stats), marks, 0.0)
