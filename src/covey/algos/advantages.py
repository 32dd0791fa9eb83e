"""Advantage estimators: GroupStats -> [P, G], in float64. Their keyword-only parameters are options of the recipe.

All of them give exactly zero to a rollout that could not be scored and to a group with fewer than two scored rollouts
(`raw_rewards` and `remax_advantages`, which compare no rollouts with each other, need one). Those that measure a reward
against its own group give exactly zero to a group whose scored rewards are all equal: an explicit test, because in
floating point equal rewards need not have zero variance. `covey.algos.batch_advantages` holds those whose statistics
span the whole batch.
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


def success_share(stats: GroupStats) -> Float64[Tensor, "P G"]:
    """Return the rewards moved to [0, 1] by the declared range: what estimators for success probabilities read."""
    return (stats.rewards - stats.reward_low) / (stats.reward_high - stats.reward_low)


# Which groups carry a signal, for rows in which that does not depend on the group alone.


def rewards_differ(stats: GroupStats) -> Bool[Tensor, "P 1"]:
    """Return whether two scored rewards of the group differ. Needs no tolerance: it compares the rewards themselves."""
    highest = stats.rewards.masked_fill(~stats.scored, -torch.inf).amax(dim=1, keepdim=True)
    lowest = stats.rewards.masked_fill(~stats.scored, torch.inf).amin(dim=1, keepdim=True)
    return highest > lowest


def parts_differ(stats: GroupStats) -> Bool[Tensor, "P 1"]:
    """Return whether two scored rollouts of the group differ in any part of the reward, or in the reward without parts."""
    if stats.parts.shape[-1] == 0:
        return rewards_differ(stats)
    scored = stats.scored[..., None]
    highest = stats.parts.masked_fill(~scored, -torch.inf).amax(dim=1)
    lowest = stats.parts.masked_fill(~scored, torch.inf).amin(dim=1)
    return (highest > lowest).any(dim=1, keepdim=True)


def any_scored(stats: GroupStats) -> Bool[Tensor, "P 1"]:
    """Return whether the group has a scored rollout: for estimators whose baseline is not the group."""
    return stats.scored.any(dim=1, keepdim=True)


def has_pair(stats: GroupStats) -> Bool[Tensor, "P 1"]:
    """Return whether at least two rollouts of the group are scored."""
    return stats.scored.sum(dim=1, keepdim=True) >= 2


# The estimators.


def raw_rewards(stats: GroupStats) -> Float64[Tensor, "P G"]:
    """Return r: REINFORCE without a baseline. REINFORCE++ (arXiv 2501.03262) whitens it later, token by token."""
    return torch.where(stats.scored, stats.rewards, 0.0)


def dr_grpo_advantages(stats: GroupStats) -> Float64[Tensor, "P G"]:
    """Return r - mean(r): Dr. GRPO (arXiv 2503.20783, section 3.2)."""
    return torch.where(rewards_differ(stats) & stats.scored, stats.rewards - group_mean(stats), 0.0)


def grpo_advantages(
    stats: GroupStats, *, ddof: int = 1, eps: float = 1e-4, min_group_std: float = 0.0
) -> Float64[Tensor, "P G"]:
    """Return (r - mean(r)) / (std(r) + eps): GRPO (DeepSeekMath, arXiv 2402.03300, section 4.1.2).

    The paper fixes neither ddof nor eps; the sample deviation and 1e-4 are common practice. A group whose deviation is
    below `min_group_std` times the reward's range is divided by that range instead: dividing crumbs of reward by their
    own spread would turn them into full-size signal.
    """
    std = group_std(stats, ddof=ddof)
    reward_range = stats.reward_high - stats.reward_low
    scale = torch.where(std < min_group_std * reward_range, torch.full_like(std, reward_range), std + eps)
    return dr_grpo_advantages(stats) / scale


def rloo_advantages(stats: GroupStats) -> Float64[Tensor, "P G"]:
    """Return r_i - mean of the other scored rewards = n/(n - 1) (r_i - mean r): RLOO (arXiv 2402.14740, section 3.3).

    Unbiased: the baseline of a completion does not depend on it.
    """
    count = stats.scored.sum(dim=1, keepdim=True).double()  # A quotient of integers would be float32.
    return dr_grpo_advantages(stats) * (count / (count - 1).clamp(min=1))


def remax_advantages(stats: GroupStats) -> Float64[Tensor, "P G"]:
    """Return r - r(greedy completion of the same prompt): ReMax (arXiv 2310.10505, section 3.1).

    A group whose greedy completion could not be scored (NaN) has no baseline and gets zero.
    """
    assert stats.baseline is not None, "the row asks for a greedy baseline"
    baseline = stats.baseline[:, None]
    return torch.where(stats.scored & baseline.isfinite(), stats.rewards - baseline, 0.0)


def opo_advantages(stats: GroupStats) -> Float64[Tensor, "P G"]:
    """Return r - sum(T r) / sum(T): OPO (arXiv 2505.23585, section 3), whose baseline weighs completions by length."""
    lengths = torch.where(stats.scored, stats.lengths, 0).double()
    baseline = (lengths * raw_rewards(stats)).sum(dim=1, keepdim=True) / lengths.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.where(rewards_differ(stats) & stats.scored, stats.rewards - baseline, 0.0)


def maxrl_advantages(stats: GroupStats, *, all_fail_correction: bool = True) -> Float64[Tensor, "P G"]:
    """Return (p - mean p) / mean p with p the reward moved to [0, 1]: MaxRL (arXiv 2602.02710).

    Its expectation is the gradient of sum over k <= G of pass@k / k, which approaches log p, if a group in which all
    fail gets -1 (`all_fail_correction`). The authors' code gives such groups 0, and is then slightly off.
    """
    share = torch.where(stats.scored, success_share(stats), 0.0)
    mean = share.sum(dim=1, keepdim=True) / stats.scored.sum(dim=1, keepdim=True).clamp(min=1)
    advantages = (share - mean) / torch.where(mean == 0, 1.0, mean)
    advantages = torch.where((mean == 0) & all_fail_correction, -torch.ones_like(share), advantages)
    has_signal = rewards_differ(stats) | ((mean == 0) & has_pair(stats))
    return torch.where(stats.scored & has_signal, advantages, 0.0)


def passk_advantages(stats: GroupStats, *, k: int = 4) -> Float64[Tensor, "P G"]:
    """Return the advantages of pass@k training (arXiv 2508.10751, section 3), for groups of n with c right answers.

    rho = 1 - C(n - c, k) / C(n, k), sigma = sqrt(rho (1 - rho)); a right answer gets (1 - rho) / sigma, a wrong one
    (1 - rho - C(n - c - 1, k - 1) / C(n - 1, k - 1)) / sigma. All zero where sigma is 0: where any k answers hold a
    right one, or none does. A reward above the middle of its range counts as right.
    """
    n = stats.scored.sum(dim=1, keepdim=True).double()
    is_right = (success_share(stats) > 0.5) & stats.scored
    num_wrong = n - is_right.sum(dim=1, keepdim=True)
    rho = 1 - _ratio_of_choices(num_wrong, n, k)
    sigma = (rho * (1 - rho)).clamp(min=0).sqrt()
    wrong = 1 - rho - _ratio_of_choices(num_wrong - 1, n - 1, k - 1)
    advantages = torch.where(is_right, 1 - rho, wrong) / torch.where(sigma == 0, 1.0, sigma)
    return torch.where(stats.scored & (sigma > 0) & (n >= k), advantages, 0.0)


def _ratio_of_choices(fewer: Float64[Tensor, "P 1"], many: Float64[Tensor, "P 1"], k: int) -> Float64[Tensor, "P 1"]:
    """Return C(fewer, k) / C(many, k) as a product of k factors; 0 where fewer < k."""
    ratio = torch.ones_like(many)
    for index in range(k):
        ratio = ratio * (fewer - index).clamp(min=0) / (many - index).clamp(min=1)
    return ratio


def passk_max_advantages(stats: GroupStats, *, ddof: int = 1, eps: float = 1e-6) -> Float64[Tensor, "P G"]:
    """Return (best - second best) / (std + eps) for the best rollout, 0 for the others (arXiv 2503.19595, section 4).

    The objective is the expected maximum of the group. Never negative, so biased; with two best ones nobody gets any.
    """
    if stats.rewards.shape[1] < 2:
        return torch.zeros_like(stats.rewards)
    masked = stats.rewards.masked_fill(~stats.scored, -torch.inf)
    best, second = masked.topk(2, dim=1).values.split(1, dim=1)
    lead = torch.where(rewards_differ(stats), best - second, 0.0) / (group_std(stats, ddof=ddof) + eps)
    return torch.where((masked == best) & rewards_differ(stats) & stats.scored, lead, 0.0)
