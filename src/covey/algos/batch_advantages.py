"""Advantage estimators whose statistics span all groups of the step, those without a signal of their own included."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from covey.algos.advantages import (
    dr_grpo_advantages,
    group_std,
    has_pair,
    parts_differ,
    rewards_differ,
    success_share,
)
from covey.tensors import GroupStats

WhitenOver = Literal["sequences", "tokens"]


def batch_std_advantages(stats: GroupStats, *, ddof: int = 1, eps: float = 1e-4) -> Float64[Tensor, "P G"]:
    """Return (r - mean of the group) / (std of the batch's raw rewards + eps): Lite PPO (arXiv 2508.08221, section 4).

    The deviation is that of the rewards as they are, between-group differences included; compare
    `reinforce_pp_baseline_advantages`, which divides by the deviation of the centred rewards.
    """
    scored = stats.rewards[stats.scored]
    std = ((scored - scored.mean()) ** 2).sum().div(max(scored.numel() - ddof, 1)).sqrt() if scored.numel() else 0.0
    return torch.where(rewards_differ(stats), dr_grpo_advantages(stats) / (std + eps), 0.0)


def reinforce_pp_baseline_advantages(
    stats: GroupStats, *, ddof: int = 1, eps: float = 1e-8, whiten_over: WhitenOver = "sequences"
) -> Float64[Tensor, "P G"]:
    """Return (a - mean a) / (std a + eps) with a = r - mean of the group: REINFORCE++-baseline (arXiv 2501.03262).

    Mean and deviation are over the batch's scored completions, those without a scored peer left out. "tokens" weighs each
    completion by its length, as OpenRLHF and verl do; long completions then count more, and a group's advantages no
    longer add up to 0. A flat group gets exactly 0 all the same.
    """
    centred = dr_grpo_advantages(stats)
    weights = torch.where(stats.scored & has_pair(stats), stats.lengths if whiten_over == "tokens" else 1, 0).double()
    count = weights.sum().clamp(min=1)
    mean = (weights * centred).sum() / count
    std = ((weights * (centred - mean) ** 2).sum() / (count - ddof).clamp(min=1)).sqrt()
    return torch.where((weights > 0) & rewards_differ(stats), (centred - mean) / (std + eps), 0.0)


def bnpo_advantages(stats: GroupStats, *, min_density: float = 1e-6) -> Float64[Tensor, "P G"]:
    """Return (p - mean p) / Beta(mean p; alpha, beta) with p the reward moved to [0, 1]: BNPO (arXiv 2506.02864).

    The Beta density's parameters are matched to the groups' success shares x = mean p, with mean m and variance v (divisor
    P - 1) over the batch: a = (m (1 - m) / v - 1) m, b = (m (1 - m) / v - 1) (1 - m), alpha = 1 + a/3, beta = 1 + b/3,
    both at least 1. A batch whose groups all have the same share (up to rounding), or a single group, tells nothing about
    the spread and is divided by the flat density, 1. The density is small far from the others' shares, so the advantages
    of an outlying group can be very large: it counts as `min_density` at least. (TRL uses the name for something else: a
    token mean over the local batch.)
    """
    share = torch.where(stats.scored, success_share(stats), 0.0)
    counted = has_pair(stats)[:, 0]
    mean = share.sum(dim=1, keepdim=True) / stats.scored.sum(dim=1, keepdim=True).clamp(min=1)
    shares = mean[counted, 0]
    alpha, beta = _beta_parameters(shares)
    inside = mean.clamp(1e-12, 1 - 1e-12)
    log_density = (
        (alpha - 1) * inside.log()
        + (beta - 1) * (1 - inside).log()
        + torch.lgamma(alpha + beta)
        - torch.lgamma(alpha)
        - torch.lgamma(beta)
    )
    return torch.where(rewards_differ(stats) & stats.scored, (share - mean) / log_density.exp().clamp(min=min_density), 0.0)


_SAME_SHARE = 1e-9
"""Shares that differ by less are equal: they are means of the same rewards in another order."""


def _beta_parameters(shares: Float64[Tensor, "P"]) -> tuple[Float64[Tensor, ""], Float64[Tensor, ""]]:
    one = torch.ones((), dtype=torch.float64)
    if shares.numel() < 2 or float(shares.max() - shares.min()) < _SAME_SHARE:
        return one, one
    mean, variance = shares.mean(), shares.var(correction=1)
    concentration = mean * (1 - mean) / variance - 1
    return 1 + (concentration * mean / 3).clamp(min=0), 1 + (concentration * (1 - mean) / 3).clamp(min=0)


def gdpo_advantages(stats: GroupStats, *, ddof: int = 1, eps: float = 1e-4) -> Float64[Tensor, "P G"]:
    """Return the advantages of GDPO (arXiv 2601.05242, section 3) for a reward with several parts.

    Each part k is normalised in its group, z_k = (r_k - mean) / (std + eps), before the weighted sum s = sum_k w_k z_k is
    normalised over the batch, (s - mean s) / (std s + eps). So the weights act on parts of equal spread, and a part that
    is paid in other units changes nothing. A part that is flat in a group gives it exactly 0. A reward without parts is
    its own only part. Completions without a scored peer are left out of the batch's statistics.
    """
    has_parts = stats.parts.shape[-1] > 0
    parts = stats.parts if has_parts else stats.rewards[..., None]
    weights = stats.part_weights if has_parts and stats.part_weights is not None else torch.ones(parts.shape[-1]).double()
    total = torch.zeros_like(stats.rewards)
    for part, weight in zip(parts.unbind(dim=-1), weights.tolist(), strict=True):
        of_part = GroupStats(rewards=part, scored=stats.scored, lengths=stats.lengths, parts=stats.parts[..., :0])
        total = total + weight * dr_grpo_advantages(of_part) / (group_std(of_part, ddof=ddof) + eps)
    counted = stats.scored & has_pair(stats)
    values = total[counted]
    mean = values.mean()
    std = ((values - mean) ** 2).sum().div(max(values.numel() - ddof, 1)).sqrt()
    return torch.where(counted & parts_differ(stats), (total - mean) / (std + eps), 0.0)
